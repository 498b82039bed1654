"""Documents that AWS's hardware signed, through the verifier and the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from click.testing import CliRunner, Result

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.nitro import AWS_ROOT, Nitro
from bentoml_secure.cli import main
from bentoml_secure.digest import digest_bytes
from bentoml_secure.errors import CheckFailedError, SecureError
from bentoml_secure.testing.nitro_pki import NitroPki
from tests.evidence_vectors import vector

AT = datetime(2025, 12, 25, 16, 5, tzinfo=UTC)
BEGIN = datetime(2025, 12, 25, 16, 4, 16, tzinfo=UTC)
END = datetime(2025, 12, 25, 19, 4, 19, tzinfo=UTC)


@pytest.fixture
def document() -> bytes:
    return vector("nitro/ok.cose")


def verify(blob: bytes, at: datetime = AT) -> Any:
    return load_tee("nitro").verify(Evidence(kind="nitro", blob=blob), (), now=at)


def payload_of(blob: bytes) -> Mapping[Any, Any]:
    payload: Mapping[Any, Any] = cbor2.loads(cbor2.loads(blob)[2])
    return payload


def test_a_genuine_document(document: bytes) -> None:
    claims = verify(document)
    payload = payload_of(document)
    assert (claims.kind, claims.vendor, claims.simulated) == ("nitro", "aws", False)
    assert claims.root == AWS_ROOT == digest_bytes(payload["cabundle"][0])
    assert claims.platform_id == "i-0827e799ec9232d44"
    assert claims.issued_at == datetime(2025, 12, 25, 16, 4, 19, 346000, tzinfo=UTC)
    assert claims.expires_at == END
    assert claims.report_data == payload["user_data"]
    assert claims.claims["pcrs"]["0"] == payload["pcrs"][0].hex()


def test_its_hours(document: bytes) -> None:
    for at in (BEGIN, END):
        verify(document, at)
    for at in (BEGIN - timedelta(seconds=1), END + timedelta(seconds=1)):
        with pytest.raises(CheckFailedError, match=r"chain\.validity"):
            verify(document, at)


def test_a_development_verifier_refuses_it(document: bytes) -> None:
    tee = Nitro(root=NitroPki(now=AT).root)
    with pytest.raises(CheckFailedError, match=r"chain\.root"):
        tee.verify(Evidence(kind="nitro", blob=document), (), now=AT)


def test_every_byte_is_covered(document: bytes) -> None:
    # All of the header, the signature and the ends; the middle in steps.
    places = {*range(64), *range(0, len(document), 17), *range(-110, 0)}
    for place in places:
        hurt = bytearray(document)
        hurt[place] ^= 1 << (place % 8)
        with pytest.raises(SecureError):
            verify(bytes(hurt))
    for length in (0, 1, 100, len(document) - 1):
        with pytest.raises(SecureError):
            verify(document[:length])


POLICY = """\
version = 1
max_age_seconds = 300
allow = ["nitro"]
[nitro]
pcr = {{ 0 = ["{pcr0}"], 1 = ["{pcr1}"] }}
"""


@pytest.fixture
def files(tmp_path: Path, document: bytes) -> tuple[Path, Path]:
    pcrs = payload_of(document)["pcrs"]
    evidence, policy = tmp_path / "document", tmp_path / "policy.toml"
    evidence.write_bytes(document)
    policy.write_text(POLICY.format(pcr0=pcrs[0].hex(), pcr1=pcrs[1].hex()))
    return evidence, policy


def run(files: tuple[Path, Path], *rest: str, at: str = "2025-12-25T16:05:00Z") -> Any:
    evidence, policy = files
    arguments = ["verify", "evidence", "--kind", "nitro", "--at", at, "--json", *rest]
    paths = ["--evidence", str(evidence), "--policy", str(policy)]
    result: Result = CliRunner().invoke(main, arguments + paths)
    return result


def fields_of(result: Any) -> list[str]:
    return [finding["field"] for finding in json.loads(result.stdout)["findings"]]


def test_the_command_line_accepts_it(files: tuple[Path, Path], document: bytes) -> None:
    user_data = payload_of(document)["user_data"].hex()
    result = run(files, "--report-data", user_data)
    said = json.loads(result.stdout)
    assert (result.exit_code, said["verdict"], said["kind"]) == (0, "accepted", "nitro")
    assert said["simulated"] is False
    assert run(files, "--unchecked-report-data", "a test").exit_code == 0


def test_the_command_line_rejects_it(files: tuple[Path, Path]) -> None:
    result = run(files, "--report-data", "00" * 64)
    assert (result.exit_code, fields_of(result)) == (1, ["report_data"])
    why = ("--unchecked-report-data", "a test")
    result = run(files, *why, at="2025-12-25T17:05:00Z")
    assert (result.exit_code, fields_of(result)) == (1, ["issued_at"])
    result = run(files, *why, at="2026-01-25T17:05:00Z")
    assert (result.exit_code, fields_of(result)) == (1, ["chain.validity"])
    files[1].write_text(POLICY.format(pcr0="00" * 48, pcr1="11" * 48))
    result = run(files, *why)
    assert (result.exit_code, fields_of(result)) == (1, ["pcr", "pcr"])


def test_the_command_line_rejects_debug_mode(files: tuple[Path, Path]) -> None:
    files[0].write_bytes(vector("nitro/debug_fail.cose"))
    files[1].write_text(POLICY.format(pcr0="00" * 48, pcr1="00" * 48))
    why = ("--unchecked-report-data", "a test")
    result = run(files, *why, at="2025-12-25T08:21:00Z")
    assert (result.exit_code, fields_of(result)) == (1, ["debug"])


def test_a_policy_without_values_is_a_mistake(files: tuple[Path, Path]) -> None:
    files[1].write_text(POLICY.partition("pcr =")[0])
    assert run(files, "--unchecked-report-data", "a test").exit_code == 2
