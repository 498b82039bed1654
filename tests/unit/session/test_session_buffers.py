"""Buffers that are lent again, and who may see what was in them."""

from __future__ import annotations

import itertools

from bentoml_secure.session.buffers import Buffers
from bentoml_secure.session.records import CHUNK_BYTES, Opener, seal, seal_views

KEY, CONTEXT = b"k" * 32, b"context"


def message(letter: bytes, chunks: int = 3) -> list[bytes]:
    return [letter * CHUNK_BYTES for _ in range(chunks)]


def test_what_was_given_back_is_lent_again() -> None:
    buffers = Buffers(64, kept=2)
    first = buffers.take(64)
    assert buffers.take(64).obj is not first.obj
    buffers.give(first)
    assert buffers.take(17).obj is first.obj


def test_a_short_length_holds_no_more_than_it_asks_for() -> None:
    buffers = Buffers(64, kept=2)
    assert [len(buffers.take(length)) for length in (0, 1, 16)] == [0, 1, 16]


def test_a_length_over_the_size_gets_a_buffer_of_its_own() -> None:
    buffers = Buffers(64, kept=2)
    longer = buffers.take(65)
    assert len(longer) == 65
    buffers.give(longer)
    assert buffers.take(64).obj is not longer.obj


def test_no_more_are_kept_than_the_bound() -> None:
    buffers = Buffers(64, kept=2)
    lent = [buffers.take(64) for _ in range(3)]
    for buffer in lent:
        buffers.give(buffer)
    again = [buffers.take(64) for _ in range(3)]
    assert len({id(buffer.obj) for buffer in (*lent, *again)}) == 4


def test_a_messages_chunks_lie_in_one_buffer() -> None:
    views = seal_views(KEY, CONTEXT, message(b"a"))
    assert len({id(view.obj) for view in views}) == 1


def test_views_are_what_seal_returns_after_the_head() -> None:
    pieces = [b"one", b"2" * CHUNK_BYTES, b"", b"3"]
    views = [bytes(view) for view in seal_views(KEY, CONTEXT, pieces, head=b"head")]
    owned = list(seal(KEY, CONTEXT, pieces))
    assert views == [b"head" + owned[0], *owned[1:]]


def test_messages_sealed_at_once_do_not_share_a_buffer() -> None:
    two = [seal_views(KEY, CONTEXT, message(letter)) for letter in (b"a", b"b")]
    for one, other in zip(*two, strict=True):
        assert one.obj is not other.obj
        assert bytes(one) != bytes(other)


def test_a_view_that_a_writer_still_has_is_not_written_over() -> None:
    # It stopped early, and its connection may not be done with the view.
    left = next(iter(seal_views(KEY, CONTEXT, message(b"a"))))
    before = bytes(left)
    for _ in range(20):
        assert all(view.obj is not left.obj for view in sealed_views(b"b"))
    assert bytes(left) == before


def sealed_views(letter: bytes) -> list[memoryview]:
    return list(seal_views(KEY, CONTEXT, message(letter)))


def test_messages_opened_at_once_do_not_mix() -> None:
    seen: dict[bytes, bytearray] = {b"a": bytearray(), b"b": bytearray()}
    feeds = []
    for letter, opened in seen.items():
        sealed = b"".join(seal(KEY, CONTEXT, message(letter)))
        opener = Opener(KEY, CONTEXT, len(sealed), opened.extend)
        step = 100_000
        cut = [sealed[at : at + step] for at in range(0, len(sealed), step)]
        feeds.append([(opener, piece) for piece in cut])
    for turn in itertools.zip_longest(*feeds):
        for opener, piece in filter(None, turn):
            opener.feed(piece)
    for letter, opened in seen.items():
        assert bytes(opened) == b"".join(message(letter))


def test_a_message_opened_inside_another_does_not_mix() -> None:
    inner = b"".join(seal(KEY, CONTEXT, message(b"i", 1)))
    seen = bytearray()

    def open_another(data: memoryview) -> None:
        Opener(KEY, CONTEXT, len(inner), bytearray().extend).feed(inner)
        seen.extend(data)

    outer = b"".join(seal(KEY, CONTEXT, message(b"o")))
    Opener(KEY, CONTEXT, len(outer), open_another).feed(outer)
    assert bytes(seen) == b"".join(message(b"o"))
