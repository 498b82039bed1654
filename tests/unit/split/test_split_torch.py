"""Segments on torch: the same answers, and nothing run that it was not told of."""

from __future__ import annotations

import dataclasses
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto
from onnx import helper as make

from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    MissingDependencyError,
    VerificationError,
)
from bentoml_secure.split import (
    GraphLevel,
    LoadedSegment,
    PermittedRuntime,
    Plan,
    Runtime,
    RuntimeChoice,
    Segment,
    SegmentFile,
    SplitWarning,
    load_chain,
    load_plan,
    load_segment,
    open_segment,
    require_runtime,
    split_onnx,
)
from bentoml_secure.split.runtime import installed_version
from bentoml_secure.split.trial import distance
from bentoml_secure.tensors import TensorSpec
from tests import models
from tests.unit.split.split_graphs import chain, model, value, weight

TORCH = RuntimeChoice.parse("torch")
BASIC = RuntimeChoice.parse("onnxruntime:BASIC")
PERMITTED = (
    PermittedRuntime(name="torch", version=">=2", graph_level=None),
    PermittedRuntime(name="onnxruntime", version=">=1", graph_level=GraphLevel.BASIC),
)


def permitting(plan: Plan, permitted: tuple[PermittedRuntime, ...] = PERMITTED) -> Plan:
    runtime = dataclasses.replace(plan.runtime, permitted=permitted)
    return dataclasses.replace(plan, runtime=runtime)


def plan_of(made: ModelProto) -> tuple[Plan, dict[str, bytes]]:
    data = bytes(made.SerializeToString())
    file = "segment-0.onnx"
    (given,) = (_spec(one) for one in made.graph.input)
    outputs = tuple(_spec(one) for one in made.graph.output)
    segment = Segment(
        file=file,
        files=(SegmentFile(path=file, digest=digest_file_bytes(data)),),
        inputs=(given,),
        outputs=outputs,
        tolerance=0.0,
    )
    plan = Plan(
        model_name="made",
        model_digest=f"sha256-jcs-v1:{'0' * 64}",  # type: ignore[arg-type]
        inputs=(given,),
        outputs=outputs,
        runtime=Runtime(version=">=1", permitted=PERMITTED),
        segments=(segment,),
    )
    return plan, {file: data}


def _spec(one: onnx.ValueInfoProto) -> TensorSpec:
    kind = one.type.tensor_type
    dtype = make.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
    return TensorSpec(name=one.name, dtype=dtype, shape=shape)


def opened(made: ModelProto) -> LoadedSegment:
    plan, contents = plan_of(made)
    return open_segment(plan, 0, contents, threads=1, choice=TORCH)


@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt"])
@pytest.mark.filterwarnings("ignore::bentoml_secure.split.SplitWarning")
def test_networks_answer_on_torch_as_on_onnx_runtime(name: str, tmp_path: Path) -> None:
    assert issubclass(SplitWarning, UserWarning)
    inputs = models.sample(name)
    folder = tmp_path / "plan"
    plan = permitting(split_onnx(models.exported(name), folder, segments=2))
    want = load_chain(folder, threads=1).run_all(inputs)
    for index, segment in enumerate(plan.segments):
        feed = {spec.name: want[spec.name] for spec in segment.inputs}
        for choice in (TORCH, BASIC):
            loaded = load_segment(folder, plan, index, threads=1, choice=choice)
            got = loaded.run(feed)
            for key, array in got.items():
                assert distance(array, want[key]) < 2e-5


def test_a_runtime_that_the_plan_does_not_permit_does_not_run(tmp_path: Path) -> None:
    split_onnx(models.exported("mlp"), tmp_path / "plan", segments=1)
    plan = load_plan(tmp_path / "plan")
    for choice in (TORCH, BASIC):
        with pytest.raises(ConfigurationError, match=f"got {choice}, which the plan"):
            load_segment(tmp_path / "plan", plan, 0, choice=choice)
        with pytest.raises(ConfigurationError, match="does not permit") as caught:
            load_chain(tmp_path / "plan", choice=choice)
        assert "calibrate" in caught.value.remedy


def test_a_version_that_the_plan_does_not_permit_does_not_run() -> None:
    plan, _ = plan_of(chain(1))
    narrow = PermittedRuntime(name="torch", version="<2", graph_level=None)
    with pytest.raises(ConfigurationError, match=r"torch: got 2.*, the plan wants <2"):
        require_runtime(permitting(plan, (narrow,)), TORCH)
    require_runtime(permitting(plan, (narrow, PERMITTED[0])), TORCH)


def test_torch_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(MissingDependencyError, match="torch is not installed") as e:
        installed_version(TORCH)
    assert "bentoml-secure[torch]" in e.value.remedy


