"""Keys of result tokens: what an issuer signs with, what a relying party pins.

A key is of P-256 or Ed25519, and each is for one algorithm of signatures: what a token
says of its algorithm chooses nothing.

Source: RFC 7517 (key sets), RFC 7638 (thumbprints), RFC 7518 section 6.2, RFC 8037.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import ConfigurationError, MalformedInputError

MAX_KEY_FILE_BYTES = 64 * 1024
MAX_KEYS = 16
KEY_BYTES = 32
"""Of a coordinate of P-256, and of an Ed25519 key."""

P256, ED25519 = "P-256", "Ed25519"
ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    # The first is what tokens are issued with; Ed25519 is EdDSA's name in RFC 9864.
    P256: ("ES256",),
    ED25519: ("EdDSA", "Ed25519"),
}
_TYPES = {P256: "EC", ED25519: "OKP"}
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_PEM_PUBLIC = re.compile(
    rb"-----BEGIN PUBLIC KEY-----[^-]+-----END PUBLIC KEY-----", re.DOTALL
)
_NOT_A_KEY = (ValueError, TypeError, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A key that signs tokens, or that a relying party pins to verify them.

    Attributes:
        curve: P-256 or Ed25519.
        public: Its public members, as a JSON Web Key.
        pem: The key itself: PKCS #8 or SubjectPublicKeyInfo.
        signs: Whether it is a private key.
        kid: What its key set calls it.
        key_id: Its RFC 7638 thumbprint: SHA-256 in base64url.
    """

    curve: str
    public: Mapping[str, str]
    pem: bytes = field(repr=False)
    signs: bool
    kid: str | None = None
    key_id: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(canonical_json(dict(self.public))).digest()
        object.__setattr__(self, "key_id", encode_base64url(digest))

    @property
    def names(self) -> frozenset[str]:
        """What a token may call it: its thumbprint, or as its key set does."""
        return frozenset({self.key_id, self.kid or self.key_id})

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The names of the one algorithm that it is for."""
        return ALGORITHMS[self.curve]

    def has_public_members(self, jwk: object) -> bool:
        """Tell whether a JSON Web Key from outside is this one's public key."""
        if not isinstance(jwk, dict) or "d" in jwk:
            return False
        return all(
            # As numbers, for Trustee leaves out leading zeros.
            _number(jwk.get(name)) == _number(value)
            if name in {"x", "y"}
            else jwk.get(name) == value
            for name, value in self.public.items()
        )


