"""A bound on the bytes of all exchanges that a runner has in hand at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """Hands out a number of bytes, first come first served.

    Who asks for more than is free waits; nobody may ask for more than there is.

    Args:
        total_bytes: At least the largest single message.
    """

    def __init__(self, total_bytes: int) -> None:
        self._free = total_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Hold ``count`` bytes for the length of the block."""
        if self._waiting or count > self._free:
            await self._wait(count)
        else:
            self._free -= count
        try:
            yield
        finally:
            self._free += count
            self._wake()

    async def _wait(self, count: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # Given in the same moment: hand it back.
                self._free += count
            self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
            elif count <= self._free:
                self._waiting.popleft()
                self._free -= count
                turn.set_result(None)
            else:
                return
