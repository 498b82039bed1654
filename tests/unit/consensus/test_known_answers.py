"""The file of known answers: what it holds comes back, anything else is refused."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from bentoml_secure.consensus import known_answers as module
from bentoml_secure.consensus.known_answers import (
    MAGIC,
    MAX_ANSWERS,
    MAX_SEGMENTS,
    KnownAnswer,
    KnownAnswers,
    parse_known_answers,
)
from bentoml_secure.digest import canonical_json, digest_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.tensors import encode

PLAN = digest_json("a plan")


def answer(seed: int) -> KnownAnswer:
    rng = np.random.default_rng(seed)
    return KnownAnswer(
        inputs={"x": rng.normal(size=(1, 4)).astype(np.float32)},
        outputs={"h": rng.normal(size=(1, 3)), "n": rng.integers(0, 9, size=2)},
    )


def made() -> KnownAnswers:
    return KnownAnswers(plan=PLAN, segments=((answer(0), answer(1)), (answer(2),)))


def file_of(index: object, bodies: bytes = b"") -> bytes:
    text = index if isinstance(index, bytes) else canonical_json(index)
    return MAGIC + struct.pack(">I", len(text)) + text + bodies


def index_of(segments: object, **fields: Any) -> dict[str, Any]:
    return {"version": 1, "plan": PLAN, "segments": segments, **fields}


def test_what_is_written_comes_back() -> None:
    before = made()
    after = parse_known_answers(before.to_bytes())
    assert after.plan == PLAN
    assert [len(answers) for answers in after.segments] == [2, 1]
    assert after.to_bytes() == before.to_bytes()
    for got, want in zip(after.segments[0], before.segments[0], strict=True):
        np.testing.assert_array_equal(got.inputs["x"], want.inputs["x"])
        np.testing.assert_array_equal(got.outputs["h"], want.outputs["h"])
        assert got.outputs["n"].dtype == want.outputs["n"].dtype


def test_the_layout_is_the_documented_one() -> None:
    one = answer(0)
    inputs, outputs = encode(one.inputs), encode(one.outputs)
    got = KnownAnswers(plan=PLAN, segments=((one,),)).to_bytes()
    index = index_of([[[len(inputs), len(outputs)]]])
    assert got == file_of(index, inputs + outputs)


EMPTY = encode({})
PAIR = [len(EMPTY), len(EMPTY)]


def cut(data: bytes) -> bytes:
    return data[:-1]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "want b'BSKNOWN1' first"),
        (b"PK\x03\x04" + bytes(100), "want b'BSKNOWN1' first"),
        (MAGIC + b"\x00\x00", "want b'BSKNOWN1' first"),
        (MAGIC + struct.pack(">I", 1 << 31), "no more than follow"),
        (MAGIC + struct.pack(">I", 5) + b"{}", "no more than follow"),
        (file_of(b"{"), "is not valid JSON"),
        (file_of([]), "want an object"),
        (file_of({"version": 1, "plan": PLAN}), "'segments' is missing"),
        (file_of(index_of([], more=1)), "unknown field 'more'"),
        (file_of(index_of([], version=2)), "version: got 2, want 1"),
        (file_of(index_of([], version=True)), "version: got True, want 1"),
        (file_of(index_of([], plan="sha256:00")), "want <algorithm>:<hex>"),
        (file_of(index_of({})), "segments: want a list of at most"),
        (file_of(index_of([[]] * (MAX_SEGMENTS + 1))), "want a list of at most 256"),
        (file_of(index_of([{}])), "segment 0: want a list"),
        (
            file_of(index_of([[PAIR] * (MAX_ANSWERS + 1)])),
            "segment 0: want a list of at most 1024",
        ),
        (file_of(index_of([[[1]]])), "want two lengths"),
        (file_of(index_of([[[1, "2"]]])), "want two lengths"),
        (file_of(index_of([[[True, 2]]])), "want two lengths"),
        (file_of(index_of([[[1, -1]]])), "want two lengths"),
        (file_of(index_of([[[1, 2**52]]])), "want two lengths"),
        (file_of(index_of([[PAIR]]), EMPTY), f"got {len(EMPTY)} bytes of tensors"),
        (file_of(index_of([[PAIR]]), EMPTY * 3), "bytes of tensors, want"),
        (file_of(index_of([[[0, len(EMPTY)]]]), EMPTY), "got 0 bytes, want at least 8"),
        (file_of(json.dumps(index_of([])).encode()), "not in its canonical form"),
        (
            file_of(b'{"plan":"%s","segments":[],"version":1.0}' % PLAN.encode()),
            "not in its canonical form",
        ),
        (cut(made().to_bytes()), "bytes of tensors, want"),
    ],
)
def test_anything_else_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(MalformedInputError, match=says.replace("[", r"\[")):
        parse_known_answers(data)


@pytest.mark.parametrize(
    "limit", ["MAX_BYTES", "MAX_INDEX_BYTES", "MAX_SEGMENTS", "MAX_ANSWERS"]
)
def test_what_could_not_be_read_is_not_written(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, limit, 1)
    with pytest.raises(MalformedInputError, match="known answers"):
        made().to_bytes()
