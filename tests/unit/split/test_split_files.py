"""External data, hostile files, the folder that is written, and loading it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from bentoml_secure.digest import digest_file_bytes, digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.split import (
    PLAN_FILE,
    Plan,
    load_chain,
    load_plan,
    load_segment,
    open_segment,
    parse_plan,
    require_runtime,
    run_chain,
    split_onnx,
)
from bentoml_secure.tensors import Array
from tests.unit.split import split_graphs as graphs

GIB = 1 << 30


def plain_chain(folder: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run a plan with nothing but ONNX Runtime and the names in plan.json."""
    document = json.loads((folder / PLAN_FILE).read_text())
    made = dict(inputs)
    for segment in document["segments"]:
        session = onnxruntime.InferenceSession(str(folder / segment["file"]))
        names = [tensor["name"] for tensor in segment["outputs"]]
        feed = {tensor["name"]: made[tensor["name"]] for tensor in segment["inputs"]}
        made |= dict(zip(names, session.run(names, feed), strict=True))
    return {tensor["name"]: made[tensor["name"]] for tensor in document["outputs"]}


def whole(path: Path, inputs: dict[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(str(path))
    result: Array = session.run(["y"], inputs)[0]
    return result


def wide(folder: Path, *, external: bool = True, single: bool = True) -> Path:
    """A chain whose weights (64 KiB each) are worth moving out."""
    width = 128
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["y"]),
    ]
    model = graphs.model(
        nodes,
        [graphs.value("x", ("n", width))],
        [graphs.value("y", ("n", width))],
        [graphs.weight("w0", width, width), graphs.weight("w1", width, width)],
    )
    if external:
        return graphs.external(model, folder, single=single)
    return graphs.save(model, folder)


SAMPLE = {"x": np.random.default_rng(3).standard_normal((5, 128)).astype(np.float32)}


@pytest.mark.parametrize("single", [True, False])
def test_external_data_go_along_per_segment(tmp_path: Path, single: bool) -> None:
    path = wide(tmp_path, single=single)
    out = tmp_path / "plan"
    plan = split_onnx(path, out, segments=2)
    for index, segment in enumerate(plan.segments):
        names = [f"segment-{index}.onnx", f"segment-{index}.onnx.data"]
        assert [entry.path for entry in segment.files] == names
        for entry in segment.files:
            assert entry.digest == digest_file_bytes((out / entry.path).read_bytes())
        assert (out / names[0]).stat().st_size < 2000
    want = whole(path, SAMPLE).tobytes()
    assert run_chain(out, SAMPLE)["y"].tobytes() == want
    assert plain_chain(out, SAMPLE)["y"].tobytes() == want


def test_inline_weights_move_out_when_there_are_many(tmp_path: Path) -> None:
    path = wide(tmp_path, external=False)
    inline = split_onnx(path, tmp_path / "inline", segments=2)
    assert [len(segment.files) for segment in inline.segments] == [1, 1]
    moved = split_onnx(path, tmp_path / "moved", segments=2, inline_bytes=60_000)
    assert [len(segment.files) for segment in moved.segments] == [2, 2]
    for out in ("inline", "moved"):
        got = plain_chain(tmp_path / out, SAMPLE)["y"]
        assert got.tobytes() == whole(path, SAMPLE).tobytes()


def test_the_models_digest_covers_its_external_data(tmp_path: Path) -> None:
    path = wide(tmp_path)
    before = split_onnx(path, tmp_path / "a", segments=1)
    files = [path, tmp_path / "weights.bin"]
    assert before.model_digest == digest_json(
        [
            {"path": file.name, "digest": digest_file_bytes(file.read_bytes())}
            for file in files
        ]
    )
    data = bytearray(files[1].read_bytes())
    data[5] ^= 1
    files[1].write_bytes(data)
    after = split_onnx(path, tmp_path / "b", segments=1)
    assert after.model_digest != before.model_digest
    assert after.segments[0].identity != before.segments[0].identity


