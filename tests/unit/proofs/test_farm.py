"""The farm: what fits is worked on, and whatever happens each job ends once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)
from bentoml_secure.proofs.executors.local import Local
from bentoml_secure.proofs.farm import Budget, Farm
from bentoml_secure.proofs.jobs.job import Job, JobKey, Priority, State
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.proofs.work import Payload, Told
from bentoml_secure.statements import utc_now

BUDGET = Budget(
    slots=2,
    memory_bytes=250,
    lease_seconds=1.0,
    poll_seconds=0.05,
    grace_seconds=0.2,
)


@dataclass
class StandInWork:
    """Works as a test says, on no proof at all."""

    hold: threading.Event = field(default_factory=threading.Event)
    started: list[JobKey] = field(default_factory=list)
    most: int = 0
    errors: list[Exception] = field(default_factory=list)
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, payload: Payload, executed: Told) -> bytes:
        with self._lock:
            self.started.append(payload.key)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            executed(b"link of " + payload.order)
            self.hold.wait(20)
            if self.errors:
                raise self.errors.pop(0)
            return b"result of " + payload.order + (payload.link or b"")
        finally:
            with self._lock:
                self._now -= 1


def key(number: int = 0, segment: int = 0) -> JobKey:
    return JobKey(f"{number:032x}", 0, segment)


def job(
    number: int = 0, segment: int = 0, *, seconds: float = 600, memory: int = 100
) -> Job:
    return Job(
        key=key(number, segment),
        order=b"order %d" % number,
        priority=Priority.CRITICAL,
        deadline=utc_now() + timedelta(seconds=seconds),
        memory_bytes=memory,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    made = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite", queue="q")
    yield made
    made.close()


@pytest.fixture
def work() -> Iterator[StandInWork]:
    made = StandInWork()
    yield made
    made.hold.set()


@asynccontextmanager
async def running(farm: Farm) -> AsyncIterator[Farm]:
    await farm.start()
    try:
        yield farm
    finally:
        await farm.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - what is awaited is another thread's
            await asyncio.sleep(0.02)


def state(store: JobStore, of: JobKey) -> State:
    return store.status([of])[of].state


def ended(store: JobStore) -> Callable[[], bool]:
    return lambda: not sum(store.depth().values())


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"bentoml_secure_{name}", labels) or 0.0


async def test_jobs_are_worked_on_as_they_fit(
    store: JobStore, work: StandInWork
) -> None:
    def proofs() -> float:
        return counted("verifications_total", **labels, result="pass")

    labels = {"mechanism": "proof", "segment": "0"}
    before = proofs()
    for number in range(5):
        store.submit(job(number))
    async with running(Farm(store, Local(work), replace(BUDGET, slots=5))) as farm:
        # Two are what memory allows.
        await until(lambda: len(farm.progress()) == 2)
        await until(lambda: {p.phase for p in farm.progress()} == {"prove"})
        await asyncio.sleep(0.2)
        assert len(work.started) == 2
        assert counted("proof_queue_depth") == 5
        work.hold.set()
        await until(ended(store))
        await until(lambda: not farm.progress())
    assert work.most == 2
    keys = [key(number) for number in range(5)]
    want = {each: b"result of order %d" % n for n, each in enumerate(keys)}
    assert store.results(keys) == want
    assert store.links([key(3)]) == {key(3): b"link of order 3"}
    assert proofs() == before + 5
    assert counted("proof_seconds_count", segment="0", phase="execute") >= 5


async def test_slots_bound_what_memory_does_not(
    store: JobStore, work: StandInWork
) -> None:
    for number in range(4):
        store.submit(job(number, memory=1))
    work.hold.set()
    async with running(Farm(store, Local(work), BUDGET)):
        await until(ended(store))
    assert work.most <= 2


async def test_what_is_signed_is_what_is_kept(
    store: JobStore, work: StandInWork
) -> None:
    refusals = [UnavailableError("no device"), UnavailableError("no device")]

    def sign(of: JobKey, result: bytes) -> bytes:
        if refusals:
            raise refusals.pop()
        return b"signed " + result

    store.submit(job())
    work.hold.set()
    async with running(Farm(store, Local(work), BUDGET, sign=sign)):
        await until(ended(store))
    assert store.results([key()]) == {key(): b"signed result of order 0"}
    assert work.started == [key()]


async def test_what_cannot_be_signed_fails(store: JobStore, work: StandInWork) -> None:
    def sign(of: JobKey, result: bytes) -> bytes:
        raise MalformedInputError("of another job")

    store.submit(job())
    work.hold.set()
    async with running(Farm(store, Local(work), BUDGET, sign=sign)):
        await until(ended(store))
    assert store.status([key()])[key()].reason == "of another job"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MalformedInputError("of another form"), "of another form"),
        (ConfigurationError("no key"), "no key"),
        # What it says may be what it worked on.
        (ValueError("secret"), "ValueError at test_farm.py"),
    ],
)
async def test_what_no_attempt_can_mend_is_not_tried_again(
    store: JobStore, work: StandInWork, error: Exception, reason: str
) -> None:
    work.errors.append(error)
    work.hold.set()
    store.submit(job())
    async with running(Farm(store, Local(work), BUDGET)):
        await until(ended(store))
    told = store.status([key()])[key()]
    assert told.state is State.FAILED
    assert told.reason.startswith(reason)
    assert "secret" not in told.reason
    assert len(work.started) == 1


async def test_what_may_do_better_is_tried_again(
    store: JobStore, work: StandInWork
) -> None:
    work.errors.append(UnavailableError("killed"))
    work.hold.set()
    store.submit(job())
    async with running(Farm(store, Local(work), BUDGET)):
        await until(ended(store))
    told = store.status([key()])[key()]
    assert (told.state, told.attempt) == (State.DONE, 2)


async def test_a_link_starts_the_next_segment(
    store: JobStore, work: StandInWork
) -> None:
    work.hold.set()
    store.submit(job(segment=1))
    async with running(Farm(store, Local(work), BUDGET)) as farm:
        await asyncio.sleep(0.15)
        assert work.started == []
        store.put_link(key(segment=1), b" and link")
        farm.wake()
        await until(ended(store))
    of = key(segment=1)
    assert store.results([of]) == {of: b"result of order 0 and link"}


async def test_a_lease_is_renewed_for_as_long_as_it_takes(
    store: JobStore, work: StandInWork
) -> None:
    store.submit(job())
    async with running(Farm(store, Local(work), BUDGET)):
        await until(lambda: bool(work.started))
        other = store.leases
        for _ in range(8):
            await asyncio.sleep(0.25)
            taken = other.claim("b", seconds=1, free_bytes=1000, total_bytes=1000)
            assert taken is None
        work.hold.set()
        await until(ended(store))
    assert work.started == [key()]


async def test_work_that_was_taken_away_reports_to_nobody(
    store: JobStore, work: StandInWork
) -> None:
    def put_back() -> None:
        # As if this host had stood still for longer than the lease.
        claim = store.leases.claim(
            "other", seconds=60, free_bytes=1000, total_bytes=1000
        )
        assert claim is not None
        assert store.leases.finish(key(), claim.attempt, b"the other's")

    store.submit(job())
    farm = Farm(store, Local(work), replace(BUDGET, lease_seconds=60))
    async with running(farm):
        await until(lambda: bool(work.started))
        store.leases.release_dead(lambda owner: True)
        put_back()
        work.hold.set()
        await until(lambda: farm.progress() == [])
    assert store.results([key()]) == {key(): b"the other's"}


@pytest.mark.parametrize("by", ["farm", "store", "deadline"])
async def test_jobs_end_early(store: JobStore, work: StandInWork, by: str) -> None:
    store.submit(job(seconds=1.0 if by == "deadline" else 600))
    async with running(Farm(store, Local(work), BUDGET)) as farm:
        await until(lambda: bool(work.started))
        if by == "farm":
            assert await farm.cancel(key(), "nobody needs it")
        elif by == "store":
            store.cancel(key(), "nobody needs it")
            farm.wake()
        await until(ended(store))
        work.hold.set()
        await until(lambda: farm.progress() == [])
    want = State.FAILED if by == "deadline" else State.CANCELLED
    assert state(store, key()) is want
    assert store.results([key()]) == {}


async def test_a_farm_that_stops_gives_its_jobs_back(
    store: JobStore, work: StandInWork
) -> None:
    store.submit(job())
    work.errors.append(UnavailableError("killed"))
    farm = Farm(store, Local(work), BUDGET)
    await farm.start()
    with pytest.raises(ConfigurationError, match="started already"):
        await farm.start()
    await until(lambda: bool(work.started))
    stopping = asyncio.create_task(farm.stop())
    await asyncio.sleep(0.5)
    work.hold.set()
    await stopping
    assert state(store, key()) is State.READY
    async with running(Farm(store, Local(work), BUDGET)):
        await until(ended(store))
    told = store.status([key()])[key()]
    assert (told.state, told.attempt, told.reason) == (State.DONE, 2, "")


async def test_a_farm_that_stops_waits_a_little(
    store: JobStore, work: StandInWork
) -> None:
    store.submit(job())
    farm = Farm(store, Local(work), replace(BUDGET, grace_seconds=10))
    await farm.start()
    await until(lambda: bool(work.started))
    asyncio.get_running_loop().call_later(0.2, work.hold.set)
    await farm.stop()
    assert state(store, key()) is State.DONE


async def test_a_store_out_of_reach_is_asked_again(
    store: JobStore, work: StandInWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(times: int, call: Callable[..., object]) -> Callable[..., object]:
        left = [times]

        def answer(*given: object, **named: object) -> object:
            if left[0]:
                left[0] -= 1
                raise UnavailableError("store: out of reach")
            return call(*given, **named)

        return answer

    for name in ("release_dead", "claim", "executed", "finish"):
        monkeypatch.setattr(store.leases, name, failing(1, getattr(store.leases, name)))
    store.submit(job())
    work.hold.set()
    async with running(Farm(store, Local(work), replace(BUDGET, lease_seconds=30))):
        await until(ended(store))
    assert store.results([key()]) == {key(): b"result of order 0"}
    assert work.started == [key()]


async def test_a_turn_that_fails_is_not_the_last(
    store: JobStore,
    work: StandInWork,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    depth, errors = store.depth, [RuntimeError("no more threads")]

    def failing() -> object:
        if errors:
            raise errors.pop()
        return depth()

    monkeypatch.setattr(store, "depth", failing)
    work.hold.set()
    async with running(Farm(store, Local(work), BUDGET)) as farm:
        await until(lambda: not errors)
        store.submit(job())
        farm.wake()
        await until(lambda: store.results([key()]) != {})
    assert "a turn failed" in caplog.text


async def test_two_farms_share_a_store(store: JobStore, work: StandInWork) -> None:
    for number in range(10):
        store.submit(job(number))
    work.hold.set()
    async with (
        running(Farm(store, Local(work), BUDGET)),
        running(Farm(store, Local(work), BUDGET)),
    ):
        await until(ended(store))
    assert sorted(work.started) == [key(number) for number in range(10)]


@pytest.mark.parametrize("given", [{"slots": 0}, {"memory_bytes": 0}])
def test_a_farm_of_nothing_is_refused(given: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="more than nothing"):
        replace(BUDGET, **given)


async def test_waking_a_farm_that_does_not_run_does_nothing(store: JobStore) -> None:
    farm = Farm(store, Local(StandInWork()), BUDGET)
    farm.wake()
    waiting: Awaitable[None] = farm.stop()
    await waiting
