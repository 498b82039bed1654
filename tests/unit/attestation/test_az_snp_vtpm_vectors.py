"""Genuine evidence of a confidential VM on Azure, and edits of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.cli import main
from bentoml_secure.errors import (
    CheckFailedError,
    MalformedInputError,
    MissingEndorsementError,
    PolicyRejected,
)
from tests.evidence_vectors import vector

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
CHALLENGE = b"challenge"
PADDED = CHALLENGE.ljust(32, b"\0")
MEASUREMENT = (
    "6a063be9dd79f6371c842e480f8dc3b5c725961344e57130e88c5adf49e8f7f6"
    "c79b75a5eb77fc769959f4aeb2f9401e"
)
CHIP_ID = (
    "66a5a7b4403a3006ca734aa36a76dd3061d56f398e1e73b0be683ecd2eede9e7"
    "0811c677abf8d9c9251b52baafbdc97b8121ec0c75661ffba636073b09fa563a"
)
PCR7 = "3b20e022416fdf61d72e4da32b4354781be3de0608116976d28ffdad8c341d2a"
TCB = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}


def document() -> dict[str, Any]:
    return dict(json.loads(vector("tpm_azure/evidence-v1.json")))


def chain() -> bytes:
    """Another chip's VCEK beside the ASK and the ARK: the file has all three."""
    return vector("tpm_azure/vcek.pem")


def verify(
    got: dict[str, Any], endorsements: Sequence[bytes], now: datetime = NOW
) -> VerifiedClaims:
    blob = json.dumps(got).encode()
    tee = load_tee("az-snp-vtpm")
    return tee.verify(Evidence(kind="az-snp-vtpm", blob=blob), endorsements, now=now)


def rejected(claims: VerifiedClaims, data: bytes, **table: Any) -> list[str]:
    policy = AppraisalPolicy.from_table(
        {
            "version": 1,
            "max_age_seconds": 300,
            "allow": ["az-snp-vtpm"],
            "az-snp-vtpm": {
                "measurement": [MEASUREMENT],
                "pcr": {"7": [PCR7]},
                "min_tcb": TCB,
            }
            | table,
        }
    )
    try:
        appraise(claims, policy, report_data=data, now=NOW, nonce_issued_at=NOW)
    except PolicyRejected as rejection:
        return [finding.field for finding in rejection.findings]
    return []


def test_a_vm_on_milan() -> None:
    claims = verify(document(), [chain()])
    assert not claims.simulated
    assert claims.vendor == "amd"
    assert claims.platform_id == CHIP_ID
    assert claims.report_data == PADDED
    got = claims.claims
    assert got["extra_data"] == CHALLENGE.hex()
    assert got["measurement"] == MEASUREMENT
    assert got["tcb"]["reported"] == TCB
    assert got["pcr"]["7"] == PCR7
    assert got["vmpl"] == 0
    assert got["version"] == 3
    assert got["cpuid"] == {"family": 0x19, "model": 1, "stepping": 1}
    assert got["vm_configuration"]["secure-boot"]
    assert rejected(claims, PADDED) == []


def test_other_reference_values() -> None:
    claims = verify(document(), [chain()])
    assert rejected(claims, bytes(32)) == ["report_data"]
    assert rejected(claims, PADDED, pcr={"7": ["00" * 32]}) == ["pcr"]
    assert rejected(claims, PADDED, measurement=["00" * 48]) == ["measurement"]


def test_the_vcek_beside_in_place_of_inside() -> None:
    inside = document()
    with pytest.raises(CheckFailedError, match=r"leaf\.hwid"):
        verify(inside | {"vcek": ""}, [chain()])
    begin = b"-----BEGIN"
    (_, _, ask, ark) = [begin + block for block in chain().split(begin)]
    assert verify(inside, [ask, ark]).platform_id == CHIP_ID
    with pytest.raises(MissingEndorsementError, match="no ARK"):
        verify(inside, [ask])
    with pytest.raises(MissingEndorsementError, match="no VCEK"):
        verify(inside | {"vcek": ""}, [ask, ark])


