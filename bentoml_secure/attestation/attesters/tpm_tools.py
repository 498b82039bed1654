"""Runs tpm2-tools: the one way that a TPM is asked for anything.

BENTOML_SECURE_TPM_TCTI   how to reach the TPM; default: device:/dev/tpmrm0

Source: manual pages of tpm2-tools 5.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bentoml_secure.errors import (
    ConfigurationError,
    MissingDependencyError,
    UnavailableError,
)

TCTI = "BENTOML_SECURE_TPM_TCTI"
DEFAULT_TCTI = "device:/dev/tpmrm0"
TIMEOUT_SECONDS = 30.0
"""For one tool; a discrete TPM takes seconds to derive a key."""

_MANAGED = ("device:/dev/tpmrm", "tabrmd")
_EMULATED = ("swtpm:", "mssim:")


class Tpm2Tools:
    """Runs tpm2-tools, each command in a private folder that does not outlive it.

    Args:
        tcti: How to reach the TPM: ``device:/dev/tpmrm0``, ``tabrmd``, or an emulator's
            ``swtpm:...`` or ``mssim:...``.
        timeout_seconds: For one tool.

    Raises:
        ConfigurationError: Another TCTI: without a resource manager, what one process
            leaves loaded shuts out the others.
    """

    def __init__(self, tcti: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        if not tcti.startswith(_MANAGED + _EMULATED):
            raise ConfigurationError(
                f"{TCTI}: got {tcti!r:.80}, want a TPM behind a resource manager.",
                remedy=f"Use {DEFAULT_TCTI}, tabrmd, or an emulator's swtpm:...",
            )
        self._tcti = tcti
        self._timeout = timeout_seconds
        self._lock = threading.Lock()

    def run(
        self,
        *commands: Sequence[str],
        files: Mapping[str, bytes] | None = None,
        results: Sequence[str] = (),
        cleanup: Sequence[Sequence[str]] = (),
    ) -> list[bytes]:
        """Run commands in turn and return the files that they wrote.

        Args:
            commands: Each a tool and its arguments; files by their names alone.
            files: What the folder holds at first.
            results: Names of the files to return.
            cleanup: Commands to run last, and after a failure too.

        Raises:
            MissingDependencyError: tpm2-tools is not installed.
            UnavailableError: A tool failed or took too long.
        """
        with (
            self._lock,
            tempfile.TemporaryDirectory(prefix="bentoml-secure-tpm-") as name,
        ):
            folder = Path(name)
            for file, content in (files or {}).items():
                (folder / file).write_bytes(content)
            try:
                for command in commands:
                    self._run(command, folder)
            except UnavailableError:
                # What failed is worth telling, not what could not be undone for it.
                with suppress(UnavailableError):
                    self._clean(cleanup, folder)
                raise
            self._clean(cleanup, folder)
            return [(folder / file).read_bytes() for file in results]

    def _clean(self, cleanup: Sequence[Sequence[str]], folder: Path) -> None:
        for command in cleanup:
            self._run(command, folder)
        # A resource manager does this itself when the tool disconnects.
        if self._tcti.startswith(_EMULATED):
            self._run(["tpm2_flushcontext", "-t"], folder)

    def _run(self, command: Sequence[str], folder: Path) -> None:
        try:
            done = subprocess.run(
                [*command, "-T", self._tcti],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout,
                check=False,
            )
        except FileNotFoundError as error:
            raise MissingDependencyError(
                f"{command[0]} is not installed.",
                remedy="Install tpm2-tools, version 5 or newer.",
            ) from error
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(
                f"TPM: {command[0]} took longer than {self._timeout:.0f} s."
            ) from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            said = [line for line in lines if line.startswith("ERROR")] or lines
            raise UnavailableError(
                f"TPM at {self._tcti}: {command[0]} failed:"
                f" {said[0] if said else f'exit status {done.returncode}'}.",
                remedy="See that this process may open the TPM.",
            )
