"""``split`` and ``inspect plan``: options, messages, exit codes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bentoml_secure.cli import splitting
from bentoml_secure.split import load_plan
from tests.unit.cli.conftest import Run

LAYERS = 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A chain of MatMul and Relu: r0, r1, r2, r3."""
    rng = np.random.default_rng(0)
    weights, nodes, last = [], [], "x"
    for index in range(LAYERS):
        weight = rng.standard_normal((4, 4)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [f"r{index}"]))
        last = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", 4])],
        weights,
    )
    path = tmp_path / "chain.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_split_writes_a_plan_and_says_what_it_did(
    run: Run, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan"
    result = run("split", model, "--segments", "2", "--out", out)
    plan = load_plan(out)
    assert result.exit_code == 0
    assert len(plan.segments) == 2
    assert result.stdout.splitlines()[-1] == f"plan {plan.digest}"
    assert "segment-1.onnx" in result.stdout


def test_named_cuts_tolerance_runtime_and_samples_reach_the_plan(
    run: Run, model: Path, tmp_path: Path
) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=np.ones((1, 4), np.float32))
    result = run(
        *("split", model, "--cut", "r0", "--cut", "r2", "--out", tmp_path / "plan"),
        *("--tolerance", "0.001", "--runtime", ">=1.20,<2", "--samples", samples),
    )
    plan = load_plan(tmp_path / "plan")
    assert result.exit_code == 0
    made = [[spec.name for spec in segment.outputs] for segment in plan.segments]
    assert made == [["r0"], ["r2"], ["r3"]]
    assert {segment.tolerance for segment in plan.segments} == {0.001}
    assert plan.runtime.version == ">=1.20,<2"


def test_options_are_read_from_the_environment(
    run: Run, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan"
    result = run(
        "split", model, "--out", out, env={"BENTOML_SECURE_SPLIT_SEGMENTS": "3"}
    )
    assert result.exit_code == 0
    assert len(load_plan(out).segments) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "want --segments N"),
        (["--segments", "0"], "not in the range"),
        (["--segments", "100"], "can be cut into"),
        (["--segments", "3", "--cut", "r0"], "1 cuts make 2 segments"),
        (["--cut", "no-such"], "no-such"),
        (["--segments", "2", "--samples", "/nowhere.npz"], "cannot be read"),
        (["--segments", "2", "--runtime", "nonsense"], "nonsense"),
    ],
)
def test_refusals_are_usage_errors(
    run: Run, model: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    result = run("split", model, "--out", tmp_path / "plan", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert not (tmp_path / "plan" / "plan.json").exists()


def test_a_place_that_cannot_be_written_is_a_usage_error(
    run: Run, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "plan"
    result = run("split", model, "--segments", "2", "--out", out)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")


def test_what_is_no_model_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing of the kind")
    result = run("split", path, "--segments", "2", "--out", tmp_path / "plan")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: is not ONNX")


def test_warnings_are_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with splitting._warnings_shown():
        warnings.warn("the cut at r1 is 1e-7 off", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: the cut at r1 is 1e-7 off\n"


def test_progress_is_shown_on_a_terminal_only(model: Path, tmp_path: Path) -> None:
    def stderr_of(terminal: bool) -> bytes:
        out = tmp_path / f"plan-{terminal}"
        command = [sys.executable, "-c", "from bentoml_secure.cli import main; main()"]
        command += ["split", str(model), "--segments", "2", "--out", str(out)]
        if not terminal:
            done = subprocess.run(command, capture_output=True, check=True)
            return done.stderr
        upper, lower = pty.openpty()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=lower, check=True)
        os.close(lower)
        shown = os.read(upper, 65536)
        os.close(upper)
        assert b"\x1b" not in done.stdout
        return shown

    assert b"\x1b[K" in stderr_of(terminal=True)
    assert b"\x1b[K" not in stderr_of(terminal=False)


def test_inspect_shows_a_plan_by_folder_or_file(
    run: Run, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan"
    assert run("split", model, "--segments", "2", "--out", out).exit_code == 0
    plan = load_plan(out)
    by_folder, by_file = (
        run("inspect", "plan", out),
        run("inspect", "plan", out / "plan.json"),
    )
    assert by_folder.stdout == by_file.stdout
    assert str(plan.segments[1].identity) in by_folder.stdout
    assert by_folder.stdout.splitlines()[-1] == f"plan {plan.digest}"


def test_inspect_refuses_what_is_no_plan(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("{}")
    result = run("inspect", "plan", path)
    assert result.exit_code == 2
    assert str(path) in result.stderr
