"""What an entry knows of its replicas, and what of it outlives the entry."""

from __future__ import annotations

import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from bentoml_secure.consensus import ledger_file
from bentoml_secure.consensus.ledger import Ledger
from bentoml_secure.consensus.reputation import (
    REQUIRED_TRIALS,
    Outcome,
    Status,
)
from bentoml_secure.errors import ConfigurationError, UnavailableError
from bentoml_secure.serving import standing as module
from bentoml_secure.serving.standing import Standing

REPLICAS = (("a0", "a1", "a2"), ("b0",))
NEVER = 3600.0
NOW = datetime(2026, 1, 2, tzinfo=UTC)

Make = Callable[..., Standing]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reputation.sqlite"


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    """Make a standing that writes when it is told to; all are closed."""
    made: list[Standing] = []

    def make(
        *, has_trials: bool = False, flush_seconds: float = NEVER, at: Path = path
    ) -> Standing:
        standing = Standing(
            Ledger(at),
            REPLICAS,
            has_trials=has_trials,
            clock=lambda: NOW,
            flush_seconds=flush_seconds,
        )
        made.append(standing)
        return standing

    yield make
    for standing in made:
        standing.close()


def record(standing: Standing, replica: str, outcome: Outcome, count: int = 1) -> None:
    for i in range(count):
        standing.record(f"request-{i}", 0, {replica: outcome})


def weight(standing: Standing, replica: str) -> float:
    return standing.weights(0, [replica])[replica]


