"""One round under way: who has a seat, what came in, what was measured.

Decides nothing about time; ``collect.py`` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from bentoml_secure.consensus.asks import Answer, Ask, Asks, Late, absence
from bentoml_secure.consensus.quorum import Tally, decide
from bentoml_secure.consensus.seating import ESCALATION_STEP, Bench
from bentoml_secure.consensus.tally import Absence, Member

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a round has to come to, and by when.

    Attributes:
        size: Seats of the committee.
        quorum: More than half of them.
        tolerance: The largest distance that still agrees.
        deadline_seconds: From the start; without a quorum by then it is refused.
        grace_seconds: From the decision, for votes that are late.
        escalation: How often two more replicas may be asked.
        hedge_seconds: When a spare is asked beside who is slow; None: never.
    """

    size: int
    quorum: int
    tolerance: float
    deadline_seconds: float
    grace_seconds: float
    escalation: int = 0
    hedge_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling(Generic[T]):
    """A referee's answer where no quorum agreed.

    Attributes:
        answer: What is served.
        distances: Of each group of the tally from it, by the group's first member;
            None where they cannot be compared.
    """

    answer: Answer[T]
    distances: Mapping[str, float | None]

    def wrong(self, tally: Tally) -> tuple[str, ...]:
        """Return who answered otherwise than the referee, beyond the tolerance."""
        return tuple(
            name
            for group in tally.groups
            if (apart := self.distances[group[0]]) is None or apart > tally.tolerance
            for name in group
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Round(Generic[T]):
    """A round that came to an answer.

    Attributes:
        tally: As it was at the decision; accepted, or there is a ruling.
        answers: Of everybody with a seat who had answered by then, by replica.
        agreed: The medoid's answer, or the referee's.
        late: Resolves to what the pending replicas did; None if there were none.
            Cancelling it cancels their asks.
        skips: Who lost a seat to a spare, and why, in the drawn order.
        unused: Spares that were asked and got no seat.
        ruling: The referee's, if it was needed.
    """

    tally: Tally
    answers: Mapping[str, Answer[T]]
    agreed: Answer[T]
    late: asyncio.Task[Late[T]] | None
    skips: tuple[Absence, ...] = ()
    unused: tuple[str, ...] = ()
    ruling: Ruling[T] | None = None


class Course(Generic[T]):
    """One round under way: who has a seat, what came in, what was measured."""

    def __init__(
        self,
        bench: Bench,
        ask: Ask[T],
        distance: Callable[[T, T], float | None],
        terms: Terms,
        share: Callable[[tuple[Member, ...]], tuple[Member, ...]],
    ) -> None:
        self.bench = bench
        self.ask = ask
        self.asks: Asks[T] = Asks(ask)
        self.terms = terms
        self.escalated = 0
        self.seating = bench.seat(terms.size, {})
        self.answers: dict[str, Answer[T]] = {}
        self.gone: dict[str, str] = {}
        self._asked: set[str] = set()
        self._distance = distance
        self._share = share
        self._known: dict[frozenset[object], float | None] = {}
        # The spare that is asked beside somebody, and beside whom: one at a time.
        self._trial: dict[str, str] = {}
        # What spares without a seat answered: nobody is asked twice in a round.
        self._reserve: dict[str, Answer[T]] = {}

    @property
    def quorum(self) -> int:
        """How many have to agree by now."""
        return self.terms.quorum + self.escalated

    @property
    def committee(self) -> tuple[Member, ...]:
        """Members with a seat, weighed against one another."""
        members = self.bench.members
        return self._share(tuple(members[name] for name in self.seating.seats))

    @property
    def pending(self) -> list[str]:
        """Who has a seat and is being asked."""
        running = self.asks.running
        return [name for name in self.seating.seats if name in running]

    @property
    def unused(self) -> tuple[str, ...]:
        """Who was asked and has no seat, but for those who lost one."""
        return tuple(sorted(self._asked - {*self.seating.seats, *self.seating.skips}))

    def ask_seated(self) -> None:
        """Begin to ask everybody with a seat who was not asked yet."""
        for name in self.seating.seats:
            if name in self._reserve:
                self.answers[name] = self._reserve.pop(name)
            elif name not in self._asked and name not in self.bench.out:
                self._start(name)

    async def take(self, name: str, outcome: Answer[T] | Absence) -> None:
        """Take in what came of one ask."""
        if name not in self.seating.seats:
            await self._take_spare(name, outcome)
        elif isinstance(outcome, Absence):
            self.gone[name] = outcome.reason
            if self._reseat(self.gone):
                self.ask_seated()
        else:
            self.answers[name] = outcome

    async def _take_spare(self, name: str, outcome: Answer[T] | Absence) -> None:
        beside = self._trial.pop(name, None)
        if isinstance(outcome, Absence):
            self.gone[name] = outcome.reason
            return
        self._reserve[name] = outcome
        if beside is not None and beside in self.pending:
            await self._hand_seat(beside, name)

    async def _hand_seat(self, slow: str, spare: str) -> bool:
        reason = f"{spare} answered first, which was asked later"
        if not self._reseat({**self.gone, slow: reason}, needs=spare):
            return False
        self.gone[slow] = reason
        self.ask_seated()
        await self.asks.cancel([slow])
        return True

    async def hedge(self) -> bool:
        """Ask a spare beside the first who has not answered, if there is one.

        Returns:
            Whether one that has answered already got the seat: what was counted before
            does not hold any more.
        """
        if self.asks.running - {*self.seating.seats}:
            return False
        for slow in self.pending:
            for spare in [*self._reserve]:
                if await self._hand_seat(slow, spare):
                    return True
            other = self.bench.seat(self._size, {**self.gone, slow: ""})
            new = [name for name in other.seats if self._is_fresh(name)]
            if new and {*self.seating.seats} - {slow} <= {*other.seats}:
                self._trial[new[0]] = slow
                self._start(new[0])
                return False
        return False

    def escalate(self) -> bool:
        """Seat two more replicas and ask them; tell whether there were any."""
        if self.escalated >= self.terms.escalation:
            return False
        size = self._size + ESCALATION_STEP
        wider = self.bench.seat(size, self.gone)
        new = [name for name in wider.seats if self._is_fresh(name)]
        enough = len(wider.seats) == size and {*self.seating.seats} <= {*wider.seats}
        if not new or not enough:
            return False
        self.escalated += 1
        self.seating = wider
        self.ask_seated()
        return True

    async def settle(self) -> None:
        """Give up the spare on trial, if there is one: nobody waits for it any more."""
        await self.asks.cancel(self.asks.running - {*self.seating.seats})

    async def tally(self) -> Tally:
        """Count what came in."""
        alike = len({a.vote.commitments for a in self.answers.values()}) < 2
        # Distances of large tensors take milliseconds: others are served meanwhile.
        return self.decide() if alike else await asyncio.to_thread(self.decide)

    def decide(self) -> Tally:
        """Count what came in, here and now."""
        reasons = {**self.gone, **self.bench.out}
        seats = self.seating.seats
        return decide(
            self.committee,
            [self.answers[name].vote for name in seats if name in self.answers],
            [absence(name, reasons[name]) for name in seats if name in reasons],
            quorum=self.quorum,
            tolerance=self.terms.tolerance,
            distances=self._measure,
        )

    def judge(self, ruling: Answer[T], tally: Tally) -> Ruling[T]:
        """Measure everybody's answer against the referee's."""
        distances = {
            group[0]: self._apart(self.answers[group[0]], ruling)
            for group in tally.groups
        }
        return Ruling(answer=ruling, distances=distances)

    def conclude(self, tally: Tally, ruling: Ruling[T] | None) -> Round[T]:
        """Return the round; asks still running go on for the grace."""
        agreed = ruling.answer if ruling else self.answers[str(tally.medoid)]
        return Round(
            tally=tally,
            answers={n: a for n, a in self.answers.items() if n in self.seating.seats},
            agreed=agreed,
            late=self.asks.hand_over(self.terms.grace_seconds),
            skips=self.bench.skips(self.seating, self.gone),
            unused=self.unused,
            ruling=ruling,
        )

    @property
    def _size(self) -> int:
        return self.terms.size + ESCALATION_STEP * self.escalated

    def _start(self, name: str) -> None:
        self._asked.add(name)
        self.asks.start(name)

    def _is_fresh(self, name: str) -> bool:
        return not {name} & {*self._asked, *self.seating.seats, *self.bench.out}

    def _reseat(self, gone: Mapping[str, str], needs: str | None = None) -> bool:
        """Fill seats of those who are gone, if anybody is gained by it."""
        other = self.bench.seat(self._size, gone)
        seats = {*self.seating.seats}
        new = {*other.seats} - seats
        kept = ({*self.answers} | self.asks.running) & seats - {*gone}
        fits = kept <= {*other.seats} and (needs is None or needs in new)
        if not fits or not new - {*gone, *self.bench.out}:
            return False
        self.seating = other
        return True

    def _measure(self, left: str, right: str) -> float | None:
        return self._apart(self.answers[left], self.answers[right])

    def _apart(self, a: Answer[T], b: Answer[T]) -> float | None:
        if a.vote.commitments == b.vote.commitments:
            return 0.0
        # By commitments: a group's first member changes while votes come in.
        pair = frozenset((a.vote.commitments, b.vote.commitments))
        if pair not in self._known:
            self._known[pair] = self._distance(a.value, b.value)
        return self._known[pair]
