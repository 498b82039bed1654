"""Judging what the other end of a handshake shows: its evidence, under a policy."""

from __future__ import annotations

from datetime import datetime

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.endorsement_folder import endorsed
from bentoml_secure.attestation.evidence import AttestationResult, Endorsements
from bentoml_secure.attestation.key_document import KeyDocument, Role
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.errors import AttestationError, Finding
from bentoml_secure.session.keys import Shown


def judge(
    shown: Shown,
    policy: AppraisalPolicy,
    *,
    now: datetime,
    endorsements: Endorsements = (),
) -> AttestationResult:
    """Return what a policy accepts of shown evidence.

    Args:
        shown: By the other end.
        policy: The relying party's.
        now: The time, with a time zone.
        endorsements: The relying party's own, beside those that were shown.

    Raises:
        AttestationError: There is none, or it is not authentic.
        PolicyRejected: It is not acceptable; ``findings`` lists all.
    """
    document, record = shown.document, shown.record
    if record is None:
        raise AttestationError(
            f"{document.role} {document.service}: got no evidence, want some"
        )
    return verify_key_document(
        document,
        record.evidence,
        endorsed(record, endorsements).endorsements,
        policy,
        nonce=shown.nonce,
        now=now,
        nonce_issued_at=shown.nonce_issued_at,
        gpu=record.gpu,
    )


def require_same_deployment(got: KeyDocument, own: KeyDocument, *, role: Role) -> None:
    """Refuse a key document of another role, configuration, plan or package.

    Args:
        got: The other end's.
        own: This end's.
        role: That the other end must have.

    Raises:
        AttestationError: Lists every field that differs.
    """
    findings = [
        Finding(f"{got.role} {got.service} {field}", str(found), str(want))
        for field, found, want in (
            ("role", got.role, role),
            ("plan", got.plan, own.plan),
            ("config_digest", got.config_digest, own.config_digest),
            ("package", got.package, own.package),
        )
        if found != want
    ]
    if findings:
        raise AttestationError("; ".join(map(str, findings)))