def until(is_so: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait until something is so; return how long that took."""
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < seconds
        time.sleep(0.01)
    return time.monotonic() - begun


def gauge(name: str, segment: str, replica: str) -> float | None:
    labels = {"segment": segment, "replica": replica}
    return REGISTRY.get_sample_value(f"bentoml_secure_{name}", labels)


def test_newcomers_vote_where_there_are_no_trials(make: Make) -> None:
    standing = make()
    assert standing.weights(0, REPLICAS[0]) == {"a0": 0.5, "a1": 0.5, "a2": 0.5}
    assert [standing.barred(name) for name in REPLICAS[0]] == [None] * 3
    assert standing.on_trial() == ()


def test_newcomers_wait_for_their_trials_where_there_are_some(make: Make) -> None:
    standing = make(has_trials=True)
    assert standing.barred("a0") == "on trial: 0 of 8 trials passed"
    assert not standing.is_quarantined("a0")
    assert standing.on_trial() == ((0, "a0"), (0, "a1"), (0, "a2"), (1, "b0"))
    for i in range(REQUIRED_TRIALS):
        standing.record_trial(f"trial {i}", 0, "a0", Outcome.AGREED)
    assert standing.barred("a0") is None
    assert weight(standing, "a0") == 0.5
    assert (0, "a0") not in standing.on_trial()


def test_who_waits_for_trials_votes_once_there_are_none_any_more(make: Make) -> None:
    make(has_trials=True).close()
    assert make().barred("a0") is None


def test_a_round_counts_at_once(make: Make) -> None:
    standing = make()
    standing.record(
        "r",
        0,
        {"a0": Outcome.AGREED, "a1": Outcome.DISSENTED, "a2": Outcome.ABSENT},
    )
    assert standing.weights(0, REPLICAS[0]) == {"a0": 0.505, "a1": 0.4, "a2": 0.5}


def test_a_dissent_in_doubt_costs_nothing(make: Make) -> None:
    standing = make()
    record(standing, "a0", Outcome.IN_DOUBT, 50)
    assert weight(standing, "a0") == 0.5


def test_quarantine_bars_and_says_why(make: Make) -> None:
    standing = make()
    record(standing, "a1", Outcome.DISSENTED, 8)
    assert standing.is_quarantined("a1")
    assert standing.barred("a1") == (
        "in quarantine: reputation 0.084, 0 of 8 trials passed"
    )
    assert standing.on_trial() == ((0, "a1"),)
    for i in range(REQUIRED_TRIALS):
        standing.record_trial(f"trial {i}", 0, "a1", Outcome.AGREED)
    assert not standing.is_quarantined("a1")
    assert weight(standing, "a1") == 0.2


def test_expelled_get_no_trials(make: Make) -> None:
    standing = make(has_trials=True)
    for i in range(18):
        standing.record_trial(f"trial {i}", 0, "a1", Outcome.DISSENTED)
    assert standing.barred("a1") == "expelled: quarantined for good"
    assert standing.is_quarantined("a1")
    assert (0, "a1") not in standing.on_trial()


def test_a_restarted_entry_knows_everything(make: Make) -> None:
    first = make()
    record(first, "a0", Outcome.AGREED, 3)
    record(first, "a1", Outcome.DISSENTED, 8)
    before = first.weights(0, REPLICAS[0])
    first.close()
    second = make()
    assert second.weights(0, REPLICAS[0]) == before
    assert second.is_quarantined("a1")
    # Trials are for newcomers; who was seen before needs none.
    second.close()
    assert make(has_trials=True).barred("a0") is None


def test_the_file_is_written_soon_and_by_itself(make: Make, path: Path) -> None:
    standing = make(flush_seconds=0.02)
    record(standing, "a1", Outcome.DISSENTED)
    with closing(Ledger(path)) as other:
        until(lambda: other.accounts()["a1"].dissented == 1)


def test_dissents_are_told_with_request_and_time(make: Make) -> None:
    standing = make()
    record(standing, "a1", Outcome.DISSENTED, 2)
    standing.record_trial("trial 4", 0, "a2", Outcome.DISSENTED)
    told = [(d.request_id, d.segment, d.at) for d in standing.dissents("a1")]
    at = "2026-01-02T00:00:00.000Z"
    assert told == [("request-1", 0, at), ("request-0", 0, at)]
    assert [d.request_id for d in standing.dissents("a2")] == ["trial 4"]


def test_a_reset_makes_a_newcomer_at_once(make: Make) -> None:
    standing = make()
    record(standing, "a1", Outcome.DISSENTED, 9)
    record(standing, "a0", Outcome.DISSENTED)
    standing.reset("a1")
    assert weight(standing, "a1") == 0.5
    assert standing.barred("a1") is None
    assert weight(standing, "a0") == 0.4
    standing.flush()
    assert weight(standing, "a1") == 0.5
    with pytest.raises(ConfigurationError, match="no account"):
        standing.reset("nobody")


def test_a_reset_by_others_is_noticed(make: Make, path: Path) -> None:
    standing = make(has_trials=True, flush_seconds=0.02)
    for i in range(8):
        standing.record_trial(f"trial {i}", 0, "a1", Outcome.DISSENTED)
    until(lambda: len(standing.dissents("a1")) == 8)
    with closing(Ledger(path, make=False)) as other:
        other.reset("a1", now=NOW)
    until(lambda: standing.barred("a1") == "on trial: 0 of 8 trials passed")
    assert weight(standing, "a1") == 0.5


def test_rounds_go_on_while_the_file_is_locked(
    make: Make,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_file, "BUSY_TIMEOUT_SECONDS", 0.05)
    standing = make()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        record(standing, "a1", Outcome.DISSENTED, 3)
        for _ in range(2):
            with pytest.raises(UnavailableError, match="locked"):
                standing.flush()
        record(standing, "a1", Outcome.DISSENTED, 5)
        assert standing.is_quarantined("a1")
        other.execute("ROLLBACK")
    standing.flush()
    with closing(Ledger(path)) as ledger:
        assert ledger.accounts()["a1"].dissented == 8
        assert [d.request_id for d in ledger.dissents("a1")][-3:] == [
            "request-2",
            "request-1",
            "request-0",
        ]


def test_whose_vote_changes_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    standing = make()
    record(standing, "a1", Outcome.DISSENTED, 7)
    standing.flush()
    assert caplog.messages == []
    record(standing, "a1", Outcome.DISSENTED)
    standing.flush()
    standing.reset("a1")
    assert caplog.messages == [
        "a1: quarantined, was voting; reputation 0.084",
        "a1: voting, was quarantined; reputation 0.500",
    ]


def test_a_file_that_cannot_be_written_is_logged_once_and_written_later(
    make: Make,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ledger_file, "BUSY_TIMEOUT_SECONDS", 0.0)
    caplog.set_level(logging.WARNING, "bentoml_secure")
    standing = make(flush_seconds=0.01)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        record(standing, "a1", Outcome.DISSENTED)
        until(lambda: len(caplog.records) == 1)
        time.sleep(0.1)
        other.execute("ROLLBACK")
    until(lambda: len(caplog.records) == 2)
    assert "reputations are not written: reputation ledger" in caplog.messages[0]
    assert caplog.messages[1] == "reputations are written again"
    with closing(Ledger(path)) as ledger:
        assert ledger.accounts()["a1"].dissented == 1


def test_what_waits_for_a_broken_file_is_bounded(
    make: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    standing = make()
    record(standing, "a1", Outcome.DISSENTED, 8)
    # What is known here does not depend on the file.
    assert standing.is_quarantined("a1")
    standing.flush()
    with closing(Ledger(path)) as ledger:
        assert ledger.accounts()["a1"].dissented == 5


def test_what_could_not_be_written_is_told_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_file, "BUSY_TIMEOUT_SECONDS", 0.0)
    standing = Standing(Ledger(path), REPLICAS, flush_seconds=NEVER)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        record(standing, "a1", Outcome.DISSENTED, 3)
        standing.close()
        other.execute("ROLLBACK")
    assert "reputations: 3 entries were not written" in caplog.messages


def test_many_threads_lose_nothing(make: Make, path: Path) -> None:
    standing = make(flush_seconds=0.001)
    threads = [
        threading.Thread(target=record, args=(standing, name, Outcome.AGREED, 200))
        for name in REPLICAS[0]
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    standing.flush()
    with closing(Ledger(path)) as ledger:
        accounts = ledger.accounts()
    assert [accounts[name].agreed for name in REPLICAS[0]] == [400] * 3
    assert standing.weights(0, REPLICAS[0]) == {
        name: accounts[name].reputation.weight for name in REPLICAS[0]
    }


def test_two_entries_of_one_ledger_come_to_one_mind(make: Make) -> None:
    first, second = make(), make()
    record(first, "a1", Outcome.DISSENTED, 4)
    record(second, "a1", Outcome.DISSENTED, 4)
    first.flush()
    second.flush()
    first.flush()
    assert first.is_quarantined("a1")
    assert second.is_quarantined("a1")


def test_gauges_follow(make: Make) -> None:
    standing = make()
    assert gauge("reputation", "0", "a0") == 0.5
    record(standing, "a0", Outcome.DISSENTED, 8)
    standing.flush()
    assert gauge("reputation", "0", "a0") == pytest.approx(0.5 * 0.8**8)
    assert gauge("quarantined", "0", "a0") == 1
    assert gauge("quarantined", "1", "b0") == 0
    standing.reset("a0")
    assert gauge("quarantined", "0", "a0") == 0


def test_recording_a_round_takes_microseconds(make: Make) -> None:
    standing = make()
    outcomes = dict.fromkeys(REPLICAS[0], Outcome.AGREED)
    begun = time.thread_time()
    for _ in range(1000):
        standing.record("0" * 32, 0, outcomes)
        standing.weights(0, REPLICAS[0])
    # 15 microseconds where it was written; far from what a disk takes.
    assert (time.thread_time() - begun) / 1000 < 500e-6


_KILLED = """
import sys, time
from pathlib import Path
from bentoml_secure.consensus.ledger import Ledger
from bentoml_secure.consensus.reputation import Outcome
from bentoml_secure.serving.standing import Standing

standing = Standing(Ledger(Path(sys.argv[1])), [["a0", "a1"]])
count = 0
while True:
    standing.record(str(count), 0, {"a0": Outcome.AGREED, "a1": Outcome.IN_DOUBT})
    count += 1
    print(count, flush=True)
    time.sleep(0.002)
"""


def test_a_killed_entry_loses_at_most_its_last_second(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        recorded: list[tuple[float, int]] = []
        for line in process.stdout:
            recorded.append((time.monotonic(), int(line)))
            if recorded[-1][0] - recorded[0][0] > 2.0:
                break
        process.send_signal(signal.SIGKILL)
        killed = recorded[-1][0]
        process.wait(timeout=30)
    with closing(Ledger(path, make=False)) as ledger:
        account = ledger.accounts()["a0"]
    # Half a second more than the stated one: this machine may be busy.
    due = max(count for at, count in recorded if at <= killed - 1.5)
    assert account.agreed >= due > 0
    weight = min(0.5 * 1.01**account.agreed, 2.0)
    assert account.reputation.status is Status.VOTING
    assert account.reputation.weight == pytest.approx(weight)
