"""Sealed messages: cut anywhere by either end, and changed anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.errors import SecureError
from bentoml_secure.session.records import (
    CHUNK_OVERHEAD,
    Opener,
    open_whole,
    seal,
    sealed_length,
)

KEYS = st.binary(min_size=32, max_size=32)
PIECES = st.lists(st.binary(max_size=40), max_size=8)
CUTS = st.lists(st.integers(0, 1 << 16), max_size=6)


def fed(opener: Opener, sealed: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut % (len(sealed) + 1) for cut in cuts), len(sealed)]
    for begin, end in itertools.pairwise(edges):
        opener.feed(memoryview(sealed)[begin:end])
    opener.finish()


@given(KEYS, st.binary(max_size=30), PIECES, CUTS)
def test_a_message_opens_however_it_was_cut(
    key: bytes, context: bytes, pieces: list[bytes], cuts: list[int]
) -> None:
    sealed, seen = b"".join(seal(key, context, pieces)), bytearray()
    assert len(sealed) == sealed_length(map(len, pieces))
    fed(Opener(key, context, len(sealed), seen.extend), sealed, cuts)
    assert bytes(seen) == b"".join(pieces)


@given(KEYS, PIECES)
def test_byte_by_byte_is_the_same_as_whole(key: bytes, pieces: list[bytes]) -> None:
    sealed, seen = b"".join(seal(key, b"", pieces)), bytearray()
    fed(Opener(key, b"", len(sealed), seen.extend), sealed, list(range(len(sealed))))
    assert bytes(seen) == open_whole(key, b"", sealed)


@given(KEYS, PIECES, CUTS, st.integers(0, 1 << 20))
def test_a_flipped_bit_does_not_open(
    key: bytes, pieces: list[bytes], cuts: list[int], bit: int
) -> None:
    sealed, seen = bytearray(b"".join(seal(key, b"", pieces))), bytearray()
    bit %= 8 * len(sealed)
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SecureError, match="sealed"):
        fed(Opener(key, b"", len(sealed), seen.extend), bytes(sealed), cuts)
    # What was handed on before is what was sent.
    assert b"".join(pieces).startswith(bytes(seen))


@given(KEYS, PIECES, st.permutations(range(8)), st.integers(0, 8))
def test_chunks_open_in_their_order_and_number_only(
    key: bytes, pieces: list[bytes], order: list[int], taken: int
) -> None:
    chunks = list(seal(key, b"", pieces))
    moved = [chunks[index] for index in order if index < len(chunks)][:taken]
    if moved == chunks:
        return
    with pytest.raises(SecureError, match="sealed"):
        open_whole(key, b"", b"".join(moved))


@given(KEYS, KEYS, st.binary(max_size=8), st.binary(max_size=8), PIECES)
def test_another_key_or_context_opens_nothing(
    key: bytes, other: bytes, context: bytes, elsewhere: bytes, pieces: list[bytes]
) -> None:
    sealed = b"".join(seal(key, context, pieces))
    for tried in ((other, context), (key, elsewhere)):
        if tried == (key, context):
            continue
        with pytest.raises(SecureError, match="not authentic"):
            open_whole(*tried, sealed)


@given(KEYS, st.binary(max_size=3 * CHUNK_OVERHEAD))
def test_what_nobody_sealed_does_not_open(key: bytes, data: bytes) -> None:
    with pytest.raises(SecureError, match="sealed"):
        open_whole(key, b"", data)
