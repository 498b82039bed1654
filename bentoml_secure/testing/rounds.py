"""Rounds of a request in memory: committees that are drawn, asked and counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bentoml_secure.consensus.quorum import decide
from bentoml_secure.consensus.reputation import capped
from bentoml_secure.consensus.seating import ESCALATION_STEP, Seating, take_seats
from bentoml_secure.consensus.tally import Absence, Member, Tally, Vote
from bentoml_secure.receipts.commitments import Revealed
from bentoml_secure.receipts.late_votes import LateAnswer, LateRound
from bentoml_secure.receipts.records import RefereeRecord, SegmentRecord
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import verify_statement
from bentoml_secure.tensors import Array
from bentoml_secure.testing.request import (
    NO_ANSWER,
    VOTING,
    Behaviour,
    Request,
    apart,
    compute,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RanRound:
    """One segment's round.

    Attributes:
        record: As it stands in the receipt.
        agreed: What was served.
        late: What became of the votes that were pending; None if there were none.
    """

    record: SegmentRecord
    agreed: Mapping[str, Array]
    late: LateRound | None


def run_round(
    request: Request, infer: int, number: int, given: Mapping[str, Array]
) -> RanRound:
    """Ask a segment's committee, escalate and ask the referee as the scenario has it.

    Raises:
        ValueError: No quorum, and nobody decided in its place.
    """
    round_ = _Round(request, infer, number, given)
    seating, tally = round_.count()
    ruling = None
    if tally.medoid is not None:
        agreed = round_.answers[tally.medoid]
    else:
        ruling, agreed = round_.rule(tally)
    seats = [member.replica for member in tally.committee]
    voters = [name for name in seats if round_.acting[name] in VOTING]
    statements = {name: round_.statements[name] for name in voters}
    record = SegmentRecord(
        segment=round_.segment.identity,
        weights=request.weights_of(number),
        skips=tuple(Absence(replica=n, reason=NO_ANSWER) for n in seating.skips),
        tally=tally,
        statements=statements,
        commitments=round_.reveal(statements),
        referee=ruling,
    )
    return RanRound(record=record, agreed=agreed, late=round_.late(tally, agreed))


class _Round:
    def __init__(
        self, request: Request, infer: int, number: int, given: Mapping[str, Array]
    ) -> None:
        self.request = request
        self.place = (infer, number)
        self.given = given
        self.segment = request.deployment.plan.segments[number]
        self.acting = request.acting(infer, number)
        self.runners = {r.name: r for r in request.deployment.runners[number]}
        self.answers = {name: self._answer(b) for name, b in self.acting.items()}
        self.statements = {
            name: request.state(runner, self.place, given, self.answers[name])
            for name, runner in self.runners.items()
        }

    def _answer(self, behaviour: Behaviour) -> dict[str, Array]:
        made = compute(self.given, behaviour)
        return {spec.name: made for spec in self.segment.outputs}

    def count(self) -> tuple[Seating, Tally]:
        """Count the first committee with a quorum, or the largest one."""
        scenario = self.request.scenario
        for more in range(scenario.escalation + 1):
            seating = self._seat(scenario.replicas + ESCALATION_STEP * more)
            tally = self._tally(seating, scenario.quorum + more)
            if tally.accepted:
                break
        return seating, tally

    def _seat(self, size: int) -> Seating:
        return take_seats(
            self.request.order(*self.place),
            size,
            voice=self.request.voice,
            out=[n for n, b in self.acting.items() if b is Behaviour.ABSENT],
            spares=self.request.scenario.spares,
        )

    def _tally(self, seating: Seating, quorum: int) -> Tally:
        request, drawn = self.request, self.request.weights_of(self.place[1])
        weights = capped(
            {name: drawn[name] for name in seating.seats},
            {name: request.deployment.voice(name) for name in seating.seats},
        )
        return decide(
            [
                Member(replica=name, weight=weights[name], voice=request.voice(name))
                for name in seating.seats
            ],
            [self._vote(n) for n in seating.seats if self.acting[n] in VOTING],
            [
                Absence(replica=name, reason=NO_ANSWER)
                for name in seating.seats
                if self.acting[name] is Behaviour.ABSENT
            ],
            quorum=quorum,
            tolerance=self.segment.tolerance,
            distances=lambda a, b: apart(self.answers[a], self.answers[b]),
        )

    def _vote(self, name: str) -> Vote:
        committed = self.request.commit(self.place[0], self.answers[name])
        return Vote(replica=name, commitments=tuple(sorted(committed.items())))

    def rule(self, tally: Tally) -> tuple[RefereeRecord, dict[str, Array]]:
        """Return the referee's ruling, and what it served."""
        deployment = self.request.deployment
        behaviour = self.request.referees.get(self.place, Behaviour.HONEST)
        if not self.request.scenario.referee or behaviour not in VOTING:
            raise ValueError("no quorum: there is no receipt to draft")
        referee = deployment.referees[self.place[1]]
        agreed = self._answer(behaviour)
        ruling = RefereeRecord(
            replica=referee.name,
            statement=self.request.state(referee, self.place, self.given, agreed),
            distances={
                group[0]: apart(self.answers[group[0]], agreed)
                for group in tally.groups
            },
        )
        return ruling, agreed

    def reveal(self, statements: Mapping[str, Envelope]) -> dict[str, Revealed]:
        """Return what the voters had committed to, where the scenario asks for it."""
        if not self.request.scenario.commit_reveal:
            return {}
        return {
            name: self.request.reveal(
                self.runners[name],
                verify_statement(envelope, self.runners[name].signing.public),
            )
            for name, envelope in statements.items()
        }

    def late(self, tally: Tally, agreed: Mapping[str, Array]) -> LateRound | None:
        """Return what became of the votes that were pending."""
        if not tally.pending:
            return None
        lost = [n for n in tally.pending if self.acting[n] is Behaviour.LOST]
        return LateRound(
            answers=tuple(
                LateAnswer(
                    replica=name,
                    statement=self.statements[name],
                    distance=apart(self.answers[name], agreed),
                )
                for name in tally.pending
                if name not in lost
            ),
            absent=tuple(
                Absence(replica=name, reason="no answer within the grace")
                for name in lost
            ),
        )
