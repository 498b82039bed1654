"""Attestation keys: public areas of a TPM 2.0, their names and attributes.

Only a key that cannot leave its TPM and signs nothing but what that TPM made makes a
quote worth anything; its public area says so, and its name is a digest over all of it.

Source: TCG TPM 2.0 Library, Part 2, 8.3 (TPMA_OBJECT) and 12.2 (TPMT_PUBLIC); Part 1,
16 (names).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from bentoml_secure.attestation.checks import require
from bentoml_secure.attestation.tees.tpm_structures import (
    ALG_ECC,
    ALG_NULL,
    ALG_RSA,
    ALG_SHA256,
    Reader,
)
from bentoml_secure.errors import MalformedInputError

MAX_PUBLIC_BYTES = 1024
NAME_BYTES = 34
"""Algorithm of a name, and SHA-256."""

FIXED_TPM = 1 << 1
FIXED_PARENT = 1 << 4
SENSITIVE_DATA_ORIGIN = 1 << 5
RESTRICTED = 1 << 16
DECRYPT = 1 << 17
SIGN = 1 << 18

_WANTED = {
    "fixedTPM": FIXED_TPM,
    "fixedParent": FIXED_PARENT,
    "sensitiveDataOrigin": SENSITIVE_DATA_ORIGIN,
    "restricted": RESTRICTED,
    "sign": SIGN,
}
_CURVES: dict[int, type[ec.EllipticCurve]] = {3: ec.SECP256R1, 4: ec.SECP384R1}
_DEFAULT_EXPONENT = 65537
_MAX_NUMBER_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationKey:
    """A key that a TPM quotes with.

    Attributes:
        key: Its public part.
        name: What the TPM calls it: a digest over the whole public area.
    """

    key: RSAPublicKey | EllipticCurvePublicKey
    name: bytes


def parse_attestation_key(public: bytes) -> AttestationKey:
    """Return the key that a ``TPM2B_PUBLIC`` describes, if it is fit to quote.

    Raises:
        MalformedInputError: Bytes that do not parse, or a key of another type than
            RSA, P-256 and P-384.
        CheckFailedError: ``ak.attributes`` or ``ak.name_hash`` does not hold.
    """
    if len(public) > MAX_PUBLIC_BYTES:
        raise MalformedInputError(
            f"attestation key: got {len(public)} bytes, want at most {MAX_PUBLIC_BYTES}"
        )
    outer = Reader(public, what="attestation key")
    area = outer.sized()
    outer.finish()
    reader = Reader(area, what="attestation key")
    kind, name_hash, attributes = (reader.integer(n) for n in (2, 2, 4))
    _require_attributes(attributes)
    require(
        "ak.name_hash",
        name_hash == ALG_SHA256,
        got=f"{name_hash:#06x}",
        want=f"SHA-256, {ALG_SHA256:#06x}",
    )
    reader.sized()  # the policy that authorises its use
    key = _read_key(reader, kind)
    reader.finish()
    name = name_hash.to_bytes(2, "big") + hashlib.sha256(area).digest()
    return AttestationKey(key=key, name=name)


def _require_attributes(attributes: int) -> None:
    missing = [name for name, bit in _WANTED.items() if not attributes & bit]
    wrong = [f"not {name}" for name in missing]
    if attributes & DECRYPT:
        wrong.append("decrypt")
    require(
        "ak.attributes",
        not wrong,
        got=", ".join(wrong),
        want=f"{', '.join(_WANTED)}, not decrypt",
    )


def _read_key(reader: Reader, kind: int) -> RSAPublicKey | EllipticCurvePublicKey:
    if reader.integer(2) != ALG_NULL:
        reader.read(4)  # the cipher of a key that has children
    if reader.integer(2) != ALG_NULL:
        reader.read(2)  # the scheme's hash; each signature says which it is
    try:
        if kind == ALG_RSA:
            return _read_rsa(reader)
        if kind == ALG_ECC:
            return _read_ecc(reader)
    except ValueError as error:
        raise MalformedInputError(f"attestation key: no public key: {error}") from error
    raise MalformedInputError(f"attestation key: type {kind:#06x}, want RSA or ECC")


def _read_rsa(reader: Reader) -> RSAPublicKey:
    bits, exponent = reader.integer(2), reader.integer(4)
    modulus = reader.sized()
    if len(modulus) > _MAX_NUMBER_BYTES or 8 * len(modulus) != bits:
        raise MalformedInputError(
            f"attestation key: modulus of {len(modulus)} bytes, want {bits} bits"
        )
    return rsa.RSAPublicNumbers(
        exponent or _DEFAULT_EXPONENT, int.from_bytes(modulus, "big")
    ).public_key()


def _read_ecc(reader: Reader) -> EllipticCurvePublicKey:
    curve = reader.integer(2)
    if reader.integer(2) != ALG_NULL:
        reader.read(2)  # the hash of a key derivation
    x, y = (int.from_bytes(reader.sized(), "big") for _ in range(2))
    if curve not in _CURVES:
        raise MalformedInputError(
            f"attestation key: curve {curve:#06x}, want P-256 or P-384"
        )
    return ec.EllipticCurvePublicNumbers(x, y, _CURVES[curve]()).public_key()
