"""What goes over the hop: metadata, tensors laid out once, pieces without a copy."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from bentoml_secure.digest import digest_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.serving.exchange import (
    CHUNK_BYTES,
    LENGTH,
    MAX_METADATA_BYTES,
    Exchange,
    Outgoing,
)
from bentoml_secure.tensors import Array, TensorCommitments, commit, encode

EXCHANGE = Exchange(
    request_id="11" * 16,
    nonce="22" * 32,
    infer_index=3,
    exchange_id="33" * 16,
    plan_digest=digest_json("plan"),
    segment=digest_json("segment"),
    input_salts={"x": b"\1" * 32},
    output_salts={"y": b"\2" * 32, "ä": b"\3" * 32},
    key_document=digest_json("keys"),
)


def document(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(EXCHANGE.encode()[LENGTH.size :])
    return {**whole, **changes}


def decode(changed: Any) -> Exchange:
    return Exchange.decode(json.dumps(changed).encode())


def test_metadata_come_back_as_they_went() -> None:
    encoded = EXCHANGE.encode()
    (length,) = LENGTH.unpack_from(encoded)
    assert length == len(encoded) - LENGTH.size
    assert Exchange.decode(encoded[LENGTH.size :]) == EXCHANGE


@pytest.mark.parametrize("field", document())
def test_no_field_may_be_missing(field: str) -> None:
    changed = document()
    del changed[field]
    with pytest.raises(MalformedInputError, match="exchange: want exactly"):
        decode(changed)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"more": 1}, "want exactly"),
        ({"version": 2}, "version: want 1"),
        ({"version": True}, "version: want 1"),
        ({"version": "1"}, "version: want 1"),
        ({"infer_index": -1}, "infer_index: want an integer from 0"),
        ({"infer_index": True}, "infer_index: want an integer from 0"),
        ({"infer_index": 1.0}, "infer_index: want an integer from 0"),
        ({"infer_index": None}, "infer_index: want an integer from 0"),
        ({"request_id": "11" * 15}, "request_id: got 30 hex digits, want 32"),
        ({"request_id": "AA" * 16}, "request_id: .*lower-case hex"),
        ({"nonce": 7}, "nonce: got 7"),
        ({"exchange_id": "33" * 17}, "exchange_id: got 34"),
        ({"plan_digest": "sha256:" + "0" * 64}, "plan_digest: .*want sha256-jcs-v1"),
        ({"segment": ""}, "segment: got ''"),
        ({"key_document": "sha256:" + "0" * 64}, "key_document: .*want sha256-jcs-v1"),
        ({"key_document": 7}, "key_document: got 7"),
        ({"commit": 1}, "commit: want true or false"),
        ({"commit": None}, "commit: want true or false"),
        ({"input_salts": []}, "input_salts: want an object"),
        ({"input_salts": {"x": "00"}}, "input_salts 'x': got 2 hex digits, want 64"),
        ({"output_salts": None}, "output_salts: want an object"),
        ({"output_salts": {"\ud800": 1}}, r"output_salts '\\ud800': got 1"),
    ],
)
def test_metadata_of_another_form_are_refused(
    changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(MalformedInputError, match=why):
        decode(document(**changes))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"\xff", b"9" * 5000])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedInputError, match="exchange"):
        Exchange.decode(data)


def test_metadata_over_the_cap_are_refused() -> None:
    with pytest.raises(MalformedInputError, match="want at most 131072"):
        Exchange.decode(b" " * (MAX_METADATA_BYTES + 1))


def test_tensors_are_laid_out_once_and_sent_as_views() -> None:
    big = np.arange(CHUNK_BYTES // 2, dtype=np.float64)
    tensors: dict[str, Array] = {
        "b": big,
        "a": np.array(7, np.float32),
        "none": np.empty((0, 3)),
    }
    outgoing = Outgoing.of(tensors)
    data = list(outgoing.data())
    assert outgoing.layout.header + b"".join(data) == encode(tensors)
    assert outgoing.total_bytes == len(encode(tensors))
    assert max(map(len, data)) == CHUNK_BYTES
    assert len(data) == 1 + 4
    assert np.shares_memory(np.frombuffer(data[1], np.uint8), big)


def test_arrays_of_other_layouts_are_made_canonical() -> None:
    odd = np.arange(6, dtype=">f4").reshape(2, 3).T
    outgoing = Outgoing.of({"x": odd})
    assert outgoing.layout.header + b"".join(outgoing.data()) == encode(
        {"x": np.ascontiguousarray(odd).astype("<f4")}
    )


def test_commitments_are_made_while_the_data_go() -> None:
    tensors: dict[str, Array] = {
        "a": np.arange(5, dtype=np.int8),
        "b": np.eye(3, dtype=np.float16),
    }
    salts = {"a": b"\1" * 32, "b": b"\2" * 32}
    outgoing = Outgoing.of(tensors)
    commitments = TensorCommitments(outgoing.layout, salts)
    sent = b"".join(outgoing.committed_data(commitments))
    assert outgoing.layout.header + sent == encode(tensors)
    assert commitments.result() == commit(tensors, salts)


def test_an_exchange_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="infer_index"):
        EXCHANGE.infer_index = 4  # type: ignore[misc]
