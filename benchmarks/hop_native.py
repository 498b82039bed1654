"""The same segments as plain BentoML services with ``bentoml.depends``.

With the session work-around: without it the shared session is closed under load.
``HOP_CALL`` says which of BentoML's calls is timed: async, sync or local (the floor:
ONNX Runtime in the entry's own process).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import onnxruntime

from benchmarks.hop_model import SEGMENTS
from benchmarks.hop_timing import Vector, timed

PLAN = Path(os.environ["HOP_PLAN"])
CALL = os.environ["HOP_CALL"]
PROXIED: dict[str, Any] = {"runner_connection": {"max_requests": 10**9, "max_age": 1e9}}


def load(index: int) -> onnxruntime.InferenceSession:
    """Load a segment as our runners do: one thread, level EXTENDED."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    )
    return onnxruntime.InferenceSession(
        str(PLAN / f"segment-{index}.onnx"),
        options,
        providers=["CPUExecutionProvider"],
    )


@bentoml.service(name="Native0", **PROXIED)
class Native0:
    """Segment 0."""

    def __init__(self) -> None:
        self.session = load(0)

    @bentoml.api
    async def run(self, x: np.ndarray) -> np.ndarray:
        """Run the segment on the event loop."""
        return np.asarray(self.session.run(None, {"x0": x})[0])

    @bentoml.api
    def run_sync(self, x: np.ndarray) -> np.ndarray:
        """Run the segment in a worker thread."""
        return np.asarray(self.session.run(None, {"x0": x})[0])


@bentoml.service(name="Native1", **PROXIED)
class Native1:
    """Segment 1."""

    def __init__(self) -> None:
        self.session = load(1)

    @bentoml.api
    async def run(self, x: np.ndarray) -> np.ndarray:
        """Run the segment on the event loop."""
        return np.asarray(self.session.run(None, {"x1": x})[0])

    @bentoml.api
    def run_sync(self, x: np.ndarray) -> np.ndarray:
        """Run the segment in a worker thread."""
        return np.asarray(self.session.run(None, {"x1": x})[0])


@bentoml.service(name="NativeEntry", traffic={"timeout": 1200})
class NativeEntry:
    """Calls the segments in order."""

    first = bentoml.depends(Native0)
    second = bentoml.depends(Native1)

    def __init__(self) -> None:
        self.sessions = [load(index) for index in range(SEGMENTS)]

    async def call(self, x: Vector) -> Vector:
        """Run the chain once."""
        y: Any = x
        if CALL == "local":
            for index, session in enumerate(self.sessions):
                y = session.run(None, {f"x{index}": y})[0]
        elif CALL == "sync":
            y = await self.first.to_async.run_sync(y)
            y = await self.second.to_async.run_sync(y)
        else:
            y = await self.first.to_async.run(y)
            y = await self.second.to_async.run(y)
        return np.asarray(y, np.float32)

    @bentoml.api
    async def bench(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Time the chain."""
        return await timed(self.call, **spec)
