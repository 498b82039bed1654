"""Altered segments: what a cheat computes has the form of what it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from onnx import helper as make

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.split import inline_segment, inlining, split_onnx
from bentoml_secure.split.alterations import (
    ALTERATIONS,
    NotApplicableError,
    alter,
)
from bentoml_secure.split.honest_runs import contents_of
from bentoml_secure.split.runtime import GraphLevel, session_options
from bentoml_secure.split.trial import distance
from bentoml_secure.tensors import Array
from tests import models
from tests.unit.split.split_graphs import chain, model, value, weight

NETWORKS = ("mlp", "cnn", "gpt")
# A tenth of the smallest that was measured on them.
LEAST = {
    "fp16": 3e-5,
    "bf16": 3e-4,
    "int8": 9e-4,
    "int4": 1e-2,
    "one-weight": 2e-4,
    "skipped-layer": 0.09,
    "scaled": 1e-3,
}


def outputs_of(made: ModelProto, inputs: dict[str, Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(
        made.SerializeToString(),
        session_options(1, GraphLevel.EXTENDED),
        providers=["CPUExecutionProvider"],
    )
    found: list[Array] = session.run(None, inputs)
    return found


def weights_of(made: ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}


def differing(left: ModelProto, right: ModelProto) -> list[str]:
    before, after = weights_of(left), weights_of(right)
    return [name for name in before if not np.array_equal(before[name], after[name])]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[ModelProto, dict[str, Array]]:
    name: str = request.param
    return onnx.load(models.exported(name)), models.sample(name)


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_network_answers_in_the_same_form_and_otherwise(
    name: str, network: tuple[ModelProto, dict[str, Array]]
) -> None:
    honest, inputs = network
    before = honest.SerializeToString(deterministic=True)
    altered = alter(name, honest)
    assert honest.SerializeToString(deterministic=True) == before
    for side in ("input", "output"):
        assert list(getattr(altered.graph, side)) == list(getattr(honest.graph, side))
    onnx.checker.check_model(altered)
    (want,), (got,) = outputs_of(honest, inputs), outputs_of(altered, inputs)
    assert LEAST[name] < distance(want, got) < 100


def test_every_alteration_is_one_of_those_measured() -> None:
    assert LEAST.keys() == ALTERATIONS.keys()


def test_alterations_are_the_same_each_time() -> None:
    honest = onnx.load(models.exported("mlp"))
    for name in ALTERATIONS:
        first, second = (alter(name, honest).SerializeToString() for _ in range(2))
        assert first == second


def test_formats_are_those_of_other_libraries() -> None:
    honest = chain(4)
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}
    for name, kind in wanted.items():
        after = weights_of(alter(name, honest))
        for key, array in weights_of(honest).items():
            rounded = torch.tensor(array).to(kind).float()
            assert np.array_equal(after[key], rounded.numpy())


def test_float16_keeps_large_weights_finite() -> None:
    large = numpy_helper.from_array(np.array([1e30, -1e30, 1.0], np.float32), "w")
    nodes = [make.make_node("Add", ["x", "w"], ["y"])]
    honest = model(nodes, [value("x", [3])], [value("y", [3])], [large])
    assert weights_of(alter("fp16", honest))["w"].tolist() == [65504, -65504, 1]


@pytest.mark.parametrize(
    ("node", "axis"),
    [
        (make.make_node("MatMul", ["x", "w"], ["y"]), 1),
        (make.make_node("Gemm", ["x", "w"], ["y"]), 1),
        (make.make_node("Gemm", ["x", "w"], ["y"], transB=1), 0),
    ],
)
def test_quantisation_is_per_output_channel(node: onnx.NodeProto, axis: int) -> None:
    array = np.array([[1.0, 100.0], [0.3, 70.0]], np.float32)
    honest = model(
        [node],
        [value("x", ["n", 2])],
        [value("y", ["n", 2])],
        [numpy_helper.from_array(array, "w")],
    )
    got = weights_of(alter("int4", honest))["w"]
    step = np.abs(array).max(axis=1 - axis, keepdims=True) / 7
    assert np.allclose(got, np.round(array / step) * step)
    assert not np.array_equal(got, array)


def test_biases_are_not_quantised() -> None:
    honest = onnx.load(models.exported("mlp"))
    changed = differing(honest, alter("int8", honest))
    assert changed == [name for name in weights_of(honest) if "weight" in name]


def test_one_weight_is_one_element_of_the_last_bias() -> None:
    honest = onnx.load(models.exported("mlp"))
    altered = alter("one-weight", honest)
    assert differing(honest, altered) == ["layers.4.bias"]
    change = (
        (weights_of(altered)["layers.4.bias"]) - (weights_of(honest)["layers.4.bias"])
    )
    assert np.count_nonzero(change) == 1
    assert change.max() == pytest.approx(0.01)


def test_one_weight_without_a_bias_is_in_the_last_matrix() -> None:
    honest = chain(4)
    assert differing(honest, alter("one-weight", honest)) == ["w2"]


def constant_of(name: str, array: Array) -> onnx.NodeProto:
    tensor = numpy_helper.from_array(array)
    return make.make_node("Constant", [], [name], value=tensor)


def test_constant_nodes_are_weights_too() -> None:
    array = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    nodes = [constant_of("w", array), make.make_node("Add", ["x", "w"], ["y"])]
    honest = model(nodes, [value("x")], [value("y")])
    altered = alter("fp16", honest)
    assert altered.graph.node[0] != honest.graph.node[0]
    assert (
        numpy_helper.to_array(altered.graph.node[0].attribute[0].t).tolist()
        == array.astype(np.float16).astype(np.float32).tolist()
    )


def test_the_largest_residual_block_is_skipped() -> None:
    honest = model(
        [
            make.make_node("MatMul", ["x", "a"], ["inner"]),
            make.make_node("Relu", ["inner"], ["branch"]),
            make.make_node("Add", ["x", "branch"], ["first"]),
            make.make_node("Relu", ["first"], ["small"]),
            make.make_node("Add", ["small", "first"], ["y"]),
        ],
        [value("x")],
        [value("y")],
        [weight("a")],
    )
    altered = alter("skipped-layer", honest)
    (node,) = (n for n in altered.graph.node if n.output[0] == "first")
    assert (node.op_type, list(node.input)) == ("Identity", ["x"])


def test_a_mask_that_is_added_twice_is_no_residual() -> None:
    # By the second time the values were made from the mask too.
    honest = model(
        [
            make.make_node("Add", ["x", "mask"], ["once"]),
            make.make_node("MatMul", ["once", "a"], ["product"]),
            make.make_node("Add", ["product", "mask"], ["twice"]),
            make.make_node("Relu", ["twice"], ["y"]),
        ],
        [value("x"), value("mask", ["n", 1])],
        [value("y")],
        [weight("a")],
    )
    altered = alter("skipped-layer", honest)
    assert [node.op_type for node in altered.graph.node] == [
        "Add",
        "Identity",
        "Add",
        "Relu",
    ]


def test_an_addition_of_unrelated_values_is_no_residual() -> None:
    honest = model(
        [
            make.make_node("MatMul", ["x", "a"], ["left"]),
            make.make_node("MatMul", ["x", "b"], ["right"]),
            make.make_node("Add", ["left", "right"], ["y"]),
        ],
        [value("x", ["n", 4])],
        [value("y", ["n", 3])],
        [weight("a", 4, 3), weight("b", 4, 3)],
    )
    with pytest.raises(NotApplicableError, match="no layer of the segment"):
        alter("skipped-layer", honest)


@pytest.mark.parametrize(
    ("operation", "attributes", "skipped"),
    [
        ("Conv", {"pads": [1, 1, 1, 1]}, True),
        ("Conv", {"pads": [0, 0, 0, 0]}, False),
        ("Conv", {"pads": [1, 1, 1, 1], "strides": [2, 2]}, False),
        ("Conv", {"pads": [2, 2, 2, 2], "dilations": [2, 2]}, True),
        ("Conv", {"auto_pad": "SAME_UPPER"}, True),
    ],
)
def test_a_convolution_is_skipped_where_it_keeps_the_size(
    operation: str, attributes: dict[str, object], skipped: bool
) -> None:
    honest = model(
        [make.make_node(operation, ["x", "w"], ["y"], **attributes)],
        [value("x", [1, 4, 8, 8])],
        [value("y", None)],
        [weight("w", 4, 4, 3, 3)],
    )
    if skipped:
        assert alter("skipped-layer", honest).graph.node[0].op_type == "Identity"
    else:
        with pytest.raises(NotApplicableError, match="no layer of the segment"):
            alter("skipped-layer", honest)


def test_an_output_that_is_read_inside_too_is_scaled_once() -> None:
    honest = model(
        [
            make.make_node("MatMul", ["x", "a"], ["y"]),
            make.make_node("Relu", ["y"], ["z"]),
        ],
        [value("x")],
        [value("y"), value("z")],
        [weight("a")],
    )
    inputs = {"x": np.ones((2, 4), np.float32)}
    want, got = outputs_of(honest, inputs), outputs_of(alter("scaled", honest), inputs)
    for before, after in zip(want, got, strict=True):
        assert np.allclose(after, before * 1.01, rtol=1e-6)


def test_an_output_that_a_body_reads_is_scaled_once() -> None:
    body = make.make_graph(
        [make.make_node("Relu", ["y"], ["inside"])], "body", [], [value("inside")]
    )
    honest = model(
        [
            make.make_node("MatMul", ["x", "a"], ["y"]),
            make.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body),
        ],
        [value("x"), value("c", [], TensorProto.BOOL)],
        [value("y"), value("z")],
        [weight("a")],
    )
    inputs = {"x": np.ones((2, 4), np.float32), "c": np.array(True)}
    want, got = outputs_of(honest, inputs), outputs_of(alter("scaled", honest), inputs)
    assert np.allclose(got[1], want[1] * 1.01, rtol=1e-6)


def only_integers() -> ModelProto:
    kind = TensorProto.INT64
    node = make.make_node("Abs", ["x"], ["y"])
    return model([node], [value("x", ["n"], kind)], [value("y", ["n"], kind)])


def rounded_already() -> ModelProto:
    return alter("fp16", chain(1))


@pytest.mark.parametrize(
    ("name", "build", "words"),
    [
        ("scaled", only_integers, "no floating-point output"),
        ("fp16", only_integers, "has no weights"),
        ("one-weight", only_integers, "has no weights"),
        ("fp16", rounded_already, "no weight of the segment is changed"),
    ],
)
def test_what_a_segment_has_not_is_said(
    name: str, build: Callable[[], ModelProto], words: str
) -> None:
    with pytest.raises(NotApplicableError, match=words):
        alter(name, build())


def test_a_name_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="want one of fp16"):
        alter("fp8", chain(1))


@pytest.mark.parametrize("name", ["fp16", "int4", "one-weight"])
def test_a_weight_that_is_not_what_it_says_is_malformed(name: str) -> None:
    honest = chain(1)
    honest.graph.initializer[0].raw_data += b"more"
    with pytest.raises(MalformedInputError, match=f"{name}: a weight is not in order"):
        alter(name, honest)


def test_segments_are_taken_whole(tmp_path: Path) -> None:
    path = models.exported("mlp")
    plan = split_onnx(path, tmp_path / "plan", segments=1, inline_bytes=64)
    (segment,) = plan.segments
    contents = contents_of(tmp_path / "plan", segment)
    assert len(contents) == 2
    whole = inline_segment(segment, contents)
    inputs = models.sample("mlp")
    want, got = outputs_of(onnx.load(path), inputs), outputs_of(whole, inputs)
    assert distance(want[0], got[0]) == 0
    assert differing(whole, alter("int8", whole))
    (data,) = {path: data for path, data in contents.items() if path != segment.file}
    contents[data] = contents[data][:-1]
    with pytest.raises(MalformedInputError, match="got bytes"):
        inline_segment(segment, contents)
    with pytest.raises(VerificationError, match="which the plan does not list"):
        inline_segment(segment, {segment.file: contents[segment.file]})


def test_a_segment_that_is_no_one_message_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = split_onnx(
        models.exported("mlp"), tmp_path / "plan", segments=1, inline_bytes=64
    )
    contents = contents_of(tmp_path / "plan", plan.segments[0])
    monkeypatch.setattr(inlining, "MAX_PROTO_BYTES", 5000)
    with pytest.raises(MalformedInputError, match="more than one ONNX message") as e:
        inline_segment(plan.segments[0], contents)
    assert "more segments" in e.value.remedy


def test_external_data_are_refused() -> None:
    honest = chain(1)
    tensor = honest.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="w.data")
    with pytest.raises(ConfigurationError, match="is external data"):
        alter("scaled", honest)
