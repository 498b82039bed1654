"""Chains and referees keep to the scenario's places; nothing of a request is left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.digest import parse_json
from bentoml_secure.errors import QuorumNotReached
from bentoml_secure.receipts.attachments import parse_attachment
from bentoml_secure.scenario import Mode
from bentoml_secure.serving import entry as entry_module
from bentoml_secure.serving.channel import Channel, Received
from bentoml_secure.serving.completion import audit
from bentoml_secure.serving.exchange import Exchange, Outgoing
from bentoml_secure.session.keys import Session
from bentoml_secure.signing import MAX_ENVELOPE_BYTES, Envelope
from bentoml_secure.tensors import TensorSpec
from tests.unit.serving.serving_parts import Wrapped, feed, make_ground, name_of
from tests.unit.serving.test_serving_modes import lies


class Stuck(Wrapped):
    """Never answers, and says when it was given up."""

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner)
        self.given_up = False

    async def exchange(
        self,
        exchange: Exchange,
        outgoing: Outgoing,
        specs: Sequence[TensorSpec],
        session: Session | None,
    ) -> Received:
        self.exchanges.append(exchange)
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up = True
        raise AssertionError


async def test_a_chain_does_not_hand_tensors_to_who_may_not_run_a_segment(
    skips: Path,
) -> None:
    ground = make_ground(skips / "plan", mode=Mode.END_TO_END)
    channels: dict[tuple[int, int], Wrapped] = {}

    def wrap(index: int, replica: int, channel: Channel) -> Channel:
        return channels.setdefault((index, replica), Wrapped(channel))

    engine = await ground.attested(wrap=wrap)
    placed = replace(ground.scenario, placement={"1": ("tdx",)})
    context = ground.context(scenario=placed)
    with pytest.raises(QuorumNotReached, match="may not run segment 1, only tdx"):
        await engine.infer(context, feed())
    assert [n for (index, _), c in channels.items() if index for n in c.exchanges] == []
    assert not {name_of(1, replica) for replica in range(3)} & {*context.pinned}
    await engine.close()


async def test_a_referee_out_of_its_place_does_not_rule(skips: Path) -> None:
    ground = make_ground(skips / "plan", referee=True)
    engine = await ground.attested(runs=lies(ground, (1, 0), (1, 1)))
    referee = engine.referees[1]
    held = referee._attested
    assert held is not None
    claims = replace(held.result.claims, kind="tdx")
    referee._attested = replace(held, result=replace(held.result, claims=claims))
    placed = replace(ground.scenario, placement={"1": ("simulated",)})
    context = ground.context(scenario=placed)
    with pytest.raises(QuorumNotReached, match="tdx may not run segment 1"):
        await engine.infer(context, feed())
    assert referee.name not in context.pinned
    await engine.close()


async def test_a_chain_that_nobody_waits_for_has_ended_with_its_round(
    skips: Path,
) -> None:
    ground = make_ground(skips / "plan", mode=Mode.END_TO_END)
    channels: list[Stuck] = []

    def wrap(index: int, replica: int, channel: Channel) -> Channel:
        if (index, replica) != (0, 1):
            return channel
        channels.append(Stuck(channel))
        return channels[0]

    engine = await ground.attested(wrap=wrap)
    context = ground.context()
    await engine.infer(context, feed())
    (stuck,) = channels
    assert len(stuck.exchanges) == 1
    assert stuck.given_up
    await engine.close()


async def test_what_follows_a_receipt_does_not_wait_for_one_another(
    skips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a deadline of its own: a slow audit must not make others late."""
    let_go = asyncio.Event()

    async def slow_audit(*asked: Any) -> Envelope:
        await let_go.wait()
        return await audit(*asked)

    monkeypatch.setattr(entry_module, "audit", slow_audit)
    ground = make_ground(
        skips / "plan", mode=Mode.END_TO_END, referee=True, audit_rate=1.0
    )
    engine = await ground.attested(runs=lies(ground, (0, 1)))
    made = ground.entry(engine, tmp_path / "store")
    context = ground.context()
    await engine.infer(context, feed())
    assert context.doubted
    await made.issue(context, 200, b"asked", b"answered")
    receipt_id = context.request_id.hex()
    await made.wait_complete(receipt_id, 1)
    assert kinds(made.store.bundle(receipt_id).attachments) == ["localisation"]
    let_go.set()
    await made.wait_complete(receipt_id, 5)
    assert kinds(made.store.bundle(receipt_id).attachments) == ["audit", "localisation"]
    assert (context.kept, context.doubted) == ([], [])
    await made.close()


def kinds(attachments: Sequence[Envelope]) -> list[str]:
    return sorted(
        parse_attachment(
            parse_json(made.payload, what="attachment", max_bytes=MAX_ENVELOPE_BYTES)
        ).kind
        for made in attachments
    )
