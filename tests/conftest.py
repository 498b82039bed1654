"""Options and settings of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness import Project

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests marked slow")
    parser.addoption(
        "--real-tee", action="store_true", help="ask the devices of this machine"
    )


SERVING = ("service", "attacks", "examples", "test_examples.py", "test_readme.py")
"""What starts services: these have deadlines, and are run one after the other."""


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    _group(items)
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run by make test-slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def _group(items: list[pytest.Item]) -> None:
    """Have one process of several run all tests that start services, from the start.

    Others run the rest meanwhile. The order within each part is random as ever.
    """
    here = Path(__file__).parent
    serving = {id(i) for i in items if i.path.relative_to(here).parts[0] in SERVING}
    for item in items:
        if id(item) in serving:
            item.add_marker(pytest.mark.xdist_group("serving"))
    items.sort(key=lambda item: id(item) not in serving)


@pytest.fixture
def real_tee(request: pytest.FixtureRequest) -> None:
    """Skip, unless this machine's devices may be asked."""
    if not request.config.getoption("--real-tee"):
        pytest.skip("asks real devices: run with --real-tee")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project folder to serve from; see ``tests.harness``."""
    # Imported late: most tests need neither ONNX nor the command line.
    from tests.harness import make_project

    return make_project(tmp_path_factory.mktemp("project"))
