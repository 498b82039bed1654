"""Freivalds' check on segments of real plans, split from quantised ONNX models."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bentoml_secure.audit.freivalds import FreivaldsCheck, FreivaldsReferee
from bentoml_secure.audit.recompute import Served, Verdict, recompute
from bentoml_secure.consensus.asks import Answer
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.consensus.tally import Vote
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.signing import Envelope, SigningKey, sign
from bentoml_secure.split import split_onnx
from bentoml_secure.split.integer_layer import IntegerLayer, read_integer_layer
from bentoml_secure.split.plan import Plan
from bentoml_secure.split.runtime import LoadedSegment, load_segment
from bentoml_secure.tensors import Array, commit

RNG = np.random.default_rng(20260601)
FEATURES, HIDDEN, CLASSES = 24, 40, 8


def int8(*shape: int) -> Array:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def save(
    path: Path,
    nodes: list[Any],
    constants: dict[str, Array],
    *,
    given: tuple[int, list[Any]] = (TensorProto.UINT8, ["batch", FEATURES]),
    made: tuple[str, int, list[Any]] = ("y", TensorProto.INT32, ["batch", CLASSES]),
    external: bool = False,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", *given)],
        [helper.make_tensor_value_info(*made)],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save_model(
        model, path, save_as_external_data=external, size_threshold=0, location="w.data"
    )
    return path


def quantised_mlp(path: Path) -> Path:
    """As quantising tools write it: two integer products, a requantisation between."""
    constants = {
        "w1": int8(FEATURES, HIDDEN),
        "w2": int8(HIDDEN, CLASSES),
        "zero1": np.array(131, np.uint8),
        "zero2": np.array(7, np.uint8),
        "scale": np.array(1e-4, np.float32),
        "step": np.array(0.02, np.float32),
    }
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w1", "zero1"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["bent"]),
        helper.make_node("QuantizeLinear", ["bent", "step", "zero2"], ["narrow"]),
        helper.make_node("MatMulInteger", ["narrow", "w2", "zero2"], ["y"]),
    ]
    return save(path, nodes, constants)


def contents(folder: Path, plan: Plan, index: int) -> dict[str, bytes]:
    files = plan.segments[index].files
    return {entry.path: (folder / entry.path).read_bytes() for entry in files}


def read(folder: Path, plan: Plan, index: int = 0) -> IntegerLayer:
    return read_integer_layer(plan.segments[index], contents(folder, plan, index))


def split(model: Path, *cuts: str) -> tuple[Path, Plan]:
    folder = model.parent / "plan"
    return folder, split_onnx(model, folder, **_asked(cuts))


def _asked(cuts: tuple[str, ...]) -> dict[str, Any]:
    return {"cuts": list(cuts)} if cuts else {"segments": 1}


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    model = quantised_mlp(tmp_path_factory.mktemp("mlp") / "mlp.onnx")
    return split(model, "sums", "narrow")


def test_the_linear_segments_of_a_quantised_model_are_recognised(
    mlp: tuple[Path, Plan],
) -> None:
    folder, plan = mlp
    assert len(plan.segments) == 3
    first, last = read(folder, plan, 0), read(folder, plan, 2)
    assert (first.given, first.made, first.zero_point) == ("x", "sums", 131)
    assert (last.given, last.made, last.zero_point) == ("narrow", "y", 7)
    assert last.weights.shape == (HIDDEN, CLASSES)
    with pytest.raises(ConfigurationError, match="it is not one node"):
        read(folder, plan, 1)


def run_chain(mlp: tuple[Path, Plan], x: Array) -> list[dict[str, Array]]:
    """Return what stands at each boundary, as ONNX Runtime makes it."""
    folder, plan = mlp
    boundary = {"x": x}
    passed = [boundary]
    for index in range(len(plan.segments)):
        boundary = load_segment(folder, plan, index).run(boundary)
        passed.append(boundary)
    return passed


def test_what_the_runtime_makes_passes_and_what_it_does_not_is_caught(
    mlp: tuple[Path, Plan],
) -> None:
    x = RNG.integers(0, 256, (6, FEATURES)).astype(np.uint8)
    passed = run_chain(mlp, x)
    for index in (0, 2):
        layer = read(*mlp, index)
        check = FreivaldsCheck(layer, draw=secrets.token_bytes)
        given, made = passed[index][layer.given], passed[index + 1][layer.made]
        check.require(given, made)
        for row, column in ((0, 0), (5, 7), (3, 2)):
            lie = made.copy()
            lie[row, column] += 1
            with pytest.raises(VerificationError, match=f"the first: {row}"):
                check.require(given, lie)


def test_a_referee_of_a_real_segment(mlp: tuple[Path, Plan]) -> None:
    x = RNG.integers(0, 256, (6, FEATURES)).astype(np.uint8)
    passed = run_chain(mlp, x)
    segment: LoadedSegment = load_segment(*mlp, 0)
    referee = FreivaldsReferee(read(*mlp), segment.run, draw=secrets.token_bytes)
    assert referee.answer(passed[0], passed[1]) is passed[1]
    lie = {"sums": passed[1]["sums"] - 1}
    answered = referee.answer(passed[0], lie)
    np.testing.assert_array_equal(answered["sums"], passed[1]["sums"])


@dataclass(frozen=True)
class MadeHere:
    tensors: Mapping[str, Array]
    envelope: Envelope = field(
        default_factory=lambda: sign(SigningKey.generate(), "t", {})
    )


@pytest.mark.parametrize(
    ("lie", "verdict"), [(0, Verdict.AGREES), (1, Verdict.DIFFERS)]
)
async def test_an_audit_by_checks_says_what_one_by_recomputing_says(
    mlp: tuple[Path, Plan], lie: int, verdict: Verdict
) -> None:
    """The referee's answer goes into ``recompute`` as any other's does."""
    x = RNG.integers(0, 256, (6, FEATURES)).astype(np.uint8)
    passed, salts = run_chain(mlp, x), {"sums": bytes(32)}
    outputs = {"sums": passed[1]["sums"] + lie}
    segment = load_segment(*mlp, 0)
    referee = FreivaldsReferee(read(*mlp), segment.run, draw=secrets.token_bytes)
    served = Served(
        infer=0,
        segment=0,
        auditor="referee",
        inputs=passed[0],
        outputs=outputs,
        commitments=commit(outputs, salts),
        tolerance=0.0,
        distance=load_rule("within_tolerance").distance,
    )

    async def ask(given: Served) -> Answer[MadeHere]:
        """Answer as the referee does, and commit to it."""
        made = referee.answer(given.inputs, given.outputs)
        committed = tuple(sorted(commit(made, salts).items()))
        vote = Vote(replica=given.auditor, commitments=committed)
        return Answer(vote=vote, value=MadeHere(made))

    (found,) = await recompute([served], ask, deadline_seconds=5)
    assert found.verdict is verdict
    assert (found.distance == 0) is (lie == 0)


FLOATS: dict[str, Any] = {
    "given": (TensorProto.FLOAT, ["batch", FEATURES]),
    "made": ("y", TensorProto.FLOAT, ["batch", CLASSES]),
}
WHOLE = {"w": int8(FEATURES, CLASSES).astype(np.float32)}
BIAS = {"b": int8(CLASSES).astype(np.float32)}
GEMM = helper.make_node("Gemm", ["x", "w", "b"], ["y"])


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), WHOLE),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), WHOLE),
        (GEMM, WHOLE | BIAS),
        (
            helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
            {"w": WHOLE["w"].T.copy()} | BIAS,
        ),
    ],
    ids=["MatMul", "Gemm", "Gemm with a bias", "Gemm of the transposed"],
)
@pytest.mark.parametrize("external", [False, True])
def test_float_layers_of_whole_numbers(
    node: Any, constants: dict[str, Array], external: bool, tmp_path: Path
) -> None:
    model = save(tmp_path / "m.onnx", [node], constants, external=external, **FLOATS)
    mlp = split(model)
    x = RNG.integers(-200, 200, (5, FEATURES)).astype(np.float32)
    passed = run_chain(mlp, x)
    check = FreivaldsCheck(read(*mlp), draw=secrets.token_bytes)
    check.require(x, passed[1]["y"])
    with pytest.raises(VerificationError, match="5 of 5 rows"):
        check.require(x, passed[1]["y"] + 1)
    with pytest.raises(MalformedInputError, match="or they are rounded"):
        check.require(x * 4096, passed[1]["y"])


def test_columns_may_have_zero_points_of_their_own(tmp_path: Path) -> None:
    constants = {
        "w": int8(FEATURES, CLASSES),
        "a": np.array(9, np.uint8),
        "b": int8(CLASSES),
    }
    node = helper.make_node("MatMulInteger", ["x", "w", "a", "b"], ["y"])
    mlp = split(save(tmp_path / "m.onnx", [node], constants))
    x = RNG.integers(0, 256, (5, FEATURES)).astype(np.uint8)
    check = FreivaldsCheck(read(*mlp), draw=secrets.token_bytes)
    check.require(x, run_chain(mlp, x)[1]["y"])


MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"])


@pytest.mark.parametrize(
    ("node", "constants", "said"),
    [
        (MATMUL, {"w": WHOLE["w"] + np.float32(0.5)}, "want whole numbers"),
        (MATMUL, {"w": WHOLE["w"] * np.float32(2.0**40)}, "too large to be summed"),
        (
            helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=2.0),
            WHOLE | BIAS,
            "Gemm with factors",
        ),
        (
            GEMM,
            WHOLE | {"b": BIAS["b"] + np.float32(0.25)},
            "want whole numbers",
        ),
        (
            helper.make_node("Add", ["x", "w"], ["y"]),
            {"w": np.zeros((1, FEATURES), np.float32)},
            "'Add' is none of MatMulInteger, MatMul, Gemm",
        ),
        (
            helper.make_node("MatMul", ["w", "x"], ["y"]),
            {"w": np.ones((FEATURES, FEATURES), np.float32)},
            "not one matrix on the left",
        ),
        (
            helper.make_node("MatMul", ["x", "x"], ["y"]),
            {},
            "'x' is no initializer",
        ),
    ],
    ids=["fractions", "huge", "alpha", "bias", "another", "on the right", "twice"],
)
def test_other_segments_are_no_integer_layers(
    node: Any, constants: dict[str, Array], said: str, tmp_path: Path
) -> None:
    square: dict[str, Any] = {
        "given": (TensorProto.FLOAT, [FEATURES, FEATURES]),
        "made": ("y", TensorProto.FLOAT, None),
    }
    model = save(tmp_path / "m.onnx", [node], constants, **square)
    with pytest.raises(ConfigurationError, match=said):
        read(*split(model))


def test_sums_that_overflow_are_not_taken_for_exact(tmp_path: Path) -> None:
    wide = 70_000
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    model = save(
        tmp_path / "m.onnx",
        [node],
        {"w": np.full((wide, 1), 127, np.int8)},
        given=(TensorProto.UINT8, ["batch", wide]),
        made=("y", TensorProto.INT32, ["batch", 1]),
    )
    with pytest.raises(ConfigurationError, match="may overflow int32"):
        read(*split(model))
