"""``calibrate``: what is written, what is refused, what a person gets to judge."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bentoml_secure.cli.calibration import replace_file
from bentoml_secure.keys.sealed_plan import SEALED_FILE
from bentoml_secure.split import PLAN_FILE, load_plan, run_chain, split_onnx
from bentoml_secure.split.alterations import ALTERATIONS
from tests import models
from tests.unit.cli.conftest import Run

SHORT = ("--runtime", "onnxruntime:DISABLE_ALL", "--runtime", "torch")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """The MLP in two segments."""
    folder = tmp_path / "plan"
    split_onnx(models.exported("mlp"), folder, segments=2)
    return folder


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """An interpreter that says it has another version."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        'if [ -z "$3" ]; then echo \'{"onnxruntime": "1.31.7"}\'; exit; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    script.chmod(0o700)
    return script


def test_tolerances_are_measured_and_written(
    run: Run, plan: Path, other_python: Path, tmp_path: Path
) -> None:
    before = load_plan(plan)
    report = tmp_path / "report"
    result = run(
        "calibrate", plan, "--report", report, "--other-python", other_python, "--json"
    )
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    after = load_plan(plan)
    assert (said["verdict"], said["written"]) == ("accepted", True)
    assert said["plan"] == after.digest != before.digest
    assert [str(one.choice) for one in after.runtime.permitted] == [
        "onnxruntime:BASIC",
        "onnxruntime:DISABLE_ALL",
        "torch",
        "onnxruntime:EXTENDED",
        "onnxruntime:BASIC",
        "onnxruntime:DISABLE_ALL",
    ]
    assert {one.version for one in after.runtime.permitted[3:]} == {">=1.31,<1.32"}
    for segment, found in zip(after.segments, said["segments"], strict=True):
        record = segment.calibration
        assert record is not None
        assert segment.tolerance == record.margin * record.largest
        assert (record.inputs, record.margin) == (64, 8)
        assert record.false_alarm == pytest.approx(0.0457, abs=1e-4)
        assert len(record.runtimes) == 7 * 4
        assert record.nearest_cheat is not None
        assert record.nearest_cheat.distance > segment.tolerance
        assert [cheat["name"] for cheat in found["cheats"]] == list(ALTERATIONS)
        assert max(found["honest"]) == record.largest
    inputs = models.sample("mlp")
    assert run_chain(plan, inputs).keys() == {"logits"}


def test_a_plan_shows_how_its_tolerances_were_found(run: Run, plan: Path) -> None:
    before = run("inspect", "plan", plan).stdout
    assert "tolerance 2e-05 (within_tolerance), not measured" in before
    assert run("calibrate", plan, *SHORT).exit_code == 0
    after = run("inspect", "plan", plan).stdout
    assert "permitted too: onnxruntime:DISABLE_ALL >=" in after
    (found,) = {s.calibration for s in load_plan(plan).segments[1:]}
    assert found is not None
    assert f"8 x {found.largest:.3g} over 64 inputs" in after


def test_the_report_says_what_was_found(run: Run, plan: Path, tmp_path: Path) -> None:
    report = tmp_path / "made" / "report"
    result = run("calibrate", plan, *SHORT, "--report", report, "--dry-run")
    assert result.exit_code == 0, result.output
    found = json.loads((report / "report.json").read_text())
    words = (report / "report.md").read_text()
    for index, segment in enumerate(found["segments"]):
        assert f"## Segment {index}: {segment['file']}" in words
        assert f"{segment['tolerance']:.3g}" in words
    assert "| scaled | 64 of 64 |" in words
    assert "plot.svg" in words
    picture = ET.fromstring((report / "plot.svg").read_text())  # noqa: S314
    texts = [element.text for element in picture.iter() if element.text]
    circles = sum(1 for element in picture.iter() if element.tag.endswith("circle"))
    assert {"honest", *ALTERATIONS} <= set(texts)
    assert circles == sum(
        len(segment["honest"])
        + sum(len(cheat["distances"]) for cheat in segment["cheats"])
        for segment in found["segments"]
    )


def test_a_dry_run_leaves_the_plan_as_it_is(run: Run, plan: Path) -> None:
    before = (plan / PLAN_FILE).read_bytes()
    result = run("calibrate", plan, *SHORT, "--dry-run")
    assert (result.exit_code, (plan / PLAN_FILE).read_bytes()) == (0, before)
    assert "(not written)" in result.stdout
    assert result.stdout.splitlines()[-1] == "ACCEPTED  calibration"


