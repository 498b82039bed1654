"""Arm's example token, through the verifier and the command line; and who may vouch."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.key_document import KeyDocument, report_data
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.cca import EXAMPLE_KEYS
from bentoml_secure.attestation.tees.cca_keys import key_digest
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.cli import main
from bentoml_secure.errors import CheckFailedError, PolicyRejected, SecureError
from bentoml_secure.testing.cca_pki import CcaPki
from tests.evidence_vectors import vector

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
RIM = (
    "ae87fbf7f105e71a7827cb6f0896889c73d2beaf4830d4f9cb05e3e96c3fc7b4"
    "faa04caf36a26bd094cf9c7b738617e4c189aaee184dedda5d7a03c39dbdac7c"
)
NONCE = bytes(range(32))


@pytest.fixture
def token() -> bytes:
    return vector("cca/cca-example-token.cbor")


@pytest.fixture
def cpak() -> bytes:
    return vector("cca/cpak-pub.json")


def verify(token: bytes, cpak: bytes) -> Any:
    evidence = Evidence(kind="cca", blob=token)
    return load_tee("cca").verify(evidence, (cpak,), now=NOW)


def test_the_example_token(token: bytes, cpak: bytes) -> None:
    claims = verify(token, cpak)
    assert claims.kind == "cca"
    assert claims.claims["rim"] == RIM
    assert claims.claims["lifecycle"] == 0x3003
    assert claims.claims["platform_profile"] == "http://arm.com/CCA-SSD/1.0.0"
    assert claims.claims["realm_profile"] is None
    assert len(claims.claims["software"]) == 13
    assert claims.report_data.hex().startswith("57e979ae2618de0c")
    assert claims.platform_id.startswith("0107060504030201")


def test_a_key_that_everybody_has_shows_no_hardware(token: bytes, cpak: bytes) -> None:
    claims = verify(token, cpak)
    assert claims.root in EXAMPLE_KEYS
    assert (claims.simulated, claims.vendor) == (True, "none (simulated)")


def test_another_cpak(token: bytes) -> None:
    with pytest.raises(CheckFailedError, match=r"platform\.signature"):
        verify(token, CcaPki().jwk)


def test_every_byte_is_covered(token: bytes, cpak: bytes) -> None:
    for place in range(0, len(token), 5):
        hurt = bytearray(token)
        hurt[place] ^= 1 << (place % 8)
        with pytest.raises(SecureError):
            verify(bytes(hurt), cpak)
    for length in (0, 1, 100, len(token) - 1):
        with pytest.raises(SecureError):
            verify(token[:length], cpak)


POLICY = """\
version = 1
max_age_seconds = 300
allow = ["cca"]
[cca]
rim = ["{rim}"]
"""


@pytest.fixture
def files(tmp_path: Path, token: bytes, cpak: bytes) -> Path:
    (tmp_path / "token").write_bytes(token)
    (tmp_path / "cpak").write_bytes(cpak)
    (tmp_path / "policy").write_text(POLICY.format(rim=RIM))
    return tmp_path


def run(files: Path, *rest: str, endorsed: bool = True) -> tuple[int, dict[str, Any]]:
    arguments = ["verify", "evidence", "--kind", "cca", "--json", *rest]
    arguments += ["--at", "2026-03-01T12:00:00Z", "--policy", str(files / "policy")]
    arguments += ["--evidence", str(files / "token")]
    if endorsed:
        arguments += ["--endorsements", str(files / "cpak")]
    if "--report-data" not in rest:
        arguments += ["--unchecked-report-data", "a test"]
    result: Result = CliRunner().invoke(main, arguments)
    return result.exit_code, json.loads(result.stdout or "{}")


def fields_of(said: dict[str, Any]) -> list[str]:
    return [finding["field"] for finding in said["findings"]]


def test_the_command_line_accepts_it(files: Path) -> None:
    code, said = run(files)
    assert (code, said["verdict"], said["simulated"]) == (0, "accepted", True)
    assert "cpak" in [field["field"] for field in said["unchecked"]]
    assert run(files, "--report-data", said["report_data"])[0] == 0


def test_the_command_line_rejects_it(files: Path) -> None:
    code, said = run(files, "--report-data", "00" * 64)
    assert (code, fields_of(said)) == (1, ["report_data"])
    (files / "policy").write_text(POLICY.format(rim="00" * 64))
    code, said = run(files)
    assert (code, fields_of(said)) == (1, ["rim"])
    (files / "cpak").write_bytes(CcaPki().jwk)
    code, said = run(files)
    assert (code, fields_of(said)) == (1, ["platform.signature"])


def test_the_command_line_without_the_cpak(files: Path) -> None:
    code, said = run(files, endorsed=False)
    assert (code, said["verdict"]) == (3, "incomplete")


def test_a_policy_without_initial_measurements_is_a_mistake(files: Path) -> None:
    (files / "policy").write_text(POLICY.partition("rim")[0])
    assert run(files)[0] == 2


class TestOverTheNetwork:
    """The sender brings the endorsements: nobody vouches for itself."""

    @pytest.fixture
    def judge(self, make_document: Callable[..., KeyDocument]) -> Callable[..., str]:
        pki, document = CcaPki(), make_document(platform="cca")
        evidence = pki.attest(report_data(NONCE, document))

        def judge(**table: Any) -> str:
            own = key_digest(pki.cpak.public_key())
            table = {"rim": ["01" * 32], **table}
            listed = {"own": [own], "other": ["sha256:" + "00" * 32]}
            if isinstance(table.get("cpak"), str):
                table["cpak"] = listed[table["cpak"]]
            policy = AppraisalPolicy.from_table(
                {
                    "version": 1,
                    "max_age_seconds": 300,
                    "allow": ["cca"],
                    "cca": table,
                }
            )
            return verify_key_document(
                document,
                evidence,
                (pki.jwk,),
                policy,
                nonce=NONCE,
                now=NOW,
                nonce_issued_at=NOW,
            ).kind

        return judge

    def test_a_platform_that_the_policy_lists(self, judge: Callable[..., str]) -> None:
        assert judge(cpak="own") == "cca"

    @pytest.mark.parametrize("table", [{}, {"cpak": {"unchecked": "a test"}}])
    def test_a_platform_that_only_the_sender_knows(
        self, judge: Callable[..., str], table: dict[str, Any]
    ) -> None:
        with pytest.raises(
            PolicyRejected, match="cpak: got the sender's own"
        ) as caught:
            judge(**table)
        assert [finding.field for finding in caught.value.findings] == ["cpak"]

    def test_another_platform_than_the_policy_lists(
        self, judge: Callable[..., str]
    ) -> None:
        with pytest.raises(PolicyRejected, match="cpak: got sha256"):
            judge(cpak="other")
