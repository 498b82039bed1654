"""The same segments behind ``bentoml_secure.service``.

A request is what the entry does between the bodies: the chain with statements and
consensus, then the receipt, signed and stored. ``HOP_REPLICAS`` is 1 or 3.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import bentoml
import numpy as np

import bentoml_secure
from benchmarks.hop_timing import Vector, timed
from bentoml_secure.serving.request import draw_context

REPLICAS = int(os.environ["HOP_REPLICAS"])
BODY = b'{"x": 1}'


@bentoml_secure.service(
    plan=os.environ["HOP_PLAN"],
    replicas=REPLICAS,
    scenarios=os.environ["HOP_SCENARIOS"],
    name="Secure",
    traffic={"timeout": 1200},
)
class Secure:
    """Calls the segments in order, verified."""

    secure: bentoml_secure.Secure

    async def call(self, x: Vector) -> Vector:
        """Run the chain once and issue its receipt."""
        entry = self.secure.entry
        scenario = entry.configuration.scenarios.select(None)
        context = draw_context((), "/bench", scenario, datetime.now(UTC))
        out = await entry.engine.infer(context, {"x0": x})
        await entry.issue(context, 200, BODY, BODY)
        return np.asarray(out["x2"], np.float32)

    @bentoml.api
    async def bench(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Time the chain; this call itself makes one infer, for its own receipt."""
        result = await timed(self.call, **spec)
        await self.secure.infer({"x0": np.zeros(4, np.float32)})
        return result
