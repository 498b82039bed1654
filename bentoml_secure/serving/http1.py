"""A strict HTTP/1.1 client for one address: what a hop needs, nothing else.

One request at a time per connection, answers with a content-length only. Chunked
bodies, a header that stands twice, informational answers, bytes nobody asked for:
each ends the connection. A general client costs a small hop more than its signature
does; ``benchmarks/hop.py`` has the figures.

Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)

MAX_HEAD_BYTES = 16 * 1024
# uvicorn closes an idle connection after 5 s, and a reused one then fails a POST.
IDLE_SECONDS = 4.0
MAX_IDLE_CONNECTIONS = 64
CONNECT_SECONDS = 5.0
_SCRATCH_BYTES = 256 * 1024
_SEND_BUFFER_BYTES = 1024 * 1024

Feed = Callable[[memoryview], None]

# Exactly three: int() of thousands of digits raises. No 1xx: another answer would
# follow, and could be taken for that of the next request.
_STATUS = re.compile(rb"[2-5][0-9]{2}")


class ConnectionLostError(UnavailableError):
    """The connection ended before a byte of the answer: another attempt is safe."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and the two headers that a hop looks at."""

    status: int
    content_type: str
    content_length: int


def parse_head(data: bytes) -> tuple[Head, bool]:
    """Parse status line and headers, the blank line included.

    Returns:
        The head, and whether the connection may be used again.

    Raises:
        MalformedInputError: Anything but HTTP/1.1 with exactly one content-length.
    """
    lines = data[:-4].split(b"\r\n")
    status = lines[0].split(b" ", 2)
    if len(status) < 2 or status[0] != b"HTTP/1.1" or not _STATUS.fullmatch(status[1]):
        raise MalformedInputError(f"answer: got {lines[0]!r:.60}, want HTTP/1.1")
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or not name or name != name.strip() or name in headers:
            raise MalformedInputError(f"answer: bad or repeated header {line!r:.60}")
        headers[name] = value.strip(b" \t")
    for name in (b"transfer-encoding", b"content-encoding"):
        if name in headers:
            raise MalformedInputError(f"answer: {name.decode()} is not read here")
    length = headers.get(b"content-length", b"")
    if not length.isdigit() or len(length) > 18:
        raise MalformedInputError(f"answer content-length: got {length!r:.40}")
    content_type = headers.get(b"content-type", b"").decode("latin-1")
    keep = headers.get(b"connection", b"").lower() != b"close"
    return Head(int(status[1]), content_type, int(length)), keep


