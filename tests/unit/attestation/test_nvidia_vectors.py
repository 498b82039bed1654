"""Evidence of eight H100, through the verifier and the command line."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.nvidia_gpu import NVIDIA_ROOT, NvidiaGpu
from bentoml_secure.cli import main
from bentoml_secure.errors import CheckFailedError, SecureError
from bentoml_secure.testing.nvidia_pki import NvidiaPki
from tests.evidence_vectors import vector

NOW = datetime(2026, 11, 22, tzinfo=UTC)
NONCE = "4760e30534a0621357d458b1a7936551b5dc4cd1e69718adf7ed9fb0252a537e"
BLOCK2 = "f21c16b08086efe555ffe179"


@pytest.fixture
def devices() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(vector("nvidia/gpu_evidence.json"))
    return entries


def verify(document: Any) -> Any:
    blob = json.dumps(document).encode()
    evidence = Evidence(kind="nvidia-gpu", blob=blob)
    return load_tee("nvidia-gpu").verify(evidence, (), now=NOW)


def test_eight_genuine_devices(devices: list[dict[str, Any]]) -> None:
    claims = verify(devices)
    assert (claims.kind, claims.vendor) == ("nvidia-gpu", "nvidia")
    assert not claims.simulated
    assert claims.root == NVIDIA_ROOT
    assert claims.report_data.hex() == NONCE
    assert claims.issued_at is None
    assert claims.claims["count"] == 8
    assert len({gpu["device"] for gpu in claims.claims["gpus"]}) == 8
    # One firmware in all of them.
    (blocks,) = claims.claims["measurements"]
    assert blocks["2"].startswith(BLOCK2)
    for gpu in claims.claims["gpus"]:
        assert gpu["model"] == "GH100 A01 GSP BROM"
        assert (gpu["arch"], gpu["driver_version"]) == ("HOPPER", "590.12")
        assert gpu["vbios_version"] == "96.00.A5.00.01"


def test_one_of_them(devices: list[dict[str, Any]]) -> None:
    claims = verify(devices[0])
    assert claims.platform_id == "GH100-412921CE551E4EEDA3"
    assert verify(devices[:1]) == claims
    assert verify(devices[1]).platform_id != claims.platform_id


def test_a_device_that_is_listed_twice(devices: list[dict[str, Any]]) -> None:
    with pytest.raises(CheckFailedError, match="devices: got"):
        verify([*devices[:7], devices[0]])


def test_a_development_verifier_refuses_it(devices: list[dict[str, Any]]) -> None:
    blob = json.dumps(devices[0]).encode()
    tee = NvidiaGpu(root=NvidiaPki(now=NOW).root)
    with pytest.raises(CheckFailedError, match=r"chain\.root"):
        tee.verify(Evidence(kind="nvidia-gpu", blob=blob), (), now=NOW)


def test_every_byte_of_a_report_is_covered(devices: list[dict[str, Any]]) -> None:
    report = base64.b64decode(devices[0]["evidence"])
    places = {*range(50), *range(0, len(report), 61), *range(-100, 0)}
    for place in places:
        hurt = bytearray(report)
        hurt[place] ^= 1 << (place % 8)
        entry = {**devices[0], "evidence": base64.b64encode(hurt).decode()}
        with pytest.raises(SecureError):
            verify(entry)
    for length in (0, 36, 37, len(report) - 1):
        entry = {**devices[0], "evidence": base64.b64encode(report[:length]).decode()}
        with pytest.raises(SecureError):
            verify(entry)


def test_the_certificate_of_another_device(devices: list[dict[str, Any]]) -> None:
    entry = {**devices[0], "certificate": devices[1]["certificate"]}
    with pytest.raises(CheckFailedError, match=r"spdm\.signature"):
        verify(entry)


POLICY = """\
version = 1
max_age_seconds = 300
allow = ["nvidia-gpu"]
[nvidia-gpu]
min_driver = "{driver}"
min_vbios = "96.00.A5.00.00"
firmware = {firmware}
"""
UNCHECKED = '{ unchecked = "no reference manifest at hand" }'


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    evidence, policy = tmp_path / "gpu.json", tmp_path / "policy.toml"
    evidence.write_bytes(vector("nvidia/gpu_evidence.json"))
    policy.write_text(POLICY.format(driver="590.0", firmware=UNCHECKED))
    return evidence, policy


def run(files: tuple[Path, Path], nonce: str = NONCE) -> tuple[int, dict[str, Any]]:
    evidence, policy = files
    arguments = ["verify", "evidence", "--kind", "nvidia-gpu", "--json"]
    arguments += ["--at", "2026-11-22T00:00:00Z", "--report-data", nonce]
    paths = ["--evidence", str(evidence), "--policy", str(policy)]
    result: Result = CliRunner().invoke(main, arguments + paths)
    return result.exit_code, json.loads(result.stdout or "{}")


def fields_of(said: dict[str, Any]) -> list[str]:
    return [finding["field"] for finding in said["findings"]]


def test_the_command_line_accepts_it(files: tuple[Path, Path]) -> None:
    code, said = run(files)
    assert (code, said["verdict"], said["simulated"]) == (0, "accepted", False)
    left = {field["field"]: field["reason"] for field in said["unchecked"]}
    assert left["firmware"] == "no reference manifest at hand"


def test_measurements_that_it_shows_can_be_demanded(files: tuple[Path, Path]) -> None:
    shown = run(files)[1]["measurements"][0]["2"]
    for value, code in ((shown, 0), ("00" * 48, 1)):
        firmware = f'{{ 2 = ["{value}"] }}'
        files[1].write_text(POLICY.format(driver="590.0", firmware=firmware))
        assert run(files)[0] == code


def test_the_command_line_rejects_it(files: tuple[Path, Path]) -> None:
    code, said = run(files, "11" * 32)
    assert (code, fields_of(said)) == (1, ["report_data"])
    files[1].write_text(POLICY.format(driver="595.0", firmware=UNCHECKED))
    code, said = run(files)
    assert (code, fields_of(said)) == (1, ["min_driver"])
    document = json.loads(files[0].read_text())
    document[3]["nonce"] = "11" * 32
    files[0].write_text(json.dumps(document))
    code, said = run(files)
    assert (code, fields_of(said)) == (1, ["nonce"])


def test_a_policy_that_says_nothing_of_firmware_is_a_mistake(
    files: tuple[Path, Path],
) -> None:
    files[1].write_text(POLICY.partition("firmware")[0].format(driver="590.0"))
    assert run(files)[0] == 2
