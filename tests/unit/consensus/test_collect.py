from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from bentoml_secure.consensus.collect import Answer, Late, Round, Terms, collect
from bentoml_secure.consensus.quorum import Absence, Member, Tally, Vote, recompute
from bentoml_secure.consensus.seating import Bench
from bentoml_secure.digest import Digest
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    QuorumNotReached,
    StatementError,
    UnavailableError,
)


@pytest_asyncio.fixture(autouse=True)
async def nothing_is_left_behind() -> AsyncIterator[None]:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()
    assert complaints == []


def committee(names: str) -> Bench:
    return Bench.of([Member(replica=name) for name in names])


def vote(replica: str, content: float) -> Vote:
    digest = Digest(f"sha256:{content}")
    return Vote(replica=replica, commitments=(("y", digest),))


def answer(replica: str, content: float) -> Answer[float]:
    return Answer(vote=vote(replica, content), value=content)


def apart(a: float, b: float) -> float:
    return abs(a - b)


@dataclass
class Replicas:
    """Replicas whose answers the test gives, in its own order.

    ``cancelled`` names those whose ask was cancelled and then cleaned up.
    """

    asked: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    answers: dict[str, asyncio.Future[Answer[float]]] = field(default_factory=dict)

    async def ask(self, replica: str) -> Answer[float]:
        self.asked.append(replica)
        try:
            return await self.coming(replica)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.cancelled.append(replica)
            raise

    def coming(self, replica: str) -> asyncio.Future[Answer[float]]:
        loop = asyncio.get_running_loop()
        return self.answers.setdefault(replica, loop.create_future())

    def give(self, replica: str, content: float) -> None:
        self.coming(replica).set_result(answer(replica, content))

    def fail(self, replica: str, error: Exception) -> None:
        self.coming(replica).set_exception(error)


async def agree(
    names: str,
    ask: Callable[[str], Awaitable[Answer[float]]],
    *,
    quorum: int = 2,
    tolerance: float = 0.0,
    distance: Callable[[float, float], float | None] = apart,
    deadline_seconds: float = 60.0,
    grace_seconds: float = 60.0,
) -> Round[float]:
    return await collect(
        committee(names),
        ask,
        distance=distance,
        terms=Terms(
            size=len(names),
            quorum=quorum,
            tolerance=tolerance,
            deadline_seconds=deadline_seconds,
            grace_seconds=grace_seconds,
        ),
    )


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def late_of(outcome: Round[float]) -> Late[float]:
    assert outcome.late is not None
    return await outcome.late


async def test_three_identical_answers_leave_nobody_late() -> None:
    replicas = Replicas()
    for name in "abc":
        replicas.give(name, 1.0)
    outcome = await agree("abc", replicas.ask)
    assert outcome.late is None
    assert outcome.agreed == answer("a", 1.0)
    assert outcome.answers == {name: answer(name, 1.0) for name in "abc"}
    assert outcome.tally.clique == ("a", "b", "c")
    assert recompute(outcome.tally, [vote(name, 1.0) for name in "abc"]) == []


async def test_everybody_is_asked_before_anybody_answers() -> None:
    replicas = Replicas()
    task = asyncio.create_task(agree("abc", replicas.ask))
    await settle()
    assert replicas.asked == ["a", "b", "c"]
    for name in "abc":
        replicas.give(name, 1.0)
    await task


async def test_stops_at_the_quorum_and_collects_the_late_vote() -> None:
    replicas = Replicas()
    replicas.give("b", 1.0)
    replicas.give("c", 1.0)
    outcome = await agree("abc", replicas.ask)
    assert outcome.tally.pending == ("a",)
    assert outcome.agreed.vote.replica == "b"
    replicas.give("a", 2.0)
    late = await late_of(outcome)
    assert late == Late(answers={"a": answer("a", 2.0)}, absent=())
    assert "a" not in outcome.answers
    assert replicas.cancelled == []


async def test_a_late_failure_is_an_absence() -> None:
    replicas = Replicas()
    replicas.give("b", 1.0)
    replicas.give("c", 1.0)
    outcome = await agree("abc", replicas.ask)
    replicas.fail("a", ConnectionResetError("reset by peer"))
    late = await late_of(outcome)
    reason = "ConnectionResetError: reset by peer"
    assert late == Late(answers={}, absent=(Absence(replica="a", reason=reason),))


async def test_grace_ends_in_a_real_cancellation() -> None:
    replicas = Replicas()
    for name in "bcd":
        replicas.give(name, 1.0)
    outcome = await agree("abcde", replicas.ask, quorum=3, grace_seconds=0.01)
    late = await late_of(outcome)
    assert sorted(replicas.cancelled) == ["a", "e"]
    reason = "no answer within 0.01 s of the decision"
    assert late.answers == {}
    assert set(late.absent) == {
        Absence(replica="a", reason=reason),
        Absence(replica="e", reason=reason),
    }


async def test_cancelling_late_cancels_its_asks() -> None:
    replicas = Replicas()
    replicas.give("a", 1.0)
    replicas.give("b", 1.0)
    outcome = await agree("abc", replicas.ask)
    assert outcome.late is not None
    await settle()
    outcome.late.cancel()
    await settle()
    assert outcome.late.cancelled()
    assert replicas.cancelled == ["c"]


