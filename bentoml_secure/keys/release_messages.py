"""What a runner or prover asks a broker, and what it gets: inside a session only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bentoml_secure.digest import (
    JSON,
    Digest,
    canonical_json,
    parse_digest,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.keys.segment_key import KeyId, SegmentKey, parse_key_id

OPERATION = "release"
VERSION = 1
MAX_MESSAGE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequest:
    """Asks for the key of one's own segment.

    Attributes:
        segment: Its identity.
        key_id: Of the key that the sealed files name.
    """

    segment: Digest
    key_id: KeyId

    def to_bytes(self) -> bytes:
        """Return the request as it travels."""
        return canonical_json(
            {"version": VERSION, "segment": self.segment, "key_id": self.key_id}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> ReleaseRequest:
        """Parse what ``to_bytes`` wrote.

        Raises:
            MalformedInputError: A field missing, unknown or out of its form.
        """
        what = "release request"
        fields = _fields(data, {"version", "segment", "key_id"}, what)
        return cls(segment=_segment(fields, what), key_id=_key_id(fields, what))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedKey:
    """A key on its way to who may have it.

    Attributes:
        segment: Identity of the segment that it opens.
        key: Secret.
        audit: Digest of the log's entry about this release.
    """

    segment: Digest
    key: SegmentKey
    audit: Digest

    def to_bytes(self) -> bytes:
        """Return the answer as it travels: secret."""
        return canonical_json(
            {
                "version": VERSION,
                "segment": self.segment,
                "key_id": self.key.key_id,
                "key": self.key.reveal().hex(),
                "audit": self.audit,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, request: ReleaseRequest) -> ReleasedKey:
        """Parse what ``to_bytes`` wrote, as the answer to a request.

        Raises:
            MalformedInputError: A field missing, unknown or out of its form; another
                key than was asked for.
        """
        what = "released key"
        names = {"version", "segment", "key_id", "key", "audit"}
        fields = _fields(data, names, what)
        key = SegmentKey.from_hex(fields["key"], what=what)
        got = (_segment(fields, what), _key_id(fields, what), key.key_id)
        if got != (want := (request.segment, request.key_id, request.key_id)):
            raise MalformedInputError(f"{what}: got {got}, asked for {want}")
        audit = parse_digest(fields["audit"], what=f"{what} audit", algorithm=JSON)
        return cls(segment=request.segment, key=key, audit=audit)


def _fields(data: bytes, names: set[str], what: str) -> dict[str, Any]:
    document = parse_json(data, what=what, max_bytes=MAX_MESSAGE_BYTES)
    fields = require_fields(document, names, what=what)
    if type(fields["version"]) is not int or fields["version"] != VERSION:
        raise MalformedInputError(
            f"{what} version: got {fields['version']!r:.40}, want {VERSION}"
        )
    return fields


def _segment(fields: dict[str, Any], what: str) -> Digest:
    return parse_digest(fields["segment"], what=f"{what} segment", algorithm=JSON)


def _key_id(fields: dict[str, Any], what: str) -> KeyId:
    return parse_key_id(fields["key_id"], what=f"{what} key_id")
