"""A kernel's configfs-tsm on plain files, which cannot act by themselves.

Behaves as Linux does: attributes appear with a report's folder and go with it, every
write counts up the generation, a result is there once its input is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from bentoml_secure.attestation.attesters.configfs_tsm import ReportFiles

MAX_INBLOB_BYTES = 64
MAX_PRIVLEVEL = 3


class FakeKernel(ReportFiles):
    """Answers what the report's folder is asked for; a switch for each fault.

    Attributes:
        races: How many reports another writer still writes to, after the input.
        busy: Errors that the next reads of a result fail with, in order.
        made: Folders of reports that were made.

    Args:
        provider: As Linux names it: ``sev_guest``; None for no driver.
        report: What the driver makes of the input.
        table: Certificates that the host hands over.
        privlevel_floor: Lowest level that may be asked for.
    """

    def __init__(
        self,
        provider: str | None,
        report: Callable[[bytes], bytes],
        *,
        table: bytes = b"",
        privlevel_floor: int = 0,
    ) -> None:
        self._provider = provider
        self._make = report
        self._table = table
        self._floor = privlevel_floor
        self.races = 0
        self.busy: list[int] = []
        self.made: list[Path] = []

    def mkdir(self, folder: Path) -> None:
        """Make a report with its attributes."""
        if self._provider is None:
            raise _error(errno.ENXIO, folder)
        super().mkdir(folder)
        self.made.append(folder)
        attributes = {"provider": f"{self._provider}\n", "generation": "0\n"}
        attributes |= {"inblob": "", "outblob": ""}
        if self._provider == "sev_guest":
            attributes |= {"auxblob": "", "privlevel": ""}
            attributes |= {"privlevel_floor": f"{self._floor}\n"}
        for name, value in attributes.items():
            (folder / name).write_text(value)

    def rmdir(self, folder: Path) -> None:
        """Remove a report: its attributes go with it."""
        for attribute in folder.iterdir():
            attribute.unlink()
        super().rmdir(folder)

    def write(self, path: Path, data: bytes) -> None:
        """Take an option, refuse what the driver would."""
        super().write(path, data)
        self._count(path.parent)
        if path.name == "inblob":
            self._take_input(path, data)
        elif path.name == "privlevel":
            level = int(data)
            if not self._floor <= level <= MAX_PRIVLEVEL:
                raise _error(errno.EINVAL, path)

    def read(self, path: Path, *, max_bytes: int) -> bytes:
        """Read an attribute; a result only after its input."""
        if path.name == "outblob":
            if self.busy:
                raise _error(self.busy.pop(0), path)
            if not (path.parent / "inblob").read_bytes():
                raise _error(errno.EINVAL, path)
        return super().read(path, max_bytes=max_bytes)

    def _take_input(self, path: Path, data: bytes) -> None:
        if not 0 < len(data) <= MAX_INBLOB_BYTES:
            raise _error(errno.EFBIG, path)
        if self.races:
            self.races -= 1
            data = bytes(byte ^ 0xFF for byte in data)
            self._count(path.parent)
        (path.parent / "outblob").write_bytes(self._make(data))
        if self._table:
            (path.parent / "auxblob").write_bytes(self._table)

    def _count(self, folder: Path) -> None:
        generation = folder / "generation"
        generation.write_text(f"{int(generation.read_text()) + 1}\n")


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
