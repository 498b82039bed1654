"""The key of one segment: secret bytes that do not get out by accident."""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Any, NewType, NoReturn

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bentoml_secure.errors import MalformedInputError

KEY_BYTES = 32

KeyId = NewType("KeyId", str)
"""64 hex digits that follow from a key: it names and commits to it, and tells nothing
of it."""

_HEX = re.compile(r"[0-9a-f]{64}")
_KEY_ID_LABEL = b"bentoml-secure/key-id/v1"


def parse_key_id(text: object, *, what: str) -> KeyId:
    """Return ``text`` as the id of a key.

    Raises:
        MalformedInputError: Not 64 lower-case hex digits.
    """
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise MalformedInputError(f"{what}: got {text!r:.80}, want 64 hex digits")
    return KeyId(text)


class SegmentKey:
    """What opens the sealed files of one segment.

    Its text form is its id. It cannot be pickled or copied into another process by
    accident; only ``reveal`` hands out the bytes, for sending them sealed.
    """

    __slots__ = ("_raw", "key_id")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise MalformedInputError(
                f"segment key: got {len(raw)} bytes, want {KEY_BYTES}"
            )
        self._raw = raw
        self.key_id = KeyId(self.derive(b"", _KEY_ID_LABEL).hex())

    @classmethod
    def generate(cls) -> SegmentKey:
        """Make a key from the system's randomness."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def from_hex(cls, text: object, *, what: str) -> SegmentKey:
        """Return the key that 64 lower-case hex digits spell.

        Raises:
            MalformedInputError: Anything else; the error does not repeat it.
        """
        if not isinstance(text, str) or not _HEX.fullmatch(text):
            raise MalformedInputError(f"{what}: want 64 lower-case hex digits")
        return cls(bytes.fromhex(text))

    def derive(self, salt: bytes, info: bytes) -> bytes:
        """Return 32 bytes for one purpose.

        Source: RFC 5869, HKDF-SHA256.
        """
        return HKDF(SHA256(), KEY_BYTES, salt, info).derive(self._raw)

    def reveal(self) -> bytes:
        """Return the secret bytes."""
        return self._raw

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SegmentKey):
            return NotImplemented
        return hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self.key_id)

    def __repr__(self) -> str:
        return f"SegmentKey({self.key_id})"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a segment key is not pickled or copied")
