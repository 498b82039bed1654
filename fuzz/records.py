"""Sealed messages, in pieces whose sizes the first byte chooses.

Bytes that nobody sealed get no further than the first chunk. So the rest is sealed here
as well, in pieces of the same sizes, and must open to itself.
"""

from __future__ import annotations

from contextlib import suppress

from bentoml_secure.errors import SecureError
from bentoml_secure.session.records import MAX_ODD_CHUNKS, Opener, seal
from fuzz._same import require_same

KEY, CONTEXT = bytes(32), b"context"


def seeds() -> list[bytes]:
    """Return an empty message, one of one chunk and one of three."""
    messages: tuple[list[bytes], ...] = ([], [b"one"], [b"one", b"two", b"3"])
    return [b"\7" + b"".join(seal(KEY, CONTEXT, pieces)) for pieces in messages]


def one(data: bytes) -> None:
    """Open bytes, and what they are sealed."""
    size, body = max(1, data[0]) if data else 1, data[1:]
    with suppress(SecureError):
        _opened(body, size)
    pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
    if len(pieces) <= MAX_ODD_CHUNKS:
        require_same(_opened(b"".join(seal(KEY, CONTEXT, pieces)), size), body)


def _opened(sealed: bytes, size: int) -> bytes:
    seen = bytearray()
    opener = Opener(KEY, CONTEXT, len(sealed), seen.extend)
    for begin in range(0, len(sealed), size):
        opener.feed(sealed[begin : begin + size])
    opener.finish()
    return bytes(seen)
