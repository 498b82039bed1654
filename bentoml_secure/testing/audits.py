"""Audits of receipts in memory, honest or not.

For a draft of a deployment that has an ``audit_rate``. ``recompute_draft`` says what
the referees make of it, ``attach_audit`` signs receipt and audit; in between, change
what you like with ``dataclasses.replace``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from bentoml_secure.audit.recompute import Recomputation, Verdict
from bentoml_secure.digest import Digest, Scheme
from bentoml_secure.receipts.audit import AUDIT, Audit, issue_audit
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.receipt import RequiredAttachment
from bentoml_secure.signing import Envelope, SigningKey
from bentoml_secure.statements import (
    Statement,
    format_time,
    sign_statement,
    verify_statement,
)
from bentoml_secure.testing.receipts import Behaviour, Draft

AUDIT_SECONDS = 8

_DISTANCES = {Behaviour.HONEST: 0.0, Behaviour.NEAR: 1e-6, Behaviour.LIAR: 0.5}


def require_audit(draft: Draft) -> Draft:
    """Return the draft with the audit that its receipt must have."""
    issued = draft.deployment.now + timedelta(seconds=1)
    due = RequiredAttachment(
        kind=AUDIT, deadline=format_time(issued + timedelta(seconds=AUDIT_SECONDS))
    )
    attachments = (*draft.receipt.attachments, due)
    return replace(draft, receipt=replace(draft.receipt, attachments=attachments))


def recompute_draft(
    draft: Draft, behaviours: Mapping[tuple[int, int], Behaviour] | None = None
) -> tuple[Recomputation, ...]:
    """Return what each segment's referee makes of a draft.

    Args:
        draft: Of a deployment with referees; every segment agreed.
        behaviours: By (infer, segment): honest where left out, near, liar, absent.
    """
    acting = behaviours or {}
    return tuple(
        _recompute(
            draft, infer.index, index, acting.get((infer.index, index), "honest")
        )
        for infer in draft.receipt.infers
        for index in range(len(infer.segments))
    )


def _recompute(draft: Draft, infer: int, index: int, acting: str) -> Recomputation:
    referee = draft.deployment.referees[index]
    behaviour = Behaviour(acting)
    if behaviour is Behaviour.ABSENT:
        return Recomputation(
            infer=infer,
            segment=index,
            replica=referee.name,
            verdict=Verdict.ABSENT,
            reason="connection refused",
        )
    said = referee_statement(draft, infer, index, behaviour)
    lied = behaviour is Behaviour.LIAR
    return Recomputation(
        infer=infer,
        segment=index,
        replica=referee.name,
        verdict=Verdict.DIFFERS if lied else Verdict.AGREES,
        statement=sign_statement(referee.signing, said),
        distance=_DISTANCES[behaviour],
    )


def referee_statement(
    draft: Draft, infer: int, index: int, behaviour: Behaviour = Behaviour.HONEST
) -> Statement:
    """Return what a referee says of one segment, to be signed."""
    record = draft.receipt.infers[infer].segments[index]
    served = str(record.tally.medoid)
    (runner,) = [p for p in draft.deployment.processes if p.name == served]
    voted = verify_statement(record.statements[served], runner.signing.public)
    exchange = hashlib.sha256(f"audit {infer} {index} {voted.exchange_id}".encode())
    outputs = dict(voted.outputs)
    if behaviour is not Behaviour.HONEST:
        outputs = {name: _other(outputs[name]) for name in outputs}
    return replace(
        voted,
        exchange_id=exchange.hexdigest()[:32],
        key_document=draft.deployment.referees[index].document.digest,
        outputs=outputs,
    )


def _other(commitment: Digest) -> Digest:
    other = hashlib.sha256(commitment.encode()).hexdigest()
    return Digest(f"{Scheme.of(commitment).tensor}:{other}")


def sign_audit(
    draft: Draft,
    receipt: Envelope,
    recomputed: Sequence[Recomputation],
    key: SigningKey | None = None,
) -> Envelope:
    """Sign an audit of a signed receipt, with the entry's key where none is given."""
    audit = Audit(
        receipt_id=draft.receipt.receipt_id,
        receipt_digest=receipt.payload_digest,
        issued_at=format_time(draft.deployment.now + timedelta(seconds=3)),
        recomputed=tuple(recomputed),
    )
    return issue_audit(audit, key or draft.deployment.entry.signing)


def attach_audit(draft: Draft, recomputed: Sequence[Recomputation]) -> Bundle:
    """Sign a draft's receipt and its audit, and return the whole bundle."""
    bundle = draft.bundle()
    audit = sign_audit(draft, bundle.receipt, recomputed)
    return replace(bundle, attachments=(*bundle.attachments, audit))
