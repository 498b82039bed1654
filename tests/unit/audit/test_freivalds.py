"""Freivalds' check: exact arithmetic, every lie caught, and what it does not take."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bentoml_secure.audit.freivalds import (
    ERROR_BOUND,
    MAX_WIDTH,
    PRIME,
    FreivaldsCheck,
    FreivaldsReferee,
    times,
)
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.split.integer_layer import IntegerLayer
from bentoml_secure.tensors import Array

Changes = Mapping[str, Any]


def layer(k: int, n: int, *, largest: int = 2**31 - 1, **changes: Any) -> IntegerLayer:
    rng = np.random.default_rng(k * n)
    terms: Changes = {
        "given": "x",
        "made": "y",
        "weights": rng.integers(-128, 128, (k, n)),
        "bias": rng.integers(-1000, 1000, n),
        "zero_point": 0,
        "largest": largest,
    }
    return IntegerLayer(**{**terms, **changes})


def run(of: IntegerLayer, given: Array) -> Array:
    shifted = given.astype(np.int64) - of.zero_point
    return (shifted @ of.weights + of.bias).astype(np.int32)


def inputs(m: int, k: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (m, k), dtype=np.uint8)


def check(of: IntegerLayer) -> FreivaldsCheck:
    return FreivaldsCheck(of, draw=secrets.token_bytes)


@pytest.mark.parametrize(
    ("m", "n", "low", "high"),
    [
        (1, 1, 0, 2),
        (5, 1, -(2**53), 2**53),
        (3, 17, -(2**53), 2**53),
        (4, 1000, -128, 128),
        (2, 5000, -(2**31), 2**31),
        (2, 65_537, -(2**40), 2**40),
    ],
)
def test_a_matrix_times_a_vector_is_exact(m: int, n: int, low: int, high: int) -> None:
    rng = np.random.default_rng(m * n)
    matrix = rng.integers(low, high, (m, n), endpoint=True)
    vector = rng.integers(0, PRIME, n, dtype=np.uint64)
    matrix[0, 0], vector[0] = low, PRIME - 1
    exact = [
        sum(int(a) * int(b) for a, b in zip(row, vector, strict=True)) % PRIME
        for row in matrix
    ]
    assert times(matrix, vector).tolist() == exact


def test_extremes_add_up_exactly() -> None:
    """All elements of the largest magnitude, so that every sum is the largest."""
    for size, value in ((1, -(2**53)), (4096, 2**53), (4096, -(2**53)), (3, -1)):
        matrix = np.full((2, size), value)
        vector = np.full(size, PRIME - 1, np.uint64)
        want = size * value * (PRIME - 1) % PRIME
        assert times(matrix, vector).tolist() == [want, want]


@pytest.mark.parametrize("shape", [(1, 64, 32), (16, 100, 7), (8, 1, 1), (3, 5, 129)])
def test_an_honest_product_passes(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    of = layer(k, n, zero_point=128)
    checked = check(of)
    for seed in range(5):
        given = inputs(m, k, seed)
        checked.require(given, run(of, given))


def test_leading_axes_are_rows() -> None:
    of = layer(6, 4)
    given = inputs(12, 6).reshape(2, 2, 3, 6)
    made = run(of, given.reshape(12, 6)).reshape(2, 2, 3, 4)
    check(of).require(given, made)
    check(of).require(given[0, 0, 0], made[0, 0, 0])
    with pytest.raises(VerificationError, match=r"got shape \(12, 4\), want \(2, 2"):
        check(of).require(given, made.reshape(12, 4))


def test_ten_thousand_single_changes_are_all_caught() -> None:
    of = layer(48, 24)
    given = inputs(6, 48)
    made = run(of, given)
    checked = check(of)
    rng = np.random.default_rng(1)
    for _ in range(10_000):
        row, column = int(rng.integers(6)), int(rng.integers(24))
        changed = made.copy()
        changed[row, column] += rng.choice([-1, 1])
        with pytest.raises(VerificationError, match=f"1 of 6 .* the first: {row}$"):
            checked.require(given, changed)
    checked.require(given, made)


@pytest.mark.parametrize(
    "lie",
    [
        lambda y: y[::-1],
        lambda y: np.zeros_like(y),
        lambda y: -y,
        lambda y: np.roll(y, 1, axis=1),
        lambda y: y.astype(np.int64) + 2**53 - 2**40,
    ],
    ids=["rows swapped", "zeros", "negated", "columns turned", "far off"],
)
def test_larger_lies_are_caught(lie: Any) -> None:
    of = layer(32, 16)
    given = inputs(4, 32)
    with pytest.raises(VerificationError, match="rows are not the layer's"):
        check(of).require(given, lie(run(of, given)))


def test_nothing_is_wrong_by_a_multiple_of_the_prime() -> None:
    """Mod p such a lie is no lie: magnitudes are bounded before they are compared."""
    of = layer(8, 4)
    given = inputs(2, 8)
    lie = run(of, given).astype(np.int64) + PRIME
    # The sums alone do not show it.
    ones = np.ones(4, np.uint64)
    assert (times(lie, ones) == times(lie - PRIME, ones)).all()
    with pytest.raises(VerificationError, match="want whole numbers of at most 2"):
        check(of).require(given, lie)


def test_who_knows_the_secret_can_lie() -> None:
    """Why it is drawn here, and why answers are committed to before it is used."""
    of = layer(8, 2)
    known = np.arange(1, 3, dtype=np.uint64)
    drawn = (known << np.uint64(3)).tobytes()
    given = inputs(2, 8)
    lie = run(of, given)
    # With r = (1, 2), two more on the left are one less on the right.
    lie[:, 0] += 2
    lie[:, 1] -= 1
    FreivaldsCheck(of, draw=lambda _: drawn).require(given, lie)
    with pytest.raises(VerificationError, match="2 of 2 rows"):
        check(of).require(given, lie)


def test_a_secret_is_drawn_anew_after_a_refusal_and_only_then() -> None:
    drawn: list[int] = []

    def draw(count: int) -> bytes:
        drawn.append(count)
        return secrets.token_bytes(count)

    of = layer(8, 4)
    given = inputs(2, 8)
    checked = FreivaldsCheck(of, draw=draw)
    for _ in range(3):
        checked.require(given, run(of, given))
    assert drawn == [32]
    with pytest.raises(VerificationError, match="2 of 2 rows"):
        checked.require(given, run(of, given) + 1)
    assert drawn == [32, 32]


def test_a_secret_is_below_the_prime() -> None:
    """61 ones are p itself, which is drawn again: or 0 would be twice as likely."""
    given = [b"\xff" * 16, bytes(8) + b"\xff" * 8, b"\x08" + bytes(7)]
    of = layer(8, 2)
    checked = FreivaldsCheck(of, draw=lambda count: given.pop(0)[:count])
    assert given == []
    checked.require(inputs(1, 8), run(of, inputs(1, 8)))


def test_the_bound_is_that_of_the_prime() -> None:
    assert pytest.approx(2**-61) == ERROR_BOUND


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (np.array([[0.5, 0, 0, 0]]), "want whole numbers"),
        (np.array([[np.nan, 0, 0, 0]]), "want whole numbers"),
        (np.array([[np.inf, 0, 0, 0]]), "want whole numbers"),
        (np.array([[2.0**60, 0, 0, 0]]), "want whole numbers"),
        (np.array([["a", "b", "c", "d"]]), "want whole numbers"),
        (np.zeros((1, 5)), r"got shape \(1, 5\), want \(1, 4\)"),
        (np.zeros(4), r"got shape \(4,\), want \(1, 4\)"),
    ],
)
def test_what_no_integer_layer_puts_out_is_wrong(made: Array, said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        check(layer(8, 4)).require(inputs(1, 8), made)


def test_sums_that_would_be_rounded_are_not_checked() -> None:
    of = layer(8, 4, largest=2**24)
    large = np.full((1, 8), 2.0**20, np.float32)
    with pytest.raises(MalformedInputError, match=r"want at most 16777216, or they"):
        check(of).require(large, np.zeros((1, 4), np.float32))
    with pytest.raises(MalformedInputError, match=r"'x': got shape \(1, 7\), want 8"):
        check(of).require(inputs(1, 7), np.zeros((1, 4)))
    with pytest.raises(MalformedInputError, match="'x': want whole numbers"):
        check(of).require(np.full((1, 8), 0.5), np.zeros((1, 4)))


def test_an_empty_batch_has_nothing_wrong() -> None:
    check(layer(8, 4)).require(inputs(0, 8), np.zeros((0, 4), np.int32))


def test_a_layer_too_wide_is_refused() -> None:
    wide = np.zeros((1, MAX_WIDTH + 1), np.int64)
    with pytest.raises(ConfigurationError, match="want at most 1048576 each way"):
        check(layer(1, 1, weights=wide))


def test_a_referee_answers_what_was_served_or_what_should_have_been() -> None:
    of = layer(8, 4)
    given = {"x": inputs(3, 8)}
    right = {"y": run(of, given["x"])}
    ran = []

    def segment(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        ran.append(tensors)
        return right

    referee = FreivaldsReferee(of, segment, draw=secrets.token_bytes)
    served = {"y": right["y"].copy()}
    assert referee.answer(given, served) is served
    assert ran == []
    assert referee.answer(given, {"y": right["y"] + 1}) is right
    assert ran == [given]


def test_a_referee_recomputes_what_cannot_be_checked() -> None:
    of = layer(8, 4, largest=2**24)
    large = {"x": np.full((1, 8), 2.0**20, np.float32)}
    made = {"y": np.ones((1, 4), np.float32)}
    referee = FreivaldsReferee(of, lambda _: made, draw=secrets.token_bytes)
    assert referee.answer(large, {"y": np.zeros((1, 4), np.float32)}) is made
