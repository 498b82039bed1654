"""Readers take bytes in pieces of any size, and allocate nothing on anyone's word."""

from __future__ import annotations

import dataclasses
import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.serving.exchange import (
    LENGTH,
    MAX_METADATA_BYTES,
    MAX_STATEMENT_BYTES,
    Exchange,
)
from bentoml_secure.serving.readers import (
    PrefixReader,
    RequestReader,
    ResponseReader,
    TensorReader,
    parse_length,
)
from bentoml_secure.tensors import TensorSpec, commit, encode, encode_header
from tests.unit.serving.test_serving_exchange import EXCHANGE

GIB = 1 << 30
SPECS = (
    TensorSpec(name="x", dtype="float32", shape=("batch", 2)),
    TensorSpec(name="flag", dtype="bool", shape=("batch",)),
)
TENSORS = {
    "x": np.arange(6, dtype=np.float32).reshape(3, 2),
    "flag": np.array([True, False, True]),
}
SALTS = {"x": b"\1" * 32, "flag": b"\2" * 32}
EXCHANGED = dataclasses.replace(EXCHANGE, input_salts=SALTS)


def in_pieces(feed: Callable[[bytes], object], body: bytes, size: int) -> None:
    for begin in range(0, len(body), size):
        feed(body[begin : begin + size])


@contextmanager
def within_bytes(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def admit(exchange: Exchange) -> tuple[TensorSpec, ...]:
    return SPECS


REQUEST = EXCHANGED.encode() + encode(TENSORS)
STATEMENT = json.dumps({"said": "this"}).encode()
RESPONSE = LENGTH.pack(len(STATEMENT)) + encode(TENSORS) + STATEMENT


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64, 1000, len(REQUEST)])
def test_a_request_in_pieces(size: int) -> None:
    reader = RequestReader(len(REQUEST), admit)
    in_pieces(reader.feed, REQUEST, size)
    exchange, tensors, commitments = reader.result()
    assert exchange == EXCHANGED
    assert tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)
    assert commitments == commit(TENSORS, SALTS)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64, len(RESPONSE)])
def test_an_answer_in_pieces(size: int) -> None:
    reader = ResponseReader(len(RESPONSE), SPECS, SALTS)
    in_pieces(reader.feed, RESPONSE, size)
    tensors, commitments, statement = reader.result()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)
    assert commitments == commit(TENSORS, SALTS)
    assert statement == {"said": "this"}


def test_tensors_without_data() -> None:
    empty = {"none": np.empty((0, 3), np.int64)}
    specs = (TensorSpec(name="none", dtype="int64", shape=(0, 3)),)
    body = LENGTH.pack(2) + encode(empty) + b"{}"
    reader = ResponseReader(len(body), specs, {"none": bytes(32)})
    in_pieces(reader.feed, body, 1)
    tensors, commitments, _ = reader.result()
    assert tensors["none"].shape == (0, 3)
    assert commitments == commit(empty, {"none": bytes(32)})


def test_no_tensors_at_all() -> None:
    body = LENGTH.pack(2) + encode({}) + b"{}"
    reader = ResponseReader(len(body), (), {})
    reader.feed(body)
    assert reader.result() == ({}, {}, {})


@pytest.mark.parametrize("end", range(0, len(REQUEST), 5))
def test_a_request_that_ends_early(end: int) -> None:
    reader = RequestReader(len(REQUEST), admit)
    reader.feed(REQUEST[:end])
    with pytest.raises(MalformedInputError, match="the message ended early"):
        reader.result()


@pytest.mark.parametrize("end", range(len(RESPONSE)))
def test_an_answer_that_ends_early(end: int) -> None:
    reader = ResponseReader(len(RESPONSE), SPECS, SALTS)
    reader.feed(RESPONSE[:end])
    with pytest.raises(MalformedInputError, match="the message ended early"):
        reader.result()


@pytest.mark.parametrize("apart", [True, False])
def test_bytes_after_the_end(apart: bool) -> None:
    request = RequestReader(len(REQUEST), admit)
    response = ResponseReader(len(RESPONSE), SPECS, SALTS)
    for reader, body, why in (
        (request, REQUEST, "bytes after the tensors"),
        (response, RESPONSE, "bytes after the statement"),
    ):
        assert isinstance(reader, RequestReader | ResponseReader)
        if apart:
            reader.feed(body)
        with pytest.raises(MalformedInputError, match=why):
            reader.feed(b"!" if apart else body + b"!")


@pytest.mark.parametrize("off", [-1, 1, -len(REQUEST), 1 << 40])
def test_a_content_length_that_is_not_the_bodys(off: int) -> None:
    request = RequestReader(len(REQUEST) + off, admit)
    response = ResponseReader(len(RESPONSE) + off, SPECS, SALTS)
    for reader, body in ((request, REQUEST), (response, RESPONSE)):
        assert isinstance(reader, RequestReader | ResponseReader)
        with pytest.raises(MalformedInputError, match=r"header says .* the message"):
            reader.feed(body)


