"""Exchanges that lie, sealed to a runner by an entry that was taken over."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bentoml_secure.serving.exchange import REQUEST_TYPE, Exchange
from bentoml_secure.session.bodies import SealedCall
from bentoml_secure.session.keys import Session
from bentoml_secure.split.plan import Plan, load_plan
from bentoml_secure.tensors import encode
from tests.attacks import raw
from tests.attacks.raiders import (
    INFER_PATH,
    SEALED,
    Opened,
    Raider,
    ask,
    new_call,
    opened,
)
from tests.attacks.targets import CAP_BYTES, REPLICAS, Target
from tests.harness import sample

FEATURES = {"dtype": "F32", "shape": [2, 30], "data_offsets": [0, 240]}
OTHER = f"sha256-jcs-v1:{'0' * 64}"


@pytest.fixture(scope="module")
def plan(target: Target) -> Plan:
    return load_plan(target.project.plan)


@pytest.fixture(scope="module")
def session(target: Target) -> Session:
    """Of a raider that is the entry, to the first runner."""
    return Raider.of(target.project).session(url_of(target))


def url_of(target: Target) -> str:
    return target.served.replica_urls()[REPLICAS[0]]


def metadata_of(plan: Plan, call: SealedCall, **changes: Any) -> bytes:
    segment = plan.segments[0]
    fields: dict[str, Any] = {
        "request_id": call.request_id.hex(),
        "nonce": "0" * 64,
        "infer_index": 0,
        "exchange_id": call.exchange_id.hex(),
        "plan_digest": plan.digest,
        "segment": segment.identity,
        "input_salts": {spec.name: bytes(32) for spec in segment.inputs},
        "output_salts": {spec.name: bytes(32) for spec in segment.outputs},
    }
    return Exchange(**{**fields, **changes}).encode()


def tensors_of(header: Any, data: bytes = bytes(240)) -> bytes:
    text = header if isinstance(header, bytes) else compact(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def compact(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def send(
    target: Target, plan: Plan, session: Session, rest: bytes, **changes: Any
) -> Opened:
    """Seal metadata and what follows it, send them, open the answer."""
    call = new_call(session)
    return ask(url_of(target), call, metadata_of(plan, call, **changes) + rest)


def test_an_honest_exchange_is_answered(
    target: Target, plan: Plan, session: Session
) -> None:
    """What the lies below differ from."""
    said = send(target, plan, session, encode({"features": sample(2)}))
    assert (said.status, said.was_sealed) == (200, True)


def test_an_exchange_that_is_not_sealed_is_refused(
    target: Target, plan: Plan, session: Session
) -> None:
    body = metadata_of(plan, new_call(session)) + encode({"features": sample(2)})
    typed = [("Content-Type", REQUEST_TYPE)]
    said = raw.post(url_of(target), "/bsec/v1/infer", body, typed)
    assert (said.status, said.code) == (400, "configuration")
    assert "want a sealed body" in said.message
    assert target.is_whole()


def refused(said: Opened, reason: str) -> None:
    """What is wrong with a sealed exchange is told sealed."""
    assert said.was_sealed
    assert (said.status, said.error["code"]) == (400, "malformed-input")
    assert reason in said.error["message"]


HEADERS: dict[str, tuple[Any, str]] = {
    "a gigabyte": (
        {
            "features": {
                "dtype": "F32",
                "shape": [1 << 28],
                "data_offsets": [0, 1 << 30],
            }
        },
        "header says 10737419",
    ),
    "an exabyte": (
        {"features": {**FEATURES, "shape": [1 << 58, 0], "data_offsets": [0, 0]}},
        "over 1073741824 bytes",
    ),
    "offsets": ({"features": {**FEATURES, "data_offsets": [0, 232]}}, "data_offsets"),
    "negative": ({"features": {**FEATURES, "shape": [-2, -30]}}, "bad dimension -2"),
    "fraction": ({"features": {**FEATURES, "shape": [2.0, 30]}}, "bad dimension 2.0"),
    "dtype": ({"features": {**FEATURES, "dtype": "I32"}}, "dtype: got int32"),
    "unknown dtype": ({"features": {**FEATURES, "dtype": "O"}}, "dtype: got 'O'"),
    "rank": ({"features": {**FEATURES, "shape": [60]}}, r"shape: got [60]"),
    "name": ({"other": FEATURES}, "got ['other'], want ['features']"),
    "twice": (
        b'{"features":'
        + compact(FEATURES)
        + b',"features":'
        + compact(FEATURES)
        + b"}",
        "a key stands twice",
    ),
    "spaced": (json.dumps({"features": FEATURES}).encode(), "not in its canonical"),
    "no object": (b"[]", "want an object"),
    "pickle": (b"\x80\x04N.", "not valid JSON"),
    "deep": (b"[" * 60_000, "not valid JSON"),
}


@pytest.mark.parametrize(("header", "reason"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused(
    target: Target, plan: Plan, session: Session, header: Any, reason: str
) -> None:
    with target.watched():
        refused(send(target, plan, session, tensors_of(header)), reason)
    assert target.is_whole()


@pytest.mark.parametrize("length", [0, 12, (64 << 10) + 8, 1 << 62])
def test_a_header_length_that_lies_is_refused(
    target: Target, plan: Plan, session: Session, length: int
) -> None:
    rest = length.to_bytes(8, "little") + bytes(1024)
    with target.watched():
        said = send(target, plan, session, rest)
        refused(said, f"header: got {length} bytes")
    assert target.is_whole()


METADATA: dict[str, tuple[bytes, str]] = {
    "four gigabytes": (b"\xff" * 4, "got a length of 4294967295 bytes"),
    "over the cap": ((128 * 1024 + 1).to_bytes(4, "big"), "want at most 131072"),
    "no JSON": ((4).to_bytes(4, "big") + b"\x80\x04N.", "not valid JSON"),
    "deep": ((100_000).to_bytes(4, "big") + b"[" * 100_000, "not valid JSON"),
    "empty": ((2).to_bytes(4, "big") + b"{}", "exchange: want exactly"),
    "nothing": (b"", "the message ended early"),
}


@pytest.mark.parametrize(("start", "reason"), METADATA.values(), ids=METADATA)
def test_metadata_that_lies_is_refused(
    target: Target, session: Session, start: bytes, reason: str
) -> None:
    with target.watched():
        refused(ask(url_of(target), new_call(session), start), reason)
    assert target.is_whole()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"plan_digest": OTHER}, "exchange plan: got"),
        ({"segment": OTHER}, "exchange segment: got"),
        ({"input_salts": {}}, "exchange input_salts: got []"),
        ({"output_salts": {"features": bytes(32)}}, "exchange output_salts: got"),
        ({"input_salts": {"features": bytes(8)}}, "got 16 hex digits, want 64"),
        ({"request_id": "0" * 30}, "got 30 hex digits, want 32"),
        ({"infer_index": -1}, "want an integer from 0"),
        # What a statement would be about is what the seal is for.
        ({"request_id": "1" * 32}, "request_id: got 1111"),
        ({"exchange_id": "1" * 32}, "exchange_id: got 1111"),
    ],
)
def test_an_exchange_about_something_else_is_refused(
    target: Target,
    plan: Plan,
    session: Session,
    changes: dict[str, Any],
    reason: str,
) -> None:
    tensors = encode({"features": sample(2)})
    refused(send(target, plan, session, tensors, **changes), reason)
    assert target.is_whole()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_the_plan_refuses(
    target: Target, plan: Plan, session: Session, value: float
) -> None:
    features = sample(2)
    features[1, 7] = value
    said = send(target, plan, session, encode({"features": features}))
    refused(said, "holds NaN or infinity")
    assert target.is_whole()


def test_a_length_that_the_header_does_not_fill_is_refused_at_once(
    target: Target, plan: Plan, session: Session
) -> None:
    call = new_call(session)
    start = metadata_of(plan, call) + tensors_of({"features": FEATURES})
    # The first chunk of two: the other one is promised and never comes.
    lengths = (len(start), 1 << 18)
    body = next(call.seal(iter((start, bytes(1 << 18))), lengths).pieces)
    headers = [*SEALED, ("Content-Length", str(CAP_BYTES))]
    head = raw.head("POST", INFER_PATH, headers)
    with target.watched():
        said = opened(call, raw.exchange(url_of(target), [head + body]))
    refused(said, "header says 3")
    assert target.is_whole()


def test_more_bytes_than_the_header_says_are_refused(
    target: Target, plan: Plan, session: Session
) -> None:
    tensors = tensors_of({"features": FEATURES}, bytes(241))
    refused(send(target, plan, session, tensors), "")
    assert target.is_whole()
