"""A replica's voice is one and the same in a whole receipt, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation.key_document import package_digest
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.consensus.committee import Candidate, draw_order
from bentoml_secure.receipts.draw import Draw
from bentoml_secure.receipts.verify import State
from bentoml_secure.scenario import Independence
from bentoml_secure.serving.engine import EqualStanding
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.session.identity import Identity
from bentoml_secure.testing.deployment import key_of
from tests.unit.serving.serving_parts import (
    Ground,
    feed,
    make_ground,
    name_of,
    scenario,
)
from tests.unit.serving.test_serving_entry import verify

A, B = name_of(0, 0), name_of(0, 1)
"""On one host; everybody else has one of its own."""


@dataclass(kw_only=True)
class Hosts(Ground):
    """A ground whose replicas run on hosts of their own, but for A and B."""

    host: str = field(default="entry", init=False)

    def attester(self, root_name: str = "root") -> SimulatedAttester:
        return SimulatedAttester(
            key_of(root_name),
            self.root,
            platform_id=self.host,
            measurement=package_digest().partition(":")[2],
            clock=self.clock,
        )

    def identity(self, *args: Any, **changes: Any) -> Identity:
        shared = {A, B} & {*args}
        self.host = "shared" if shared else "".join(map(str, args[1:2])) or "entry"
        return super().identity(*args, **changes)


class Quarantine(EqualStanding):
    """Bars whom it is told to."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def barred(self, replica: str) -> str | None:
        return "in quarantine" if replica in self.names else None


@pytest.fixture
def hosts(skips: Path) -> Hosts:
    terms = scenario(
        replicas=3, quorum=2, independence=Independence.PLATFORM, grace_ms=0
    )
    ground = make_ground(skips / "plan")
    return Hosts(plan=ground.plan, segments=ground.segments, scenario=terms, replicas=4)


def drawn_so(ground: Ground, *wanted: Sequence[str]) -> RequestContext:
    """Return a request in whose n-th infer these are drawn first for segment 0."""
    names = [name_of(0, index) for index in range(ground.replicas)]
    for label in range(20_000):
        context = ground.context(draw=Draw.of(label.to_bytes(32, "big")))
        orders = [
            draw_order(
                context.seed,
                [Candidate(replica=name) for name in names],
                infer_index=infer,
                segment_index=0,
            )
            for infer in range(len(wanted))
        ]
        if all(
            order[: len(first)] == tuple(first)
            for order, first in zip(orders, wanted, strict=True)
        ):
            return context
    raise AssertionError("no such draw")


async def test_who_was_out_at_first_is_out_for_the_request(
    hosts: Hosts, tmp_path: Path
) -> None:
    """Else its evidence would give it another voice than it was seated with."""
    engine = await hosts.attested()
    made = hosts.entry(engine, tmp_path / "store")
    context = drawn_so(hosts, (A, B), (A, B))
    peer = engine.peers[0][0]
    held, peer._attested = peer._attested, None
    await engine.infer(context, feed())
    peer._attested = held
    await engine.infer(context, feed())
    await made.issue(context, 200, b"asked", b"answered")
    receipt_id = context.request_id.hex()
    await made.wait_complete(receipt_id, 5)
    assert verify(made.store.bundle(receipt_id), hosts).state is State.ACCEPTED
    await made.close()


async def test_who_is_quarantined_under_way_keeps_its_voice(
    hosts: Hosts, tmp_path: Path
) -> None:
    standing = Quarantine()
    engine = await hosts.attested(standing=standing)
    made = hosts.entry(engine, tmp_path / "store")
    context = drawn_so(hosts, (A, B), (A, B))
    await engine.infer(context, feed())
    standing.names = {A}
    await engine.infer(context, feed())
    seated = [m.replica for m in context.infers[1].segments[0].tally.committee]
    assert [name in seated for name in (A, B)] == [True, False]
    assert A not in context.infers[1].segments[0].statements
    await made.issue(context, 200, b"asked", b"answered")
    receipt_id = context.request_id.hex()
    await made.wait_complete(receipt_id, 5)
    assert verify(made.store.bundle(receipt_id), hosts).state is State.ACCEPTED
    await made.close()
