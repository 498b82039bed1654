"""SPDM reports, made of anything, cut anywhere, hurt anywhere."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.exceptions import InvalidSignature
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.attestation.tees.spdm import (
    MAX_REPORT_BYTES,
    SIGNATURE_BYTES,
    parse_report,
)
from bentoml_secure.errors import MalformedInputError, SecureError
from bentoml_secure.testing.nvidia_pki import NvidiaPki

PKI = NvidiaPki(now=datetime(2026, 3, 1, tzinfo=UTC))
KEY = PKI.pki.leaf_key.public_key()
NONCE = bytes(range(32))
REPORT = PKI.report(NONCE)
REQUEST = REPORT[:37]
BLOCK = bytes.fromhex("0101 0400 01 0100 aa")
VALUE = bytes.fromhex("0300 0100 35")

VALUES = st.binary(min_size=1, max_size=60)


@given(
    st.binary(min_size=32, max_size=32),
    st.dictionaries(st.integers(0, 255), VALUES, max_size=6),
    st.dictionaries(st.integers(0, 0xFFFF), VALUES, max_size=6),
)
def test_what_was_written_is_read(
    nonce: bytes, measurements: dict[int, bytes], opaque: dict[int, bytes]
) -> None:
    data = PKI.report(nonce, measurements=measurements, opaque=opaque)
    report = parse_report(data)
    report.verify(KEY)
    assert report.nonce == nonce
    assert report.measurements == measurements
    assert opaque.items() <= report.opaque.items()
    assert report.signed + report.signature == data


@given(st.integers(0, len(REPORT) - 1), st.integers(0, 7))
def test_every_bit_is_covered(place: int, bit: int) -> None:
    hurt = bytearray(REPORT)
    hurt[place] ^= 1 << bit
    with pytest.raises((SecureError, InvalidSignature)):
        parse_report(bytes(hurt)).verify(KEY)


@given(st.integers(0, len(REPORT) - 1))
def test_what_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(MalformedInputError, match="SPDM"):
        parse_report(REPORT[:length])


@given(st.binary(max_size=300), st.integers(0, 60))
def test_any_bytes_are_read_or_refused(data: bytes, kept: int) -> None:
    try:
        report = parse_report(REPORT[:kept] + data)
    except MalformedInputError:
        return
    with pytest.raises(InvalidSignature):
        report.verify(KEY)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"record": BLOCK, "count": 2, "opaque": b""}, "got 1 blocks, want 2"),
        ({"record": BLOCK * 2, "count": 2, "opaque": b""}, "block 1 stands twice"),
        ({"record": BLOCK[:-1], "count": 1, "opaque": b""}, "block: got 3 bytes"),
        ({"record": BLOCK + b"\2", "count": 1, "opaque": b""}, "specification"),
        (
            {"record": b"\1\2" + BLOCK[2:], "count": 1, "opaque": b""},
            "specification: got 0x02, want 0x01",
        ),
        (
            {"record": BLOCK[:5] + b"\2" + BLOCK[6:], "count": 1, "opaque": b""},
            "value: got 1 bytes, want 2",
        ),
        (
            {"record": BLOCK[:5] + b"\0" + BLOCK[6:], "count": 1, "opaque": b""},
            "1 bytes after its value",
        ),
        ({"record": b"", "count": 0, "opaque": VALUE * 2}, "value 3 stands twice"),
        ({"record": b"", "count": 0, "opaque": VALUE[:-1]}, "value: got 0 bytes"),
        ({"record": b"", "count": 0, "opaque": b"\3"}, "identifier: got 1 bytes"),
    ],
)
def test_lengths_that_do_not_add_up(parts: dict[str, object], match: str) -> None:
    report = PKI.signed(REQUEST, **parts)  # type: ignore[arg-type]
    with pytest.raises(MalformedInputError, match=match):
        parse_report(report)


@pytest.mark.parametrize(
    ("place", "match"),
    [
        (0, "request version: got 0x12, want 0x11"),
        (1, "request code: got 0xe3, want 0xe0"),
        (37, "response version: got 0x12, want 0x11"),
        (38, "response code: got 0x63, want 0x60"),
    ],
)
def test_another_version_or_message(place: int, match: str) -> None:
    other = bytearray(REPORT)
    other[place] ^= 3
    with pytest.raises(MalformedInputError, match=match):
        parse_report(bytes(other))


def test_bytes_after_the_signature() -> None:
    with pytest.raises(MalformedInputError, match="1 bytes after the signature"):
        parse_report(REPORT + b"\0")
    with pytest.raises(MalformedInputError, match="at most 65536"):
        parse_report(bytes(MAX_REPORT_BYTES + 1))
    assert len(parse_report(REPORT).signature) == SIGNATURE_BYTES
