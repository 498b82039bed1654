"""Links between provers, and openings for whoever holds the root salt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bentoml_secure.digest import digest_json
from bentoml_secure.errors import MalformedInputError, SecureError, VerificationError
from bentoml_secure.proofs import sealing
from bentoml_secure.proofs.orders import About
from bentoml_secure.proofs.sealing import (
    LARGEST_VALUE,
    MAX_SEALED_LINK_BYTES,
    MAX_SEALED_OPENING_BYTES,
    MAX_VALUES,
    open_link,
    open_opening,
    seal_link,
    seal_opening,
)
from bentoml_secure.tensors import Array, encode

FIRST = About(
    receipt_id="ab" * 16, receipt_digest=digest_json("receipt"), infer=1, segment=0
)
SECOND = replace(FIRST, segment=1)
KEY, OTHER = b"k" * 32, b"o" * 32
VALUES = (0, -1, 5, LARGEST_VALUE, -LARGEST_VALUE)
LAST: dict[str, Array] = {
    "proven": np.array([3, -(2**40)], np.int64),
    "served.y": np.array([[0.5]], np.float32),
}


def test_a_link_opens_for_the_prover_of_the_next_segment() -> None:
    sealed = seal_link(KEY, VALUES, FIRST)
    assert open_link(KEY, sealed, SECOND) == VALUES
    assert len(sealed) == 12 + 8 * len(VALUES) + 16
    assert seal_link(KEY, VALUES, FIRST) != sealed


@pytest.mark.parametrize(
    "other",
    [
        FIRST,
        replace(SECOND, segment=2),
        replace(SECOND, infer=0),
        replace(SECOND, receipt_digest=digest_json("another request")),
    ],
    ids=["backwards", "skipped", "infer", "request"],
)
def test_a_link_is_of_one_boundary_of_one_request(other: About) -> None:
    sealed = seal_link(KEY, VALUES, FIRST)
    with pytest.raises(VerificationError, match="link: does not open"):
        open_link(KEY, sealed, other)


def test_without_the_binding_a_link_of_another_request_would_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One key for two requests is a mistake upstream that the binding still stops.
    sealed = seal_link(KEY, VALUES, FIRST)
    other = replace(SECOND, receipt_digest=digest_json("another request"))
    with pytest.raises(VerificationError, match="does not open"):
        open_link(KEY, sealed, other)
    monkeypatch.setattr(About, "bind", lambda self, label, index=None: label)
    assert open_link(KEY, seal_link(KEY, VALUES, FIRST), other) == VALUES


def test_a_link_opens_under_its_key_only() -> None:
    with pytest.raises(VerificationError, match="link: does not open"):
        open_link(OTHER, seal_link(KEY, VALUES, FIRST), SECOND)
    with pytest.raises(MalformedInputError, match="key: got 3 bytes"):
        seal_link(b"key", VALUES, FIRST)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((), "got 0 values"),
        ((0,) * (MAX_VALUES + 1), f"got {MAX_VALUES + 1} values"),
        ((1, LARGEST_VALUE + 1), "got values from 1"),
        ((-(1 << 200),), "got values from -"),
    ],
    ids=["none", "many", "large", "small"],
)
def test_a_link_has_values_within_bounds(values: tuple[int, ...], reason: str) -> None:
    with pytest.raises(MalformedInputError, match=reason):
        seal_link(KEY, values, FIRST)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "got 0 bytes"),
        (b"1234567", "got 7 bytes"),
        ((LARGEST_VALUE + 1).to_bytes(8, "little"), "none beyond"),
        (b"\0" * 7 + b"\x80", "none beyond"),
    ],
)
def test_a_lying_prover_before_is_not_believed(data: bytes, reason: str) -> None:
    nonce, bound = bytes(12), SECOND.bind(sealing._LINK_LABEL)
    sealed = nonce + AESGCM(KEY).encrypt(nonce, data, bound)
    with pytest.raises(MalformedInputError, match=reason):
        open_link(KEY, sealed, SECOND)


@pytest.mark.parametrize("length", [0, 12, 27, 28, 60])
def test_what_was_cut_does_not_open(length: int) -> None:
    for opened in (
        lambda: open_link(KEY, seal_link(KEY, VALUES, FIRST)[:length], SECOND),
        lambda: open_opening(KEY, seal_opening(KEY, LAST, FIRST)[:length], FIRST),
    ):
        with pytest.raises(SecureError, match=r"sealed \w+: got|does not open"):
            opened()


def test_what_is_too_long_is_not_opened() -> None:
    with pytest.raises(MalformedInputError, match="sealed link: got"):
        open_link(KEY, bytes(MAX_SEALED_LINK_BYTES + 1), SECOND)
    with pytest.raises(MalformedInputError, match="sealed opening: got"):
        open_opening(KEY, bytes(MAX_SEALED_OPENING_BYTES + 1), SECOND)
    wide: dict[str, Array] = {"proven": np.zeros(MAX_SEALED_OPENING_BYTES // 8)}
    wide = {"proven": wide["proven"].astype(np.int64)}
    with pytest.raises(MalformedInputError, match="opening: got"):
        seal_opening(KEY, wide, FIRST)


def test_an_opening_opens_for_who_has_the_key() -> None:
    opened = open_opening(KEY, seal_opening(KEY, LAST, SECOND), SECOND)
    assert opened.keys() == LAST.keys()
    for name, array in LAST.items():
        np.testing.assert_array_equal(opened[name], array)


@pytest.mark.parametrize(
    ("key", "about"),
    [
        (OTHER, SECOND),
        (KEY, FIRST),
        (KEY, replace(SECOND, infer=0)),
        (KEY, replace(SECOND, receipt_digest=digest_json("another"))),
    ],
    ids=["key", "segment", "infer", "receipt"],
)
def test_an_opening_is_of_one_proof(key: bytes, about: About) -> None:
    with pytest.raises(VerificationError, match="opening: does not open"):
        open_opening(key, seal_opening(KEY, LAST, SECOND), about)


def test_an_opening_is_bound_as_the_format_says() -> None:
    # Others open it too: docs/receipt-format.md.
    sealed = seal_opening(KEY, LAST, SECOND)
    bound = (
        b"bentoml-secure/proof-opening/v1"
        + SECOND.receipt_digest.encode()
        + b"\0\0\0\1\0\0\0\1"
    )
    assert AESGCM(KEY).decrypt(sealed[:12], sealed[12:], bound) == encode(LAST)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "holds no tensor"),
        ({"y": np.zeros(1)}, "tensor: got 'y'"),
        ({"proven": np.zeros(1)}, "proven: got float64"),
        ({"proven": np.zeros((1, 1), np.int64)}, "want int64 in one dimension"),
        ({"served.y": np.array([0.0, np.nan])}, r"'served\.y': holds NaN"),
        ({"input.x": np.array([-np.inf], np.float32)}, r"'input\.x': holds NaN"),
    ],
)
def test_an_opening_of_another_form_is_refused_on_both_sides(
    tensors: dict[str, Array], reason: str
) -> None:
    with pytest.raises(MalformedInputError, match=reason):
        seal_opening(KEY, tensors, FIRST)
    nonce, bound = bytes(12), FIRST.bind(sealing._OPENING_LABEL)
    sealed = nonce + AESGCM(KEY).encrypt(nonce, encode(tensors), bound)
    with pytest.raises(MalformedInputError, match=reason):
        open_opening(KEY, sealed, FIRST)
