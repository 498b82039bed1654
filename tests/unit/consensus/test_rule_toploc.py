"""The format of fingerprints: what toploc 0.1.6 wrote of the same tensors, and bounds.

The three fingerprints are toploc's own, of tensors that few lines make anywhere; it
also read ours of the altered ones as the table says.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable

import numpy as np
import pytest

from bentoml_secure.consensus.rules.pairing import CHUNK_ELEMENTS
from bentoml_secure.consensus.rules.toploc import (
    FIELD,
    FINGERPRINT_BYTES,
    MAX_MAGNITUDE,
    MIN_MODULUS,
    PLACES,
    Fingerprint,
    bfloat16_bits,
    build_fingerprint,
    largest,
    parse_fingerprint,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.tensors import Array

DENSE = (
    "/9nt6Z4elG9cATHjR+VQwradCg5KL3mqfqNe90x+/LK4QIDc8ODPVDcA23DMH/5I5cAXxylxuowc"
    "vEDtZ+cozUgJ7m+ooDtRWrbN3RycpFQoNRGYhrHjav+RgACn8WjHNLwK3Rl8j0+QPmzTa8x3dT7e"
    "iE5Uc8qH4o+2g/BUvKNb8So6qngUHQ6g42v1Q6KmR6Tjw05qOlx9LLGiO0QBG13ga09t/k6VXBTC"
    "XkhiAo+uHOz/BmwONfEIbIxXAjONEkuh69z98waRrZNJdPJLq03ODs0uJwYN3zr9cUM+Eug90jUT"
    "9hU5lQXqAkN0bN1yER907jT72kZzzXQ5xgeTU0KP"
)
FOLDING = (
    "/9josUDq0k1eUk2yzM5yXeJMlUeS1K0YET46nAzC+fHrOpdxH/bY3NKesLXNs8qy/NoIUCxTs7HN"
    "Yh1Wl/rHeZq0RaJh2kPkmaPljqQWBIjziluz9g3M0/L7JMV/eHciyVO80z7buGIp3zWmB+3n/yFR"
    "m1uZfpxSaE8jgeWS7nTvEeBe8ym/kfdXHyCA5IgsjSBpNnTZunj0uAdEtV7/gMd8vhpa66f4Atq0"
    "Od/tIx9SNQpjE/q4wOFEZhMKOdhtnFwLGTYTCYCTBq315OLSmyTTpnWMu/osNibS9BGqgngLhlwL"
    "isVBrDchQsUB/nZngOY1yW73o91sNEKUAsFSbqma"
)
SMALL = "/9k6EbJU9p0r3x+H6j8xwucjdWaXMQ=="


def floats(bits: Array) -> Array:
    """Return float32 of which these are the upper halves."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def dense(step: int = 0) -> Array:
    i = np.arange(2048)
    return floats((0x3A00 + (i * 1237 + 17) % 2048 + step) | (i // 3 % 2) << 15)


def folding(step: int = 0) -> Array:
    """Of 300 000 places, two of those that count are the same modulo 65497."""
    i = np.arange(PLACES)
    places = (i * 2333 + 7) % 300_000
    places[1] = places[0] + FIELD
    out = np.zeros(300_000, np.float32)
    out[places] = floats((0x3F80 + i * 2 + step) | (i // 3 % 2) << 15)
    return out


def small(step: int = 0) -> Array:
    return dense(step)[:10]


@pytest.mark.parametrize(
    ("tensor", "encoded", "modulus"),
    [(dense, DENSE, 65497), (folding, FOLDING, 65496), (small, SMALL, 65497)],
)
def test_fingerprints_are_those_of_toploc(
    tensor: Callable[[], Array], encoded: str, modulus: int
) -> None:
    data = base64.b64decode(encoded)
    theirs, ours = parse_fingerprint(data), build_fingerprint(tensor())
    assert ours == theirs
    assert ours.to_bytes() == data
    assert ours.modulus == modulus
    assert len(data) == 2 + 2 * min(PLACES, tensor().size)
    assert theirs.difference(tensor()).severity == 0.0


@pytest.mark.parametrize(
    ("tensor", "step", "mismatches", "steps"),
    [
        (dense, 3, 3, 3.0),
        (dense, 40, 40, 40.0),
        (folding, 3, 2, 3.0),
        (folding, 40, 40, 40.0),
        (small, 3, 0, 3.0),
        (small, 40, 3, 40.0),
        (small, 200, 10, 128.0),
    ],
)
def test_differences_are_those_of_toploc(
    tensor: Callable[[int], Array], step: int, mismatches: int, steps: float
) -> None:
    """Where nothing matches it says 2^64, we an octave."""
    found = build_fingerprint(tensor(0)).difference(tensor(step))
    assert found.exponent_mismatches == mismatches
    assert (found.mantissa_mean, found.mantissa_median) == (steps, steps)


def test_a_negated_tensor_is_another_one() -> None:
    """For toploc it is the same."""
    found = build_fingerprint(dense()).difference(-dense())
    assert found.exponent_mismatches == PLACES


def test_another_tensor_has_bits_at_random() -> None:
    other = np.random.default_rng(0).standard_normal(2048).astype(np.float32)
    found = build_fingerprint(dense()).difference(other)
    assert found.exponent_mismatches > 100
    assert found.severity > 2


def packed(modulus: int, *coefficients: int) -> bytes:
    return struct.pack(f">{1 + len(coefficients)}H", modulus, *coefficients)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "got 0 bytes, want 258"),
        (packed(FIELD), "got 2 bytes"),
        (packed(FIELD, 1) + b"\0", "got 5 bytes"),
        (packed(FIELD, *range(PLACES + 1)), "got 260 bytes"),
        (bytes(1 << 20), "got 1048576 bytes"),
        (packed(0, *[0] * PLACES), "modulus: got 0, want 32769 to 65497"),
        (packed(MIN_MODULUS - 1, 1), "modulus: got 32768"),
        (packed(FIELD + 1, 1), "modulus: got 65498"),
        (packed(FIELD, 1, FIELD), "coefficient: got 65497, want less than 65497"),
        (packed(FIELD, 65535, 1), "coefficient: got 65535"),
    ],
)
def test_malformed_fingerprints(data: bytes, match: str) -> None:
    with pytest.raises(MalformedInputError, match=match):
        parse_fingerprint(data)


@pytest.mark.parametrize("modulus", [MIN_MODULUS, 40_000, FIELD])
def test_the_extremes_are_read(modulus: int) -> None:
    data = packed(modulus, *[FIELD - 1] * PLACES)
    assert len(data) == FINGERPRINT_BYTES
    found = parse_fingerprint(data)
    assert found == Fingerprint(modulus=modulus, coefficients=(FIELD - 1,) * PLACES)
    assert 0 < found.difference(dense()).severity <= 16


@pytest.mark.parametrize("count", [1, PLACES - 1])
def test_fingerprints_of_another_size_are_refused(count: int) -> None:
    short = Fingerprint(modulus=FIELD, coefficients=(0,) * count)
    with pytest.raises(
        MalformedInputError, match=f"got {count} coefficients, want 128"
    ):
        short.difference(dense())
    with pytest.raises(MalformedInputError, match="want 10 for a tensor of 10 entries"):
        build_fingerprint(dense()).difference(small())


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(0, np.float32),
        np.array([1.0, np.nan]),
        np.array([1.0, -np.inf], np.float16),
        np.array([MAX_MAGNITUDE * 1.001]),
        np.arange(3),
    ],
)
def test_tensors_without_a_fingerprint(values: Array) -> None:
    for attempt in (build_fingerprint, build_fingerprint(dense()).difference):
        with pytest.raises(MalformedInputError, match="finite in bfloat16"):
            attempt(values)


