"""Evidence of TPMs made in memory, judged by a policy that accepts it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import (
    AttestationResult,
    Evidence,
    VerifiedClaims,
)
from bentoml_secure.attestation.tees.tpm import Tpm
from bentoml_secure.errors import CheckFailedError, PolicyRejected
from bentoml_secure.testing.tpm_pki import CHALLENGE, NOW, PCRS, TpmPki

PKI = TpmPki()
REPORT_DATA = CHALLENGE + bytes(32)


def verify(evidence: Evidence | None = None, now: datetime = NOW) -> VerifiedClaims:
    return Tpm().verify(evidence or PKI.evidence(), PKI.chain, now=now)


def refused(check: str, evidence: Evidence, now: datetime = NOW) -> None:
    with pytest.raises(CheckFailedError) as caught:
        verify(evidence, now)
    assert [finding.field for finding in caught.value.findings] == [check]


def table(**changes: Any) -> dict[str, Any]:
    return {
        "pcr": {str(index): [value.hex()] for index, value in PCRS.items()},
        "ek_roots": [PKI.root_digest],
        "enrolment": [PKI.authority.public.key_id],
    } | changes


def judge(
    evidence: Evidence | None = None,
    *,
    report_data: bytes = REPORT_DATA,
    nonce_issued_at: datetime | None = NOW,
    **changes: Any,
) -> AttestationResult:
    policy = AppraisalPolicy.from_table(
        {
            "version": 1,
            "max_age_seconds": 300,
            "allow": ["tpm"],
            "tpm": table(**changes),
        }
    )
    return appraise(
        verify(evidence),
        policy,
        report_data=report_data,
        now=NOW,
        nonce_issued_at=nonce_issued_at,
    )


def fields_of(*arguments: Any, **changes: Any) -> list[str]:
    with pytest.raises(PolicyRejected, match="authentic but not") as caught:
        judge(*arguments, **changes)
    return [finding.field for finding in caught.value.findings]
