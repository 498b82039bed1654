"""Every cut of every odd graph: refused with a reason, or bit-equal to the whole."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split import SplitWarning, load_chain, split_onnx
from bentoml_secure.split.graph import analyse
from bentoml_secure.split.runtime import GraphLevel, session_options
from bentoml_secure.tensors import Array
from tests.unit.split import split_graphs as graphs


def whole(path: Path, inputs: dict[str, Array], level: GraphLevel) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(
        str(path), session_options(None, level), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def same(left: dict[str, Array], right: dict[str, Array]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


UNCUTTABLE = {"sequence_between": {"both"}}


@pytest.mark.parametrize("name", graphs.ALL)
def test_every_cut_computes_the_whole(name: str, tmp_path: Path) -> None:
    model = graphs.ALL[name]()
    path = graphs.save(model, tmp_path)
    inputs = graphs.inputs_of(model)
    analysis = analyse(onnx.load(path))
    for step in analysis.steps[:-1]:
        cut = next(made for made in analysis.nodes[step].output if made)
        out = tmp_path / f"plan-{step}"
        if cut in UNCUTTABLE.get(name, ()):
            with pytest.raises(ConfigurationError, match="it is not a tensor"):
                split_onnx(path, out, cuts=[cut])
            continue
        plan = split_onnx(path, out, cuts=[cut])
        assert len(plan.segments) == 2
        for level in GraphLevel:
            got = load_chain(out, graph_level=level).run(inputs)
            assert same(got, whole(path, inputs, level)), (cut, level)


@pytest.mark.parametrize("name", graphs.ALL)
def test_as_many_segments_as_there_are_places(name: str, tmp_path: Path) -> None:
    path = graphs.save(graphs.ALL[name](), tmp_path)
    most = len(analyse(onnx.load(path)).steps) - len(UNCUTTABLE.get(name, ()))
    plan = split_onnx(path, tmp_path / "plan", segments=most)
    assert len(plan.segments) == most
    with pytest.raises(
        ConfigurationError, match=f"can be cut into {most} at most.*{most} or fewer"
    ):
        split_onnx(path, tmp_path / "more", segments=most + 1)
    assert not (tmp_path / "more").exists()


def test_an_unused_input_stays_in_the_plan_and_is_read_by_none(
    tmp_path: Path,
) -> None:
    path = graphs.save(graphs.many_ends(), tmp_path)
    plan = split_onnx(path, tmp_path / "plan", segments=3)
    assert [spec.name for spec in plan.inputs] == ["x", "z", "unused"]
    read = {spec.name for segment in plan.segments for spec in segment.inputs}
    assert "unused" not in read
    assert plan.producer("z") == -1
    assert plan.producer("early") == 0
    assert plan.producer("w") == plan.producer("negated") == 2


def test_minus_infinity_at_a_cut_becomes_part_of_the_tensor(tmp_path: Path) -> None:
    path = graphs.save(graphs.masked(), tmp_path)
    plan = split_onnx(path, tmp_path / "plan", cuts=["b"])
    assert plan.segments[0].outputs[0].allow_nonfinite
    assert not plan.outputs[0].allow_nonfinite


def test_sizes_that_only_the_data_decide_have_symbols_of_their_own(
    tmp_path: Path,
) -> None:
    path = graphs.save(graphs.unknown_sizes(), tmp_path)
    plan = split_onnx(path, tmp_path / "plan", cuts=["turned"])
    (n, _), (k, two) = (plan.inputs[0].shape, plan.segments[0].outputs[0].shape)
    assert isinstance(k, str)
    assert k != n
    assert two == 2


def test_a_size_that_the_model_declares_wrongly_gives_way(tmp_path: Path) -> None:
    model = graphs.chain()
    model.graph.value_info.append(graphs.value("v2", ("x.axis", graphs.WIDTH)))
    model.graph.output[0].CopyFrom(graphs.value("y", (5, graphs.WIDTH)))
    path = graphs.save(model, tmp_path)
    plan = split_onnx(path, tmp_path / "plan", cuts=["v2"])
    assert isinstance(plan.outputs[0].shape[0], str)
    inputs = graphs.inputs_of(model, rows=7)
    assert load_chain(tmp_path / "plan").run(inputs)["y"].shape == (7, graphs.WIDTH)


def test_random_numbers_are_said_and_not_compared(tmp_path: Path) -> None:
    path = graphs.save(graphs.random_numbers(), tmp_path)
    with pytest.warns(SplitWarning, match="it draws random numbers"):
        plan = split_onnx(path, tmp_path / "plan", segments=3)
    assert [spec.name for spec in plan.segments[1].outputs] == ["noise"]


def test_indices_stay_in_the_smallest_table(tmp_path: Path) -> None:
    path = graphs.save(graphs.lookup(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = split_onnx(path, tmp_path / "plan", segments=3)
    assert plan.inputs[0].dtype == "int32"


def test_debugging_notes_of_the_exporter_do_not_reach_segments(
    tmp_path: Path,
) -> None:
    model = graphs.branches()
    body = model.graph.node[3].attribute[0].g
    for node in (*model.graph.node, *body.node):
        node.doc_string = "/home/someone/model.py"
        node.metadata_props.add(key="stack", value="/home/someone/model.py")
    split_onnx(graphs.save(model, tmp_path), tmp_path / "plan", segments=2)
    for file in (tmp_path / "plan").glob("*.onnx"):
        assert b"someone" not in file.read_bytes()


def test_the_same_model_makes_the_same_plan(tmp_path: Path) -> None:
    path = graphs.save(graphs.branches(), tmp_path)
    digests = {
        split_onnx(path, tmp_path / name, segments=3).digest for name in ("a", "b")
    }
    assert len(digests) == 1


UNFIT = {
    "text in": (
        [helper.make_node("StringNormalizer", ["x"], ["y"])],
        [graphs.value("x", ("n",), TensorProto.STRING)],
        [graphs.value("y", ("n",), TensorProto.STRING)],
        ConfigurationError,
        "tensor 'x': its elements are STRING, which tensors-v1 does not carry",
    ),
    "sequence out": (
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [graphs.value("x")],
        [helper.make_tensor_sequence_value_info("y", graphs.FLOAT, None)],
        ConfigurationError,
        "output 'y': is a list, not a tensor",
    ),
    "nothing computed": (
        [],
        [graphs.value("x")],
        [graphs.value("x")],
        ConfigurationError,
        "computes nothing from its inputs",
    ),
    "made twice": (
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Exp", ["x"], ["y"])],
        [graphs.value("x")],
        [graphs.value("y")],
        MalformedInputError,
        "value 'y': is made twice",
    ),
    "never made": (
        [helper.make_node("Add", ["x", "ghost"], ["y"])],
        [graphs.value("x")],
        [graphs.value("y")],
        MalformedInputError,
        "value 'ghost': is read, and no node makes it",
    ),
    "circle": (
        [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Add", "ax", "b")],
        [graphs.value("x")],
        [graphs.value("b")],
        MalformedInputError,
        "wait for each other in a circle",
    ),
    "rank unknown": (
        [helper.make_node("Relu", ["x"], ["y"])],
        [graphs.value("x", None)],
        [graphs.value("y", None)],
        ConfigurationError,
        "tensor 'x': it is not a tensor, or its type or rank is not known",
    ),
    "no such operator": (
        [helper.make_node("Frobnicate", ["x"], ["y"])],
        [graphs.value("x")],
        [graphs.value("y")],
        MalformedInputError,
        "onnxruntime cannot load it",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_split_is_refused_with_a_reason(
    case: str, tmp_path: Path
) -> None:
    nodes, inputs, outputs, error, match = UNFIT[case]
    path = graphs.save(graphs.model(nodes, inputs, outputs), tmp_path)
    with pytest.raises(error, match=match):
        split_onnx(path, tmp_path / "plan", segments=1)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_rank_that_only_a_sample_shows_is_taken_from_it(tmp_path: Path) -> None:
    model = graphs.model(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Exp", ["a"], ["y"])],
        [graphs.value("x", None)],
        [graphs.value("y", None)],
    )
    path = graphs.save(model, tmp_path)
    sample = graphs.inputs_of(graphs.chain())
    plan = split_onnx(path, tmp_path / "plan", segments=2, samples=sample)
    assert [len(spec.shape) for spec in (*plan.inputs, *plan.outputs)] == [2, 2]
    assert same(
        load_chain(tmp_path / "plan").run(sample),
        whole(path, sample, GraphLevel.EXTENDED),
    )
