"""Within tolerance: the largest deviation, measured by the tensor's own scale.

d = max over tensors of  max|a - b| / min(rms(a), rms(b)),  in float64.

Scaled by the root mean square of the tensor, never by each element: near-zero elements
of honest runs differ by thousands of ULP. The smaller of the two, or an answer blown up
fifty times would widen its own tolerance. So an all-zero tensor agrees only with zeros.
Tensors that are not floating point must be equal.

Measured on one CPU family, honest runs of one model (other runtime version, graph level
or instruction set) lie within d = 2.5e-6; weights rounded to float16, the cheapest
realistic cheat, at 3.9e-4 or more. Hence a usual tolerance of 2e-5. GPUs against CPUs,
and other vendors' CPUs, need calibration of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from bentoml_secure.consensus.rules.pairing import (
    CHUNK_ELEMENTS,
    Pair,
    comparable,
    root_mean_square,
)
from bentoml_secure.tensors import Array


class WithinTolerance:
    """Distance relative to the smaller root mean square."""

    def distance(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        """Return the largest distance of any tensor; see the module.

        None where names, dtypes or shapes differ, anything is NaN or infinite, tensors
        that are not floating point differ, or only one of two tensors is all zero.
        """
        pairs = comparable(a, b)
        if pairs is None:
            return None
        distance = max(map(_distance, pairs), default=0.0)
        # Opposite float64 extremes overflow, and so does a division by next to nothing.
        return distance if math.isfinite(distance) else None


def _distance(pair: Pair) -> float:
    deviation = _largest_deviation(*pair)
    if deviation == 0:
        return 0.0
    scale = min(map(root_mean_square, pair))
    return deviation / scale if scale else math.inf


def _largest_deviation(a: Array, b: Array) -> float:
    left, right = a.reshape(-1), b.reshape(-1)
    largest = 0.0
    with np.errstate(over="ignore"):
        for start in range(0, left.size, CHUNK_ELEMENTS):
            piece = slice(start, start + CHUNK_ELEMENTS)
            difference = np.subtract(left[piece], right[piece], dtype=np.float64)
            np.abs(difference, out=difference)
            largest = max(largest, float(difference.max()))
    return largest
