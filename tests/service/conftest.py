"""One deployment of ``bentoml serve`` for every test that leaves it whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Project, serve
from tests.service.deployments import STAGED, Deployment

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def staged(project: Project) -> Project:
    """The project, with ``staged.py`` in it."""
    project.add(HERE / "staged.py")
    return project


@pytest.fixture(scope="session")
def deployment(staged: Project) -> Iterator[Deployment]:
    """Entry and runners as ``bentoml serve`` starts them: UDS between them."""
    trust = staged.trust()
    with serve(STAGED, staged, staged.folder / "home-service") as entry:
        yield Deployment(entry=entry, project=staged, trust=trust)