def test_places_that_no_modulus_keeps_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bentoml_secure.consensus.rules.toploc.MIN_MODULUS", 65496)
    both = np.zeros(2 * FIELD, np.float32)
    both[[0, FIELD, 1]] = 3.0, 2.0, 1.0
    with pytest.raises(MalformedInputError, match="fall together modulo"):
        build_fingerprint(both)


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-1.0, 0xBF80),
        (0.0, 0),
        (-0.0, 0x8000),
        (1 + 2**-8, 0x3F80),  # half way: to even
        (1 + 3 * 2**-8, 0x3F82),
        (1 + 2**-8 + 2**-20, 0x3F81),
        (MAX_MAGNITUDE, 0x7F7F),
        (2.0**-133, 1),  # the least subnormal
    ],
)
def test_rounding_to_bfloat16(value: float, bits: int) -> None:
    assert bfloat16_bits(np.array([value])).tolist() == [bits]


@pytest.mark.parametrize("size", [1, 127, 128, 129, CHUNK_ELEMENTS + 1, 100_000])
@pytest.mark.parametrize("grain", [1, 1 << 30])
def test_the_largest_are_those_of_a_stable_sort(size: int, grain: int) -> None:
    """With ties or without, of all zeros the first."""
    values = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    values = np.round(values * grain) / np.float32(grain)
    want = np.argsort(-np.abs(values), kind="stable")[:PLACES]
    np.testing.assert_array_equal(largest(values), want)
    first = np.arange(min(size, PLACES))
    np.testing.assert_array_equal(largest(np.zeros(size, np.float32)), first)
