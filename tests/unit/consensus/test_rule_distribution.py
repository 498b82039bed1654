"""Divergence of distributions: logits and probabilities, by hand and at the edges."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.consensus.rules.pairing import CHUNK_ELEMENTS

LN = math.log
ENTROPY_OF_A_QUARTER = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))


def distance(kind: str, a: object, b: object, dtype: str = "float64") -> float | None:
    return load_rule(kind).distance(
        {"y": np.array(a, dtype)}, {"y": np.array(b, dtype)}
    )


@pytest.mark.parametrize(
    ("a", "b", "bits", "variation", "why"),
    [
        ([1, 0], [0, 1], 1.0, 1.0, "nothing in common"),
        ([1, 0], [1, 0], 0.0, 0.0, "the same"),
        # H((a + b) / 2) - (H(a) + H(b)) / 2
        ([1, 0], [0.5, 0.5], ENTROPY_OF_A_QUARTER - 0.5, 0.5, "certain or undecided"),
        ([1, 0, 0], [0, 0.5, 0.5], 1.0, 1.0, "spread over what the other excludes"),
        ([0.5, 0.5, 0], [0, 0.5, 0.5], 0.5, 0.5, "half in common"),
        ([[1, 0], [1, 0]], [[1, 0], [0, 1]], 1.0, 1.0, "the worst row decides"),
        ([[[1, 0]], [[1, 0]]], [[[1, 0]], [[0, 1]]], 1.0, 1.0, "rows of any rank"),
        ([0.9, 0.2], [0.9, 0.2], None, None, "adds up to more than 1"),
        ([0.4, 0.5], [0.5, 0.5], None, None, "adds up to less than 1"),
        ([0.5, 0.5], [0.4, 0.5], None, None, "as the other does"),
        ([1.5, -0.5], [0.5, 0.5], None, None, "less than nothing"),
        ([0.5, 0.5], [-0.5, 1.5], None, None, "as the other is"),
        ([1e308, 0], [1e308, 0], None, None, "sums would overflow"),
        ([0, 0], [0, 0], None, None, "no distribution at all"),
        ([1.0], [1.0], 0.0, 0.0, "rows of one entry are equal"),
        ([1.0], [0.999], None, None, "or are not comparable"),
        (1.0, 1.0, 0.0, 0.0, "so are scalars"),
        (1.0, 0.5, None, None, "or they are not"),
        ([5e-324, 1], [0, 1], 0.0, 0.0, "what float64 can halve no further"),
    ],
)
def test_probabilities(
    a: object, b: object, bits: float | None, variation: float | None, why: str
) -> None:
    for kind, want in (("jensen_shannon", bits), ("total_variation", variation)):
        got = distance(f"{kind}_of_probabilities", a, b)
        assert got == (want if want is None else pytest.approx(want, abs=1e-15)), why


@pytest.mark.parametrize(
    ("a", "b", "bits", "variation", "why"),
    [
        ([0, 0], [0, 0], 0.0, 0.0, "the same"),
        ([LN(3), 0], [0, 0], 0.0487949406953, 0.25, "three to one, or even"),
        ([LN(3), 0], [0, LN(3)], 1 - ENTROPY_OF_A_QUARTER, 0.5, "the other way round"),
        ([0, LN(3)], [100, 100 + LN(3)], 0.0, 0.0, "a shift is not seen"),
        ([0, -1000], [0, -2000], 0.0, 0.0, "nor what nothing falls on"),
        ([0, 800], [800, 0], 1.0, 1.0, "powers would overflow"),
        ([1.7e308, -1.7e308], [-1.7e308, 1.7e308], 1.0, 1.0, "so do differences"),
        ([1e20, 1e20], [1e20, -1e20], ENTROPY_OF_A_QUARTER - 0.5, 0.5, "large logits"),
        ([-1e20, 0], [0, -1e20], 1.0, 1.0, "and small ones"),
        ([[0, 0], [0, 0]], [[0, 0], [LN(3), 0]], 0.0487949406953, 0.25, "worst row"),
        ([2.0], [2.0], 0.0, 0.0, "a softmax of one entry is 1 whatever it is"),
        ([2.0], [2.5], None, None, "so it has to be equal"),
        (2.0, 2.5, None, None, "as scalars"),
        ([np.nan, 0], [np.nan, 0], None, None, "not finite"),
        ([-np.inf, 0], [-np.inf, 0], None, None, "masked logits are not finite"),
    ],
)
def test_logits(
    a: object, b: object, bits: float | None, variation: float | None, why: str
) -> None:
    for kind, want in (("jensen_shannon", bits), ("total_variation", variation)):
        got = distance(f"{kind}_of_logits", a, b)
        assert got == (want if want is None else pytest.approx(want, abs=2e-13)), why


@pytest.mark.parametrize("kind", ["jensen_shannon", "total_variation"])
@pytest.mark.parametrize("width", [2, 1000, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1, 70_000])
def test_rows_of_every_width_are_measured_whole(kind: str, width: int) -> None:
    """Pieces of a row add up; logits and their softmax are as far apart."""
    draw = np.random.default_rng(width)
    a, b = draw.standard_normal((2, 3, width))
    b[:2] = a[:2]
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in (a, b))
    whole = 0.5 * np.abs(p[2] - q[2]).sum()
    if kind == "jensen_shannon":
        middle = (p[2] + q[2]) / 2
        whole = (
            0.5 * (p[2] * np.log2(p[2] / middle) + q[2] * np.log2(q[2] / middle)).sum()
        )
    for form, x, y in (("logits", a, b), ("probabilities", p, q)):
        assert distance(f"{kind}_of_{form}", x, y) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_softmax_of_any_precision_is_a_distribution(dtype: str) -> None:
    logits = np.random.default_rng(0).standard_normal((4, 30_000)) * 3
    rows = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert distance("total_variation_of_probabilities", rows, rows, dtype) == 0.0


def test_noise_is_told_from_nothing() -> None:
    """In float32 the sum would drown what float64 tells apart."""
    logits = np.random.default_rng(0).standard_normal((8, 1000))
    noise = np.random.default_rng(1).standard_normal((8, 1000))
    found = [
        distance("jensen_shannon_of_logits", logits, logits + scale * noise)
        for scale in (1e-8, 1e-6, 1e-4, 1e-2)
    ]
    assert all(bits is not None for bits in found)
    # Quadratic in the noise, down to 1e-17 bits.
    for small, large in pairwise(found):
        assert large == pytest.approx(1e4 * (small or 0), rel=0.05)


def test_what_is_blind_is_blind() -> None:
    """A vocabulary of which one token is certain: the others' logits say anything."""
    honest, forged = np.full(1000, -30.0), np.full(1000, -40.0)
    honest[7], forged[7] = 30.0, -5.0
    assert (distance("jensen_shannon_of_logits", honest, forged) or 1) < 1e-12
    apart = distance("within_tolerance", honest, forged)
    assert apart is not None
    assert apart > 0.5
