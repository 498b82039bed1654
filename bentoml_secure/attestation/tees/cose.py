"""COSE_Sign1: one signature over a payload, by an elliptic-curve key.

The algorithm stands in the protected header, which the signature covers. It fixes curve
and hash, so a key of another curve verifies nothing.

Source: RFC 9052 section 4.2; RFC 9053 section 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bentoml_secure.attestation.tees.cbor import Tagged, parse_cbor
from bentoml_secure.errors import MalformedInputError

SIGN1 = 18
"""The tag of COSE_Sign1; it may be left out."""

ALGORITHM = 1
ES256, ES384, ES512 = -7, -35, -36

_ALGORITHMS: Mapping[int, tuple[str, hashes.HashAlgorithm, int]] = {
    ES256: ("secp256r1", hashes.SHA256(), 32),
    ES384: ("secp384r1", hashes.SHA384(), 48),
    ES512: ("secp521r1", hashes.SHA512(), 66),
}
"""Name of the curve, hash, bytes of each half of a signature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign1:
    """A message as received; nothing is verified by parsing it.

    Attributes:
        protected: Bytes of the protected header, which the signature covers.
        header: The same, parsed.
        unprotected: What nobody signed.
        payload: What was signed.
        signature: As received.
    """

    protected: bytes
    header: Mapping[int | str, Any]
    unprotected: Mapping[int | str, Any]
    payload: bytes
    signature: bytes

    def verify(self, key: ec.EllipticCurvePublicKey) -> None:
        """Verify the signature over protected header and payload.

        Raises:
            InvalidSignature: By another key, of another curve or length, over other
                bytes, or of an algorithm that is none of ES256, ES384 and ES512.
        """
        algorithm = self.header.get(ALGORITHM)
        if type(algorithm) is not int or algorithm not in _ALGORITHMS:
            raise InvalidSignature(f"no such algorithm: {algorithm!r:.40}")
        curve, digest, size = _ALGORITHMS[algorithm]
        if key.curve.name != curve or len(self.signature) != 2 * size:
            raise InvalidSignature(
                f"a key of {key.curve.name} and {len(self.signature)} bytes are no"
                f" signature over {curve}"
            )
        r, s = (
            int.from_bytes(half, "big")
            for half in (self.signature[:size], self.signature[size:])
        )
        signed = cbor2.dumps(["Signature1", self.protected, b"", self.payload])
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(digest))


def parse_sign1(data: bytes, *, what: str, padded: bool = False) -> Sign1:
    """Parse a COSE_Sign1, with or without its tag.

    Args:
        data: From outside, already bounded.
        what: The thing's name, for the error.
        padded: Whether zero bytes may follow.

    Raises:
        MalformedInputError: Not an array of protected header, unprotected header,
            payload and signature.
    """
    message = parse_cbor(data, what=what, tags=frozenset({SIGN1}), padded=padded)
    if isinstance(message, Tagged):
        message = message.value
    if not isinstance(message, list) or len(message) != 4:
        raise MalformedInputError(f"{what}: want a COSE_Sign1, an array of four")
    protected, unprotected, payload, signature = message
    if not isinstance(unprotected, dict) or not all(
        isinstance(part, bytes) for part in (protected, payload, signature)
    ):
        raise MalformedInputError(
            f"{what}: want a COSE_Sign1 of bytes, map, bytes, bytes"
        )
    header = parse_cbor(protected, what=f"{what} protected header")
    if not isinstance(header, dict):
        raise MalformedInputError(f"{what} protected header: want a map")
    return Sign1(
        protected=protected,
        header=header,
        unprotected=unprotected,
        payload=payload,
        signature=signature,
    )
