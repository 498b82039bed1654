"""Freivalds' check: whether a product of integer matrices is right, without making it.

Of a layer that puts out C = A W + b over the integers, [m, k] by [k, n], a secret r is
drawn from F_p^n, p = 2^61 - 1, and

    A (W r) + (b r) = C r   mod p,   row by row

is compared. That costs 2 m (k + n) multiplications where the product costs m k n; W r
is made once for each r. If C is wrong in any element, the two sides are equal with
probability 1/p at most, whoever chose C: provided that r was drawn independently of C.
So r never leaves this process, C is committed to before it is compared, and after a
refusal, which says something of r, another one is drawn.

Magnitudes are bounded, so that an element cannot be wrong by a multiple of p. Sums are
made in float64, of parts so small that every sum is a whole number below 2^53: exact in
any order.

It shows that the answer is right to who has the weights and the activations. It hides
nothing from them, and proves nothing to anybody else: integrity, not privacy.

Source: R. Freivalds, "Probabilistic machines can use less running time", 1977; for
secrets used again, F. Tramer and D. Boneh, "Slalom", 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.split.integer_layer import IntegerLayer, Integers, whole_numbers
from bentoml_secure.tensors import Array

PRIME = 2**61 - 1
MAX_WIDTH = 1 << 20

ERROR_BOUND = 1 / PRIME
"""Probability that one check passes a wrong product."""

_BITS = 61
_PART = 21
_PARTS = 3
_EXACT_BITS = 53
_NAMED_ROWS = 8

_Residues = NDArray[np.uint64]


def _rotate(values: _Residues, by: int) -> _Residues:
    """Return values times 2^by mod p: p has 61 ones, so bits only go round."""
    by %= _BITS
    low = values & np.uint64((1 << (_BITS - by)) - 1)
    rotated: _Residues = (low << np.uint64(by)) | (values >> np.uint64(_BITS - by))
    return rotated


def _parts(vector: _Residues) -> NDArray[np.float64]:
    """Return a vector's numbers as three columns of at most 21 bits."""
    mask = np.uint64((1 << _PART) - 1)
    columns = [(vector >> np.uint64(_PART * i)) & mask for i in range(_PARTS)]
    return np.stack(columns, axis=1).astype(np.float64)


def times(matrix: Integers, vector: _Residues) -> _Residues:
    """Return a matrix times a vector mod p, exactly.

    Args:
        matrix: [m, n] of any integers of int64.
        vector: [n], each below p.
    """
    width = matrix.shape[1]
    # n products of ``bits`` and 21 bits add up to less than 2^53.
    bits = _EXACT_BITS - _PART - max(1, width - 1).bit_length()
    largest = max(abs(int(matrix.max(initial=0))), abs(int(matrix.min(initial=0))))
    count = max(1, -(-(largest.bit_length() + 1) // bits))
    columns = _parts(vector)
    total = np.zeros(len(matrix), np.uint64)
    for index in range(count):
        part = matrix >> (bits * index) if index else matrix
        if index < count - 1:
            part = part & ((1 << bits) - 1)
        sums = (part.astype(np.float64) @ columns).astype(np.int64)
        residues = (sums % PRIME).astype(np.uint64)
        for at in range(_PARTS):
            total += _rotate(residues[:, at], bits * index + _PART * at)
            total %= np.uint64(PRIME)
    return total


class FreivaldsCheck:
    """Checks what one layer puts out, with a secret of its own.

    Args:
        layer: Its weights and bias are what is compared with.
        draw: Returns so many bytes that nobody can foresee, ``secrets.token_bytes``.

    Raises:
        ConfigurationError: A layer too wide.
    """

    def __init__(self, layer: IntegerLayer, *, draw: Callable[[int], bytes]) -> None:
        if max(layer.weights.shape) > MAX_WIDTH:
            raise ConfigurationError(
                f"Freivalds check: got weights of {layer.weights.shape}, want at most "
                f"{MAX_WIDTH} each way"
            )
        self._layer = layer
        self._draw = draw
        self._renew()

    def _renew(self) -> None:
        self._secret = _residues(self._draw, self._layer.weights.shape[1])
        self._image = times(self._layer.weights, self._secret)
        self._bias = times(self._layer.bias[np.newaxis], self._secret)

    def require(self, given: Array, made: Array) -> None:
        """Refuse what the layer does not make of what it was given.

        A right one passes. A wrong one passes with probability 1/p, if who made it has
        committed to it and knows nothing of the secret but that others passed.

        Args:
            given: [..., k], as it went in.
            made: [..., n], as it is said to have come out.

        Raises:
            MalformedInputError: What went in is not what such a layer is exact for.
            VerificationError: Something else must have come out.
        """
        rows = self._layer.integers(given)
        shape = (*given.shape[:-1], len(self._layer.bias))
        if made.shape != shape:
            raise VerificationError(
                f"tensor {self._layer.made!r:.60}: got shape {made.shape}, want {shape}"
            )
        try:
            said = whole_numbers(made, self._layer.made).reshape(-1, shape[-1])
        except MalformedInputError as error:
            # The layer puts out whole numbers, so this is not what it put out.
            raise VerificationError(str(error)) from error
        want = (times(rows, self._image) + self._bias) % np.uint64(PRIME)
        wrong = np.flatnonzero(times(said, self._secret) != want)
        if wrong.size:
            self._renew()
            named = ", ".join(str(row) for row in wrong[:_NAMED_ROWS])
            raise VerificationError(
                f"tensor {self._layer.made!r:.60}: {wrong.size} of {len(rows)} rows "
                f"are not the layer's, the first: {named}"
            )


def _residues(draw: Callable[[int], bytes], count: int) -> _Residues:
    """Return uniform numbers below p: 61 bits each, drawn again where they are p."""
    prime = np.uint64(PRIME)

    def some(number: int) -> _Residues:
        """Return numbers of 61 bits."""
        words = np.frombuffer(draw(8 * number), "<u8").astype(np.uint64)
        return words >> np.uint64(64 - _BITS)

    drawn = some(count)
    while (again := np.flatnonzero(drawn == prime)).size:
        drawn[again] = some(again.size)
    return drawn


class FreivaldsReferee:
    """Answers for a segment as a referee that recomputes it does, at less cost.

    It is shown what was served. Where the check holds, that is its answer, which it
    signs like any other: to the bit the one that was served. Where it does not, or
    cannot be made, it runs the segment and answers that.

    Args:
        layer: That the segment is.
        run: The segment.
        draw: See ``FreivaldsCheck``.
    """

    def __init__(
        self,
        layer: IntegerLayer,
        run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
        *,
        draw: Callable[[int], bytes],
    ) -> None:
        self._layer = layer
        self._run = run
        self._check = FreivaldsCheck(layer, draw=draw)

    def answer(
        self, inputs: Mapping[str, Array], served: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        """Return what the segment makes of its inputs.

        Args:
            inputs: As the plan promises them.
            served: As the plan promises its outputs, and committed to by who answered
                before this referee is asked.

        Raises:
            MalformedInputError: The segment refuses the inputs.
        """
        try:
            self._check.require(inputs[self._layer.given], served[self._layer.made])
        except (VerificationError, MalformedInputError):
            return self._run(inputs)
        return served
