"""``verify evidence`` and ``inspect evidence`` on real evidence of every kind.

Each is verified among the endorsements of all of them, in both orders: those of other
kinds must not get in the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evidence_vectors import vector
from tests.unit.cli.conftest import Run

ENDORSEMENTS = (
    "tdx/tdx_quote_collateral.json",
    "sgx/sgx_quote_collateral.json",
    "sev_snp/vcek_milan.der",
    "sev_snp/vcek.testcer",
    "sev_snp/trust/ask_ark_milan.pem",
    "sev_snp/trust/ask_ark_genoa.pem",
    "sev_snp/trust/ask_ark_turin_vlek.pem",
    "nitro/AWS_NitroEnclaves_Root-G1.pem",
    "nvidia/verifier_device_root.pem",
    "tpm_azure/vcek.pem",
    "cca/cpak-pub.json",
)
SUMMER = "2025-07-01T00:00:00Z"
WHY = '{ unchecked = "a test" }'
KINDS = {
    "tdx": ("tdx/tdx_quote", f"mr_td = {WHY}", SUMMER),
    "sgx": ("sgx/sgx_quote", f"mr_enclave = {WHY}\nstatus = {WHY}", SUMMER),
    "sev-snp": ("sev_snp/report_milan.hex", f"measurement = {WHY}", SUMMER),
    "az-snp-vtpm": (
        "tpm_azure/evidence-v1.json",
        f"measurement = {WHY}\npcr = {WHY}",
        SUMMER,
    ),
    "nitro": ("nitro/ok.cose", f"pcr = {WHY}", "2025-12-25T17:00:00Z"),
    "nvidia-gpu": ("nvidia/gpu_evidence.json", f"firmware = {WHY}", SUMMER),
    "cca": ("cca/cca-example-token.cbor", f"rim = {WHY}", SUMMER),
}
Options = Callable[[str], list[str | Path]]


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Write files for a kind and return the options that name them."""

    def options(kind: str) -> list[str | Path]:
        name, table, at = KINDS[kind]
        evidence, policy = tmp_path / "evidence", tmp_path / "policy.toml"
        evidence.write_bytes(vector(name))
        policy.write_text(
            f'version = 1\nmax_age_seconds = 604800\nallow = ["{kind}"]\n'
            f"[{kind}]\n{table}\n"
        )
        return [
            *("verify", "evidence", "--kind", kind, "--evidence", evidence),
            *("--policy", policy, "--at", at, "--unchecked-report-data", "a test"),
        ]

    return options


def endorsements(tmp_path: Path, *, backwards: bool) -> list[str | Path]:
    given: list[str | Path] = []
    for name in ENDORSEMENTS[:: -1 if backwards else 1]:
        path = tmp_path / name.replace("/", "-")
        path.write_bytes(vector(name))
        given += ["--endorsements", path]
    return given


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_accepted_among_the_endorsements_of_all(
    run: Run, options: Options, tmp_path: Path, kind: str, backwards: bool
) -> None:
    given = endorsements(tmp_path, backwards=backwards)
    result = run(*options(kind), *given, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 0, document
    assert (document["verdict"], document["kind"]) == ("accepted", kind)
    assert document["findings"] == []
    lines = run(*options(kind), *given).stdout.splitlines()
    assert lines[-1] == f"ACCEPTED  {kind}"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"cca"}))
def test_at_another_time_it_is_rejected(
    run: Run, options: Options, tmp_path: Path, kind: str
) -> None:
    # NVIDIA's certificates have no end, but a beginning.
    at = "2020-01-01T00:00:00Z"
    given = endorsements(tmp_path, backwards=False)
    result = run(*options(kind), *given, "--at", at, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["verdict"]) == (1, "rejected")
    assert document["findings"]


@pytest.mark.parametrize("kind", ["tdx", "sgx", "sev-snp", "az-snp-vtpm", "cca"])
def test_without_endorsements_it_cannot_be_judged(
    run: Run, options: Options, kind: str
) -> None:
    result = run(*options(kind), "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["verdict"]) == (3, "incomplete")


@pytest.mark.parametrize("kind", KINDS)
def test_hex_digits_in_lines_are_read_too(
    run: Run, options: Options, tmp_path: Path, kind: str
) -> None:
    command = [*options(kind), *endorsements(tmp_path, backwards=False)]
    path = tmp_path / "evidence"
    data = path.read_bytes()
    if KINDS[kind][0].endswith(".hex"):
        data = bytes.fromhex(data.decode())
    digits = data.hex()
    lines = [digits[start : start + 64] for start in range(0, len(digits), 64)]
    path.write_text("\r\n".join(lines) + "\r\n")
    assert run(*command).exit_code == 0


@pytest.mark.parametrize("kind", KINDS)
def test_inspecting_finds_the_one_kind(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(vector(KINDS[kind][0]))
    result = run("inspect", "evidence", path, "--json")
    document = json.loads(result.stdout)
    assert list(document["descriptions"]) == [kind]
    assert document["verified"] is False
