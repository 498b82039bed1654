"""Where cuts are put: by balance, by name, and what is said when it cannot be."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split import read_samples, split_onnx
from bentoml_secure.split.cut import Candidate, choose
from bentoml_secure.split.graph import analyse
from bentoml_secure.split.splitting import SplitWarning
from bentoml_secure.tensors import TensorSpec
from tests.unit.split import split_graphs as graphs


def places(*entries: tuple[int, int]) -> list[Candidate]:
    """Return candidates of (work up to there, bytes across), one per step."""
    return [
        Candidate(step=step, crossing=("t",), cost_bytes=sent, work=work)
        for step, (work, sent) in enumerate(entries)
    ]


def test_equal_bytes_leave_the_balance_to_decide() -> None:
    even = places(*((work, 4) for work in range(10, 100, 10)))
    assert choose(even, 100, 2) == (4,)
    assert choose(even, 100, 5) == (1, 3, 5, 7)
    assert choose(even, 100, 10) == tuple(range(9))
    assert choose(even, 100, 1) == ()


def test_a_cheap_cut_nearby_wins_over_a_dear_one_in_the_middle() -> None:
    assert choose(places((40, 10), (50, 1000), (60, 900)), 100, 2) == (0,)


def cost(some: list[Candidate], total: int, steps: tuple[int, ...]) -> float:
    """Return what ``choose`` promises to make small, from its definition."""
    segments = len(steps) + 1
    most = max(place.cost_bytes for place in some)
    edges = [0, *(some[step].work for step in steps), total]
    shares = [(b - a) / total * segments for a, b in itertools.pairwise(edges)]
    sent = sum(some[step].cost_bytes for step in steps)
    return sum((share - 1) ** 2 for share in shares) + sent / most / len(steps)


@pytest.mark.parametrize("segments", [2, 3, 4])
def test_the_choice_is_the_best_of_all(segments: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        work = np.cumsum(random.integers(1, 50, 9)).tolist()
        some = places(*zip(work[:-1], random.integers(1, 99, 8).tolist(), strict=True))
        best = min(
            cost(some, work[-1], steps)
            for steps in itertools.combinations(range(8), segments - 1)
        )
        chosen = choose(some, work[-1], segments)
        assert cost(some, work[-1], chosen) == pytest.approx(best)


def test_barred_steps_are_left_alone_and_counted() -> None:
    even = places((25, 1), (50, 1), (75, 1))
    assert choose(even, 100, 2, {1}) in {(0,), (2,)}
    with pytest.raises(
        ConfigurationError,
        match=r"got 4, this graph can be cut into 3 at most \(1 cuts would change",
    ):
        choose(even, 100, 4, {1})


def test_three_thousand_nodes_take_seconds(tmp_path: Path) -> None:
    length = 3000
    names = ["x", *(f"v{index}" for index in range(1, length)), "y"]
    nodes = [
        helper.make_node("Add" if i % 3 else "Neg", [a, a] if i % 3 else [a], [b])
        for i, (a, b) in enumerate(itertools.pairwise(names))
    ]
    # Each value times itself: only the bound of time is of interest.
    for node in nodes:
        node.op_type = "Max" if node.op_type == "Add" else node.op_type
    path = graphs.save(
        graphs.model(nodes, [graphs.value("x")], [graphs.value("y")]), tmp_path
    )
    started = time.perf_counter()
    plan = split_onnx(path, tmp_path / "plan", segments=12)
    assert len(plan.segments) == 12
    assert time.perf_counter() - started < 30


def test_two_thousand_places_and_256_segments_are_chosen_in_seconds() -> None:
    random = np.random.default_rng(0)
    many = places(*((i, int(random.integers(1, 99))) for i in range(1, 5001)))
    started = time.perf_counter()
    steps = choose(many, 5001, 256)
    assert len(set(steps)) == 255
    assert list(steps) == sorted(steps)
    assert time.perf_counter() - started < 20


def test_several_names_cut_after_the_last_of_them(tmp_path: Path) -> None:
    path = graphs.save(graphs.branches(), tmp_path)
    plan = split_onnx(path, tmp_path / "plan", cuts=[("b", "early")])
    assert {spec.name for spec in plan.segments[0].outputs} == {"early", "b"}


def test_cuts_are_put_in_the_graphs_order(tmp_path: Path) -> None:
    path = graphs.save(graphs.chain(5), tmp_path)
    plan = split_onnx(path, tmp_path / "plan", cuts=["v4", "v1"])
    made = [[spec.name for spec in segment.outputs] for segment in plan.segments]
    assert made == [["v1"], ["v4"], ["y"]]


@pytest.mark.parametrize(
    ("cuts", "match"),
    [
        (["x"], "'x': is an input of the model: nothing comes before it"),
        (["w0"], "'w0': depends on weights alone: it is remade, not sent"),
        (["y"], "'y': no node that an output needs comes after it"),
        (["v11"], "no node that an output needs makes it; did you mean 'v1'"),
        (["v1", "v1"], "'v1': is the same as another"),
        ([()], "cut: got no tensor name"),
    ],
)
def test_a_name_where_one_cannot_cut_is_refused_with_the_reason(
    tmp_path: Path, cuts: list[str], match: str
) -> None:
    path = graphs.save(graphs.chain(), tmp_path)
    with pytest.raises(ConfigurationError, match=match):
        split_onnx(path, tmp_path / "plan", cuts=cuts)


def test_text_may_not_cross_a_cut(tmp_path: Path) -> None:
    model = graphs.model(
        [
            helper.make_node("Cast", ["x"], ["text"], to=TensorProto.STRING),
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Cast", ["text"], ["back"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["back", "a"], ["y"]),
        ],
        [graphs.value("x")],
        [graphs.value("y")],
    )
    path = graphs.save(model, tmp_path)
    with pytest.raises(
        ConfigurationError,
        match="cut 'a': 'text' cannot cross it: its elements are STRING",
    ):
        split_onnx(path, tmp_path / "plan", cuts=["a"])
    plan = split_onnx(path, tmp_path / "plan", segments=2)
    assert {spec.name for spec in plan.segments[0].outputs} == {"a", "back"}
    with pytest.raises(ConfigurationError, match="can be cut into 2 at most"):
        split_onnx(path, tmp_path / "plan", segments=3)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({}, "want either segments or cuts"),
        ({"segments": 2, "cuts": ["v1"]}, "want either segments or cuts"),
        ({"segments": 0}, "segments: got 0, want 1 to 256"),
        ({"segments": 257}, "segments: got 257, want 1 to 256"),
        ({"segments": 2, "samples": []}, "samples: got none, want at least one"),
        ({"segments": 2, "samples": {"q": np.zeros(1)}}, r"samples: got \['q'\], want"),
        (
            {"segments": 2, "samples": {"x": np.zeros((2, 4))}},
            "does not run on the samples given",
        ),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    tmp_path: Path, asked: dict[str, object], match: str
) -> None:
    path = graphs.save(graphs.chain(), tmp_path)
    with pytest.raises(ConfigurationError, match=match):
        split_onnx(path, tmp_path / "plan", **asked)  # type: ignore[arg-type]


def test_a_tolerance_below_zero_is_refused(tmp_path: Path) -> None:
    path = graphs.save(graphs.chain(), tmp_path)
    with pytest.raises(ConfigurationError, match="tolerance: got -1"):
        split_onnx(path, tmp_path / "plan", segments=2, tolerance=-1)


def test_a_model_that_wants_more_of_its_inputs_asks_for_samples(
    tmp_path: Path,
) -> None:
    model = graphs.model(
        [
            helper.make_node("Reshape", ["x", "shape"], ["a"]),
            helper.make_node("Relu", ["a"], ["y"]),
        ],
        [graphs.value("x"), graphs.value("shape", (2,), TensorProto.INT64)],
        [graphs.value("y", ("p", "q"))],
    )
    path = graphs.save(model, tmp_path)
    with pytest.raises(
        ConfigurationError, match=r"(?s)made up from its types: .*Give samples that it"
    ):
        split_onnx(path, tmp_path / "plan", segments=2)
    sample = {"x": np.ones((3, 4), np.float32), "shape": np.array([2, 6])}
    np.savez(tmp_path / "sample.npz", **sample)  # type: ignore[arg-type]
    given = read_samples(tmp_path / "sample.npz")
    plan = split_onnx(path, tmp_path / "plan", segments=2, samples=given)
    assert len(plan.segments) == 2


def test_samples_from_a_file_are_plain_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04junk")
    np.savez(tmp_path / "text.npz", x=np.array(["a"]))
    for name in ("objects", "junk", "text"):
        with pytest.raises(MalformedInputError, match=r"want one of|is not an \.npz"):
            read_samples(tmp_path / f"{name}.npz")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_samples(tmp_path / "gone.npz")


def test_a_size_made_of_others_is_computed() -> None:
    from bentoml_secure.split.samples import guess

    specs = [
        TensorSpec(name="past", dtype="float32", shape=("b", 2, "p", 4)),
        TensorSpec(name="ids", dtype="int64", shape=("b", "s")),
        TensorSpec(name="mask", dtype="int64", shape=("b", "p + s")),
        TensorSpec(name="twice", dtype="float32", shape=("2*s",)),
        TensorSpec(name="odd", dtype="float32", shape=("s - p // 0",)),
    ]
    model = graphs.chain()
    for sample in guess(model, analyse(model), specs):
        past, tokens = sample["past"].shape[2], sample["ids"].shape[1]
        assert sample["mask"].shape == (sample["ids"].shape[0], past + tokens)
        assert sample["twice"].shape == (2 * tokens,)
        assert (sample["mask"][:, 0] == 1).all()


def test_progress_is_told_in_words(tmp_path: Path) -> None:
    told: list[str] = []
    path = graphs.save(graphs.chain(), tmp_path)
    split_onnx(path, tmp_path / "plan", segments=2, progress=told.append)
    assert told[0] == "reading model.onnx"
    assert told[-1].startswith("comparing with the whole")


def test_a_choice_that_fusion_makes_unequal_is_moved(tmp_path: Path) -> None:
    """Layer norms, one after the other: cut inside one, and its fusion is gone."""
    nodes = []
    weights = [graphs.weight("w"), graphs.weight("g", 4), graphs.weight("b", 4)]
    for name, number in (("two", 2.0), ("eps", 1e-5)):
        tensor = helper.make_tensor(name, TensorProto.FLOAT, (), [number])
        weights.append(tensor)
    previous = "x"
    for layer in range(3):
        p = f"n{layer}_"
        nodes += [
            helper.make_node("MatMul", [previous, "w"], [p + "in"]),
            helper.make_node("ReduceMean", [p + "in"], [p + "mean"], axes=[-1]),
            helper.make_node("Sub", [p + "in", p + "mean"], [p + "off"]),
            helper.make_node("Pow", [p + "off", "two"], [p + "sq"]),
            helper.make_node("ReduceMean", [p + "sq"], [p + "var"], axes=[-1]),
            helper.make_node("Add", [p + "var", "eps"], [p + "add"]),
            helper.make_node("Sqrt", [p + "add"], [p + "std"]),
            helper.make_node("Div", [p + "off", p + "std"], [p + "norm"]),
            helper.make_node("Mul", [p + "norm", "g"], [p + "mul"]),
            helper.make_node("Add", [p + "mul", "b"], [p + "out"]),
        ]
        previous = p + "out"
    nodes.append(helper.make_node("Identity", [previous], ["y"]))
    path = graphs.save(
        graphs.model(nodes, [graphs.value("x")], [graphs.value("y")], weights),
        tmp_path,
    )
    with pytest.warns(SplitWarning, match="a cut parts nodes that ONNX Runtime fuses"):
        split_onnx(path, tmp_path / "named", cuts=["n1_norm"])
    moved = 0
    for segments in (2, 4, 6):
        told: list[str] = []
        split_onnx(path, tmp_path / "plan", segments=segments, progress=told.append)
        moved += len([words for words in told if "choice" in words]) - 1
    assert moved, "every first choice was equal: the test shows nothing"
