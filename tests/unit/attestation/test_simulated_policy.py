"""What a policy accepts of simulated evidence: its root, its measurement."""

from __future__ import annotations

from datetime import datetime

import pytest

from bentoml_secure.attestation.appraisal import appraise, parse_policy
from bentoml_secure.attestation.evidence import VerifiedClaims
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.tees.simulated import Simulated, SimulatedAttester
from bentoml_secure.errors import PolicyRejected

WHY = Unchecked("a test of reference values")


@pytest.fixture
def claims(attester: SimulatedAttester, now: datetime) -> VerifiedClaims:
    return Simulated().verify(attester.attest(bytes(64)), (), now=now)


def policy(**values: str) -> bytes:
    lines = "\n".join(f"{name} = {value}" for name, value in values.items())
    head = 'version = 1\nmax_age_seconds = 300\nallow = ["simulated"]\n'
    return f"{head}[simulated]\n{lines}\n".encode()


def test_its_own_root_and_measurement_are_accepted(
    claims: VerifiedClaims, now: datetime
) -> None:
    accepted = policy(roots=f'["{claims.root}"]', measurement=f'["{"ab" * 32}"]')
    result = appraise(
        claims, parse_policy(accepted), report_data=WHY, now=now, nonce_issued_at=now
    )
    assert [field.field for field in result.unchecked] == ["report_data", "platform_id"]


@pytest.mark.parametrize("field", ["root", "measurement"])
def test_each_other_value_is_refused_by_name(
    claims: VerifiedClaims, now: datetime, field: str
) -> None:
    values = {"root": f'["{claims.root}"]', "measurement": f'["{"ab" * 32}"]'}
    values[field] = f'["{"sha256:" if field == "root" else ""}{"00" * 32}"]'
    refusing = policy(roots=values["root"], measurement=values["measurement"])
    with pytest.raises(PolicyRejected, match="not acceptable") as caught:
        appraise(
            claims,
            parse_policy(refusing),
            report_data=WHY,
            now=now,
            nonce_issued_at=now,
        )
    assert [finding.field for finding in caught.value.findings] == [field]


def test_an_absent_measurement_shows_as_unchecked(
    claims: VerifiedClaims, now: datetime
) -> None:
    accepted = parse_policy(policy(roots=f'["{claims.root}"]'))
    result = appraise(claims, accepted, report_data=WHY, now=now, nonce_issued_at=now)
    assert "measurement" in [field.field for field in result.unchecked]
