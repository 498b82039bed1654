"""TOPLOC's fingerprint: what 128 activations were, in 258 bytes.

The 128 entries of largest magnitude, rounded to bfloat16, are points (place, bits). A
polynomial through them over the integers modulo 65497 is sent instead of them:

    2 bytes        modulus that keeps the places apart; all numbers are big-endian
    2 bytes each   coefficients of x^0 to x^127 modulo 65497, x = place mod modulus

Who computed the same tensor evaluates the polynomial at the 128 places of its own and
compares exponents and mantissas. A place that the maker did not have gives bits at
random. Tensors of fewer than 128 entries have as many coefficients as entries.

The field is always that of 65497, whatever the modulus: so does toploc 0.1.6, whose
fingerprints read here and which reads these, one difference apart: it does not look at
signs, and takes a negated tensor for the same. Here a wrong sign is a wrong exponent.

Source: arXiv 2501.16007; PrimeIntellect-ai/toploc 0.1.6, poly.cpp, ndd.cpp, utils.cpp.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from bentoml_secure.consensus.rules.pairing import CHUNK_ELEMENTS, peak
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.tensors import Array

PLACES = 128
FINGERPRINT_BYTES = 2 + 2 * PLACES
FIELD = 65497
"""A prime. Larger bit patterns are NaN in bfloat16."""
MIN_MODULUS = (1 << 15) + 1
MAX_MAGNITUDE = float.fromhex("0x1.fep127")
"""The largest number of bfloat16."""

PUBLISHED_MISMATCHES = 38 / 128
PUBLISHED_MEAN = 10.0
PUBLISHED_MEDIAN = 8.0
"""What TOPLOC accepts at most: exponents wrong, and steps of mantissas apart."""

OCTAVE = 128
"""Steps of a bfloat16 mantissa."""

_SIGN_AND_EXPONENT = 7
_MANTISSA = OCTAVE - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How a fingerprint and a tensor differ.

    Attributes:
        places: How many entries were compared.
        exponent_mismatches: Of those, how many have another sign or exponent.
        mantissa_mean: Mean difference of the other mantissas, in steps of bfloat16;
            an octave where there are none.
        mantissa_median: Their median.
    """

    places: int
    exponent_mismatches: int
    mantissa_mean: float
    mantissa_median: float

    @property
    def severity(self) -> float:
        """Return the worst of the three by TOPLOC's thresholds: 1 is what it accepts.

        Each divided by its threshold: 38 of 128, a mean of 10 and a median of 8.
        """
        mismatches = self.exponent_mismatches / self.places
        return max(
            mismatches / PUBLISHED_MISMATCHES,
            self.mantissa_mean / PUBLISHED_MEAN,
            self.mantissa_median / PUBLISHED_MEDIAN,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """A polynomial through the largest entries of a tensor.

    Attributes:
        modulus: What places are reduced by.
        coefficients: Of the polynomial, from the constant upwards, below FIELD.
    """

    modulus: int
    coefficients: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """Return the bytes on the wire: two, and two for each coefficient."""
        count = len(self.coefficients)
        return struct.pack(f">{1 + count}H", self.modulus, *self.coefficients)

    def difference(self, values: Array) -> Difference:
        """Compare with a tensor of one's own.

        Args:
            values: float[...], finite in bfloat16, of any shape; not empty.

        Raises:
            MalformedInputError: The fingerprint is of a tensor of another size, or the
                values are not finite in bfloat16.
        """
        flat = _finite(values)
        want = min(PLACES, flat.size)
        if len(self.coefficients) != want:
            raise MalformedInputError(
                f"fingerprint: got {len(self.coefficients)} coefficients, want {want} "
                f"for a tensor of {flat.size} entries"
            )
        places = largest(flat)
        got = _evaluate(self.coefficients, places % self.modulus)
        return differ(got, bfloat16_bits(flat[places]), np.ones(want, np.bool_))


def parse_fingerprint(data: bytes) -> Fingerprint:
    """Parse a fingerprint from its bytes.

    Args:
        data: 258 bytes, or fewer of a tensor with fewer than 128 entries.

    Raises:
        MalformedInputError: The length is odd or out of range, the modulus is, or a
            coefficient is not of the field.
    """
    if len(data) % 2 or not 4 <= len(data) <= FINGERPRINT_BYTES:
        raise MalformedInputError(
            f"fingerprint: got {len(data)} bytes, want {FINGERPRINT_BYTES}, or an even "
            "number from 4 for a small tensor"
        )
    modulus, *coefficients = struct.unpack(f">{len(data) // 2}H", data)
    if not MIN_MODULUS <= modulus <= FIELD:
        raise MalformedInputError(
            f"fingerprint modulus: got {modulus}, want {MIN_MODULUS} to {FIELD}"
        )
    if max(coefficients) >= FIELD:
        raise MalformedInputError(
            f"fingerprint coefficient: got {max(coefficients)}, want less than {FIELD}"
        )
    return Fingerprint(modulus=modulus, coefficients=tuple(coefficients))


def build_fingerprint(values: Array) -> Fingerprint:
    """Return the fingerprint of a tensor.

    Args:
        values: float[...], finite in bfloat16, of any shape; not empty. TOPLOC takes
            32 tokens' last hidden states at a time.

    Raises:
        MalformedInputError: There are no values, they are not finite in bfloat16, or
            their places (rarer than one in 10^1000) fall together whatever the modulus.
    """
    flat = _finite(values)
    places = largest(flat)
    modulus = _injective_modulus(places)
    coefficients = _interpolate(places % modulus, bfloat16_bits(flat[places]))
    return Fingerprint(modulus=modulus, coefficients=tuple(coefficients.tolist()))


def largest(flat: Array) -> Array:
    """Return the places of the largest magnitudes, at most PLACES of them.

    Of equal ones the earlier, so that the same tensor has the same places everywhere.

    Args:
        flat: float[entries], finite in float32.

    Returns:
        int64[places], the largest first.
    """
    places = np.empty(0, np.int64)
    sizes = np.empty(0, np.float32)
    for start in range(0, flat.size, CHUNK_ELEMENTS):
        chunk = np.abs(flat[start : start + CHUNK_ELEMENTS].astype(np.float32))
        if len(places) == PLACES:
            # Later and no larger: out already.
            near = np.flatnonzero(chunk > sizes[-1])
        elif chunk.size > PLACES:
            near = np.flatnonzero(chunk >= np.partition(chunk, -PLACES)[-PLACES])
        else:
            near = np.arange(chunk.size)
        places = np.concatenate([places, near + start])
        sizes = np.concatenate([sizes, chunk[near]])
        order = np.argsort(-sizes, kind="stable")[:PLACES]
        places, sizes = places[order], sizes[order]
    return places


def bfloat16_bits(values: Array) -> Array:
    """Round finite numbers to bfloat16, halves to even; return the bits as int64."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def differ(got: Array, want: Array, known: Array) -> Difference:
    """Compare bits of bfloat16, place by place.

    Args:
        got: int64[places]
        want: int64[places]
        known: bool[places]. What is not known is a mismatch.
    """
    alike = known & (got >> _SIGN_AND_EXPONENT == want >> _SIGN_AND_EXPONENT)
    steps = np.abs((got & _MANTISSA) - (want & _MANTISSA))[alike]
    return Difference(
        places=len(want),
        exponent_mismatches=int(len(want) - np.count_nonzero(alike)),
        mantissa_mean=float(steps.mean()) if steps.size else float(OCTAVE),
        mantissa_median=float(np.median(steps)) if steps.size else float(OCTAVE),
    )


def _finite(values: Array) -> Array:
    # Written so that NaN is refused too.
    if not (values.dtype.kind == "f" and values.size and peak(values) <= MAX_MAGNITUDE):
        raise MalformedInputError(
            f"fingerprint: got {values.dtype.name}{list(values.shape)}, want floating "
            "point, not empty, finite in bfloat16"
        )
    return values.reshape(-1)


def _injective_modulus(places: Array) -> int:
    for modulus in range(FIELD, MIN_MODULUS - 1, -1):
        if len(np.unique(places % modulus)) == len(places):
            return modulus
    raise MalformedInputError(
        f"fingerprint: the places fall together modulo every number from {MIN_MODULUS}"
    )


def _interpolate(x: Array, y: Array) -> Array:
    """Return the coefficients of the polynomial through (x, y), by Newton's way."""
    count = len(x)
    inverse = _inverse((x[:, None] - x[None, :]) % FIELD)
    newton = y % FIELD
    for step in range(1, count):
        rows = np.arange(step, count)
        newton[step:] = (newton[step:] - newton[step - 1 : -1]) % FIELD
        newton[step:] = newton[step:] * inverse[rows, rows - step] % FIELD
    coefficients = np.zeros(count, np.int64)
    factor = np.zeros(count + 1, np.int64)
    factor[0] = 1
    for row in range(count):
        coefficients = (coefficients + newton[row] * factor[:-1]) % FIELD
        shifted = np.concatenate([[0], factor[:-1]])
        factor = (shifted - x[row] * factor) % FIELD
    return coefficients


def _inverse(numbers: Array) -> Array:
    """Return the inverses modulo the field's prime: the power to the prime less 2."""
    inverse, power, exponent = np.ones_like(numbers), numbers, FIELD - 2
    while exponent:
        if exponent & 1:
            inverse = inverse * power % FIELD
        power = power * power % FIELD
        exponent >>= 1
    return inverse


def _evaluate(coefficients: tuple[int, ...], x: Array) -> Array:
    y = np.zeros_like(x)
    for coefficient in reversed(coefficients):
        y = (y * x + coefficient) % FIELD
    return y
