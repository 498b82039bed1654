"""What fails in a running deployment, and what its callers notice of it.

Of two segments with three replicas each, one replica of each may be killed, stopped or
wrong: no request fails. With two of a segment gone requests are refused, with the
tally, until they are back; the entry goes on throughout.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from bentoml_secure.cli import main as cli
from bentoml_secure.client import Answer
from bentoml_secure.errors import SecureError
from bentoml_secure.serving.settings import REPUTATION, STORE
from tests.harness import Served, serve, wait_until_ready
from tests.service.counters import scrape, series
from tests.service.deployments import eventually
from tests.service.faulting import (
    FAULTED,
    Beset,
    Load,
    absent,
    confined,
    faulting_project,
    filled,
    kill,
    record_of,
    small_disk,
    suspended,
    workers,
    write_trust_file,
)

ENTRY = "Faulted"
ONE_OF_EACH = (f"{ENTRY}Segment0Replica1", f"{ENTRY}Segment1Replica2")
TWO_OF_ONE = (f"{ENTRY}Segment1Replica0", f"{ENTRY}Segment1Replica2")
NO_ROOM = "receipt store .*: (database or disk is full|disk I/O error)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The deployment, its processes, and the disk that it writes to.

    Attributes:
        beset: How it is asked.
        served: Its processes.
        disk: A small file system; None where this user may mount none.
    """

    beset: Beset
    served: Served
    disk: Path | None

    @property
    def entry(self) -> psutil.Process:
        """The entry's process."""
        (process,) = workers(self.served, [ENTRY])
        return process

    @property
    def store(self) -> Path:
        """File of the receipts."""
        return self.beset.ledger.with_name("receipts.sqlite")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service, served as a user serves it; its files lie on a disk of its own."""
    folder = tmp_path_factory.mktemp("faults")
    project = faulting_project(folder / "project")
    with contextlib.ExitStack() as stack:
        disk = None
        with contextlib.suppress(PermissionError):
            disk = stack.enter_context(small_disk(folder / "disk", 48))
        files = disk or folder
        ledger = files / "reputation.sqlite"
        env = {STORE: str(files / "receipts.sqlite"), REPUTATION: str(ledger)}
        trust = write_trust_file(project, ENTRY)
        served = stack.enter_context(serve(FAULTED, project, folder / "home", env=env))
        beset = Beset(
            service=ENTRY, url=served.url, project=project, trust=trust, ledger=ledger
        )
        beset.wait_until_whole()
        beset.forget()
        yield Running(beset=beset, served=served, disk=disk)


@pytest.fixture(autouse=True)
def _whole(running: Running) -> Iterator[None]:
    """Leave everybody back, with nothing held against anybody."""
    yield
    running.beset.wait_until_whole()
    running.beset.forget()


def test_a_replica_of_each_segment_is_killed_and_no_request_fails(
    running: Running,
) -> None:
    before = {process.pid for process in workers(running.served, ONE_OF_EACH)}
    with Load(target=running.beset) as load:
        load.go_on(4)
        kill(workers(running.served, ONE_OF_EACH))
        load.go_on()
        assert absent(load.answers[-1]) <= {*ONE_OF_EACH}
        load.go_on_until(
            lambda: not absent(load.answers[-1]), what="the supervisor's new ones vote"
        )
        load.require_unharmed()
    assert {*ONE_OF_EACH} <= {name for a in load.answers for name in absent(a)}
    after = {process.pid for process in workers(running.served, ONE_OF_EACH)}
    assert not before & after


def test_two_of_a_segment_are_killed_and_requests_wait_for_new_ones(
    running: Running,
) -> None:
    entry = running.entry
    with Load(target=running.beset) as load:
        load.go_on(4)
        load.require_unharmed()
        kill(workers(running.served, TWO_OF_ONE))
        load.go_on_until(lambda: bool(load.refusals), what="one is refused")
        load.require_refusals(TWO_OF_ONE)
        load.recover()
        load.go_on()
        load.require_unharmed()
    assert running.entry == entry


def test_a_replica_of_each_segment_is_stopped_and_no_request_fails(
    running: Running,
) -> None:
    stopped = workers(running.served, ONE_OF_EACH)
    with Load(target=running.beset) as load:
        load.go_on(4)
        with suspended(stopped):
            load.go_on()
            assert absent(load.answers[-1]) == {*ONE_OF_EACH}
        load.go_on_until(lambda: not absent(load.answers[-1]), what="both vote again")
        load.require_unharmed()
    reasons = {
        missing["reason"]
        for answer in load.answers
        for missing in answer.verdict.claims["absent"]
    }
    assert "no answer within 0.4 s of the decision" in reasons


def test_two_of_a_segment_are_stopped_and_requests_are_refused_until_they_go_on(
    running: Running,
) -> None:
    entry, stopped = running.entry, workers(running.served, TWO_OF_ONE)
    with Load(target=running.beset) as load:
        load.go_on(4)
        load.require_unharmed()
        with suspended(stopped):
            load.go_on(2)
            load.require_refusals(TWO_OF_ONE)
        load.recover()
        load.go_on()
        load.require_unharmed()
    assert running.entry == entry


def test_a_replica_of_each_segment_fails_half_of_the_time_and_no_request_does(
    running: Running,
) -> None:
    faults = [f"flaky-{name}" for name in ONE_OF_EACH]
    with Load(target=running.beset) as load, running.beset.switched(*faults):
        load.go_on(24)
        load.require_unharmed()
    said = {
        (missing["replica"], missing["reason"])
        for answer in load.answers
        for missing in answer.verdict.claims["absent"]
    }
    assert {name for name, _ in said} == {*ONE_OF_EACH}
    assert all("replica refused: 500" in reason for _, reason in said), said
    assert any(not absent(answer) for answer in load.answers)


def test_two_of_a_segment_fail_half_of_the_time_and_nothing_is_wrong(
    running: Running,
) -> None:
    faults = [f"flaky-{name}" for name in TWO_OF_ONE]
    with Load(target=running.beset) as load:
        with running.beset.switched(*faults):
            load.go_on_until(lambda: len(load.refusals) > 1, what="two are refused")
            load.require_refusals(TWO_OF_ONE)
        load.recover()
        load.go_on(4)
        load.require_unharmed()


@pytest.fixture(params=["full", "quota"])
def no_room(
    running: Running, request: pytest.FixtureRequest
) -> contextlib.AbstractContextManager[None]:
    """Take all room from the entry: on its disk, or by a limit to its own files."""
    if request.param == "quota":
        return confined(running.entry)
    if running.disk is None:
        pytest.skip("this user may mount no file system of its own")
    return filled(running.disk)


def test_without_room_every_answer_is_refused_until_there_is_some(
    running: Running, no_room: contextlib.AbstractContextManager[None]
) -> None:
    entry, liar = running.entry, ONE_OF_EACH[0]
    checkpoint(running.store)
    checkpoint(running.beset.ledger)
    with running.beset.client() as client, running.beset.switched(f"lie-{liar}"):
        with no_room:
            for _ in range(3):
                with pytest.raises(SecureError, match=NO_ROOM):
                    running.beset.ask(client)
            assert agreed(running.beset) == 0
        answer = running.beset.ask(client)
        assert liar in {d["replica"] for d in answer.verdict.claims["dissenters"]}
    # What was known meanwhile was not lost: nobody waited for it to be written. Two
    # agreed in each of four rounds, whoever came third.
    eventually(
        lambda: agreed(running.beset) >= 8,
        seconds=10,
        what="four rounds are in the ledger",
    )
    assert account(running.beset, liar)["dissented"] >= 1
    assert running.entry == entry


def test_the_log_says_that_reputations_are_not_written(running: Running) -> None:
    if running.disk is None:
        pytest.skip("this user may mount no file system of its own")
    checkpoint(running.store)
    checkpoint(running.beset.ledger)
    begins = len(running.served.log())

    def has_said(words: str) -> bool:
        return words in running.served.log()[begins:]

    with running.beset.client() as client:
        with filled(running.disk):
            with pytest.raises(SecureError, match=NO_ROOM):
                running.beset.ask(client)
            eventually(
                lambda: has_said("reputations are not written"),
                seconds=10,
                what="it says so",
            )
        eventually(
            lambda: has_said("reputations are written again"),
            seconds=10,
            what="it says that too",
        )
        running.beset.ask(client)


def checkpoint(path: Path) -> None:
    """Empty a database's journal: what is written next needs room at once."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def agreed(beset: Beset) -> int:
    """Return how often replicas of segment 1 agreed, by the ledger."""
    names = [beset.replica(number, segment=1) for number in range(3)]
    return sum(account(beset, name)["agreed"] for name in names)


