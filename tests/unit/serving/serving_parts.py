"""A deployment in one process, with a clock that moves: real keys, evidence, segments.

The network is ``x`` float32[batch, 4], ``mask`` bool[batch, 4] to ``t`` and ``y``:

    segment 0   x -> h          h = relu(x @ A)
    segment 1   h, x -> t       t = h @ B + x          x is read again
    segment 2   t, x, mask -> y y = where(mask, t, x)  mask only now
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.dev_chain import make_root
from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.attestation.key_document import (
    KeyDocument,
    Role,
    package_digest,
)
from bentoml_secure.attestation.tees.simulated import KIND, SimulatedAttester
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.receipts.draw import Draw
from bentoml_secure.receipts.store import SqliteReceiptStore
from bentoml_secure.scenario import (
    Configuration,
    Scenario,
    Scenarios,
    referee_name,
    runner_name,
)
from bentoml_secure.serving.asgi import Message, Scope
from bentoml_secure.serving.channel import Channel, LocalChannel, Received
from bentoml_secure.serving.engine import Engine
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.exchange import Exchange, Outgoing
from bentoml_secure.serving.held import held_for
from bentoml_secure.serving.lockstep import Standing
from bentoml_secure.serving.peers import Peer
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.serving.runner import RunnerCore, RunSegment
from bentoml_secure.session.handshake import Initiator
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Session
from bentoml_secure.session.messages import Document
from bentoml_secure.session.responders import Responder
from bentoml_secure.split import Plan, split_onnx
from bentoml_secure.split.runtime import Chain, LoadedSegment, load_chain
from bentoml_secure.statements import EXCHANGE_ID_BYTES
from bentoml_secure.tensors import Array, TensorSpec
from bentoml_secure.testing.deployment import NOW, key_of

SERVICE = "Skips"
REFEREE = -1
"""In place of a replica's index."""

MAX_AGE = 300


