"""Rounds in which something goes wrong: spares, hedges, escalations, referees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bentoml_secure.consensus.collect import Round, Terms, collect
from bentoml_secure.consensus.latency import Latencies
from bentoml_secure.consensus.quorum import Member, Tally, recompute
from bentoml_secure.consensus.seating import Bench
from bentoml_secure.errors import ConfigurationError, QuorumNotReached, UnavailableError
from tests.unit.consensus.test_collect import Replicas, apart, late_of, settle, vote

SOON = 0.02


@pytest_asyncio.fixture(autouse=True)
async def nothing_is_left_behind() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


def bench(names: str, spares: int = 0, out: str = "") -> Bench:
    return Bench(
        order=tuple(names),
        members={name: Member(replica=name) for name in names},
        out=dict.fromkeys(out, "not attested"),
        spares=spares,
    )


async def run(
    of: Bench,
    replicas: Replicas,
    *,
    size: int = 3,
    quorum: int = 2,
    tolerance: float = 0.0,
    deadline_seconds: float = 60.0,
    escalation: int = 0,
    hedge_seconds: float | None = None,
    referee: str | None = None,
) -> Round[float]:
    return await collect(
        of,
        replicas.ask,
        distance=apart,
        terms=Terms(
            size=size,
            quorum=quorum,
            tolerance=tolerance,
            deadline_seconds=deadline_seconds,
            grace_seconds=0.01,
            escalation=escalation,
            hedge_seconds=hedge_seconds,
        ),
        referee=referee,
    )


def names(tally: Tally) -> list[str]:
    return [member.replica for member in tally.committee]


class TestSpares:
    async def test_one_that_fails_makes_way_for_the_next(self) -> None:
        replicas = Replicas()
        replicas.fail("a", ConnectionRefusedError("nobody"))
        task = asyncio.create_task(run(bench("abcde", spares=1), replicas))
        await settle()
        assert replicas.asked == ["a", "b", "c", "d"]
        for name in "bcd":
            replicas.give(name, 1.0)
        outcome = await task
        assert names(outcome.tally) == ["b", "c", "d"]
        assert [(s.replica, s.reason) for s in outcome.skips] == [
            ("a", "ConnectionRefusedError: nobody")
        ]
        assert outcome.tally.absent == ()

    async def test_no_more_are_skipped_than_there_are_spares(self) -> None:
        replicas = Replicas()
        for name in "abc":
            replicas.fail(name, ConnectionRefusedError())
        with pytest.raises(QuorumNotReached, match="want 2") as refused:
            await run(bench("abcdef", spares=1), replicas)
        assert not {"e", "f"} & {*replicas.asked}
        tally = Tally.from_json(refused.value.tally)
        assert names(tally) == ["b", "c", "d"]
        assert {absence.replica for absence in tally.absent} == {"b", "c"}

    async def test_one_that_may_not_be_asked_is_skipped_first(self) -> None:
        replicas = Replicas()
        for name in "bcd":
            replicas.give(name, 1.0)
        outcome = await run(bench("abcde", spares=1, out="a"), replicas)
        assert replicas.asked == ["b", "c", "d"]
        assert [(s.replica, s.reason) for s in outcome.skips] == [("a", "not attested")]

    async def test_without_spares_it_stands_as_absent(self) -> None:
        replicas = Replicas()
        replicas.give("b", 1.0)
        replicas.give("c", 1.0)
        outcome = await run(bench("abcde", out="a"), replicas)
        assert outcome.skips == ()
        assert [a.replica for a in outcome.tally.absent] == ["a"]


class TestHedging:
    async def test_a_spare_that_answers_first_has_the_seat(self) -> None:
        replicas = Replicas()
        replicas.give("a", 1.0)
        task = asyncio.create_task(
            run(bench("abcd", spares=1), replicas, quorum=3, hedge_seconds=SOON)
        )
        await asyncio.sleep(2 * SOON)
        assert replicas.asked == ["a", "b", "c", "d"]
        replicas.give("d", 1.0)
        await settle()
        replicas.give("c", 1.0)
        outcome = await task
        assert names(outcome.tally) == ["a", "c", "d"]
        (skip,) = outcome.skips
        assert (skip.replica, skip.reason) == (
            "b",
            "d answered first, which was asked later",
        )
        assert replicas.cancelled == ["b"]
        votes = [vote(name, 1.0) for name in "acd"]
        assert recompute(outcome.tally, votes) == []

    async def test_whoever_was_slow_keeps_its_seat_if_it_is_first(self) -> None:
        replicas = Replicas()
        task = asyncio.create_task(
            run(bench("abcd", spares=1), replicas, hedge_seconds=SOON)
        )
        await asyncio.sleep(2 * SOON)
        assert replicas.asked == ["a", "b", "c", "d"]
        for name in "abc":
            replicas.give(name, 1.0)
        outcome = await task
        assert names(outcome.tally) == ["a", "b", "c"]
        assert (outcome.skips, outcome.unused) == ((), ("d",))
        assert replicas.cancelled == ["d"]

    async def test_an_answer_that_gets_a_seat_is_counted_at_once(self) -> None:
        """With it there is a quorum, and nobody left to wait for."""
        replicas = Replicas()
        task = asyncio.create_task(
            run(bench("abcd", spares=1), replicas, hedge_seconds=SOON)
        )
        await asyncio.sleep(1.5 * SOON)
        assert replicas.asked == ["a", "b", "c", "d"]
        replicas.give("a", 2.0)
        replicas.give("b", 1.0)
        # Asked beside a, who was not so slow after all; c is.
        replicas.give("d", 1.0)
        outcome = await task
        assert names(outcome.tally) == ["a", "b", "d"]
        assert outcome.tally.clique == ("b", "d")
        assert [skip.replica for skip in outcome.skips] == ["c"]
        votes = [vote("a", 2.0), vote("b", 1.0), vote("d", 1.0)]
        assert recompute(outcome.tally, votes) == []

    async def test_nobody_is_hedged_who_is_quick(self) -> None:
        replicas = Replicas()
        for name in "abc":
            replicas.give(name, 1.0)
        await run(bench("abcd", spares=1), replicas, hedge_seconds=SOON)
        assert replicas.asked == ["a", "b", "c"]

    async def test_a_spare_that_fails_costs_nobody_its_seat(self) -> None:
        replicas = Replicas()
        replicas.fail("d", ConnectionRefusedError())
        task = asyncio.create_task(
            run(bench("abcd", spares=1), replicas, hedge_seconds=SOON)
        )
        await asyncio.sleep(2 * SOON)
        for name in "abc":
            replicas.give(name, 1.0)
        outcome = await task
        assert names(outcome.tally) == ["a", "b", "c"]
        assert outcome.unused == ("d",)

    async def test_a_spare_that_was_not_needed_takes_the_seat_of_one_that_fails(
        self,
    ) -> None:
        """Still asked, though the one that it was asked beside has answered."""
        replicas = Replicas()
        task = asyncio.create_task(
            run(bench("abcd", spares=1), replicas, quorum=3, hedge_seconds=SOON)
        )
        await asyncio.sleep(2 * SOON)
        replicas.give("a", 1.0)
        await settle()
        replicas.fail("b", ConnectionRefusedError())
        await settle()
        for name in "cd":
            replicas.give(name, 1.0)
        outcome = await task
        assert replicas.asked == ["a", "b", "c", "d"]
        assert names(outcome.tally) == ["a", "c", "d"]
        assert outcome.tally.pending == ()
        assert [skip.replica for skip in outcome.skips] == ["b"]
        assert outcome.unused == ()

    async def test_what_a_spare_answered_in_vain_counts_when_it_gets_a_seat(
        self,
    ) -> None:
        replicas = Replicas()
        task = asyncio.create_task(
            run(bench("abcd", spares=1), replicas, quorum=3, hedge_seconds=SOON)
        )
        await asyncio.sleep(2 * SOON)
        replicas.give("a", 1.0)
        await settle()
        replicas.give("d", 1.0)
        await settle()
        replicas.give("c", 1.0)
        replicas.fail("b", ConnectionRefusedError())
        outcome = await task
        assert replicas.asked == ["a", "b", "c", "d"]
        assert outcome.tally.clique == ("a", "c", "d")
        assert outcome.unused == ()

    async def test_what_a_spare_answered_in_vain_makes_up_for_the_next_who_is_slow(
        self,
    ) -> None:
        replicas = Replicas()
        task = asyncio.create_task(
            run(bench("abcd", spares=1), replicas, quorum=3, hedge_seconds=SOON)
        )
        await asyncio.sleep(1.5 * SOON)
        for name in "acd":
            replicas.give(name, 1.0)
            await settle()
        outcome = await task
        assert names(outcome.tally) == ["a", "c", "d"]
        assert replicas.cancelled == ["b"]
        assert [skip.replica for skip in outcome.skips] == ["b"]

    async def test_a_spare_that_was_not_needed_is_among_the_two_more(self) -> None:
        replicas = Replicas()
        task = asyncio.create_task(
            run(bench("abcdef", spares=1), replicas, hedge_seconds=SOON, escalation=1)
        )
        await asyncio.sleep(2 * SOON)
        for name, content in zip("abcd", (1.0, 2.0, 3.0, 1.0), strict=True):
            replicas.give(name, content)
            await settle()
        replicas.give("e", 1.0)
        outcome = await task
        assert replicas.asked == ["a", "b", "c", "d", "e"]
        assert names(outcome.tally) == list("abcde")
        assert outcome.tally.clique == ("a", "d", "e")
        assert (outcome.tally.pending, outcome.unused) == ((), ())

    def test_hedging_begins_when_there_is_something_to_go_by(self) -> None:
        latencies = Latencies()
        for _ in range(19):
            latencies.add(0.1)
        assert latencies.p95 is None
        for _ in range(100):
            latencies.add(0.1)
        latencies.add(9.0)
        assert latencies.p95 == 0.1
        for _ in range(300):
            latencies.add(2.0)
        assert latencies.p95 == 2.0


class TestEscalation:
    async def test_two_more_are_asked_and_one_more_has_to_agree(self) -> None:
        replicas = Replicas()
        for name, content in zip("abcde", (1.0, 2.0, 3.0, 1.0, 1.0), strict=True):
            replicas.give(name, content)
        outcome = await run(bench("abcdefg"), replicas, escalation=1)
        assert names(outcome.tally) == list("abcde")
        assert (outcome.tally.quorum, outcome.tally.clique) == (3, ("a", "d", "e"))
        assert outcome.tally.dissenters == ("b", "c")

    async def test_as_often_as_the_terms_allow(self) -> None:
        replicas = Replicas()
        for content, name in enumerate("abcdefg"):
            replicas.give(name, float(content))
        with pytest.raises(QuorumNotReached, match="all have answered") as refused:
            await run(bench("abcdefghi"), replicas, escalation=2)
        assert len(Tally.from_json(refused.value.tally).committee) == 7

    async def test_not_without_two_more(self) -> None:
        replicas = Replicas()
        for content, name in enumerate("abc"):
            replicas.give(name, float(content))
        with pytest.raises(QuorumNotReached, match="all have answered"):
            await run(bench("abcd"), replicas, escalation=1)
        assert replicas.asked == ["a", "b", "c"]

    async def test_who_does_not_answer_is_not_waited_for_till_the_end(self) -> None:
        """One lies, one is dead: the honest third waits for two more, half the time."""
        replicas = Replicas()
        for name, content in zip("abde", (1.0, 2.0, 1.0, 1.0), strict=True):
            replicas.give(name, content)
        outcome = await run(
            bench("abcde"), replicas, escalation=1, deadline_seconds=0.2
        )
        assert outcome.tally.clique == ("a", "d", "e")
        assert outcome.tally.pending == ("c",)
        assert (await late_of(outcome)).answers == {}


class TestReferee:
    async def test_its_answer_stands_where_no_quorum_agrees(self) -> None:
        replicas = Replicas()
        for name, content in zip("abcr", (1.0, 2.0, 3.0, 2.25), strict=True):
            replicas.give(name, content)
        outcome = await run(bench("abc"), replicas, referee="r", tolerance=0.5)
        assert outcome.ruling is not None
        assert outcome.agreed.vote.replica == "r"
        assert not outcome.tally.accepted
        assert outcome.ruling.distances == {"a": 1.25, "b": 0.25, "c": 0.75}
        assert outcome.ruling.wrong(outcome.tally) == ("a", "c")

    async def test_it_is_not_asked_before_more_replicas_are(self) -> None:
        replicas = Replicas()
        for name, content in zip("abcde", (1.0, 2.0, 3.0, 1.0, 1.0), strict=True):
            replicas.give(name, content)
        outcome = await run(bench("abcde"), replicas, referee="r", escalation=1)
        assert outcome.ruling is None
        assert "r" not in replicas.asked

    async def test_a_referee_that_fails_refuses_the_round(self) -> None:
        replicas = Replicas()
        for name, content in zip("abc", (1.0, 2.0, 3.0), strict=True):
            replicas.give(name, content)
        replicas.fail("r", UnavailableError("is down"))
        with pytest.raises(
            QuorumNotReached, match="did not rule: UnavailableError: is down"
        ):
            await run(bench("abc"), replicas, referee="r")

    async def test_a_referee_that_hangs_refuses_the_round_at_the_deadline(self) -> None:
        replicas = Replicas()
        for name, content in zip("abc", (1.0, 2.0, 3.0), strict=True):
            replicas.give(name, content)
        with pytest.raises(QuorumNotReached, match="did not rule: timed out"):
            await run(bench("abc"), replicas, referee="r", deadline_seconds=SOON)
        assert replicas.cancelled == ["r"]

    async def test_it_rules_over_who_is_silent_too(self) -> None:
        replicas = Replicas()
        replicas.give("a", 1.0)
        replicas.give("r", 1.0)
        outcome = await run(bench("abc"), replicas, referee="r", deadline_seconds=0.1)
        assert outcome.agreed.vote.replica == "r"
        assert outcome.tally.pending == ("b", "c")
        assert outcome.ruling is not None
        assert outcome.ruling.wrong(outcome.tally) == ()
        assert len((await late_of(outcome)).absent) == 2


async def test_terms_out_of_range_are_refused_before_anybody_is_asked() -> None:
    replicas = Replicas()
    with pytest.raises(ConfigurationError, match="quorum"):
        await run(bench("abc"), replicas, quorum=1)
    with pytest.raises(ConfigurationError, match="deadline"):
        await run(bench("abc"), replicas, deadline_seconds=float("nan"))
    assert replicas.asked == []