def account(beset: Beset, replica: str) -> dict[str, Any]:
    """Return what the command line lists of a replica."""
    command = ["reputation", "list", "--store", str(beset.ledger), "--json"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    listed = {one["replica"]: one for one in json.loads(done.output)["replicas"]}
    found: dict[str, Any] = listed[replica]
    return found


def reason_of(answer: Answer, replica: str) -> str:
    """Return why a replica is absent by a receipt; nothing where it is not."""
    reasons = {a["replica"]: a["reason"] for a in answer.verdict.claims["absent"]}
    return str(reasons.get(replica, ""))


def test_a_liar_is_quarantined_beyond_the_entrys_death_until_it_is_reset(
    running: Running,
) -> None:
    beset, liar = running.beset, f"{ENTRY}Segment1Replica1"
    with beset.client() as client:
        with beset.switched(f"lie-{liar}"):
            for _ in range(8):
                answer = beset.ask(client)
                (dissent,) = answer.verdict.claims["dissenters"]
                assert (dissent["segment"], dissent["replica"]) == (1, liar)
            answer = beset.ask(client)
            assert "in quarantine: reputation 0.084" in reason_of(answer, liar)
            assert answer.verdict.claims["dissenters"] == []
        # It is honest again, and still has no vote; the others go on.
        assert "in quarantine" in reason_of(beset.ask(client), liar)
        eventually(
            lambda: account(beset, liar)["status"] == "quarantined",
            seconds=5,
            what="the ledger has it",
        )
        entry = running.entry
        kill([entry])
        eventually(lambda: running.entry != entry, seconds=60, what="a new entry")
        wait_until_ready(running.served)
        assert "in quarantine" in reason_of(beset.ask(client), liar)
        gauge = series("quarantined", segment="1", replica=liar)
        assert scrape(running.served.metrics())[gauge] == 1
        command = ["reputation", "reset", liar, "--store", str(beset.ledger)]
        assert CliRunner().invoke(cli, command).exit_code == 0
        eventually(
            lambda: not absent(beset.ask(client)), seconds=10, what="it votes again"
        )
        weights = record_of(answer, 1).weights
        assert record_of(beset.ask(client), 1).weights[liar] == pytest.approx(0.5, 0.1)
        assert weights[liar] == pytest.approx(0.5 * 0.8**8)
