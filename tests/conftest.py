"""Options and settings of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.harness import Project

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests marked slow")
    parser.addoption(
        "--real-tee", action="store_true", help="ask the devices of this machine"
    )


SERVING = ("service", "examples", "test_examples.py", "test_readme.py")
"""What starts services, but attacks: of several processes, one runs all of these."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give one process all tests that start services, another one all attacks."""
    from xdist.scheduler import LoadScopeScheduling

    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = _part
    return scheduling


def _part(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    part = Path(file).parts[1]
    if part in SERVING:
        return "serving"
    # The rest by file, as fixtures are shared there.
    return part if part == "attacks" else file


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run by make test-slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


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
