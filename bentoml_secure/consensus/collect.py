"""Asks a committee at once, and stops as soon as a quorum agrees.

Transport is the caller's: ``ask`` brings one replica's answer, or raises. An answer's
vote must already be checked against its tensors and signature; here votes are compared
and nothing else is believed. In the order of what goes wrong:

1. A replica that fails makes way for the next of the bench, while there are spares.
2. A spare is asked beside one that has not answered by ``hedge_seconds``; whoever
   answers first has the seat.
3. Where no quorum can agree any more, or half of the time is over, two more replicas
   are asked and one more has to agree, as often as the terms allow.
4. After that the referee is asked, if there is one, and its answer stands.
5. Else the round is refused, with the tally.

No task outlives its round. Asks still running at the decision go on in ``Round.late``
for ``grace_seconds``; in every other case they are cancelled and awaited before
``collect`` returns or raises. An ask that is cancelled must end, or it holds the round.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import TypeVar

from bentoml_secure.consensus.asks import Answer, Ask, Late, attempt
from bentoml_secure.consensus.course import Course, Round, Ruling, Terms
from bentoml_secure.consensus.quorum import Tally, plan_faults, reachable, refusal
from bentoml_secure.consensus.seating import Bench
from bentoml_secure.consensus.tally import Absence, Member
from bentoml_secure.errors import ConfigurationError

__all__ = ["Answer", "Ask", "Late", "Round", "Ruling", "Terms", "collect"]

T = TypeVar("T")


async def collect(
    bench: Bench,
    ask: Ask[T],
    *,
    distance: Callable[[T, T], float | None],
    terms: Terms,
    referee: str | None = None,
    share: Callable[[tuple[Member, ...]], tuple[Member, ...]] = lambda seats: seats,
    clock: Callable[[], float] = time.monotonic,
) -> Round[T]:
    """Ask a committee and return as soon as a quorum agrees.

    Args:
        bench: Who may be asked, in the drawn order, which also breaks ties.
        ask: Brings one replica's answer. What it raises makes that replica absent.
        distance: Of two answers' values, as a rule gives it. Called in a thread, and
            only for answers whose commitments differ.
        terms: What is wanted, by when.
        referee: Asked where no quorum agrees; its answer then stands.
        share: Weighs a committee's members against one another.
        clock: Monotonic seconds.

    Raises:
        QuorumNotReached: None by the deadline, or none possible any more.
        ConfigurationError: Committee, quorum, tolerance or a time out of range.
    """
    # Before anyone is asked. NaN is refused too.
    for name, seconds in (
        ("deadline", terms.deadline_seconds),
        ("grace", terms.grace_seconds),
    ):
        if not seconds >= 0:
            raise ConfigurationError(f"{name}: got {seconds} seconds, want 0 or more")
    course = Course(bench, ask, distance, terms, share)
    if faults := plan_faults(course.committee, terms.quorum, terms.tolerance):
        raise ConfigurationError("; ".join(map(str, faults)))
    if len(bench.order) == 1 and referee is None:
        return course.conclude(await _run_alone(course), None)
    try:
        tally, ruling = await _run(course, referee, clock)
        await course.settle()
        return course.conclude(tally, ruling)
    finally:
        # After a conclusion none is left here: they were handed over.
        await course.asks.cancel(course.asks.running)


async def _run(
    course: Course[T], referee: str | None, clock: Callable[[], float]
) -> tuple[Tally, Ruling[T] | None]:
    terms, begun = course.terms, clock()
    deadline = begun + terms.deadline_seconds
    hedge = math.inf if terms.hedge_seconds is None else begun + terms.hedge_seconds
    # Who has not answered after half of the time is not waited for before others are
    # asked; and again after half of what is left.
    patience = begun + terms.deadline_seconds / 2
    course.ask_seated()
    while True:
        ends = min(deadline, hedge, patience)
        for name, outcome in await course.asks.next(ends - clock()):
            await course.take(name, outcome)
        now = clock()
        ended = now >= deadline
        due = ended or now >= patience
        tally = await _count(course, due=due)
        if now >= hedge and not (tally and tally.accepted):
            hedge = now + (terms.hedge_seconds or math.inf)
            if await course.hedge():
                tally = await _count(course, due=due)
        if tally is None:
            continue
        if tally.accepted:
            return tally, None
        stuck = not course.pending or not reachable(tally)
        if not ended and (stuck or now >= patience):
            if course.escalate():
                patience = now + (deadline - now) / 2
                continue
            if referee is not None:
                await course.settle()
                return tally, await _rule(course, tally, referee, deadline - now)
            patience = math.inf
        if ended or stuck:
            raise refusal(tally, _why(course, ended=ended))


async def _count(course: Course[T], *, due: bool) -> Tally | None:
    """Count what came in; None where nothing can be decided before more does."""
    hopeful = len(course.answers) + len(course.pending) >= course.quorum
    if not due and hopeful and len(course.answers) < course.quorum:
        return None
    return await course.tally()


def _why(course: Course[T], *, ended: bool) -> str:
    if ended:
        return "the deadline passed"
    if not course.pending:
        return "all have answered or failed"
    return "none is possible any more"


async def _rule(
    course: Course[T], tally: Tally, referee: str, seconds: float
) -> Ruling[T]:
    """Ask the referee; whatever keeps it from answering refuses the round.

    Raises:
        QuorumNotReached: No answer of it within these seconds.
    """

    async def ask(name: str) -> Answer[T]:
        async with asyncio.timeout(seconds):
            return await course.ask(name)

    outcome = await attempt(ask, referee)
    if isinstance(outcome, Absence):
        raise refusal(tally, f"and the referee did not rule: {outcome.reason}")
    return await asyncio.to_thread(course.judge, outcome, tally)


async def _run_alone(course: Course[T]) -> Tally:
    # No task of its own: a committee of one is a plain call.
    (name,) = course.seating.seats
    why = "all have answered or failed"
    try:
        async with asyncio.timeout(course.terms.deadline_seconds):
            if name not in course.bench.out:
                await course.take(name, await attempt(course.ask, name))
    except TimeoutError:
        why = "the deadline passed"
    tally = course.decide()
    if not tally.accepted:
        raise refusal(tally, why)
    return tally
