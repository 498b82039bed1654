"""Every rule keeps its contract on arrays nobody chose; some have a slow reference."""

from __future__ import annotations

import math
import warnings
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bentoml_secure.consensus.quorum import Member, Vote, decide
from bentoml_secure.consensus.rules import RULES, load_rule
from bentoml_secure.consensus.rules.toploc import (
    build_fingerprint,
    parse_fingerprint,
)
from bentoml_secure.digest import Digest
from bentoml_secure.tensors import DTYPES, Array

SHAPE = arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)
TENSOR = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: arrays.arrays(np.dtype(dtype), SHAPE)
)
ANSWER = st.dictionaries(st.sampled_from(["x", "y"]), TENSOR)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[dict[str, Array], dict[str, Array]]:
    """Two answers of one layout, or of any."""
    a = draw(ANSWER)
    if draw(st.booleans()):
        return a, draw(ANSWER)
    b = {
        name: draw(arrays.arrays(array.dtype, array.shape)) for name, array in a.items()
    }
    return a, b


@pytest.mark.parametrize("kind", RULES)
@given(pair=neighbours())
def test_distance_is_symmetric_finite_and_never_fails(
    kind: str, pair: tuple[dict[str, Array], dict[str, Array]]
) -> None:
    rule = load_rule(kind)
    a, b = pair
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        there, back = rule.distance(a, b), rule.distance(b, a)
    assert there == back
    assert there is None or (math.isfinite(there) and there >= 0)
    assert rule.distance(dict(reversed(a.items())), b) == there


@pytest.mark.parametrize("kind", RULES)
@given(answer=ANSWER)
def test_an_answer_is_at_distance_0_from_its_copy(
    kind: str, answer: dict[str, Array]
) -> None:
    """Where the rule can read it; NaN and infinity only ``exact`` compares."""
    copies = {name: array.copy() for name, array in answer.items()}
    readable = readable_by(kind, answer)
    assert load_rule(kind).distance(answer, copies) == (0.0 if readable else None)


def readable_by(kind: str, answer: dict[str, Array]) -> bool:
    floats = [a for a in answer.values() if a.dtype.kind == "f" and a.size]
    if kind == "exact":
        return True
    if not all(np.isfinite(a).all() for a in floats):
        return False
    if kind == "fingerprint":
        return all(np.abs(a.astype(np.float64)).max() < 3.39e38 for a in floats)
    if kind.endswith("of_probabilities"):
        rows = [a.astype(np.float64) for a in floats if a.ndim and a.shape[-1] > 1]
        with np.errstate(over="ignore"):
            return all(
                (a >= 0).all() and (abs(a.sum(axis=-1) - 1) <= 0.01).all() for a in rows
            )
    return True


ELEMENT = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(ELEMENT, ELEMENT), min_size=1, max_size=20))
def test_distance_equals_the_formula_in_plain_python(
    pairs: list[tuple[float, float]],
) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    measured = load_rule("within_tolerance").distance(
        {"y": np.array(a, np.float32)}, {"y": np.array(b, np.float32)}
    )
    scales = [math.sqrt(math.fsum(x * x for x in v) / len(v)) for v in (a, b)]
    deviation = max(abs(x - y) for x, y in pairs)
    if deviation == 0:
        assert measured == 0
    elif min(scales) == 0:
        assert measured is None
    else:
        assert measured == pytest.approx(deviation / min(scales), rel=1e-9)


LOGITS = st.integers(1, 4).flatmap(
    lambda rows: st.integers(2, 7).flatmap(
        lambda width: arrays.arrays(
            np.float64,
            (2, rows, width),
            # Coarse, so that there are ties.
            elements=st.integers(-40, 40).map(lambda n: n / 4),
        )
    )
)


def measure(kind: str, a: Array, b: Array) -> float:
    found = load_rule(kind).distance({"y": a}, {"y": b})
    assert found is not None
    return found


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x) for x in row]
    return [x / math.fsum(powers) for x in powers]


@given(LOGITS)
def test_divergences_equal_their_formulas_in_plain_python(logits: Array) -> None:
    bits, variation = 0.0, 0.0
    for left, right in zip(logits[0].tolist(), logits[1].tolist(), strict=True):
        p, q = softmax(left), softmax(right)
        pairs = list(zip(p, q, strict=True))
        terms = [
            x * math.log2(2 * x / (p + q)) / 2 for p, q in pairs for x in (p, q) if x
        ]
        bits = max(bits, math.fsum(terms))
        variation = max(variation, math.fsum(abs(x - y) for x, y in pairs) / 2)
    a, b = logits
    probabilities = [np.array(list(map(softmax, side.tolist()))) for side in logits]
    for form, answers in (("logits", (a, b)), ("probabilities", probabilities)):
        for name, want in (("jensen_shannon", bits), ("total_variation", variation)):
            got = measure(f"{name}_of_{form}", *answers)
            assert got == pytest.approx(want, rel=1e-6, abs=1e-14)


