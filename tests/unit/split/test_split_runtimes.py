"""Permitted runtimes, rules and calibrations: what plan.json says of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from packaging.version import Version

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split import GraphLevel, Plan, RuntimeChoice, parse_plan

DOCUMENT: dict[str, Any] = {
    "version": 1,
    "model": {"name": "demo", "digest": f"sha256-jcs-v1:{'1' * 64}"},
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["n", 4]}],
    "runtime": {
        "name": "onnxruntime",
        "version": ">=1.32,<1.33",
        "graph_level": "EXTENDED",
    },
    "segments": [
        {
            "file": "segment-0.onnx",
            "files": [
                {"path": "segment-0.onnx", "digest": f"sha256-file-v1:{'0' * 64}"}
            ],
            "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 4]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": ["n", 4]}],
            "tolerance": 2e-05,
        }
    ],
}
PERMITTED: list[dict[str, Any]] = [
    {"name": "torch", "version": ">=2.13,<2.14"},
    {"name": "onnxruntime", "version": ">=1.23,<1.24"},
    {"name": "onnxruntime", "version": ">=1.32,<1.33", "graph_level": "BASIC"},
]
CALIBRATION: dict[str, Any] = {
    "inputs": 64,
    "pairs": 7680,
    "largest": 2.5e-06,
    "margin": 8.0,
    "false_alarm": 0.046,
    "runtimes": ["onnxruntime 1.32.0 EXTENDED", "torch 2.13.0"],
    "nearest_cheat": {"name": "fp16", "distance": 0.00039},
}


def parsed(document: Any) -> Plan:
    return parse_plan(json.dumps(document).encode())


def full() -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    document["runtime"]["permitted"] = copy.deepcopy(PERMITTED)
    document["segments"][0]["rule"] = "exact"
    document["segments"][0]["calibration"] = copy.deepcopy(CALIBRATION)
    return document


def test_a_plan_without_them_is_as_it_was() -> None:
    plan = parsed(DOCUMENT)
    assert plan.to_json() == DOCUMENT
    segment = plan.segments[0]
    assert (segment.rule, segment.calibration) == ("within_tolerance", None)
    assert plan.runtime.permitted == ()


def test_a_plan_with_them_says_what_its_document_says() -> None:
    document = full()
    plan = parsed(document)
    assert plan.to_json() == document
    assert parsed(plan.to_json()) == plan
    assert plan.segments[0].rule == "exact"


@pytest.mark.parametrize("field", ["rule", "calibration"])
def test_the_identity_of_a_segment_covers_them(field: str) -> None:
    document = full()
    whole = parsed(document)
    del document["segments"][0][field]
    assert parsed(document).segments[0].identity != whole.segments[0].identity


def test_the_digest_of_a_plan_covers_what_it_permits() -> None:
    document = full()
    whole = parsed(document).digest
    document["runtime"]["permitted"].pop()
    assert parsed(document).digest != whole


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


AT = ("runtime", "permitted")
CALIBRATED = ("segments", 0, "calibration")
BROKEN = {
    "permitted empty": (_set(*AT, to=[]), "says a default in so many words"),
    "permitted no list": (_set(*AT, to={}), "permitted: want a list of at most 32"),
    "permitted many": (_set(*AT, to=[PERMITTED[0]] * 33), "want a list of at most 32"),
    "permitted twice": (_set(*AT, to=PERMITTED[:1] * 2), "one stands there twice"),
    "permitted text": (_set(*AT, 0, to="torch"), "permitted runtime: want an object"),
    "permitted unknown": (_set(*AT, 0, "os", to="x"), "unknown field 'os'"),
    "permitted name": (_set(*AT, 0, "name", to="tvm"), "permitted runtime: got 'tvm'"),
    "permitted number": (_set(*AT, 0, "name", to=1), "runtime name: got 1, want text"),
    "permitted range": (_set(*AT, 0, "version", to="2.x"), "torch version: got '2.x'"),
    "permitted any": (_set(*AT, 0, "version", to=""), "torch version: got ''"),
    "level of torch": (
        _set(*AT, 0, "graph_level", to="BASIC"),
        "permitted torch: want a graph_level with onnxruntime, and none with torch",
    ),
    "level null": (_set(*AT, 1, "graph_level", to=None), "want a graph_level with"),
    "level null of torch": (_set(*AT, 0, "graph_level", to=None), "says a default"),
    "level unknown": (_set(*AT, 2, "graph_level", to="ALL"), "graph_level: got 'ALL'"),
    "level list": (_set(*AT, 2, "graph_level", to=[]), r"graph_level: got \[\]"),
    "level default": (_set(*AT, 1, "graph_level", to="EXTENDED"), "says a default"),
    "rule default": (
        _set("segments", 0, "rule", to="within_tolerance"),
        "says a default in so many words",
    ),
    "rule empty": (_set("segments", 0, "rule", to=""), "rule: got '', want a rule"),
    "rule number": (_set("segments", 0, "rule", to=3), "rule: got 3, want text"),
    "rule long": (_set("segments", 0, "rule", to="r" * 61), "want a rule's name"),
    "rule control": (_set("segments", 0, "rule", to="a\nb"), "want a rule's name"),
    "calibration null": (_set(*CALIBRATED, to=None), "calibration: want an object"),
    "calibration field": (_set(*CALIBRATED, "x", to=1), "unknown field 'x'"),
    "inputs none": (_set(*CALIBRATED, "inputs", to=0), "inputs: got 0, want a number"),
    "inputs true": (_set(*CALIBRATED, "inputs", to=True), "inputs: got True"),
    "pairs float": (_set(*CALIBRATED, "pairs", to=1.0), "pairs: got 1.0, want a"),
    "largest": (_set(*CALIBRATED, "largest", to=-1e-9), "largest: got -1e-09"),
    "margin": (_set(*CALIBRATED, "margin", to="8"), "margin: got '8', want a number"),
    "false alarm": (_set(*CALIBRATED, "false_alarm", to=1.1), "got 1.1, want 0 to 1"),
    "one runtime": (_set(*CALIBRATED, "runtimes", to=["a"]), "runtimes: got 1, want 2"),
    "runtime twice": (
        _set(*CALIBRATED, "runtimes", to=["a", "a"]),
        "runtimes: one stands there twice",
    ),
    "runtime empty": (
        _set(*CALIBRATED, "runtimes", to=["a", ""]),
        "calibration runtime: got '', want 1 to 200 characters",
    ),
    "cheat null": (_set(*CALIBRATED, "nearest_cheat", to=None), "want an object"),
    "cheat distance": (
        _set(*CALIBRATED, "nearest_cheat", "distance", to=None),
        "nearest cheat distance: got None",
    ),
    "cheat name": (_set(*CALIBRATED, "nearest_cheat", "name", to=""), "cheat: got ''"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_rule_is_refused(name: str) -> None:
    change, words = BROKEN[name]
    document = full()
    change(document)
    with pytest.raises(MalformedInputError, match=words):
        parsed(document)


@pytest.mark.parametrize(
    ("words", "name", "level"),
    [
        ("torch", "torch", None),
        ("onnxruntime", "onnxruntime", GraphLevel.EXTENDED),
        ("onnxruntime:EXTENDED", "onnxruntime", GraphLevel.EXTENDED),
        ("onnxruntime:BASIC", "onnxruntime", GraphLevel.BASIC),
        ("onnxruntime:DISABLE_ALL", "onnxruntime", GraphLevel.NONE),
    ],
)
def test_a_choice_is_read_and_said(
    words: str, name: str, level: GraphLevel | None
) -> None:
    choice = RuntimeChoice.parse(words)
    assert (choice.name, choice.graph_level) == (name, level)
    assert RuntimeChoice.parse(str(choice)) == choice


@pytest.mark.parametrize(
    "words", ["", "tvm", "torch:BASIC", "torch:", "onnxruntime:", "onnxruntime:basic"]
)
def test_any_other_choice_is_refused(words: str) -> None:
    with pytest.raises(ConfigurationError, match="want one of torch, onnxruntime,"):
        RuntimeChoice.parse(words)


@pytest.mark.parametrize(
    ("choice", "version", "permits"),
    [
        ("onnxruntime", "1.32.4", True),
        ("onnxruntime", "1.23.2", True),
        ("onnxruntime", "1.24.0", False),
        ("onnxruntime:BASIC", "1.32.0", True),
        ("onnxruntime:BASIC", "1.23.2", False),
        ("onnxruntime:DISABLE_ALL", "1.32.0", False),
        ("torch", "2.13.0+cpu", True),
        ("torch", "2.14.0", False),
    ],
)
def test_only_what_the_plan_lists_is_permitted(
    choice: str, version: str, permits: bool
) -> None:
    runtime = parsed(full()).runtime
    assert runtime.permits(RuntimeChoice.parse(choice), Version(version)) is permits
    assert not parsed(DOCUMENT).runtime.permits(
        RuntimeChoice.parse("torch"), Version("2.13.0")
    )
