"""``inspect evidence``: what bytes say, of any kind that can read them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from tests.unit.cli.conftest import Run

REPORT_DATA = bytes(range(64))
LONG_AGO = datetime(2020, 6, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    create_dev_root(folder, now=LONG_AGO)
    attester = SimulatedAttester.from_folder(folder, clock=lambda: LONG_AGO)
    path = tmp_path / "evidence.bin"
    path.write_bytes(attester.attest(REPORT_DATA).blob)
    return path


def test_it_finds_the_kind_and_says_that_nothing_is_verified(
    run: Run, evidence: Path
) -> None:
    result = run("inspect", "evidence", evidence)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0] == "simulated"
    assert f"  report_data: {REPORT_DATA.hex()}" in lines
    assert lines[-1].startswith("NOT VERIFIED")


def test_a_broken_signature_is_shown_all_the_same(run: Run, evidence: Path) -> None:
    blob = json.loads(evidence.read_bytes())
    blob["signature"] = "00" * 64
    evidence.write_text(json.dumps(blob, sort_keys=True, separators=(",", ":")))
    result = run("inspect", "evidence", evidence, "--kind", "simulated")
    assert result.exit_code == 0
    assert "NOT VERIFIED" in result.stdout
    for word in ("ACCEPTED", "verified_at", "root"):
        assert word not in result.stdout


def test_json_is_one_object_that_says_so_too(run: Run, evidence: Path) -> None:
    result = run("inspect", "evidence", evidence, "--json")
    document = json.loads(result.stdout)
    assert document["verified"] is False
    assert list(document["descriptions"]) == ["simulated"]
    described = document["descriptions"]["simulated"]
    assert described["report_data"] == REPORT_DATA.hex()


def test_hex_text_is_read_as_its_bytes(run: Run, evidence: Path) -> None:
    plain = run("inspect", "evidence", evidence).stdout
    evidence.write_text(evidence.read_bytes().hex() + "\n")
    assert run("inspect", "evidence", evidence).stdout == plain


def test_text_from_outside_cannot_draw_lines(run: Run, evidence: Path) -> None:
    blob = json.loads(evidence.read_bytes())
    blob["report"]["platform_id"] = "a\nNOT SO  \x1b[2Jb"
    text = json.dumps(blob, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    evidence.write_text(text.replace("\x1b", "\\u001b"))
    result = run("inspect", "evidence", evidence)
    assert "\x1b" not in result.output
    assert "NOT SO" not in [line[:6] for line in result.output.splitlines()]


@pytest.mark.parametrize("data", [b"", b"nothing", b"\x00" * 300_000])
def test_what_no_kind_reads_is_refused_with_each_kind_s_reason(
    run: Run, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(data)
    result = run("inspect", "evidence", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no kind of evidence. " in result.stderr
    assert "simulated: " in result.stderr


def test_a_named_kind_is_the_only_one_tried(run: Run, evidence: Path) -> None:
    result = run("inspect", "evidence", evidence, "--kind", "no-such")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "unknown kind" in result.stderr


def test_an_unreadable_file_is_usage(run: Run, tmp_path: Path) -> None:
    result = run("inspect", "evidence", tmp_path / "none")
    assert (result.exit_code, result.stdout) == (2, "")
