"""Structured reference strings whose secret is known here: for tests and benchmarks.

Whoever knows the secret proves anything. So these are called unsafe wherever they turn
up, and refused by everyone who does not ask for them by name.

    points:      tau**i * G1 for i below 2**k
    Lagrange's:  L_i(tau) * G1, with L_i(x) = w**i * (x**n - 1) / (n * (x - w**i))
    G2, tau * G2

Files of all sizes come of one secret: segments of different sizes need one string, and
ezkl draws a new secret for each.

A coordinate is 32 bytes, little-endian, in Montgomery's form.

Source: halo2_proofs, ParamsKZG::setup and SerdeFormat::RawBytes; BN254 as in EIP-197.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.field import FIELD_MODULUS

MAX_GENERATED = 20
"""Minutes of one core; more is a matter for a real ceremony's file."""

_P = 0x30644E72E131A029B85045B68181585D97816A916871CA8D3C208C16D87CFD47
_R = FIELD_MODULUS
_TWO_ADICITY = 28
_MULTIPLICATIVE_GENERATOR = 7
_G1 = (1, 2)
# Coordinates are a + b*u with u**2 = -1.
_G2 = (
    (
        0x1800DEEF121F1E76426A00665E5C4479674322D4F75EDADD46DEBD5CD992F6ED,
        0x198E9393920D483A7260BFB731FB5D25F1AA493335A9E71297E485B7AEF312C2,
    ),
    (
        0x12C85EA5DB8C6DEB4AAB71808DCB408FE3D1E7690C43D37B4CE6CC0166FA7DAA,
        0x090689D0585FF075EC9E99AD690C3395BC4B313370B38EF355ACDADCD122975B,
    ),
)
_WINDOW_BITS = 10
_WINDOWS = -(-_R.bit_length() // _WINDOW_BITS)
_CHUNK = 4096

_Point = tuple[int, int]
_Pair = tuple[int, int]


def write_unsafe_srs(stream: BinaryIO, logrows: int, secret: int) -> None:
    """Write the file of 2**logrows rows that follows from a secret.

    Args:
        stream: To write to.
        logrows: Logarithm of the rows.
        secret: Below the scalar field's modulus.

    Raises:
        ConfigurationError: More rows than are made here; a secret that is none.
    """
    if not 1 <= logrows <= MAX_GENERATED:
        raise ConfigurationError(
            f"logrows: got {logrows}, want 1 to {MAX_GENERATED} for a string that is "
            "generated here.",
            remedy="Import a file of the perpetual powers of tau.",
        )
    # With a root of unity some of Lagrange's points would have no inverse.
    if not 1 < secret < _R or pow(secret, 1 << _TWO_ADICITY, _R) == 1:
        raise ConfigurationError("srs: want a secret within the scalar field")
    tables = _window_tables()
    stream.write(logrows.to_bytes(4, "little"))
    for scalars in (_powers(logrows, secret), _lagrange(logrows, secret)):
        for chunk in _chunks(scalars):
            for x, y in _multiples(tables, chunk):
                stream.write(_montgomery(x) + _montgomery(y))
    for point in (_G2, _multiply_g2(secret)):
        for pair in point:
            stream.write(b"".join(map(_montgomery, pair)))


def _montgomery(value: int) -> bytes:
    return ((value << 256) % _P).to_bytes(32, "little")


def _powers(logrows: int, secret: int) -> Iterator[int]:
    power = 1
    for _ in range(1 << logrows):
        yield power
        power = power * secret % _R


def _lagrange(logrows: int, secret: int) -> Iterator[int]:
    n = 1 << logrows
    root = pow(_MULTIPLICATIVE_GENERATOR, (_R - 1) >> logrows, _R)
    factor = (pow(secret, n, _R) - 1) * pow(n, -1, _R) % _R
    power = 1
    for _ in range(n):
        yield factor * power * pow(secret - power, -1, _R) % _R
        power = power * root % _R


def _chunks(scalars: Iterator[int]) -> Iterator[list[int]]:
    held: list[int] = []
    for scalar in scalars:
        held.append(scalar)
        if len(held) == _CHUNK:
            yield held
            held = []
    if held:
        yield held


def _window_tables() -> list[list[_Point]]:
    """Return 1 to 2**_WINDOW_BITS times 2**(window * _WINDOW_BITS) * G1, each."""
    tables, base = [], _G1
    for _ in range(_WINDOWS):
        table = [base]
        while len(table) < 1 << _WINDOW_BITS:
            last = table[-1]
            table += _add(table, [last] * len(table))
        tables.append(table)
        base = table[-1]
    return tables


def _multiples(
    tables: Sequence[Sequence[_Point]], scalars: Sequence[int]
) -> list[_Point]:
    """Return scalar * G1 for each; all are added up in step, for one inversion each."""
    # Digits count from one, so that no point is ever the one at infinity.
    ones = sum(1 << (window * _WINDOW_BITS) for window in range(_WINDOWS))
    rest = [(scalar - ones) % _R for scalar in scalars]
    mask = (1 << _WINDOW_BITS) - 1
    totals = [tables[0][value & mask] for value in rest]
    for window in range(1, _WINDOWS):
        shift, table = window * _WINDOW_BITS, tables[window]
        totals = _add(totals, [table[value >> shift & mask] for value in rest])
    return totals


def _add(lefts: Sequence[_Point], rights: Sequence[_Point]) -> list[_Point]:
    """Return the sum of each two points, none of which is another's inverse."""
    rises, runs, products, product = [], [], [], 1
    for (x1, y1), (x2, y2) in zip(lefts, rights, strict=True):
        # A point meets itself where a carry runs through all lower digits: of the
        # scalars of a string, one in a million.
        alike = x1 == x2
        rises.append(3 * x1 * x1 if alike else y2 - y1)
        runs.append(2 * y1 if alike else x2 - x1)
        products.append(product)
        product = product * runs[-1] % _P
    inverse = pow(product, -1, _P)
    sums = []
    for before, rise, run, (x1, y1), (x2, _) in zip(
        *map(reversed, (products, rises, runs, lefts, rights)), strict=True
    ):
        slope = rise * inverse * before % _P
        inverse = inverse * run % _P
        x3 = (slope * slope - x1 - x2) % _P
        sums.append((x3, (slope * (x1 - x3) - y1) % _P))
    sums.reverse()
    return sums


def _multiply_g2(scalar: int) -> tuple[_Pair, _Pair]:
    """Return scalar * G2, by doubling and adding from the highest bit."""
    total = _G2
    for bit in bin(scalar)[3:]:
        total = _add_g2(total, total)
        if bit == "1":
            total = _add_g2(total, _G2)
    return total


def _add_g2(
    left: tuple[_Pair, _Pair], right: tuple[_Pair, _Pair]
) -> tuple[_Pair, _Pair]:
    (x1, y1), (x2, y2) = left, right
    if left == right:
        square = _times(x1, x1)
        rise = (3 * square[0], 3 * square[1])
        run = (2 * y1[0], 2 * y1[1])
    else:
        rise = (y2[0] - y1[0], y2[1] - y1[1])
        run = (x2[0] - x1[0], x2[1] - x1[1])
    norm = pow(run[0] * run[0] + run[1] * run[1], -1, _P)
    slope = _times(rise, (run[0] * norm, -run[1] * norm))
    square = _times(slope, slope)
    x3 = ((square[0] - x1[0] - x2[0]) % _P, (square[1] - x1[1] - x2[1]) % _P)
    fall = _times(slope, (x1[0] - x3[0], x1[1] - x3[1]))
    return x3, ((fall[0] - y1[0]) % _P, (fall[1] - y1[1]) % _P)


def _times(left: _Pair, right: _Pair) -> _Pair:
    return (
        (left[0] * right[0] - left[1] * right[1]) % _P,
        (left[0] * right[1] + left[1] * right[0]) % _P,
    )
