"""A plan over its replicas: bits of the whole model, liars named or refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from prometheus_client import REGISTRY

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    QuorumNotReached,
    SecureError,
    UnavailableError,
)
from bentoml_secure.receipts.draw import Draw
from bentoml_secure.serving.channel import Received
from bentoml_secure.serving.engine import Engine
from bentoml_secure.serving.http1 import ConnectionLostError
from bentoml_secure.serving.runner import RunSegment
from bentoml_secure.session.messages import Document
from bentoml_secure.signing import SigningKey
from bentoml_secure.statements import (
    parse_statement_envelope,
    sign_statement,
    verify_statement,
)
from bentoml_secure.tensors import Array, commit
from bentoml_secure.testing.faults import constant, lying, scaled
from tests.unit.serving.serving_parts import (
    Ground,
    Wrapped,
    feed,
    make_ground,
    name_of,
    with_late_replica,
)


def run_of(ground: Ground, index: int) -> RunSegment:
    return ground.segments[index].run_unchecked


def reasons(refusal: QuorumNotReached) -> dict[str, str]:
    """Return why each replica's vote is missing, as the caller is told."""
    return {a["replica"]: a["reason"] for a in refusal.tally["absent"]}


def sampled(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def whole(skips: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return what the whole model says, in the plan's own settings."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    )
    session = onnxruntime.InferenceSession(
        skips / "skips.onnx", options, providers=["CPUExecutionProvider"]
    )
    names = ["t", "y"]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


@pytest.mark.parametrize("batch", [0, 1, 7])
async def test_the_bits_are_those_of_the_whole_model(
    ground: Ground, skips: Path, batch: int
) -> None:
    engine, inputs = await ground.attested(), feed(batch=batch)
    made = await engine.infer(ground.context(), inputs)
    expected = whole(skips, inputs)
    assert made.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(made[name], array, strict=True)


async def test_the_record_says_what_went_in_and_came_out(ground: Ground) -> None:
    engine, inputs, context = await ground.attested(), feed(), ground.context()
    made = await engine.infer(context, inputs)
    (record,) = context.infers
    salts = {name: context.salt(0, "tensor", name) for name in (*inputs, *made)}
    assert record.index == 0
    assert record.inputs == commit(inputs, {n: salts[n] for n in inputs})
    assert record.outputs == commit(made, {n: salts[n] for n in made})
    assert [s.segment for s in record.segments] == [
        s.identity for s in ground.plan.segments
    ]
    assert sorted(context.pinned) == [name_of(i, r) for i in range(3) for r in range(3)]
    await context.abandon()


async def test_every_statement_chains_to_the_one_before(ground: Ground) -> None:
    engine, context = await ground.attested(), ground.context()
    await engine.infer(context, feed())
    made: dict[str, str] = dict(context.infers[0].inputs)
    seen = set()
    for segment, record in zip(
        ground.plan.segments, context.infers[0].segments, strict=True
    ):
        for replica, envelope in record.statements.items():
            attested = context.pinned[replica]
            statement = verify_statement(envelope, attested.key)
            assert statement.inputs == {s.name: made[s.name] for s in segment.inputs}
            assert statement.request_id == context.request_id.hex()
            assert statement.nonce == context.nonce.hex()
            seen.add(statement.exchange_id)
        made.update(statement.outputs)
    assert len(seen) == sum(len(r.statements) for r in context.infers[0].segments)
    await context.abandon()


async def test_several_infers_of_one_request(ground: Ground, skips: Path) -> None:
    engine, context = await ground.attested(), ground.context()
    results = await asyncio.gather(
        *(engine.infer(context, feed(seed)) for seed in range(3))
    )
    for seed, made in enumerate(results):
        np.testing.assert_array_equal(made["y"], whole(skips, feed(seed))["y"])
    assert sorted(record.index for record in context.infers) == [0, 1, 2]
    # The same input under another index has another commitment.
    again = await engine.infer(context, feed(0))
    np.testing.assert_array_equal(again["y"], results[0]["y"])
    by_index = {record.index: record for record in context.infers}
    assert by_index[3].inputs["x"] != by_index[0].inputs["x"]
    await context.abandon()


async def test_requests_at_once_do_not_mix(ground: Ground, skips: Path) -> None:
    engine = await ground.attested()
    contexts = [ground.context(seed) for seed in range(1, 9)]
    results = await asyncio.gather(
        *(engine.infer(c, feed(s)) for s, c in enumerate(contexts))
    )
    for seed, (context, made) in enumerate(zip(contexts, results, strict=True)):
        np.testing.assert_array_equal(made["y"], whole(skips, feed(seed))["y"])
        (record,) = context.infers
        salt = context.salt(0, "tensor", "x")
        assert record.inputs["x"] == commit({"x": feed(seed)["x"]}, {"x": salt})["x"]
        for segment in record.segments:
            for replica, envelope in segment.statements.items():
                said = verify_statement(envelope, context.pinned[replica].key)
                assert said.request_id == context.request_id.hex()
        await context.abandon()


async def test_inputs_of_another_memory_layout(ground: Ground, skips: Path) -> None:
    engine, inputs = await ground.attested(), feed(batch=4)
    odd = {
        "x": np.asfortranarray(inputs["x"]).astype(">f4"),
        "mask": inputs["mask"][::-1][::-1],
    }
    made = await engine.infer(ground.context(), odd)
    np.testing.assert_array_equal(made["y"], whole(skips, inputs)["y"])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"more": np.zeros(1, np.float32)}, "tensors: got"),
        ({"x": np.zeros((2, 4))}, "'x' dtype: got float64, want float32"),
        ({"x": np.zeros((2, 5), np.float32)}, "'x' shape"),
        ({"x": np.zeros((3, 4), np.float32)}, "'mask' shape"),
        ({"x": np.full((2, 4), np.nan, np.float32)}, "'x': holds NaN"),
        ({"x": "text"}, "'x' dtype: got str"),
    ],
)
async def test_inputs_that_are_not_the_plans_fail_the_request(
    ground: Ground, changes: dict[str, Any], why: str
) -> None:
    engine, context = await ground.attested(), ground.context()
    with pytest.raises(MalformedInputError, match=why) as caught:
        await engine.infer(context, {**feed(), **changes})
    assert context.failure is caught.value
    assert context.infers == []
    # The first failure is the one that is told.
    with pytest.raises(MalformedInputError, match="tensors: got"):
        await engine.infer(context, {})
    assert context.failure is caught.value


