from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer

from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.entry_door import EntryDoor
from tests.unit.serving.serving_doors import Behind, door_of
from tests.unit.serving.serving_parts import Ground, make_ground, split_skips


@pytest.fixture(scope="session")
def skips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the network ``skips.onnx`` and of its plan, ``plan``."""
    folder = tmp_path_factory.mktemp("skips")
    split_skips(folder)
    return folder


@pytest.fixture
def ground(skips: Path) -> Ground:
    return make_ground(skips / "plan")


@pytest.fixture
def plain(skips: Path) -> Ground:
    """The ground of a deployment that lets exchanges be unsealed."""
    return make_ground(skips / "plan", sealed=False)


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Configure BentoML for a service, as its command line does before a start.

    Takes the service and what the operator says in BENTOML_CONFIG_OPTIONS.
    """
    before = copy.deepcopy(BentoMLContainer.config.get())

    def configure(service: Any, options: str = "") -> None:
        monkeypatch.setenv("BENTOML_CONFIG_OPTIONS", options)
        service.inject_config()

    yield configure
    BentoMLContainer.config.set(before)


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
async def entry(ground: Ground, tmp_path: Path) -> AsyncIterator[Entry]:
    made = ground.entry(await ground.attested(), tmp_path / "store")
    yield made
    await made.close()


@pytest.fixture
def door(behind: Behind, entry: Entry) -> EntryDoor:
    return door_of(behind, entry)