@given(LOGITS, st.floats(-1e3, 1e3), st.integers(0, 1))
def test_distributions_do_not_see_a_shift_and_are_bounded(
    logits: Array, shift: float, side: int
) -> None:
    a, b = logits
    shifted = logits.copy()
    shifted[side] += shift
    for name in ("jensen_shannon_of_logits", "total_variation_of_logits"):
        apart = measure(name, a, b)
        assert 0 <= apart <= 1 + 1e-12
        assert measure(name, *shifted) == pytest.approx(apart, rel=1e-6, abs=1e-12)
    # Pinsker's inequality and its like: neither is small where the other is large.
    bits = measure("jensen_shannon_of_logits", a, b)
    variation = measure("total_variation_of_logits", a, b)
    assert variation**2 / (2 * math.log(2)) - 1e-12 <= bits <= variation + 1e-12


def stable_order(row: list[float]) -> list[int]:
    return [place for _, place in sorted((-x, place) for place, x in enumerate(row))]


@given(LOGITS)
def test_tokens_by_plain_python_never_further_apart_than_the_scores(
    logits: Array,
) -> None:
    gap = 0.0
    for a, b in zip(logits[0].tolist(), logits[1].tolist(), strict=True):
        ours, theirs = stable_order(a)[0], stable_order(b)[0]
        gap = max(gap, a[ours] - a[theirs], b[theirs] - b[ours])
    scales = [math.sqrt(math.fsum((x**2).reshape(-1)) / x.size) for x in logits]
    a, b = logits
    tokens = load_rule("token_agreement").distance({"y": a}, {"y": b})
    if not gap:
        assert tokens == 0
    elif not min(scales):
        assert tokens is None
    else:
        assert tokens is not None
        assert tokens == pytest.approx(gap / 2 / min(scales), rel=1e-9)
        assert tokens <= measure("within_tolerance", a, b) * (1 + 1e-9)


@given(LOGITS)
def test_top_five_by_plain_python(logits: Array) -> None:
    """Coarse scores: what is not tied is apart by more than the margin."""
    differ, count = 0, min(5, logits.shape[2] // 2)
    for a, b in zip(logits[0].tolist(), logits[1].tolist(), strict=True):
        tops = [set(stable_order(row)[:count]) for row in (a, b)]
        gaps = [
            max(a[i] - a[j], b[j] - b[i])
            for i in tops[0] - tops[1]
            for j in tops[1] - tops[0]
        ]
        differ += any(gap > 0 for gap in gaps)
    assert measure("top_5", *logits) == differ / logits.shape[1]


BFLOAT16 = st.integers(0, (1 << 16) - 1).filter(lambda bits: bits >> 7 & 0xFF != 0xFF)


@given(st.lists(BFLOAT16, min_size=1, max_size=300), st.data())
def test_a_fingerprint_reads_back_and_fits_its_tensor(
    bits: list[int], data: st.DataObject
) -> None:
    tensor = (np.array(bits, np.uint32) << 16).view(np.float32)
    made = build_fingerprint(tensor)
    wire = made.to_bytes()
    assert len(wire) == 2 + 2 * min(128, len(bits))
    assert parse_fingerprint(wire) == made
    assert made.difference(tensor).severity == 0.0
    place = data.draw(st.integers(0, len(bits) - 1))
    other = tensor.copy()
    other[place] = -other[place]
    looked_at = measure("fingerprint", tensor, other)
    assert (made.difference(other).severity > 0) == (looked_at > 0)


NOISE = st.lists(st.sampled_from([0.0, 1e-9, 1e-6, 1e-3, 0.5]), min_size=2, max_size=5)


@pytest.mark.parametrize("kind", RULES)
@settings(max_examples=25)
@given(noise=NOISE, random=st.randoms(use_true_random=False))
def test_the_order_of_votes_is_irrelevant_to_what_a_rule_decides(
    kind: str, noise: list[float], random: Any
) -> None:
    draw = np.random.default_rng(len(noise))
    honest = draw.dirichlet(np.ones(6), 3)
    answers = {}
    for seat, amount in enumerate(noise):
        answer = honest + amount * draw.random(honest.shape)
        answers[f"r{seat}"] = {"y": answer / answer.sum(axis=1, keepdims=True)}
    rule = load_rule(kind)
    votes = [
        Vote(replica=name, commitments=(("y", Digest(f"sha256:{noise[seat]}")),))
        for seat, name in enumerate(answers)
    ]
    committee = [Member(replica=name) for name in answers]
    distances = {
        pair: rule.distance(answers[pair[0]], answers[pair[1]])
        for pair in combinations(answers, 2)
    }
    tallies = []
    for _ in range(3):
        tallies.append(
            decide(
                committee,
                votes,
                [],
                quorum=len(noise) // 2 + 1,
                tolerance=1e-4,
                distances=distances,
            )
        )
        random.shuffle(votes)
    assert tallies[0] == tallies[1] == tallies[2]
