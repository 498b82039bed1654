"""Spares that are asked beside who is slow, and receipts that hold all the same."""

from __future__ import annotations

import threading
from pathlib import Path

from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.serving.channel import LocalChannel
from bentoml_secure.serving.engine import Engine
from tests.unit.serving.serving_parts import Ground, feed, held_back, make_ground
from tests.unit.serving.test_serving_entry import trust


async def with_one_slow(ground: Ground, gate: threading.Event) -> Engine:
    """Return an engine whose third drawn of segment 0 waits for the gate.

    The two others answer in one step, and whoever is not there then is slow: the
    round is decided in the very moment in which a spare would be asked.
    """
    engine = await ground.attested()
    candidates, _ = engine.lockstep._candidates(ground.context(), 0, 0)
    await engine.close()
    slow = [peer.name for peer in engine.peers[0]].index(candidates[2].replica)
    run = held_back(ground.segments[0].run_unchecked, gate)
    engine = await ground.attested(runs={(0, slow): run})
    channel = engine.peers[0][slow].channel
    assert isinstance(channel, LocalChannel)
    # In a thread, as runs that take long are.
    channel._core._run_seconds = 1.0
    for _ in range(20):
        engine.lockstep._latencies[0].add(0.0)
    return engine


async def test_nobody_is_asked_beside_a_quorum_that_is_there(
    skips: Path, tmp_path: Path
) -> None:
    ground = make_ground(skips / "plan", spares=1, of=4)
    gate = threading.Event()
    engine = await with_one_slow(ground, gate)
    entry = ground.entry(engine, tmp_path / "store")
    context = ground.context()
    await engine.infer(context, feed())
    gate.set()
    assert context.infers[0].segments[0].unused == ()
    await entry.issue(context, 200, b"asked", b"answered")
    receipt_id = context.request_id.hex()
    await entry.wait_complete(receipt_id, 20)
    bundle = entry.store.bundle(receipt_id)
    await entry.close()
    verdict = verify_bundle(bundle, trust(ground), now=ground.clock())
    assert verdict.state is State.ACCEPTED
    assert len(context.infers[0].segments[0].statements) == 2
