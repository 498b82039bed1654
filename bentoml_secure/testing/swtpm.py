"""A software TPM in a private folder: the real protocol, no hardware.

Its endorsement key is certified by a root of the same folder, whose digest only tests
list. Needs swtpm, swtpm-tools and tpm2-tools.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from bentoml_secure.errors import MissingDependencyError, UnavailableError

TOOLS = ("swtpm", "swtpm_setup", "swtpm_localca", "tpm2_quote")
SECONDS = 20.0
"""To make a TPM and for it to answer."""

_FILES = {
    "setup.conf": (
        "create_certs_tool = {localca}\n"
        "create_certs_tool_config = {folder}/localca.conf\n"
        "create_certs_tool_options = {folder}/localca.options\n"
    ),
    "localca.conf": (
        "statedir = {folder}/ca\n"
        "signingkey = {folder}/ca/signkey.pem\n"
        "issuercert = {folder}/ca/issuercert.pem\n"
        "certserial = {folder}/ca/certserial\n"
    ),
    "localca.options": (
        "--platform-manufacturer simulated\n"
        "--platform-version 1\n"
        "--platform-model not-hardware\n"
    ),
}


def missing_tools() -> list[str]:
    """Return the programs that are not installed; none where a TPM can be started."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


class SoftwareTpm:
    """A TPM that runs from construction until ``close``; a context manager.

    Attributes:
        tcti: How tpm2-tools reach it.

    Raises:
        MissingDependencyError: A program is not installed.
        UnavailableError: It does not start.
    """

    def __init__(self) -> None:
        if missing := missing_tools():
            raise MissingDependencyError(
                f"{missing[0]} is not installed.",
                remedy="Install swtpm, swtpm-tools and tpm2-tools.",
            )
        # Short, for a socket's path has 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="swtpm-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = self._folder / "socket"
        self.tcti = f"swtpm:path={self._socket}"
        try:
            self._make()
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def chain(self) -> bytes:
        """PEM of issuer and root of its endorsement key's certificate."""
        names = ("issuercert.pem", "swtpm-localca-rootca-cert.pem")
        return b"".join((self._folder / "ca" / name).read_bytes() for name in names)

    def reset(self) -> None:
        """Switch it off and on: registers start anew, seeds and counters stay."""
        self._stop()
        self._start()

    def close(self) -> None:
        """Stop it and remove what it kept."""
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> SoftwareTpm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _make(self) -> None:
        for name, text in _FILES.items():
            filled = text.format(
                folder=self._folder, localca=shutil.which("swtpm_localca")
            )
            (self._folder / name).write_text(filled)
        for name in ("state", "ca"):
            (self._folder / name).mkdir()
        setup = ["swtpm_setup", "--tpm2", "--create-ek-cert", "--overwrite"]
        setup += ["--tpmstate", str(self._folder / "state"), "--pcr-banks", "sha256"]
        setup += ["--config", str(self._folder / "setup.conf")]
        try:
            subprocess.run(setup, check=True, capture_output=True, timeout=SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(f"swtpm_setup: {error}: {error.output!r}") from error

    def _start(self) -> None:
        command = [
            "swtpm",
            "socket",
            "--tpm2",
            "--flags",
            "not-need-init,startup-clear",
        ]
        command += ["--tpmstate", f"dir={self._folder / 'state'}"]
        command += ["--server", f"type=unixio,path={self._socket}"]
        command += ["--ctrl", f"type=unixio,path={self._socket}.ctrl"]
        # It says of each tool that it disconnects.
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + SECONDS
        while not self._socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError("swtpm does not start.")
            time.sleep(0.01)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=SECONDS)
            self._process = None
        self._socket.unlink(missing_ok=True)
