"""A TCP proxy that holds bytes back, and counts who hangs up on it meanwhile.

It runs on an event loop of its own in a thread, which may have entered another network
namespace: then it listens and connects there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_CLONE_NEWNET = 0x40000000
_START_SECONDS = 10.0


def _enter_network(name: str) -> None:
    """Move the calling thread, and no other, into a named network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(Path("/run/netns") / name, os.O_RDONLY)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {name}")
    finally:
        os.close(descriptor)


class Delaying:
    """Hands bytes on after a while, both ways.

    Args:
        host: Where they go.
        port: Where they go.
        network: Name of the network namespace that it lives in; this one if left out.

    Attributes:
        seconds: How long what comes back is held, from now on.
        holding: Connections on which it holds something back now.
        dropped: Connections that were closed while it did, so far.
    """

    def __init__(self, host: str, port: int, *, network: str | None = None) -> None:
        self.seconds = 0.0
        self.holding = 0
        self.dropped = 0
        self.url = ""
        self._target = (host, port)
        self._network = network
        self._open: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(_START_SECONDS), "the proxy did not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def _run(self) -> None:
        if self._network is not None:
            _enter_network(self._network)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._ending.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._pass(reader, writer)
        except OSError:
            # Whoever it was has gone: the other end is told by closing.
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        ways = [
            asyncio.create_task(self._hand_on(reader, far_writer, delayed=False)),
            asyncio.create_task(self._hand_on(far_reader, writer, delayed=True)),
        ]
        try:
            # Either end that closes closes both.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            far_writer.close()

    async def _hand_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        delayed: bool,
    ) -> None:
        # A line, not a pause: pieces that come together go on together.
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 16):
                    held = self.seconds if delayed else 0.0
                    line.put_nowait((self._loop.time() + held, data))
            line.put_nowait((0.0, b""))

        reading = asyncio.create_task(read())
        try:
            while (piece := await line.get())[1]:
                due, data = piece
                with self._holding(due - self._loop.time()):
                    await asyncio.sleep(due - self._loop.time())
                writer.write(data)
                await writer.drain()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    @contextlib.contextmanager
    def _holding(self, seconds: float) -> Iterator[None]:
        if seconds <= 0:
            yield
            return
        self.holding += 1
        try:
            yield
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        finally:
            self.holding -= 1
