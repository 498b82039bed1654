"""A plan's folder whose segments are sealed.

    plan.json                     byte for byte that of the plain folder
    sealed.json                   which key opens which segment
    sealed/<index>/<path>.sealed  each file of each segment, see ``sealed_weights``
    model.sig                     the owner's model signature, where there was one

Plan digest and segment identities do not change by sealing, for they are taken over
the plaintext: what opens is compared with them when it is loaded. Nothing in
sealed.json is trusted: a wrong key id in it asks for a key that does not open the
files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bentoml_secure.attestation.checks import require
from bentoml_secure.digest import (
    JSON,
    Digest,
    canonical_json,
    parse_digest,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.keys.sealed_weights import open_sealed, require_header
from bentoml_secure.keys.segment_key import KeyId, SegmentKey, parse_key_id
from bentoml_secure.split.files import open_below, read_bytes
from bentoml_secure.split.plan import MAX_SEGMENTS, Plan, Segment

SEALED_FILE = "sealed.json"
SEALED_FOLDER = "sealed"
SIGNATURE_FILE = "model.sig"
VERSION = 1
MAX_SEALED_BYTES = 256 * 1024


def sealed_path(index: int, path: str) -> str:
    """Return where a segment's file lies sealed, relative to the folder."""
    return f"{SEALED_FOLDER}/{index}/{path}.sealed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedManifest:
    """What sealed.json says.

    Attributes:
        plan: Digest of the plan beside it.
        keys: Segment identity and key id, in the plan's order.
    """

    plan: Digest
    keys: tuple[tuple[Digest, KeyId], ...]

    def to_bytes(self) -> bytes:
        """Return the document of sealed.json."""
        segments = [{"segment": segment, "key_id": key} for segment, key in self.keys]
        return canonical_json(
            {"version": VERSION, "plan": self.plan, "segments": segments}
        )

    def key_id(self, plan: Plan, index: int) -> KeyId:
        """Return the id of the key that opens a segment.

        Raises:
            ConfigurationError: The plan has no such segment.
            CheckFailedError: The manifest is of another plan.
        """
        _segment(plan, index)
        require("plan", self.plan == plan.digest, got=self.plan, want=plan.digest)
        got = tuple(segment for segment, _ in self.keys)
        want = tuple(segment.identity for segment in plan.segments)
        require("segments", got == want, got=list(got), want=list(want))
        return self.keys[index][1]


def parse_manifest(data: bytes) -> SealedManifest:
    """Parse sealed.json.

    Raises:
        MalformedInputError: A field missing, unknown or out of its form; not
            canonical JSON.
    """
    document = parse_json(data, what=SEALED_FILE, max_bytes=MAX_SEALED_BYTES)
    fields: dict[str, Any] = require_fields(
        document, {"version", "plan", "segments"}, what=SEALED_FILE
    )
    if type(fields["version"]) is not int or fields["version"] != VERSION:
        raise MalformedInputError(
            f"{SEALED_FILE} version: got {fields['version']!r:.40}, want {VERSION}"
        )
    entries = fields["segments"]
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_SEGMENTS:
        raise MalformedInputError(
            f"{SEALED_FILE} segments: want a list of 1 to {MAX_SEGMENTS}"
        )
    manifest = SealedManifest(
        plan=parse_digest(fields["plan"], what=f"{SEALED_FILE} plan", algorithm=JSON),
        keys=tuple(map(_parse_entry, entries)),
    )
    if manifest.to_bytes() != data:
        raise MalformedInputError(f"{SEALED_FILE}: is not canonical JSON")
    return manifest


def _parse_entry(entry: object) -> tuple[Digest, KeyId]:
    what = f"{SEALED_FILE} segment"
    fields = require_fields(entry, {"segment", "key_id"}, what=what)
    return (
        parse_digest(fields["segment"], what=what, algorithm=JSON),
        parse_key_id(fields["key_id"], what=f"{what} key_id"),
    )


def is_sealed(folder: Path) -> bool:
    """Tell whether a plan's folder says that its segments are sealed."""
    return (folder / SEALED_FILE).exists()


def load_manifest(folder: Path) -> SealedManifest:
    """Read and parse ``folder``'s sealed.json.

    Raises:
        ConfigurationError: There is none, or it cannot be read.
        MalformedInputError: It is not what ``seal-model`` writes.
        VerificationError: It is a link out of the folder.
    """
    return parse_manifest(read_bytes(folder, SEALED_FILE, max_bytes=MAX_SEALED_BYTES))


def require_sealed_segment(folder: Path, plan: Plan, index: int) -> KeyId:
    """Return which key opens a segment, if its files look as if that key would.

    Without the key that is all there is to see: whether the files are there, whole,
    and of that segment.

    Raises:
        ConfigurationError: No such segment; a file is missing or cannot be read.
        MalformedInputError: sealed.json or a file is not of its form.
        VerificationError: Of another plan, segment, path or key; a file cut or
            extended; a link out of the folder.
    """
    segment, key_id = _segment(plan, index), load_manifest(folder).key_id(plan, index)
    for entry in segment.files:
        with _sealed_file(folder, index, entry.path) as (source, sealed_bytes):
            header = require_header(
                source, sealed_bytes, segment=segment.identity, path=entry.path
            )
        require(
            "key_id",
            header.key_id == key_id,
            got=f"{entry.path} under {header.key_id}",
            want=key_id,
        )
    return key_id


def open_sealed_segment(
    folder: Path, plan: Plan, index: int, key: SegmentKey
) -> dict[str, bytes]:
    """Open one segment's files into memory, for ``split.open_segment`` to load.

    Args:
        folder: The sealed plan's.
        plan: Its plan.
        index: Which segment, from 0.
        key: That segment's.

    Returns:
        The plaintext of each file by its path in the plan. ``open_segment`` compares
        each with its digest.

    Raises:
        ConfigurationError: No such segment; a file is missing or cannot be read.
        MalformedInputError: A file is no sealed file.
        VerificationError: Another segment, file or key; a file cut, extended or
            edited; a link out of the folder.
    """
    segment = _segment(plan, index)
    return {
        entry.path: _open_file(folder, index, segment, entry.path, key)
        for entry in segment.files
    }


def _open_file(
    folder: Path, index: int, segment: Segment, path: str, key: SegmentKey
) -> bytes:
    with _sealed_file(folder, index, path) as (source, sealed_bytes):
        return open_sealed(
            source, sealed_bytes, key, segment=segment.identity, path=path
        )


@contextmanager
def _sealed_file(folder: Path, index: int, path: str) -> Iterator[tuple[BinaryIO, int]]:
    where = sealed_path(index, path)
    descriptor = open_below(folder, where)
    try:
        with os.fdopen(descriptor, "rb") as source:
            yield source, os.fstat(descriptor).st_size
    except OSError as error:
        raise ConfigurationError(
            f"{where}: cannot be read from {folder}: {error}."
        ) from error


def _segment(plan: Plan, index: int) -> Segment:
    segments: Sequence[Segment] = plan.segments
    if not 0 <= index < len(segments):
        raise ConfigurationError(
            f"segment: got {index}, the plan has 0 to {len(segments) - 1}"
        )
    return segments[index]
