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

from bentoml_secure.audit.recompute import Recomputation
from bentoml_secure.audit.sampling import audited
from bentoml_secure.digest import Digest
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.attachments import Attachment, issue_attachment
from bentoml_secure.receipts.committees import draw_seed
from bentoml_secure.receipts.judgement import Judgement, Round
from bentoml_secure.receipts.receipt import MAX_INFERS, MAX_SEGMENTS, Receipt
from bentoml_secure.receipts.recomputations import (
    judge_answer,
    judge_referee,
    recomputation_from_json,
    recomputation_to_json,
)
from bentoml_secure.receipts.strict import fields, items, whole
from bentoml_secure.scenario import Scenario
from bentoml_secure.signing import Envelope, SigningKey

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
    report, tolerance = judgement.report, round_.tally.tolerance
    where = f"{AUDIT} infer {round_.infer} segment {round_.index}"
    if not judge_referee(judgement, made, where, AUDIT):
        return
    if not round_.tally.accepted:
        # Its own ruling is what was served: it cannot bear itself out.
        report.add(f"{where} replica", made.replica, "nobody: the referee decided it")
    if not judge_answer(judgement, round_, made, where, of="the answer served"):
        distance = made.distance
        apart = "that cannot be compared" if distance is None else f"{distance:g} away"
        report.add(
            f"{where} answer",
            f"one of {made.replica} {apart}",
            f"within {tolerance:g} of the answer served",
        )


def _listed(places: Mapping[tuple[int, int], object]) -> str:
    return ", ".join(f"{infer}.{segment}" for infer, segment in sorted(places))
