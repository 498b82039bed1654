"""Token agreement: the same token at every position, ties aside.

The last axis has a score of every token: logits[..., vocabulary]. Greedy decoding takes
the largest, of equals the first. Where two answers take different tokens i and j at
some position, each puts its own above the other's by a gap; the larger gap says how far
the two are from calling it a tie. So a row of equal scores agrees with nothing that has
a clear winner.

d = max over tensors of  max over positions of gap / 2 / min(rms(a), rms(b)).

It has the unit of ``within_tolerance`` and is never larger than its distance: scores
that lie within t of one another differ in their token only where both gaps are within
2t. The usual tolerance does for both.

Blind to everything but the winners: all other scores may be anything. For greedy
decoding that is all there is; who samples needs ``jensen_shannon_of_logits``. Rows of
fewer than two entries, and token ids or other tensors that are not floating point, must
be equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from bentoml_secure.consensus.rules.pairing import (
    Pair,
    blocks,
    comparable,
    root_mean_square,
    rows_of,
)
from bentoml_secure.consensus.rules.ranking import swap_gaps
from bentoml_secure.tensors import Array


class TokenAgreement:
    """Distance from a tie where winners differ, relative to the smaller scale."""

    def distance(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        """Return how far the worst position is from a tie; see the module.

        None where names, dtypes or shapes differ, anything is NaN or infinite, or
        tensors that are not floating point or have no rows differ.
        """
        pairs = comparable(a, b)
        if pairs is None:
            return None
        distance = max(map(_distance, pairs), default=0.0)
        return distance if math.isfinite(distance) else None


def _distance(pair: Pair) -> float:
    rows = rows_of(pair)
    if rows is None:
        return 0.0 if np.array_equal(*pair) else math.inf
    gap = max(float(swap_gaps(block, 1).max()) for block in blocks(rows))
    if gap == 0:
        return 0.0
    scale = min(map(root_mean_square, pair))
    return gap / 2 / scale if scale else math.inf
