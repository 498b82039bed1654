"""Strings made here are the multiples that they claim to be, whatever the secret."""

from __future__ import annotations

import io

import pytest

from bentoml_secure.proofs.field import FIELD_MODULUS
from bentoml_secure.proofs.unsafe_srs import write_unsafe_srs

P = 0x30644E72E131A029B85045B68181585D97816A916871CA8D3C208C16D87CFD47
WINDOWS = sum(1 << 10 * window for window in range(26))
# Digits count from one to 1024. With these, the windows below add up to the very point
# that the next one adds.
CARRIES = [1023, 1023 + (1022 << 10)]


def multiple(scalar: int) -> tuple[int, int]:
    """Multiply the generator of G1 the plain way."""
    total: tuple[int, int] | None = None
    for bit in bin(scalar)[2:]:
        total = added(total, total)
        if bit == "1":
            total = added(total, (1, 2))
    assert total is not None
    return total


def added(
    left: tuple[int, int] | None, right: tuple[int, int] | None
) -> tuple[int, int] | None:
    if left is None or right is None:
        return left or right
    (x1, y1), (x2, y2) = left, right
    if left == right:
        slope = 3 * x1 * x1 * pow(2 * y1, -1, P) % P
    else:
        slope = (y2 - y1) * pow(x2 - x1, -1, P) % P
    x3 = (slope * slope - x1 - x2) % P
    return x3, (slope * (x1 - x3) - y1) % P


@pytest.mark.parametrize("carry", [*CARRIES, 12345], ids=["one", "two", "none"])
def test_points_are_the_powers_of_the_secret(carry: int) -> None:
    secret = (WINDOWS + carry + (5 << 60)) % FIELD_MODULUS
    stream = io.BytesIO()
    write_unsafe_srs(stream, 2, secret)
    raw, back = stream.getvalue()[4:], pow(1 << 256, -1, P)
    values = [
        int.from_bytes(raw[at : at + 32], "little") * back % P
        for at in range(0, 2 * 4 * 32, 32)
    ]
    got = list(zip(values[::2], values[1::2], strict=True))
    assert got == [multiple(pow(secret, i, FIELD_MODULUS)) for i in range(4)]
