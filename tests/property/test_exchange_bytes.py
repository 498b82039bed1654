"""The bytes of an exchange, cut anywhere and changed anywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bentoml_secure.digest import Scheme, digest_json
from bentoml_secure.errors import SecureError
from bentoml_secure.serving.exchange import LENGTH, Exchange, Outgoing
from bentoml_secure.serving.readers import RequestReader, ResponseReader
from bentoml_secure.tensors import Array, TensorSpec, commit, encode

SALTS = st.binary(min_size=32, max_size=32)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
TENSORS = st.dictionaries(
    NAMES,
    hnp.arrays("float32", hnp.array_shapes(min_dims=1, max_dims=2, max_side=6)),
    max_size=3,
)


def hexes(length: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=length, max_size=length).map(bytes.hex)


@st.composite
def exchanges(draw: st.DrawFn, names: frozenset[str]) -> Exchange:
    return Exchange(
        request_id=draw(hexes(16)),
        nonce=draw(hexes(32)),
        infer_index=draw(st.integers(0, 2**53 - 1)),
        exchange_id=draw(hexes(16)),
        plan_digest=digest_json(draw(NAMES)),
        segment=digest_json(draw(NAMES)),
        input_salts={name: draw(SALTS) for name in names},
        output_salts=draw(st.dictionaries(NAMES, SALTS, max_size=2)),
        key_document=draw(st.none() | NAMES.map(digest_json)),
        commit=draw(st.booleans()),
        scheme=draw(st.sampled_from(Scheme)),
    )


def specs_of(tensors: dict[str, Array]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape)
        for name, array in tensors.items()
    )


def fed(feed: Callable[[bytes], object], body: bytes, cuts: list[int]) -> None:
    """Feed a body in the pieces that lie between some positions."""
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for begin, end in itertools.pairwise(edges):
        feed(body[begin:end])


CUTS = st.lists(st.integers(0, 1 << 16), max_size=8)


@given(st.data(), TENSORS, CUTS)
def test_a_request_cut_anywhere_comes_back(
    data: st.DataObject, tensors: dict[str, Array], cuts: list[int]
) -> None:
    exchange = data.draw(exchanges(frozenset(tensors)))
    outgoing = Outgoing.of(tensors)
    body = exchange.encode() + outgoing.layout.header + b"".join(outgoing.data())
    reader = RequestReader(len(body), lambda _: specs_of(tensors))
    fed(reader.feed, body, cuts)
    got, made, commitments = reader.result()
    assert got == exchange
    assert encode(made) == encode(tensors)
    assert commitments == commit(tensors, exchange.input_salts, exchange.scheme)


@given(TENSORS, st.dictionaries(NAMES, NAMES, max_size=3), CUTS)
def test_an_answer_cut_anywhere_comes_back(
    tensors: dict[str, Array], statement: dict[str, str], cuts: list[int]
) -> None:
    said, salts = json.dumps(statement).encode(), dict.fromkeys(tensors, bytes(32))
    body = LENGTH.pack(len(said)) + encode(tensors) + said
    reader = ResponseReader(len(body), specs_of(tensors), salts)
    fed(reader.feed, body, cuts)
    made, commitments, got = reader.result()
    assert encode(made) == encode(tensors)
    assert commitments == commit(tensors, salts)
    assert got == statement


X: dict[str, Array] = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
SPECS = (TensorSpec(name="x", dtype="float32", shape=("n", 2)),)
EXCHANGE = Exchange(
    request_id="11" * 16,
    nonce="22" * 32,
    infer_index=0,
    exchange_id="33" * 16,
    plan_digest=digest_json("plan"),
    segment=digest_json("segment"),
    input_salts={"x": bytes(32)},
    output_salts={},
)
REQUEST = EXCHANGE.encode() + encode(X)
ANSWER = LENGTH.pack(2) + encode(X) + b"{}"
EDITS = st.tuples(st.integers(0, 1 << 16), st.integers(0, 6), st.binary(max_size=6))


def edited(body: bytes, edit: tuple[int, int, bytes]) -> bytes:
    at, dropped, inserted = edit
    at %= len(body) + 1
    return body[:at] + inserted + body[at + dropped :]


@given(EDITS, CUTS)
def test_a_request_changed_anywhere_is_refused_or_another(
    edit: tuple[int, int, bytes], cuts: list[int]
) -> None:
    body = edited(REQUEST, edit)
    reader = RequestReader(len(body), lambda _: SPECS)
    try:
        fed(reader.feed, body, cuts)
        exchange, tensors, _ = reader.result()
    except SecureError:
        return
    # Nothing is read that would not have been written, but the spelling of metadata.
    assert Exchange.decode(exchange.encode()[LENGTH.size :]) == exchange
    assert body.endswith(encode(tensors))


@given(EDITS, CUTS, st.integers(-4, 4))
def test_an_answer_changed_anywhere_is_refused_or_another(
    edit: tuple[int, int, bytes], cuts: list[int], off: int
) -> None:
    body = edited(ANSWER, edit)
    reader = ResponseReader(len(body) + off, SPECS, {"x": bytes(32)})
    try:
        fed(reader.feed, body, cuts)
        tensors, commitments, _ = reader.result()
    except SecureError:
        return
    assert off == 0
    assert encode(tensors) in body
    assert commitments == commit(tensors, {"x": bytes(32)})


@given(st.binary(max_size=300), CUTS)
def test_any_bytes_are_refused_by_both(body: bytes, cuts: list[int]) -> None:
    request = RequestReader(len(body), lambda _: SPECS)
    answer = ResponseReader(len(body), SPECS, {"x": bytes(32)})
    for reader in (request, answer):
        try:
            fed(reader.feed, body, cuts)
            reader.result()
        except SecureError:
            continue
        raise AssertionError("random bytes were an exchange")


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda node: st.lists(node, max_size=3) | st.dictionaries(NAMES, node, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["version", *Exchange.__slots__]), JSON)
def test_anything_in_a_field_of_metadata_is_refused_or_reads_back(
    field: str, value: Any
) -> None:
    document = {**json.loads(EXCHANGE.encode()[LENGTH.size :]), field: value}
    try:
        exchange = Exchange.decode(json.dumps(document).encode())
    except SecureError:
        return
    assert json.loads(exchange.encode()[LENGTH.size :]) == document
