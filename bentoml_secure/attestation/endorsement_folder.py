"""Endorsements from a folder: what a process knows of platforms beside what they send.

BENTOML_SECURE_ENDORSEMENTS   folder of files, each one endorsement: DCAP collateral as
JSON, certificates and revocation lists as PEM or DER; default: none

An attester sends them along with its evidence, since a TDX guest has no other way to
send collateral; who judges evidence puts its own before those that came with it. No
file is trusted for lying there: verifiers check all that they use, and pass over what
is for another kind.

The files are read again when one of them changes, so that collateral can be renewed
under a running process. At the start a file that cannot be read is refused; later the
last ones that could are kept, and the log says so.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bentoml_secure.attestation.evidence import (
    MAX_ENDORSEMENTS,
    Endorsements,
    EvidenceRecord,
)
from bentoml_secure.errors import ConfigurationError

ENDORSEMENTS = "BENTOML_SECURE_ENDORSEMENTS"
MAX_FILES = 16
"""So that what a peer sends, its own folder's among it, still fits into a record."""

MAX_BYTES = 1 << 20
"""Of all files: a message of a session has room for them beside the evidence."""

logger = logging.getLogger("bentoml_secure")

_State = tuple[tuple[str, int, int, int], ...]


class EndorsementFolder:
    """Files that are read again when they change; safe to use from several threads.

    Args:
        folder: Whose files are endorsements, but those that begin with a dot.

    Raises:
        ConfigurationError: No such folder, no files or more than ``MAX_FILES``, more
            than ``MAX_BYTES``, or one that is empty or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._trouble = ""
        self._state = self._look()
        self._endorsements = self._read(self._state)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> EndorsementFolder | None:
        """Open the folder that the environment names, if it does.

        Raises:
            ConfigurationError: As the class.
        """
        named = environ.get(ENDORSEMENTS)
        return cls(Path(named).resolve()) if named else None

    @property
    def endorsements(self) -> Endorsements:
        """What the files hold, in the order of their names, each once."""
        with self._lock:
            try:
                # Looked at first: what changes while it is read is read again.
                if (state := self._look()) != self._state:
                    self._endorsements = self._read(state)
                    self._state = state
                self._trouble = ""
            except ConfigurationError as error:
                if str(error) != self._trouble:
                    logger.warning("earlier endorsements are kept: %s", error)
                self._trouble = str(error)
            return self._endorsements

    def _look(self) -> _State:
        found = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    # A file that is being written, or a mounted volume's own.
                    if not entry.name.startswith("."):
                        found.append(_signature(entry))
                    if len(found) > MAX_FILES:
                        break
        except OSError as error:
            raise ConfigurationError(
                f"endorsements: {error.filename}: {error.strerror}."
            ) from error
        if not 0 < len(found) <= MAX_FILES:
            count = f"more than {MAX_FILES}" if found else "no"
            raise ConfigurationError(
                f"endorsements: {self._folder} has {count} files, want 1 to"
                f" {MAX_FILES}.",
                remedy="One file may hold several certificates, as PEM.",
            )
        return tuple(sorted(found))

    def _read(self, state: _State) -> Endorsements:
        contents: list[bytes] = []
        for name, *_ in state:
            left = MAX_BYTES - sum(map(len, contents))
            contents.append(_read_file(self._folder / name, max_bytes=left))
        return tuple(dict.fromkeys(contents))


def endorsed(record: EvidenceRecord, own: Endorsements) -> EvidenceRecord:
    """Return evidence with one's own endorsements before those that came with it.

    Each stands there once. Of those that came with it, what is beyond as many as a
    record may hold is left out: a sender that fills its record loses by that alone.

    Args:
        record: As received or made; its digest stays the same.
        own: At most ``MAX_FILES``.
    """
    joined = tuple(dict.fromkeys((*own, *record.endorsements)))
    return replace(record, endorsements=joined[:MAX_ENDORSEMENTS])


def _signature(entry: os.DirEntry[str]) -> tuple[str, int, int, int]:
    found = entry.stat()
    # Opening another kind, such as a pipe, could wait for ever.
    if not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(f"endorsements: {entry.path} is no file.")
    # The time of change too: a file may be copied with its old time of modification.
    return entry.name, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _read_file(path: Path, *, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigurationError(
            f"endorsements: {path} cannot be read: {error.strerror}."
        ) from error
    if not content:
        raise ConfigurationError(f"endorsements: {path} is empty.")
    if len(content) > max_bytes:
        raise ConfigurationError(
            f"endorsements: the files up to {path} have more than {MAX_BYTES} bytes."
        )
    return content
