"""A server at the socket: says exactly the bytes that a test wants said."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from bentoml_secure.serving.http1 import Head, Http1Client

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A listening socket.

    Attributes:
        url: Where it listens.
        connections: How many were made so far.
    """

    def __init__(self, handler: Handler) -> None:
        self.url = ""
        self.connections = 0
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()

    async def connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(
                ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
            ):
                await self._handler(reader, writer)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving(
    handler: Handler, socket: Path | None = None
) -> AsyncIterator[Server]:
    """Listen on a local port, or on a Unix socket, until the context ends."""
    server = Server(handler)
    if socket is None:
        listening = await asyncio.start_server(server.connected, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        server.url = f"http://127.0.0.1:{port}"
    else:
        listening = await asyncio.start_unix_server(server.connected, str(socket))
        server.url = f"file://{socket}"
    try:
        yield server
    finally:
        listening.close()
        await server.close()
        # What was not closed says so while this test runs, not a later one.
        await asyncio.sleep(0)
        gc.collect(1)


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read head and body of a request with a content-length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    return head, await reader.readexactly(length)


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """Return the bytes of an answer."""
    lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


def says(*answers: bytes) -> Handler:
    """Return a handler that answers each request of a connection in turn."""

    async def handler(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for said in answers:
            await read_request(reader)
            writer.write(said)
            await writer.drain()
        await reader.read()

    return handler


class Got:
    """What came back from one request."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.body = bytearray()

    def on_head(self, head: Head) -> Callable[[memoryview], None]:
        self.head = head
        return self.take

    def take(self, piece: memoryview) -> None:
        self.body += piece


async def get(client: Http1Client, path: str = "/") -> Got:
    """Make a request without a body."""
    got = Got()
    await client.request("GET", path, got.on_head)
    return got
