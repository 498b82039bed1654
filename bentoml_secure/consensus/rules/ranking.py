"""Which entries of a row are the largest, and how clearly."""

from __future__ import annotations

import numpy as np

from bentoml_secure.consensus.rules.pairing import Pair, columns
from bentoml_secure.tensors import Array


def leaders(rows: Array, count: int) -> Array:
    """Return the places of the largest entries of each row, the largest first.

    Of equal entries the earlier come first, so that the same row has the same leaders
    everywhere.

    Args:
        rows: float[rows, entries], finite.
        count: How many; at most the entries there are.

    Returns:
        int64[rows, count]
    """
    found = []
    for piece in columns(rows.shape[1]):
        few = min(count, piece.stop - piece.start)
        found.append(_leaders(rows[:, piece], few) + piece.start)
    places: Array = np.concatenate(found, axis=1)
    if len(found) == 1:
        return places
    places.sort(axis=1)
    best = _leaders(np.take_along_axis(rows, places, axis=1), count)
    leading: Array = np.take_along_axis(places, best, axis=1)
    return leading


def swap_gaps(rows: Pair, count: int) -> Array:
    """Return, for each row, how clearly the two disagree on its largest entries.

    One side has entries among its largest that the other has not, and the other way
    round. The gap is the most that either side puts one of its own above one of the
    other's: 0 where the sets are the same. If every entry of two rows lies within t of
    the other's, no gap is above 2t. It is the larger of both sides' gaps: a row of ties
    does not agree with everything.

    Args:
        rows: Two float[rows, entries], finite.
        count: How many of the largest entries; at most the entries there are.

    Returns:
        float64[rows]; infinity where float64 extremes overflow.
    """
    left, right = rows
    ours, theirs = leaders(left, count), leaders(right, count)
    shared = ours[:, :, None] == theirs[:, None, :]
    only_ours, only_theirs = ~shared.any(axis=2), ~shared.any(axis=1)
    with np.errstate(over="ignore"):
        return np.maximum(
            _gap(left, (ours, only_ours), (theirs, only_theirs)),
            _gap(right, (theirs, only_theirs), (ours, only_ours)),
        )


def _leaders(rows: Array, count: int) -> Array:
    rest = rows.astype(np.float64)
    lines = np.arange(len(rest))
    places = np.empty((len(rest), count), np.int64)
    for rank in range(count):
        places[:, rank] = rest.argmax(axis=1)
        rest[lines, places[:, rank]] = -np.inf
    return places


def _gap(rows: Array, own: Pair, foreign: Pair) -> Array:
    """Return how far the largest of own entries stands above the least of foreign."""
    values = np.take_along_axis(rows, own[0], axis=1).astype(np.float64)
    others = np.take_along_axis(rows, foreign[0], axis=1).astype(np.float64)
    highest = values.max(axis=1, where=own[1], initial=-np.inf)
    lowest = others.min(axis=1, where=foreign[1], initial=np.inf)
    return np.where(own[1].any(axis=1), highest - lowest, 0.0)