def load_signing_key(pem: bytes) -> TokenKey:
    """Load the private key that will sign tokens.

    Args:
        pem: PKCS #8 or SEC1, not encrypted: of P-256 or Ed25519.

    Raises:
        ConfigurationError: Anything else.
    """
    _bound(pem, "signing key")
    try:
        key = load_pem_private_key(pem, password=None)
    except _NOT_A_KEY as error:
        raise ConfigurationError(
            "signing key: not an unencrypted PEM private key.",
            remedy="openssl genpkey -algorithm ed25519 makes one.",
        ) from error
    if not isinstance(key, EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise _other_curve("signing key")
    curve, public = _members(key.public_key(), "signing key")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return TokenKey(curve=curve, public=public, pem=pem, signs=True)


def load_public_keys(pem: bytes) -> tuple[TokenKey, ...]:
    """Load the public keys that a relying party pins.

    Args:
        pem: One or more blocks ``PUBLIC KEY``: of P-256 or Ed25519.

    Raises:
        ConfigurationError: Another kind of key, a private key, none or too many.
    """
    what = "public key"
    _bound(pem, what)
    if b"PRIVATE KEY" in pem:
        raise ConfigurationError(f"{what}: the file holds a private key.")
    blocks = _PEM_PUBLIC.findall(pem)
    if not 0 < len(blocks) <= MAX_KEYS:
        raise ConfigurationError(
            f"{what}: got {len(blocks)} PEM blocks PUBLIC KEY, want 1 to {MAX_KEYS}.",
            remedy="openssl pkey -pubout makes one; of a certificate, openssl x509"
            " -pubkey -noout.",
        )
    keys = []
    for block in blocks:
        try:
            key = load_pem_public_key(block)
        except _NOT_A_KEY as error:
            raise ConfigurationError(f"{what}: a PEM block is no key.") from error
        keys.append(_public_key(key, what))
    return _named_apart(keys, what)


def load_key_set(data: bytes) -> tuple[TokenKey, ...]:
    """Load the keys of a JSON Web Key Set that a relying party pins.

    Keys of other types and uses are passed over, as RFC 7517 section 5 has it.

    Args:
        data: JSON, ``{"keys": [...]}``.

    Raises:
        ConfigurationError: Another form; no key of P-256 or Ed25519, one that does not
            load, one for another algorithm, a private one, two with one name.
    """
    what = "key set"
    _bound(data, what)
    try:
        document = parse_json(data, what=what, max_bytes=MAX_KEY_FILE_BYTES)
        listed = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(listed, list) or len(listed) > MAX_KEYS:
            raise ConfigurationError(f"{what}: want at most {MAX_KEYS} under keys.")
        keys = [_set_key(jwk) for jwk in listed if _is_for_tokens(jwk)]
    except MalformedInputError as error:
        raise ConfigurationError(str(error)) from error
    if not keys:
        raise ConfigurationError(f"{what}: holds no key of P-256 or Ed25519.")
    return _named_apart(keys, what)


def _is_for_tokens(jwk: object) -> bool:
    if not isinstance(jwk, dict):
        raise ConfigurationError("key set: a key is no object.")
    if jwk.keys() & {"d", "k"}:
        raise ConfigurationError("key set: holds a private or secret key.")
    curve = jwk.get("crv")
    known = isinstance(curve, str) and jwk.get("kty") == _TYPES.get(curve, "")
    return known and jwk.get("use", "sig") == "sig"


def _set_key(jwk: Mapping[str, Any]) -> TokenKey:
    curve, kid = str(jwk["crv"]), jwk.get("kid")
    if jwk.get("alg", ALGORITHMS[curve][0]) not in ALGORITHMS[curve]:
        raise ConfigurationError(f"key set: a key of {curve} for {jwk['alg']!r:.40}.")
    if kid is not None and (not isinstance(kid, str) or not kid):
        raise ConfigurationError(f"key set: a key's kid is {kid!r:.60}.")
    try:
        key = _from_members(jwk, curve)
    except ValueError as error:
        raise ConfigurationError(f"key set: a key of {curve}: {error}.") from error
    return _public_key(key, "key set", kid=kid)


def _from_members(
    jwk: Mapping[str, Any], curve: str
) -> EllipticCurvePublicKey | Ed25519PublicKey:
    x = _coordinate(jwk, "x")
    if curve == ED25519:
        return Ed25519PublicKey.from_public_bytes(x)
    y = int.from_bytes(_coordinate(jwk, "y"), "big")
    numbers = EllipticCurvePublicNumbers(int.from_bytes(x, "big"), y, SECP256R1())
    return numbers.public_key()


def _coordinate(jwk: Mapping[str, Any], name: str) -> bytes:
    value = decode_base64url(jwk.get(name), what=f"key set {name}")
    if len(value) != KEY_BYTES:
        raise MalformedInputError(
            f"key set {name}: got {len(value)} bytes, want {KEY_BYTES}"
        )
    return value


def _public_key(key: object, what: str, *, kid: str | None = None) -> TokenKey:
    if not isinstance(key, EllipticCurvePublicKey | Ed25519PublicKey):
        raise _other_curve(what)
    curve, public = _members(key, what)
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return TokenKey(curve=curve, public=public, pem=pem, signs=False, kid=kid)


def _members(
    key: EllipticCurvePublicKey | Ed25519PublicKey, what: str
) -> tuple[str, dict[str, str]]:
    if isinstance(key, Ed25519PublicKey):
        return ED25519, {
            "kty": "OKP",
            "crv": ED25519,
            "x": encode_base64url(key.public_bytes_raw()),
        }
    if not isinstance(key.curve, SECP256R1):
        raise _other_curve(what)
    numbers = key.public_numbers()
    return P256, {
        "kty": "EC",
        "crv": P256,
        "x": encode_base64url(numbers.x.to_bytes(KEY_BYTES, "big")),
        "y": encode_base64url(numbers.y.to_bytes(KEY_BYTES, "big")),
    }


def _other_curve(what: str) -> ConfigurationError:
    return ConfigurationError(f"{what}: of another kind, want P-256 or Ed25519.")


def _named_apart(keys: list[TokenKey], what: str) -> tuple[TokenKey, ...]:
    names = [name for key in keys for name in key.names]
    if len(set(names)) != len(names):
        raise ConfigurationError(f"{what}: two keys have one name.")
    return tuple(keys)


def _number(text: object) -> int | None:
    if not isinstance(text, str) or len(text) > 2 * KEY_BYTES:
        return None
    try:
        return int.from_bytes(decode_base64url(text, what="jwk"), "big")
    except MalformedInputError:
        return None


def _bound(data: bytes, what: str) -> None:
    if len(data) > MAX_KEY_FILE_BYTES:
        raise ConfigurationError(
            f"{what}: got {len(data)} bytes, want at most {MAX_KEY_FILE_BYTES}."
        )


def encode_base64url(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_base64url(text: object, *, what: str) -> bytes:
    """Decode base64url without padding; the caller bounds its length.

    Raises:
        MalformedInputError: Anything that does not encode back to itself.
    """
    if (
        not isinstance(text, str)
        or not _BASE64URL.fullmatch(text)
        or len(text) % 4 == 1
    ):
        raise MalformedInputError(f"{what}: not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode_base64url(data) != text:
        raise MalformedInputError(f"{what}: not the canonical base64url of its bytes")
    return data