def test_what_torch_is_not_told_of_is_refused_by_name() -> None:
    made = model(
        [
            make.make_node("Det", ["x"], ["d"]),
            make.make_node("Scaler", ["d"], ["s"], domain="ai.onnx.ml"),
            make.make_node("Gelu", ["s"], ["y"], tempo=1),
            make.make_node("LayerNormalization", ["y", "y"], ["z", "m"], stash_type=10),
        ],
        [value("x")],
        [value("y")],
        domains=["ai.onnx.ml"],
    )
    with pytest.raises(ConfigurationError, match="torch is not told") as caught:
        opened(made)
    for name in (
        "Det",
        "Gelu with tempo",
        "LayerNormalization with 2 outputs",
        "LayerNormalization with stash_type",
        "ai.onnx.ml:Scaler",
    ):
        assert name in str(caught.value)
    assert "onnxruntime" in caught.value.remedy


@pytest.mark.parametrize("opset", [12, 24])
def test_operator_sets_with_other_meanings_are_refused(opset: int) -> None:
    made = chain(1)
    made.opset_import[0].version = opset
    with pytest.raises(ConfigurationError, match=f"operator set {opset}"):
        opened(made)


def test_sparse_weights_are_refused() -> None:
    made = chain(1)
    made.graph.sparse_initializer.add().values.CopyFrom(weight("s", 2))
    with pytest.raises(ConfigurationError, match="sparse weights"):
        opened(made)


def test_a_segment_that_is_not_the_one_described_is_refused() -> None:
    plan, contents = plan_of(chain(1))
    segment = plan.segments[0]
    for side in ("inputs", "outputs"):
        spec = dataclasses.replace(getattr(segment, side)[0], dtype="float64")
        specs: dict[str, Any] = {side: (spec,)}
        lied = dataclasses.replace(segment, **specs)
        changed = dataclasses.replace(plan, segments=(lied,), **specs)
        with pytest.raises(MalformedInputError, match=f"{side}: got .*float32"):
            open_segment(changed, 0, contents, choice=TORCH)


def test_files_that_the_plan_does_not_list_are_refused() -> None:
    made = chain(1)
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    with pytest.raises(VerificationError, match="which the plan does not list"):
        opened(made)


def test_external_data_are_read_from_memory(tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    path = models.exported("mlp")
    plan = permitting(split_onnx(path, folder, segments=1, inline_bytes=64))
    assert len(plan.segments[0].files) == 2
    inputs = models.sample("mlp")
    want = load_chain(folder).run(inputs)["logits"]
    got = load_segment(folder, plan, 0, choice=TORCH).run(inputs)["logits"]
    assert distance(got, want) < 2e-5


def reshaping() -> ModelProto:
    sizes = onnx.numpy_helper.from_array(np.array([3, 4]), "sizes")
    node = make.make_node("Reshape", ["x", "sizes"], ["y"])
    return model([node], [value("x")], [value("y")], [sizes])


def gathering() -> ModelProto:
    node = make.make_node("Gather", ["w", "x"], ["y"])
    return model(
        [node],
        [value("x", ["n"], TensorProto.INT64)],
        [value("y", ["n", 4])],
        [weight("w")],
    )


def dividing() -> ModelProto:
    kind = TensorProto.INT64
    ones = onnx.numpy_helper.from_array(np.array([0]), "zero")
    node = make.make_node("Div", ["x", "zero"], ["y"])
    return model([node], [value("x", ["n"], kind)], [value("y", ["n"], kind)], [ones])


def splitting() -> ModelProto:
    node = make.make_node("Split", ["x"], ["y", "z"], axis=0, num_outputs=2)
    return model(
        [node], [value("x")], [value("y", ["a", 4]), value("z", ["b", 4])], opset=18
    )


def uneven() -> ModelProto:
    node = make.make_node("MatMul", ["x", "w"], ["y"])
    return model([node], [value("x", ["n", "m"])], [value("y")], [weight("w")])


@pytest.mark.parametrize(
    ("made", "given"),
    [
        (reshaping(), np.zeros((1, 4), np.float32)),
        (gathering(), np.array([9])),
        (dividing(), np.array([1])),
        (splitting(), np.zeros((1, 4), np.float32)),
        (uneven(), np.zeros((1, 3), np.float32)),
    ],
    ids=["reshape", "gather", "divide", "split", "matmul"],
)
def test_values_that_torch_refuses_are_malformed_inputs(
    made: ModelProto, given: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    loaded = opened(made)
    with pytest.raises(MalformedInputError, match="torch refused its inputs, at"):
        loaded.run_unchecked({"x": given})


def test_weights_of_a_type_that_torch_has_not_are_malformed() -> None:
    made = chain(1)
    odd = made.graph.initializer.add()
    odd.CopyFrom(make.make_tensor("odd", TensorProto.STRING, [1], [b"words"]))
    with pytest.raises(MalformedInputError, match="torch cannot load it"):
        opened(made)


def test_inputs_are_not_written_to_and_may_be_read_only() -> None:
    loaded = opened(chain(2))
    given = np.ones((2, 4), np.float32)
    given.flags.writeable = False
    first = loaded.run({"x": given})["y"]
    assert np.array_equal(first, loaded.run({"x": given})["y"])
    assert (given == 1).all()


def test_threads_are_those_that_were_asked_for() -> None:
    before = torch.get_num_threads()
    plan, contents = plan_of(chain(2))
    try:
        for threads in (2, 1):
            loaded = open_segment(plan, 0, contents, threads=threads, choice=TORCH)
            loaded.run({"x": np.ones((2, 4), np.float32)})
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
