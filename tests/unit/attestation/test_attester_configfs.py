"""configfs-tsm: a kernel in a folder, with writers that race and drivers that fail."""

from __future__ import annotations

import errno
import logging
import struct
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation.attesters import configfs_tsm, open_attester
from bentoml_secure.attestation.attesters.certificate_table import (
    parse_certificate_table,
)
from bentoml_secure.attestation.attesters.configfs_tsm import (
    ATTEMPTS,
    ConfigfsTsmAttester,
    ReportFiles,
)
from bentoml_secure.attestation.tees.sev_snp import SevSnp
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)
from bentoml_secure.testing.amd_pki import AmdPki
from bentoml_secure.testing.configfs import FakeKernel

REPORT_DATA = bytes(range(64))
NOW = datetime(2026, 3, 1, tzinfo=UTC)
VCEK = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
ASK = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
OTHER = uuid.UUID("00000000-0000-0000-0000-000000000001")


def wrap(report_data: bytes) -> bytes:
    return b"report over " + report_data + b" signed"


def table(*rows: tuple[bytes, bytes]) -> bytes:
    at = 24 * (len(rows) + 1)
    head, body = b"", b""
    for guid, certificate in rows:
        head += guid + struct.pack("<II", at + len(body), len(certificate))
        body += certificate
    return head + bytes(24) + body


