"""Ed25519 signatures in DSSE envelopes.

The envelope and its pre-authentication encoding are securesystemslib's; what stands
here is the strict reading of envelopes from outside (exactly one signature, exact
fields, canonical base64) and a public key that is parsed once instead of per call.

A key id is ``sha256:<hex of the 32 raw key bytes' digest>``: it names a key, it
proves nothing.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from securesystemslib.dsse import Envelope as DsseEnvelope

from bentoml_secure.digest import (
    Digest,
    canonical_json,
    digest_bytes,
    parse_hex,
    parse_json,
)
from bentoml_secure.errors import MalformedInputError, VerificationError

SIGNATURE_BYTES = 64
KEY_BYTES = 32
MAX_ENVELOPE_BYTES = 16 << 20


def decode_base64(text: object, *, what: str, max_bytes: int) -> bytes:
    """Decode canonical, padded base64 of at most ``max_bytes`` bytes.

    Raises:
        MalformedInputError: Anything that does not encode back to itself.
    """
    if not isinstance(text, str) or len(text) > (max_bytes + 2) // 3 * 4:
        raise MalformedInputError(f"{what}: want base64 of at most {max_bytes} bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedInputError(f"{what} is not base64: {error}") from error
    if base64.b64encode(data).decode() != text:
        raise MalformedInputError(f"{what}: not the canonical base64 of its bytes")
    return data


class VerificationKey:
    """An Ed25519 public key, parsed once."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise MalformedInputError(
                f"Ed25519 key: got {len(raw)} bytes, want {KEY_BYTES}"
            )
        self.raw = raw
        self.key_id = digest_bytes(raw)
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    @classmethod
    def from_hex(cls, text: object) -> VerificationKey:
        """Parse 64 hex digits.

        Raises:
            MalformedInputError: Anything else.
        """
        return cls(parse_hex(text, what="Ed25519 key", length=KEY_BYTES))

    def verify(self, signature: bytes, message: bytes) -> None:
        """Verify a signature over ``message``.

        Raises:
            VerificationError: It is not this key's.
        """
        try:
            self._key.verify(signature, message)
        except InvalidSignature as error:
            raise VerificationError(
                f"signature does not verify under key {self.key_id}"
            ) from error


class SigningKey:
    """An Ed25519 private key that stays in this process."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = VerificationKey(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a fresh key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over ``message``."""
        return self._key.sign(message)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A DSSE envelope with one signature, read or made, not yet verified."""

    payload_type: str
    payload: bytes
    key_id: str
    signature: bytes

    def to_json(self) -> dict[str, Any]:
        """Return the DSSE JSON form."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [
                {
                    "keyid": self.key_id,
                    "sig": base64.b64encode(self.signature).decode(),
                }
            ],
        }

    @property
    def payload_digest(self) -> Digest:
        """Digest of the payload, which is canonical JSON: names what was signed."""
        return Digest(f"sha256-jcs-v1:{digest_bytes(self.payload).partition(':')[2]}")


def _pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    encoded: bytes = DsseEnvelope(payload, payload_type, {}).pae()
    return encoded


def sign(key: SigningKey, payload_type: str, document: Any) -> Envelope:
    """Sign the canonical JSON of ``document``.

    Raises:
        MalformedInputError: The document has no canonical form.

    Source: DSSE protocol v1.0.
    """
    payload = canonical_json(document)
    signature = key.sign(_pre_authentication_encoding(payload_type, payload))
    return Envelope(payload_type, payload, key.public.key_id, signature)


def verify(envelope: Envelope, key: VerificationKey, *, payload_type: str) -> Any:
    """Verify an envelope and return the document it signs.

    Args:
        envelope: As parsed; nothing in it is trusted.
        key: The only key accepted.
        payload_type: The only type accepted.

    Raises:
        VerificationError: Another type, key or a signature that does not fit.
        MalformedInputError: The signed payload is not canonical JSON.
    """
    if envelope.payload_type != payload_type:
        raise VerificationError(
            f"payloadType: got {envelope.payload_type!r:.100}, want {payload_type}"
        )
    if envelope.key_id != key.key_id:
        raise VerificationError(f"keyid: got {envelope.key_id:.100}, want {key.key_id}")
    key.verify(
        envelope.signature,
        _pre_authentication_encoding(payload_type, envelope.payload),
    )
    document = parse_json(
        envelope.payload, what=payload_type, max_bytes=MAX_ENVELOPE_BYTES
    )
    if canonical_json(document) != envelope.payload:
        raise MalformedInputError(f"{payload_type}: payload is not canonical JSON")
    return document


def parse_envelope(
    document: object, *, what: str, max_bytes: int = MAX_ENVELOPE_BYTES
) -> Envelope:
    """Parse the JSON form of an envelope; extra fields and signatures are refused.

    Raises:
        MalformedInputError: Not an envelope with exactly one Ed25519 signature.
    """
    if not isinstance(document, dict) or document.keys() != {
        "payload",
        "payloadType",
        "signatures",
    }:
        raise MalformedInputError(
            f"{what}: want exactly payload, payloadType and signatures"
        )
    payload_type, signatures = document["payloadType"], document["signatures"]
    if not isinstance(payload_type, str):
        raise MalformedInputError(f"{what} payloadType: want a string")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise MalformedInputError(f"{what} signatures: want exactly one")
    only = signatures[0]
    if not isinstance(only, dict) or only.keys() != {"keyid", "sig"}:
        raise MalformedInputError(f"{what} signature: want exactly keyid and sig")
    if not isinstance(only["keyid"], str):
        raise MalformedInputError(f"{what} keyid: want a string")
    signature = decode_base64(
        only["sig"], what=f"{what} sig", max_bytes=SIGNATURE_BYTES
    )
    if len(signature) != SIGNATURE_BYTES:
        raise MalformedInputError(
            f"{what} sig: got {len(signature)} bytes, want {SIGNATURE_BYTES}"
        )
    payload = decode_base64(
        document["payload"], what=f"{what} payload", max_bytes=max_bytes
    )
    return Envelope(payload_type, payload, only["keyid"], signature)
