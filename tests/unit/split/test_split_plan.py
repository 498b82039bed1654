from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.digest import digest_file_bytes, digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.split import PLAN_FILE, load_plan, parse_plan, read_file

FILE_DIGEST = f"sha256-file-v1:{'0' * 64}"


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape or ("n", 4))}


def segment(
    number: int, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> dict[str, Any]:
    file = f"segment-{number}.onnx"
    return {
        "file": file,
        "files": [{"path": file, "digest": FILE_DIGEST}],
        "inputs": inputs,
        "outputs": outputs,
        "tolerance": 2e-05,
    }


@pytest.fixture
def document() -> dict[str, Any]:
    """x, z -> a -> y; z passes by the first segment and out of the model as well."""
    return {
        "version": 1,
        "model": {"name": "demo", "digest": f"sha256-jcs-v1:{'1' * 64}"},
        "inputs": [tensor("x"), tensor("z")],
        "outputs": [tensor("y"), tensor("z")],
        "runtime": {
            "name": "onnxruntime",
            "version": ">=1.32,<1.33",
            "graph_level": "EXTENDED",
        },
        "segments": [
            segment(0, [tensor("x")], [tensor("a")]),
            segment(1, [tensor("a"), tensor("z")], [tensor("y")]),
        ],
    }


def parsed(document: Any) -> Any:
    return parse_plan(json.dumps(document).encode())


def test_a_plan_says_what_its_document_says(document: dict[str, Any]) -> None:
    plan = parsed(document)
    assert plan.to_json() == document
    assert plan.digest == digest_json(document)
    assert [s.identity for s in plan.segments] == [
        digest_json(entry) for entry in document["segments"]
    ]
    assert [plan.producer(name) for name in ("x", "z", "a", "y")] == [-1, -1, 0, 1]


def test_identity_changes_with_every_field_of_an_entry(
    document: dict[str, Any],
) -> None:
    before = parsed(document).segments[0].identity
    document["segments"][0]["tolerance"] = 3e-05
    assert parsed(document).segments[0].identity != before


def test_a_value_that_nothing_makes_has_no_producer(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="'b': no segment of the plan makes"):
        parsed(document).producer("b")


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


def _add(*path: Any, item: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path:
            document = document[key]
        document.append(item)

    return change


SEGMENT = ("segments", 0)
BROKEN = {
    "version true": (_set("version", to=True), "plan version: got True, want 1"),
    "version 2": (_set("version", to=2), "plan version: got 2, want 1"),
    "unknown field": (_set("extra", to=1), "plan.json: unknown field 'extra'"),
    "no segments": (_set("segments", to=[]), "plan segments: got 0, want 1 to 256"),
    "segments no list": (_set("segments", to={}), "segments: want a list"),
    "too many segments": (
        _set("segments", to=[segment(0, [], [tensor("a")])] * 257),
        "segments: want a list of at most 256",
    ),
    "no outputs": (_set("outputs", to=[]), "plan outputs: got none"),
    "model name": (_set("model", "name", to=""), "model name: want 1 to 512"),
    "model name long": (_set("model", "name", to="n" * 513), "model name: want 1 to"),
    "model name number": (_set("model", "name", to=3), "model name: got 3, want text"),
    "model digest": (
        _set("model", "digest", to=FILE_DIGEST),
        "model digest: got .*, want sha256-jcs-v1",
    ),
    "runtime": (_set("runtime", "name", to="torch"), "runtime name: got 'torch'"),
    "level": (
        _set("runtime", "graph_level", to="ALL"),
        "runtime graph_level: got 'ALL', want 'EXTENDED'",
    ),
    "range": (_set("runtime", "version", to="1.x"), "runtime version: got '1.x'"),
    "any version": (_set("runtime", "version", to=""), "runtime version: got ''"),
    "input twice": (_add("inputs", item=tensor("x")), "plan inputs: 'x' stands there"),
    "output twice": (_add("outputs", item=tensor("y")), "plan outputs: 'y' stands"),
    "made twice": (
        _add("segments", 1, "outputs", item=tensor("a")),
        "segment 1 output 'a': is made before",
    ),
    "makes an input": (
        _add("segments", 1, "outputs", item=tensor("x")),
        "segment 1 output 'x': is made before",
    ),
    "reads later": (
        _add(*SEGMENT, "inputs", item=tensor("y")),
        "segment 0 input 'y': no model input or earlier segment makes it",
    ),
    "reads its own": (
        _add(*SEGMENT, "inputs", item=tensor("a")),
        "segment 0 input 'a': no model input or earlier segment makes it",
    ),
    "not made": (_add("outputs", item=tensor("q")), "plan output 'q': no model input"),
    "other dtype": (
        _set("segments", 1, "inputs", 0, "dtype", to="float64"),
        "segment 1 input 'a': got float64",
    ),
    "other shape": (
        _set("segments", 1, "inputs", 0, "shape", to=["m", 4]),
        "segment 1 input 'a': got float32 \\['m', 4\\], its maker says",
    ),
    "output of other shape": (
        _set("outputs", 0, "shape", to=[1, 4]),
        "plan output 'y': got float32 \\[1, 4\\]",
    ),
    "makes nothing": (
        _set("segments", 1, "outputs", to=[]),
        "segment-1.onnx outputs: got none, want at least 1",
    ),
    "file unlisted": (
        _set(*SEGMENT, "file", to="other.onnx"),
        "other.onnx: is not listed in its files",
    ),
    "file twice": (
        _add(*SEGMENT, "files", item={"path": "segment-0.onnx", "digest": FILE_DIGEST}),
        "files: 'segment-0.onnx' stands there twice",
    ),
    "file under two digests": (
        _add(
            "segments",
            1,
            "files",
            item={"path": "segment-0.onnx", "digest": f"sha256-file-v1:{'2' * 64}"},
        ),
        "segment-0.onnx: stands there under two digests",
    ),
    "file digest": (
        _set(*SEGMENT, "files", 0, "digest", to=f"sha256:{'0' * 64}"),
        "segment 0 file digest: got .*, want sha256-file-v1",
    ),
    "tolerance text": (_set(*SEGMENT, "tolerance", to="1"), "tolerance: got '1'"),
    "tolerance true": (_set(*SEGMENT, "tolerance", to=True), "tolerance: got True"),
    "tolerance below 0": (_set(*SEGMENT, "tolerance", to=-1.0), "tolerance: got -1.0"),
    "tensor field": (
        _set("inputs", 0, "unit", to="m"),
        "plan inputs 0: unknown field 'unit'",
    ),
    "default spelled out": (
        _set("inputs", 0, "allow_nonfinite", to=False),
        "says a default in so many words",
    ),
    "lone surrogate": (_set("model", "name", to="\ud800"), "canonical JSON"),
}


@pytest.mark.parametrize(("change", "match"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_refused(
    document: dict[str, Any], change: Callable[[dict[str, Any]], None], match: str
) -> None:
    parsed(document)
    broken = copy.deepcopy(document)
    change(broken)
    with pytest.raises(MalformedInputError, match=match):
        parsed(broken)


@pytest.mark.parametrize(
    "field", ["version", "model", "inputs", "outputs", "runtime", "segments"]
)
def test_a_missing_field_is_refused(document: dict[str, Any], field: str) -> None:
    del document[field]
    with pytest.raises(MalformedInputError, match=f"field '{field}' is missing"):
        parsed(document)


HOSTILE_PATHS = [
    "../model.onnx",
    "a/../../model.onnx",
    "/etc/passwd",
    "//host/share",
    "C:\\model.onnx",
    "a\\b",
    "model.onnx\0.png",
    "a\nb",
    "./model.onnx",
    "a//b",
    "a/",
    "",
    ".hidden",
    "-rf",
    "..",
    "~root",
    "$HOME",
    "a" * 241,
    "*/_ORT_MEM_ADDR_/*",
    None,
    7,
]


@pytest.mark.parametrize("path", HOSTILE_PATHS, ids=repr)
def test_a_path_that_could_leave_the_folder_is_refused(
    document: dict[str, Any], path: Any
) -> None:
    document["segments"][0]["files"][0]["path"] = path
    with pytest.raises(MalformedInputError, match="want a plain path inside"):
        parsed(document)


def test_a_file_is_read_when_its_digest_is_the_plans(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.onnx").write_bytes(b"weights")
    digest = digest_file_bytes(b"weights")
    assert read_file(tmp_path, "deep/a.onnx", digest, max_bytes=7) == b"weights"


def test_a_changed_file_is_named_with_both_digests(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"other")
    want, got = digest_file_bytes(b"weights"), digest_file_bytes(b"other")
    with pytest.raises(VerificationError, match=f"a.onnx: got {got}, want {want}"):
        read_file(tmp_path, "a.onnx", want, max_bytes=100)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.onnx").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(MalformedInputError, match="got 1099511627776 bytes, want at"):
        read_file(tmp_path, "a.onnx", digest_file_bytes(b""), max_bytes=1000)


def test_links_may_stay_in_the_folder_but_not_leave_it(tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "real.onnx").write_bytes(b"in")
    (tmp_path / "secret").write_bytes(b"out")
    (folder / "inside").symlink_to("data/real.onnx")
    (folder / "outside").symlink_to("../secret")
    (folder / "elsewhere").symlink_to(tmp_path)
    assert read_file(folder, "inside", digest_file_bytes(b"in"), max_bytes=9) == b"in"
    for path in ("outside", "elsewhere/secret"):
        with pytest.raises(VerificationError, match="leads out of the folder"):
            read_file(folder, path, digest_file_bytes(b"out"), max_bytes=9)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in ("pipe", "folder"):
        with pytest.raises(VerificationError, match="is not a regular file"):
            read_file(tmp_path, path, digest_file_bytes(b""), max_bytes=9)


def test_a_missing_file_is_the_operators_matter(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone.onnx.*cannot be read"):
        read_file(tmp_path, "gone.onnx", digest_file_bytes(b""), max_bytes=9)
    with pytest.raises(ConfigurationError, match=r"plan.json.*cannot be read"):
        load_plan(tmp_path)


def test_load_plan_reads_the_folders_plan(
    tmp_path: Path, document: dict[str, Any]
) -> None:
    (tmp_path / PLAN_FILE).write_text(json.dumps(document))
    assert load_plan(tmp_path).digest == digest_json(document)


def test_reading_a_plan_imports_nothing_heavy() -> None:
    program = (
        "import sys, bentoml_secure.split.plan as p; p.parse_plan; "
        "print({'onnx', 'onnxruntime', 'torch'} & sys.modules.keys())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
