"""The job store, in SQLite and in a real PostgreSQL: taken in once, one result."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)
from bentoml_secure.proofs.jobs import database
from bentoml_secure.proofs.jobs.job import (
    MAX_ORDER_BYTES,
    Claim,
    Job,
    JobKey,
    Priority,
    State,
)
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.proofs.owner import is_known_dead, own_name
from tests import postgresql

QUEUES = itertools.count()
LEASE = 30.0


class Clock:
    """Time as a test has it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if reason := postgresql.why_not():
        pytest.skip(reason)
    with postgresql.serving() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.sqlite"
    return str(request.getfixturevalue("server"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue() -> str:
    return f"queue {next(QUEUES)}"


@pytest.fixture
def store(url: str, queue: str, clock: Clock) -> Iterator[JobStore]:
    made = JobStore(url, queue=queue, max_queue=20, clock=clock)
    yield made
    made.close()


def key(number: int = 0, segment: int = 0) -> JobKey:
    return JobKey(f"{number:032x}", 0, segment)


def job(
    number: int = 0,
    segment: int = 0,
    *,
    order: bytes = b"order",
    priority: Priority = Priority.AUDIT,
    deadline: float = 1_000_600.0,
    memory: int = 100,
) -> Job:
    return Job(
        key=key(number, segment),
        order=order,
        priority=priority,
        deadline=datetime.fromtimestamp(deadline, UTC),
        memory_bytes=memory,
    )


def claim(
    store: JobStore, owner: str = "a", *, free: int = 1000, total: int = 1000
) -> Claim | None:
    return store.leases.claim(owner, seconds=LEASE, free_bytes=free, total_bytes=total)


def claimed(store: JobStore, owner: str = "a") -> Claim:
    got = claim(store, owner)
    assert got is not None
    return got


def state(store: JobStore, of: JobKey | None = None) -> State:
    of = key() if of is None else of
    return store.status([of])[of].state


def test_a_job_is_taken_in_once(store: JobStore) -> None:
    assert store.submit(job())
    assert not store.submit(job())
    assert store.depth() == {Priority.CRITICAL: 0, Priority.AUDIT: 1}
    with pytest.raises(ConfigurationError, match="another order already"):
        store.submit(job(order=b"other"))


def test_from_order_to_result(store: JobStore, clock: Clock) -> None:
    store.submit(job())
    got = claimed(store)
    assert (got.key, got.attempt, got.order, got.link) == (key(), 1, b"order", None)
    assert store.status([key()])[key()].phase == "execute"
    clock.now += 1
    assert store.leases.executed(key(), 1, b"link")
    told = store.status([key()])[key()]
    assert (told.phase, told.linked) == ("prove", True)
    assert told.executed_at is not None
    assert told.claimed_at is not None
    assert (told.executed_at - told.claimed_at).total_seconds() == 1
    assert store.links([key()]) == {key(): b"link"}
    assert store.results([key()]) == {}
    assert store.leases.finish(key(), 1, b"result")
    assert store.results([key(), key(1)]) == {key(): b"result"}
    assert store.status([key()])[key()].phase == "done"
    # What a lost answer makes a worker say again changes nothing.
    assert not store.leases.finish(key(), 1, b"other")
    assert store.results([key()]) == {key(): b"result"}
    assert sum(store.depth().values()) == 0
    assert claim(store) is None


def test_later_segments_wait_for_their_link(store: JobStore) -> None:
    store.submit(job(segment=1))
    assert state(store, key(segment=1)) is State.WAITING
    assert claim(store) is None
    assert store.put_link(key(segment=1), b"first")
    assert not store.put_link(key(segment=1), b"second")
    assert claimed(store).link == b"first"


def test_links_that_nobody_waits_for_are_refused(store: JobStore) -> None:
    with pytest.raises(UnavailableError, match="Submit its order first"):
        store.put_link(key(segment=1), b"link")
    with pytest.raises(ConfigurationError, match="takes no link"):
        store.put_link(key(), b"link")
    with pytest.raises(MalformedInputError, match="got 0 bytes"):
        store.put_link(key(segment=1), b"")


def test_what_is_most_urgent_goes_first(store: JobStore, clock: Clock) -> None:
    store.submit(job(1, deadline=1_000_300.0))
    store.submit(job(2, deadline=1_000_200.0))
    clock.now += 1
    store.submit(job(3, deadline=1_000_200.0))
    store.submit(job(4, priority=Priority.CRITICAL, deadline=1_000_500.0))
    order = [int(claimed(store).key.receipt_id, 16) for _ in range(4)]
    assert order == [4, 2, 3, 1]


def test_the_most_urgent_waits_for_memory_and_none_is_let_past(store: JobStore) -> None:
    store.submit(job(1, priority=Priority.CRITICAL, memory=800))
    store.submit(job(2, memory=10))
    assert claim(store, free=500) is None
    # What this machine never has room for is another's.
    small = claim(store, free=500, total=500)
    assert small is not None
    assert small.key == key(2)
    assert claimed(store).key == key(1)


def test_an_ended_lease_is_taken_up_and_the_old_holder_reports_to_nobody(
    store: JobStore, clock: Clock
) -> None:
    store.submit(job())
    first = claimed(store, "a")
    clock.now += LEASE - 1
    assert claim(store, "b") is None
    assert store.leases.renew({key(): first.attempt}, seconds=LEASE) == {key()}
    clock.now += LEASE
    second = claimed(store, "b")
    assert (first.attempt, second.attempt) == (1, 2)
    assert store.leases.renew({key(): 1}, seconds=LEASE) == set()
    assert not store.leases.executed(key(), 1, b"stale")
    assert not store.leases.finish(key(), 1, b"stale")
    assert not store.leases.fail(key(), 1, "stale", retry=False)
    assert not store.leases.release(key(), 1)
    assert store.leases.finish(key(), 2, b"result")
    assert store.results([key()]) == {key(): b"result"}


def test_the_first_link_stays(store: JobStore, clock: Clock) -> None:
    store.submit(job())
    claimed(store)
    assert store.leases.executed(key(), 1, b"first")
    clock.now += LEASE
    claimed(store)
    assert store.status([key()])[key()].phase == "execute"
    assert store.leases.executed(key(), 2, b"second")
    assert store.links([key()]) == {key(): b"first"}


def test_attempts_are_bounded_and_spaced(store: JobStore, clock: Clock) -> None:
    store.submit(job())
    for attempt, wait in ((1, 1.0), (2, 2.0)):
        assert claimed(store).attempt == attempt
        assert not store.leases.fail(key(), attempt, "no memory", retry=True)
        clock.now += wait - 0.5
        assert claim(store) is None
        clock.now += 0.5
    assert claimed(store).attempt == 3
    assert store.leases.fail(key(), 3, "no memory", retry=True)
    told = store.status([key()])[key()]
    assert (told.state, told.reason) == (State.FAILED, "no memory")


def test_what_no_attempt_can_mend_fails_at_once(store: JobStore) -> None:
    store.submit(job())
    claimed(store)
    assert store.leases.fail(key(), 1, "x" * 1000, retry=False)
    told = store.status([key()])[key()]
    assert (told.state, len(told.reason)) == (State.FAILED, 500)


def test_a_job_that_ends_its_workers_is_given_up(store: JobStore, clock: Clock) -> None:
    store.submit(job())
    for _ in range(3):
        claimed(store)
        clock.now += LEASE
    assert claim(store) is None
    assert store.leases.sweep().exhausted == (key(),)
    assert store.leases.sweep().exhausted == ()
    assert "without a word" in store.status([key()])[key()].reason


def test_what_is_given_back_does_not_count(store: JobStore) -> None:
    store.submit(job())
    for attempt in range(1, 6):
        assert claimed(store).attempt == attempt
        assert store.leases.release(key(), attempt)
    assert state(store) is State.READY


def test_late_jobs_fail_wherever_they_stand(store: JobStore, clock: Clock) -> None:
    for number, segment in ((1, 0), (2, 1), (3, 0)):
        store.submit(job(number, segment, deadline=1_000_010.0 + number))
    running = claimed(store)
    assert running.key == key(1)
    clock.now += 600
    assert claim(store) is None
    assert set(store.leases.sweep().late) == {key(1), key(2, 1), key(3)}
    assert store.leases.renew({running.key: 1}, seconds=LEASE) == set()
    assert not store.leases.finish(running.key, 1, b"late")
    assert "deadline" in store.status([key(2, 1)])[key(2, 1)].reason


def test_cancelling(store: JobStore) -> None:
    store.submit(job())
    claimed(store)
    assert store.cancel(key(), "settled")
    assert not store.cancel(key(), "again")
    assert store.leases.renew({key(): 1}, seconds=LEASE) == set()
    assert not store.leases.finish(key(), 1, b"result")
    told = store.status([key()])[key()]
    assert (told.state, told.reason) == (State.CANCELLED, "settled")


def test_only_finished_jobs_are_forgotten(store: JobStore) -> None:
    for number in range(3):
        store.submit(job(number))
    claimed(store)
    assert store.leases.finish(key(0), 1, b"result")
    assert store.forget([key(0), key(1), key(9)]) == 1
    assert set(store.status([key(n) for n in range(3)])) == {key(1), key(2)}


def test_what_nobody_collects_goes_by_age(store: JobStore, clock: Clock) -> None:
    store.submit(job(0))
    store.submit(job(1))
    claimed(store)
    store.leases.finish(key(0), 1, b"result")
    clock.now += 99
    assert store.prune(100) == 0
    clock.now += 2
    assert store.prune(100) == 1
    assert set(store.status([key(0), key(1)])) == {key(1)}


def test_a_full_queue_refuses(store: JobStore) -> None:
    for number in range(20):
        store.submit(job(number))
    with pytest.raises(UnavailableError, match="20 jobs are waiting"):
        store.submit(job(20))
    assert not store.submit(job(19))
    store.cancel(key(0), "room")
    assert store.submit(job(20))


def test_queues_of_one_database_do_not_meet(
    store: JobStore, url: str, clock: Clock
) -> None:
    other = JobStore(url, queue="another", clock=clock)
    store.submit(job())
    assert claim(other) is None
    assert other.status([key()]) == {}
    assert not other.cancel(key(), "not its own")
    assert other.leases.sweep().late == ()
    assert claimed(store).key == key()
    assert not other.leases.finish(key(), 1, b"result")
    other.close()


def test_one_claim_wins(store: JobStore, url: str, queue: str) -> None:
    for number in range(12):
        store.submit(job(number))
    stores = [JobStore(url, queue=queue, clock=lambda: 1_000_001.0) for _ in range(4)]

    def drain(number: int) -> list[JobKey]:
        got = []
        while (taken := claim(stores[number], str(number))) is not None:
            got.append(taken.key)
        return got

    with ThreadPoolExecutor(4) as pool:
        taken = [each for part in pool.map(drain, range(4)) for each in part]
    assert sorted(taken) == [key(number) for number in range(12)]
    for made in stores:
        made.close()


def test_leases_of_the_dead_end_at_once(store: JobStore) -> None:
    for number in range(3):
        store.submit(job(number))
    alive, elsewhere = own_name(), "another-boot.1/1/1"
    place, _, _ = alive.rsplit("/", 2)
    for owner in (alive, elsewhere, f"{place}/{os.getpid()}/1"):
        assert claim(store, owner) is not None
    assert store.leases.release_dead(is_known_dead) == 1
    assert claimed(store, "next").key == key(2)
    assert claim(store, "next") is None


def test_a_store_is_opened_again(url: str, queue: str, store: JobStore) -> None:
    store.submit(job())
    again = JobStore(url, queue=queue)
    assert set(again.status([key()])) == {key()}
    again.close()


def test_the_databases_own_clock(url: str, queue: str) -> None:
    store = JobStore(url, queue=queue)
    now = datetime.now(UTC)
    store.submit(job(deadline=now.timestamp() + 60))
    told = store.status([key()])[key()]
    assert abs((told.submitted_at - now).total_seconds()) < 30
    assert claimed(store).key == key()
    store.close()


def test_another_schema_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    JobStore(url, queue="q").close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE proof_schema SET version = 99"))
    engine.dispose()
    with pytest.raises(ConfigurationError, match="got version 99, want 1"):
        JobStore(url, queue="q")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://host/name",
        "postgresql://host/name",
        "postgresql+psycopg://host",
        "no url",
    ],
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="job store"):
        JobStore(url, queue="q")


