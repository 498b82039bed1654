"""What a reader of a proof does with a column that is not blinded.

ezkl commits to such a column as it is, and every proof tells its value at one point:

    value = sum of L_j(point) * cell_j        modulo the field's modulus

One equation of 254 bits, in cells that are small. If all cells together have fewer
bits than that, their short vector is the only one, and lattice reduction finds it.

Source: Lenstra, Lenstra and Lovász, Factoring Polynomials with Rational Coefficients
(1982); the proof's layout is that of halo2, github.com/zkonduit/halo2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from bentoml_secure.proofs.field import FIELD_MODULUS as MODULUS

_CURVE_MODULUS = 0x30644E72E131A029B85045B68181585D97816A916871CA8D3C208C16D87CFD47
_ROOT_OF_UNITY = 0x03DDB9F5166D18B798865EA93DD31F743215CF6DD39329C8D34F1ED960C37C9C
_ROOT_LOGROWS = 28
_DELTA = Fraction(3, 4)
UNUSABLE_ROWS = 6
"""At the end of each column; ones, where it is not blinded."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A proof, taken apart.

    Attributes:
        points: Commitments, in order.
        values: What follows them, in order: evaluations, then the opening.
    """

    points: tuple[bytes, ...]
    values: tuple[int, ...]


def take_apart(proof: bytes) -> Opened:
    """Return a proof's points and values: a value is not on the curve."""
    start = 0
    while _is_point(proof[start : start + 64]):
        start += 64
    points = tuple(proof[at : at + 64] for at in range(0, start, 64))
    rest = range(start, len(proof), 32)
    values = (int.from_bytes(proof[at : at + 32], "big") for at in rest)
    return Opened(points, tuple(values))


def _is_point(data: bytes) -> bool:
    x, y = int.from_bytes(data[:32], "big"), int.from_bytes(data[32:], "big")
    return (y * y - x * x * x - 3) % _CURVE_MODULUS == 0


class Column:
    """Columns of 2**logrows rows."""

    def __init__(self, logrows: int) -> None:
        self._rows = 1 << logrows
        self._root = pow(_ROOT_OF_UNITY, 1 << (_ROOT_LOGROWS - logrows), MODULUS)

    def weights(self, point: int) -> list[int]:
        """Return how much each row counts at a point: Lagrange's polynomials."""
        rows = self._rows
        scale = (pow(point, rows, MODULUS) - 1) * pow(rows, -1, MODULUS)
        weights, power = [], 1
        for _ in range(rows):
            weights.append(scale * power * pow(point - power, -1, MODULUS) % MODULUS)
            power = power * self._root % MODULUS
        return weights

    def value(self, cells: Sequence[int], point: int) -> int:
        """Return what a column of these cells is at a point."""
        weights = self.weights(point)
        ones = sum(weights[-UNUSABLE_ROWS:])
        told = sum(w * cell for w, cell in zip(weights, cells, strict=False))
        return (told + ones) % MODULUS

    def point(
        self, one: tuple[Sequence[int], int], two: tuple[Sequence[int], int]
    ) -> int:
        """Return the only point at which two columns have the values told.

        Readers hash it out of the proof, as verifiers do; this is shorter.
        """
        a, b = ([*self._coefficients(cells)] for cells, _ in (one, two))
        a[0], b[0] = a[0] - one[1], b[0] - two[1]
        common = _common_factor(a, b)
        assert len(common) == 2, "the values are not of these columns at one point"
        return -common[0] * pow(common[1], -1, MODULUS) % MODULUS

    def _coefficients(self, cells: Sequence[int]) -> list[int]:
        empty = self._rows - UNUSABLE_ROWS - len(cells)
        column = [*cells, *[0] * empty, *[1] * UNUSABLE_ROWS]
        share = pow(self._rows, -1, MODULUS)
        made = _transformed(column, pow(self._root, -1, MODULUS))
        return [value * share % MODULUS for value in made]


def _transformed(values: list[int], root: int) -> list[int]:
    if len(values) == 1:
        return values
    square = root * root % MODULUS
    even, odd = _transformed(values[::2], square), _transformed(values[1::2], square)
    low, high, power = [], [], 1
    for a, b in zip(even, odd, strict=True):
        low.append((a + power * b) % MODULUS)
        high.append((a - power * b) % MODULUS)
        power = power * root % MODULUS
    return low + high


def _common_factor(a: list[int], b: list[int]) -> list[int]:
    """Return the greatest common divisor of two polynomials; lowest degree first."""
    while any(b):
        while b[-1] == 0:
            b.pop()
        lead = pow(b[-1], -1, MODULUS)
        while len(a) >= len(b):
            factor, shift = a[-1] * lead % MODULUS, len(a) - len(b)
            if factor:
                for index, value in enumerate(b):
                    a[shift + index] = (a[shift + index] - factor * value) % MODULUS
            a.pop()
        a, b = b, a
    return a


def small_solution(weights: Sequence[int], told: int, bits: int) -> list[int]:
    """Return small integers whose weighted sum is what was told, by a lattice.

    Args:
        weights: Of the unknown integers.
        told: Their sum, modulo the field's modulus.
        bits: Of the largest of them.
    """
    count, first = len(weights), pow(weights[0], -1, MODULUS)
    basis = [[MODULUS] + [0] * count]
    for index in range(1, count):
        row = [-weights[index] * first % MODULUS] + [0] * count
        row[index] = 1
        basis.append(row)
    basis.append([told * first % MODULUS] + [0] * (count - 1) + [1 << bits])
    for row in reduced(basis):
        if abs(row[-1]) == 1 << bits:
            return [value if row[-1] > 0 else -value for value in row[:-1]]
    raise AssertionError("no short vector holds what was told")


def reduced(basis: list[list[int]]) -> list[list[int]]:
    """Return a reduced basis of the same lattice."""
    rows, at = [list(row) for row in basis], 1
    squares, shares = _orthogonal(rows)
    while at < len(rows):
        for other in reversed(range(at)):
            nearest = round(shares[at][other])
            if nearest:
                rows[at] = [
                    a - nearest * b for a, b in zip(rows[at], rows[other], strict=True)
                ]
                for index in range(other):
                    shares[at][index] -= nearest * shares[other][index]
                shares[at][other] -= nearest
        before = shares[at][at - 1]
        if squares[at] >= (_DELTA - before * before) * squares[at - 1]:
            at += 1
            continue
        rows[at], rows[at - 1] = rows[at - 1], rows[at]
        squares, shares = _orthogonal(rows)
        at = max(at - 1, 1)
    return rows


def _orthogonal(
    rows: Sequence[Sequence[int]],
) -> tuple[list[Fraction], list[list[Fraction]]]:
    """Return the squares of the orthogonal vectors, and each row's share of them."""
    squares: list[Fraction] = []
    shares: list[list[Fraction]] = []
    inner: list[list[Fraction]] = []
    for index, row in enumerate(rows):
        inner.append([])
        shares.append([])
        for other in range(index + 1):
            product = Fraction(
                sum(a * b for a, b in zip(row, rows[other], strict=True))
            )
            for earlier in range(other):
                product -= shares[other][earlier] * inner[index][earlier]
            inner[index].append(product)
            if other < index:
                shares[index].append(product / squares[other])
        squares.append(inner[index][index])
    return squares, shares