def huge(shape: tuple[int, ...], size: int) -> bytes:
    return encode_header((("x", "F32", shape, size),))


def test_a_gibibyte_is_not_allocated_for_a_refused_shape() -> None:
    header = huge((GIB // 4,), GIB)
    specs = (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),)
    reader = TensorReader(len(header) + GIB, specs, {"x": bytes(32)})
    with (
        within_bytes(1 << 20),
        pytest.raises(MalformedInputError, match="'x' shape: got"),
    ):
        reader.feed(memoryview(header))


def test_a_gibibyte_is_not_allocated_for_a_shorter_message() -> None:
    header = huge((GIB // 4,), GIB)
    specs = (TensorSpec(name="x", dtype="float32", shape=("batch",)),)
    for total in (0, len(header), len(header) + GIB - 1):
        reader = TensorReader(total, specs, {"x": bytes(32)})
        with (
            within_bytes(1 << 20),
            pytest.raises(MalformedInputError, match=f"the message {total}"),
        ):
            reader.feed(memoryview(header))


def test_a_gibibyte_is_not_allocated_for_a_tensor_nobody_promised() -> None:
    header = huge((GIB // 4,), GIB)
    reader = TensorReader(len(header) + GIB, SPECS, SALTS)
    with (
        within_bytes(1 << 20),
        pytest.raises(MalformedInputError, match="tensors: got"),
    ):
        reader.feed(memoryview(header))


def test_salts_of_other_tensors_are_refused_before_data_are_allocated() -> None:
    header = huge((GIB // 4,), GIB)
    specs = (TensorSpec(name="x", dtype="float32", shape=("batch",)),)
    reader = TensorReader(len(header) + GIB, specs, {"y": bytes(32)})
    with within_bytes(1 << 20), pytest.raises(MalformedInputError, match="salts: got"):
        reader.feed(memoryview(header))


def test_a_refused_exchange_is_refused_before_any_tensor_byte() -> None:
    def refuse(exchange: Exchange) -> tuple[TensorSpec, ...]:
        raise MalformedInputError(f"no segment {exchange.infer_index}")

    reader = RequestReader(1 << 40, refuse)
    with pytest.raises(MalformedInputError, match="no segment 3"):
        reader.feed(EXCHANGED.encode())


@pytest.mark.parametrize("length", [0, 4, 65, 65544, 1 << 63])
def test_a_header_length_that_is_none(length: int) -> None:
    reader = TensorReader(1000, SPECS, SALTS)
    with pytest.raises(MalformedInputError, match=f"header: got {length} bytes"):
        reader.feed(memoryview(struct.pack("<Q", length)))


def test_lengths_over_their_caps_are_refused_at_the_fourth_byte() -> None:
    request = RequestReader(1 << 40, admit)
    request.feed(LENGTH.pack(MAX_METADATA_BYTES + 1)[:3])
    with pytest.raises(MalformedInputError, match="exchange: got a length of 131073"):
        request.feed(LENGTH.pack(MAX_METADATA_BYTES + 1)[3:])
    response = ResponseReader(1 << 40, SPECS, SALTS)
    with pytest.raises(MalformedInputError, match="statement: got a length of"):
        response.feed(LENGTH.pack(MAX_STATEMENT_BYTES + 1))
    assert parse_length(LENGTH.pack(7), "it", 7) == 7


def test_a_statement_that_is_no_json() -> None:
    body = LENGTH.pack(3) + encode(TENSORS) + b"{,}"
    reader = ResponseReader(len(body), SPECS, SALTS)
    reader.feed(body)
    with pytest.raises(MalformedInputError, match="statement is not valid JSON"):
        reader.result()


def test_a_prefixed_part_that_is_not_complete_has_no_result() -> None:
    part = PrefixReader("part", 10)
    assert not part.complete
    part.feed(memoryview(LENGTH.pack(4) + b"ab"))
    assert not part.complete
    with pytest.raises(MalformedInputError, match="part: the message ended early"):
        part.result()
    rest = part.feed(memoryview(b"cdEF"))
    assert (part.result(), bytes(rest), part.length) == (b"abcd", b"EF", 8)


def test_an_announced_length_costs_nothing_until_bytes_come() -> None:
    """Pages of what was promised and never sent are never touched."""
    header = huge((GIB // 4,), GIB)
    specs = (TensorSpec(name="x", dtype="float32", shape=("batch",)),)
    reader = TensorReader(len(header) + GIB, specs, {"x": bytes(32)})
    before = resident_bytes()
    reader.feed(memoryview(header + bytes(8)))
    assert resident_bytes() - before < 16 << 20
    assert not reader.complete


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
