"""The contract of every registered rule, and what is particular to each."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from bentoml_secure.consensus.rules import RULES, Rule, load_rule
from bentoml_secure.consensus.rules.pairing import CHUNK_ELEMENTS
from bentoml_secure.errors import UnknownKindError
from bentoml_secure.tensors import Array

EVERY_RULE = pytest.mark.parametrize("rule", [load_rule(k) for k in RULES], ids=RULES)
TOLERANT = load_rule("within_tolerance")
EXACT = load_rule("exact")


def answer(seed: int = 0) -> dict[str, Array]:
    """Return tensors that every rule can read: rows are distributions."""
    draw = np.random.default_rng(seed)
    return {
        "logits": draw.dirichlet(np.ones(5), 3).astype(np.float32),
        "half": draw.dirichlet(np.ones(7)).astype(np.float16),
        "wide": draw.dirichlet(np.ones(2), (2, 1)),
        "ids": draw.integers(0, 9, 4),
        "mask": draw.integers(0, 2, 6).astype(bool),
        "none": np.zeros((0, 3), np.float32),
        "scalar": np.asarray(draw.standard_normal(), np.float32),
    }


def changed(name: str, array: Array) -> dict[str, Array]:
    return answer() | {name: array}


@EVERY_RULE
def test_an_answer_is_at_distance_0_from_itself(rule: Rule) -> None:
    assert rule.distance(answer(), answer()) == 0.0
    assert rule.distance({}, {}) == 0.0


@EVERY_RULE
def test_distance_is_symmetric(rule: Rule) -> None:
    near = changed("logits", answer()["logits"] * np.float32(1.001))
    for other in (near, answer(1), changed("ids", np.zeros(4, np.int64))):
        assert rule.distance(answer(), other) == rule.distance(other, answer())


@EVERY_RULE
def test_the_order_of_names_is_irrelevant(rule: Rule) -> None:
    near = changed("half", np.nextafter(answer()["half"], np.float16(9)))
    backwards = {name: near[name] for name in reversed(near)}
    assert rule.distance(answer(), backwards) == rule.distance(answer(), near)
    assert rule.distance(answer(), dict(reversed(answer().items()))) == 0.0


@EVERY_RULE
def test_byte_order_and_strides_are_irrelevant(rule: Rule) -> None:
    logits = answer()["logits"]
    assert rule.distance(answer(), changed("logits", logits.astype(">f4"))) == 0.0
    strided = np.repeat(logits, 2, axis=1)[:, ::2]
    assert rule.distance(answer(), changed("logits", strided)) == 0.0


@EVERY_RULE
@pytest.mark.parametrize(
    "other",
    [
        {},
        {n: a for n, a in answer().items() if n != "ids"},
        answer() | {"more": np.zeros(1, np.float32)},
        changed("logits", answer()["logits"].reshape(5, 3)),
        changed("logits", answer()["logits"][:, :4]),
        changed("logits", answer()["logits"].astype(np.float64)),
        changed("scalar", answer()["scalar"].reshape(1)),
        changed("none", np.zeros((3, 0), np.float32)),
        changed("ids", answer()["ids"] + 1),
        changed("ids", answer()["ids"].astype(np.uint64)),
        changed("mask", ~answer()["mask"]),
        changed("wide", np.full((2, 1, 2), np.nan)),
        changed("wide", np.full((2, 1, 2), np.inf)),
        changed("half", np.full(7, -np.inf, np.float16)),
    ],
    ids=list(map(str, range(14))),
)
def test_what_cannot_be_compared_has_no_distance(
    rule: Rule, other: Mapping[str, Array]
) -> None:
    assert rule.distance(answer(), other) is None
    assert rule.distance(other, answer()) is None


@EVERY_RULE
def test_extremes_neither_warn_nor_agree(rule: Rule) -> None:
    low = {"y": np.array([-1.7e308, 1.0])}
    high = {"y": np.array([1.7e308, 1.0])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distance = rule.distance(low, high)
    assert distance is None or 0.5 <= distance < 1e6


@EVERY_RULE
def test_both_of_two_tensors_are_measured(rule: Rule) -> None:
    far = np.roll(answer()["logits"], 1, axis=1)
    apart = rule.distance({"y": answer()["logits"]}, {"y": far})
    one = {"x": answer()["wide"], "y": answer()["logits"]}
    assert apart is None or apart > 0
    assert rule.distance(one, one | {"y": far}) == apart
    assert rule.distance(dict(reversed(one.items())), one | {"y": far}) == apart


def test_only_registered_kinds_load() -> None:
    with pytest.raises(UnknownKindError, match="unknown kind 'cosine'; known: exact"):
        load_rule("cosine")


def test_the_page_has_a_row_of_every_rule() -> None:
    page = (Path(__file__).parents[3] / "docs/consensus-rules.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| [^|]+ \| [^|]+ms \|", page, re.M
    )
    assert sorted(rows) == sorted(RULES)


def test_zeros_and_an_answer_are_not_comparable_by_scale() -> None:
    zeros = changed("logits", np.zeros((3, 5), np.float32))
    assert TOLERANT.distance(answer(), zeros) is None
    assert EXACT.distance(answer(), zeros) is None


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ([3.0, -4.0], [3.0, -4.5], 0.5 / np.sqrt(12.5)),
        ([3.0, -4.5], [3.0, -4.0], 0.5 / np.sqrt(12.5)),
        # Scaled by the smaller: a blown-up answer does not widen its own tolerance.
        ([1.0, 1.0], [50.0, 50.0], 49.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [-0.0, 0.0], 0.0),
        ([0.0, 0.0], [1e-30, 0.0], None),
        ([1e300, -1e300], [1e300, -1.5e300], 0.5),
        ([1e-300, -1e-300], [1e-300, -1.5e-300], 0.5),
    ],
)
def test_distance_within_tolerance_by_hand(
    a: list[float], b: list[float], distance: float | None
) -> None:
    measured = TOLERANT.distance({"y": np.array(a)}, {"y": np.array(b)})
    assert measured == (
        None if distance is None else pytest.approx(distance, rel=1e-12)
    )


def test_the_worst_tensor_decides_by_its_own_scale() -> None:
    a = {"big": np.full(4, 1000.0), "small": np.full(4, 1.0)}
    b = {"big": np.full(4, 1001.0), "small": np.full(4, 1.25)}
    assert TOLERANT.distance(a, b) == 0.25
    backwards = {name: a[name] for name in ("small", "big")}
    assert TOLERANT.distance(backwards, b) == 0.25


def test_sums_are_taken_in_float64() -> None:
    # In float16 the squares overflow, in float32 the small ones would be lost.
    a = {"y": np.full(1 << 17, 300.0, np.float16)}
    b = {"y": np.full(1 << 17, 300.25, np.float16)}
    assert TOLERANT.distance(a, b) == pytest.approx(0.25 / 300, rel=1e-12)


def test_differences_are_taken_in_float64() -> None:
    far = {"y": np.array([6e4], np.float16)}, {"y": np.array([-6e4], np.float16)}
    assert TOLERANT.distance(*far) == 2.0
    odd = {"y": np.array([1 << 24], np.float32)}, {"y": np.array([-1], np.float32)}
    assert TOLERANT.distance(*odd) == (1 << 24) + 1


@pytest.mark.parametrize("place", [0, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, -1])
def test_every_chunk_is_looked_at(place: int) -> None:
    a = {"y": np.ones(2 * CHUNK_ELEMENTS + 3, np.float32)}
    b = {"y": a["y"].copy()}
    b["y"][place] = 1.5
    assert TOLERANT.distance(a, b) == 0.5
    b["y"][place] = np.nan
    assert TOLERANT.distance(a, b) is None


def test_honest_noise_and_a_cheaper_model_lie_on_both_sides_of_the_tolerance() -> None:
    draw = np.random.default_rng(0)
    weights = draw.standard_normal((64, 64)).astype(np.float32)
    x = draw.standard_normal((16, 64)).astype(np.float32)
    served = {"y": x @ weights}
    reordered = {"y": (x[:, ::-1] @ weights[::-1])}
    cheaper = {"y": x @ weights.astype(np.float16).astype(np.float32)}
    honest, cheat = (
        TOLERANT.distance(served, reordered),
        TOLERANT.distance(served, cheaper),
    )
    assert honest is not None
    assert cheat is not None
    assert honest < 2e-5 < cheat


def test_exact_tells_zeros_and_nans_apart_by_their_bytes() -> None:
    nan = {"y": np.array([np.nan, 0.0])}
    assert EXACT.distance(nan, {"y": np.array([np.nan, 0.0])}) == 0.0
    assert EXACT.distance(nan, {"y": np.array([np.nan, -0.0])}) is None
    one_ulp = {"y": np.nextafter(np.ones(3, np.float32), np.float32(2))}
    assert EXACT.distance({"y": np.ones(3, np.float32)}, one_ulp) is None
