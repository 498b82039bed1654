"""One file of a segment, sealed: its form, sealing it, opening it into memory.

    "BSECSEAL" || length of the header, 2 bytes, big-endian || header || chunks

The header is canonical JSON. Each chunk is AES-256-GCM over up to ``chunk_bytes`` of
plaintext, with a tag of 16 bytes:

    key    HKDF-SHA256(segment key, salt = the header's, info = label, segment, path)
    nonce  the chunk's number, 11 bytes, big-endian || 1 for the last chunk, else 0
    data   everything before the first chunk

So a chunk opens only in its place, in this file, of this segment, under this header;
a file cut at the edge of a chunk lacks its last one. The salt is drawn per file: no
key and nonce meet twice. How long the whole must be follows from the header, and is
compared before anything is opened or held in memory. docs/sealed-models.md has the
format for others.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bentoml_secure.attestation.checks import require, requiring
from bentoml_secure.digest import (
    FILE,
    JSON,
    Digest,
    canonical_json,
    parse_digest,
    parse_hex,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.keys.segment_key import KeyId, SegmentKey, parse_key_id
from bentoml_secure.split.files import require_path

MAGIC = b"BSECSEAL"
VERSION = 1
ALGORITHM = "AES-256-GCM/HKDF-SHA256"
CHUNK_BYTES = 1 << 20
MIN_CHUNK_BYTES = 4096
MAX_CHUNK_BYTES = 16 << 20
MAX_PLAIN_BYTES = 64 << 30
MAX_HEADER_BYTES = 2048
SALT_BYTES = 32
TAG_BYTES = 16

_LABEL = b"bentoml-secure/sealed/v1"
_LENGTH_BYTES = 2
_PREFIX_BYTES = len(MAGIC) + _LENGTH_BYTES
_COUNTER_BYTES = 11
_FIELDS = frozenset(
    {
        "version",
        "algorithm",
        "chunk_bytes",
        "salt",
        "key_id",
        "segment",
        "path",
        "plain_bytes",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedHeader:
    """What stands before the chunks; not secret, authentic once a chunk opens.

    Attributes:
        chunk_bytes: Plaintext in each chunk but the last; a power of two.
        salt: Drawn for this file, 32 bytes.
        key_id: Of the segment's key.
        segment: Identity of the segment.
        path: Of the plaintext file, as in the plan.
        plain_bytes: Length of the plaintext.

    Raises:
        MalformedInputError: A value out of its form or bounds.
    """

    chunk_bytes: int
    salt: bytes
    key_id: KeyId
    segment: Digest
    path: str
    plain_bytes: int

    def __post_init__(self) -> None:
        _require_within(
            "chunk_bytes", self.chunk_bytes, MIN_CHUNK_BYTES, MAX_CHUNK_BYTES
        )
        if self.chunk_bytes & (self.chunk_bytes - 1):
            raise MalformedInputError(
                f"sealed file chunk_bytes: got {self.chunk_bytes}, want a power of two"
            )
        _require_within("plain_bytes", self.plain_bytes, 0, MAX_PLAIN_BYTES)
        if len(self.salt) != SALT_BYTES:
            raise MalformedInputError(
                f"sealed file salt: got {len(self.salt)} bytes, want {SALT_BYTES}"
            )
        parse_key_id(self.key_id, what="sealed file key_id")
        parse_digest(self.segment, what="sealed file segment", algorithm=JSON)
        require_path(self.path, what="sealed file path")

    @property
    def chunks(self) -> int:
        """How many chunks follow: at least one, for an empty file has a last one."""
        return max(1, -(-self.plain_bytes // self.chunk_bytes))

    @property
    def sealed_bytes(self) -> int:
        """Length of the whole sealed file."""
        return len(self.to_bytes()) + self.plain_bytes + self.chunks * TAG_BYTES

    def to_bytes(self) -> bytes:
        """Return everything before the first chunk."""
        document = canonical_json(
            {
                "version": VERSION,
                "algorithm": ALGORITHM,
                "chunk_bytes": self.chunk_bytes,
                "salt": self.salt.hex(),
                "key_id": self.key_id,
                "segment": self.segment,
                "path": self.path,
                "plain_bytes": self.plain_bytes,
            }
        )
        return MAGIC + len(document).to_bytes(_LENGTH_BYTES, "big") + document


def _require_within(name: str, value: object, least: int, most: int) -> None:
    # Not isinstance: a boolean is an int.
    if type(value) is not int or not least <= value <= most:
        raise MalformedInputError(
            f"sealed file {name}: got {value!r:.40}, want {least} to {most}"
        )


def read_header(source: BinaryIO) -> SealedHeader:
    """Read what stands before the chunks, and leave ``source`` at the first.

    Raises:
        MalformedInputError: Not a sealed file, or not of this version and algorithm.
    """
    prefix = source.read(_PREFIX_BYTES)
    if len(prefix) != _PREFIX_BYTES or not prefix.startswith(MAGIC):
        raise MalformedInputError(
            f"sealed file: begins with {prefix[: len(MAGIC)]!r}, want {MAGIC!r}"
        )
    length = int.from_bytes(prefix[len(MAGIC) :], "big")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise MalformedInputError(
            f"sealed file header: got {length} bytes, want 1 to {MAX_HEADER_BYTES}"
        )
    data = source.read(length)
    if len(data) != length:
        raise MalformedInputError(
            f"sealed file header: ends after {len(data)} of {length} bytes"
        )
    header = _parse_header(
        parse_json(data, what="sealed file header", max_bytes=MAX_HEADER_BYTES)
    )
    if header.to_bytes() != prefix + data:
        raise MalformedInputError("sealed file header: is not canonical JSON")
    return header


def require_header(
    source: BinaryIO, sealed_bytes: int, *, segment: Digest, path: str
) -> SealedHeader:
    """Read a sealed file's header and compare it with what the file must be.

    Args:
        source: The sealed file, at its beginning; left at its first chunk.
        sealed_bytes: How long it is.
        segment: The segment that it must be of.
        path: The file that it must be.

    Raises:
        MalformedInputError: Not a sealed file.
        CheckFailedError: Of another segment or file; cut or extended.
    """
    header = read_header(source)
    require("segment", header.segment == segment, got=header.segment, want=segment)
    require("path", header.path == path, got=header.path, want=path)
    want = header.sealed_bytes
    require("length", sealed_bytes == want, got=sealed_bytes, want=want)
    return header


def _parse_header(document: object) -> SealedHeader:
    fields: dict[str, Any] = require_fields(
        document, _FIELDS, what="sealed file header"
    )
    if type(fields["version"]) is not int or fields["version"] != VERSION:
        raise MalformedInputError(
            f"sealed file version: got {fields['version']!r:.40}, want {VERSION}"
        )
    if fields["algorithm"] != ALGORITHM:
        raise MalformedInputError(
            f"sealed file algorithm: got {fields['algorithm']!r:.60}, want {ALGORITHM}"
        )
    return SealedHeader(
        chunk_bytes=fields["chunk_bytes"],
        salt=parse_hex(fields["salt"], what="sealed file salt", length=SALT_BYTES),
        key_id=fields["key_id"],
        segment=fields["segment"],
        path=fields["path"],
        plain_bytes=fields["plain_bytes"],
    )


def seal(
    source: BinaryIO,
    target: BinaryIO,
    key: SegmentKey,
    *,
    segment: Digest,
    path: str,
    plain_bytes: int,
    chunk_bytes: int = CHUNK_BYTES,
) -> Digest:
    """Seal one file of a segment, chunk by chunk.

    Args:
        source: The plaintext.
        target: Where the sealed form goes; what is there after an error is no file.
        key: Of the segment.
        segment: Its identity.
        path: Of the file, as in the plan.
        plain_bytes: How long the plaintext is; it must be so.
        chunk_bytes: Plaintext in a chunk.

    Returns:
        Digest of the plaintext that was sealed.

    Raises:
        ConfigurationError: The plaintext is shorter or longer.
        MalformedInputError: An argument out of its form or bounds.
    """
    header = SealedHeader(
        chunk_bytes=chunk_bytes,
        salt=os.urandom(SALT_BYTES),
        key_id=key.key_id,
        segment=segment,
        path=path,
        plain_bytes=plain_bytes,
    )
    before, cipher = header.to_bytes(), _cipher(key, header)
    target.write(before)
    hasher, left = hashlib.sha256(), plain_bytes
    for number in range(header.chunks):
        chunk = source.read(min(chunk_bytes, left))
        left -= len(chunk)
        hasher.update(chunk)
        target.write(cipher.encrypt(_nonce(header, number), chunk, before))
    if left or source.read(1):
        raise ConfigurationError(f"{path}: changed while it was sealed.")
    return Digest(f"{FILE}:{hasher.hexdigest()}")


def open_sealed(
    source: BinaryIO,
    sealed_bytes: int,
    key: SegmentKey,
    *,
    segment: Digest,
    path: str,
    max_bytes: int = MAX_PLAIN_BYTES,
) -> bytes:
    """Open a sealed file into memory; nothing is returned unless all of it opens.

    Args:
        source: The sealed file, at its beginning.
        sealed_bytes: How long it is.
        key: Of the segment.
        segment: The segment that it must be of.
        path: The file that it must be.
        max_bytes: A larger plaintext is refused before anything is opened.

    Returns:
        The plaintext. Whether it is the plan's, its digest says.

    Raises:
        MalformedInputError: Not a sealed file, or too large.
        CheckFailedError: Of another segment, another file or under another key; cut,
            extended or edited anywhere.
    """
    header = require_header(source, sealed_bytes, segment=segment, path=path)
    if header.plain_bytes > max_bytes:
        raise MalformedInputError(
            f"{path}: got {header.plain_bytes} bytes, want at most {max_bytes}"
        )
    # Its value is handed out without another copy.
    opened = io.BytesIO()
    for chunk in _opened_chunks(source, header, key):
        opened.write(chunk)
    return opened.getvalue()


def open_sealed_into(
    target: BinaryIO,
    source: BinaryIO,
    sealed_bytes: int,
    key: SegmentKey,
    *,
    segment: Digest,
    path: str,
) -> Digest:
    """Open a sealed file into another, chunk by chunk: one copy, however large.

    Args:
        target: In memory. What is in it after an error is not to be used.
        source: The sealed file, at its beginning.
        sealed_bytes: How long it is.
        key: Of the segment.
        segment: The segment that it must be of.
        path: The file that it must be.

    Returns:
        Digest of the plaintext.

    Raises:
        MalformedInputError: Not a sealed file.
        CheckFailedError: Of another segment, another file or under another key; cut,
            extended or edited anywhere.
    """
    header = require_header(source, sealed_bytes, segment=segment, path=path)
    hasher = hashlib.sha256()
    for chunk in _opened_chunks(source, header, key):
        hasher.update(chunk)
        target.write(chunk)
    return Digest(f"{FILE}:{hasher.hexdigest()}")


def _opened_chunks(
    source: BinaryIO, header: SealedHeader, key: SegmentKey
) -> Iterator[bytes]:
    require("key_id", header.key_id == key.key_id, got=header.key_id, want=key.key_id)
    before, cipher, left = header.to_bytes(), _cipher(key, header), header.plain_bytes
    for number in range(header.chunks):
        plain_bytes = min(header.chunk_bytes, left)
        left -= plain_bytes
        chunk = source.read(plain_bytes + TAG_BYTES)
        what = f"chunk {number} of {header.path} as it was sealed"
        # A chunk shorter than its tag is no ValueError here: that is InvalidTag too.
        with requiring("chunk", InvalidTag, want=what):
            opened = cipher.decrypt(_nonce(header, number), chunk, before)
        yield opened


def _cipher(key: SegmentKey, header: SealedHeader) -> AESGCM:
    parts = (_LABEL, header.segment.encode(), header.path.encode())
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return AESGCM(key.derive(header.salt, info))


def _nonce(header: SealedHeader, number: int) -> bytes:
    last = number == header.chunks - 1
    return number.to_bytes(_COUNTER_BYTES, "big") + bytes([last])
