"""``trials make``: known answers of a plan, made of samples."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from bentoml_secure.cli.known_answers import COUNTS
from bentoml_secure.consensus.known_answers import MAX_ANSWERS, parse_known_answers
from bentoml_secure.consensus.reputation import REQUIRED_TRIALS
from bentoml_secure.split import Plan, load_chain, split_onnx
from tests.unit.cli.conftest import Run


def split_chain(folder: Path, rows: int | str) -> Plan:
    """Split x -> a = x @ A -> y = relu(a) @ A in two."""
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "A"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 4])],
        [numpy_helper.from_array(weight, "A")],
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "m.onnx")
    return split_onnx(folder / "m.onnx", folder / "plan", cuts=["r"])


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return split_chain(tmp_path, "n")


def sample(path: Path, rows: int, seed: int = 0) -> Path:
    drawn = np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)
    np.savez(path, x=drawn)
    return path


def test_the_bounds_of_the_help_are_those_of_the_format() -> None:
    assert COUNTS == (REQUIRED_TRIALS, MAX_ANSWERS)


def test_known_answers_are_what_the_segments_make(
    run: Run, plan: Plan, tmp_path: Path
) -> None:
    samples, out = sample(tmp_path / "s.npz", 20), tmp_path / "trials"
    result = run(
        *("trials", "make", tmp_path / "plan", "--samples", samples),
        *("--inputs", "12", "--out", out),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0].startswith(
        "known answers: 12 of each of 2 segments"
    )
    assert result.stdout.splitlines()[1] == f"plan {plan.digest}"
    answers = parse_known_answers(out.read_bytes())
    assert answers.plan == plan.digest
    chain = load_chain(tmp_path / "plan", threads=1)
    for loaded, known in zip(chain.segments, answers.segments, strict=True):
        assert len(known) == 12
        for answer in known:
            for name, array in loaded.run(answer.inputs).items():
                np.testing.assert_array_equal(array, answer.outputs[name])
    assert answers.segments[0][0].inputs["x"].shape == (1, 4)
    # It holds what passes between segments.
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_rows_make_inputs_as_large_as_requests(
    run: Run, plan: Plan, tmp_path: Path
) -> None:
    files = [sample(tmp_path / f"{i}.npz", 11, seed=i) for i in range(3)]
    out = tmp_path / "trials"
    given: list[str | Path] = []
    for path in files:
        given += ["--samples", path]
    result = run(
        "trials", "make", tmp_path / "plan", "--rows", "3", "--out", out, *given
    )
    assert result.exit_code == 0, result.stderr
    (first, _) = parse_known_answers(out.read_bytes()).segments
    assert [answer.inputs["x"].shape for answer in first] == [(3, 4)] * 9


def test_a_fixed_size_takes_a_file_for_each(run: Run, tmp_path: Path) -> None:
    split_chain(tmp_path, 2)
    files = [sample(tmp_path / f"{i}.npz", 2, seed=i) for i in range(8)]
    out = tmp_path / "trials"
    given: list[str | Path] = []
    for path in files:
        given += ["--samples", path]
    result = run("trials", "make", tmp_path / "plan", "--out", out, *given)
    assert result.exit_code == 0, result.stderr
    (first, _) = parse_known_answers(out.read_bytes()).segments
    assert [answer.inputs["x"].shape for answer in first] == [(2, 4)] * 8


@pytest.mark.usefixtures("plan")
def test_the_same_input_twice_is_one(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.ones((50, 4), np.float32))
    result = run(
        *("trials", "make", tmp_path / "plan", "--samples", tmp_path / "s.npz"),
        *("--out", tmp_path / "trials"),
    )
    assert result.exit_code == 2
    assert "got 1 different inputs of the model, want 8 or more" in result.stderr
    assert not (tmp_path / "trials").exists()


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--inputs", "21"], "got 20 different inputs of the model, want 21"),
        (["--inputs", "7"], "7 is not in the range 8<=x<=1024"),
        (["--inputs", "1025"], "1025 is not in the range"),
        (["--rows", "3"], "got 6 different inputs"),
        (["--rows", "0"], "0 is not in the range"),
    ],
)
def test_too_few_and_too_many(
    run: Run, tmp_path: Path, arguments: list[str], says: str
) -> None:
    samples = sample(tmp_path / "s.npz", 20)
    result = run(
        *("trials", "make", tmp_path / "plan", "--samples", samples),
        *("--out", tmp_path / "trials"),
        *arguments,
    )
    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.usefixtures("plan")
def test_samples_of_another_model(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", other=np.ones((9, 4), np.float32))
    result = run(
        *("trials", "make", tmp_path / "plan", "--samples", tmp_path / "s.npz"),
        *("--out", tmp_path / "trials"),
    )
    assert result.exit_code == 2
    assert "s.npz: tensors: got ['other'], want ['x']" in result.stderr


@pytest.mark.usefixtures("plan")
def test_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    samples, out = sample(tmp_path / "s.npz", 9), tmp_path / "trials"
    out.write_text("kept")
    arguments = ("trials", "make", tmp_path / "plan", "--samples", samples, "--out")
    result = run(*arguments, out)
    assert result.exit_code == 2
    assert "exists; nothing is overwritten" in result.stderr
    assert out.read_text() == "kept"
    result = run(*arguments, tmp_path / "no" / "folder")
    assert result.exit_code == 2
    assert "cannot be written: No such file" in result.stderr


def test_a_plan_that_is_none(run: Run, tmp_path: Path) -> None:
    samples = sample(tmp_path / "s.npz", 9)
    result = run(
        *("trials", "make", tmp_path / "none", "--samples", samples),
        *("--out", tmp_path / "trials"),
    )
    assert result.exit_code == 2
    assert "plan.json" in result.stderr
