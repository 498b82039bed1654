"""Bytes that are no answer: pickles, too many, too few, too slow, none, redirects.

Each is an async generator of what goes onto the connection, which is closed when it
ends.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import os
import pickle
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from bentoml_secure.session.bodies import SEALED_TYPE, sealed_cap
from bentoml_secure.testing.rogue.replica import Turn, answer_reply
from bentoml_secure.testing.rogue.wire import Reply, status_line

Stream = Callable[[Turn], AsyncIterator[bytes]]

PICKLE_TYPE = b"application/vnd.bentoml+pickle"
HANG_SECONDS = 60.0
_MEGABYTE = bytes(1 << 20)


class _MakesFolder:
    """Unpickled, it makes a folder: proof that somebody did."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._marker,)


def pickle_payload(marker: Path) -> bytes:
    """Return a pickle that makes the folder ``marker`` when it is loaded."""
    return pickle.dumps(_MakesFolder(marker), protocol=5)


def _head(status: int, *headers: tuple[bytes, bytes]) -> bytes:
    return Reply(status=status, headers=headers, body=b"").encode()


def _type(value: bytes = SEALED_TYPE.encode()) -> tuple[bytes, bytes]:
    return (b"content-type", value)


def _length(value: int) -> tuple[bytes, bytes]:
    return (b"content-length", str(value).encode())


def _pickled(status: int, content_type: bytes) -> Stream:
    async def stream(turn: Turn) -> AsyncIterator[bytes]:
        payload = pickle_payload(turn.replica.marker)
        yield _head(status, _type(content_type), _length(len(payload))) + payload

    return stream


async def _endless_chunks(turn: Turn) -> AsyncIterator[bytes]:
    yield _head(200, _type(), (b"transfer-encoding", b"chunked"))
    while True:
        yield b"100000\r\n" + _MEGABYTE + b"\r\n"


async def _endless_length(turn: Turn) -> AsyncIterator[bytes]:
    yield _head(200, _type(), _length(1 << 40))
    while True:
        yield _MEGABYTE


async def _endless_beyond(turn: Turn) -> AsyncIterator[bytes]:
    yield answer_reply(turn.sealed()).encode()
    while True:
        yield _MEGABYTE


async def _endless_refusal(turn: Turn) -> AsyncIterator[bytes]:
    yield _head(500, _type(b"text/plain"), (b"transfer-encoding", b"chunked"))
    while True:
        yield b"100000\r\n" + _MEGABYTE + b"\r\n"


async def _endless_headers(turn: Turn) -> AsyncIterator[bytes]:
    yield status_line(200) + b"\r\n"
    while True:
        yield b"".join(b"x-%d: %s\r\n" % (n, b"a" * 1000) for n in range(1000))


async def _endless_header(turn: Turn) -> AsyncIterator[bytes]:
    yield status_line(200) + b"\r\nx: "
    while True:
        yield b"a" * (1 << 20)


async def _endless_informational(turn: Turn) -> AsyncIterator[bytes]:
    while True:
        yield (status_line(102) + b"\r\n\r\n") * 1000


async def _endless_chunk_extension(turn: Turn) -> AsyncIterator[bytes]:
    yield _head(500, _type(b"text/plain"), (b"transfer-encoding", b"chunked"))
    yield b"8;a="
    while True:
        yield b"a" * (1 << 20)


async def _zeros_to_the_cap(turn: Turn) -> AsyncIterator[bytes]:
    total = turn.replica.max_message_bytes
    yield _head(200, _type(), _length(total))
    for _ in range(total >> 20):
        yield _MEGABYTE


async def _over_the_cap(turn: Turn) -> AsyncIterator[bytes]:
    total = sealed_cap(turn.replica.max_message_bytes) + 1
    yield _head(200, _type(), _length(total)) + bytes(total)


async def _slow_drip(turn: Turn) -> AsyncIterator[bytes]:
    for byte in answer_reply(turn.sealed()).encode():
        yield bytes([byte])
        await asyncio.sleep(1)


async def _slow_body(turn: Turn) -> AsyncIterator[bytes]:
    reply = answer_reply(turn.sealed())
    yield reply.encode().removesuffix(reply.body)
    for byte in reply.body:
        yield bytes([byte])
        await asyncio.sleep(1)


