"""Sealed bytes: a message as chunks under AES-256-GCM, in order, with an end.

    chunk     u32 big-endian length of the ciphertext with its tag, ciphertext, tag
    nonce     88-bit big-endian index of the chunk || 1 if it is the last, else 0
    AAD       the message's context (keys.py): whose, which operation, which request

A key seals one message only. Every chunk has at least one byte, none more than
``CHUNK_BYTES``; an empty message is one empty chunk. Chunks that are missing, doubled,
moved, cut off or added do not open.

Source: the STREAM construction, Hoang, Reyhanitabar, Rogaway, Vizar, CRYPTO 2015.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.session.buffers import Buffers

CHUNK_BYTES = 256 * 1024
TAG_BYTES = 16
MAX_ODD_CHUNKS = 1024
"""Chunks that a message may have beside the full ones: each costs its opener time."""

_LENGTH = struct.Struct(">I")
CHUNK_OVERHEAD = _LENGTH.size + TAG_BYTES

_MAX_HEAD_BYTES = 256
_sealed_buffers = Buffers(_MAX_HEAD_BYTES + CHUNK_OVERHEAD + CHUNK_BYTES, kept=16)
_opened_buffers = Buffers(CHUNK_BYTES, kept=4)

Piece = bytes | memoryview


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def sealed_length(lengths: Iterable[int]) -> int:
    """Return the length of a sealed message made of pieces of these lengths."""
    # An empty message is one empty chunk; empty pieces are none.
    return (
        sum(length + CHUNK_OVERHEAD for length in lengths if length) or CHUNK_OVERHEAD
    )


def seal(key: bytes, context: bytes, pieces: Iterable[Piece]) -> Iterator[bytes]:
    """Yield a message sealed, one chunk per piece; each is sealed as it is asked for.

    Args:
        key: 32 bytes, for this message only.
        context: Associated data of every chunk.
        pieces: Of the message; empty ones are left out, none is longer than
            ``CHUNK_BYTES``.

    Raises:
        ConfigurationError: A piece is longer.
    """
    return map(bytes, seal_views(key, context, pieces))


def seal_views(
    key: bytes, context: bytes, pieces: Iterable[Piece], *, head: bytes = b""
) -> Iterator[memoryview]:
    """Yield what ``seal`` does, in one piece of memory: for who is done with each.

    Fresh memory for every chunk costs more than sealing it: the kernel clears it page
    by page.

    Args:
        key: As in ``seal``.
        context: As in ``seal``.
        pieces: As in ``seal``.
        head: Goes out before the first chunk, in one piece with it.

    Yields:
        Views of one buffer, each good until the next is asked for.

    Raises:
        ConfigurationError: A piece is longer than ``CHUNK_BYTES``.
    """
    chunks = _Chunks(key, context, head)
    held: Piece = b""
    for piece in pieces:
        if not len(piece):
            continue
        if len(held):
            yield chunks.seal(held, last=False)
        held = piece
    yield chunks.seal(held, last=True)
    # Not where the caller stops early: it may still have the last view then.
    chunks.close()


class _Chunks:
    """Seals one message's chunks in turn, into one buffer."""

    def __init__(self, key: bytes, context: bytes, head: bytes) -> None:
        self._cipher = AESGCM(key)
        self._context = context
        self._head = head
        self._index = 0
        self._buffer = memoryview(b"")

    def seal(self, piece: Piece, *, last: bool) -> memoryview:
        if len(piece) > CHUNK_BYTES:
            raise ConfigurationError(
                f"a piece to seal: got {len(piece)} bytes, want at most {CHUNK_BYTES}."
            )
        head, self._head = self._head, b""
        begin = len(head) + _LENGTH.size
        end = begin + len(piece) + TAG_BYTES
        if len(self._buffer) < end:
            self.close()
            self._buffer = _sealed_buffers.take(end)
        self._buffer[: len(head)] = head
        _LENGTH.pack_into(self._buffer, len(head), end - begin)
        self._cipher.encrypt_into(
            _nonce(self._index, last), piece, self._context, self._buffer[begin:end]
        )
        self._index += 1
        return self._buffer[:end]

    def close(self) -> None:
        _sealed_buffers.give(self._buffer)
        self._buffer = memoryview(b"")


