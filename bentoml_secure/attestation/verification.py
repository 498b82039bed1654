"""One key document, its evidence and a policy: verify, bind, appraise.

The entry does this for its runners, a client for the entry, and whoever checks a
receipt for all of them.

A GPU's evidence stands beside a CPU's, never alone: the CPU's covers its bytes, and it
covers a nonce that only this key document has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import (
    GPU_KINDS,
    AttestationResult,
    Evidence,
    UncheckedField,
    VerifiedClaims,
    format_seconds,
)
from bentoml_secure.attestation.key_document import (
    KeyDocument,
    gpu_nonce,
    report_data,
)
from bentoml_secure.attestation.reference_values import one_of
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.errors import Finding, PolicyRejected

_ANCHORS = frozenset({"cpak", "enrolment"})
"""Trust anchors that the sender brings along.

A relying party who knows where a file comes from may leave them unlisted. Here it is
the sender's, who would vouch for itself.
"""


class _Judged(NamedTuple):
    prefix: str
    claims: VerifiedClaims
    report_data: bytes


def verify_key_document(
    document: KeyDocument,
    evidence: Evidence,
    endorsements: Sequence[bytes],
    policy: AppraisalPolicy,
    *,
    nonce: bytes,
    now: datetime,
    nonce_issued_at: datetime | None,
    gpu: Evidence | None = None,
) -> AttestationResult:
    """Return what an acceptable machine says of a key document.

    The result says nothing of the role, segment, plan or configuration that the
    document names: they are authentic now, and the caller compares them.

    Args:
        document: As received.
        evidence: As received with it: a CPU's.
        endorsements: As received or fetched, any order.
        policy: The relying party's.
        nonce: The 32 bytes that the evidence was asked for with.
        now: The time to judge for, with a time zone.
        nonce_issued_at: When the nonce was drawn, where that is known.
        gpu: Evidence of the GPU beside the CPU, as received.

    Raises:
        MalformedInputError: Evidence that does not parse.
        AttestationError: Evidence that is not authentic.
        PolicyRejected: Evidence that is not acceptable, of other keys or another
            nonce, or a document that has ended; ``findings`` lists all, those of the
            GPU as ``gpu.*``.
        MissingEndorsementError: Evidence that cannot be judged with these endorsements.
    """
    # 1. Kinds that are not allowed: their parsers see no byte.
    if findings := _kind_findings(evidence, gpu, policy):
        raise PolicyRejected(f"{evidence.kind} evidence is not accepted", findings)
    # 2. Authentic?
    claims = load_tee(evidence.kind).verify(evidence, endorsements, now=now)
    gpu_claims = None
    if gpu is not None:
        gpu_claims = load_tee(gpu.kind).verify(gpu, endorsements, now=now)
    # 3. About this document, and acceptable?
    covered = report_data(nonce, document, None if gpu is None else gpu.blob)
    judged = [_Judged("", claims, covered)]
    if gpu_claims is not None:
        judged.append(_Judged("gpu.", gpu_claims, gpu_nonce(nonce, document)))
    findings = _document_findings(document, claims, now)
    results = []
    for each in judged:
        try:
            result = appraise(
                each.claims,
                policy,
                report_data=each.report_data,
                now=now,
                nonce_issued_at=nonce_issued_at,
                beside_gpu=gpu is not None,
            )
        except PolicyRejected as rejection:
            findings += _prefixed(each.prefix, rejection.findings)
        else:
            findings += _prefixed(each.prefix, _anchor_findings(result))
            results.append(result)
    if findings:
        raise PolicyRejected(
            f"key document of {document.role} {document.service}", findings
        )
    return results[0] if gpu is None else _joined(*results)


def _kind_findings(
    evidence: Evidence, gpu: Evidence | None, policy: AppraisalPolicy
) -> list[Finding]:
    findings = []
    if evidence.kind in GPU_KINDS:
        # A device says nothing of the process that shows its evidence.
        findings.append(Finding("kind", evidence.kind, "a CPU's, and a GPU's beside"))
    elif evidence.kind not in policy.allow:
        findings.append(Finding("kind", evidence.kind, one_of(policy.allow)))
    if gpu is not None:
        allowed = tuple(sorted(GPU_KINDS & set(policy.allow)))
        if gpu.kind not in allowed:
            want = one_of(allowed) if allowed else "no GPU's evidence"
            findings.append(Finding("gpu.kind", gpu.kind, want))
    return findings


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


def _anchor_findings(result: AttestationResult) -> list[Finding]:
    return [
        Finding(left.field, "the sender's own", f"one that [{result.kind}] lists")
        for left in result.unchecked
        if left.field in _ANCHORS
    ]


def _prefixed(prefix: str, findings: Sequence[Finding]) -> list[Finding]:
    return [replace(finding, field=prefix + finding.field) for finding in findings]


def _joined(cpu: AttestationResult, gpu: AttestationResult) -> AttestationResult:
    return replace(
        cpu,
        gpu=gpu.claims,
        unchecked=cpu.unchecked
        + tuple(
            UncheckedField(field=f"gpu.{left.field}", reason=left.reason)
            for left in gpu.unchecked
        ),
        expires_at=min(cpu.expires_at, gpu.expires_at),
    )
