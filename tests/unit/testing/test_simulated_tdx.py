"""TDX quotes under a development root: verified as real ones are, accepted as none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bentoml_secure.attestation.appraisal import appraise, parse_policy
from bentoml_secure.attestation.attesters import DEV_ROOT, open_attester
from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.errors import (
    AttestationError,
    CheckFailedError,
    MissingEndorsementError,
    PolicyRejected,
)
from bentoml_secure.testing.simulated_tdx import (
    KIND,
    SimulatedTdxAttester,
    mr_td,
    root_digest,
)

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_dev_root(tmp_path / "root", now=NOW)
    return tmp_path / "root"


@pytest.fixture
def attester(folder: Path) -> SimulatedTdxAttester:
    return SimulatedTdxAttester(folder, machine="m", clock=lambda: NOW)


def policy_of(folder: Path, kind: str = KIND) -> bytes:
    roots = f'roots = ["{root_digest(folder, now=NOW)}"]' if kind == KIND else ""
    return f"""
version = 1
max_age_seconds = 300
allow = ["{kind}"]
[{kind}]
{roots}
mr_td = ["{mr_td()}"]
""".encode()


def test_a_quote_is_verified_and_accepted_under_its_root(
    folder: Path, attester: SimulatedTdxAttester
) -> None:
    evidence = attester.attest(b"r" * 64)
    claims = load_tee(KIND).verify(evidence, attester.endorsements, now=NOW)
    assert (claims.kind, claims.simulated) == (KIND, True)
    assert claims.vendor == "none (simulated)"
    result = appraise(
        claims,
        parse_policy(policy_of(folder)),
        report_data=b"r" * 64,
        now=NOW,
        nonce_issued_at=NOW,
    )
    assert result.simulated


def test_no_policy_for_tdx_accepts_it(
    folder: Path, attester: SimulatedTdxAttester
) -> None:
    evidence = attester.attest(b"r" * 64)
    claims = load_tee(KIND).verify(evidence, attester.endorsements, now=NOW)
    with pytest.raises(PolicyRejected, match=f"kind: got {KIND}, want tdx"):
        appraise(
            claims,
            parse_policy(policy_of(folder, "tdx")),
            report_data=b"r" * 64,
            now=NOW,
            nonce_issued_at=NOW,
        )
    real = Evidence(kind="tdx", blob=evidence.blob)
    with pytest.raises(CheckFailedError, match=r"chain\.root"):
        load_tee("tdx").verify(real, attester.endorsements, now=NOW)


def test_another_development_root_is_another_root(
    folder: Path, tmp_path: Path, attester: SimulatedTdxAttester
) -> None:
    create_dev_root(tmp_path / "other", now=NOW)
    assert root_digest(tmp_path / "other", now=NOW) != root_digest(folder, now=NOW)
    claims = load_tee(KIND).verify(
        attester.attest(b"r" * 64), attester.endorsements, now=NOW
    )
    with pytest.raises(PolicyRejected, match="root: got"):
        appraise(
            claims,
            parse_policy(policy_of(tmp_path / "other")),
            report_data=b"r" * 64,
            now=NOW,
            nonce_issued_at=NOW,
        )


def test_every_process_of_a_root_has_the_same_chain_and_its_own_machine(
    folder: Path,
) -> None:
    environ = {DEV_ROOT: str(folder), "BENTOML_SECURE_SERVICE": "S"}
    machines = []
    for machine in ("one", "two", "of-{service}"):
        told = {**environ, "BENTOML_SECURE_SIMULATED_PLATFORM": machine}
        attester = open_attester(KIND, told, clock=lambda: NOW)
        claims = load_tee(KIND).verify(
            attester.attest(bytes(64)), attester.endorsements, now=NOW
        )
        assert claims.root == root_digest(folder, now=NOW)
        machines.append(claims.platform_id)
    assert len(set(machines)) == 3


def test_collateral_is_dated_anew(folder: Path) -> None:
    clock = [NOW]
    attester = SimulatedTdxAttester(folder, machine="m", clock=lambda: clock[0])
    first = attester.endorsements
    assert attester.endorsements == first
    clock[0] = NOW + timedelta(days=200)
    later = attester.endorsements
    assert later != first
    evidence = attester.attest(bytes(64))
    load_tee(KIND).verify(evidence, later, now=clock[0])
    with pytest.raises(CheckFailedError, match=r"expired|collateral"):
        load_tee(KIND).verify(evidence, first, now=clock[0])


def test_what_is_missing_or_something_else(attester: SimulatedTdxAttester) -> None:
    evidence = attester.attest(bytes(64))
    with pytest.raises(MissingEndorsementError, match="no collateral"):
        load_tee(KIND).verify(evidence, (), now=NOW)
    with pytest.raises(AttestationError, match="evidence kind: got tdx"):
        load_tee(KIND).verify(
            Evidence(kind="tdx", blob=evidence.blob), attester.endorsements, now=NOW
        )
