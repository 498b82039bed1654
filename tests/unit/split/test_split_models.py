"""Real networks and other exporters' graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime import quantization
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.split import (
    GraphLevel,
    SplitWarning,
    load_chain,
    require_runtime,
    run_chain,
    split_onnx,
)
from bentoml_secure.split.graph import analyse
from bentoml_secure.split.runtime import session_options
from bentoml_secure.tensors import Array
from tests import models

NETWORKS = ("mlp", "cnn", "gpt")


def whole(path: Path, inputs: dict[str, Array], level: GraphLevel) -> list[bytes]:
    session = onnxruntime.InferenceSession(
        str(path), session_options(None, level), providers=["CPUExecutionProvider"]
    )
    return [array.tobytes() for array in session.run(None, inputs)]


def chained(folder: Path, inputs: dict[str, Array], level: GraphLevel) -> list[bytes]:
    outputs = load_chain(folder, graph_level=level).run(inputs)
    return [array.tobytes() for array in outputs.values()]


def every_cut(path: Path, stride: int = 1) -> list[str]:
    analysis = analyse(onnx.load(path))
    names = [analysis.nodes[step].output[0] for step in analysis.steps[:-1]]
    return names[::stride]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore::bentoml_secure.split.SplitWarning")
def test_cuts_are_bit_equal_at_graph_level_none(name: str, tmp_path: Path) -> None:
    path = models.exported(name)
    inputs = models.sample(name)
    want = whole(path, inputs, GraphLevel.NONE)
    # Every one of them alone takes long; all at once are in a test below.
    for number, cut in enumerate(every_cut(path, 17 if name == "gpt" else 3)):
        out = tmp_path / str(number)
        split_onnx(path, out, cuts=[cut], samples=inputs)
        assert chained(out, inputs, GraphLevel.NONE) == want, cut


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore::bentoml_secure.split.SplitWarning")
def test_every_single_cut_is_bit_equal_at_graph_level_none(
    name: str, tmp_path: Path
) -> None:
    path = models.exported(name)
    inputs = models.sample(name)
    want = whole(path, inputs, GraphLevel.NONE)
    for number, cut in enumerate(every_cut(path)):
        out = tmp_path / str(number)
        split_onnx(path, out, cuts=[cut], samples=inputs)
        assert chained(out, inputs, GraphLevel.NONE) == want, cut


@pytest.mark.parametrize("name", NETWORKS)
def test_every_cut_at_once_is_bit_equal_at_graph_level_none(
    name: str, tmp_path: Path
) -> None:
    path = models.exported(name)
    inputs = models.sample(name)
    cuts = every_cut(path)
    if name == "gpt":
        with pytest.warns(SplitWarning, match="differ from the whole by"):
            plan = split_onnx(path, tmp_path / "plan", cuts=cuts, samples=inputs)
    else:
        plan = split_onnx(path, tmp_path / "plan", cuts=cuts, samples=inputs)
    assert len(plan.segments) == len(cuts) + 1
    level = GraphLevel.NONE
    assert chained(tmp_path / "plan", inputs, level) == whole(path, inputs, level)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("segments", [2, 3, 4])
def test_chosen_cuts_are_bit_equal_at_the_pinned_level(
    name: str, segments: int, tmp_path: Path
) -> None:
    path = models.exported(name)
    plan = split_onnx(path, tmp_path / "plan", segments=segments)
    assert len(plan.segments) == segments
    inputs = models.sample(name)
    level = GraphLevel.EXTENDED
    assert chained(tmp_path / "plan", inputs, level) == whole(path, inputs, level)


def test_work_is_spread_evenly_and_little_is_sent(tmp_path: Path) -> None:
    plan = split_onnx(models.exported("cnn"), tmp_path / "plan", segments=3)
    sizes = [(tmp_path / "plan" / s.file).stat().st_size for s in plan.segments]
    # One tensor crosses each cut, though the graph has two at most places.
    assert [len(segment.outputs) for segment in plan.segments] == [1, 1, 1]
    assert all(size > 5_000 for size in sizes)


def test_batch_and_sequence_stay_free_sizes(tmp_path: Path) -> None:
    plan = split_onnx(models.exported("gpt"), tmp_path / "plan", segments=2)
    assert plan.inputs[0].shape == ("batch", "tokens")
    for batch, tokens in ((1, 1), (3, 64)):
        ids = np.zeros((batch, tokens), np.int64)
        assert run_chain(tmp_path / "plan", {"ids": ids})["logits"].shape == (
            batch,
            tokens,
            199,
        )


def test_a_named_cut_that_fusion_makes_unequal_is_kept_and_measured(
    tmp_path: Path,
) -> None:
    path = models.exported("gpt")
    graph = onnx.load(path).graph
    head = next(node for node in graph.node if node.output[0] == "logits")
    normed = next(node for node in graph.node if node.output[0] == head.input[0])
    # ONNX Runtime fuses this sum with the layer norm after it.
    (cut,) = (name for name in normed.input if name.startswith("add"))
    with pytest.warns(SplitWarning, match=r"differ from the whole by \d.*e-0[67]"):
        plan = split_onnx(path, tmp_path / "plan", cuts=[cut])
    assert cut in {spec.name for spec in plan.segments[0].outputs}


def test_a_scikit_learn_pipeline_is_split(tmp_path: Path) -> None:
    features, labels = load_iris(return_X_y=True)
    features = features.astype(np.float32)
    fitted = make_pipeline(
        StandardScaler(), MLPClassifier((8, 8), max_iter=2000, random_state=0)
    ).fit(features, labels)
    path = tmp_path / "iris.onnx"
    made = to_onnx(fitted, features[:1], options={"zipmap": False}, target_opset=15)
    path.write_bytes(made.SerializeToString())
    plan = split_onnx(path, tmp_path / "plan", segments=4)
    assert len(plan.segments) == 4
    outputs = run_chain(tmp_path / "plan", {"X": features})
    assert (outputs["label"] == fitted.predict(features)).all()


def test_maps_from_scikit_learn_are_refused_with_what_to_do(tmp_path: Path) -> None:
    features, labels = load_iris(return_X_y=True)
    fitted = GaussianNB().fit(features, labels)
    path = tmp_path / "iris.onnx"
    made = to_onnx(fitted, features[:1].astype(np.float32), target_opset=15)
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ConfigurationError, match=r"is a list, not a tensor\. Export"):
        split_onnx(path, tmp_path / "plan", segments=2)


class _Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self._left = [models.sample(name)]

    def get_next(self) -> dict[str, Array] | None:
        return self._left.pop() if self._left else None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_quantised_with_qdq_nodes_is_split(tmp_path: Path) -> None:
    path = tmp_path / "quantised.onnx"
    quantization.quantize_static(
        models.exported("cnn"),
        path,
        _Calibration("cnn"),
        quant_format=quantization.QuantFormat.QDQ,
    )
    inputs = models.sample("cnn")
    for segments in (2, 4):
        out = tmp_path / str(segments)
        plan = split_onnx(path, out, segments=segments)
        assert len(plan.segments) == segments
        level = GraphLevel.EXTENDED
        assert chained(out, inputs, level) == whole(path, inputs, level)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_dynamically_quantised_graph_is_split(tmp_path: Path) -> None:
    path = tmp_path / "quantised.onnx"
    quantization.quantize_dynamic(models.exported("gpt"), path)
    inputs = models.sample("gpt")
    split_onnx(path, tmp_path / "plan", segments=3)
    level = GraphLevel.EXTENDED
    assert chained(tmp_path / "plan", inputs, level) == whole(path, inputs, level)


def test_a_plan_for_another_runtime_does_not_run(tmp_path: Path) -> None:
    path = models.exported("mlp")
    plan = split_onnx(path, tmp_path / "plan", segments=2, runtime=">=1.20,<2")
    require_runtime(plan)
    assert plan.runtime.version == ">=1.20,<2"
    with pytest.raises(ConfigurationError, match=r"runtime: got ==1\.2\.3, which"):
        split_onnx(path, tmp_path / "old", segments=2, runtime="==1.2.3")
