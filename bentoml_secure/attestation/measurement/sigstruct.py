"""SIGSTRUCT: what the signer of an SGX enclave says of it, and what follows.

It stands in signed enclaves, and as a file of 1808 bytes beside some (``.sig``, or what
``sgx_sign dump -cssfile`` writes). MRSIGNER is the SHA-256 of its modulus as stored.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3D, table
38-21 (SIGSTRUCT).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.hashes import SHA256

from bentoml_secure.attestation.checks import requiring
from bentoml_secure.errors import MalformedInputError

SIGSTRUCT_BYTES = 1808

_HEADER = bytes.fromhex("06000000e10000000000010000000000")
_HEADER_2 = bytes.fromhex("01010000600000006000000001000000")
_KEY_BYTES = 384
_EXPONENT = 3
_DEBUG = 1 << 1
# The two parts that the signature covers, and what lies between them.
_FIRST = slice(0, 128)
_MODULUS = slice(128, 512)
_EXPONENT_AT = slice(512, 516)
_SIGNATURE = slice(516, 900)
_SECOND = slice(900, 1028)
_BODY = struct.Struct("<4x4x2x2x16sQQQQ32s16x16sHH")
_BODY_AT = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedEnclave:
    """What a quote of the enclave will show.

    Attributes:
        mr_enclave: SHA-256 of what is loaded, as its signer computed it.
        mr_signer: SHA-256 of the signer's key.
        isv_prod_id: Which of the signer's products it is.
        isv_svn: Its security version.
        debug: Whether it may only run open to a debugger.
    """

    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    debug: bool


def parse_sigstruct(data: bytes) -> SignedEnclave:
    """Parse a SIGSTRUCT and verify its signature.

    Args:
        data: Exactly ``SIGSTRUCT_BYTES``, from outside.

    Raises:
        MalformedInputError: Another length or form.
        CheckFailedError: Its signature is not its own key's, over what it says.
    """
    if len(data) != SIGSTRUCT_BYTES:
        raise MalformedInputError(
            f"SIGSTRUCT: got {len(data)} bytes, want {SIGSTRUCT_BYTES}"
        )
    for start, wanted in ((0, _HEADER), (24, _HEADER_2)):
        got = data[start : start + len(wanted)]
        if got != wanted:
            raise MalformedInputError(
                f"SIGSTRUCT: got {got.hex()} at {start}, want {wanted.hex()}"
            )
    _verify(data)
    _, attributes, _, mask, _, measurement, _, product, version = _BODY.unpack_from(
        data, _BODY_AT
    )
    return SignedEnclave(
        mr_enclave=measurement,
        mr_signer=hashlib.sha256(data[_MODULUS]).digest(),
        isv_prod_id=product,
        isv_svn=version,
        debug=bool(attributes & mask & _DEBUG),
    )


def _verify(data: bytes) -> None:
    exponent = int.from_bytes(data[_EXPONENT_AT], "little")
    modulus = int.from_bytes(data[_MODULUS], "little")
    if exponent != _EXPONENT:
        raise MalformedInputError(f"SIGSTRUCT: exponent {exponent}, want {_EXPONENT}")
    try:
        key = RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise MalformedInputError(f"SIGSTRUCT: key: {error}") from error
    if key.key_size != 8 * _KEY_BYTES:
        raise MalformedInputError(
            f"SIGSTRUCT: a key of {key.key_size} bits, want {8 * _KEY_BYTES}"
        )
    # Numbers are little-endian here, and big-endian everywhere else.
    signature = data[_SIGNATURE][::-1]
    with requiring("sigstruct.signature", InvalidSignature, want="its own key's"):
        key.verify(signature, data[_FIRST] + data[_SECOND], PKCS1v15(), SHA256())
