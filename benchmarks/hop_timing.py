"""Times one call many times inside the entry's process, as every variant is timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.hop_model import FACTOR, SEGMENTS

Vector = NDArray[np.float32]
Call = Callable[[Vector], Awaitable[Vector]]


def tensor(nbytes: int) -> Vector:
    """Return the input: float32[nbytes / 4]."""
    return np.random.default_rng(1).standard_normal(nbytes // 4, dtype=np.float32)


async def timed(
    call: Call, *, nbytes: int, requests: int, concurrency: int
) -> dict[str, Any]:
    """Run ``call`` and return its times.

    Returns:
        p50_ms and p95_ms of one request (the whole chain), rps, errors.
    """
    x = tensor(nbytes)
    want = x
    for _ in range(SEGMENTS):
        want = want * np.float32(FACTOR)
    for _ in range(3):
        await asyncio.gather(
            *(call(x) for _ in range(concurrency)), return_exceptions=True
        )
    assert np.array_equal(await call(x), want)
    times: list[float] = []
    errors: list[str] = []
    share = -(-requests // concurrency)

    async def worker() -> None:
        for _ in range(share):
            begun = time.perf_counter()
            try:
                await call(x)
            except Exception as error:  # noqa: BLE001 - counted, and reported
                errors.append(repr(error)[:200])
            times.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    wall = time.perf_counter() - begun
    times.sort()
    return {
        "p50_ms": times[len(times) // 2] * 1e3,
        "p95_ms": times[int(len(times) * 0.95)] * 1e3,
        "rps": len(times) / wall,
        "requests": len(times),
        "errors": len(errors),
        "first_error": errors[0] if errors else "",
    }
