"""One segment that a referee recomputed: as attachments say it, and judged.

The attachments "audit" and "localisation" consist of these. What a referee's answer is
compared with is theirs: the answer that was served, or that of a chain's replica.
"""

from __future__ import annotations

from typing import Any

from bentoml_secure.audit.recompute import Recomputation, Verdict
from bentoml_secure.consensus.tally import printable
from bentoml_secure.digest import is_finite_number
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.committees import judge_place
from bentoml_secure.receipts.judgement import Judgement, Round, verify_vote
from bentoml_secure.receipts.receipt import MAX_SEGMENTS
from bentoml_secure.receipts.strict import choice, fields, text, whole
from bentoml_secure.statements import parse_statement_envelope

_FIELDS = ("index", "replica", "verdict", "statement", "distance", "reason")


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


def recomputation_from_json(value: object, infer: int, what: str) -> Recomputation:
    """Parse one recomputed segment.

    Raises:
        MalformedInputError: A field is missing, unknown or of another form, or does
            not belong to the verdict.
    """
    got = fields(value, _FIELDS, what=f"{what} segment")
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


def judge_referee(
    judgement: Judgement, made: Recomputation, where: str, kind: str
) -> bool:
    """Judge that the segment's referee recomputed it, and note it if nobody did.

    Args:
        judgement: Takes the findings.
        made: From an attachment.
        where: Its name in findings.
        kind: Of the attachment.

    Returns:
        Whether there is an answer to judge.
    """
    report, topology = judgement.report, judgement.case.topology
    if topology is not None:
        referee = topology.referee_name(made.segment)
        report.require(f"{where} replica", made.replica, referee or "no referee")
    if made.statement is None:
        report.miss(made.infer, made.segment, made.replica, str(made.reason), kind)
        return False
    return True


def judge_answer(
    judgement: Judgement, round_: Round, made: Recomputation, where: str, *, of: str
) -> bool:
    """Judge a referee's answer and the verdict on what it is compared with.

    Args:
        judgement: Takes the findings.
        round_: Its inputs are those that were given, its agreed outputs what the
            answer is compared with.
        made: With a statement.
        where: Its name in findings.
        of: Whose answer it is compared with, in words.

    Returns:
        Whether the two agree. They do where the referee's vote does not verify: that
        is a finding, and says nothing of anybody else.
    """
    report, distance = judgement.report, made.distance
    judge_place(judgement, round_, made.replica, where, asked=True)
    if made.statement is None:
        return True
    statement = verify_vote(judgement, round_, made.replica, made.statement, where)
    if statement is None:
        return True
    same = statement.outputs == round_.agreed
    if same and distance != 0:
        want = f"0: its commitments are those of {of}"
        report.add(f"{where} distance", distance, want)
    agrees = same or (distance is not None and distance <= round_.tally.tolerance)
    verdict = Verdict.AGREES if agrees else Verdict.DIFFERS
    report.require(f"{where} verdict", made.verdict.value, verdict.value)
    return agrees
