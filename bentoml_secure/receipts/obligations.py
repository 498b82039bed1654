"""Judging attachments: those that are there, and those that must be.

1. each is signed by the entry or whom its kind names, of a known kind, about this
   receipt by digest and id, issued between the receipt and its own deadline
2. no kind of the entry's stands twice
3. its kind's judge finds nothing
4. late votes are required if and only if votes were pending, an audit if and only if
   the draw says so, a localisation if and only if a chain dissented and there are
   referees, proofs if and only if the scenario has every request proven, an epoch if
   and only if it has some challenged, each with a deadline that the scenario explains
5. what is required and missing is late, or after its deadline a failure; proofs are
   there when every segment of every infer has one
6. who was challenged owes its proofs as if they were required, by the epoch's deadline
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta

from bentoml_secure.attestation.appraisal import CLOCK_SKEW_SECONDS
from bentoml_secure.errors import (
    MalformedInputError,
    UnknownKindError,
    VerificationError,
)
from bentoml_secure.receipts.attachments import (
    SIGNED_APART,
    Attachment,
    load_judge,
    read_attachment,
    signer_of,
    verify_attachment,
)
from bentoml_secure.receipts.audit import AUDIT, audit_due, longest_audit
from bentoml_secure.receipts.epoch import EPOCH, challenged, epoch_due, longest_epoch
from bentoml_secure.receipts.late_votes import LATE_VOTES, longest_wait
from bentoml_secure.receipts.localisation import (
    LOCALISATION,
    localisation_due,
    longest_localisation,
)
from bentoml_secure.receipts.proofs import PROOF, longest_proof, proofs_due
from bentoml_secure.receipts.rounds import Judgement
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import format_time, parse_time


def judge_attachments(judgement: Judgement) -> None:
    """Judge what the bundle has attached and what it must have; see the module."""
    case, report = judgement.case, judgement.report
    seen: Counter[str] = Counter()
    required = {entry.kind: entry.deadline for entry in case.receipt.attachments}
    # Read once and first: until when proofs may come depends on it.
    challenge = challenged(judgement)
    deadlines = required if challenge is None else {PROOF: challenge, **required}
    for index, envelope in enumerate(case.bundle.attachments):
        where = f"attachment {index}"
        kind = _judge_attachment(judgement, envelope, deadlines, where)
        seen.update([kind] if kind else [])
    for kind, count in seen.items():
        if count > 1 and kind not in SIGNED_APART:
            report.add(f"attachments {kind}", f"{count} of them", "1")
    pending = any(round_.tally.pending for round_ in judgement.rounds.values())
    for kind, due, when in (
        (LATE_VOTES, pending, "votes were pending"),
        (AUDIT, audit_due(case.receipt, case.bundle.scenario), "it is drawn for one"),
        (
            LOCALISATION,
            localisation_due(case.receipt.infers, case.bundle.scenario),
            "a chain dissented and there are referees",
        ),
        (PROOF, proofs_due(case.bundle.scenario), "every request is proven"),
        (EPOCH, epoch_due(case.bundle.scenario), "some requests are challenged"),
    ):
        if judgement.rounds and due != (kind in required):
            got = ", ".join(required) or "none"
            report.add("attachments required", got, f"{kind} if and only if {when}")
    named = "one" if epoch_due(case.bundle.scenario) else "none"
    report.require("epoch named", "one" if case.receipt.epoch else "none", named)
    there = seen.keys() - {PROOF}
    if judgement.proofs.keys() >= set(judgement.places):
        there |= {PROOF}
    for kind, deadline in required.items():
        _judge_obligation(judgement, kind, deadline, there=kind in there)
    if challenge is not None and PROOF not in required:
        _judge_presence(judgement, PROOF, challenge, there=PROOF in there)


def _judge_attachment(
    judgement: Judgement, envelope: Envelope, deadlines: Mapping[str, str], where: str
) -> str | None:
    case, report = judgement.case, judgement.report
    try:
        key = signer_of(read_attachment(envelope)) or case.keys.get(
            case.receipt.service
        )
        if key is None:
            report.add(where, "no key document of the entry", "one")
            return None
        attachment = verify_attachment(envelope, key)
        where = f"{where} ({attachment.kind})"
        report.require(
            f"{where} subject", attachment.receipt_digest, case.receipt_digest
        )
        report.require(
            f"{where} receipt_id", attachment.receipt_id, case.receipt.receipt_id
        )
        latest = deadlines.get(attachment.kind, attachment.issued_at)
        _judge_time(judgement, attachment, latest, where)
        load_judge(attachment.kind)(attachment, judgement)
    except (VerificationError, MalformedInputError, UnknownKindError) as error:
        report.add(where, str(error), "an attachment to this receipt by the entry")
        return None
    return attachment.kind


def _judge_time(
    judgement: Judgement, attachment: Attachment, latest: str, where: str
) -> None:
    case = judgement.case
    earliest = case.receipt.issued_at
    if attachment.kind in SIGNED_APART:
        # By another clock; and what was not signed yet would choose its evidence's age.
        skew = timedelta(seconds=CLOCK_SKEW_SECONDS)
        earliest = format_time(parse_time(earliest, what="issued_at") - skew)
        latest = min(latest, format_time(case.now + skew))
    # The format has one length, so text sorts as time does.
    if not earliest <= attachment.issued_at <= latest:
        want = f"from {earliest} to {latest}"
        judgement.report.add(f"{where} issued_at", attachment.issued_at, want)


def _judge_obligation(
    judgement: Judgement, kind: str, deadline: str, *, there: bool
) -> None:
    case, report = judgement.case, judgement.report
    issued = parse_time(case.receipt.issued_at, what="issued_at")
    ends = parse_time(deadline, what="deadline")
    try:
        load_judge(kind)
    except UnknownKindError as error:
        report.add(f"attachments required {kind}", str(error), "a known kind")
    # A deadline that never comes would leave the verdict provisional for ever.
    longest = {
        LATE_VOTES: longest_wait(case.bundle.scenario),
        AUDIT: longest_audit(case.bundle.scenario, len(judgement.rounds)),
        LOCALISATION: longest_localisation(case.receipt, case.bundle.scenario),
        PROOF: longest_proof(case.bundle.scenario),
        EPOCH: longest_epoch(case.bundle.scenario),
    }.get(kind)
    if longest is not None and not timedelta(0) <= ends - issued <= longest:
        want = f"up to {longest.total_seconds():g} s after the issue"
        report.add(f"attachments {kind} deadline", deadline, want)
    _judge_presence(judgement, kind, deadline, there=there)


def _judge_presence(
    judgement: Judgement, kind: str, deadline: str, *, there: bool
) -> None:
    if there:
        return
    if judgement.case.now <= parse_time(deadline, what="deadline"):
        judgement.report.late.append(kind)
    else:
        judgement.report.add(f"attachments {kind}", "missing", f"one by {deadline}")