@dataclass(slots=True)
class Clock:
    """A clock that goes when it is told to."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **amount: float) -> None:
        self.now += timedelta(**amount)


def write_skips(path: Path) -> None:
    """Write the network of the module's docstring."""
    rng = np.random.default_rng(3)
    weights = [
        numpy_helper.from_array(rng.normal(size=(4, 4)).astype(np.float32), name)
        for name in ("A", "B")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("MatMul", ["h", "B"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["t"]),
        helper.make_node("Where", ["mask", "t", "x"], ["y"]),
    ]

    def value(name: str, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, ["batch", 4])

    graph = helper.make_graph(
        nodes,
        "skips",
        [value("x"), value("mask", TensorProto.BOOL)],
        [value("t"), value("y")],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, path)


def split_skips(folder: Path) -> Plan:
    """Write the network and its plan of three segments into ``folder``."""
    write_skips(folder / "skips.onnx")
    return split_onnx(folder / "skips.onnx", folder / "plan", cuts=["h", "t"])


def feed(seed: int = 0, batch: int = 2) -> dict[str, Array]:
    """Return inputs of the network."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(batch, 4)).astype(np.float32),
        "mask": rng.integers(0, 2, size=(batch, 4)).astype(bool),
    }


@dataclass(kw_only=True)
class Ground:
    """What the processes of one deployment stand on.

    Attributes:
        plan: Of ``split_skips``, or any.
        segments: The plan's, loaded.
        clock: Of every process.
        scenario: The only one.
    """

    plan: Plan
    segments: Sequence[LoadedSegment]
    scenario: Scenario
    clock: Clock = field(default_factory=Clock)
    replicas: int = 3

    @property
    def referees(self) -> bool:
        """Whether there are any: where the scenario asks for them."""
        return self.scenario.referee or self.scenario.audit_rate > 0

    @cached_property
    def root(self) -> bytes:
        return make_root(key_of("root"), now=NOW - timedelta(days=30))

    @cached_property
    def policy(self) -> AppraisalPolicy:
        return AppraisalPolicy.from_table(
            {
                "version": 1,
                "max_age_seconds": MAX_AGE,
                "allow": [KIND],
                KIND: {"roots": [digest_bytes(self.root)]},
            }
        )

    @cached_property
    def configuration(self) -> Configuration:
        name = self.scenario.name
        return Configuration(
            service=SERVICE,
            replicas=self.replicas,
            segments=len(self.plan.segments),
            scenarios=Scenarios(minimum=name, by_name={name: self.scenario}),
            policy=self.policy.to_json(),
            referees=self.referees,
        )

    def attester(self, root_name: str = "root") -> SimulatedAttester:
        key = key_of(root_name)
        root = self.root
        if root_name != "root":
            root = make_root(key, now=NOW - timedelta(days=30))
        return SimulatedAttester(
            key,
            root,
            platform_id="simulated-test",
            measurement=package_digest().partition(":")[2],
            clock=self.clock,
        )

    def identity(
        self,
        role: Role = Role.ENTRY,
        service: str = SERVICE,
        segment: Digest | None = None,
        *,
        root_name: str = "root",
        **changes: Any,
    ) -> Identity:
        return Identity(
            self.attester(root_name),
            role=role,
            service=service,
            segment=segment,
            **{
                "plan": self.plan.digest,
                "config_digest": self.configuration.digest,
                "clock": self.clock,
                **changes,
            },
        )

    @cached_property
    def own(self) -> Identity:
        """The entry's."""
        return self.identity()

    def core(
        self, index: int, replica: int = 0, run: RunSegment | None = None
    ) -> RunnerCore:
        segment = self.plan.segments[index]
        name = name_of(index, replica)
        identity = self.identity(Role.RUNNER, name, segment.identity)
        return RunnerCore(
            segment,
            self.plan.digest,
            run or self.segments[index].run_unchecked,
            identity,
            self.responder(identity),
            allows_plain=not self.scenario.sealed,
            held=held_for(self.configuration.scenarios),
            clock=self.clock,
        )

    def responder(self, identity: Identity, **changes: Any) -> Responder:
        """Return what answers an entry's handshakes."""
        return Responder(
            identity,
            lambda shown: judge(shown, self.policy, now=self.clock()),
            max_age_seconds=MAX_AGE,
            clock=self.clock,
            **changes,
        )

    async def session(self, channel: Channel) -> Session:
        """Open the entry's session with a replica."""
        initiator = Initiator(self.own.keys, max_age_seconds=MAX_AGE, clock=self.clock)
        offer = initiator.read_offer(
            await channel.hello(initiator.hello()),
            lambda shown: judge(shown, self.policy, now=self.clock()),
        )
        record = self.own.attest(offer.nonce, self.own.keys)
        return initiator.conclude(await channel.finish(initiator.finish(record)))

    def opened(self, core: RunnerCore) -> RunnerCore:
        """Return a runner that the entry has a session with."""
        initiator = Initiator(self.own.keys, max_age_seconds=MAX_AGE, clock=self.clock)
        offer = initiator.read_offer(
            core.responder.offer(initiator.hello()),
            lambda shown: judge(shown, self.policy, now=self.clock()),
        )
        record = self.own.attest(offer.nonce, self.own.keys)
        initiator.conclude(core.responder.accept(initiator.finish(record)))
        return core

    def peer(self, index: int, replica: int, channel: Channel, **changes: Any) -> Peer:
        return Peer(
            name_of(index, replica),
            index,
            self.plan.segments[index],
            channel,
            policy=self.policy,
            own=self.own,
            clock=self.clock,
            **changes,
        )

    def engine(
        self,
        runs: Mapping[tuple[int, int], RunSegment] | None = None,
        wrap: Callable[[int, int, Channel], Channel] = lambda i, r, channel: channel,
        standing: Standing | None = None,
    ) -> Engine:
        """Return an engine over runners of this process.

        Args:
            runs: By (segment, replica), in place of the segment.
            wrap: Around a replica's channel.
            standing: Of the replicas.
        """
        runs = runs or {}
        peers = [
            [
                self.peer(
                    index,
                    replica,
                    wrap(
                        index,
                        replica,
                        LocalChannel(
                            self.core(index, replica, runs.get((index, replica)))
                        ),
                    ),
                )
                for replica in range(self.replicas)
            ]
            for index in range(len(self.plan.segments))
        ]
        referees = [
            self.peer(
                index,
                REFEREE,
                LocalChannel(self.core(index, REFEREE, runs.get((index, REFEREE)))),
            )
            for index in range(len(self.plan.segments) if self.referees else 0)
        ]
        return Engine(self.plan, peers, referees, standing)

    async def attested(self, **settings: Any) -> Engine:
        """Return an engine whose replicas are attested."""
        engine = self.engine(**settings)
        for peer in engine.every_peer():
            await peer.attest()
        return engine

    def context(self, seed: int = 1, **changes: Any) -> RequestContext:
        return RequestContext(
            **{
                "api": "/ask",
                "nonce": bytes([seed]) * 32,
                "nonce_drawn_by": "caller",
                "root_salt": bytes([seed, 1]) * 16,
                "salt_drawn_by": "caller",
                "draw": Draw.of(bytes([seed, 2]) * 16),
                "scenario": self.scenario,
                "evidence_nonce": None,
                "session": None,
                "started_at": self.clock(),
                **changes,
            }
        )

    def entry(self, engine: Engine, store: Path, **changes: Any) -> Entry:
        return Entry(
            self.configuration,
            self.own,
            engine,
            SqliteReceiptStore(store),
            **{
                "max_age_seconds": MAX_AGE,
                "keep_salts": True,
                "clock": self.clock,
                **changes,
            },
        )

    def exchange(self, index: int = 0, **changes: Any) -> Exchange:
        """Return what a runner of a segment admits."""
        segment = self.plan.segments[index]
        return Exchange(
            **{
                "request_id": "11" * 16,
                "nonce": "22" * 32,
                "infer_index": 0,
                "exchange_id": "33" * EXCHANGE_ID_BYTES,
                "plan_digest": self.plan.digest,
                "segment": segment.identity,
                "input_salts": {s.name: bytes(32) for s in segment.inputs},
                "output_salts": {s.name: b"\1" * 32 for s in segment.outputs},
                **changes,
            }
        )


def parse_shown(shown: dict[str, Any]) -> tuple[KeyDocument, EvidenceRecord]:
    """Parse the answer to an attest call."""
    record = {name: value for name, value in shown.items() if name != "key_document"}
    document = KeyDocument.from_json(shown["key_document"])
    return document, EvidenceRecord.from_json(record)


def held_back(run: RunSegment, gate: threading.Event) -> RunSegment:
    """Return a run that answers only once the gate is open."""

    def late(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        assert gate.wait(10)
        return run(tensors)

    return late


async def with_late_replica(
    ground: Ground, gate: threading.Event, run: RunSegment | None = None
) -> Engine:
    """Return an engine whose last replica of segment 0 waits for the gate."""
    late = held_back(run or ground.segments[0].run_unchecked, gate)
    engine = await ground.attested(runs={(0, 2): late})
    for peer in engine.peers[0]:
        assert isinstance(peer.channel, LocalChannel)
        # In a thread each, as runs that take long are.
        peer.channel._core._run_seconds = 1.0
    return engine


def name_of(index: int, replica: int) -> str:
    """Return the name of a replica's service."""
    if replica == REFEREE:
        return referee_name(SERVICE, index)
    return runner_name(SERVICE, index, replica)


@functools.cache
def _loaded(folder: Path) -> Chain:
    return load_chain(folder, threads=1)


def make_ground(folder: Path, **changes: Any) -> Ground:
    """Return the ground of a plan's folder; ``changes`` are the scenario's.

    ``of`` is how many replicas each segment has.
    """
    chain = _loaded(folder)
    of = changes.pop("of", 3)
    terms = scenario(**changes)
    return Ground(plan=chain.plan, segments=chain.segments, scenario=terms, replicas=of)


def scenario(**changes: Any) -> Scenario:
    """Return the scenario of these tests."""
    return Scenario(
        **{
            "name": "general",
            "replicas": 3,
            "quorum": 2,
            "deadline_ms": 5000,
            "grace_ms": 2000,
            "evidence_max_age_seconds": MAX_AGE,
            **changes,
        }
    )


class Wrapped:
    """A channel in front of another, to be changed by a test."""

    def __init__(self, inner: Channel) -> None:
        self.inner = inner
        self.exchanges: list[Exchange] = []
        self.closed = False

    async def exchange(
        self,
        exchange: Exchange,
        outgoing: Outgoing,
        specs: Sequence[TensorSpec],
        session: Session | None,
    ) -> Received:
        self.exchanges.append(exchange)
        return await self.inner.exchange(exchange, outgoing, specs, session)

    async def commit(
        self, exchange: Exchange, outgoing: Outgoing, session: Session | None
    ) -> Any:
        self.exchanges.append(exchange)
        return await self.inner.commit(exchange, outgoing, session)

    async def reveal(
        self,
        exchange: Exchange,
        specs: Sequence[TensorSpec],
        session: Session | None,
    ) -> Received:
        return await self.inner.reveal(exchange, specs, session)

    async def hello(self, message: Document) -> Any:
        return await self.inner.hello(message)

    async def finish(self, message: Document) -> Any:
        return await self.inner.finish(message)

    async def probe(self) -> None:
        await self.inner.probe()

    async def close(self) -> None:
        self.closed = True
        await self.inner.close()


@dataclass(slots=True)
class Asgi:
    """One ASGI request, hand-fed; keeps what the app sends.

    Attributes:
        incoming: Messages; after the last one the caller is gone.
        sent: What the app said.
    """

    incoming: list[Message] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)

    async def receive(self) -> Message:
        return self.incoming.pop(0) if self.incoming else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(bytes(m.get("body", b"")) for m in self.sent[1:])


def pieces(body: bytes, size: int = 1 << 20) -> list[Message]:
    """Return a body as messages of at most ``size`` bytes."""
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    return [
        {"type": "http.request", "body": part, "more_body": i < len(parts) - 1}
        for i, part in enumerate(parts)
    ]


def scope_of(
    method: str,
    path: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
    query: bytes = b"",
) -> Scope:
    """Return the scope of one request."""
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": list(headers),
    }
