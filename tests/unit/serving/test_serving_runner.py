"""A runner's core: what it admits, what it signs, small and streamed answers alike."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import Digest, digest_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.serving.exchange import CHUNK_BYTES, Exchange
from bentoml_secure.serving.readers import ResponseReader
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.session.identity import Identity, Keys
from bentoml_secure.split.plan import Segment, SegmentFile
from bentoml_secure.statements import (
    Statement,
    format_time,
    parse_statement_envelope,
    verify_statement,
)
from bentoml_secure.tensors import Array, TensorSpec, commit
from tests.unit.serving.serving_parts import Ground, feed


def keys_of(core: RunnerCore) -> Callable[[], Keys]:
    """Return what an exchange without a session asks for keys."""
    return lambda: core.identity.keys


def read(answer: Any, exchange: Exchange, specs: tuple[TensorSpec, ...]) -> Any:
    reader = ResponseReader(answer.content_length, specs, exchange.output_salts)
    sent = 0
    for piece in answer.pieces:
        sent += len(piece)
        reader.feed(piece)
    assert sent == answer.content_length
    return reader.result()


def said(document: Any, identity: Identity) -> Statement:
    envelope = parse_statement_envelope(document)
    return verify_statement(envelope, identity.keys.signing.public)


def test_the_plans_own_exchange_is_admitted(ground: Ground) -> None:
    core = ground.core(1)
    assert core.admit(ground.exchange(1)) == ground.plan.segments[1].inputs


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"plan_digest": digest_json("another")}, "exchange plan: got .* want"),
        ({"segment": digest_json("another")}, "exchange segment: got .* want"),
        ({"input_salts": {}}, r"input_salts: got \[\], want \['h', 'x'\]"),
        ({"input_salts": {"x": b"", "h": b"", "z": b""}}, "input_salts: got"),
        ({"output_salts": {"y": b""}}, r"output_salts: got \['y'\], want \['t'\]"),
    ],
)
def test_any_other_is_refused(
    ground: Ground, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(MalformedInputError, match=why):
        ground.core(1).admit(ground.exchange(1, **changes))


async def test_a_statement_says_exactly_what_was_done(ground: Ground) -> None:
    core, exchange = ground.core(0), ground.exchange(0)
    tensors = {"x": feed()["x"]}
    inputs = commit(tensors, exchange.input_salts)
    answer = await core.answer(exchange, tensors, inputs, keys_of(core))
    outputs, commitments, document = read(
        answer, exchange, ground.plan.segments[0].outputs
    )
    np.testing.assert_array_equal(
        outputs["h"], ground.segments[0].run(tensors)["h"], strict=True
    )
    assert commitments == commit(outputs, exchange.output_salts)
    assert said(document, core.identity) == Statement(
        request_id=exchange.request_id,
        nonce=exchange.nonce,
        plan_digest=ground.plan.digest,
        infer_index=exchange.infer_index,
        exchange_id=exchange.exchange_id,
        segment=ground.plan.segments[0].identity,
        key_document=core.identity.keys.digest,
        inputs=inputs,
        outputs=commitments,
        started_at=format_time(ground.clock()),
        ended_at=format_time(ground.clock()),
    )


def identical(shape: tuple[int | str, ...], ground: Ground) -> RunnerCore:
    """A runner whose segment hands its input on under another name."""
    segment = Segment(
        file="a.onnx",
        files=(
            SegmentFile(path="a.onnx", digest=Digest("sha256-file-v1:" + "0" * 64)),
        ),
        inputs=(TensorSpec(name="a", dtype="float32", shape=shape),),
        outputs=(TensorSpec(name="b", dtype="float32", shape=shape),),
        tolerance=0.0,
    )
    identity = ground.identity(Role.RUNNER, "R", segment.identity)
    return RunnerCore(
        segment,
        ground.plan.digest,
        lambda tensors: {"b": tensors["a"]},
        identity,
        ground.responder(identity),
        allows_plain=False,
        clock=ground.clock,
    )


@pytest.mark.parametrize(
    "count", [0, 1, CHUNK_BYTES // 4 - 64, CHUNK_BYTES // 4, 300_000]
)
async def test_answers_of_every_size_hold_their_length(
    ground: Ground, count: int
) -> None:
    core = identical(("n",), ground)
    exchange = ground.exchange(
        0, input_salts={"a": bytes(32)}, output_salts={"b": bytes(32)}
    )
    tensors = {"a": np.arange(count, dtype=np.float32)}
    answer = await core.answer(exchange, tensors, {}, keys_of(core))
    specs = (TensorSpec(name="b", dtype="float32", shape=("n",)),)
    outputs, commitments, document = read(answer, exchange, specs)
    np.testing.assert_array_equal(outputs["b"], tensors["a"])
    assert dict(said(document, core.identity).outputs) == commitments


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"other": np.zeros((2, 4), np.float32)}, r"tensors: got \['other'\]"),
        ({"h": np.zeros((2, 4), np.float64)}, "'h' dtype: got float64, want float32"),
        ({"h": np.zeros((2, 5), np.float32)}, r"'h' shape: got \[2, 5\]"),
        ({"h": np.full((2, 4), np.nan, np.float32)}, "'h': holds NaN or infinity"),
    ],
)
async def test_outputs_that_are_not_the_plans_are_not_signed(
    ground: Ground, made: Mapping[str, Array], why: str
) -> None:
    core = ground.core(0, run=lambda tensors: made)
    with pytest.raises(MalformedInputError, match=why):
        await core.answer(ground.exchange(0), {"x": feed()["x"]}, {}, keys_of(core))


async def test_inputs_that_are_not_finite_are_not_run(ground: Ground) -> None:
    def never(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        raise AssertionError("it ran")

    core = ground.core(0, run=never)
    with pytest.raises(MalformedInputError, match="'x': holds NaN or infinity"):
        await core.answer(
            ground.exchange(0),
            {"x": np.full((1, 4), np.inf, np.float32)},
            {},
            keys_of(core),
        )


async def test_slow_runs_leave_the_event_loop(ground: Ground) -> None:
    threads: list[int] = []
    segment = ground.segments[0]

    def slow(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        threads.append(threading.get_ident())
        # Two seconds of work, by the clock that decides.
        core._run_seconds = 2.0
        return segment.run_unchecked(tensors)

    core = ground.core(0, run=slow)
    for _ in range(2):
        await core.answer(ground.exchange(0), {"x": feed()["x"]}, {}, keys_of(core))
    assert threads[0] == threading.get_ident()
    assert threads[1] != threading.get_ident()


async def test_an_index_beyond_json_is_refused_with_our_error(ground: Ground) -> None:
    core = ground.core(0)
    with pytest.raises(MalformedInputError, match="canonical JSON"):
        await core.answer(
            ground.exchange(0, infer_index=1 << 60),
            {"x": feed()["x"]},
            {},
            keys_of(core),
        )


async def test_a_statement_is_signed_by_the_keys_it_names(ground: Ground) -> None:
    """Keys may be renewed while a segment runs."""
    core, exchange = ground.core(0), ground.exchange(0)
    before = core.identity.keys
    ground.clock.advance(days=7)
    answer = await core.answer(exchange, {"x": feed()["x"]}, {}, keys_of(core))
    _, _, document = read(answer, exchange, ground.plan.segments[0].outputs)
    statement = said(document, core.identity)
    assert statement.key_document == core.identity.keys.digest != before.digest
    assert json.dumps(document)
