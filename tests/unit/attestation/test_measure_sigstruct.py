"""SIGSTRUCT: what it says of an enclave, once its signature holds."""

from __future__ import annotations

import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from bentoml_secure.attestation.measurement.sigstruct import (
    SIGSTRUCT_BYTES,
    parse_sigstruct,
)
from bentoml_secure.errors import CheckFailedError, MalformedInputError
from tests.unit.attestation.enclave_images import sigstruct

COVERED = [*range(128), *range(900, 1028)]


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(3, 3072)


def test_what_it_says(key: rsa.RSAPrivateKey) -> None:
    data = sigstruct(key)
    assert len(data) == SIGSTRUCT_BYTES
    enclave = parse_sigstruct(data)
    assert enclave.mr_enclave == bytes(range(32)) == data[960:992]
    assert enclave.mr_signer == hashlib.sha256(data[128:512]).digest()
    assert (enclave.isv_prod_id, enclave.isv_svn) == struct.unpack(
        "<HH", data[1024:1028]
    )
    assert (enclave.isv_prod_id, enclave.isv_svn) == (7, 3)
    assert not enclave.debug


@pytest.mark.parametrize(
    ("attributes", "mask", "debug"),
    [(6, 0xFFFFFFFFFFFFFFFF, True), (6, 0xFFFFFFFFFFFFFFFD, False), (4, 2, False)],
)
def test_an_enclave_only_for_debugging_is_told(
    key: rsa.RSAPrivateKey, attributes: int, mask: int, debug: bool
) -> None:
    data = sigstruct(key, attributes=attributes, mask=mask)
    assert parse_sigstruct(data).debug is debug


def test_another_key_s_signature_is_refused(key: rsa.RSAPrivateKey) -> None:
    other = rsa.generate_private_key(3, 3072)
    with pytest.raises(CheckFailedError, match="its own key") as caught:
        parse_sigstruct(sigstruct(key, signing_key=other))
    assert caught.value.findings[0].field == "sigstruct.signature"


def test_every_covered_byte_is_covered(key: rsa.RSAPrivateKey) -> None:
    good = sigstruct(key)
    for index in COVERED:
        data = bytearray(good)
        data[index] ^= 0x40
        with pytest.raises(
            (CheckFailedError, MalformedInputError), match=r"(?i)sigstruct"
        ):
            parse_sigstruct(bytes(data))


@pytest.mark.parametrize("index", [516, 700, 899])
def test_a_flipped_signature_is_refused(key: rsa.RSAPrivateKey, index: int) -> None:
    data = bytearray(sigstruct(key))
    data[index] ^= 1
    with pytest.raises(CheckFailedError, match=r"sigstruct\.signature"):
        parse_sigstruct(bytes(data))


@pytest.mark.parametrize(
    ("start", "value", "match"),
    [
        (0, b"\x07", "at 0"),
        (24, b"\x02", "at 24"),
        (512, b"\x01\0\x01\0", "exponent 65537"),
        (512, b"\0\0\0\0", "exponent 0"),
        (128, bytes(384), "key"),
        (128, b"\x03" + bytes(383), "key"),
        (511, b"\0", "bits"),
    ],
)
def test_other_forms_are_refused(
    key: rsa.RSAPrivateKey, start: int, value: bytes, match: str
) -> None:
    data = bytearray(sigstruct(key))
    data[start : start + len(value)] = value
    with pytest.raises(MalformedInputError, match=match):
        parse_sigstruct(bytes(data))


@pytest.mark.parametrize("length", [0, 1807, 1809])
def test_other_lengths_are_refused(key: rsa.RSAPrivateKey, length: int) -> None:
    data = (sigstruct(key) + b"\0")[:length]
    with pytest.raises(MalformedInputError, match=f"got {length} bytes"):
        parse_sigstruct(data)
