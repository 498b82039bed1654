"""``verify evidence`` and ``inspect evidence`` on evidence of TPMs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bentoml_secure.attestation.evidence import format_seconds
from bentoml_secure.cli import main
from bentoml_secure.testing.tpm_pki import CHALLENGE, NOW, PCRS, TpmPki

PKI = TpmPki()
POLICY = f"""\
version = 1
max_age_seconds = 300
allow = ["tpm"]
[tpm]
pcr = {{ 0 = ["{PCRS[0].hex()}"], 7 = ["{PCRS[7].hex()}"] }}
ek_roots = ["{PKI.root_digest}"]
enrolment = ["{PKI.authority.public.key_id}"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "evidence").write_bytes(PKI.evidence().blob)
    (tmp_path / "policy").write_text(POLICY)
    (tmp_path / "root").write_bytes(PKI.root)
    pem = base64.encodebytes(PKI.issuer).decode()
    (tmp_path / "issuer").write_text(
        f"-----BEGIN CERTIFICATE-----\n{pem}-----END CERTIFICATE-----\n"
    )
    return tmp_path


def verify(
    folder: Path,
    *endorsements: str,
    report_data: str = CHALLENGE.hex() + "00" * 32,
) -> tuple[int, Any]:
    arguments = ["verify", "evidence", "--kind", "tpm", "--at", format_seconds(NOW)]
    arguments += ["--report-data", report_data, "--json"]
    for name in ("evidence", "policy"):
        arguments += [f"--{name}", str(folder / name)]
    for name in endorsements:
        arguments += ["--endorsements", str(folder / name)]
    result = CliRunner().invoke(main, arguments)
    verdict = json.loads(result.stdout) if result.exit_code in (0, 1) else None
    return result.exit_code, verdict


def test_accepted(folder: Path) -> None:
    exit_code, verdict = verify(folder, "root", "issuer")
    assert (exit_code, verdict["verdict"]) == (0, "accepted")
    assert verdict["class"] == "measured boot"
    assert verdict["simulated"] is True
    assert verdict["enrolment"] == PKI.authority.public.key_id
    unchecked = {entry["field"] for entry in verdict["unchecked"]}
    assert unchecked == {"ek_revocation", "age", "platform_id"}


def test_rejected_by_the_policy(folder: Path) -> None:
    (folder / "evidence").write_bytes(PKI.evidence(enrolment=None).blob)
    exit_code, verdict = verify(folder, "root", "issuer", report_data="00" * 64)
    assert (exit_code, verdict["verdict"]) == (1, "rejected")
    fields = [finding["field"] for finding in verdict["findings"]]
    assert fields == ["enrolment", "report_data"]


def test_rejected_as_not_authentic(folder: Path) -> None:
    lying = PKI.parts(pcrs={**PCRS, 0: bytes(32)}).to_evidence()
    (folder / "evidence").write_bytes(lying.blob)
    exit_code, verdict = verify(folder, "root", "issuer")
    assert exit_code == 1
    assert [finding["field"] for finding in verdict["findings"]] == ["quote.pcr_digest"]


def test_a_policy_that_says_nothing_of_enrolment(folder: Path) -> None:
    lines = POLICY.splitlines()[:-1]
    (folder / "policy").write_text("\n".join(lines))
    code, said = verify(folder, "root", "issuer")
    assert code == 0
    assert said is not None
    reasons = {one["field"]: one["reason"] for one in said["unchecked"]}
    assert "the policy lists no authority" in reasons["enrolment"]


def test_a_certificate_that_was_not_given(folder: Path) -> None:
    for endorsements in ((), ("root",), ("issuer",)):
        assert verify(folder, *endorsements) == (3, None)


def test_inspected(folder: Path) -> None:
    arguments = ["inspect", "evidence", str(folder / "evidence"), "--kind", "tpm"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "NOT VERIFIED" in result.stdout
    assert CHALLENGE.hex() in result.stdout
