"""``verify evidence`` on simulated evidence."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from tests.unit.cli.conftest import Run

REPORT_DATA = bytes(range(64))
AT = "2026-06-01T14:00:00+02:00"
MOMENT = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    create_dev_root(folder, now=MOMENT)
    return folder


@pytest.fixture
def evidence(root: Path, tmp_path: Path) -> Path:
    attester = SimulatedAttester.from_folder(root, clock=lambda: MOMENT)
    path = tmp_path / "evidence.bin"
    path.write_bytes(attester.attest(REPORT_DATA).blob)
    return path


def arguments(root: Path, evidence: Path, *rest: str) -> tuple[str | Path, ...]:
    options: tuple[str | Path, ...] = ("--evidence", evidence, "--at", AT)
    policy = root / "policy.toml"
    command = ("verify", "evidence", "--kind", "simulated")
    return (*command, *options, "--policy", policy, *rest)


def test_evidence_over_the_report_data_is_accepted(
    run: Run, root: Path, evidence: Path
) -> None:
    result = run(*arguments(root, evidence, "--report-data", REPORT_DATA.hex()))
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[-1] == "ACCEPTED  simulated"
    assert lines[-2].startswith("SIMULATED - NOT HARDWARE")


def test_json_lists_what_was_not_checked(run: Run, root: Path, evidence: Path) -> None:
    rest = ("--unchecked-report-data", "a test", "--json")
    result = run(*arguments(root, evidence, *rest))
    document = json.loads(result.stdout)
    assert (result.exit_code, document["verdict"]) == (0, "accepted")
    assert document["kind"] == "simulated"
    assert {"field": "report_data", "reason": "a test"} in document["unchecked"]


def test_hex_text_is_read_as_its_bytes(run: Run, root: Path, evidence: Path) -> None:
    digits = evidence.read_bytes().hex()
    lines = [digits[start : start + 64] for start in range(0, len(digits), 64)]
    evidence.write_text("\n".join(lines) + "\n")
    result = run(*arguments(root, evidence, "--report-data", REPORT_DATA.hex()))
    assert result.exit_code == 0


def test_blanks_without_digits_are_read_at_once(
    run: Run, root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "evidence"
    for data in (b" " * 700_000, b"\n" * 700_000 + b"zz", b"0x" + b" " * 700_000):
        path.write_bytes(data)
        started = time.monotonic()
        result = run(*arguments(root, path, "--report-data", REPORT_DATA.hex()))
        assert result.exit_code == 1
        assert time.monotonic() - started < 10


def test_other_report_data_is_rejected(run: Run, root: Path, evidence: Path) -> None:
    rest = ("--report-data", "11" * 64, "--json")
    result = run(*arguments(root, evidence, *rest))
    document = json.loads(result.stdout)
    assert (result.exit_code, document["verdict"]) == (1, "rejected")
    assert document["findings"] == [
        {"field": "report_data", "got": REPORT_DATA.hex(), "want": "11" * 64}
    ]


def test_malformed_evidence_is_rejected(run: Run, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "evidence"
    for data in (b"", b"{}", b"\x00" * 3_000_000):
        path.write_bytes(data)
        rest = ("--report-data", REPORT_DATA.hex(), "--json")
        result = run(*arguments(root, path, *rest))
        (finding,) = json.loads(result.stdout)["findings"]
        assert result.exit_code == 1
        assert finding["want"] == "well-formed"


def test_evidence_of_another_time_is_rejected(
    run: Run, root: Path, evidence: Path
) -> None:
    rest = ("--report-data", REPORT_DATA.hex(), "--at", "2026-06-01T13:00:00Z")
    result = run(*arguments(root, evidence, *rest))
    assert result.exit_code == 1
    assert "FAILED  issued_at: got 2026-06-01T12:00:00Z" in result.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--kind": "no-such"}, "unknown kind"),
        ({"--policy": "/nowhere"}, "cannot be read"),
        ({"--evidence": "/nowhere"}, "cannot be read"),
        ({"--at": "2026-06-01"}, "want RFC 3339"),
        ({"--at": "2026-06-01T12:00:00"}, "want RFC 3339"),
        ({"--at": "2026-13-01T12:00:00Z"}, "is no time"),
        ({"--report-data": "00" * 63}, "want 32 or 64 bytes"),
        ({"--report-data": "zz"}, "want hex digits"),
        ({"--unchecked-report-data": "why"}, "want one of"),
    ],
)
def test_usage_errors(
    run: Run, root: Path, evidence: Path, change: dict[str, str], said: str
) -> None:
    options: dict[str, str | Path] = {
        "--kind": "simulated",
        "--evidence": evidence,
        "--policy": root / "policy.toml",
        "--at": AT,
        "--report-data": REPORT_DATA.hex(),
        **change,
    }
    flat = [word for pair in options.items() for word in pair]
    result = run("verify", "evidence", *flat)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


@pytest.mark.parametrize("reason", ["", " ", "a\nb", "x" * 501])
def test_a_check_is_not_left_out_without_a_reason(
    run: Run, root: Path, evidence: Path, reason: str
) -> None:
    rest = ("--unchecked-report-data", reason, "--json")
    result = run(*arguments(root, evidence, *rest))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "report data unchecked: got" in result.stderr


def test_a_bad_policy_is_a_usage_error_that_names_the_file(
    run: Run, root: Path, evidence: Path
) -> None:
    policy = root / "policy.toml"
    policy.write_text("version = 1\n")
    result = run(*arguments(root, evidence, "--report-data", REPORT_DATA.hex()))
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(policy) in result.stderr


def test_the_environment_cannot_leave_out_a_check(
    run: Run, root: Path, evidence: Path
) -> None:
    name = "BENTOML_SECURE_VERIFY_EVIDENCE_UNCHECKED_REPORT_DATA"
    result = run(*arguments(root, evidence), env={name: "why"})
    assert result.exit_code == 2
