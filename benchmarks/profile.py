"""Where the time of a verified request goes: ``python -m benchmarks.profile --json``.

The chain of the hop benchmark, runners in this process: everything but HTTP. The
profiler's own cost is taken out by scaling its shares to the time without it.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import pstats
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hop import SIZES, prepare
from bentoml_secure.serving.assembly import assemble_entry
from bentoml_secure.serving.deployment import Deployment
from bentoml_secure.serving.request import draw_context
from bentoml_secure.split.runtime import load_segment

REQUESTS = {"256B": 400, "64KiB": 300, "1MiB": 60}
BODY = b"{}"

# First match wins; what matches nothing is "rest" (asyncio, numpy, dataclasses).
PARTS = (
    ("Ed25519 sign and verify", ("Ed25519", "ed25519")),
    ("HMAC-SHA256", ("hmac", "_hashlib", "HMAC")),
    ("salts (HKDF)", ("hkdf", "HKDF", "derive_salt")),
    ("ONNX Runtime", ("onnxruntime", "split/runtime")),
    ("canonical JSON, JSON", ("json", "digest.py", "rfc8785")),
    ("receipt and its store", ("sqlite", "receipts/", "serving/entry.py")),
    ("statements, envelopes", ("statements.py", "signing.py", "base64", "dsse")),
    ("tensors: checks, copies, headers", ("tensors/", "readers.py", "exchange.py")),
    ("agreement", ("consensus/",)),
    ("metrics", ("prometheus_client", "metrics.py")),
)


def part_of(function: tuple[str, int, str]) -> str:
    """Return the part of the report that a profiled function belongs to."""
    text = f"{function[0]} {function[2]}"
    for part, marks in PARTS:
        if any(mark in text for mark in marks):
            return part
    return "rest (event loop, numpy, dataclasses)"


async def profile(
    call: Callable[[], Awaitable[object]], requests: int
) -> dict[str, float]:
    """Return milliseconds per request by part, ``total`` included."""
    for _ in range(20):
        await call()
    begun = time.perf_counter()
    for _ in range(requests):
        await call()
    total = (time.perf_counter() - begun) / requests * 1e3
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(requests):
        await call()
    profiler.disable()
    shares: dict[str, float] = {}
    stats: Any = pstats.Stats(profiler)
    for function, (_, _, own, _, _) in stats.stats.items():
        if "poll" not in function[2]:
            part = part_of(function)
            shares[part] = shares.get(part, 0.0) + own
    whole = sum(shares.values())
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return {"total": total, **{part: own / whole * total for part, own in ordered}}


async def run(folder: Path) -> dict[str, dict[str, float]]:
    """Profile one replica per segment at each size."""
    deployment = Deployment.read(
        name="Profiled",
        plan=folder / "plan",
        replicas=1,
        scenarios=folder / "scenarios-1.toml",
        threads=1,
        in_process=True,
        max_message_bytes=1 << 28,
        module=__name__,
    )
    local = {}
    for name, index in deployment.runners.items():
        loaded = load_segment(deployment.folder, deployment.plan, index, threads=1)
        local[name] = deployment.runner(name, index, loaded.run_unchecked)
    entry = assemble_entry(deployment, {}, local)
    for replicas in entry.engine.peers:
        for peer in replicas:
            await peer.attest()
    scenario = entry.configuration.scenarios.select(None)
    found = {}
    for size, requests in REQUESTS.items():
        x = np.ones(SIZES[size] // 4, np.float32)

        async def call(x: Any = x) -> None:
            context = draw_context((), "/bench", scenario, datetime.now(UTC))
            await entry.engine.infer(context, {"x0": x})
            await entry.issue(context, 200, BODY, BODY)

        found[size] = await profile(call, requests)
    await entry.close()
    return found


def measure() -> dict[str, Any]:
    """Return the JSON object of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="profile-") as name:
        folder = Path(name)
        prepare(folder)
        os.environ["BENTOML_SECURE_DEV_ROOT"] = str(folder / "root")
        os.environ["BENTOML_SECURE_STORE"] = str(folder / "receipts.sqlite")
        found = asyncio.run(run(folder))
    return {"name": "profile", "figures": found, "environment": {"segments": 2}}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
