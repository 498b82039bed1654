"""One key document, its evidence and a policy: verify, bind, appraise.

The entry does this for its runners, a client for the entry, and whoever checks a
receipt for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import (
    AttestationResult,
    Evidence,
    VerifiedClaims,
    format_seconds,
)
from bentoml_secure.attestation.key_document import KeyDocument, report_data
from bentoml_secure.attestation.reference_values import one_of
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.errors import Finding, PolicyRejected


def verify_key_document(
    document: KeyDocument,
    evidence: Evidence,
    endorsements: Sequence[bytes],
    policy: AppraisalPolicy,
    *,
    nonce: bytes,
    now: datetime,
    nonce_issued_at: datetime | None,
    gpu_evidence: bytes | None = None,
) -> AttestationResult:
    """Return what an acceptable machine says of a key document.

    The result says nothing of the role, segment, plan or configuration that the
    document names: they are authentic now, and the caller compares them.

    Args:
        document: As received.
        evidence: As received with it.
        endorsements: As received or fetched, any order.
        policy: The relying party's.
        nonce: The 32 bytes that the evidence was asked for with.
        now: The time to judge for, with a time zone.
        nonce_issued_at: When the nonce was drawn, where that is known.
        gpu_evidence: Evidence of a GPU that the same report data covers.

    Raises:
        MalformedInputError: Evidence that does not parse.
        AttestationError: Evidence that is not authentic.
        PolicyRejected: Evidence that is not acceptable, of other keys or another
            nonce, or a document that has ended; ``findings`` lists all.
    """
    # 1. A kind that is not allowed: its parser sees no byte.
    if evidence.kind not in policy.allow:
        raise PolicyRejected(
            f"{evidence.kind} evidence is not accepted",
            [Finding("kind", evidence.kind, one_of(policy.allow))],
        )
    # 2. Authentic?
    claims = load_tee(evidence.kind).verify(evidence, endorsements, now=now)
    # 3. About this document, and acceptable?
    findings = _document_findings(document, claims, now)
    try:
        result = appraise(
            claims,
            policy,
            report_data=report_data(nonce, document, gpu_evidence),
            now=now,
            nonce_issued_at=nonce_issued_at,
        )
    except PolicyRejected as rejection:
        findings.extend(rejection.findings)
    if findings:
        raise PolicyRejected(
            f"key document of {document.role} {document.service}", findings
        )
    return result


def _document_findings(
    document: KeyDocument, claims: VerifiedClaims, now: datetime
) -> list[Finding]:
    findings = []
    if document.platform != claims.kind:
        findings.append(Finding("platform", str(document.platform), claims.kind))
    if document.not_after <= now:
        got, want = format_seconds(document.not_after), f"after {format_seconds(now)}"
        findings.append(Finding("not_after", got, want))
    return findings
