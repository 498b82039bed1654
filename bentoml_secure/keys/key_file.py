"""The keys of a sealed plan in one file, mode 0600, on their way to a broker.

JSON: {"version": 2, "plan": digest, "role": "prover" or null, "keys": [{"segment",
"key_id", "key"}]}, the key in hex. A role is the only one that the broker will release
them to; null leaves it to its policy. Who reads the file can open the weights: give it
to the broker, then remove it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import (
    JSON,
    Digest,
    parse_digest,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.split.plan import MAX_SEGMENTS

VERSION = 2
MODE = 0o600
MAX_KEY_FILE_BYTES = 256 * 1024

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKeys:
    """The keys of one sealed plan, or of its sealed proof set-up.

    Attributes:
        plan: Its digest.
        keys: Segment identity and key, in the plan's order.
        role: Who alone may have them; None for whoever the broker's policy lists.
    """

    plan: Digest
    keys: tuple[tuple[Digest, SegmentKey], ...]
    role: Role | None = None


def parse_keys(data: bytes) -> PlanKeys:
    """Parse a key file.

    Raises:
        MalformedInputError: A field missing, unknown or out of its form; a segment
            twice; a key that is not the one that its id names.
    """
    what = "key file"
    fields: dict[str, Any] = require_fields(
        parse_json(data, what=what, max_bytes=MAX_KEY_FILE_BYTES),
        {"version", "plan", "role", "keys"},
        what=what,
    )
    if type(fields["version"]) is not int or fields["version"] != VERSION:
        raise MalformedInputError(
            f"{what} version: got {fields['version']!r:.40}, want {VERSION}"
        )
    entries = fields["keys"]
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_SEGMENTS:
        raise MalformedInputError(f"{what} keys: want a list of 1 to {MAX_SEGMENTS}")
    keys = tuple(map(_parse_entry, entries))
    if len({segment for segment, _ in keys}) != len(keys):
        raise MalformedInputError(f"{what} keys: a segment stands there twice")
    plan = parse_digest(fields["plan"], what=f"{what} plan", algorithm=JSON)
    return PlanKeys(plan=plan, keys=keys, role=parse_role(fields["role"], what=what))


def parse_role(value: object, *, what: str) -> Role | None:
    """Return who alone may have a key; None for whoever the policy lists.

    Raises:
        MalformedInputError: Neither nothing nor a prover: nothing else has keys of its
            own.
    """
    if value is None:
        return None
    if value != Role.PROVER.value:
        raise MalformedInputError(
            f"{what} role: got {value!r:.40}, want {Role.PROVER.value!r} or null"
        )
    return Role.PROVER


def _parse_entry(entry: object) -> tuple[Digest, SegmentKey]:
    what = "key file entry"
    fields = require_fields(entry, {"segment", "key_id", "key"}, what=what)
    key = SegmentKey.from_hex(fields["key"], what=f"{what} key")
    if fields["key_id"] != key.key_id:
        raise MalformedInputError(
            f"{what} key_id: got {fields['key_id']!r:.80}, the key's is {key.key_id}"
        )
    segment = parse_digest(fields["segment"], what=f"{what} segment", algorithm=JSON)
    return segment, key


def read_keys(path: Path) -> PlanKeys:
    """Read a key file that nobody else may read.

    Raises:
        ConfigurationError: It cannot be read, or group or others may.
        MalformedInputError: It is not what ``seal-model`` or ``seal-proofs`` writes.
    """
    return parse_keys(read_secret(path, what="key file", max_bytes=MAX_KEY_FILE_BYTES))


def read_secret(path: Path, *, what: str, max_bytes: int) -> bytes:
    """Read a file of secrets, once, bounded, and only if it is kept from others.

    Raises:
        ConfigurationError: It cannot be read, is too large, or group or others may
            read or write it.
    """
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{what} {path}: cannot be read: {error.strerror}."
        ) from error
    if mode & _OTHERS:
        raise ConfigurationError(
            f"{what} {path}: got mode {stat.S_IMODE(mode):04o}, want {MODE:04o}.",
            remedy=f"chmod {MODE:o} it, and ask who has read it.",
        )
    if len(data) > max_bytes:
        raise ConfigurationError(f"{what} {path}: has more than {max_bytes} bytes.")
    return data


@contextmanager
def new_secret(path: Path, *, what: str) -> Iterator[list[bytes]]:
    """Make a file of secrets: claimed at once, written at the end, gone on an error.

    Args:
        path: Must not exist.
        what: Names the file in errors.

    Yields:
        A list; what is put there is written when the block ends.

    Raises:
        ConfigurationError: It exists, or cannot be written.
    """
    try:
        # O_EXCL: a file or link that lies there already is not followed or written.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
    except OSError as error:
        raise ConfigurationError(
            f"{what} {path}: cannot be made: {error.strerror}.",
            remedy="Name a new file; nothing is overwritten.",
        ) from error
    pieces: list[bytes] = []
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield pieces
            stream.writelines(pieces)
            stream.flush()
            os.fsync(descriptor)
    except BaseException as error:
        with contextlib.suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise ConfigurationError(
                f"{what} {path}: cannot be written: {error.strerror}."
            ) from error
        raise


def keys_to_bytes(keys: PlanKeys) -> bytes:
    """Return the document of a key file: secret."""
    entries = [
        {"segment": segment, "key_id": key.key_id, "key": key.reveal().hex()}
        for segment, key in keys.keys
    ]
    document = {
        "version": VERSION,
        "plan": keys.plan,
        "role": keys.role.value if keys.role else None,
        "keys": entries,
    }
    return json.dumps(document, indent=1).encode() + b"\n"