@pytest.mark.parametrize("liar", [0, 1, 2])
async def test_one_of_three_that_lies_is_named(
    ground: Ground, skips: Path, liar: int
) -> None:
    name = name_of(1, liar)
    runs = {(1, liar): lying(run_of(ground, 1), scaled(1.5))}
    engine, context = await ground.attested(runs=runs), ground.context()
    dissent = "bentoml_secure_replica_dissent_total"
    before = sampled(dissent, segment="1", replica=name)
    made = await engine.infer(context, feed())
    np.testing.assert_array_equal(made["y"], whole(skips, feed())["y"])
    tally = context.infers[0].segments[1].tally
    late = [await pending.task for pending in context.late]
    told = set(tally.dissenters) | {n for one in late for n in one.answers}
    assert name in told
    assert name != tally.medoid
    if name in tally.dissenters:
        assert sampled(dissent, segment="1", replica=name) == before + 1


async def test_two_that_lie_differently_are_refused(ground: Ground) -> None:
    runs = {
        (1, 0): lying(run_of(ground, 1), scaled(1.5)),
        (1, 1): lying(run_of(ground, 1), constant(3.0)),
    }
    engine, context = await ground.attested(runs=runs), ground.context()
    refused = sampled("bentoml_secure_quorum_total", segment="1", outcome="refused")
    with pytest.raises(QuorumNotReached, match="quorum") as caught:
        await engine.infer(context, feed())
    assert context.failure is caught.value
    assert context.infers == []
    assert caught.value.tally["absent"] == []
    assert len(caught.value.tally["groups"]) == 3
    after = sampled("bentoml_secure_quorum_total", segment="1", outcome="refused")
    assert after == refused + 1
    await context.abandon()


async def test_a_late_vote_is_collected_after_the_decision(ground: Ground) -> None:
    gate = threading.Event()
    engine = await with_late_replica(ground, gate)
    context = ground.context()
    await engine.infer(context, feed())
    pending = next(p for p in context.late if p.segment_index == 0)
    assert (pending.infer_index, pending.tolerance) == (0, 2e-5)
    gate.set()
    late = await pending.task
    assert late.absent == ()
    assert late.answers[name_of(0, 2)].value.commitments == pending.agreed.commitments
    await context.abandon()


