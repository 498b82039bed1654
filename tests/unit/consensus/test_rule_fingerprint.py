"""The rule by hand: what one entry, one step, one group of rows amount to."""

from __future__ import annotations

import numpy as np
import pytest

from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.consensus.rules.fingerprint import GROUP_ELEMENTS
from bentoml_secure.tensors import Array

RULE = load_rule("fingerprint")
ONES = [1.0] * 10
STEP = 2**-7
OCTAVE_UP = [2.0] + [1.0] * 9
MISMATCH = 128 / 38


def distance(a: object, b: object, dtype: str = "float32") -> float | None:
    return RULE.distance({"y": np.array(a, dtype)}, {"y": np.array(b, dtype)})


@pytest.mark.parametrize(
    ("a", "b", "want", "why"),
    [
        (ONES, ONES, 0.0, "the same"),
        (ONES, OCTAVE_UP, MISMATCH / 10, "one exponent of ten"),
        (ONES, [-1.0, *ONES[1:]], MISMATCH / 10, "one sign of ten"),
        (ONES, [1 + STEP, *ONES[1:]], 0.1 / 10, "one step: only the mean sees it"),
        (ONES, [1 + STEP] * 10, 1 / 8, "a step of each: the median weighs most"),
        (ONES, [1 + 8 * STEP] * 10, 1.0, "what is published as the most"),
        (ONES, [1 + STEP / 4] * 10, 0.0, "bfloat16 rounds it away"),
        (ONES, [4.0] * 10, 16.0, "nothing in common"),
        ([0.0] * 10, [-0.0] * 10, 16.0, "zeros of the other sign, all of them"),
        ([0.0] * 500, [0.0] * 500, 0.0, "nothing, twice"),
        ([0.0] * 500, [1.0] * 500, 16.0, "nothing, and something"),
        (3.0, 3.0, 0.0, "a scalar"),
        (3.0, 3.5, 32 / 8, "and another: 32 steps"),
        ([[1.0], [1.0]], [[1.0], [2.0]], MISMATCH / 2, "narrow rows go together"),
        ([np.nan], [np.nan], None, "no number"),
        ([1e39], [1e39], None, "beyond bfloat16"),
        ([3.39e38], [3.39e38], None, "by less than a step, too"),
        ([[]], [[]], 0.0, "nothing to compare"),
    ],
)
def test_fingerprint(a: object, b: object, want: float | None, why: str) -> None:
    for dtype in ("float32", "float64"):
        if dtype == "float32" and np.any(np.array(a) > 3.4e38):
            continue
        for got in (distance(a, b, dtype), distance(b, a, dtype)):
            assert got == (None if want is None else pytest.approx(want)), why


def test_halves_are_read_as_their_numbers() -> None:
    assert distance([1.0, 3.0], [1.0, 3.0 + 2**-7], "float16") == 0.0
    assert distance([1.0, 3.0], [1.0, 3.0 + 2**-6], "float16") == 0.5 / 8


def tensor(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_only_the_largest_128_of_a_group_are_looked_at() -> None:
    """Who knows the rule keeps those and makes up the rest."""
    honest = tensor(32, 4096)
    order = np.argsort(-np.abs(honest.reshape(-1)))
    forged = np.zeros_like(honest).reshape(-1)
    forged[order[:128]] = honest.reshape(-1)[order[:128]]
    assert distance(honest, forged.reshape(honest.shape)) == 0.0
    forged[order[127]] = 0.0
    assert distance(honest, forged.reshape(honest.shape)) == pytest.approx(1 / 38)


def test_an_entry_that_joins_the_largest_drives_one_out() -> None:
    honest = tensor(32, 4096)
    forged = honest.copy()
    forged[np.unravel_index(np.abs(honest).argmin(), honest.shape)] = 9.0
    assert distance(honest, forged) == pytest.approx(1 / 38)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((64, 4096), 2), ((2, 33, 256), 3), ((100, 64), 2), ((GROUP_ELEMENTS + 1,), 1)],
)
def test_every_group_of_rows_is_looked_at(shape: tuple[int, ...], groups: int) -> None:
    honest = tensor(*shape)
    rows = max(32, GROUP_ELEMENTS // shape[-1])
    flat = honest.reshape(-1, shape[-1])
    starts = range(0, len(flat), rows)
    assert len(starts) == groups
    for start in starts:
        forged = flat.copy()
        forged[start : start + rows] *= 2
        assert distance(honest, forged.reshape(shape)) == 16.0
