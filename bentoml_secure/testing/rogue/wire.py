"""Bare HTTP/1.1 on asyncio streams: what comes in is read, anything may go out.

No server library stands between: a library would not let a replica lie about its
length or send two content types.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from bentoml_secure.serving.asgi import App, Message

MAX_HEAD_BYTES = 64 * 1024

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, read whole."""

    method: str
    path: str
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer before it is put into bytes."""

    status: int
    headers: Headers
    body: bytes

    def encode(self) -> bytes:
        """Return the bytes of an answer that keeps the rules."""
        lines = [status_line(self.status), *(b"%s: %s" % pair for pair in self.headers)]
        return b"\r\n".join([*lines, b"", self.body])


def status_line(status: int) -> bytes:
    """Return the first line of an answer, without its end."""
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()


def json_reply(document: Any, status: int = 200) -> Reply:
    """Return a JSON answer."""
    body = json.dumps(document).encode()
    length = str(len(body)).encode()
    return Reply(
        status=status,
        headers=(
            (b"content-type", b"application/json"),
            (b"content-length", length),
        ),
        body=body,
    )


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Read a request with a content-length, or return None where there is none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        method, path, _ = first.decode("latin-1").split(" ", 2)
        headers = tuple(
            (name.strip().lower(), value.strip())
            for name, _, value in (line.partition(b":") for line in lines)
        )
        length = int(dict(headers).get(b"content-length", b"0"))
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        return None
    return Request(method=method, path=path, headers=headers, body=body)


async def call(app: App, request: Request) -> Reply:
    """Return what an ASGI app answers to a request."""
    status, headers, body = 0, (), bytearray()
    pending = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        """Hand out the body at once."""
        return pending.pop() if pending else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        """Keep what the door says."""
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], tuple(message["headers"])
        else:
            body.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "method": request.method,
        "path": request.path.partition("?")[0],
        "query_string": request.path.partition("?")[2].encode(),
        "headers": list(request.headers),
    }
    await app(scope, receive, send)
    return Reply(status=status, headers=headers, body=bytes(body))


Serve = Callable[[Request, asyncio.StreamWriter], Awaitable[bool]]
"""Answers one request; returns whether the connection goes on."""


class Port:
    """A local port that can be shut and opened again, connections and all.

    Args:
        serve: Answers each request.
        number: Of the port; 0 takes any that is free when it is first opened.
    """

    def __init__(self, serve: Serve, number: int = 0) -> None:
        self.number = number
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where it answers, once it was opened."""
        return f"http://127.0.0.1:{self.number}"

    async def open(self) -> None:
        """Begin to listen."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._connected, "127.0.0.1", self.number, limit=MAX_HEAD_BYTES
            )
            self.number = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Refuse connections, and drop those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        # They are gone in the loop's next round.
        await asyncio.sleep(0)

    async def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._writers.add(writer)
        # Who is attacked hangs up: that is not an error here.
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while request := await read_request(reader):
                if not await self._serve(request, writer):
                    break
        self._writers.discard(writer)
        writer.close()