Open = Callable[..., tuple[ConfigfsTsmAttester, FakeKernel]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Open an attester on a fake kernel; keywords are the kernel's."""

    def make(
        provider: str = "tdx_guest", privlevel: int | None = None, **changes: Any
    ) -> tuple[ConfigfsTsmAttester, FakeKernel]:
        kernel = FakeKernel(provider, changes.pop("report", wrap), **changes)
        attester = ConfigfsTsmAttester(tmp_path, privlevel=privlevel, files=kernel)
        return attester, kernel

    return make


@pytest.mark.parametrize(
    ("provider", "kind"),
    [("tdx_guest", "tdx"), ("sev_guest", "sev-snp"), ("arm_cca_guest", "cca")],
)
def test_the_kernel_says_which_kind(opened: Open, provider: str, kind: str) -> None:
    attester, _ = opened(provider)
    evidence = attester.attest(REPORT_DATA)
    assert attester.kind == evidence.kind == kind
    assert evidence.blob == wrap(REPORT_DATA)
    assert attester.endorsements == ()


def test_nothing_stays_behind(opened: Open, tmp_path: Path) -> None:
    attester, kernel = opened()
    attester.attest(REPORT_DATA)
    assert len(kernel.made) == len(set(kernel.made)) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_stays_is_told(
    opened: Open,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attester, kernel = opened()

    def refuse(folder: Path) -> None:
        raise OSError(errno.EBUSY, "busy", str(folder))

    monkeypatch.setattr(kernel, "rmdir", refuse)
    with caplog.at_level(logging.WARNING):
        attester.attest(REPORT_DATA)
    assert "stays behind" in caplog.text


def test_a_report_of_sev_snp_verifies_with_the_certificates_beside_it(
    opened: Open,
) -> None:
    pki = AmdPki(now=NOW)
    names = (VCEK, ASK, ARK)
    beside = zip(names, pki.endorsements(), strict=True)
    attester, _ = opened(
        "sev_guest",
        report=lambda data: pki.attest(data).blob,
        table=table(*((name.bytes, certificate) for name, certificate in beside)),
    )
    evidence = attester.attest(REPORT_DATA)
    claims = SevSnp(roots=pki.roots).verify(evidence, attester.endorsements, now=NOW)
    assert claims.report_data == REPORT_DATA


class TestRaces:
    def test_a_writer_beside_us_is_noticed(self, opened: Open) -> None:
        attester, kernel = opened()
        kernel.races = ATTEMPTS - 1
        assert attester.attest(REPORT_DATA).blob == wrap(REPORT_DATA)
        assert len(kernel.made) == 1 + ATTEMPTS

    def test_one_that_does_not_stop(self, opened: Open, tmp_path: Path) -> None:
        attester, kernel = opened()
        kernel.races = ATTEMPTS
        with pytest.raises(UnavailableError, match=f"others wrote.* {ATTEMPTS} times"):
            attester.attest(REPORT_DATA)
        assert list(tmp_path.iterdir()) == []

    def test_a_report_over_something_else(self, opened: Open) -> None:
        attester, _ = opened(report=lambda data: wrap(data[::-1]))
        with pytest.raises(UnavailableError, match="others wrote to the report"):
            attester.attest(REPORT_DATA)

    @pytest.mark.parametrize(
        "number", [errno.EBUSY, errno.EWOULDBLOCK, errno.EINTR, errno.ETIMEDOUT]
    )
    def test_a_busy_device(self, opened: Open, number: int) -> None:
        attester, kernel = opened()
        kernel.busy = [number] * (ATTEMPTS - 1)
        assert attester.attest(REPORT_DATA).blob == wrap(REPORT_DATA)
        kernel.busy = [number] * ATTEMPTS
        with pytest.raises(UnavailableError, match="was busy"):
            attester.attest(REPORT_DATA)


class TestErrors:
    @pytest.mark.parametrize("length", [0, 32, 63, 65])
    def test_it_reports_64_bytes(self, opened: Open, length: int) -> None:
        attester, _ = opened()
        with pytest.raises(MalformedInputError, match=f"got {length} bytes, want 64"):
            attester.attest(bytes(length))

    def test_no_interface(self, tmp_path: Path) -> None:
        with pytest.raises(UnavailableError, match=r"It takes Linux 6\.7"):
            ConfigfsTsmAttester(tmp_path / "none")

    def test_no_driver(self, tmp_path: Path) -> None:
        with pytest.raises(UnavailableError, match="Load the guest driver"):
            ConfigfsTsmAttester(tmp_path, files=FakeKernel(None, wrap))

    def test_an_unknown_driver(self, opened: Open) -> None:
        with pytest.raises(UnavailableError, match="provided by 'abacus'"):
            opened("abacus")

    def test_no_right(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: ReportFiles, folder: Path) -> None:
            raise OSError(errno.EACCES, "Permission denied", str(folder))

        monkeypatch.setattr(ReportFiles, "mkdir", refuse)
        with pytest.raises(UnavailableError, match="Run with the right to write"):
            ConfigfsTsmAttester(tmp_path)

    @pytest.mark.parametrize(
        ("number", "match"),
        [
            (errno.EFBIG, "larger than this kernel hands out"),
            (errno.EINVAL, "PRIVLEVEL is a level"),
            (errno.EIO, "Input/output error"),
        ],
    )
    def test_a_driver_that_fails(
        self, opened: Open, tmp_path: Path, number: int, match: str
    ) -> None:
        attester, kernel = opened()
        kernel.busy = [number]
        with pytest.raises(UnavailableError, match=match):
            attester.attest(REPORT_DATA)
        assert list(tmp_path.iterdir()) == []

    def test_a_report_that_is_too_long(self, opened: Open) -> None:
        attester, _ = opened(report=lambda data: data + bytes(256 * 1024))
        with pytest.raises(UnavailableError, match="larger than"):
            attester.attest(REPORT_DATA)

    def test_a_generation_that_is_none(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attester, kernel = opened()
        read = kernel.read

        def strange(path: Path, *, max_bytes: int) -> bytes:
            return b"-1" if path.name == "generation" else read(path, max_bytes=9)

        monkeypatch.setattr(kernel, "read", strange)
        with pytest.raises(UnavailableError, match="generation: got '-1'"):
            attester.attest(REPORT_DATA)

    def test_an_input_that_is_too_long_for_the_kernel(
        self, opened: Open, tmp_path: Path
    ) -> None:
        _, kernel = opened()
        folder = tmp_path / "report"
        kernel.mkdir(folder)
        for path, data in (("inblob", bytes(65)), ("privlevel", b"4")):
            (folder / path).touch()
            with pytest.raises(OSError, match=r"too large|Invalid argument"):
                kernel.write(folder / path, data)
        kernel.rmdir(folder)

    def test_no_result_without_an_input(self, opened: Open, tmp_path: Path) -> None:
        _, kernel = opened()
        folder = tmp_path / "report"
        kernel.mkdir(folder)
        with pytest.raises(OSError, match="Invalid argument"):
            kernel.read(folder / "outblob", max_bytes=9)


class TestPrivlevel:
    def test_a_level_is_asked_for(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attester, kernel = opened("sev_guest", privlevel=2, privlevel_floor=2)
        written: list[tuple[str, bytes]] = []
        write = kernel.write

        def note(path: Path, data: bytes) -> None:
            written.append((path.name, data))
            write(path, data)

        monkeypatch.setattr(kernel, "write", note)
        attester.attest(REPORT_DATA)
        assert written == [("privlevel", b"2"), ("inblob", REPORT_DATA)]

    def test_one_below_the_floor(self, opened: Open) -> None:
        attester, _ = opened("sev_guest", privlevel=0, privlevel_floor=2)
        with pytest.raises(UnavailableError, match="PRIVLEVEL is a level"):
            attester.attest(REPORT_DATA)


class TestCertificates:
    def test_those_beside_the_report(self, opened: Open) -> None:
        rows = table((VCEK.bytes, b"vcek"), (OTHER.bytes, b"x"), (ASK.bytes_le, b"ask"))
        attester, _ = opened("sev_guest", table=rows)
        assert not attester.endorsements
        attester.attest(REPORT_DATA)
        assert attester.endorsements == (b"vcek", b"ask")

    def test_a_broken_table_is_told_and_left(
        self, opened: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        attester, _ = opened("sev_guest", table=b"\1" * 30)
        with caplog.at_level(logging.WARNING):
            evidence = attester.attest(REPORT_DATA)
        assert evidence.blob == wrap(REPORT_DATA)
        assert attester.endorsements == ()
        assert "certificates beside the report: certificate table" in caplog.text

    @pytest.mark.parametrize("padding", [0, 1, 4096])
    def test_none(self, padding: int) -> None:
        assert parse_certificate_table(bytes(padding)) == ()

    def test_padding_after_them(self) -> None:
        rows = table((VCEK.bytes, b"vcek")) + bytes(4000)
        assert parse_certificate_table(rows) == (b"vcek",)

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"\1", "no end"),
            (VCEK.bytes + struct.pack("<II", 0, 24), "no end"),
            (VCEK.bytes + struct.pack("<II", 0, 0) + bytes(24), "got 0 bytes at 0"),
            (VCEK.bytes + struct.pack("<II", 48, 1) + bytes(24), "1 bytes at 48 of 48"),
            (VCEK.bytes + struct.pack("<II", 2**32 - 1, 1) + bytes(24), "of 48"),
            (VCEK.bytes + struct.pack("<II", 0, 2**32 - 1) + bytes(24), "of 48"),
            (
                (VCEK.bytes + struct.pack("<II", 0, 40)) * 2 + bytes(24),
                "row 1: got 40 bytes at 0",
            ),
            (
                (OTHER.bytes + struct.pack("<II", 0, 1)) * 64 + bytes(24),
                "more than 64 rows",
            ),
            (b"\1" * (1024 * 1024 + 1), "want at most"),
        ],
        ids=[
            "cut",
            "no zeros",
            "empty",
            "behind",
            "far",
            "long",
            "shared",
            "rows",
            "bytes",
        ],
    )
    def test_tables_that_are_refused(self, data: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            parse_certificate_table(data)


class TestOpening:
    def test_a_level_that_is_none(self, tmp_path: Path) -> None:
        environ = {
            "BENTOML_SECURE_TSM": str(tmp_path),
            "BENTOML_SECURE_TSM_PRIVLEVEL": "4",
        }
        with pytest.raises(ConfigurationError, match="got '4', want 0 to 3"):
            open_attester("tdx", environ, clock=lambda: NOW)

    def test_another_kind_than_was_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kernel = FakeKernel("sev_guest", wrap)
        monkeypatch.setattr(configfs_tsm, "ReportFiles", lambda: kernel)
        environ = {
            "BENTOML_SECURE_TSM": str(tmp_path),
            "BENTOML_SECURE_TSM_PRIVLEVEL": "1",
        }
        with pytest.raises(ConfigurationError, match="this machine makes sev-snp"):
            open_attester("tdx", environ, clock=lambda: NOW)
        for kind in ("sev-snp", "auto"):
            attester = open_attester(kind, environ, clock=lambda: NOW)
            assert attester.kind == "sev-snp"
