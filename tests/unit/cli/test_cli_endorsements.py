"""``endorsements fetch``: files to verify with, or why there are none."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bentoml_secure.testing.amd_pki import AmdPki
from bentoml_secure.testing.dcap_pki import DcapPki
from tests.unit.attestation.vendor_services import (
    Service,
    answer,
    intel_answers,
    serve,
)
from tests.unit.cli.conftest import Run


@pytest.fixture
def service() -> Iterator[Service]:
    with serve() as running:
        yield running


@pytest.fixture
def quote(service: Service, tmp_path: Path) -> Path:
    pki = DcapPki(now=datetime.now(UTC).replace(microsecond=0))
    service.answers = intel_answers(
        pki.collateral_fields("TDX"),
        tee="tdx",
        fmspc=pki.platform.fmspc.hex().upper(),
        ca="platform",
    )
    path = tmp_path / "quote"
    path.write_bytes(pki.tdx_quote(bytes(64)))
    return path


def arguments(kind: str, evidence: Path, out: Path) -> tuple[str | Path, ...]:
    command = ("endorsements", "fetch", "--kind", kind)
    return (*command, "--evidence", evidence, "--out", out)


def test_files_are_written_and_named(
    run: Run, service: Service, quote: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "out"
    rest = ("--pcs", service.url, "--cache", tmp_path / "cache")
    result = run(*arguments("tdx", quote, out), *rest)
    path = out / "collateral.json"
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"--endorsements {path}\n"
    assert "tcb_info" in json.loads(path.read_bytes())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(service.asked) == 4
    again = run(*arguments("tdx", quote, out), *rest)
    assert (again.exit_code, len(service.asked)) == (0, 4)
    assert run(*arguments("tdx", quote, out), *rest, "--refresh").exit_code == 0
    assert len(service.asked) == 8


def test_the_cache_is_in_the_user_s_place(
    run: Run, service: Service, quote: Path, tmp_path: Path
) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    out = tmp_path / "out"
    command = (*arguments("tdx", quote, out), "--pcs", service.url)
    assert run(*command, "--no-cache", env=env).exit_code == 0
    assert not (tmp_path / "xdg").exists()
    assert run(*command, env=env).exit_code == 0
    kept = tmp_path / "xdg" / "bentoml-secure" / "endorsements"
    assert len(list(kept.iterdir())) == 4


def test_each_kind_asks_its_own_service(
    run: Run, service: Service, tmp_path: Path
) -> None:
    pki = AmdPki(now=datetime.now(UTC))
    path = tmp_path / "report"
    path.write_text(pki.sign_report().hex())
    rest = ("--kds", service.url, "--pcs", "https://nobody.invalid", "--no-cache")
    result = run(*arguments("sev-snp", path, tmp_path / "out"), *rest)
    # Nothing is there: incomplete, which may be tried again.
    assert (result.exit_code, result.stdout) == (3, "")
    assert "status 404" in result.stderr
    assert service.asked[0].startswith("/vcek/v1/Milan/")


def test_nothing_half_fetched_is_written(
    run: Run, service: Service, quote: Path, tmp_path: Path
) -> None:
    (path,) = (path for path in service.answers if "identity" in path)
    service.answers[path] = answer(b"<html>")
    out = tmp_path / "out"
    rest = ("--pcs", service.url, "--no-cache")
    result = run(*arguments("tdx", quote, out), *rest)
    assert (result.exit_code, result.stdout) == (1, "")
    assert service.url in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("kind", "rest", "said"),
    [
        ("nitro", (), "nothing to fetch"),
        ("tdx", ("--pcs", "http://service.example"), "want https"),
        ("tdx", ("--no-cache", "--refresh"), "--no-cache goes with"),
        ("tdx", ("--timeout-seconds", "0"), "0"),
    ],
)
def test_usage(
    run: Run, quote: Path, tmp_path: Path, kind: str, rest: tuple[str, ...], said: str
) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    result = run(*arguments(kind, quote, tmp_path / "out"), *rest, env=env)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_a_place_that_cannot_be_written_is_said(
    run: Run, service: Service, quote: Path, tmp_path: Path
) -> None:
    rest = ("--pcs", service.url, "--no-cache")
    result = run(*arguments("tdx", quote, quote / "out"), *rest)
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