def test_out_of_date() -> None:
    for year in (2024, 2033):
        now = datetime(year, 1, 1, tzinfo=UTC)
        with pytest.raises(CheckFailedError, match=r"chain\.dates"):
            verify(document(), [chain()], now)


@pytest.mark.parametrize("field", ["message", "signature"])
def test_any_byte_of_the_quote(field: str) -> None:
    got, endorsements = document(), [chain()]
    good = bytes.fromhex(got["tpm_quote"][field])
    for at in range(0, len(good), 3):
        hurt = bytearray(good)
        hurt[at] ^= 1 << at % 8
        quote = got["tpm_quote"] | {field: hurt.hex()}
        with pytest.raises(CheckFailedError, match=r"quote\.signature"):
            verify(got | {"tpm_quote": quote}, endorsements)


def test_any_register() -> None:
    got, endorsements = document(), [chain()]
    for index in range(24):
        pcrs = list(got["tpm_quote"]["pcrs"])
        pcrs[index] = "11" * 32
        quote = got["tpm_quote"] | {"pcrs": pcrs}
        with pytest.raises(CheckFailedError, match=r"quote\.pcr_digest"):
            verify(got | {"tpm_quote": quote}, endorsements)


def test_any_byte_of_the_paravisors_report() -> None:
    got, endorsements = document(), [chain()]
    text = got["hcl_report"]
    # Of the header, what is not its magic or version says nothing.
    reserved = range(8 * 4 // 3, 32 * 4 // 3 + 1)
    request = range(1216 * 4 // 3, 1236 * 4 // 3 + 1)
    for at in range(0, 2346 * 4 // 3, 11):
        if at in reserved or at in request:
            continue
        letter = "A" if text[at] != "A" else "Q"
        hurt = text[:at] + letter + text[at + 1 :]
        with pytest.raises((CheckFailedError, MalformedInputError), match=r"."):
            verify(got | {"hcl_report": hurt}, endorsements)


class TestCommandLine:
    @pytest.mark.parametrize(
        ("data", "given", "code"),
        [
            (PADDED.hex(), True, 0),
            (PADDED.hex() + "00" * 32, True, 0),
            (CHALLENGE.hex(), True, 0),
            (CHALLENGE[:-1].hex(), True, 1),
            ("", True, 2),
            ("00" * 32, True, 1),
            (PADDED.hex(), False, 3),
        ],
        ids=["32", "64", "9", "8", "none", "another", "no chain"],
    )
    def test_exit_codes(
        self, tmp_path: Path, data: str, given: bool, code: int
    ) -> None:
        (tmp_path / "evidence.json").write_bytes(vector("tpm_azure/evidence-v1.json"))
        (tmp_path / "chain.pem").write_bytes(chain())
        (tmp_path / "policy.toml").write_text(
            'version = 1\nmax_age_seconds = 300\nallow = ["az-snp-vtpm"]\n'
            f'[az-snp-vtpm]\nmeasurement = ["{MEASUREMENT}"]\n'
            f'pcr = {{ 7 = ["{PCR7}"] }}\n'
        )
        arguments = ["verify", "evidence", "--kind", "az-snp-vtpm", "--json"]
        arguments += ["--evidence", str(tmp_path / "evidence.json")]
        arguments += ["--policy", str(tmp_path / "policy.toml")]
        arguments += ["--at", "2026-03-01T12:00:00Z", "--report-data", data]
        if given:
            arguments += ["--endorsements", str(tmp_path / "chain.pem")]
        result = CliRunner().invoke(main, arguments, prog_name="bentoml-secure")
        assert result.exit_code == code, result.output
        if code == 2:
            assert result.stdout == ""
            return
        verdict = {0: "accepted", 1: "rejected", 3: "incomplete"}[code]
        assert json.loads(result.stdout)["verdict"] == verdict
