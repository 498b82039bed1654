"""Honest runs: the same inputs for all, apart again, from here and from elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx import helper as make
from packaging.version import Version

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split import (
    GraphLevel,
    Plan,
    RuntimeChoice,
    load_chain,
    split_onnx,
)
from bentoml_secure.split.alterations import alter
from bentoml_secure.split.calibration_inputs import batch_symbol, draw_inputs
from bentoml_secure.split.foreign_python import ForeignPython, ForeignRun
from bentoml_secure.split.foreign_script import main as foreign_main
from bentoml_secure.split.honest_runs import Bench, Place, here, permitting
from bentoml_secure.split.runtime_onnx import OPTIONS
from bentoml_secure.split.runtimes import DEFAULT
from bentoml_secure.split.samples import Sample
from bentoml_secure.split.trial import distance
from bentoml_secure.tensors import Array, decode, encode
from tests import models
from tests.unit.split.split_graphs import chain, model, save, value, weight

TORCH = RuntimeChoice.parse("torch")
BASIC = RuntimeChoice.parse("onnxruntime:BASIC")
HERE = Path(sys.executable)


@pytest.fixture(scope="module")
def python() -> ForeignPython:
    return ForeignPython(HERE)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """Two segments; beside a hidden state they hand on shapes and a mask."""
    folder = tmp_path_factory.mktemp("gpt") / "plan"
    return folder, split_onnx(
        models.exported("gpt"), folder, segments=2, samples=models.sample("gpt")
    )


def bench_of(
    gpt: tuple[Path, Plan], places: list[Place], count: int = 6
) -> tuple[Bench, Sample]:
    folder, plan = gpt
    ids = np.random.default_rng(3).integers(0, 199, (count, 9))
    groups = draw_inputs(plan, [], {"ids": ids}, count)
    return Bench(folder, permitting(plan, places), groups), {"ids": ids}


def test_runs_on_all_places_answer_alike_input_by_input(
    gpt: tuple[Path, Plan], python: ForeignPython
) -> None:
    places = [
        here(DEFAULT),
        here(BASIC),
        here(TORCH),
        Place(choice=BASIC, version=Version("1.31.0"), python=python),
    ]
    bench, whole = bench_of(gpt, places)
    want = load_chain(gpt[0], threads=1).run_all(whole)
    for index, segment in enumerate(gpt[1].segments):
        runs = bench.runs(index, places)
        assert len({str(run) for run in runs}) == 16
        answers = dict(bench.answers(index, runs))
        assert set(answers) == set(runs)
        for run, rows in answers.items():
            assert len(rows) == 6
            for name in rows[0]:
                one = np.concatenate([row[name] for row in rows])
                if one.shape == want[name].shape:
                    assert distance(one, want[name]) < 2e-5, (run, name)
        names = {spec.name for spec in segment.outputs}
        hidden = {spec.name for spec in segment.outputs if spec.shape[:1] == ("batch",)}
        for run, rows in answers.items():
            assert set(rows[0]) == (names if run.batch == 1 else hidden)


def test_an_altered_segment_runs_on_the_same_inputs(gpt: tuple[Path, Plan]) -> None:
    bench, _ = bench_of(gpt, [here(DEFAULT)])
    (run, *_) = bench.runs(1, [here(DEFAULT)])
    (honest,) = (rows for _, rows in bench.answers(1, [run]))
    same = bench.altered(1, bench.model(1))
    other = bench.altered(1, alter("scaled", bench.model(1)))
    for left, right, altered in zip(honest, same, other, strict=True):
        assert np.array_equal(left["logits"], right["logits"])
        assert np.allclose(altered["logits"], left["logits"] * 1.01, rtol=1e-5)


def test_a_plan_permits_the_minor_releases_of_what_was_run(
    gpt: tuple[Path, Plan], python: ForeignPython
) -> None:
    older = Place(choice=DEFAULT, version=Version("1.23.2"), python=python)
    places = [here(DEFAULT), here(BASIC), here(TORCH), older]
    permitted = permitting(gpt[1], places).runtime.permitted
    assert [str(one.choice) for one in permitted] == [
        "onnxruntime:BASIC",
        "torch",
        "onnxruntime:EXTENDED",
    ]
    assert permitted[-1].version == ">=1.23,<1.24"
    assert permitting(gpt[1], places[:1]) == gpt[1]
    many = [
        Place(choice=DEFAULT, version=Version(f"2.{minor}"), python=python)
        for minor in range(33)
    ]
    with pytest.raises(ConfigurationError, match="runtimes: got 33, want at most 32"):
        permitting(gpt[1], many)


def test_a_runtime_that_cannot_run_a_segment_says_why(tmp_path: Path) -> None:
    node = make.make_node("Det", ["x"], ["y"])
    made = model([node], [value("x", ["n", 3, 3])], [value("y", ["n"])])
    plan = split_onnx(save(made, tmp_path), tmp_path / "plan", segments=1)
    groups = draw_inputs(plan, [made], None, 4)
    bench = Bench(tmp_path / "plan", permitting(plan, [here(TORCH)]), groups)
    assert "Det" in bench.reason_against(TORCH)
    assert bench.reason_against(DEFAULT) == ""


def fixed() -> onnx.ModelProto:
    return model(
        [make.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", [3, 4])],
        [value("y", [3, 4])],
        [weight("w")],
    )


def test_a_model_without_a_batch_is_run_request_by_request(tmp_path: Path) -> None:
    plan = split_onnx(save(fixed(), tmp_path), tmp_path / "plan", segments=1)
    assert batch_symbol(plan) is None
    groups = draw_inputs(plan, [fixed()], None, 5)
    assert [len(group) for group in groups] == [3, 2]
    bench = Bench(tmp_path / "plan", plan, groups)
    runs = bench.runs(0, [here(DEFAULT)])
    assert {run.batch for run in runs} == {1}
    for _, rows in bench.answers(0, runs):
        assert [row["y"].shape for row in rows] == [(3, 4)] * 5


def test_inputs_are_made_up_in_two_sizes_and_differ(gpt: tuple[Path, Plan]) -> None:
    whole = onnx.load(models.exported("gpt"))
    groups = draw_inputs(gpt[1], [whole], None, 65)
    assert [len(group) for group in groups] == [33, 32]
    ids = [row["ids"] for group in groups for row in group]
    assert {array.shape for array in ids} == {(1, 8), (1, 12)}
    assert len({array.tobytes() for array in ids}) > 60
    assert max(array.max() for array in ids) == 198


def samples(plan: Plan, **arrays: Array) -> tuple[tuple[Sample, ...], ...]:
    return draw_inputs(plan, [], arrays, 3)


def test_samples_are_taken_apart_along_the_batch_or_an_axis_of_their_own(
    gpt: tuple[Path, Plan],
) -> None:
    ids = np.arange(32).reshape(4, 8)
    (rows,) = samples(gpt[1], ids=ids)
    assert [row["ids"].tolist() for row in rows] == [
        [ids[i].tolist()] for i in (0, 1, 2)
    ]
    (requests,) = samples(gpt[1], ids=np.stack([ids] * 3))
    assert all(np.array_equal(request["ids"], ids) for request in requests)


def test_samples_that_are_not_the_inputs_are_refused(gpt: tuple[Path, Plan]) -> None:
    plan = gpt[1]
    with pytest.raises(ConfigurationError, match=r"got \['other'\], want \['ids'\]"):
        samples(plan, other=np.zeros((3, 8), np.int64))
    with pytest.raises(ConfigurationError, match="got 2 inputs, want 3") as caught:
        samples(plan, ids=np.zeros((2, 8), np.int64))
    assert "more rows" in caught.value.remedy
    with pytest.raises(ConfigurationError, match=r"got \[3\], want inputs of"):
        samples(plan, ids=np.zeros(3, np.int64))
    with pytest.raises(MalformedInputError, match="ids"):
        samples(plan, ids=np.zeros((3, 8), np.float32))


def test_samples_of_unequal_numbers_are_refused(tmp_path: Path) -> None:
    made = model(
        [make.make_node("Add", ["x", "z"], ["y"])],
        [value("x"), value("z")],
        [value("y")],
    )
    plan = split_onnx(save(made, tmp_path), tmp_path / "plan", segments=1)
    arrays = {"x": np.zeros((3, 4), np.float32), "z": np.zeros((4, 4), np.float32)}
    with pytest.raises(ConfigurationError, match="want as many of each array"):
        draw_inputs(plan, [], arrays, 3)


def test_tensors_come_back_from_another_interpreter_as_they_are(
    python: ForeignPython,
) -> None:
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    kinds |= {"bool": TensorProto.BOOL, "float16": TensorProto.FLOAT16}
    made = model(
        [make.make_node("Identity", [f"x{k}"], [f"y{k}"]) for k in kinds],
        [value(f"x{k}", None, kind) for k, kind in kinds.items()],
        [value(f"y{k}", None, kind) for k, kind in kinds.items()],
    )
    shapes = [(2, 3), (), (0, 4)]
    feeds = tuple(
        {f"x{kind}": np.ones(shape, kind) for kind in kinds} for shape in shapes
    )
    run = ForeignRun(graph_level=GraphLevel.BASIC, threads=1, feeds=feeds)
    names = [f"y{kind}" for kind in kinds]
    (got,) = python.run(made.SerializeToString(), names, [run])
    for feed, answer in zip(feeds, got, strict=True):
        for kind in kinds:
            assert answer[f"y{kind}"].dtype == kind
            assert np.array_equal(answer[f"y{kind}"], feed[f"x{kind}"])


def test_the_script_does_a_folders_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], python: ForeignPython
) -> None:
    # In this process: what it does there is done here line by line.
    foreign_main([])
    assert json.loads(capsys.readouterr().out) == {"onnxruntime": str(python.version)}
    feed = {"x": np.ones((2, 4), np.float32)}
    (tmp_path / "model.onnx").write_bytes(chain(2).SerializeToString())
    (tmp_path / "feed").write_bytes(encode(feed))
    run = {"level": OPTIONS[GraphLevel.NONE], "threads": 1}
    run |= {"feeds": ["feed"], "made": ["made"]}
    (tmp_path / "job.json").write_text(json.dumps({"outputs": ["y"], "runs": [run]}))
    foreign_main([str(tmp_path)])
    assert decode((tmp_path / "made").read_bytes())["y"].shape == (2, 4)


def test_what_is_no_python_with_onnxruntime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        ForeignPython(tmp_path / "python")
    liar = tmp_path / "liar"
    for said, words in (
        ("echo no", "want the version of its onnxruntime"),
        ("echo '[]'", "want the version of its onnxruntime"),
        ('echo \'{"onnxruntime": "new"}\'', "want the version of its onnxruntime"),
        ("echo gone >&2; exit 3", "ended with 3: gone"),
    ):
        liar.write_text(f"#!/bin/sh\n{said}\n")
        liar.chmod(0o700)
        with pytest.raises(ConfigurationError, match=words):
            ForeignPython(liar)


def test_a_model_that_does_not_run_there_is_refused(python: ForeignPython) -> None:
    run = ForeignRun(graph_level=GraphLevel.BASIC, threads=1, feeds=({},))
    with pytest.raises(ConfigurationError, match="ended with 1") as caught:
        python.run(b"no model", ["y"], [run])
    assert "onnxruntime and numpy" in caught.value.remedy


def test_an_interpreter_that_writes_something_else_is_refused(tmp_path: Path) -> None:
    other = encode({"z": np.zeros(1, np.float32)})
    (tmp_path / "answer").write_bytes(other)
    liar = tmp_path / "liar"
    liar.write_text(
        "#!/bin/sh\n"
        'if [ -z "$3" ]; then echo \'{"onnxruntime": "1.0"}\'; exit; fi\n'
        f'cp {tmp_path}/answer "$3/made-0-0"\n'
    )
    liar.chmod(0o700)
    run = ForeignRun(graph_level=GraphLevel.BASIC, threads=1, feeds=({},))
    with pytest.raises(MalformedInputError, match=r"got \['z'\], want \['y'\]"):
        ForeignPython(liar).run(b"", ["y"], [run])
    (tmp_path / "answer").write_bytes(b"short")
    with pytest.raises(MalformedInputError, match="tensors-v1"):
        ForeignPython(liar).run(b"", ["y"], [run])