def test_a_password_is_not_told() -> None:
    url = "postgresql+psycopg://me:secret@127.0.0.1:1/name"
    with pytest.raises(UnavailableError, match="me:\\*\\*\\*@") as caught:
        JobStore(url, queue="q")
    assert "secret" not in str(caught.value)


def test_the_file_is_this_users_only(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(f"sqlite:///{path}", queue="q")
    store.submit(job())
    for made in tmp_path.iterdir():
        assert stat.S_IMODE(made.stat().st_mode) == 0o600, made
    store.close()
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        JobStore(f"sqlite:///{link}", queue="q")


def test_a_locked_file_is_a_later_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    one, other = JobStore(url, queue="q"), JobStore(url, queue="q")
    with (
        one._database.transaction(),
        pytest.raises(UnavailableError, match="locked") as caught,
    ):
        other.submit(job(order=b"sealed"))
    assert "sealed" not in str(caught.value)
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("zz", 0, 0), "receipt id"),
        (("0" * 32, -1, 0), "infer: got -1"),
        (("0" * 32, 0, 4096), "segment: got 4096"),
        (("0" * 32, 0, True), "segment: got True"),
    ],
)
def test_other_keys_are_refused(given: tuple[str, int, int], match: str) -> None:
    with pytest.raises(MalformedInputError, match=match):
        JobKey(*given)


