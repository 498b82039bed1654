"""Distribution: how far the probabilities lie apart, whatever the logits.

The last axis is a distribution over its entries: logits, which a softmax turns into
probabilities, or probabilities themselves. Which of both is written in the kind's name
and never guessed. Each row is measured in float64; the worst row of any tensor is the
distance.

    jensen_shannon   of a and b, with m = (a + b) / 2:
                     sum(a log2(a / m) + b log2(b / m)) / 2, in bits, from 0 to 1
    total_variation  sum |a - b| / 2, from 0 to 1: the largest difference that the two
                     make to the probability of any event

Blind by design: logits may be shifted by any constant, row by row, and what hardly any
probability falls on may be anything. Use them where a caller samples from the
distribution or reads it, not where the numbers travel on into another segment.

Probabilities below 0, or that do not add up to 1 within SUM_SLACK, are no distribution
and agree with nothing. They are not normalised: an answer is measured as it would be
served. Rows of fewer than two entries, and what is not floating point, must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from bentoml_secure.consensus.rules.pairing import (
    Pair,
    blocks,
    columns,
    comparable,
    rows_of,
)
from bentoml_secure.tensors import Array

SUM_SLACK = 1e-2
"""Thirty thousand entries rounded to float16 add up to 1 within less."""

Divergence = Callable[[Array, Array], Array]
"""Of two blocks of probabilities: what each entry adds to the whole."""


class JensenShannonOfLogits:
    """Jensen-Shannon divergence of the softmax of logits."""

    def distance(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        """Return the divergence of the worst row, in bits from 0 to 1.

        None where names, dtypes or shapes differ, anything is NaN or infinite, or
        tensors that are not floating point or have no rows differ.
        """
        return _distance(a, b, _jensen_shannon, logits=True)


class JensenShannonOfProbabilities:
    """Jensen-Shannon divergence of probabilities."""

    def distance(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        """Return the divergence of the worst row, in bits from 0 to about 1.

        None as of logits, and where a row is no distribution.
        """
        return _distance(a, b, _jensen_shannon, logits=False)


class TotalVariationOfLogits:
    """Total variation between the softmax of logits."""

    def distance(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        """Return the variation of the worst row, from 0 to 1.

        None where names, dtypes or shapes differ, anything is NaN or infinite, or
        tensors that are not floating point or have no rows differ.
        """
        return _distance(a, b, _total_variation, logits=True)


class TotalVariationOfProbabilities:
    """Total variation between probabilities."""

    def distance(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        """Return the variation of the worst row, from 0 to about 1.

        None as of logits, and where a row is no distribution.
        """
        return _distance(a, b, _total_variation, logits=False)


def _distance(
    a: Mapping[str, Array],
    b: Mapping[str, Array],
    divergence: Divergence,
    *,
    logits: bool,
) -> float | None:
    pairs = comparable(a, b)
    if pairs is None:
        return None
    largest = 0.0
    for pair in pairs:
        rows = rows_of(pair)
        if rows is None:
            if not np.array_equal(*pair):
                return None
            continue
        for block in blocks(rows):
            if logits:
                distance = _of_logits(block, divergence)
            elif (known := _of_probabilities(block, divergence)) is not None:
                distance = known
            else:
                return None
            largest = max(largest, distance)
    return largest


def _of_logits(block: Pair, divergence: Divergence) -> float:
    (top_a, sum_a), (top_b, sum_b) = map(_scales, block)
    diverged = np.zeros(len(block[0]))
    for piece in columns(block[0].shape[1]):
        a = _powers(block[0][:, piece], top_a)
        b = _powers(block[1][:, piece], top_b)
        a /= sum_a
        b /= sum_b
        diverged += divergence(a, b).sum(axis=1)
    return float(diverged.max())


def _of_probabilities(block: Pair, divergence: Divergence) -> float | None:
    diverged = np.zeros(len(block[0]))
    sums = np.zeros((2, len(block[0])))
    for piece in columns(block[0].shape[1]):
        a, b = (side[:, piece].astype(np.float64) for side in block)
        # Above 1 or below 0 early: sums of such, or their differences, may overflow.
        if min(a.min(), b.min()) < 0 or max(a.max(), b.max()) > 1 + SUM_SLACK:
            return None
        sums += a.sum(axis=1), b.sum(axis=1)
        diverged += divergence(a, b).sum(axis=1)
    if np.abs(sums - 1).max() > SUM_SLACK:
        return None
    return float(diverged.max())


def _scales(rows: Array) -> Pair:
    """Return the largest logit of each row, and the sum of powers relative to it."""
    largest = rows.max(axis=1, keepdims=True).astype(np.float64)
    sums = np.zeros_like(largest)
    for piece in columns(rows.shape[1]):
        sums += _powers(rows[:, piece], largest).sum(axis=1, keepdims=True)
    return largest, sums


def _powers(logits: Array, largest: Array) -> Array:
    # Opposite float64 extremes overflow to minus infinity, whose power is nothing.
    with np.errstate(over="ignore", under="ignore"):
        below = np.subtract(logits, largest, dtype=np.float64)
        return np.exp(below, out=below)


def _jensen_shannon(a: Array, b: Array) -> Array:
    with np.errstate(under="ignore"):
        middle, half = (a + b) / 2, (a - b) / 2
        lean = np.divide(half, middle, out=np.zeros_like(half), where=middle > 0)
        # log1p, for what both nearly agree on would be lost in log(a / m).
        bits: Array = a * np.log1p(lean, out=np.zeros_like(a), where=lean > -1)
        bits += b * np.log1p(-lean, out=np.zeros_like(b), where=lean < 1)
        bits /= 2 * math.log(2)
        # x log x is convex: no entry takes anything away, but for its rounding.
        return np.maximum(bits, 0.0, out=bits)


def _total_variation(a: Array, b: Array) -> Array:
    variation = np.subtract(a, b)
    np.abs(variation, out=variation)
    variation /= 2
    return variation
