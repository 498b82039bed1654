"""The attachment "late-votes": what became of the votes still out at the decision.

It accounts for exactly the replicas that the receipt's tallies list as pending: each
one's signed statement, with the distance of its answer from the one that was served,
or why there is none. A quorum had agreed without them; a late vote that disagrees is
the first sign of a replica gone wrong.

The distance is the entry's assertion. It is 0 where the commitments are equal; where
they differ it agrees if it is within the segment's tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bentoml_secure.consensus.tally import Absence, printable
from bentoml_secure.digest import Digest, is_finite_number
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.attachments import Attachment, issue_attachment
from bentoml_secure.receipts.receipt import MAX_INFERS, MAX_SEGMENTS
from bentoml_secure.receipts.records import MAX_REPLICAS
from bentoml_secure.receipts.rounds import Judgement, Round, verify_vote
from bentoml_secure.receipts.strict import fields, items, text, whole
from bentoml_secure.scenario import Scenario
from bentoml_secure.signing import Envelope, SigningKey
from bentoml_secure.statements import parse_statement_envelope

LATE_VOTES = "late-votes"
SETTLE_SECONDS = 60
"""After the grace ends: to sign, and to write where the receipt is kept."""


def longest_wait(scenario: Scenario) -> timedelta:
    """Return how long after its issue a receipt may wait for its late votes."""
    return timedelta(milliseconds=scenario.grace_ms, seconds=SETTLE_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LateAnswer:
    """A vote that came after the decision.

    Attributes:
        replica: Whose.
        statement: What it signed.
        distance: From the answer that was served; None if not comparable.
    """

    replica: str
    statement: Envelope
    distance: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of ``answers``."""
        return {
            "replica": self.replica,
            "statement": self.statement.to_json(),
            "distance": self.distance,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LateRound:
    """What became of one segment's pending replicas within one ``infer``."""

    answers: tuple[LateAnswer, ...]
    absent: tuple[Absence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LateVotes:
    """What became of all pending replicas of a receipt.

    Attributes:
        receipt_id: Of the receipt.
        receipt_digest: Of the receipt.
        issued_at: When this is signed; the entry's clock.
        rounds: By (infer index, segment index); none without answers and absences.
    """

    receipt_id: str
    receipt_digest: Digest
    issued_at: str
    rounds: Mapping[tuple[int, int], LateRound]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the predicate's ``infers``; indexes ascend, nothing stands empty."""
        infers: dict[int, list[dict[str, Any]]] = {}
        for (infer, segment), late in sorted(self.rounds.items()):
            if late.answers or late.absent:
                infers.setdefault(infer, []).append(
                    {
                        "index": segment,
                        "answers": [answer.to_json() for answer in late.answers],
                        "absent": [
                            {"replica": a.replica, "reason": a.reason}
                            for a in late.absent
                        ],
                    }
                )
        return [{"index": i, "segments": segments} for i, segments in infers.items()]

    @classmethod
    def from_attachment(cls, attachment: Attachment) -> LateVotes:
        """Parse what this kind of attachment says.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form; an
                index twice or out of order; a segment without anything.
        """
        got = fields(attachment.content, ("infers",), what=LATE_VOTES)
        rounds: dict[tuple[int, int], LateRound] = {}
        for entry in items(got["infers"], what=f"{LATE_VOTES} infers", most=MAX_INFERS):
            infer = fields(entry, ("index", "segments"), what=f"{LATE_VOTES} infer")
            index = whole(
                infer["index"], what=f"{LATE_VOTES} index", low=0, high=MAX_INFERS
            )
            what = f"{LATE_VOTES} infer {index}"
            for segment in items(infer["segments"], what=what, most=MAX_SEGMENTS):
                number, late = _parse_round(segment, what)
                rounds[index, number] = late
        votes = cls(
            receipt_id=attachment.receipt_id,
            receipt_digest=attachment.receipt_digest,
            issued_at=attachment.issued_at,
            rounds=rounds,
        )
        if votes.to_json() != got["infers"]:
            raise MalformedInputError(
                f"{LATE_VOTES}: want each infer and segment once, in order, none empty"
            )
        return votes


def _parse_round(value: object, what: str) -> tuple[int, LateRound]:
    got = fields(value, ("index", "answers", "absent"), what=f"{what} segment")
    index = whole(got["index"], what=f"{what} segment index", low=0, high=MAX_SEGMENTS)
    what = f"{what} segment {index}"
    answers = items(got["answers"], what=f"{what} answers", most=MAX_REPLICAS)
    absent = items(got["absent"], what=f"{what} absent", most=MAX_REPLICAS)
    return index, LateRound(
        answers=tuple(_parse_answer(answer, what) for answer in answers),
        absent=tuple(_parse_absence(absence, what) for absence in absent),
    )


def _parse_answer(value: object, what: str) -> LateAnswer:
    got = fields(value, LateAnswer.__slots__, what=f"{what} answer")
    distance = got["distance"]
    if distance is not None and not (is_finite_number(distance) and distance >= 0):
        raise MalformedInputError(
            f"{what} distance: got {distance!r:.40}, want a number from 0, or null"
        )
    return LateAnswer(
        replica=text(got["replica"], what=f"{what} replica"),
        statement=parse_statement_envelope(got["statement"]),
        distance=distance,
    )


def _parse_absence(value: object, what: str) -> Absence:
    got = fields(value, ("replica", "reason"), what=f"{what} absence")
    reason = text(got["reason"], what=f"{what} reason")
    if printable(reason) != reason:
        raise MalformedInputError(f"{what} reason: got {len(reason)} characters")
    return Absence(replica=text(got["replica"], what=f"{what} replica"), reason=reason)


def issue_late_votes(votes: LateVotes, key: SigningKey) -> Envelope:
    """Sign what became of a receipt's pending votes, with the receipt's key."""
    return issue_attachment(
        Attachment(
            kind=LATE_VOTES,
            receipt_digest=votes.receipt_digest,
            receipt_id=votes.receipt_id,
            issued_at=votes.issued_at,
            content={"infers": votes.to_json()},
        ),
        key,
    )


def judge(attachment: Attachment, judgement: Judgement) -> None:
    """Judge late votes against their receipt; see the module's rules.

    Raises:
        MalformedInputError: Not of this kind's form.
    """
    votes = LateVotes.from_attachment(attachment)
    for key in sorted(votes.rounds.keys() | judgement.rounds.keys()):
        late = votes.rounds.get(key, LateRound(answers=(), absent=()))
        round_ = judgement.rounds.get(key)
        pending = round_.tally.pending if round_ else ()
        named = [a.replica for a in late.answers] + [a.replica for a in late.absent]
        where = f"{LATE_VOTES} infer {key[0]} segment {key[1]}"
        judgement.report.require(f"{where} replicas", sorted(named), sorted(pending))
        if round_ is not None:
            _judge_round(judgement, round_, late, where)


def _judge_round(
    judgement: Judgement, round_: Round, late: LateRound, where: str
) -> None:
    report = judgement.report
    for answer in late.answers:
        name, distance = answer.replica, answer.distance
        statement = verify_vote(judgement, round_, name, answer.statement, where)
        if statement is None:
            continue
        same = statement.outputs == round_.agreed
        if same and distance != 0:
            want = "0: its commitments are those of the answer served"
            report.add(f"{where} {name} distance", distance, want)
        if not same and (distance is None or distance > round_.tally.tolerance):
            report.dissent(round_.infer, round_.index, name, LATE_VOTES)
    for absence in late.absent:
        report.miss(
            round_.infer, round_.index, absence.replica, absence.reason, LATE_VOTES
        )
