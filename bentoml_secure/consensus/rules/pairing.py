"""What every rule but ``exact`` asks first: may these two answers be compared at all?

Names, dtypes and shapes are the same; tensors that are not floating point are equal;
the others are finite. Rules then measure the pairs of floating point that are left, in
float64 and in pieces, however large the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from bentoml_secure.tensors import Array

CHUNK_ELEMENTS = 1 << 15
"""Pieces of 256 KiB in float64, which stay in the cache, however large the tensors."""

Pair = tuple[Array, Array]


def comparable(a: Mapping[str, Array], b: Mapping[str, Array]) -> list[Pair] | None:
    """Return the pairs of floating-point tensors that are not empty.

    Args:
        a: Output tensors of one replica by name.
        b: Those of another.

    Returns:
        None where names, dtypes or shapes differ, where tensors that are not floating
        point do, or where anything is NaN or infinite.
    """
    if a.keys() != b.keys():
        return None
    pairs = []
    for name in a:
        left, right = a[name], b[name]
        if left.dtype.name != right.dtype.name or left.shape != right.shape:
            return None
        if left.dtype.kind != "f":
            if not np.array_equal(left, right):
                return None
        elif left.size:
            if not (math.isfinite(peak(left)) and math.isfinite(peak(right))):
                return None
            pairs.append((left, right))
    return pairs


def peak(array: Array) -> float:
    """Return the largest magnitude; NaN or infinity if there is one. Not empty."""
    return max(abs(float(array.max())), abs(float(array.min())))


def root_mean_square(array: Array) -> float:
    """Return the root mean square of finite elements, of which there are some."""
    # Squares of float64 may overflow or vanish; those of the others cannot.
    unit = (peak(array) if array.dtype.itemsize == 8 else 0.0) or 1.0
    flat = array.reshape(-1)
    squares = 0.0
    for start in range(0, flat.size, CHUNK_ELEMENTS):
        chunk = flat[start : start + CHUNK_ELEMENTS].astype(np.float64)
        chunk /= unit
        # Not a dot product: BLAS would wake threads for it, which wait for one another
        # for hundreds of milliseconds where the processors are busy serving.
        squares += float(np.square(chunk, out=chunk).sum())
    return unit * math.sqrt(squares / flat.size)


def rows_of(pair: Pair) -> Pair | None:
    """Return both tensors as rows along the last axis.

    Returns:
        None where a row has fewer than two entries, so that nothing is ranked or
        distributed in it: such tensors have to be equal.
    """
    left, right = pair
    if not left.ndim or left.shape[-1] < 2:
        return None
    width = left.shape[-1]
    return left.reshape(-1, width), right.reshape(-1, width)


def blocks(rows: Pair) -> Iterator[Pair]:
    """Yield both in blocks of rows: as many as fit a chunk, at least one."""
    left, right = rows
    height = max(1, CHUNK_ELEMENTS // left.shape[1])
    for start in range(0, len(left), height):
        piece = slice(start, start + height)
        yield left[piece], right[piece]


def columns(width: int) -> Iterator[slice]:
    """Yield slices of a chunk each that cover a row."""
    for start in range(0, width, CHUNK_ELEMENTS):
        yield slice(start, min(start + CHUNK_ELEMENTS, width))
