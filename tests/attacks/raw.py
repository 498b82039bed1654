"""Bytes onto a connection, as no HTTP library would send them."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bentoml_secure.digest import parse_json

TIMEOUT_SECONDS = 20.0
_MAX_ANSWER_BYTES = 1 << 20

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What came back until the other side closed or the time was over."""

    status: int
    body: bytes

    @property
    def code(self) -> str:
        """The code of our error document."""
        return str(self._error()["code"])

    @property
    def message(self) -> str:
        """The message of our error document."""
        return str(self._error()["message"])

    def _error(self) -> dict[str, object]:
        document = parse_json(self.body, what="answer", max_bytes=_MAX_ANSWER_BYTES)
        error: dict[str, object] = document["error"]
        return error


def connect(url: str, *, timeout: float = TIMEOUT_SECONDS) -> socket.socket:
    """Connect to a URL as BentoML writes it: http:// or file://."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        connection.connect(parts.path)
        return connection
    return socket.create_connection((parts.hostname, parts.port), timeout)


def head(method: str, path: str, headers: Headers) -> bytes:
    """Return the head of a request; nothing is added but a host."""
    lines = [f"{method} {path} HTTP/1.1", "Host: target"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(
    url: str,
    path: str,
    body: bytes,
    headers: Headers,
    *,
    method: str = "POST",
    length: int | None = None,
) -> Said:
    """Send a request with exactly these headers and a content-length."""
    announced = str(len(body) if length is None else length)
    sent = [("Content-Length", announced), ("Connection", "close"), *headers]
    return exchange(url, [head(method, path, sent), body])


def exchange(url: str, pieces: Iterable[bytes]) -> Said:
    """Send pieces until they end or nobody listens, and read the answer."""
    with connect(url) as connection:
        # Refused half-way: the answer is what counts.
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        return _answer(connection)


def _answer(connection: socket.socket) -> Said:
    data = bytearray()
    ends = time.monotonic() + TIMEOUT_SECONDS
    with contextlib.suppress(TimeoutError, ConnectionError):
        while len(data) < _MAX_ANSWER_BYTES and time.monotonic() < ends:
            piece = connection.recv(1 << 16)
            if not piece:
                break
            data += piece
    answer, _, body = bytes(data).partition(b"\r\n\r\n")
    words = answer.split(b" ", 2)
    return Said(status=int(words[1]) if len(words) > 1 else 0, body=body)


def chunks(piece: bytes, count: int) -> Iterable[bytes]:
    """Yield ``count`` chunks of a chunked body that does not end."""
    for _ in range(count):
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
