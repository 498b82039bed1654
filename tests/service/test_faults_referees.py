"""Five replicas of one segment, of which three have seats, with all there is against
failures: a spare, two more replicas, a referee that decides and recomputes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bentoml_secure.errors import QuorumNotReached
from bentoml_secure.serving.settings import REPUTATION
from tests.harness import Served, serve
from tests.service.faulting import (
    REFEREED,
    Beset,
    Load,
    absent,
    faulting_project,
    kill,
    record_of,
    seats_of,
    seconds_of,
    suspended,
    whole,
    workers,
    write_trust_file,
)

ENTRY = "Refereed"
REPLICAS = tuple(f"{ENTRY}Segment0Replica{replica}" for replica in range(5))
REFEREE = f"{ENTRY}Segment0Referee"
TWO, FOUR = REPLICAS[1:3], REPLICAS[1:]
AUDITED = "resilient-audited"
PATIENCE_SECONDS = 2.0
"""Half of the deadline: until then nobody else is asked, but for a spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The deployment, its processes, and callers' trust files.

    Attributes:
        beset: How it is asked, by callers who take a referee's word.
        served: Its processes.
        doubting: Trust file of callers who do not.
    """

    beset: Beset
    served: Served
    doubting: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service, served as a user serves it."""
    folder = tmp_path_factory.mktemp("faults-referees")
    project = whole(faulting_project(folder / "project"))
    ledger = folder / "reputation.sqlite"
    env = {REPUTATION: str(ledger)}
    with serve(REFEREED, project, folder / "home", env=env) as served:
        beset = Beset(
            service=ENTRY,
            url=served.url,
            project=project,
            trust=write_trust_file(project, ENTRY, referee=True, tag="-referee"),
            ledger=ledger,
        )
        beset.wait_until_whole()
        yield Running(
            beset=beset, served=served, doubting=write_trust_file(project, ENTRY)
        )


@pytest.fixture(autouse=True)
def _whole(running: Running) -> Iterator[None]:
    """Leave everybody back, with nothing held against anybody."""
    yield
    with Load(target=running.beset, scenario=AUDITED, threads=1) as load:
        load.recover()
        # Each is drawn in three of five; all that were, for a while, have answered.
        load.go_on_until(
            lambda: len(load.answers) > 8 and not any(map(absent, load.answers[-8:])),
            what="everybody is back",
        )
    running.beset.forget()


def skips_of(load: Load) -> set[tuple[str, str]]:
    """Return who lost a seat to a spare, and why, over all answers."""
    return {
        (skip.replica, skip.reason)
        for answer in load.answers
        for skip in record_of(answer).skips
    }


def test_two_are_stopped_and_a_spare_is_asked_before_anybody_loses_patience(
    running: Running,
) -> None:
    with Load(target=running.beset, scenario=AUDITED) as load:
        # Until it is known how long an answer takes nobody is asked beside another.
        load.go_on(20)
        load.require_unharmed()
        load.answers.clear()
        with suspended(workers(running.served, TWO)):
            load.go_on_until(
                lambda: any("asked later" in why for _, why in skips_of(load)),
                what="a spare has a stopped one's seat",
            )
        load.require_unharmed()
    hedged = [answer for answer in load.answers if record_of(answer).skips]
    assert {name for name, _ in skips_of(load)} <= {*TWO}
    for answer in hedged:
        (skip,) = record_of(answer).skips
        assert skip.replica not in seats_of(answer)
        assert answer.verdict.claims["skipped"][0]["replica"] == skip.replica
    assert min(map(seconds_of, hedged)) < PATIENCE_SECONDS


def test_two_are_killed_and_no_request_fails(running: Running) -> None:
    with Load(target=running.beset, scenario=AUDITED) as load:
        load.go_on(4)
        kill(workers(running.served, TWO))
        load.go_on(20)
        load.require_unharmed()
    assert {name for answer in load.answers for name in absent(answer)} <= {*TWO}


def test_a_liar_and_one_that_fails_half_of_the_time_change_no_answer(
    running: Running,
) -> None:
    liar, flaky = TWO
    faults = (f"lie-{liar}", f"flaky-{flaky}")
    with (
        Load(target=running.beset, scenario=AUDITED) as load,
        running.beset.switched(*faults),
    ):
        load.go_on(30)
        load.require_unharmed()
    blamed = {
        dissent["replica"]
        for answer in load.answers
        for dissent in answer.verdict.claims["dissenters"]
    }
    assert blamed == {liar}


def test_four_are_stopped_and_the_referee_decides_for_who_takes_its_word(
    running: Running,
) -> None:
    beset = running.beset
    with suspended(workers(running.served, FOUR)):
        with beset.client("resilient") as client:
            answer = beset.ask(client)
        with (
            beset.client("widening", running.doubting) as client,
            pytest.raises(QuorumNotReached, match="the deadline passed") as refused,
        ):
            beset.ask(client)
    record = record_of(answer)
    assert record.referee is not None
    assert record.referee.replica == REFEREE
    # Three had seats, then five: only one answered, and it is not outvoted.
    assert len(record.tally.committee) == 5
    assert {name for group in record.tally.groups for name in group} == {REPLICAS[0]}
    assert answer.verdict.claims["dissenters"] == []
    assert {*refused.value.tally["pending"]} == {*FOUR}


def test_a_referee_that_is_gone_audits_nothing_and_the_receipt_says_so(
    running: Running,
) -> None:
    with Load(target=running.beset, scenario=AUDITED) as load:
        load.go_on(4)
        load.require_unharmed()
        load.answers.clear()
        kill(workers(running.served, [REFEREE]))
        load.go_on_until(
            lambda: any(REFEREE in absent(answer) for answer in load.answers),
            what="an audit has nobody to ask",
        )
        load.require_unharmed()
