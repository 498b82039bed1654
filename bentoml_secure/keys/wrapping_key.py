"""The key under which a broker keeps segment keys on disk.

32 bytes in a file of mode 0600, as hex, apart from the database: a copy of either
alone opens nothing. In a TEE it comes from where the platform keeps secrets.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bentoml_secure.attestation.checks import requiring
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import Digest, canonical_json
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.keys.key_file import new_secret, read_secret
from bentoml_secure.keys.segment_key import KEY_BYTES, KeyId, SegmentKey

NONCE_BYTES = 12

_LABEL = b"bentoml-secure/broker-wrap/v1"


class WrappingKey:
    """Wraps segment keys for the broker's database; its text form is its id."""

    __slots__ = ("_cipher", "key_id")

    def __init__(self, secret: SegmentKey) -> None:
        self.key_id = secret.key_id
        self._cipher = AESGCM(secret.derive(b"", _LABEL))

    def wrap(
        self,
        key: SegmentKey,
        *,
        segment: Digest,
        plan: Digest,
        role: Role | None = None,
    ) -> bytes:
        """Return a key as it lies in the database: nonce and ciphertext.

        It is bound to its segment, its plan and to who alone may have it.

        Nonces are random: one wrapping key is good for far more keys than there are.
        """
        nonce = os.urandom(NONCE_BYTES)
        about = _about(segment, plan, key.key_id, role)
        return nonce + self._cipher.encrypt(nonce, key.reveal(), about)

    def unwrap(
        self,
        wrapped: bytes,
        *,
        segment: Digest,
        plan: Digest,
        key_id: KeyId,
        role: Role | None = None,
    ) -> SegmentKey:
        """Return a key from the database.

        Raises:
            CheckFailedError: Another wrapping key; a row that somebody edited.
        """
        nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        about = _about(segment, plan, key_id, role)
        # ValueError: a nonce too short.
        with requiring("wrapped_key", InvalidTag, ValueError, want="as it was wrapped"):
            raw = self._cipher.decrypt(nonce, sealed, about)
        return SegmentKey(raw)

    def __repr__(self) -> str:
        return f"WrappingKey({self.key_id})"


def _about(segment: Digest, plan: Digest, key_id: KeyId, role: Role | None) -> bytes:
    return canonical_json(
        {
            "segment": segment,
            "plan": plan,
            "key_id": key_id,
            "role": role.value if role else None,
        }
    )


def create_wrapping_key(path: Path) -> WrappingKey:
    """Make a wrapping key and the file that holds it.

    Raises:
        ConfigurationError: The file exists or cannot be written.
    """
    secret = SegmentKey.generate()
    with new_secret(path, what="wrapping key") as pieces:
        pieces.append(secret.reveal().hex().encode() + b"\n")
    return WrappingKey(secret)


def read_wrapping_key(path: Path) -> WrappingKey:
    """Read the file that ``create_wrapping_key`` made.

    Raises:
        ConfigurationError: It cannot be read, others may, or it holds something else.
    """
    data = read_secret(path, what="wrapping key", max_bytes=4 * KEY_BYTES)
    return parse_wrapping_key(data.decode("ascii", "replace"), what=str(path))


def parse_wrapping_key(text: str, *, what: str) -> WrappingKey:
    """Return the wrapping key that 64 hex digits spell.

    Args:
        text: Secret; an error does not repeat it.
        what: Where it stood, for the error.

    Raises:
        ConfigurationError: Anything else.
    """
    try:
        return WrappingKey(SegmentKey.from_hex(text.strip(), what=what))
    except MalformedInputError as error:
        raise ConfigurationError(
            f"wrapping key {error}.", remedy="`bentoml-secure broker init` makes one."
        ) from error
