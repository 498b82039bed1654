"""Evidence of confidential VMs through Linux's configfs-tsm: TDX, SEV-SNP, Arm CCA.

A report is asked for by making a folder, in which the kernel puts one file an option
and one a result. Every write counts up ``generation``, so that a reader notices who
else wrote to its folder.

BENTOML_SECURE_TSM             folder of reports; default: /sys/kernel/config/tsm/report
BENTOML_SECURE_TSM_PRIVLEVEL   level to report for, 0 to 3 (SEV-SNP: VMPL); default:
the kernel's choice

Source: Documentation/ABI/testing/configfs-tsm-report of Linux 6.7 and newer.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from bentoml_secure.attestation.attesters.certificate_table import (
    parse_certificate_table,
)
from bentoml_secure.attestation.evidence import (
    MAX_ENDORSEMENT_BYTES,
    MAX_EVIDENCE_BYTES,
    Endorsements,
    Evidence,
)
from bentoml_secure.attestation.roles import REPORT_DATA_BYTES
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)

TSM = "BENTOML_SECURE_TSM"
PRIVLEVEL = "BENTOML_SECURE_TSM_PRIVLEVEL"
DEFAULT_ROOT = Path("/sys/kernel/config/tsm/report")

KINDS = {"tdx_guest": "tdx", "sev_guest": "sev-snp", "arm_cca_guest": "cca"}
"""Kinds of evidence by the kernel's name of who provides it."""

ATTEMPTS = 5
MAX_OPTION_BYTES = 4096
_CHUNK_BYTES = 65536
_AGAIN = frozenset({errno.EWOULDBLOCK, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT})
_REMEDIES = {
    errno.ENOENT: "It takes Linux 6.7 with configfs mounted, and a guest driver:"
    " tdx_guest, sev-guest or arm-cca-guest.",
    errno.ENXIO: "Load the guest driver: tdx_guest, sev-guest or arm-cca-guest.",
    errno.EACCES: "Run with the right to write there; it takes root by default.",
    errno.EPERM: "Run with the right to write there; it takes root by default.",
    errno.EINVAL: f"See that {PRIVLEVEL} is a level that this guest may ask for.",
    errno.EFBIG: "The report is larger than this kernel hands out; take a newer one.",
}
logger = logging.getLogger(__name__)


class ReportFiles:
    """System calls on the folder of reports; a fake kernel replaces them."""

    def mkdir(self, folder: Path) -> None:
        """Make a report's folder; the kernel fills it."""
        folder.mkdir()

    def rmdir(self, folder: Path) -> None:
        """Give a report up, with all that the kernel put there."""
        folder.rmdir()

    def write(self, path: Path, data: bytes) -> None:
        """Write an option, in one call: the kernel takes it whole."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.EIO, "short write", str(path))
        finally:
            os.close(descriptor)

    def read(self, path: Path, *, max_bytes: int) -> bytes:
        """Read an option or result.

        Raises:
            OSError: ``EFBIG``, for more than ``max_bytes`` too.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while chunk := os.read(descriptor, _CHUNK_BYTES):
                data += chunk
                if len(data) > max_bytes:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
            return data
        finally:
            os.close(descriptor)