async def test_a_vote_that_never_comes_is_given_up_after_the_grace(
    skips: Path,
) -> None:
    class Silent(Wrapped):
        async def exchange(self, *args: Any) -> Received:
            await asyncio.sleep(3600)
            raise AssertionError("slept")

    ground = make_ground(skips / "plan", grace_ms=20)
    engine = await ground.attested(
        wrap=lambda i, r, channel: Silent(channel) if (i, r) == (2, 1) else channel
    )
    context = ground.context()
    await engine.infer(context, feed())
    late = [await p.task for p in context.late if p.segment_index == 2]
    assert late[0].absent[0].replica == name_of(2, 1)
    assert "no answer within" in late[0].absent[0].reason
    await context.abandon()


class Lost(Wrapped):
    """Loses its connection the first ``times`` times."""

    times = 1

    async def exchange(self, *args: Any) -> Received:
        if self.times:
            self.times -= 1
            self.exchanges.append(args[0])
            raise ConnectionLostError("connection lost before an answer")
        return await super().exchange(*args)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_lost_connection_is_tried_once_more_as_a_new_exchange(
    ground: Ground, times: int
) -> None:
    channels: list[Lost] = []

    def wrap(index: int, replica: int, channel: Any) -> Any:
        if (index, replica) != (0, 0):
            return channel
        channels.append(Lost(channel))
        channels[0].times = times
        return channels[0]

    context = ground.context()
    await (await ground.attested(wrap=wrap)).infer(context, feed())
    (lost,) = channels
    assert len({exchange.exchange_id for exchange in lost.exchanges}) == 2
    voted = name_of(0, 0) in context.infers[0].segments[0].tally.groups[0]
    late = [await p.task for p in context.late if p.segment_index == 0]
    voted = voted or any(name_of(0, 0) in one.answers for one in late)
    assert voted is (times == 1)
    await context.abandon()


class Restarted(Wrapped):
    """Signs with another key than it showed; asks how often it was attested."""

    lose_first = False

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.attested = 0

    async def hello(self, message: Document) -> Any:
        self.attested += 1
        return await super().hello(message)

    async def exchange(self, *args: Any) -> Received:
        if self.lose_first:
            self.lose_first = False
            raise ConnectionLostError("connection lost before an answer")
        received = await super().exchange(*args)
        envelope = parse_statement_envelope(received.statement)
        key = self.inner._core.identity.keys.signing  # type: ignore[attr-defined]
        said = verify_statement(envelope, key.public)
        forged = sign_statement(SigningKey.generate(), said)
        return Received(received.tensors, received.commitments, forged.to_json())


@pytest.mark.parametrize("lose_first", [False, True])
async def test_another_key_is_no_vote_and_asks_for_new_evidence(
    ground: Ground, lose_first: bool
) -> None:
    channels: list[Restarted] = []

    def wrap(index: int, replica: int, channel: Any) -> Any:
        if (index, replica) != (0, 1):
            return channel
        channels.append(Restarted(channel))
        channels[0].lose_first = lose_first
        return channels[0]

    engine, context = await ground.attested(wrap=wrap), ground.context()
    await engine.infer(context, feed())
    late = [await p.task for p in context.late if p.segment_index == 0]
    record = context.infers[0].segments[0]
    absent = [*record.tally.absent, *(a for one in late for a in one.absent)]
    reasons = {a.replica: a.reason for a in absent}
    assert "keyid" in reasons[name_of(0, 1)]
    await asyncio.sleep(0.02)
    assert channels[0].attested == 2
    await engine.close()
    await context.abandon()


class Says(Wrapped):
    """Signs, with the right key, something else than was asked."""

    def __init__(self, inner: Any, **changes: Any) -> None:
        super().__init__(inner)
        self.changes = changes

    async def exchange(self, *args: Any) -> Received:
        received = await super().exchange(*args)
        key = self.inner._core.identity.keys.signing  # type: ignore[attr-defined]
        envelope = parse_statement_envelope(received.statement)
        said = verify_statement(envelope, key.public)
        for name, value in self.changes.items():
            object.__setattr__(said, name, value)
        signed = sign_statement(key, said)
        return Received(received.tensors, received.commitments, signed.to_json())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", "00" * 16),
        ("nonce", "00" * 32),
        ("plan_digest", "sha256-jcs-v1:" + "0" * 64),
        ("infer_index", 7),
        ("exchange_id", "00" * 16),
        ("segment", "sha256-jcs-v1:" + "0" * 64),
        ("key_document", "sha256-jcs-v1:" + "0" * 64),
        ("inputs", {}),
        ("outputs", {}),
    ],
)
async def test_a_statement_about_anything_else_is_no_vote(
    skips: Path, field: str, value: Any
) -> None:
    ground = make_ground(skips / "plan", replicas=1, quorum=1)
    ground.replicas = 1
    engine = await ground.attested(
        wrap=lambda i, r, channel: Says(channel, **{field: value})
    )
    with pytest.raises(QuorumNotReached, match="0 of 1 replicas agree") as caught:
        await engine.infer(ground.context(), feed())
    assert f"statement {field}: got" in reasons(caught.value)[name_of(0, 0)]
    await engine.close()


