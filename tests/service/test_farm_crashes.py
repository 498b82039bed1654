"""Farms are killed at every step: each job has one result, and none is lost."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from bentoml_secure.proofs.backends.ezkl import Ezkl
from bentoml_secure.proofs.jobs.job import Job, JobKey, Priority, State
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.statements import utc_now
from tests import postgresql
from tests.service.farming import LIMITS, QUEUE, SIGNATURE_BYTES, STEPS
from tests.service.proving_folder import order, prepared, require_proof

ROOT = Path(__file__).parents[2]
SECONDS = 60


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if reason := postgresql.why_not():
        pytest.skip(reason)
    with postgresql.serving() as url:
        yield url


def job(number: int, order: bytes, *, segment: int = 0) -> Job:
    return Job(
        key=JobKey(f"{number:032x}", 0, segment),
        order=order,
        priority=Priority.CRITICAL,
        deadline=utc_now() + timedelta(minutes=10),
        memory_bytes=100,
    )


def started(
    url: str, folder: Path, *, work: str = "stand-in", step: str = "never"
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.service.farming", url, work, step]
    # Where children have their folders.
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.Popen([*command, str(folder)], cwd=ROOT, env=environment)


def died(farm: subprocess.Popen[bytes]) -> bool:
    code = farm.wait(SECONDS)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def deaths(folder: Path, count: int) -> None:
    (folder / "deaths").mkdir()
    for number in range(count):
        (folder / "deaths" / str(number)).touch()


def submitted(store: JobStore, count: int) -> list[JobKey]:
    keys = []
    for number in range(count):
        segment = number % 2
        made = job(number, b"order %d" % number, segment=segment)
        store.submit(made)
        if segment:
            store.put_link(made.key, b"link %d" % number)
        keys.append(made.key)
    return keys


def require_each_once(store: JobStore, keys: Sequence[JobKey]) -> dict[JobKey, bytes]:
    told = store.status(keys)
    assert {each.state for each in told.values()} == {State.DONE}
    results = store.results(keys)
    assert set(results) == set(keys)
    for number, key in enumerate(keys):
        link = b"link %d" % number if key.segment else b""
        want = hashlib.sha256(b"order %d" % number + link).digest()
        assert results[key][:-SIGNATURE_BYTES] == want
    assert store.links(keys) == {
        key: b"link order %d" % number for number, key in enumerate(keys)
    }
    return results


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step(tmp_path: Path, step: str) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    store = JobStore(url, queue=QUEUE)
    keys = submitted(store, 4)
    deaths(tmp_path, 2)
    began = time.monotonic()
    kept: dict[JobKey, bytes] = {}
    lives = 0
    while died(started(url, tmp_path, step=step)):
        lives += 1
        # What was there stays as it was: no result is made a second time.
        now = store.results(keys)
        assert kept.items() <= now.items()
        kept = now
    assert lives == 2
    assert kept.items() <= require_each_once(store, keys).items()
    # Far from a lease: who starts sees that its predecessor is dead.
    assert time.monotonic() - began < SECONDS
    store.close()


def running(store: JobStore, keys: Sequence[JobKey]) -> int:
    states = [each.state for each in store.status(keys).values()]
    return states.count(State.RUNNING)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_whenever_by_another(server: str, tmp_path: Path) -> None:
    """Two farms on one PostgreSQL, killed at random moments of their work."""
    store = JobStore(server, queue=QUEUE, max_attempts=100)
    keys = submitted(store, 40)
    chance = random.Random(7)

    def begun() -> subprocess.Popen[bytes]:
        return started(server, tmp_path, work="slow stand-in")

    farms = [begun(), begun()]
    for _ in range(5):
        until(lambda: running(store, keys) > 2 or sum(store.depth().values()) < 3)
        time.sleep(chance.uniform(0.0, 0.5))
        farm = farms.pop(0)
        farm.kill()
        farm.wait()
        farms.append(begun())
    for farm in farms:
        assert not died(farm)
    require_each_once(store, keys)
    assert any(each.attempt > 1 for each in store.status(keys).values())
    store.close()


def test_collected_twice_is_the_same(tmp_path: Path) -> None:
    """A collector that dies before it says ``forget`` collects the same again."""
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    store = JobStore(url, queue=QUEUE)
    keys = submitted(store, 2)
    assert not died(started(url, tmp_path))
    first = require_each_once(store, keys)
    # Nor does an order that comes again after its proof was made.
    assert not store.submit(job(0, b"order 0"))
    assert not died(started(url, tmp_path))
    assert store.results(keys) == first
    assert store.forget(keys) == len(keys)
    store.close()


@pytest.fixture(scope="module")
def proving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a circuit and its keys."""
    folder = tmp_path_factory.mktemp("proving")
    prepared(folder)
    return folder


def provers(farm: subprocess.Popen[bytes]) -> list[psutil.Process]:
    name = "bentoml_secure.proofs.backends.ezkl_child"
    return [p for p in psutil.Process(farm.pid).children() if name in p.cmdline()]


@pytest.mark.parametrize("victim", ["prover", "farm"])
def test_killed_while_it_proves(proving: Path, tmp_path: Path, victim: str) -> None:
    """Real proofs, and a real kill -9 in the middle of one."""
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    store = JobStore(url, queue=QUEUE)
    made = job(1, order(1))
    store.submit(made)
    farm = started(url, proving, work="real")
    until(lambda: store.status([made.key])[made.key].phase == "prove")
    (prover,) = provers(farm)
    (prover if victim == "prover" else farm).kill()
    if victim == "farm":
        assert died(farm)
        # It had the witness: it does not outlive its farm.
        prover.wait(10)
        assert list(proving.glob("bsec-proof-*"))
        farm = started(url, proving, work="real")
    assert not died(farm)
    assert not list(proving.glob("bsec-proof-*"))
    told = store.status([made.key])[made.key]
    assert (told.state, told.attempt) == (State.DONE, 2)
    facts = require_proof(
        store.results([made.key])[made.key][:-SIGNATURE_BYTES], proving
    )
    boundary, salt = json.loads(made.order)
    out = json.loads(store.links([made.key])[made.key])
    assert Ezkl().hash([boundary, salt, out], LIMITS) == [
        facts.input,
        facts.salt,
        facts.output,
    ]
    store.close()