async def test_cancelling_late_before_it_ran_cancels_its_asks() -> None:
    replicas = Replicas()
    replicas.give("a", 1.0)
    replicas.give("b", 1.0)
    outcome = await agree("abc", replicas.ask)
    assert outcome.late is not None
    outcome.late.cancel()
    await settle()
    assert replicas.cancelled == ["c"]


async def test_a_round_that_nobody_keeps_still_ends_its_asks() -> None:
    replicas = Replicas()
    replicas.give("a", 1.0)
    replicas.give("b", 1.0)
    await agree("abc", replicas.ask, grace_seconds=0.01)
    gc.collect()
    await asyncio.sleep(0.03)
    assert replicas.cancelled == ["c"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(), "timed out"),
        (ConnectionRefusedError("nobody"), "ConnectionRefusedError: nobody"),
        (StatementError("bad signature"), "StatementError: bad signature"),
        (
            UnavailableError("is down", remedy="Start it."),
            "UnavailableError: is down",
        ),
        (
            MalformedInputError("a\nb" + "x" * 300),
            "MalformedInputError: a?b" + "x" * 176,
        ),
        (asyncio.CancelledError(), "the ask was cancelled"),
    ],
)
@pytest.mark.parametrize("names", ["a", "abc"])
async def test_a_failing_ask_is_an_absence(
    names: str, error: BaseException, reason: str
) -> None:
    async def ask(replica: str) -> Answer[float]:
        if replica == "a":
            raise error
        return answer(replica, 1.0)

    if names == "abc":
        tally = (await agree(names, ask)).tally
    else:
        with pytest.raises(QuorumNotReached, match="all have answered") as refused:
            await agree(names, ask, quorum=1)
        tally = Tally.from_json(refused.value.tally)
    assert tally.absent == (Absence(replica="a", reason=reason),)


async def test_an_unexpected_error_is_an_absence_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Not a coroutine: it fails while it is called.
    def ask(replica: str) -> Awaitable[Answer[float]]:
        if replica == "b":
            raise ZeroDivisionError("secret detail")
        future = asyncio.get_running_loop().create_future()
        future.set_result(answer(replica, 1.0))
        return future

    with caplog.at_level(logging.ERROR):
        outcome = await agree("abc", ask)
    reason = "failed unexpectedly: ZeroDivisionError"
    assert outcome.tally.absent == (Absence(replica="b", reason=reason),)
    assert "asking b failed unexpectedly" in caplog.text
    assert "ZeroDivisionError: secret detail" in caplog.text


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (answer("a", 1.0), "answered as 'a'"),
        (
            Answer(vote=Vote(replica="b", commitments=()), value=1.0),
            "vote of 'b': got commitments to [], want one or more",
        ),
    ],
)
async def test_a_vote_that_is_not_the_members_own_is_an_absence(
    given: Answer[float], reason: str
) -> None:
    async def ask(replica: str) -> Answer[float]:
        return given if replica == "b" else answer(replica, 1.0)

    outcome = await agree("abc", ask)
    (absence,) = outcome.tally.absent
    assert absence.replica == "b"
    assert absence.reason.startswith(reason)
    assert outcome.tally.clique == ("a", "c")


async def test_refused_at_once_when_too_many_failed() -> None:
    replicas = Replicas()
    replicas.fail("a", ConnectionRefusedError())
    replicas.fail("b", ConnectionRefusedError())
    with pytest.raises(QuorumNotReached, match="none is possible any more") as refused:
        await agree("abc", replicas.ask)
    assert refused.value.tally["pending"] == ["c"]
    assert replicas.cancelled == ["c"]


async def test_refused_at_once_when_too_many_differ() -> None:
    replicas = Replicas()
    for name, content in zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True):
        replicas.give(name, content)
    with pytest.raises(QuorumNotReached, match="none is possible any more"):
        await agree("abcde", replicas.ask, quorum=3)
    assert replicas.cancelled == ["e"]


async def test_refused_when_all_answered_and_no_quorum_agrees() -> None:
    replicas = Replicas()
    for name, content in zip("abc", (1.0, 2.0, 3.0), strict=True):
        replicas.give(name, content)
    with pytest.raises(QuorumNotReached, match="all have answered") as refused:
        await agree("abc", replicas.ask)
    votes = [vote(n, c) for n, c in zip("abc", (1.0, 2.0, 3.0), strict=True)]
    assert recompute(Tally.from_json(refused.value.tally), votes) == []


async def test_refused_at_the_deadline() -> None:
    replicas = Replicas()
    replicas.give("b", 1.0)
    with pytest.raises(QuorumNotReached, match="the deadline passed") as refused:
        await agree("abc", replicas.ask, deadline_seconds=0.01)
    assert refused.value.tally["pending"] == ["a", "c"]
    assert sorted(replicas.cancelled) == ["a", "c"]