async def test_outputs_that_are_not_finite_are_no_vote(skips: Path) -> None:
    class Nan(Wrapped):
        async def exchange(self, *args: Any) -> Received:
            received = await super().exchange(*args)
            tensors = {n: np.full_like(a, np.nan) for n, a in received.tensors.items()}
            return Received(tensors, received.commitments, received.statement)

    ground = make_ground(skips / "plan", replicas=1, quorum=1)
    ground.replicas = 1
    engine = await ground.attested(wrap=lambda i, r, channel: Nan(channel))
    with pytest.raises(QuorumNotReached, match="0 of 1 replicas agree") as caught:
        await engine.infer(ground.context(), feed())
    assert "holds NaN or infinity" in reasons(caught.value)[name_of(0, 0)]


async def test_without_evidence_there_is_no_vote(ground: Ground) -> None:
    engine, context = ground.engine(), ground.context()
    with pytest.raises(QuorumNotReached, match="0 of 3 replicas agree") as caught:
        await engine.infer(context, feed())
    for replica in range(3):
        assert "not attested yet" in reasons(caught.value)[name_of(0, replica)]
    await engine.peers[0][0].attest()
    await engine.peers[0][1].attest()
    with pytest.raises(QuorumNotReached, match="0 of 3 replicas agree"):
        await engine.infer(context, feed())
    assert isinstance(context.failure, QuorumNotReached)


async def test_a_committee_is_the_scenarios_number_of_replicas(skips: Path) -> None:
    ground = make_ground(skips / "plan", replicas=1, quorum=1)
    engine, context = await ground.attested(), ground.context()
    await engine.infer(context, feed())
    for record in context.infers[0].segments:
        (member,) = record.tally.committee
        assert member.replica in context.pinned
    assert len(context.pinned) == 3
    assert context.late == []


async def test_committees_are_drawn_anew_for_every_request(skips: Path) -> None:
    ground = make_ground(skips / "plan", replicas=1, quorum=1)
    engine, asked = await ground.attested(), set()
    for label in range(30):
        context = ground.context(draw=Draw.of(bytes([label]) * 32))
        await engine.infer(context, feed())
        asked |= set(context.pinned)
    assert asked == {name_of(i, r) for i in range(3) for r in range(3)}


async def test_all_are_kept_attested_and_closed(ground: Ground) -> None:
    channels: list[Wrapped] = []

    def wrap(index: int, replica: int, channel: Any) -> Any:
        channels.append(Wrapped(channel))
        return channels[-1]

    engine = ground.engine(wrap=wrap)
    task = asyncio.create_task(engine.keep_attested())
    peers = [peer for row in engine.peers for peer in row]
    async with asyncio.timeout(20):
        while any(peer.claims is None for peer in peers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for peer in peers:
        peer.require(300)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.close()
    assert [channel.closed for channel in channels] == [True] * 9


def test_an_engine_takes_plan_and_peers_as_they_are(ground: Ground) -> None:
    engine = Engine(ground.plan, [])
    assert engine.plan is ground.plan
    distances = engine.lockstep.distances
    assert distances[0]({"a": np.zeros(1)}, {"a": np.zeros(1)}) == 0.0
    assert issubclass(QuorumNotReached, SecureError)
    assert not issubclass(QuorumNotReached, UnavailableError)


async def test_more_infers_than_a_receipt_holds_fail_the_request(
    ground: Ground,
) -> None:
    engine, context = await ground.attested(), ground.context()
    context.next_index = 1024
    with pytest.raises(ConfigurationError, match="call 1025 of one request"):
        await engine.infer(context, feed())
    assert isinstance(context.failure, ConfigurationError)
