"""What ``benchmarks.consensus`` serves and times: a chain, its replicas, its entry.

Everything is timed inside the entry's process. ``CONSENSUS_*`` variables say where plan
and scenarios are, how many replicas each segment has, and which file, while it exists,
makes replica 0 of segment 0 answer a second late.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

import bentoml_secure
from benchmarks.hop_timing import Vector, tensor
from bentoml_secure.consensus.collect import Answer
from bentoml_secure.receipts.records import InferRecord
from bentoml_secure.serving.asking import Made
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.lockstep import Values
from bentoml_secure.serving.request import RequestContext, draw_context
from bentoml_secure.tensors import Array, commit
from bentoml_secure.testing.faults import delayed, tamper

LATE_SECONDS = 1.0
BODY = b'{"x": 1}'
SETTLE_SECONDS = 10.0
SWITCH = Path(os.environ["CONSENSUS_SWITCH"])


@bentoml_secure.service(
    plan=os.environ["CONSENSUS_PLAN"],
    replicas=int(os.environ["CONSENSUS_REPLICAS"]),
    scenarios=os.environ["CONSENSUS_SCENARIOS"],
    name="Measured",
    traffic={"timeout": 1200},
)
class Measured:
    """A chain whose segments and scenarios are chosen for each measurement."""

    secure: bentoml_secure.Secure

    @bentoml.api
    async def requests(
        self, scenario: str, segments: int, nbytes: int, count: int
    ) -> dict[str, Any]:
        """Time whole requests: the chain's first segments, and a receipt, stored."""
        chain = Chain(self.secure.entry, scenario, nbytes)
        for _ in range(3):
            await chain.request(segments)
        times = [await chain.request(segments) for _ in range(count)]
        await self._own_receipt()
        return {"ms": times}

    @bentoml.api
    async def rounds(self, scenario: str, nbytes: int, count: int) -> dict[str, Any]:
        """Time rounds of consensus, and between them the same asks without it."""
        chain = Chain(self.secure.entry, scenario, nbytes)
        single, agreed = [], []
        for number in range(count + 3):
            slowest, agreement = await chain.slowest(), await chain.agreement()
            if number >= 3:
                single.append(slowest)
                agreed.append(agreement)
        await self._own_receipt()
        return {"single": single, "agreed": agreed}

    async def _own_receipt(self) -> None:
        # This call's own: an answer without an infer is refused. Under the scenario
        # that was measured: a committee of one might be the replica that is late.
        await self.secure.infer({"x0": np.zeros(4, np.float32)})


class Chain:
    """One scenario's rounds over tensors of one size.

    Args:
        entry: Of this process.
        scenario: Its name.
        nbytes: Of each tensor.
    """

    def __init__(self, entry: Entry, scenario: str, nbytes: int) -> None:
        self._entry = entry
        self._scenario = entry.configuration.scenarios.by_name[scenario]
        self._x: Vector = tensor(nbytes)

    def _begin(self) -> tuple[RequestContext, Values, dict[str, bytes]]:
        context = draw_context((), "/bench", self._scenario, datetime.now(UTC))
        plan = self._entry.engine.plan
        names = [f"x{index}" for index in range(len(plan.segments) + 1)]
        salts = {name: context.salt(0, "tensor", name) for name in names}
        tensors: dict[str, Array] = {"x0": self._x}
        inputs = commit(tensors, {"x0": salts["x0"]})
        return context, Values(tensors, dict(inputs)), salts

    async def request(self, segments: int) -> float:
        """Return the milliseconds of one request, receipt included."""
        begun = time.perf_counter()
        context, values, salts = self._begin()
        inputs, lockstep = dict(values.commitments), self._entry.engine.lockstep
        records = [
            await lockstep.run(context, 0, index, values, salts)
            for index in range(segments)
        ]
        last = f"x{segments}"
        outputs = {last: values.commitments[last]}
        record = InferRecord(
            index=0, inputs=inputs, outputs=outputs, segments=tuple(records)
        )
        context.infers.append(record)
        await self._entry.issue(context, 200, BODY, BODY)
        return (time.perf_counter() - begun) * 1e3

    async def agreement(self) -> float:
        """Return the milliseconds of one segment's round, until its quorum agreed."""
        begun = time.perf_counter()
        context, values, salts = self._begin()
        await self._entry.engine.lockstep.run(context, 0, 0, values, salts)
        taken = time.perf_counter() - begun
        # Who is late has its share of the processor in this round, not in the next.
        for pending in context.late:
            await asyncio.wait_for(pending.task, SETTLE_SECONDS)
        return taken * 1e3

    async def slowest(self) -> float:
        """Return the milliseconds of the slowest of the same asks, each on its own.

        All replicas are asked at once, so that the load is that of a round; each ask
        is timed for itself, from the tensors to the verified statement.
        """
        begun = time.perf_counter()
        context, values, salts = self._begin()
        engine = self._entry.engine
        asking = engine.lockstep.asking(context, 0, 0, values, salts)
        ended: list[float] = []

        async def ask(index: int) -> Answer[Made]:
            """Ask one replica, note when it is done."""
            answer = await asking.ask(engine.peers[0][index])
            ended.append(time.perf_counter())
            return answer

        await asyncio.gather(*map(ask, range(len(engine.peers[0]))))
        return (max(ended) - begun) * 1e3


def late(outputs: dict[str, Array]) -> dict[str, Array]:
    """Answer honestly, and a second late while the switch is on."""
    return delayed(LATE_SECONDS)(outputs) if SWITCH.exists() else outputs


_served: Any = Measured
tamper(_served, "MeasuredSegment0Replica0", late)