async def _closes_half_way(turn: Turn) -> AsyncIterator[bytes]:
    whole = answer_reply(turn.sealed()).encode()
    yield whole[: -len(whole) // 4]


async def _closes_at_once(turn: Turn) -> AsyncIterator[bytes]:
    return
    yield b""


async def _length_too_long(turn: Turn) -> AsyncIterator[bytes]:
    body = turn.sealed()
    yield _head(200, _type(), _length(len(body) + 100)) + body


async def _length_too_short(turn: Turn) -> AsyncIterator[bytes]:
    body = turn.sealed()
    yield _head(200, _type(), _length(len(body) - 100)) + body


async def _two_lengths(turn: Turn) -> AsyncIterator[bytes]:
    body = turn.sealed()
    yield _head(200, _type(), _length(len(body)), _length(8)) + body


async def _length_and_chunks(turn: Turn) -> AsyncIterator[bytes]:
    body = turn.sealed()
    chunked = (b"transfer-encoding", b"chunked")
    yield _head(200, _type(), _length(len(body)), chunked)
    yield b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


async def _no_length(turn: Turn) -> AsyncIterator[bytes]:
    yield _head(200, _type(), (b"connection", b"close")) + turn.sealed()


async def _redirect(turn: Turn) -> AsyncIterator[bytes]:
    location = (b"location", turn.replica.trap_url.encode())
    yield _head(307, location, _length(0))


async def _gzipped(turn: Turn) -> AsyncIterator[bytes]:
    packed = gzip.compress(turn.sealed())
    encoding = (b"content-encoding", b"gzip")
    yield _head(200, _type(), encoding, _length(len(packed))) + packed


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(bytes(1 << 27), compresslevel=1)


async def _gzip_bomb(turn: Turn) -> AsyncIterator[bytes]:
    packed = _bomb()
    encoding = (b"content-encoding", b"gzip")
    yield _head(200, _type(), encoding, _length(len(packed))) + packed


async def _html(turn: Turn) -> AsyncIterator[bytes]:
    page = b"<!doctype html><title>Welcome</title>"
    yield _head(200, _type(b"text/html"), _length(len(page))) + page


async def _two_content_types(turn: Turn) -> AsyncIterator[bytes]:
    body = turn.sealed()
    yield _head(200, _type(), _type(PICKLE_TYPE), _length(len(body))) + body


async def _typed_with_parameter(turn: Turn) -> AsyncIterator[bytes]:
    body = turn.sealed()
    typed = _type(f"{SEALED_TYPE}; charset=utf-8".encode())
    yield _head(200, typed, _length(len(body))) + body


async def _status_of_thousands_of_digits(turn: Turn) -> AsyncIterator[bytes]:
    body = turn.sealed()
    head = answer_reply(body).encode().replace(b" 200 ", b" %s " % (b"2" * 5000), 1)
    yield head


async def _old_http(turn: Turn) -> AsyncIterator[bytes]:
    yield answer_reply(turn.sealed()).encode().replace(b"HTTP/1.1", b"HTTP/1.0", 1)


async def _hangs(turn: Turn) -> AsyncIterator[bytes]:
    await asyncio.sleep(HANG_SECONDS)
    yield b""


async def _no_http(turn: Turn) -> AsyncIterator[bytes]:
    yield b"SSH-2.0-OpenSSH_9.9\r\n"
    await asyncio.sleep(HANG_SECONDS)


STREAMS: Mapping[str, Stream] = {
    "pickle": _pickled(200, PICKLE_TYPE),
    "pickle-as-answer": _pickled(200, SEALED_TYPE.encode()),
    "pickle-as-refusal": _pickled(500, PICKLE_TYPE),
    "endless-chunks": _endless_chunks,
    "endless-length": _endless_length,
    "endless-beyond": _endless_beyond,
    "endless-refusal": _endless_refusal,
    "endless-headers": _endless_headers,
    "endless-header": _endless_header,
    "endless-informational": _endless_informational,
    "endless-chunk-extension": _endless_chunk_extension,
    "zeros-to-the-cap": _zeros_to_the_cap,
    "over-the-cap": _over_the_cap,
    "slow-drip": _slow_drip,
    "slow-body": _slow_body,
    "closes-half-way": _closes_half_way,
    "closes-at-once": _closes_at_once,
    "length-too-long": _length_too_long,
    "length-too-short": _length_too_short,
    "two-lengths": _two_lengths,
    "length-and-chunks": _length_and_chunks,
    "no-length": _no_length,
    "redirect": _redirect,
    "gzipped": _gzipped,
    "gzip-bomb": _gzip_bomb,
    "html": _html,
    "two-content-types": _two_content_types,
    "typed-with-parameter": _typed_with_parameter,
    "status-of-thousands-of-digits": _status_of_thousands_of_digits,
    "old-http": _old_http,
    "hangs": _hangs,
    "no-http": _no_http,
}
