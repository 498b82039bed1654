"""CPAKs: the keys that sign Arm CCA platform tokens, found among endorsements.

There is no certificate above a CPAK: whoever makes the platform publishes it, and it is
its own trust anchor. It is named by the SHA-256 of its SubjectPublicKeyInfo. Accepted
forms are a JSON Web Key, a set of them, and a public key as PEM or DER.

Source: RFC 7517, RFC 7518 section 6.2; RFC 5280 section 4.1.2.7.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from bentoml_secure.attestation.tees.cca_tokens import point
from bentoml_secure.digest import Digest, digest_bytes, parse_json
from bentoml_secure.errors import MalformedInputError

MAX_KEY_BYTES = 64 * 1024
MAX_KEYS = 64

_PEM = b"-----BEGIN PUBLIC KEY-----"
_SEQUENCE = b"\x30"
_CURVES: Mapping[str, tuple[ec.EllipticCurve, int]] = {
    "P-256": (ec.SECP256R1(), 32),
    "P-384": (ec.SECP384R1(), 48),
    "P-521": (ec.SECP521R1(), 66),
}


def find_keys(endorsements: Sequence[bytes]) -> list[ec.EllipticCurvePublicKey]:
    """Return the CPAKs among endorsements; those of other kinds are passed over.

    Args:
        endorsements: From outside, any order.

    Raises:
        MalformedInputError: A JSON Web Key of an elliptic curve that is none; more
            than ``MAX_KEYS``.
    """
    keys = [key for each in endorsements for key in _keys_in(each)]
    if len(keys) > MAX_KEYS:
        raise MalformedInputError(f"CPAKs: got {len(keys)}, want at most {MAX_KEYS}")
    return keys


def key_digest(key: ec.EllipticCurvePublicKey) -> Digest:
    """Return the digest that names a CPAK: of its SubjectPublicKeyInfo in DER."""
    return digest_bytes(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )


def _keys_in(data: bytes) -> Iterator[ec.EllipticCurvePublicKey]:
    text = data.strip()
    if len(data) > MAX_KEY_BYTES:
        return
    if text.startswith((b"{", b"[")):
        yield from _keys_in_json(text)
    elif text.startswith(_PEM) or data.startswith(_SEQUENCE):
        load = load_pem_public_key if text.startswith(_PEM) else load_der_public_key
        try:
            key = load(text if load is load_pem_public_key else data)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # A certificate of another kind, a key of another algorithm.
            return
        if isinstance(key, ec.EllipticCurvePublicKey):
            yield key


def _keys_in_json(text: bytes) -> Iterator[ec.EllipticCurvePublicKey]:
    try:
        document = parse_json(text, what="endorsement", max_bytes=MAX_KEY_BYTES)
    except MalformedInputError:
        # Collateral of another kind need not be strict JSON.
        return
    if isinstance(document, dict) and isinstance(document.get("keys"), list):
        document = document["keys"]
    for key in document if isinstance(document, list) else [document]:
        if isinstance(key, dict) and key.get("kty") == "EC":
            yield _parse_jwk(key)


def _parse_jwk(key: Mapping[str, Any]) -> ec.EllipticCurvePublicKey:
    name = key.get("crv")
    if not isinstance(name, str) or name not in _CURVES:
        raise MalformedInputError(
            f"CPAK curve: got {name!r:.40}, want {', '.join(_CURVES)}"
        )
    curve, size = _CURVES[name]
    x, y = (_coordinate(key.get(name), name, size) for name in ("x", "y"))
    return point(x, y, curve, what="CPAK")


def _coordinate(value: object, name: str, size: int) -> bytes:
    try:
        text = str(value) + "=" * (-len(str(value)) % 4)
        data = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedInputError(f"CPAK {name} is not base64url: {error}") from error
    if len(data) != size:
        raise MalformedInputError(f"CPAK {name}: got {len(data)} bytes, want {size}")
    return data