class Opener:
    """Opens a sealed message as its bytes arrive, and hands on what is authentic.

    What was refused once stays refused: an opener is of no use after an error.

    Args:
        key: 32 bytes, for this message only.
        context: Associated data of every chunk.
        length: Of the sealed message, announced and bounded by the caller.
        feed: Takes in the message; bytes of a chunk only once the chunk is authentic,
            and the view is good during the call only.
    """

    def __init__(
        self,
        key: bytes,
        context: bytes,
        length: int,
        feed: Callable[[memoryview], None],
    ) -> None:
        self._cipher = AESGCM(key)
        self._context = context
        self._feed = feed
        self._length = length
        self._arrived = 0
        self._after = length
        self._index = 0
        self._max_chunks = length // CHUNK_BYTES + MAX_ODD_CHUNKS
        self._head = bytearray()
        self._wanted = 0
        self._filled = 0
        self._sealed = memoryview(b"")
        self._is_complete = False
        self._is_refused = False

    def feed(self, data: Piece) -> None:
        """Take in the next bytes.

        Raises:
            MalformedInputError: A chunk's length breaks a limit, there are too many, or
                an earlier one was refused.
            VerificationError: A chunk is not authentic, or not in its place.
            SecureError: From what the message is fed to.
        """
        if self._is_refused:
            raise MalformedInputError("sealed message: refused already")
        # Set for the time being, so that every error, a sink's too, leaves it set.
        self._is_refused = True
        self._take(memoryview(data))
        self._is_refused = False

    def _take(self, piece: memoryview) -> None:
        self._arrived += len(piece)
        if self._arrived > self._length:
            raise MalformedInputError("sealed message: bytes after its end")
        while len(piece):
            if self._wanted == 0:
                piece = self._begin(piece)
            elif self._filled == 0 and len(piece) >= self._wanted:
                # A chunk that arrived whole is opened where it lies.
                whole, piece = piece[: self._wanted], piece[self._wanted :]
                self._open(whole)
            else:
                piece = self._fill(piece)

    def _begin(self, piece: memoryview) -> memoryview:
        missing = _LENGTH.size - len(self._head)
        self._head += piece[:missing]
        if len(self._head) == _LENGTH.size:
            length = int(_LENGTH.unpack(self._head)[0])
            self._head.clear()
            self._after -= _LENGTH.size + length
            # Only the last may be empty: it is alone then, or another would not end.
            least = (
                TAG_BYTES if self._after == 0 and self._index == 0 else TAG_BYTES + 1
            )
            if not least <= length <= CHUNK_BYTES + TAG_BYTES or self._after < 0:
                raise MalformedInputError(
                    f"sealed chunk: got a length of {length} bytes, want {least} to"
                    f" {CHUNK_BYTES + TAG_BYTES} within the message"
                )
            if self._index >= self._max_chunks:
                raise MalformedInputError(
                    f"sealed message: more than {self._max_chunks} chunks"
                )
            self._wanted, self._filled = length, 0
        return piece[missing:]

    def _fill(self, piece: memoryview) -> memoryview:
        if self._filled == 0:
            self._sealed = _sealed_buffers.take(self._wanted)
        taken = min(len(piece), self._wanted - self._filled)
        self._sealed[self._filled : self._filled + taken] = piece[:taken]
        self._filled += taken
        if self._filled == self._wanted:
            sealed, self._sealed = self._sealed, memoryview(b"")
            self._open(sealed[: self._wanted])
            _sealed_buffers.give(sealed)
        return piece[taken:]

    def _open(self, sealed: memoryview) -> None:
        size = len(sealed) - TAG_BYTES
        buffer = _opened_buffers.take(size)
        last, opened = self._after == 0, buffer[:size]
        try:
            self._cipher.decrypt_into(
                _nonce(self._index, last), sealed, self._context, opened
            )
        except InvalidTag as error:
            raise VerificationError(
                f"sealed message: chunk {self._index} is not authentic, not in its"
                " place, or of another key, request or operation"
            ) from error
        self._index += 1
        self._wanted = self._filled = 0
        self._is_complete = last
        self._feed(opened)
        _opened_buffers.give(buffer)

    def finish(self) -> None:
        """Require that the message ended where its sender ended it.

        Raises:
            MalformedInputError: It was cut off.
        """
        if not self._is_complete or self._is_refused:
            raise MalformedInputError("sealed message: it ended early")


def open_whole(key: bytes, context: bytes, sealed: Piece) -> bytes:
    """Return a whole sealed message, opened.

    Raises:
        SecureError: As ``Opener``.
    """
    opened = bytearray()

    def take(piece: memoryview) -> None:
        opened.extend(piece)

    opener = Opener(key, context, len(sealed), take)
    opener.feed(sealed)
    opener.finish()
    return bytes(opened)


def seal_whole(key: bytes, context: bytes, message: bytes) -> bytes:
    """Return a message sealed in one piece of memory."""
    view = memoryview(message)
    pieces: Sequence[memoryview] = [
        view[begin : begin + CHUNK_BYTES] for begin in range(0, len(view), CHUNK_BYTES)
    ]
    return b"".join(seal(key, context, pieces))