class _Connection(asyncio.BufferedProtocol):
    """One connection: reads into a buffer of its own, hands pieces on as they come."""

    def __init__(self) -> None:
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._filled = 0
        self._on_head: Callable[[Head], Feed] | None = None
        self._feed: Feed | None = None
        self._missing = 0
        self._keep = True
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._lost = False
        self.idle_since = 0.0

    @property
    def reusable(self) -> bool:
        """Whether another request may go out here."""
        fresh = time.monotonic() - self.idle_since < IDLE_SECONDS
        return self._keep and not self._lost and fresh and self._on_head is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # A piece is good until the next is asked for: each goes out whole before that.
        self._transport.set_write_buffer_limits(high=0)
        sock = self._transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            # The kernel's default holds less than a piece, and does not grow as TCP's.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._release_writer()
        if self._feed is None and not self._filled:
            self._fail(ConnectionLostError("connection lost before an answer"))
        else:
            self._fail(UnavailableError("connection lost within the answer"))

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        self._release_writer()

    def _release_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._scratch[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._take(nbytes)
        except Exception as error:  # noqa: BLE001 - goes to whoever waits
            self._fail(error)
            self.abort()

    def _take(self, nbytes: int) -> None:
        if self._on_head is None:
            raise MalformedInputError("answer: bytes that nobody asked for")
        piece = self._scratch[: self._filled + nbytes]
        if self._feed is None:
            # Bounded: only the head is searched, and only up to its cap.
            end = bytes(piece[:MAX_HEAD_BYTES]).find(b"\r\n\r\n")
            if end < 0:
                self._filled += nbytes
                if self._filled >= MAX_HEAD_BYTES:
                    raise MalformedInputError(
                        f"answer: its head is over {MAX_HEAD_BYTES} bytes"
                    )
                return
            head, self._keep = parse_head(bytes(piece[: end + 4]))
            self._filled = 0
            self._feed = self._on_head(head)
            self._missing = head.content_length
            piece = piece[end + 4 :]
        if len(piece) > self._missing:
            raise MalformedInputError("answer: longer than its content-length")
        self._missing -= len(piece)
        if len(piece):
            self._feed(piece)
        if not self._missing and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    def abort(self) -> None:
        """Drop the connection at once."""
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    async def roundtrip(
        self,
        head: bytes,
        body: Iterable[bytes | memoryview],
        on_head: Callable[[Head], Feed],
    ) -> None:
        """Send one request and hand its answer to what ``on_head`` returns."""
        if self._transport is None or self._lost:
            raise ConnectionLostError("connection lost before the request")
        self._done = asyncio.get_running_loop().create_future()
        self._on_head = on_head
        try:
            self._transport.write(head)
            for piece in body:
                if self._done.done():
                    # Refused before we were through: the rest is not wanted.
                    self._keep = False
                    break
                self._transport.write(piece)
                if self._writable is not None:
                    await self._writable
            await self._done
        except BaseException:
            self.abort()
            # Retrieved, so that nobody is told of it a second time.
            if self._done.done() and not self._done.cancelled():
                self._done.exception()
            raise
        finally:
            self._on_head = self._feed = None
            self.idle_since = time.monotonic()
        if not self._keep:
            self.abort()


def _parse_url(url: str) -> SplitResult:
    """Refuse here, at the start, what would otherwise fail every attempt."""
    try:
        parts = urlsplit(url)
        parts.netloc.encode("ascii")
        whole = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        # Ours are the paths at a replica; a prefix would not be sent.
        whole = whole and parts.path in ("", "/")
    except ValueError:
        whole, parts = False, urlsplit("")
    if parts.scheme == "file":
        whole = not parts.netloc and parts.path.startswith("/")
    known = parts.scheme in ("http", "https", "file")
    if not known or not whole or parts.query or parts.fragment:
        raise ConfigurationError(
            f"replica URL: got {url!r:.100}, want http://host:port, "
            "https://host:port or file:///path of a socket."
        )
    return parts


class Http1Client:
    """Connections to one address, kept between requests.

    Args:
        url: ``http://host:port``, ``https://host:port`` or ``file:///path`` (UDS).

    Raises:
        ConfigurationError: Any other URL.
    """

    def __init__(self, url: str) -> None:
        self._url = _parse_url(url)
        host = self._url.netloc if self._url.scheme != "file" else "runner"
        self._host = host.encode("ascii")
        self._idle: list[_Connection] = []

    async def request(
        self,
        method: str,
        path: str,
        on_head: Callable[[Head], Feed],
        *,
        content_type: str = "",
        head: bytes | memoryview = b"",
        body: Iterable[bytes | memoryview] = (),
        length: int = 0,
    ) -> None:
        """Send one request; the answer's body goes to what ``on_head`` returns.

        Args:
            method: GET or POST.
            path: Absolute path.
            on_head: Called with the answer's head; refuses it by raising.
            content_type: Of the body.
            head: First bytes of the body, sent together with the headers.
            body: The rest of the body; each piece has to be good until the next is
                asked for, not longer.
            length: Of the whole body.

        Raises:
            UnavailableError: Not reachable, or lost.
            SecureError: The answer breaks a rule, here or in ``on_head``.
        """
        lines = [f"{method} {path} HTTP/1.1".encode(), b"host: " + self._host]
        if content_type:
            lines.append(f"content-type: {content_type}".encode())
        lines.append(b"content-length: %d" % length)
        first = b"\r\n".join([*lines, b"", head])
        connection = self._reuse() or await self._connect()
        await connection.roundtrip(first, body, on_head)
        if connection.reusable and len(self._idle) < MAX_IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.abort()

    def _reuse(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if self._url.scheme == "file":
                    path = unquote(self._url.path)
                    made = await loop.create_unix_connection(_Connection, path)
                else:
                    secure = self._url.scheme == "https"
                    made = await loop.create_connection(
                        _Connection,
                        self._url.hostname or "",
                        self._url.port or (443 if secure else 80),
                        ssl=secure or None,
                    )
        except (OSError, TimeoutError) as error:
            raise UnavailableError(
                f"{self._url.geturl()}: {type(error).__name__}: {error}"
            ) from error
        connection: _Connection = made[1]
        connection.idle_since = time.monotonic()
        return connection

    def close(self) -> None:
        """Drop the idle connections."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
