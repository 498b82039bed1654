"""The CBOR reader against a general decoder, and signed messages hurt anywhere."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from bentoml_secure.attestation.tees.cbor import MAX_DEPTH, MAX_ITEMS, parse_cbor
from bentoml_secure.attestation.tees.cose import parse_sign1
from bentoml_secure.errors import MalformedInputError, SecureError
from bentoml_secure.testing.ec_pki import sign_raw

KEYS = st.integers(-(2**64), 2**64 - 1) | st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | KEYS | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)
KEY = ec.generate_private_key(ec.SECP384R1())


def read(data: bytes) -> Any:
    return parse_cbor(data, what="a test")


@given(VALUES)
def test_what_a_general_encoder_writes_is_read(value: Any) -> None:
    assert read(cbor2.dumps(value)) == value


@given(st.binary(max_size=64))
@example(b"\xbf\x01\x02\xff")
@example(b"\x9f\x80\xff")
@example(b"\xf6")
def test_what_is_read_is_what_a_general_decoder_reads(data: bytes) -> None:
    try:
        value = read(data)
    except MalformedInputError:
        return
    assert cbor2.loads(data, allow_duplicate_keys=False) == value


@given(VALUES, st.binary(min_size=1, max_size=4))
def test_one_item_and_nothing_after_it(value: Any, more: bytes) -> None:
    data = cbor2.dumps(value)
    with pytest.raises(MalformedInputError, match="bytes after the CBOR item"):
        read(data + more)
    assert parse_cbor(data + bytes(5), what="a test", padded=True) == value


@given(VALUES)
def test_what_is_cut_short_is_refused(value: Any) -> None:
    data = cbor2.dumps(value)
    with pytest.raises(MalformedInputError):
        read(data[:-1])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("", "cut short"),
        ("1801", "shortest form"),
        ("190017", "shortest form"),
        ("5900ff", "shortest form"),
        ("1a0000ffff", "shortest form"),
        ("1b00000000ffffffff", "shortest form"),
        ("5bffffffffffffffff", "cut short"),
        ("9bffffffffffffffff", "cut short"),
        ("bbffffffffffffffff", "cut short"),
        ("5f4101ff", "unexpected byte 0x5f"),
        ("7f6161ff", "unexpected byte 0x7f"),
        ("1f", "unexpected byte 0x1f"),
        ("1c", "unexpected byte 0x1c"),
        ("ff", "unexpected byte 0xff"),
        ("9f01", "cut short"),
        ("bf01ff", "unexpected byte 0xff"),
        ("f7", "unexpected byte 0xf7"),
        ("f93c00", "unexpected byte 0xf9"),
        ("fb3ff0000000000000", "unexpected byte 0xfb"),
        ("c074323032362d30312d30315430303a30303a30305a", "unexpected byte 0xc0"),
        ("c24101", "unexpected byte 0xc2"),
        ("d8236161", "unexpected byte 0xd8"),
        ("61ff", "invalid start byte"),
        ("a201010102", "stands twice"),
        ("a1f401", "neither integer nor text"),
        ("a1410101", "neither integer nor text"),
        ("a18001", "neither integer nor text"),
    ],
)
def test_what_no_token_needs(data: str, match: str) -> None:
    with pytest.raises(MalformedInputError, match=match):
        read(bytes.fromhex(data))


def test_depth_and_number_of_items_are_bounded() -> None:
    assert read(b"\x81" * (MAX_DEPTH - 1) + b"\0")
    with pytest.raises(MalformedInputError, match="deeper than 12"):
        read(b"\x81" * MAX_DEPTH + b"\0")
    with pytest.raises(MalformedInputError, match="deeper than 12"):
        read(b"\x9f" * 100_000)
    assert len(read(cbor2.dumps([0] * (MAX_ITEMS - 1)))) == MAX_ITEMS - 1
    with pytest.raises(MalformedInputError, match="more than 4096 items"):
        read(cbor2.dumps([0] * MAX_ITEMS))


def signed(payload: bytes) -> bytes:
    protected = cbor2.dumps({1: -35})
    body = cbor2.dumps(["Signature1", protected, b"", payload])
    return cbor2.dumps([protected, {}, payload, sign_raw(KEY, body)])


@given(st.binary(max_size=300))
def test_a_message_is_verified_by_its_key_alone(payload: bytes) -> None:
    message = parse_sign1(signed(payload), what="a test")
    message.verify(KEY.public_key())
    assert message.payload == payload
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(InvalidSignature):
        message.verify(other.public_key())


MESSAGE = signed(b"a payload")


@given(st.integers(0, len(MESSAGE) - 1), st.integers(0, 7))
def test_every_bit_is_covered(place: int, bit: int) -> None:
    hurt = bytearray(MESSAGE)
    hurt[place] ^= 1 << bit
    with pytest.raises((SecureError, InvalidSignature)):
        parse_sign1(bytes(hurt), what="a test").verify(KEY.public_key())


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        message = parse_sign1(data, what="a test")
    except MalformedInputError:
        return
    with pytest.raises(InvalidSignature):
        message.verify(KEY.public_key())
