"""Sealed files: round trips, and every change refused."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bentoml_secure.digest import digest_file_bytes, digest_json
from bentoml_secure.errors import SecureError
from bentoml_secure.keys.sealed_weights import (
    MIN_CHUNK_BYTES,
    TAG_BYTES,
    open_sealed,
    read_header,
    seal,
)
from bentoml_secure.keys.segment_key import SegmentKey

KEY = SegmentKey(bytes(range(32)))
SEGMENT = digest_json("segment")
PATH = "segment.onnx"
CHUNK = MIN_CHUNK_BYTES
REFUSAL = r"^(sealed file|segment:|path:|key_id:|length:|chunk:)"

# Lengths around the edges of chunks, where mistakes are.
LENGTHS = st.builds(
    lambda chunks, off: max(0, chunks * CHUNK + off),
    st.integers(0, 3),
    st.integers(-2, 2),
)


def sealed(plain: bytes) -> bytes:
    target = io.BytesIO()
    digest = seal(
        io.BytesIO(plain),
        target,
        KEY,
        segment=SEGMENT,
        path=PATH,
        plain_bytes=len(plain),
        chunk_bytes=CHUNK,
    )
    assert digest == digest_file_bytes(plain)
    return target.getvalue()


def opened(data: bytes) -> bytes:
    return open_sealed(
        io.BytesIO(data), len(data), KEY, segment=SEGMENT, path=PATH, max_bytes=1 << 20
    )


def plaintext(length: int) -> bytes:
    return bytes(index * 31 % 251 for index in range(length))


WHOLE = sealed(plaintext(2 * CHUNK + 5))
START = len(read_header(io.BytesIO(WHOLE)).to_bytes())


@settings(max_examples=40)
@given(LENGTHS, st.binary(max_size=64))
def test_what_was_sealed_opens(length: int, tail: bytes) -> None:
    plain = plaintext(length) + tail
    data = sealed(plain)
    header = read_header(io.BytesIO(data))
    assert opened(data) == plain
    assert len(data) == header.sealed_bytes
    assert len(data) == (
        len(header.to_bytes()) + len(plain) + header.chunks * TAG_BYTES
    )


@settings(max_examples=150)
@given(st.integers(0, len(WHOLE) * 8 - 1))
def test_no_bit_can_be_flipped(bit: int) -> None:
    data = bytearray(WHOLE)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SecureError, match=REFUSAL):
        opened(bytes(data))


@settings(max_examples=80)
@given(st.integers(0, len(WHOLE)), st.integers(0, 3), st.binary(max_size=3))
def test_nothing_can_be_cut_or_put_in(at: int, dropped: int, inserted: bytes) -> None:
    data = WHOLE[:at] + inserted + WHOLE[at + dropped :]
    if data == WHOLE:
        assert opened(data)
        return
    with pytest.raises(SecureError, match=REFUSAL):
        opened(data)


@settings(max_examples=40)
@given(st.permutations(range(3)))
def test_chunks_open_in_their_places_only(order: list[int]) -> None:
    size = CHUNK + TAG_BYTES
    chunks = [WHOLE[START + size * n :][:size] for n in range(3)]
    data = WHOLE[:START] + b"".join(chunks[n] for n in order)
    if order == [0, 1, 2]:
        assert opened(data) == plaintext(2 * CHUNK + 5)
        return
    with pytest.raises(SecureError, match="chunk"):
        opened(data)
