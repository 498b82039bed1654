"""A farm on a real Ray cluster: its workers, its memory, and their deaths."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.executors.ray_cluster import Placement, RayCluster
from bentoml_secure.proofs.farm import Budget, Farm
from bentoml_secure.proofs.jobs.job import Job, JobKey, Priority, State
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.proofs.work import Event, Executed, Failed, Payload
from bentoml_secure.statements import utc_now
from tests.service import ray_nodes
from tests.service.proving_folder import order, prepared, require_proof

BUDGET = Budget(slots=2, memory_bytes=1 << 40, lease_seconds=30)
PLACED = Placement(
    address="127.0.0.1:1",
    path="tests.service.ray_nodes:open_work",
    resources={ray_nodes.WORKER: 1},
    seconds=120,
)
SECONDS = 120
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_nodes.cluster() as address:
        yield address


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    made = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite", queue="q")
    yield made
    made.close()


def placed(address: str, folder: Path, **context: str) -> RayCluster:
    context = {"folder": str(folder), **context}
    return RayCluster(replace(PLACED, address=address, context=context))


def job(number: int, made: bytes = b"order", *, segment: int = 0, memory: int) -> Job:
    return Job(
        key=JobKey(f"{number:032x}", 0, segment),
        order=made,
        priority=Priority.CRITICAL,
        deadline=utc_now() + timedelta(minutes=10),
        memory_bytes=memory,
    )


@asynccontextmanager
async def running(farm: Farm) -> AsyncIterator[Farm]:
    await farm.start()
    try:
        yield farm
    finally:
        await farm.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - what is awaited is elsewhere
            await asyncio.sleep(0.05)


def notes(folder: Path, key: JobKey) -> list[dict[str, Any]]:
    written = folder.glob(f"{key.receipt_id}.*")
    texts = sorted(written, key=lambda path: path.stat().st_mtime)
    return [json.loads(text) for path in texts if (text := path.read_text())]


async def test_jobs_run_on_a_worker_node_where_memory_is(
    address: str, store: JobStore, tmp_path: Path
) -> None:
    """Two that a node has no room for at once: the cluster lets one wait."""
    large = ray_nodes.MEMORY_BYTES * 2 // 3
    first, second = job(1, memory=large), job(2, segment=1, memory=large)
    store.submit(first)
    store.submit(second)
    store.put_link(second.key, b" and link")
    keys = [first.key, second.key]
    async with running(Farm(store, placed(address, tmp_path, seconds="1"), BUDGET)):
        await until(lambda: not sum(store.depth().values()))
    told = store.status(keys).values()
    assert {each.state for each in told} == {State.DONE}, told
    assert store.links(keys) == {
        first.key: b"link order",
        second.key: b"link order and link",
    }
    earlier, later = sorted(
        map(json.loads, store.results(keys).values()), key=lambda each: each["began"]
    )
    assert {earlier["node"], later["node"]} == {"worker"}
    assert earlier["ended"] <= later["began"]


async def test_a_worker_that_is_killed_while_it_proves(
    address: str, store: JobStore, tmp_path: Path
) -> None:
    """A real proof, kill -9 of the worker's process in its middle: one result."""
    prepared(tmp_path)
    made = job(3, order(3), memory=100 << 20)
    store.submit(made)
    async with running(Farm(store, placed(address, tmp_path, real=""), BUDGET)):
        await until(lambda: store.status([made.key])[made.key].phase == "prove")
        (note,) = notes(tmp_path, made.key)
        (prover,) = psutil.Process(note["pid"]).children()
        os.kill(note["pid"], signal.SIGKILL)
        await until(lambda: not sum(store.depth().values()))
    told = store.status([made.key])[made.key]
    assert (told.state, told.attempt) == (State.DONE, 2), told
    require_proof(store.results([made.key])[made.key], tmp_path)
    # It had the witness.
    assert not prover.is_running()
    assert {each["node"] for each in notes(tmp_path, made.key)} == {"worker"}


def payload(number: int) -> Payload:
    key = JobKey(f"{number:032x}", 0, 0)
    return Payload(key=key, order=b"order", link=None, memory_bytes=100 << 20)


@pytest.mark.slow
def test_ending_an_attempt_ends_it_on_the_cluster(address: str, tmp_path: Path) -> None:
    told = queue.SimpleQueue[Event]()
    end = placed(address, tmp_path, seconds="600").start(payload(4), told.put)
    assert told.get(timeout=SECONDS) == Executed(b"link order")
    (note,) = notes(tmp_path, payload(4).key)
    worker = psutil.Process(note["pid"])
    end()
    last = told.get(timeout=20)
    assert isinstance(last, Failed)
    deadline = time.monotonic() + 30
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "its worker goes on"
        time.sleep(0.1)


@pytest.mark.slow
def test_what_a_worker_cannot_import_fails_for_good(
    address: str, tmp_path: Path
) -> None:
    told = queue.SimpleQueue[Event]()
    elsewhere = replace(PLACED, address=address, path="tests.no_such:work")
    RayCluster(elsewhere).start(payload(5), told.put)
    last = told.get(timeout=SECONDS)
    assert isinstance(last, Failed)
    assert not last.retry
    assert "cannot import tests.no_such:work" in last.reason


# Ray tries for 20 s each.
@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "0" * 64], ids=["none", "another"])
def test_who_has_not_the_clusters_token_runs_nothing(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token is None:
        monkeypatch.delenv("RAY_AUTH_MODE")
        monkeypatch.delenv(ray_nodes.TOKEN)
    else:
        monkeypatch.setenv(ray_nodes.TOKEN, token)
    told = queue.SimpleQueue[Event]()
    placed(address, tmp_path).start(payload(6), told.put)
    last = told.get(timeout=SECONDS)
    assert isinstance(last, Failed)
    assert last.retry
    assert notes(tmp_path, payload(6).key) == []


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"address": "auto"}, "want host:port"),
        ({"address": "local"}, "want host:port"),
        ({"cpus": 0}, "0 cores"),
        ({"seconds": 0.0}, "0.0 s"),
    ],
)
def test_other_placements_are_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        replace(PLACED, **given)
