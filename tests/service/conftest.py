"""One deployment of ``bentoml serve`` for every test that leaves it whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Project, serve
from tests.service.brokers import BrokerHost, Vault, broker_of, make_vault
from tests.service.deployments import STAGED, Deployment
from tests.service.wiring import Wired, wired_up

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
        yield Deployment(entry=entry, project=staged, trust=trust).whole()


@pytest.fixture(scope="session")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    """The owner of a sealed model, and the project that serves it."""
    return make_vault(tmp_path_factory.mktemp("vault"))


@pytest.fixture(scope="session")
def broker(vault: Vault) -> Iterator[BrokerHost]:
    """That owner's broker, running; who ends it starts it again."""
    with broker_of(vault) as host:
        yield host


@pytest.fixture(scope="session")
def wired(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Wired]:
    """A deployment of which every byte is seen."""
    with wired_up(project, tmp_path_factory.mktemp("wired")) as wired:
        yield wired
