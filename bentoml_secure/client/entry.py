"""The entry's evidence: whom the caller talks to, before it says anything."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime, timedelta

from bentoml_secure.attestation.evidence import (
    AttestationResult,
    EvidenceRecord,
)
from bentoml_secure.attestation.key_document import KeyDocument, Role
from bentoml_secure.attestation.reference_values import References, compare_reference
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.client.exchange import Exchange, Reply, require_success
from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import Finding, MalformedInputError, PolicyRejected
from bentoml_secure.receipts.trust import Trust

ATTEST = "/bsec/v1/attest"
MAX_ATTESTATION_BYTES = 16 << 20

# The entry puts evidence into receipts for half of its maximum age; asked for anew at
# a quarter, what a call relies on cannot age out while the call is served.
_RENEWALS_PER_AGE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedEntry:
    """An entry that has shown acceptable evidence over the caller's nonce.

    Attributes:
        document: Its key document.
        nonce: 32 bytes, drawn by the caller.
        result: Of the appraisal.
        renew_at: The caller's clock. After that it is asked again.
    """

    document: KeyDocument
    nonce: bytes
    result: AttestationResult
    renew_at: datetime


def attest_flow(
    trust: Trust, nonce: bytes, now: datetime
) -> Generator[Exchange, Reply, AttestedEntry]:
    """Ask the entry for evidence and judge it.

    Args:
        trust: The caller's.
        nonce: 32 fresh bytes.
        now: The caller's clock, from before the request is sent.

    Raises:
        MalformedInputError: What came back does not parse.
        AttestationError: Evidence that is not authentic.
        PolicyRejected: Evidence, role, plan, package or configuration that the trust
            file does not accept; ``findings`` lists all.
        UnavailableError: The entry does not answer.
    """
    reply = yield Exchange(
        method="POST",
        path=ATTEST,
        headers={"content-type": "application/json"},
        body=canonical_json({"nonce": nonce.hex()}),
        max_bytes=MAX_ATTESTATION_BYTES,
    )
    require_success(reply, ATTEST)
    answer = parse_json(reply.body, what="attestation", max_bytes=MAX_ATTESTATION_BYTES)
    if not isinstance(answer, dict) or "key_document" not in answer:
        raise MalformedInputError("attestation: field 'key_document' is missing")
    document = KeyDocument.from_json(answer.pop("key_document"))
    record = EvidenceRecord.from_json(answer)
    result = verify_key_document(
        document,
        record.evidence,
        record.endorsements,
        trust.policy,
        nonce=nonce,
        now=now,
        nonce_issued_at=now,
        gpu=record.gpu,
    )
    if findings := _document_findings(document, trust):
        raise PolicyRejected(
            f"entry {document.service!r} is authentic but not the one trusted", findings
        )
    age = timedelta(seconds=trust.policy.max_age_seconds)
    return AttestedEntry(
        document=document,
        nonce=nonce,
        result=result,
        renew_at=min(
            now + age / _RENEWALS_PER_AGE, result.expires_at, document.not_after
        ),
    )


def _document_findings(document: KeyDocument, trust: Trust) -> list[Finding]:
    findings = []
    if document.role is not Role.ENTRY:
        findings.append(Finding("role", document.role, Role.ENTRY))
    listed: tuple[tuple[str, str | None, References], ...] = (
        ("plan", document.plan, trust.plan_digests),
        ("config_digest", document.config_digest, trust.config_digests),
        ("package", document.package, trust.package_digests),
    )
    for name, got, references in listed:
        # What the trust file leaves unchecked, the verdict on the receipt shows.
        findings += compare_reference(name, str(got), references).findings
    return findings
