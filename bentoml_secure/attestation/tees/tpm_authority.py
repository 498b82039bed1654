"""The key of an enrolment authority: Ed25519, as an unencrypted PEM file.

Whoever has it can vouch for any attestation key, and with it for any quote.

Source: RFC 8410 (Ed25519 in PKCS #8).
"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.signing import SigningKey

MAX_KEY_FILE_BYTES = 4096

_NOT_A_KEY = (ValueError, TypeError, UnsupportedAlgorithm)


def generate_authority_key() -> tuple[SigningKey, bytes]:
    """Make a fresh key, and the PEM that ``parse_authority_key`` reads: secret."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return SigningKey(key), pem


def parse_authority_key(pem: bytes) -> SigningKey:
    """Parse an authority's own key.

    Args:
        pem: PKCS #8, not encrypted.

    Raises:
        ConfigurationError: Anything else, or a key of another kind.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except _NOT_A_KEY as error:
        raise ConfigurationError(
            "authority key: not an unencrypted private key in PEM.",
            remedy="`bentoml-secure tpm authority` makes one.",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"authority key: got {type(key).__name__}, want Ed25519.",
            remedy="`bentoml-secure tpm authority` makes one.",
        )
    return SigningKey(key)
