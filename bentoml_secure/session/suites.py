"""The HPKE suites that seal a session's master secret.

    MLKEM768-X25519/HKDF-SHA256/AES-256-GCM   public key: ML-KEM-768 || X25519,
                                              1184 + 32 bytes
    X25519/HKDF-SHA256/AES-256-GCM            public key: 32 bytes

Sources: RFC 9180; draft-ietf-hpke-pq for the hybrid (KEM MLKEM768-X25519).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)

from bentoml_secure.errors import MalformedInputError, VerificationError

HYBRID = "MLKEM768-X25519/HKDF-SHA256/AES-256-GCM"
CLASSIC = "X25519/HKDF-SHA256/AES-256-GCM"
PREFERENCE = (HYBRID, CLASSIC)
"""Best first: a caller takes the first that the responder offers."""

_MLKEM_BYTES = 1184
_X25519_BYTES = 32
_PUBLIC_BYTES: Mapping[str, int] = {
    HYBRID: _MLKEM_BYTES + _X25519_BYTES,
    CLASSIC: _X25519_BYTES,
}
_TAG_BYTES = 16
_ENCAPSULATED_BYTES: Mapping[str, int] = {HYBRID: 1120, CLASSIC: 32}

_SUITES = {
    HYBRID: hpke.Suite(
        hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM
    ),
    CLASSIC: hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
}


def ciphertext_bytes(suite: str, secret_bytes: int) -> int:
    """Return the length of a sealed secret: encapsulated key, secret, tag."""
    return _ENCAPSULATED_BYTES[suite] + secret_bytes + _TAG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class HpkeKeys:
    """One private key per suite; they never leave this process.

    Attributes:
        public: (suite, public key in hex), sorted, as a key document lists them.
    """

    _mlkem: MLKEM768PrivateKey = field(repr=False)
    _hybrid_x25519: X25519PrivateKey = field(repr=False)
    _x25519: X25519PrivateKey = field(repr=False)
    public: tuple[tuple[str, str], ...]

    @classmethod
    def generate(cls) -> HpkeKeys:
        """Make fresh keys; the suites share none."""
        mlkem = MLKEM768PrivateKey.generate()
        hybrid, alone = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        hybrid_public = (
            mlkem.public_key().public_bytes_raw()
            + hybrid.public_key().public_bytes_raw()
        )
        return cls(
            _mlkem=mlkem,
            _hybrid_x25519=hybrid,
            _x25519=alone,
            public=(
                (HYBRID, hybrid_public.hex()),
                (CLASSIC, alone.public_key().public_bytes_raw().hex()),
            ),
        )

    def open(self, suite: str, ciphertext: bytes, *, info: bytes) -> bytes:
        """Return the secret that ``seal`` was given.

        Raises:
            VerificationError: It was sealed to another key, for another ``info``, or
                was altered.
        """
        private = (
            hpke.MLKEM768X25519PrivateKey(self._mlkem, self._hybrid_x25519)
            if suite == HYBRID
            else self._x25519
        )
        try:
            return bytes(_SUITES[suite].decrypt(ciphertext, private, info))
        except (InvalidTag, ValueError) as error:
            raise VerificationError(
                "session: the sealed master secret does not open under this key"
            ) from error


def choose(offered: Collection[str]) -> str:
    """Return the best suite of those offered.

    Raises:
        MalformedInputError: None of them is known here.
    """
    for suite in PREFERENCE:
        if suite in offered:
            return suite
    raise MalformedInputError(
        f"session suites: got {sorted(offered)!r:.200}, want one of {PREFERENCE}"
    )


def seal(suite: str, public_key: bytes, secret: bytes, *, info: bytes) -> bytes:
    """Seal a secret to a public key: encapsulated key || ciphertext || tag.

    Args:
        suite: One of ``PREFERENCE``.
        public_key: From a key document.
        secret: What only the key's owner shall read.
        info: Binds the ciphertext to what was said before.

    Raises:
        MalformedInputError: No public key of this suite.
    """
    if len(public_key) != _PUBLIC_BYTES[suite]:
        raise MalformedInputError(
            f"public key {suite}: got {len(public_key)} bytes,"
            f" want {_PUBLIC_BYTES[suite]}"
        )
    try:
        return bytes(_SUITES[suite].encrypt(secret, _public(suite, public_key), info))
    except ValueError as error:
        raise MalformedInputError(f"public key {suite}: {error}") from error


def _public(
    suite: str, public_key: bytes
) -> X25519PublicKey | hpke.MLKEM768X25519PublicKey:
    x25519 = X25519PublicKey.from_public_bytes(public_key[-_X25519_BYTES:])
    if suite == CLASSIC:
        return x25519
    mlkem = MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_BYTES])
    return hpke.MLKEM768X25519PublicKey(mlkem, x25519)