class ConfigfsTsmAttester:
    """Asks the kernel for reports.

    Args:
        root: Folder of reports.
        privlevel: Level to report for, or None for the kernel's choice.
        files: System calls, for tests.

    Raises:
        UnavailableError: The kernel has no such interface or nobody that provides it.
    """

    def __init__(
        self,
        root: Path = DEFAULT_ROOT,
        *,
        privlevel: int | None = None,
        files: ReportFiles | None = None,
    ) -> None:
        self._root = root
        self._privlevel = privlevel
        self._files = files or ReportFiles()
        self._endorsements: Endorsements = ()
        with self._errors(), self._report() as folder:
            provider = self._text(folder / "provider")
        if provider not in KINDS:
            raise UnavailableError(
                f"{root}: reports are provided by {provider!r:.60},"
                f" want one of {', '.join(KINDS)}."
            )
        self._provider = provider

    @property
    def kind(self) -> str:
        """``tdx``, ``sev-snp`` or ``cca``, as the kernel says."""
        return KINDS[self._provider]

    @property
    def endorsements(self) -> Endorsements:
        """Certificates that the host gave along with the last report, if any."""
        return self._endorsements

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, clock: Callable[[], datetime]
    ) -> ConfigfsTsmAttester:
        """Open the interface that the environment names.

        Args:
            environ: See the module.
            clock: Not read: reports hold no time.

        Raises:
            ConfigurationError: A level that is none.
            UnavailableError: The kernel has no such interface.
        """
        del clock
        level = environ.get(PRIVLEVEL)
        if level and level not in ("0", "1", "2", "3"):
            raise ConfigurationError(f"{PRIVLEVEL}: got {level!r:.40}, want 0 to 3.")
        return cls(
            Path(environ.get(TSM) or DEFAULT_ROOT),
            privlevel=int(level) if level else None,
        )

    def attest(self, report_data: bytes) -> Evidence:
        """Return the kernel's report over ``report_data``.

        Raises:
            MalformedInputError: ``report_data`` has another length than 64 bytes.
            UnavailableError: The kernel refuses, or others kept writing.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise MalformedInputError(
                f"report data: got {len(report_data)} bytes, want {REPORT_DATA_BYTES}"
            )
        for _ in range(ATTEMPTS):
            try:
                with self._errors(), self._report() as folder:
                    answer = self._ask(folder, report_data)
            except _BusyError:
                continue
            if answer is not None:
                report, table = answer
                self._endorsements = self._certificates(table)
                return Evidence(kind=self.kind, blob=report)
        raise UnavailableError(
            f"{self._root}: {self._provider} was busy, or others wrote to the report,"
            f" {ATTEMPTS} times."
        )

    def _ask(self, folder: Path, report_data: bytes) -> tuple[bytes, bytes] | None:
        """Return report and certificates, or None if someone else wrote meanwhile."""
        before = self._generation(folder)
        writes = 1
        if self._privlevel is not None:
            self._files.write(folder / "privlevel", str(self._privlevel).encode())
            writes += 1
        self._files.write(folder / "inblob", report_data)
        report = self._files.read(folder / "outblob", max_bytes=MAX_EVIDENCE_BYTES)
        table = b""
        if self._provider == "sev_guest":
            table = self._files.read(
                folder / "auxblob", max_bytes=MAX_ENDORSEMENT_BYTES
            )
        ours = self._generation(folder) == before + writes
        return (report, table) if ours and report_data in report else None

    def _certificates(self, table: bytes) -> Endorsements:
        try:
            return parse_certificate_table(table)
        except MalformedInputError as error:
            # The host's, and a convenience: verifiers fetch certificates themselves.
            logger.warning("%s: certificates beside the report: %s", self.kind, error)
            return ()

    def _generation(self, folder: Path) -> int:
        text = self._text(folder / "generation")
        if not text.isascii() or not text.isdigit():
            raise UnavailableError(f"{folder}/generation: got {text!r:.40}.")
        return int(text)

    def _text(self, path: Path) -> str:
        data = self._files.read(path, max_bytes=MAX_OPTION_BYTES)
        return data.decode("ascii", errors="replace").strip()

    @contextmanager
    def _report(self) -> Iterator[Path]:
        # A folder of its own for each report: nobody else has reason to write there.
        folder = self._root / f"bentoml-secure-{os.getpid()}-{secrets.token_hex(8)}"
        self._files.mkdir(folder)
        try:
            yield folder
        finally:
            try:
                self._files.rmdir(folder)
            except OSError as error:
                logger.warning("%s stays behind: %s", folder, error)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _AGAIN:
                raise _BusyError(f"{self._root}: {error.strerror}.") from error
            raise UnavailableError(
                f"{error.filename or self._root}: {error.strerror}.",
                remedy=_REMEDIES.get(error.errno or 0, ""),
            ) from error


class _BusyError(UnavailableError):
    """The device is in use; the next attempt may be answered."""