def test_other_jobs_are_refused() -> None:
    with pytest.raises(MalformedInputError, match="order: got 0 bytes"):
        job(order=b"")
    with pytest.raises(MalformedInputError, match="order: got"):
        job(order=bytes(MAX_ORDER_BYTES + 1))
    with pytest.raises(MalformedInputError, match="memory: got 0"):
        job(memory=0)
    with pytest.raises(MalformedInputError, match="no time zone"):
        Job(
            key=key(),
            order=b"order",
            priority=Priority.AUDIT,
            deadline=datetime(2026, 1, 1),
            memory_bytes=1,
        )


def test_other_stores_are_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    with pytest.raises(ConfigurationError, match="want a name"):
        JobStore(url, queue="")
    with pytest.raises(ConfigurationError, match="0 attempts"):
        JobStore(url, queue="q", max_attempts=0)


def test_a_server_that_ended_our_connections_is_asked_again(server: str) -> None:
    store = JobStore(server, queue="ended connections")
    engine = create_engine(server)
    with engine.begin() as connection:
        others = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        ended = f"SELECT pg_terminate_backend(pid) FROM ({others}) AS others"  # noqa: S608
        assert connection.execute(text(ended)).all()
    engine.dispose()
    assert store.submit(job())
    store.close()


def test_many_keys_are_asked_for_at_once(store: JobStore) -> None:
    store.submit(job(7))
    assert set(store.status([key(number) for number in range(1000)])) == {key(7)}
