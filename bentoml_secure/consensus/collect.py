"""Asks a committee at once, and stops as soon as a quorum agrees.

Transport is the caller's: ``ask`` brings one member's answer, or raises. An answer's
vote must already be checked against its tensors and signature; here votes are compared
and nothing else is believed.

No task outlives its round. Asks still running at the decision go on in ``Round.late``
for ``grace_seconds``; in every other case they are cancelled and awaited before
``collect`` returns or raises. An ask that is cancelled must end, or it holds the round.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from bentoml_secure.consensus.quorum import (
    Absence,
    Member,
    Tally,
    Vote,
    decide,
    plan_faults,
    reachable,
    refusal,
    vote_faults,
)
from bentoml_secure.consensus.tally import printable
from bentoml_secure.errors import ConfigurationError, SecureError

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """One replica's answer: its vote, and what the caller wants kept with it."""

    vote: Vote
    value: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Late(Generic[T]):
    """What became of the replicas that were pending at the decision.

    Attributes:
        answers: By replica.
        absent: The rest: failed, or cancelled when the grace ended.
    """

    answers: Mapping[str, Answer[T]]
    absent: tuple[Absence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round(Generic[T]):
    """An accepted round.

    Attributes:
        tally: As it was at the decision.
        answers: Every answer there was at the decision, by replica.
        agreed: The medoid's answer.
        late: Resolves to what the pending replicas did; None if there were none.
            Cancelling it cancels their asks.
    """

    tally: Tally
    answers: Mapping[str, Answer[T]]
    agreed: Answer[T]
    late: asyncio.Task[Late[T]] | None


Ask = Callable[[Member], Awaitable[Answer[T]]]
_Task = asyncio.Task[Answer[T] | Absence]


async def collect(
    committee: Sequence[Member],
    ask: Ask[T],
    *,
    distance: Callable[[T, T], float | None],
    quorum: int,
    tolerance: float,
    deadline_seconds: float,
    grace_seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Round[T]:
    """Ask every member at once and return as soon as a quorum agrees.

    Args:
        committee: In the order that breaks ties.
        ask: Brings one member's answer. What it raises makes that member absent.
        distance: Of two answers' values, as a rule gives it. Called in a thread, and
            only for answers whose commitments differ.
        quorum: More than half of the committee's count.
        tolerance: The largest distance that still agrees.
        deadline_seconds: From now; without a quorum by then the round is refused.
        grace_seconds: From the decision, for votes that are late.
        clock: Monotonic seconds.

    Raises:
        QuorumNotReached: None by the deadline, or none possible any more.
        ConfigurationError: Committee, quorum, tolerance or a time out of range.
    """
    # Before anyone is asked. NaN is refused too.
    for name, seconds in (("deadline", deadline_seconds), ("grace", grace_seconds)):
        if not seconds >= 0:
            raise ConfigurationError(f"{name}: got {seconds} seconds, want 0 or more")
    if faults := plan_faults(committee, quorum, tolerance):
        raise ConfigurationError("; ".join(map(str, faults)))
    state = _State(tuple(committee), quorum, tolerance, distance)
    if len(committee) == 1:
        return await _ask_one(state, ask, deadline_seconds)
    deadline = clock() + deadline_seconds
    tasks: dict[_Task[T], Member] = {
        asyncio.create_task(_attempt(ask, member)): member for member in committee
    }
    late = None
    try:
        tally = None
        while tally is None:
            done, _ = await asyncio.wait(
                tasks,
                timeout=max(0.0, deadline - clock()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                del tasks[task]
                state.take(task.result())
            tally = await state.verdict(
                len(tasks), "the deadline passed" if clock() >= deadline else None
            )
        if tasks:
            late = asyncio.create_task(_collect_late(dict(tasks), grace_seconds))
            # A task cancelled before its first step never gets to its own cleanup.
            late.add_done_callback(lambda _: [task.cancel() for task in tasks])
        return state.round(tally, late)
    finally:
        if late is None:
            await _cancel(tasks)


@dataclass(slots=True)
class _State(Generic[T]):
    """What came in so far, and the distances already known."""

    committee: tuple[Member, ...]
    quorum: int
    tolerance: float
    distance: Callable[[T, T], float | None]
    answers: dict[str, Answer[T]] = field(default_factory=dict)
    absent: list[Absence] = field(default_factory=list)
    known: dict[frozenset[object], float | None] = field(default_factory=dict)

    def take(self, outcome: Answer[T] | Absence) -> None:
        if isinstance(outcome, Absence):
            self.absent.append(outcome)
        else:
            self.answers[outcome.vote.replica] = outcome

    def decide(self) -> Tally:
        return decide(
            self.committee,
            [answer.vote for answer in self.answers.values()],
            self.absent,
            quorum=self.quorum,
            tolerance=self.tolerance,
            distances=self.measure,
        )

    def measure(self, left: str, right: str) -> float | None:
        a, b = self.answers[left], self.answers[right]
        # By commitments: a group's first member changes while votes come in.
        pair = frozenset((a.vote.commitments, b.vote.commitments))
        if pair not in self.known:
            self.known[pair] = self.distance(a.value, b.value)
        return self.known[pair]

    async def verdict(self, pending: int, ended: str | None) -> Tally | None:
        """Return an accepted tally, or None while waiting may still help.

        Raises:
            QuorumNotReached: It cannot help any more.
        """
        hopeful = len(self.answers) + pending >= self.quorum
        if hopeful and len(self.answers) < self.quorum and ended is None:
            return None
        alike = len({a.vote.commitments for a in self.answers.values()}) < 2
        # Distances of large tensors take milliseconds: others are served meanwhile.
        tally = self.decide() if alike else await asyncio.to_thread(self.decide)
        if tally.accepted:
            return tally
        if not pending:
            raise refusal(tally, "all have answered or failed")
        if ended is not None:
            raise refusal(tally, ended)
        if not reachable(tally):
            raise refusal(tally, "none is possible any more")
        return None

    def round(self, tally: Tally, late: asyncio.Task[Late[T]] | None) -> Round[T]:
        agreed = self.answers[str(tally.medoid)]
        return Round(tally=tally, answers=dict(self.answers), agreed=agreed, late=late)


async def _ask_one(state: _State[T], ask: Ask[T], deadline_seconds: float) -> Round[T]:
    # No task of its own: a committee of one is a plain call.
    why = "all have answered or failed"
    try:
        async with asyncio.timeout(deadline_seconds):
            state.take(await _attempt(ask, state.committee[0]))
    except TimeoutError:
        why = "the deadline passed"
    tally = state.decide()
    if not tally.accepted:
        raise refusal(tally, why)
    return state.round(tally, None)


async def _attempt(ask: Ask[T], member: Member) -> Answer[T] | Absence:
    """Return the answer, or why there is none; nothing but cancellation is raised."""
    try:
        answer = await ask(member)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return _absence(member, "the ask was cancelled")
    except TimeoutError:
        return _absence(member, "timed out")
    except SecureError as error:
        # Without its remedy: that is for the operator, not for a receipt.
        return _absence(member, f"{type(error).__name__}: {error.args[0]}")
    except OSError as error:
        return _absence(member, f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 - one replica's failure is survivable
        _LOG.exception("asking %s failed unexpectedly", member.replica)
        return _absence(member, f"failed unexpectedly: {type(error).__name__}")
    if answer.vote.replica != member.replica:
        return _absence(member, f"answered as {answer.vote.replica!r}")
    if faults := vote_faults(answer.vote):
        return _absence(member, str(faults[0]))
    return answer


async def _collect_late(
    tasks: Mapping[_Task[T], Member], grace_seconds: float
) -> Late[T]:
    try:
        await asyncio.wait(tasks, timeout=grace_seconds)
    finally:
        await _cancel(tasks)
    answers: dict[str, Answer[T]] = {}
    absent = []
    for task, member in tasks.items():
        if task.cancelled():
            reason = f"no answer within {grace_seconds:g} s of the decision"
            absent.append(_absence(member, reason))
        elif isinstance(outcome := task.result(), Absence):
            absent.append(outcome)
        else:
            answers[member.replica] = outcome
    return Late(answers=answers, absent=tuple(absent))


async def _cancel(tasks: Iterable[_Task[T]]) -> None:
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)


def _absence(member: Member, reason: str) -> Absence:
    return Absence(replica=member.replica, reason=printable(reason))
