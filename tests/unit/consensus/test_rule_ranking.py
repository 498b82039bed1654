"""Token agreement and the top five: winners, sets, and what passes for a tie."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.consensus.rules.pairing import CHUNK_ELEMENTS
from bentoml_secure.consensus.rules.ranking import leaders, swap_gaps
from bentoml_secure.consensus.rules.top_k import TIE

ROOT2, ROOT12 = math.sqrt(2), math.sqrt(12.5)


def distance(kind: str, a: object, b: object) -> float | None:
    return load_rule(kind).distance({"y": np.array(a)}, {"y": np.array(b)})


@pytest.mark.parametrize(
    ("a", "b", "want", "why"),
    [
        ([1.0, 5.0], [4.9, 5.0], 0.0, "the same winner, however closely"),
        ([4.0, 3.0], [3.0, 4.0], 0.5 / ROOT12, "both clear: half the gap by the rms"),
        ([4.0, 3.0], [3.5, 3.6], 0.5 / ROOT12, "the larger gap"),
        ([1.0, 1.0], [1.0, 1.0], 0.0, "of a tie the first"),
        ([1.0, 1.0], [0.0, 2.0], 1.0, "a tie does not agree with a clear winner"),
        ([1.0, 1.0], [2.0, 0.0], 0.0, "unless it takes the same"),
        ([0.0, 0.0], [1.0, 2.0], None, "nothing has no scale"),
        ([0.0, 0.0], [2.0, 1.0], 0.0, "where the winner is the same none is needed"),
        ([1.0, 1.0 + 1e-9], [1.0 + 1e-9, 1.0], 5e-10, "a tie but for rounding"),
        ([3.0, -9.0, 1.0], [3.0, 1.0, -9.0], 0.0, "losers may be anything"),
        ([[1, 0.0], [1, 0]], [[1, 0.0], [0, 1]], 0.5 * ROOT2, "the worst position"),
        ([[[1.0, 0.0]]], [[[0.0, 1.0]]], 0.5 * ROOT2, "in tensors of any rank"),
        ([7.0], [7.0], 0.0, "one entry is no choice, and equal"),
        ([7.0], [7.5], None, "or not comparable"),
        (7.0, 7.0, 0.0, "a scalar as well"),
        (7.0, 7.5, None, "or not"),
        ([np.nan, 1.0], [np.nan, 1.0], None, "no number"),
        ([-np.inf, 1.0], [-np.inf, 1.0], None, "masked scores"),
        ([3, 4], [3, 4], 0.0, "token ids, equal"),
        ([3, 4], [3, 5], None, "or not comparable"),
    ],
)
def test_token_agreement(a: object, b: object, want: float | None, why: str) -> None:
    for got in (distance("token_agreement", a, b), distance("token_agreement", b, a)):
        assert got == (None if want is None else pytest.approx(want, rel=1e-6)), why


TEN = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


def ten(**scores: float) -> list[float]:
    """Return the ten scores with some replaced: ``_4=4.5`` is that at place 4."""
    row = list(TEN)
    for place, score in scores.items():
        row[int(place[1:])] = score
    return row


SCALE = math.sqrt(sum(x * x for x in TEN) / 10)


@pytest.mark.parametrize(
    ("a", "b", "want", "why"),
    [
        (TEN, TEN, 0.0, "the same"),
        (TEN, ten(_0=8.0, _1=9.0), 0.0, "the order within the five"),
        (TEN, ten(_9=3.9), 0.0, "anything below them"),
        (TEN, ten(_9=100.0), 1.0, "another one of them"),
        (TEN, ten(_4=4.0, _5=5.0), 1.0, "the fifth and the sixth exchanged"),
        (ten(_5=5.0), ten(_4=5.0, _5=5.0), 0.0, "of a tie the first, on both sides"),
        (ten(_5=5.0), ten(_4=3.9), 1.0, "a tie where the other is clear"),
        (ten(_5=5 - TIE * SCALE), ten(_4=5 - TIE * SCALE, _5=5.0), 0.0, "nearly tied"),
        (ten(_5=5 - 3 * TIE * SCALE), ten(_4=5 - 3 * TIE * SCALE, _5=5.0), 1.0, "not"),
        ([TEN, TEN], [TEN, ten(_9=100.0)], 0.5, "a share of the rows"),
        ([[TEN], [TEN]], [[ten(_8=100.0)], [ten(_9=100.0)]], 1.0, "of any rank"),
        ([[0.0] * 10], [TEN], 0.0, "all tied: takes the first five, as it happens"),
        ([[0.0] * 10], [TEN[::-1]], 1.0, "and does not agree with others"),
        ([1.0, 0.0], [0.0, 1.0], 1.0, "of two entries the first"),
        ([1.0, 0.0, 0.5], [1.0, 0.5, 0.0], 0.0, "of three too"),
        ([1.0, 0.9, 0.1, 0.0], [1.0, 0.1, 0.9, 0.0], 1.0, "of four the first two"),
        ([7.0], [7.0], 0.0, "one entry is no choice, and equal"),
        ([7.0], [7.5], None, "or not comparable"),
        (7.0, 7.5, None, "a scalar as well"),
        (np.full(10, np.nan), np.full(10, np.nan), None, "no numbers"),
        ([3, 4], [3, 5], None, "token ids that differ"),
    ],
)
def test_top_five(a: object, b: object, want: float | None, why: str) -> None:
    assert distance("top_5", a, b) == want, why
    assert distance("top_5", b, a) == want, why


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("width", [5, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS + 2, 100_000])
def test_leaders_are_those_of_a_stable_sort(width: int, count: int) -> None:
    # Halves: many ties.
    rows = np.round(np.random.default_rng(width).standard_normal((3, width)) * 8) / 8
    want = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(leaders(rows.astype(np.float32), count), want)


def test_gaps_are_zero_where_the_sets_are_the_same() -> None:
    rows = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    shuffled = np.array([[2.0, 3.0, 1.0], [2.0, 1.0, 3.0]])
    np.testing.assert_array_equal(swap_gaps((rows, shuffled), 2), [0.0, 1.0])


@pytest.mark.parametrize("place", [6, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, -1])
@pytest.mark.parametrize("shape", [(2 * CHUNK_ELEMENTS + 3,), (2 * CHUNK_ELEMENTS, 2)])
def test_every_row_and_column_is_looked_at(shape: tuple[int, ...], place: int) -> None:
    a = np.zeros(shape, np.float32)
    a[..., 1] = 1.0
    b = a.copy()
    b[(place, 0) if len(shape) > 1 else place] = 9.0
    for kind in ("token_agreement", "top_5"):
        assert distance(kind, a, b) not in (None, 0.0)
        assert distance(kind, a, a) == 0.0


def test_tokens_agree_wherever_scores_do() -> None:
    """Noise below what is tolerated may exchange near ties, and nothing else."""
    draw = np.random.default_rng(0)
    scores = np.round(draw.standard_normal((500, 50)), 1)
    found = []
    for noise in (1e-9, 1e-7, 1e-5):
        other = scores + noise * draw.standard_normal(scores.shape)
        within = distance("within_tolerance", scores, other)
        tokens = distance("token_agreement", scores, other)
        assert within is not None
        assert tokens is not None
        assert 0 < tokens <= within
        assert distance("top_5", scores, other) == 0.0
        found.append(tokens)
    assert all(a < b for a, b in pairwise(found))
