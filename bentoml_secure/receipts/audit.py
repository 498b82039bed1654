"""The attachment "audit": an answered request, recomputed segment by segment.

Which requests are audited follows from the draw (``audit_due``), and who recomputes is
each segment's referee: neither is the entry's choice after the answer. The referee is a
party of the receipt like every other: the entry pins its evidence before it issues the
receipt, so that bundles hold its key document and evidence, and they are judged with
all the others.

1. every segment of every ``infer`` stands there once
2. whoever recomputed is the segment's referee, had no say in the answer, and may run
   the segment by its evidence
3. its statement is a vote of this round, over the inputs that the committee was given
4. the verdict is the one that commitments give, and beyond them the distance: 0 where
   the commitments are equal, else the entry's assertion
5. an answer beyond the tolerance rejects the receipt: committee and referee do not both
   answer rightly, and nothing here says which of them does
6. a segment that could not be recomputed is reported as absent, with the reason
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bentoml_secure.audit.recompute import Recomputation, Verdict
from bentoml_secure.audit.sampling import audited
from bentoml_secure.consensus.tally import printable
from bentoml_secure.digest import Digest, is_finite_number
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.attachments import Attachment, issue_attachment
from bentoml_secure.receipts.committees import draw_seed, judge_place
from bentoml_secure.receipts.judgement import Judgement, Round, verify_vote
from bentoml_secure.receipts.receipt import MAX_INFERS, MAX_SEGMENTS, Receipt
from bentoml_secure.receipts.strict import choice, fields, items, text, whole
from bentoml_secure.scenario import Scenario
from bentoml_secure.signing import Envelope, SigningKey
from bentoml_secure.statements import Statement, parse_statement_envelope

AUDIT = "audit"
SETTLE_SECONDS = 60
"""After the last segment: to sign, and to write where the receipt is kept."""

MAX_AUDIT_SECONDS = 3600
"""A deadline that never comes would leave a verdict provisional for ever."""


def audit_due(receipt: Receipt, scenario: Scenario) -> bool:
    """Tell whether a receipt's request is one that is audited.

    Args:
        receipt: Whose draw decides.
        scenario: Whose rate decides; the receipt's.
    """
    return audited(draw_seed(receipt), scenario.audit_rate)


def audit_seconds(scenario: Scenario, rounds: int) -> float:
    """Return how long an audit may take, from its beginning.

    Args:
        scenario: Of the request; each segment has its deadline.
        rounds: Segments that the request ran, over all infers.
    """
    return min(MAX_AUDIT_SECONDS, rounds * scenario.deadline_ms / 1000)


def longest_audit(scenario: Scenario, rounds: int) -> timedelta:
    """Return how long after its issue a receipt may wait for its audit.

    Args:
        scenario: Of the request; late votes have their grace before the audit.
        rounds: Segments that the request ran, over all infers.
    """
    return timedelta(
        milliseconds=scenario.grace_ms,
        seconds=audit_seconds(scenario, rounds) + SETTLE_SECONDS,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A whole request's recomputation.

    Attributes:
        receipt_id: Of the receipt.
        receipt_digest: Of the receipt.
        issued_at: When this is signed; the entry's clock.
        recomputed: Every segment that was run, in order of infer and segment.
    """

    receipt_id: str
    receipt_digest: Digest
    issued_at: str
    recomputed: tuple[Recomputation, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the predicate's ``infers``; indexes ascend, nothing stands empty."""
        infers: dict[int, list[dict[str, Any]]] = {}
        for made in sorted(self.recomputed, key=lambda r: (r.infer, r.segment)):
            infers.setdefault(made.infer, []).append(recomputation_to_json(made))
        return [{"index": i, "segments": segments} for i, segments in infers.items()]

    @classmethod
    def from_attachment(cls, attachment: Attachment) -> Audit:
        """Parse what this kind of attachment says.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form; fields
                that do not belong to the verdict; an index twice or out of order.
        """
        got = fields(attachment.content, ("infers",), what=AUDIT)
        recomputed: list[Recomputation] = []
        for entry in items(got["infers"], what=f"{AUDIT} infers", most=MAX_INFERS):
            infer = fields(entry, ("index", "segments"), what=f"{AUDIT} infer")
            index = whole(infer["index"], what=f"{AUDIT} index", low=0, high=MAX_INFERS)
            what = f"{AUDIT} infer {index}"
            segments = items(infer["segments"], what=what, most=MAX_SEGMENTS)
            recomputed += [
                recomputation_from_json(segment, index, what) for segment in segments
            ]
        audit = cls(
            receipt_id=attachment.receipt_id,
            receipt_digest=attachment.receipt_digest,
            issued_at=attachment.issued_at,
            recomputed=tuple(recomputed),
        )
        places = {(made.infer, made.segment) for made in recomputed}
        if len(places) != len(recomputed) or audit.to_json() != got["infers"]:
            raise MalformedInputError(
                f"{AUDIT}: want each infer and segment once, in order, none empty"
            )
        return audit


def recomputation_to_json(made: Recomputation) -> dict[str, Any]:
    """Return one recomputed segment, as it stands in an attachment."""
    return {
        "index": made.segment,
        "replica": made.replica,
        "verdict": made.verdict.value,
        "statement": None if made.statement is None else made.statement.to_json(),
        "distance": made.distance,
        "reason": made.reason,
    }


_SEGMENT = ("index", "replica", "verdict", "statement", "distance", "reason")


def recomputation_from_json(value: object, infer: int, what: str) -> Recomputation:
    """Parse one recomputed segment.

    Raises:
        MalformedInputError: A field is missing, unknown or of another form, or does
            not belong to the verdict.
    """
    got = fields(value, _SEGMENT, what=f"{what} segment")
    index = whole(got["index"], what=f"{what} segment index", low=0, high=MAX_SEGMENTS)
    what = f"{what} segment {index}"
    verdict = Verdict(choice(got["verdict"], tuple(Verdict), what=f"{what} verdict"))
    replica = text(got["replica"], what=f"{what} replica")
    statement, distance, reason = got["statement"], got["distance"], got["reason"]
    if verdict is Verdict.ABSENT:
        said = text(reason, what=f"{what} reason")
        if printable(said) != said:
            raise MalformedInputError(f"{what} reason: got {len(said)} characters")
        if statement is not None or distance is not None:
            raise MalformedInputError(
                f"{what}: want no statement and no distance where the verdict is absent"
            )
    else:
        if reason is not None:
            raise MalformedInputError(f"{what} reason: want null beside an answer")
        if distance is not None and not (is_finite_number(distance) and distance >= 0):
            raise MalformedInputError(
                f"{what} distance: got {distance!r:.40}, want a number from 0, or null"
            )
        statement = parse_statement_envelope(statement)
    return Recomputation(
        infer=infer,
        segment=index,
        replica=replica,
        verdict=verdict,
        statement=statement,
        distance=distance,
        reason=reason,
    )


def issue_audit(audit: Audit, key: SigningKey) -> Envelope:
    """Sign what recomputing a request came to, with the receipt's key."""
    return issue_attachment(
        Attachment(
            kind=AUDIT,
            receipt_digest=audit.receipt_digest,
            receipt_id=audit.receipt_id,
            issued_at=audit.issued_at,
            content={"infers": audit.to_json()},
        ),
        key,
    )


def judge(attachment: Attachment, judgement: Judgement) -> None:
    """Judge an audit against its receipt; see the module's rules.

    Raises:
        MalformedInputError: Not of this kind's form.
    """
    audit = Audit.from_attachment(attachment)
    found = {(made.infer, made.segment): made for made in audit.recomputed}
    judgement.report.require(
        f"{AUDIT} segments", _listed(found), _listed(judgement.rounds)
    )
    for place, made in found.items():
        judgement.report.audited.append(
            {
                "infer": made.infer,
                "segment": made.segment,
                "referee": made.replica,
                "verdict": made.verdict.value,
                "distance": made.distance,
            }
        )
        if (round_ := judgement.rounds.get(place)) is not None:
            _judge_segment(judgement, round_, made)


def _judge_segment(judgement: Judgement, round_: Round, made: Recomputation) -> None:
    report = judgement.report
    where = f"{AUDIT} infer {round_.infer} segment {round_.index}"
    if (topology := judgement.case.topology) is not None:
        referee = topology.referee_name(round_.index)
        report.require(f"{where} replica", made.replica, referee or "no referee")
    if made.statement is None:
        reason = str(made.reason)
        report.miss(round_.infer, round_.index, made.replica, reason, AUDIT)
        return
    if not round_.tally.accepted:
        # Its own ruling is what was served: it cannot bear itself out.
        report.add(f"{where} replica", made.replica, "nobody: the referee decided it")
    judge_place(judgement, round_, made.replica, where, asked=True)
    statement = verify_vote(judgement, round_, made.replica, made.statement, where)
    if statement is not None:
        _judge_answer(judgement, round_, made, statement, where)


def _judge_answer(
    judgement: Judgement,
    round_: Round,
    made: Recomputation,
    statement: Statement,
    where: str,
) -> None:
    report, distance = judgement.report, made.distance
    same = statement.outputs == round_.agreed
    if same and distance != 0:
        want = "0: its commitments are those of the answer served"
        report.add(f"{where} distance", distance, want)
    agrees = same or (distance is not None and distance <= round_.tally.tolerance)
    report.require(
        f"{where} verdict",
        made.verdict.value,
        (Verdict.AGREES if agrees else Verdict.DIFFERS).value,
    )
    if not agrees:
        apart = "that cannot be compared" if distance is None else f"{distance:g} away"
        report.add(
            f"{where} answer",
            f"one of {made.replica} {apart}",
            f"within {round_.tally.tolerance:g} of the answer served",
        )


def _listed(places: Mapping[tuple[int, int], object]) -> str:
    return ", ".join(f"{infer}.{segment}" for infer, segment in sorted(places))
