"""Evidence whose device gives no endorsements, as a TDX guest's: whose own help."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.attestation.endorsement_folder import EndorsementFolder
from bentoml_secure.attestation.evidence import AttestationResult, Endorsements
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import MissingEndorsementError
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Shown
from bentoml_secure.testing.simulated_tdx import (
    KIND,
    SimulatedTdxAttester,
    mr_td,
    root_digest,
)

NOW = datetime(2026, 11, 1, tzinfo=UTC)
NONCE = bytes(range(32))


class Guest(SimulatedTdxAttester):
    """As on a machine: the quote is all that the device gives."""

    @property
    def endorsements(self) -> Endorsements:
        return ()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    create_dev_root(tmp_path / "root", now=NOW)
    return tmp_path / "root"


@pytest.fixture
def folder(tmp_path: Path, root: Path) -> EndorsementFolder:
    made = tmp_path / "endorsements"
    made.mkdir()
    whole = SimulatedTdxAttester(root, machine="guest", clock=lambda: NOW)
    (made / "collateral.json").write_bytes(*whole.endorsements)
    (made / "of-another-kind.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n?\n")
    return EndorsementFolder(made)


@pytest.fixture
def policy(root: Path) -> AppraisalPolicy:
    table = {"roots": [root_digest(root, now=NOW)], "mr_td": [mr_td()]}
    return AppraisalPolicy.from_table(
        {"version": 1, "max_age_seconds": 300, "allow": [KIND], KIND: table}
    )


def shown_by(root: Path, folder: EndorsementFolder | None) -> Shown:
    identity = Identity(
        Guest(root, machine="guest", clock=lambda: NOW),
        role=Role.RUNNER,
        service="Runner0",
        segment=digest_json("segment"),
        plan=digest_json("plan"),
        config_digest=digest_json("configuration"),
        folder=folder,
        clock=lambda: NOW,
    )
    keys = identity.keys
    return Shown(
        document=keys.document,
        record=identity.attest(NONCE, keys),
        nonce=NONCE,
        nonce_issued_at=NOW,
    )


def judged(
    shown: Shown, policy: AppraisalPolicy, own: Endorsements = ()
) -> AttestationResult:
    return judge(shown, policy, now=NOW, endorsements=own)


def test_nobody_has_any(root: Path, policy: AppraisalPolicy) -> None:
    with pytest.raises(MissingEndorsementError, match="got no collateral"):
        judged(shown_by(root, None), policy)


def test_sent_along(
    root: Path, folder: EndorsementFolder, policy: AppraisalPolicy
) -> None:
    shown = shown_by(root, folder)
    assert shown.record is not None
    assert shown.record.endorsements == folder.endorsements
    assert judged(shown, policy).kind == KIND


def test_ones_own(
    root: Path, folder: EndorsementFolder, policy: AppraisalPolicy
) -> None:
    shown = shown_by(root, None)
    assert shown.record is not None
    assert shown.record.endorsements == ()
    assert judged(shown, policy, folder.endorsements).kind == KIND


def test_a_sender_with_a_full_record_gains_nothing(
    root: Path, folder: EndorsementFolder, policy: AppraisalPolicy
) -> None:
    shown = shown_by(root, None)
    assert shown.record is not None
    full = tuple(bytes([index]) for index in range(64))
    object.__setattr__(shown.record, "endorsements", full)
    assert judged(shown, policy, folder.endorsements).kind == KIND
