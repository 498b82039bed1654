"""Whatever bytes stand in plan.json: a plan that says the same, or a SecureError."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.digest import digest_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.split import parse_plan
from bentoml_secure.tensors import DTYPES

LEVELS = ("BASIC", "DISABLE_ALL")
RANGES = st.sampled_from([">=1.20", "==1.32.*", ">=1,<2,!=1.9"])
PERMITTED = st.lists(
    st.builds(lambda version: {"name": "torch", "version": version}, RANGES)
    | st.builds(
        lambda version, level: {
            "name": "onnxruntime",
            "version": version,
            "graph_level": level,
        },
        RANGES,
        st.sampled_from(LEVELS),
    ),
    min_size=1,
    max_size=3,
    unique_by=json.dumps,
)
POSITIVE = st.floats(0, 1e9)
WORDS = st.text(
    st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=9
)
CHEATS = st.fixed_dictionaries({"name": WORDS, "distance": POSITIVE})
CALIBRATIONS = st.fixed_dictionaries(
    {
        "inputs": st.integers(1, 1 << 40),
        "pairs": st.integers(1, 1 << 40),
        "largest": POSITIVE,
        "margin": POSITIVE,
        "false_alarm": st.floats(0, 1),
        "runtimes": st.lists(WORDS, min_size=2, max_size=4, unique=True),
    },
    optional={"nearest_cheat": CHEATS},
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 9) | st.sampled_from(["n", "t"]), max_size=4)
DIGITS = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(NAMES, min_size=2, max_size=6, unique=True))
    made: list[dict[str, Any]] = [
        {"name": n, "dtype": draw(st.sampled_from(list(DTYPES))), "shape": draw(SHAPES)}
        for n in names
    ]
    for tensor in made:
        if draw(st.booleans()):
            tensor["allow_nonfinite"] = True
    segments = []
    for index, tensor in enumerate(made[1:]):
        file = f"segment-{index}.onnx"
        read = draw(st.sets(st.integers(0, index), min_size=1))
        digest = f"sha256-file-v1:{draw(DIGITS)}"
        segments.append(
            {
                "file": file,
                "files": [{"path": file, "digest": digest}],
                "inputs": [made[i] for i in sorted(read)],
                "outputs": [tensor],
                "tolerance": draw(st.floats(0, 1)),
            }
        )
        if draw(st.booleans()):
            segments[-1]["rule"] = draw(WORDS)
        if draw(st.booleans()):
            segments[-1]["calibration"] = draw(CALIBRATIONS)
    runtime: dict[str, Any] = {
        "name": "onnxruntime",
        "version": draw(RANGES),
        "graph_level": "EXTENDED",
    }
    if draw(st.booleans()):
        runtime["permitted"] = draw(PERMITTED)
    return {
        "version": 1,
        "model": {"name": draw(NAMES), "digest": f"sha256-jcs-v1:{draw(DIGITS)}"},
        "inputs": [made[0]],
        "outputs": [draw(st.sampled_from(made))],
        "runtime": runtime,
        "segments": segments,
    }


@given(documents())
def test_what_is_written_is_read_back(document: dict[str, Any]) -> None:
    plan = parse_plan(json.dumps(document).encode())
    assert plan.to_json() == document
    assert plan.digest == digest_json(document)
    assert parse_plan(json.dumps(plan.to_json()).encode()) == plan


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(p for key, below in items for p in _places(below, (*path, key)))]


JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.text(max_size=5), below, max_size=3)
    ),
    max_leaves=5,
)


@given(documents(), st.data())
def test_junk_anywhere_is_refused_or_means_what_it_says(
    document: dict[str, Any], data: st.DataObject
) -> None:
    changed = copy.deepcopy(document)
    *above, last = data.draw(st.sampled_from(_places(document)[1:]))
    place: Any = changed
    for key in above:
        place = place[key]
    place[last] = data.draw(JUNK)
    with contextlib.suppress(MalformedInputError):
        assert parse_plan(json.dumps(changed).encode()).to_json() == changed


@given(documents(), st.data())
def test_flipped_bytes_are_refused_or_mean_what_they_say(
    document: dict[str, Any], data: st.DataObject
) -> None:
    text = bytearray(json.dumps(document).encode())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedInputError):
        assert parse_plan(bytes(text)).to_json() == json.loads(text)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedInputError):
        parse_plan(data)
        raise AssertionError("random bytes made a plan")