@pytest.mark.slow
def test_a_model_over_two_gib_never_is_one_message(tmp_path: Path) -> None:
    rows = 300_000
    model = graphs.model(
        [
            helper.make_node("Gather", ["first", "ids"], ["a"]),
            helper.make_node("Gather", ["second", "ids"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        [graphs.value("ids", ("n",), TensorProto.INT64)],
        [graphs.value("y", ("n", 1024))],
    )
    length = rows * 1024 * 4
    for index, name in enumerate(("first", "second")):
        tensor = model.graph.initializer.add(
            name=name,
            data_type=TensorProto.FLOAT,
            dims=[rows, 1024],
            data_location=TensorProto.EXTERNAL,
        )
        fields = {"location": "big.bin", "offset": index * length, "length": length}
        for key, value in fields.items():
            tensor.external_data.add(key=key, value=str(value))
    path = graphs.save(model, tmp_path)
    with (tmp_path / "big.bin").open("wb") as stream:
        stream.truncate(2 * length)
        for row in (0, 7, rows - 1):
            stream.seek(length + row * 4096)
            stream.write(np.full(1024, row + 1, np.float32).tobytes())
    assert 2 * length > 2 * GIB
    plan = split_onnx(path, tmp_path / "plan", cuts=["a"])
    assert [len(segment.files) for segment in plan.segments] == [2, 2]
    got = run_chain(tmp_path / "plan", {"ids": np.array([0, 7, rows - 1, 3])})["y"]
    assert got[:, 5].tolist() == [1, 8, rows, 0]


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("../secret.bin", "leads out of the folder"),
        ("/etc/hostname", "leads out of the folder"),
        ("link.bin", "leads out of the folder"),
        ("a\0b", "cannot be read"),
        ("*/_ORT_MEM_ADDR_/*", "cannot be read"),
        ("gone.bin", "cannot be read"),
        (".", "is not a regular file"),
    ],
)
def test_a_models_external_data_stay_in_its_folder(
    tmp_path: Path, location: str, match: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 17))
    (folder / "link.bin").symlink_to("../secret.bin")
    path = wide(folder)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    graphs.save(model, folder)
    with pytest.raises((VerificationError, ConfigurationError), match=match):
        split_onnx(path, tmp_path / "plan", segments=2)
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize(
    ("key", "text", "match"),
    [
        ("offset", "99999999", "'weights.bin' has"),
        ("length", "99999999", "'weights.bin' has"),
        ("offset", "-4", "external data at '-4', want a number"),
        ("offset", "1e3", "external data at '1e3', want a number"),
        ("length", "9" * 400, "want a number"),
    ],
)
def test_external_ranges_stay_in_their_file(
    tmp_path: Path, key: str, text: str, match: str
) -> None:
    path = wide(tmp_path)
    model = onnx.load(path, load_external_data=False)
    (entry,) = (e for e in model.graph.initializer[1].external_data if e.key == key)
    entry.value = text
    graphs.save(model, tmp_path)
    with pytest.raises(MalformedInputError, match=match):
        split_onnx(path, tmp_path / "plan", segments=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    split_onnx(wide(tmp_path), tmp_path / "plan", segments=2)
    return tmp_path / "plan"


def rewritten(folder: Path, model: onnx.ModelProto) -> Plan:
    """Put another first segment into a plan, digest and all: an insider's work."""
    file = folder / "segment-0.onnx"
    file.write_bytes(model.SerializeToString())
    document = json.loads((folder / PLAN_FILE).read_text())
    entry = document["segments"][0]["files"][0]
    entry["digest"] = digest_file_bytes(file.read_bytes())
    return parse_plan(json.dumps(document).encode())


@pytest.mark.parametrize("file", ["segment-0.onnx", "segment-0.onnx.data"])
def test_a_file_changed_after_the_split_is_refused(folder: Path, file: str) -> None:
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(VerificationError, match=f"{file}: got sha256-file-v1"):
        load_segment(folder, load_plan(folder), 0)


def test_the_bytes_that_were_compared_are_the_bytes_that_run(folder: Path) -> None:
    plan = load_plan(folder)
    want = run_chain(folder, SAMPLE)["y"]
    contents = {
        entry.path: (folder / entry.path).read_bytes()
        for entry in plan.segments[0].files
    }
    # Swapped on disk between the check and the load: memory is what counts.
    (folder / "segment-0.onnx.data").write_bytes(bytes(128 * 128 * 4))
    made = open_segment(plan, 0, contents).run({"x": SAMPLE["x"]})
    rest = load_segment(folder, plan, 1).run(made)
    assert rest["y"].tobytes() == want.tobytes()


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "/etc/hostname", "other.data", "*/_ORT_MEM_ADDR_/*", ""],
)
def test_a_segment_that_names_another_file_is_refused(
    folder: Path, location: str
) -> None:
    (folder / "other.data").write_bytes(bytes(1 << 17))
    (folder.parent / "secret.bin").write_bytes(bytes(1 << 17))
    model = onnx.load(folder / "segment-0.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    plan = rewritten(folder, model)
    with pytest.raises(VerificationError, match="which the plan does not list"):
        load_segment(folder, plan, 0)


def _as_constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto()
    tensor.CopyFrom(model.graph.initializer[0])
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    model.graph.node.insert(0, node)


def _as_body(model: onnx.ModelProto) -> None:
    body = onnx.GraphProto(name="b")
    body.initializer.add().CopyFrom(model.graph.initializer[0])
    node = model.graph.node.add(op_type="If")
    node.attribute.add(name="g", type=onnx.AttributeProto.GRAPH).g.CopyFrom(body)


def _in_function(model: onnx.ModelProto) -> None:
    _as_constant(model)
    node = model.graph.node.pop(0)
    model.functions.add(name="f", domain="d").node.add().CopyFrom(node)


@pytest.mark.parametrize("hide", [_as_constant, _as_body, _in_function])
def test_external_data_inside_nodes_are_refused(folder: Path, hide: Any) -> None:
    model = onnx.load(folder / "segment-0.onnx", load_external_data=False)
    hide(model)
    plan = rewritten(folder, model)
    with pytest.raises(VerificationError, match="a tensor inside a node names a file"):
        load_segment(folder, plan, 0)


def test_a_segment_that_is_not_the_described_one_is_refused(folder: Path) -> None:
    model = onnx.load(folder / "segment-0.onnx", load_external_data=False)
    model.graph.node[0].output[0] = model.graph.output[0].name = "elsewhere"
    plan = rewritten(folder, model)
    with pytest.raises(MalformedInputError, match=r"segment-0\.onnx outputs: got"):
        load_segment(folder, plan, 0)


@pytest.mark.parametrize("data", [b"", b"not onnx", b"\x08\x08", b"\xff" * 64])
def test_bytes_that_are_no_model_are_refused(
    folder: Path, tmp_path: Path, data: bytes
) -> None:
    (folder / "segment-0.onnx").write_bytes(data)
    document = json.loads((folder / PLAN_FILE).read_text())
    document["segments"][0]["files"][0]["digest"] = digest_file_bytes(data)
    plan = parse_plan(json.dumps(document).encode())
    with pytest.raises(MalformedInputError, match=r"segment-0\.onnx: is not ONNX"):
        load_segment(folder, plan, 0)
    (tmp_path / "bad.onnx").write_bytes(data)
    with pytest.raises(MalformedInputError, match="is not ONNX"):
        split_onnx(tmp_path / "bad.onnx", tmp_path / "out", segments=1)


def test_a_segment_is_read_as_onnx_whatever_its_first_bytes(folder: Path) -> None:
    # "ORTM" from the fifth byte on is how ONNX Runtime knows its own format.
    model = onnx.load(folder / "segment-0.onnx", load_external_data=False)
    model.producer_name = "ORTM"
    plan = rewritten(folder, model)
    assert (folder / "segment-0.onnx").read_bytes()[4:8] == b"ORTM"
    assert load_segment(folder, plan, 0).run(SAMPLE)


def test_contents_must_be_the_listed_files(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="segment 0 files: got"):
        open_segment(load_plan(folder), 0, {})
    with pytest.raises(ConfigurationError, match="segment: got 2, the plan has 0 to 1"):
        load_segment(folder, load_plan(folder), 2)


def test_another_version_of_the_runtime_is_refused(folder: Path) -> None:
    document = json.loads((folder / PLAN_FILE).read_text())
    document["runtime"]["version"] = "==1.2.3"
    plan = parse_plan(json.dumps(document).encode())
    version = onnxruntime.__version__
    with pytest.raises(
        ConfigurationError, match=f"onnxruntime: got {version}, the plan wants ==1.2.3"
    ):
        require_runtime(plan)
    with pytest.raises(ConfigurationError, match=r"the plan wants ==1\.2\.3"):
        load_segment(folder, plan, 0)


def test_inputs_that_the_plan_does_not_promise_are_refused(folder: Path) -> None:
    chain = load_chain(folder)
    for wrong, match in (
        ({}, "tensors: got"),
        ({"x": SAMPLE["x"].astype(np.float64)}, "dtype: got float64, want float32"),
        ({"x": SAMPLE["x"][:, :5]}, "shape: got"),
        ({"x": np.full((1, 128), np.nan, np.float32)}, "holds NaN or infinity"),
        ({**SAMPLE, "more": SAMPLE["x"]}, "tensors: got"),
    ):
        with pytest.raises(MalformedInputError, match=match):
            chain.run(wrong)


def test_values_that_the_runtime_refuses_are_the_callers_error(
    tmp_path: Path,
) -> None:
    path = graphs.save(graphs.lookup(), tmp_path)
    split_onnx(path, tmp_path / "plan", segments=2)
    with pytest.raises(MalformedInputError, match=r"segment \d: onnxruntime refused"):
        run_chain(tmp_path / "plan", {"ids": np.full((1, 2), 99, np.int32)})


def test_tensors_that_are_not_aligned_run(folder: Path) -> None:
    array = SAMPLE["x"]
    shifted = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(np.float32)
    shifted = shifted.reshape(array.shape)
    assert not shifted.flags.aligned
    want = run_chain(folder, SAMPLE)["y"]
    for odd in (shifted, np.asfortranarray(array)):
        assert run_chain(folder, {"x": odd})["y"].tobytes() == want.tobytes()


def test_an_earlier_plan_is_replaced_whole(tmp_path: Path) -> None:
    path = wide(tmp_path)
    split_onnx(path, tmp_path / "plan", segments=3)
    plan = split_onnx(path, tmp_path / "plan", segments=2)
    assert load_plan(tmp_path / "plan") == plan
    names = {file.name for file in (tmp_path / "plan").iterdir()}
    assert names == {
        PLAN_FILE,
        *(entry.path for segment in plan.segments for entry in segment.files),
    }


def test_an_empty_folder_is_filled_and_another_is_left_alone(tmp_path: Path) -> None:
    path = wide(tmp_path)
    (tmp_path / "empty").mkdir()
    split_onnx(path, tmp_path / "empty", segments=2)
    assert (tmp_path / "empty" / PLAN_FILE).exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"holds thesis\.txt, which is"):
        split_onnx(path, tmp_path / "used", segments=2)
    (tmp_path / "empty" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"holds thesis\.txt, which is"):
        split_onnx(path, tmp_path / "empty", segments=2)
    with pytest.raises(ConfigurationError, match="exists and is not a folder"):
        split_onnx(path, path, segments=2)


def test_an_interrupted_split_leaves_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wide(tmp_path)
    split_onnx(path, tmp_path / "plan", segments=3)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        split_onnx(path, tmp_path / "plan", segments=2)
    assert not (tmp_path / "plan" / PLAN_FILE).exists()
    # Nothing is left beside it either.
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "weights.bin", "plan"}
