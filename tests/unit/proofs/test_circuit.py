"""The graph of a segment's circuit: what it computes, and which plans have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.boundary import MAX_ACTIVATIONS, SaltForm
from bentoml_secure.proofs.circuit import Form, boundaries_of, circuit_model
from bentoml_secure.split import Plan, load_chain, load_plan, read_file, split_onnx
from bentoml_secure.tensors import Array
from tests.proof_case import FEATURES, HIDDEN, INPUT, OUTPUT, measurements, proof_plan

SALT = SaltForm(elements=6, bits=22)
SHAPES = {INPUT: (1, 4), "hidden": (1, 8), "more": (1, 8), OUTPUT: (1, 3)}


def graph_of(folder: Path, plan: Plan, forms: tuple[Form, ...], index: int) -> bytes:
    segment = plan.segments[index]
    contents = {
        file.path: read_file(folder, file.path, file.digest, max_bytes=1 << 20)
        for file in segment.files
    }
    return circuit_model(segment, contents, forms[index], forms[index + 1], SALT)


def run(graph: bytes, boundary: Array, salt: Array) -> Array:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    feed = dict(zip(names, (boundary, salt), strict=True))
    (made,) = session.run(None, feed)
    return np.asarray(made)


def split_graph(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    *,
    cut: str,
    opset: int = 17,
) -> Plan:
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "eye")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, folder / "model.onnx")
    split_onnx(folder / "model.onnx", folder / "plan", cuts=(cut,))
    return load_plan(folder / "plan")


def value(name: str, width: int = 4, kind: int = TensorProto.FLOAT) -> object:
    return helper.make_tensor_value_info(name, kind, ["batch", width])


@pytest.mark.parametrize("segments", [1, 2, 3])
def test_graphs_in_a_row_compute_what_the_plan_does_and_pass_salt_on(
    tmp_path: Path, segments: int
) -> None:
    plan = proof_plan(tmp_path / "plan", segments=segments)
    forms = boundaries_of(plan, SHAPES)
    inputs = measurements(1)
    boundary = np.concatenate([inputs[INPUT], np.full((1, 6), 7, np.float32)], 1)
    for index in range(segments):
        salt = np.arange(6, dtype=np.float32)[None] + index
        boundary = run(graph_of(tmp_path / "plan", plan, forms, index), boundary, salt)
        np.testing.assert_array_equal(boundary[:, -6:], salt)
    want = load_chain(tmp_path / "plan").run(inputs)[OUTPUT]
    np.testing.assert_allclose(boundary[:, :-6], want, atol=1e-6)


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (proof_plan(tmp_path / name) for name in ("a", "b"))
    forms = boundaries_of(first, SHAPES)
    assert boundaries_of(second, SHAPES) == forms
    for index in range(2):
        assert graph_of(tmp_path / "a", first, forms, index) == graph_of(
            tmp_path / "b", second, forms, index
        )


def test_sizes_are_fixed(tmp_path: Path) -> None:
    plan = proof_plan(tmp_path / "plan")
    graph = onnx.load_model_from_string(
        graph_of(tmp_path / "plan", plan, boundaries_of(plan, SHAPES), 0)
    ).graph
    shapes = [
        [size.dim_value for size in put.type.tensor_type.shape.dim]
        for put in (*graph.input, *graph.output)
    ]
    assert shapes == [[1, FEATURES + 6], [1, 6], [1, HIDDEN + 6]]


def test_several_tensors_and_names_that_the_graph_would_use_itself(
    tmp_path: Path,
) -> None:
    plan = split_graph(
        tmp_path,
        [
            helper.make_node("Add", ["boundary", "next_salt"], ["proof_part"]),
            helper.make_node("Mul", ["boundary", "next_salt"], ["boundary_out"]),
            helper.make_node("Sub", ["proof_part", "boundary_out"], ["proof_row"]),
        ],
        [value("boundary"), value("next_salt")],
        [value("proof_row")],
        cut="boundary_out",
    )
    shapes = dict.fromkeys(
        ("boundary", "next_salt", "proof_part", "boundary_out", "proof_row"), (1, 4)
    )
    forms = boundaries_of(plan, shapes)
    assert [tensor.name for tensor in forms[1]] == [
        spec.name for spec in plan.segments[0].outputs
    ]
    left, right = (np.array([row], np.float32) for row in ((1, 2, 3, 4), (5, 6, 7, 8)))
    salt = np.zeros((1, 6), np.float32)
    boundary = np.concatenate([left, right, salt], 1)
    for index in range(2):
        boundary = run(graph_of(tmp_path / "plan", plan, forms, index), boundary, salt)
    np.testing.assert_array_equal(boundary[:, :4], left + right - left * right)


def test_a_value_that_skips_a_segment_cannot_be_linked(tmp_path: Path) -> None:
    plan = split_graph(
        tmp_path,
        [
            helper.make_node("Relu", ["x"], ["bent"]),
            helper.make_node("Add", ["bent", "x"], ["y"]),
        ],
        [value("x")],
        [value("y")],
        cut="bent",
    )
    with pytest.raises(ConfigurationError, match=r"segment 1 inputs: .* want just"):
        boundaries_of(plan, dict.fromkeys(("x", "bent", "y"), (1, 4)))


def test_an_output_that_comes_early_cannot_be_linked(tmp_path: Path) -> None:
    plan = split_graph(
        tmp_path,
        [
            helper.make_node("MatMul", ["x", "eye"], ["early"]),
            helper.make_node("Relu", ["early"], ["y"]),
        ],
        [value("x")],
        [value("early"), value("y")],
        cut="early",
    )
    with pytest.raises(ConfigurationError, match=r"model outputs: .* want just"):
        boundaries_of(plan, dict.fromkeys(("x", "early", "y"), (1, 4)))


def test_integers_between_segments_are_refused(tmp_path: Path) -> None:
    plan = split_graph(
        tmp_path,
        [
            helper.make_node("Gather", ["eye", "ids"], ["rows"]),
            helper.make_node("Relu", ["rows"], ["y"]),
        ],
        [value("ids", 2, TensorProto.INT64)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 4])],
        cut="rows",
    )
    shapes = {"ids": (1, 2), "rows": (1, 2, 4), "y": (1, 2, 4)}
    with pytest.raises(ConfigurationError, match="'ids': got int64, want float32"):
        boundaries_of(plan, shapes)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("hidden", None), ("hidden", (1, 9)), ("hidden", (8,)), (OUTPUT, (1, 4))],
)
def test_a_shape_that_is_not_the_plans_is_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...] | None
) -> None:
    shapes: dict[str, tuple[int, ...]] = dict(SHAPES)
    del shapes[name]
    if shape is not None:
        shapes[name] = shape
    plan = proof_plan(tmp_path / "plan")
    with pytest.raises(ConfigurationError, match=f"'{name}': got shape"):
        boundaries_of(plan, shapes)


@pytest.mark.parametrize("rows", [0, MAX_ACTIVATIONS])
def test_a_boundary_has_elements_but_not_any_number(tmp_path: Path, rows: int) -> None:
    plan = proof_plan(tmp_path / "plan")
    shapes = {name: (rows, *shape[1:]) for name, shape in SHAPES.items()}
    with pytest.raises(ConfigurationError, match=r"boundary 0: got .* elements"):
        boundaries_of(plan, shapes)


def test_operators_of_an_old_version_are_refused(tmp_path: Path) -> None:
    plan = split_graph(
        tmp_path,
        [
            helper.make_node("MatMul", ["x", "eye"], ["middle"]),
            helper.make_node("Relu", ["middle"], ["y"]),
        ],
        [value("x")],
        [value("y")],
        cut="middle",
        opset=9,
    )
    forms = boundaries_of(plan, dict.fromkeys(("x", "middle", "y"), (1, 4)))
    with pytest.raises(ConfigurationError, match="operators of version 9, want 11"):
        graph_of(tmp_path / "plan", plan, forms, 0)
