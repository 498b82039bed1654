"""Sealed records: round trips, and everything that can be done to chunks."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import pytest

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    SecureError,
    VerificationError,
)
from bentoml_secure.session import records
from bentoml_secure.session.records import (
    CHUNK_BYTES,
    CHUNK_OVERHEAD,
    MAX_ODD_CHUNKS,
    TAG_BYTES,
    Opener,
    open_whole,
    seal,
    seal_whole,
    sealed_length,
)

KEY, CONTEXT = b"k" * 32, b"context"
PIECES = (b"one", b"two, which is longer", b"3")
MESSAGE = b"".join(PIECES)


def sealed_chunks(
    pieces: tuple[bytes, ...] = PIECES, key: bytes = KEY, context: bytes = CONTEXT
) -> list[bytes]:
    return list(seal(key, context, pieces))


def length_of(chunk: bytes) -> int:
    return int(struct.unpack(">I", chunk[:4])[0])


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"",),
        (b"", b""),
        (b"a",),
        (b"a", b""),
        (b"", b"a"),
        (b"a", b"", b"b"),
        PIECES,
        (b"x" * CHUNK_BYTES,),
        (b"x" * CHUNK_BYTES, b"y"),
        (b"y", b"x" * CHUNK_BYTES),
    ],
    ids=lambda pieces: "+".join(str(len(piece)) for piece in pieces) or "none",
)
def test_a_message_opens(pieces: tuple[bytes, ...]) -> None:
    sealed = b"".join(seal(KEY, CONTEXT, pieces))
    assert len(sealed) == sealed_length(map(len, pieces))
    assert open_whole(KEY, CONTEXT, sealed) == b"".join(pieces)


@pytest.mark.parametrize(
    "length", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES]
)
def test_a_message_of_any_length_opens(length: int) -> None:
    message = bytes(length)
    sealed = seal_whole(KEY, CONTEXT, message)
    assert len(sealed) == length + CHUNK_OVERHEAD * max(1, -(-length // CHUNK_BYTES))
    assert open_whole(KEY, CONTEXT, sealed) == message


def test_a_piece_longer_than_a_chunk_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a piece to seal"):
        list(seal(KEY, CONTEXT, [bytes(CHUNK_BYTES + 1)]))


def test_what_was_sealed_is_the_form_in_the_document() -> None:
    # 88-bit counter, then 1 in the last chunk: no two chunks share a nonce.
    one, two = sealed_chunks((b"same", b"same"))
    assert one[4:] != two[4:]
    assert [length_of(chunk) for chunk in (one, two)] == [4 + TAG_BYTES] * 2


Tamper = Callable[[list[bytes]], list[bytes]]


def flip(chunk: bytes, at: int) -> bytes:
    altered = bytearray(chunk)
    altered[at] ^= 1
    return bytes(altered)


def foreign(index: int, **of: bytes) -> Tamper:
    """Put in a chunk of another key or context, at its own place."""

    def tamper(chunks: list[bytes]) -> list[bytes]:
        return [*chunks[:index], sealed_chunks(**of)[index], *chunks[index + 1 :]]  # type: ignore[arg-type]

    return tamper


TAMPERED: dict[str, Tamper] = {
    "reordered": lambda c: [c[1], c[0], c[2]],
    "last first": lambda c: [c[2], c[0], c[1]],
    "reversed": lambda c: c[::-1],
    "first doubled": lambda c: [c[0], *c],
    "last doubled": lambda c: [*c, c[-1]],
    "middle doubled": lambda c: [c[0], c[1], c[1], c[2]],
    "first missing": lambda c: c[1:],
    "middle missing": lambda c: [c[0], c[2]],
    "cut after the first": lambda c: c[:1],
    "cut after the second": lambda c: c[:2],
    "a middle one alone": lambda c: [c[1]],
    "the last alone": lambda c: [c[2]],
    "a whole message appended": lambda c: [*c, *sealed_chunks()],
    "one of a longer message appended": lambda c: [
        *c,
        sealed_chunks((*PIECES, b"more"))[3],
    ],
    "of another key": foreign(1, key=b"K" * 32),
    "of another context": foreign(1, context=b"other"),
    "tag altered": lambda c: [*c[:2], flip(c[2], -1)],
    "byte altered": lambda c: [c[0], flip(c[1], 4), c[2]],
    "two joined": lambda c: [
        struct.pack(">I", len(c[0]) + len(c[1]) - 8) + c[0][4:] + c[1][4:],
        c[2],
    ],
}


@pytest.mark.parametrize("name", TAMPERED)
def test_chunks_that_were_tampered_with_do_not_open(name: str) -> None:
    with pytest.raises(VerificationError, match="is not authentic"):
        open_whole(KEY, CONTEXT, b"".join(TAMPERED[name](sealed_chunks())))


@pytest.mark.parametrize("name", ["empty appended", "empty between", "empty first"])
def test_an_empty_chunk_stands_alone_only(name: str) -> None:
    chunks, empty = sealed_chunks(), sealed_chunks(())[0]
    made = {
        "empty appended": [*chunks, empty],
        "empty between": [chunks[0], empty, *chunks[1:]],
        "empty first": [empty, *chunks],
    }[name]
    # The chunk before an appended one is no longer the last.
    with pytest.raises(SecureError, match=r"got a length of 16|is not authentic"):
        open_whole(KEY, CONTEXT, b"".join(made))


def test_a_whole_message_cut_anywhere_does_not_open() -> None:
    sealed = b"".join(sealed_chunks())
    for end in range(len(sealed)):
        with pytest.raises(SecureError, match=r"sealed (message|chunk)"):
            open_whole(KEY, CONTEXT, sealed[:end])


def test_a_message_whose_length_was_announced_and_is_cut_ends_early() -> None:
    sealed = b"".join(sealed_chunks())
    for end in range(len(sealed)):
        opener = Opener(KEY, CONTEXT, len(sealed), lambda _: None)
        opener.feed(sealed[:end])
        with pytest.raises(MalformedInputError, match="ended early"):
            opener.finish()


def test_bytes_after_the_end_are_refused() -> None:
    sealed = b"".join(sealed_chunks())
    opener = Opener(KEY, CONTEXT, len(sealed), lambda _: None)
    opener.feed(sealed)
    with pytest.raises(MalformedInputError, match="bytes after its end"):
        opener.feed(b"x")
    with pytest.raises(MalformedInputError, match="ended early"):
        opener.finish()


@pytest.mark.parametrize(
    "length", [0, 1, TAG_BYTES, CHUNK_BYTES + TAG_BYTES + 1, 1 << 31, (1 << 32) - 1]
)
def test_a_chunk_of_no_possible_length_is_refused_unread(length: int) -> None:
    announced = 1 << 40
    opener = Opener(KEY, CONTEXT, announced, lambda _: None)
    with pytest.raises(MalformedInputError, match="sealed chunk: got a length"):
        opener.feed(struct.pack(">I", length))


def test_a_chunk_longer_than_its_message_is_refused_unread() -> None:
    opener = Opener(KEY, CONTEXT, 4 + 20, lambda _: None)
    with pytest.raises(MalformedInputError, match="within the message"):
        opener.feed(struct.pack(">I", 21))


def test_lengths_allocate_no_more_than_a_chunk() -> None:
    tracemalloc.start()
    try:
        # Whatever the body announces, and whatever each chunk does.
        opener = Opener(KEY, CONTEXT, 1 << 40, lambda _: None)
        opener.feed(struct.pack(">I", CHUNK_BYTES + TAG_BYTES) + b"x")
        _, peak = tracemalloc.get_traced_memory()
        with pytest.raises(MalformedInputError, match="sealed chunk"):
            Opener(KEY, CONTEXT, 1 << 40, lambda _: None).feed(b"\xff" * 4)
    finally:
        tracemalloc.stop()
    assert peak < 2 * CHUNK_BYTES


def test_a_message_of_crumbs_is_refused() -> None:
    crumbs = [b"x"] * (MAX_ODD_CHUNKS + 1)
    assert len(open_whole(KEY, CONTEXT, b"".join(seal(KEY, CONTEXT, crumbs[1:])))) == (
        MAX_ODD_CHUNKS
    )
    with pytest.raises(MalformedInputError, match=f"more than {MAX_ODD_CHUNKS} chunks"):
        open_whole(KEY, CONTEXT, b"".join(seal(KEY, CONTEXT, crumbs)))


def test_nothing_is_handed_on_before_it_is_authentic() -> None:
    seen: list[bytes] = []
    chunks = sealed_chunks()
    sealed = chunks[0] + flip(chunks[1], -1) + chunks[2]
    opener = Opener(KEY, CONTEXT, len(sealed), lambda view: seen.append(bytes(view)))
    end = len(chunks[0] + chunks[1]) - 1
    for at in range(end):
        opener.feed(sealed[at : at + 1])
    with pytest.raises(VerificationError, match="chunk 1"):
        opener.feed(sealed[end : end + 1])
    assert seen == [PIECES[0]]


def test_what_was_refused_stays_refused() -> None:
    chunks, seen = sealed_chunks(), list[bytes]()
    length = sum(map(len, chunks))
    opener = Opener(KEY, CONTEXT, length, lambda view: seen.append(bytes(view)))
    with pytest.raises(VerificationError, match="chunk 0"):
        opener.feed(flip(chunks[0], -1))
    # Another try at the same place would be a choice among bytes.
    with pytest.raises(MalformedInputError, match="refused already"):
        opener.feed(chunks[0])
    with pytest.raises(MalformedInputError, match="ended early"):
        opener.finish()
    assert seen == []


def test_a_message_that_its_reader_refused_is_not_whole() -> None:
    def refuse(_: memoryview) -> None:
        raise MalformedInputError("not what was asked for")

    sealed = b"".join(sealed_chunks((b"all",)))
    opener = Opener(KEY, CONTEXT, len(sealed), refuse)
    with pytest.raises(MalformedInputError, match="not what was asked for"):
        opener.feed(sealed)
    with pytest.raises(MalformedInputError, match="ended early"):
        opener.finish()


# Where the nonce says less, the same tampering opens.


@pytest.mark.parametrize("name", ["reordered", "first doubled", "middle missing"])
def test_without_a_place_in_the_nonce_chunks_can_be_moved(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(records, "_nonce", lambda _, last: bytes(11) + bytes([last]))
    altered = TAMPERED[name](sealed_chunks())
    assert open_whole(KEY, CONTEXT, b"".join(altered)) != MESSAGE


@pytest.mark.parametrize("name", ["cut after the first", "cut after the second"])
def test_without_an_end_in_the_nonce_messages_can_be_cut(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(records, "_nonce", lambda index, _: index.to_bytes(12, "big"))
    altered = TAMPERED[name](sealed_chunks())
    assert open_whole(KEY, CONTEXT, b"".join(altered)) != MESSAGE
