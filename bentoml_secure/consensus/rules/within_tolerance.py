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

from bentoml_secure.tensors import Array

CHUNK_ELEMENTS = 1 << 15
"""Pieces of 256 KiB in float64, which stay in the cache, however large the tensors."""


class WithinTolerance:
    """Distance relative to the smaller root mean square."""

    def distance(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        """Return the largest distance of any tensor; see the module.

        None where names, dtypes or shapes differ, anything is NaN or infinite, tensors
        that are not floating point differ, or only one of two tensors is all zero.
        """
        if a.keys() != b.keys():
            return None
        largest = 0.0
        for name in a:
            distance = _distance(a[name], b[name])
            if distance is None:
                return None
            largest = max(largest, distance)
        return largest


def _distance(a: Array, b: Array) -> float | None:
    if a.dtype.name != b.dtype.name or a.shape != b.shape:
        return None
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else None
    if not a.size:
        return 0.0
    scale_a, scale_b = _root_mean_square(a), _root_mean_square(b)
    if scale_a is None or scale_b is None:
        return None
    deviation = _largest_deviation(a, b)
    if deviation == 0:
        return 0.0
    scale = min(scale_a, scale_b)
    distance = deviation / scale if scale else math.inf
    # Opposite float64 extremes overflow, and so does a division by next to nothing.
    return distance if math.isfinite(distance) else None


def _root_mean_square(array: Array) -> float | None:
    peak = max(abs(float(array.max())), abs(float(array.min())))
    if not math.isfinite(peak):
        return None
    # Squares of float64 may overflow or vanish; those of the others cannot.
    unit = peak if array.dtype.itemsize == 8 and peak else 1.0
    flat = array.reshape(-1)
    squares = 0.0
    for start in range(0, flat.size, CHUNK_ELEMENTS):
        chunk = flat[start : start + CHUNK_ELEMENTS].astype(np.float64)
        chunk /= unit
        # Not a dot product: BLAS would wake threads for it, which wait for one another
        # for hundreds of milliseconds where the processors are busy serving.
        squares += float(np.square(chunk, out=chunk).sum())
    return unit * math.sqrt(squares / flat.size)


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