def test_a_tolerance_that_a_cheat_passes_is_not_written(
    run: Run, plan: Path, tmp_path: Path
) -> None:
    before = sorted((path.name, path.read_bytes()) for path in plan.iterdir())
    report = tmp_path / "report"
    result = run(
        "calibrate", plan, *SHORT, "--margin", "1e5", "--report", report, "--json"
    )
    assert result.exit_code == 1, result.output
    said = json.loads(result.stdout)
    assert said["verdict"] == "rejected"
    assert {finding["field"] for finding in said["findings"]} >= {
        "segment-1.onnx fp16",
        "segment-1.onnx scaled",
    }
    assert sorted((path.name, path.read_bytes()) for path in plan.iterdir()) == before
    assert "| fp16 | 64 of 64 |" in (report / "report.md").read_text()
    assert "PASSES" in (report / "report.md").read_text()
    words = run("calibrate", plan, *SHORT, "--margin", "1e5").stdout
    assert "FAILED  segment-1.onnx fp16: got distance" in words
    assert "REJECTED" in words


def test_a_sealed_plan_is_refused(run: Run, plan: Path) -> None:
    (plan / SEALED_FILE).write_text("{}")
    result = run("calibrate", plan)
    assert result.exit_code == 2
    assert "Calibrate before sealing" in result.stderr


def test_a_plan_is_replaced_whole_or_not_at_all(
    run: Run, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted((path.name, path.read_bytes()) for path in plan.iterdir())

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    result = run("calibrate", plan, *SHORT)
    assert result.exit_code == 2
    assert "disk full" in result.stderr
    assert sorted((path.name, path.read_bytes()) for path in plan.iterdir()) == before


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o600)
    replace_file(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--inputs", "63"), "63 is not in the range 64<=x"),
        (("--margin", "0.5"), "0.5 is not in the range x>=1.0"),
        (("--rule", "nearly"), "nearly"),
        (("--runtime", "tvm"), "want one of torch, onnxruntime"),
        (("--other-python", "/does/not/exist"), "No such file"),
        (("--other-python", sys.executable), "which is measured already"),
        (("--samples", "/does/not/exist.npz"), "cannot be read"),
    ],
)
def test_options_that_are_wrong(
    run: Run, plan: Path, options: tuple[str, str], words: str
) -> None:
    before = (plan / PLAN_FILE).read_bytes()
    result = run("calibrate", plan, *options)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())
    assert (plan / PLAN_FILE).read_bytes() == before


def test_samples_and_a_rule_of_ones_own(run: Run, plan: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((70, 32)).astype(np.float32)
    np.savez(tmp_path / "few.npz", features=rows[:63])
    np.savez(tmp_path / "rows.npz", features=rows)
    few = run("calibrate", plan, "--samples", tmp_path / "few.npz")
    assert few.exit_code == 2
    assert "got 63 inputs, want 64" in few.stderr
    exact = ("--rule", "exact", "--runtime", "onnxruntime:BASIC", "--json")
    result = run("calibrate", plan, "--samples", tmp_path / "rows.npz", *exact)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["inputs_made_up"] is False
    for segment in load_plan(plan).segments:
        assert (segment.rule, segment.tolerance) == ("exact", 0.0)
        assert segment.calibration is not None
        # All cheats are beyond comparison, none is at a distance.
        assert segment.calibration.nearest_cheat is None
    words = run("calibrate", plan, "--runtime", "onnxruntime:BASIC", "--dry-run").stdout
    assert "only equal bits agree" in words


def unable(folder: Path) -> Path:
    """A plan that torch is not told how to run, with a layer that nothing alters."""
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"])],
        "determinants",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.ones(1, np.float32), "unused")],
    )
    path = folder / "determinants.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    split_onnx(path, folder / "determinants", segments=1)
    return folder / "determinants"


def test_what_cannot_be_measured_is_said(run: Run, tmp_path: Path) -> None:
    folder = unable(tmp_path)
    result = run("calibrate", folder, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "left out: torch" in result.stdout
    assert "Det" in result.stdout
    assert "skipped-layer: " in result.stdout
    assert "fp16: " in result.stdout
    words = (tmp_path / "report" / "report.md").read_text()
    assert "has no weights" in words
    assert "the tolerance is 0" in words
    assert [one.name for one in load_plan(folder).runtime.permitted] == [
        "onnxruntime",
        "onnxruntime",
    ]
    asked = run("calibrate", folder, "--runtime", "torch")
    assert asked.exit_code == 2
    assert "torch is not told how to run Det" in asked.stderr


def test_without_torch_the_others_are_measured(
    run: Run, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    result = run("calibrate", plan)
    assert result.exit_code == 0, result.output
    assert "left out: runtime torch: torch is not installed" in result.stdout
    asked = run("calibrate", plan, "--runtime", "torch")
    assert asked.exit_code == 2
    assert "torch is not installed" in asked.stderr