async def test_the_deadline_is_by_the_callers_clock() -> None:
    replicas = Replicas()
    now = [100.0]

    async def ask(replica: str) -> Answer[float]:
        if replica != "a":
            return await replicas.ask(replica)
        now[0] += 61.0
        return answer("a", 1.0)

    with pytest.raises(QuorumNotReached, match="the deadline passed"):
        await collect(
            committee("abc"),
            ask,
            distance=apart,
            terms=Terms(
                size=3,
                quorum=2,
                tolerance=0.0,
                deadline_seconds=60.0,
                grace_seconds=0.0,
            ),
            clock=lambda: now[0],
        )
    assert sorted(replicas.cancelled) == ["b", "c"]


async def test_a_quorum_that_is_there_at_the_deadline_is_taken() -> None:
    async def ask(replica: str) -> Answer[float]:
        return answer(replica, 1.0)

    outcome = await agree("abc", ask, deadline_seconds=0.0)
    assert outcome.tally.accepted


async def test_each_distance_is_measured_once_and_off_the_loop() -> None:
    replicas = Replicas()
    measured: list[frozenset[float]] = []
    threads: set[int] = set()

    def distance(a: float, b: float) -> float:
        measured.append(frozenset((a, b)))
        threads.add(threading.get_ident())
        return abs(a - b)

    task = asyncio.create_task(
        agree("abcde", replicas.ask, quorum=3, tolerance=1.0, distance=distance)
    )
    # 1 and 3 are apart; b then becomes the first member of a's later group.
    for name, content in (("d", 1.0), ("e", 3.0), ("c", 5.0), ("b", 3.0), ("a", 1.0)):
        await settle()
        replicas.give(name, content)
        await asyncio.sleep(0.01)
    with pytest.raises(QuorumNotReached, match="all have answered"):
        await task
    assert sorted(map(sorted, measured)) == [[1.0, 3.0], [1.0, 5.0], [3.0, 5.0]]
    assert threading.get_ident() not in threads


async def test_answers_within_tolerance_agree_and_the_medoid_is_served() -> None:
    replicas = Replicas()
    for name, content in zip("abc", (1.0, 1.5, 2.0), strict=True):
        replicas.give(name, content)
    outcome = await agree("abc", replicas.ask, tolerance=1.0)
    assert outcome.agreed == answer("b", 1.5)
    assert outcome.tally.distances == (
        (0.0, 0.5, 1.0),
        (0.5, 0.0, 0.5),
        (1.0, 0.5, 0.0),
    )


async def test_one_more_vote_can_turn_disagreement_into_a_quorum() -> None:
    replicas = Replicas()
    replicas.give("a", 1.0)
    replicas.give("b", 9.0)
    task = asyncio.create_task(agree("abc", replicas.ask))
    await asyncio.sleep(0.01)
    assert not task.done()
    replicas.give("c", 9.0)
    outcome = await task
    assert outcome.agreed == answer("b", 9.0)
    assert outcome.tally.dissenters == ("a",)


@pytest.mark.parametrize("names", ["a", "abc"])
async def test_cancelling_collect_cancels_and_awaits_every_ask(names: str) -> None:
    replicas = Replicas()
    task = asyncio.create_task(agree(names, replicas.ask, quorum=len(names) // 2 + 1))
    await settle()
    assert len(replicas.asked) == len(names)
    task.cancel()
    with pytest.raises(asyncio.CancelledError, match=r"^$"):
        await task
    assert sorted(replicas.cancelled) == list(names)


async def test_a_rule_that_fails_ends_the_round() -> None:
    def distance(a: float, b: float) -> float:
        raise ArithmeticError("rule is broken")

    replicas = Replicas()
    replicas.give("a", 1.0)
    replicas.give("b", 2.0)
    with pytest.raises(ArithmeticError, match="rule is broken"):
        await agree("abc", replicas.ask, distance=distance)
    assert replicas.cancelled == ["c"]


async def test_a_committee_of_one_needs_no_task() -> None:
    async def ask(replica: str) -> Answer[float]:
        assert asyncio.current_task() is caller
        return answer(replica, 1.0)

    caller = asyncio.current_task()
    outcome = await agree("a", ask, quorum=1)
    assert outcome.agreed == answer("a", 1.0)
    assert outcome.late is None


async def test_a_committee_of_one_has_a_deadline() -> None:
    replicas = Replicas()
    with pytest.raises(QuorumNotReached, match="the deadline passed") as refused:
        await agree("a", replicas.ask, quorum=1, deadline_seconds=0.01)
    assert refused.value.tally["pending"] == ["a"]
    assert replicas.cancelled == ["a"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"deadline_seconds": -1.0}, "deadline: got -1.0 seconds"),
        ({"deadline_seconds": float("nan")}, "deadline: got nan seconds"),
        ({"grace_seconds": -0.5}, "grace: got -0.5 seconds"),
        ({"quorum": 1}, "quorum: got 1, want more than half of 3"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
    ],
)
async def test_terms_that_cannot_decide_are_refused_before_anyone_is_asked(
    change: dict[str, Any], match: str
) -> None:
    replicas = Replicas()
    with pytest.raises(ConfigurationError, match=match):
        await agree("abc", replicas.ask, **change)
    assert replicas.asked == []
