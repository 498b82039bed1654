"""Orders: what a prover is told, in plain and sealed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from bentoml_secure.digest import Scheme, canonical_json, digest_json, parse_json
from bentoml_secure.errors import MalformedInputError, SecureError, VerificationError
from bentoml_secure.proofs import sealing
from bentoml_secure.proofs.orders import (
    MAX_HEADER_BYTES,
    MAX_TENSOR_BYTES,
    About,
    Order,
    Priority,
)
from bentoml_secure.proofs.sealing import (
    MAX_SEALED_ORDER_BYTES,
    ORDER_OVERHEAD_BYTES,
    PUBLIC_BYTES,
    OrderKey,
    seal_order,
)
from bentoml_secure.tensors import Array

ABOUT = About(
    receipt_id="ab" * 16, receipt_digest=digest_json("receipt"), infer=2, segment=0
)
X: dict[str, Array] = {"x": np.array([[1.5, -2.0]], np.float32)}
Y: dict[str, Array] = {"y": np.array([0.25], np.float32), "z": np.array([7], np.int64)}
SECRET = bytes(range(32))
KEY = OrderKey(SECRET)


def make_order(segment: int = 0, segments: int = 3, **changes: Any) -> Order:
    """Return an order as a segment's place in the chain wants it."""
    first, last = segment == 0, segment == segments - 1
    fields: dict[str, Any] = {
        "about": replace(ABOUT, segment=segment),
        "segments": segments,
        "segment_identity": digest_json(segment),
        "plan": digest_json("plan"),
        "manifest": digest_json("manifest"),
        "nonce": "cd" * 32,
        "scheme": Scheme.HMAC_SHA256,
        "priority": Priority.CRITICAL,
        "deadline": "2026-01-02T03:04:05.678Z",
        "salts": (b"i" * 32, b"o" * 32),
        "link_in": None if first else b"p" * 32,
        "link_out": None if last else b"n" * 32,
        "opening_key": b"k" * 32 if first or last else None,
        "inputs": X if first else None,
        "input_salts": {"x": b"x" * 32} if first else None,
        "served": Y if last else None,
        "output_salts": {"y": b"y" * 32, "z": b"z" * 32} if last else None,
    }
    return Order(**{**fields, **changes})


def with_header(data: bytes, **changes: Any) -> bytes:
    """Return an order with fields of its header replaced; ``...`` takes one out."""
    end = 4 + int.from_bytes(data[:4], "big")
    header = parse_json(data[4:end], what="header", max_bytes=MAX_HEADER_BYTES)
    header = {
        name: value for name, value in {**header, **changes}.items() if value != ...
    }
    again = canonical_json(header)
    return len(again).to_bytes(4, "big") + again + data[end:]


@pytest.mark.parametrize(("segment", "segments"), [(0, 3), (1, 3), (2, 3), (0, 1)])
def test_an_order_comes_back_as_it_was_given(segment: int, segments: int) -> None:
    order = make_order(segment, segments)
    back = Order.from_bytes(order.to_bytes())
    assert back.to_bytes() == order.to_bytes()
    assert (back.about, back.salts, back.deadline, back.priority) == (
        order.about,
        order.salts,
        order.deadline,
        order.priority,
    )
    assert (back.is_first, back.is_last) == (segment == 0, segment == segments - 1)
    if back.inputs is not None:
        np.testing.assert_array_equal(back.inputs["x"], X["x"])
    if back.served is not None:
        np.testing.assert_array_equal(back.served["z"], Y["z"])


def test_an_order_prints_no_secret() -> None:
    text = repr(make_order(0, 1))
    assert "salts" not in text
    assert "key" not in text
    assert "inputs" not in text
    assert SECRET.hex() not in repr(KEY)


@pytest.mark.parametrize(
    ("segment", "changes", "reason"),
    [
        (0, {"link_in": b"p" * 32}, "link_in: got one"),
        (1, {"link_in": None}, "link_in: got none"),
        (2, {"link_out": b"n" * 32}, "link_out: got one"),
        (1, {"opening_key": b"k" * 32}, "opening_key: got one"),
        (0, {"opening_key": None}, "opening_key: got none"),
        (1, {"inputs": X}, "inputs: got one"),
        (0, {"inputs": None}, "inputs: got none"),
        (0, {"input_salts": None}, "input_salts: got none"),
        (1, {"served": Y}, "served: got one"),
        (2, {"output_salts": None}, "output_salts: got none"),
        (0, {"input_salts": {"w": b"x" * 32}}, "input salts: got those"),
        (0, {"inputs": {}, "input_salts": {}}, "at least one"),
        (0, {"input_salts": {"x": b"x"}}, "input salt: got 1 bytes"),
        (0, {"proven_salts": {"y": b"y" * 32}}, "served salts: got those"),
        (2, {"proven_salts": {"y": b"y" * 32}}, "served salts: got those"),
        (0, {"link_out": b"n" * 31}, "link_out: got 31 bytes"),
        (1, {"salts": (b"i" * 32, b"o")}, "salts: got 1 bytes"),
        (1, {"segments": 1}, "segment: got 1, the plan has 1"),
        (1, {"segments": True}, "segments: got True"),
        (1, {"nonce": "cd"}, "nonce: got 2 hex digits"),
        (1, {"deadline": "soon"}, "deadline: got 'soon'"),
        (1, {"plan": "sha256:" + "0" * 64}, "order plan: got sha256"),
        (0, {"inputs": {"x": np.array([np.nan])}}, "input 'x': holds NaN"),
        (2, {"served": {**Y, "y": np.array([np.inf])}}, "served 'y': holds NaN"),
    ],
)
def test_an_order_holds_what_its_place_wants(
    segment: int, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MalformedInputError, match=reason):
        make_order(segment, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "version: got 2"),
        ({"version": True}, "version: got True"),
        ({"priority": "urgent"}, "priority: got 'urgent'"),
        ({"scheme": "sha256"}, "scheme: got 'sha256', want one of hmac-sha256"),
        ({"nonce": ...}, "field 'nonce' is missing"),
        ({"more": 1}, "unknown field 'more'"),
        ({"about": {}}, "order about: field"),
        ({"about": {**ABOUT.to_json(), "infer": -1}}, "infer: got -1"),
        ({"about": {**ABOUT.to_json(), "infer": 1 << 32}}, "infer: got 4294967296"),
        ({"about": {**ABOUT.to_json(), "segment": 1.5}}, "segment: got 1.5"),
        ({"about": {**ABOUT.to_json(), "receipt_id": "ab"}}, "receipt_id: got 2"),
        ({"salts": ["00" * 32]}, "salts: want a list of two"),
        ({"salts": ["00" * 32, 1]}, "salts: want 64 lower-case"),
        ({"opening_key": "zz" * 32}, "opening_key: want 64 lower-case"),
        ({"input_salts": ["00" * 32]}, "input_salts: want an object"),
        ({"input_salts": None}, "input_salts: got none"),
        ({"proven_salts": [1]}, "proven_salts: want an object"),
        ({"output_salts": {}}, "served: got one"),
    ],
)
def test_a_header_out_of_its_form_is_refused(
    changes: dict[str, Any], reason: str
) -> None:
    data = with_header(make_order().to_bytes(), **changes)
    with pytest.raises(MalformedInputError, match=reason):
        Order.from_bytes(data)


def test_an_error_repeats_no_secret() -> None:
    secret = "5e" * 31
    data = with_header(make_order().to_bytes(), opening_key=secret)
    with pytest.raises(MalformedInputError, match="opening_key") as caught:
        Order.from_bytes(data)
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "all of it: got 0 bytes"),
        (b"\x00\x00", "header: got 0 bytes"),
        (b"\xff\xff\xff\xff{}", "header: got 4294967295 bytes"),
        (b"\x00\x00\x00\x09{}", "not canonical"),
        (b"\x00\x00\x00\x03{ }rest", "not canonical"),
        (b"\x00\x00\x00\x02{}", "tensors: got 0 bytes"),
        (b"\x00\x00\x00\x03NaNrest", "not valid JSON"),
    ],
)
def test_bytes_out_of_their_form_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedInputError, match=reason):
        Order.from_bytes(data)


def test_a_tensor_of_no_known_end_is_refused() -> None:
    data = make_order().to_bytes().replace(b'"input.x"', b'"other.x"')
    with pytest.raises(MalformedInputError, match=r"tensor: got 'other\.x'"):
        Order.from_bytes(data)


def test_what_is_too_large_is_refused_by_both_sides() -> None:
    wide: dict[str, Array] = {"x": np.zeros(MAX_TENSOR_BYTES // 8, np.float64)}
    with pytest.raises(MalformedInputError, match="tensors: got"):
        make_order(inputs=wide).to_bytes()
    too_long = bytes(MAX_SEALED_ORDER_BYTES + 1)
    with pytest.raises(MalformedInputError, match="sealed order: got"):
        KEY.open(too_long, ABOUT)
    names = {f"{index:03}{'n' * 400}": np.zeros(1, np.float32) for index in range(200)}
    salts = dict.fromkeys(names, b"x" * 32)
    with pytest.raises(MalformedInputError, match="header"):
        make_order(inputs=names, input_salts=salts).to_bytes()


def test_a_sealed_order_opens_for_its_prover() -> None:
    order = make_order(0, 1)
    sealed = seal_order(KEY.public, order)
    assert len(sealed) == len(order.to_bytes()) + ORDER_OVERHEAD_BYTES
    assert OrderKey(SECRET).open(sealed, order.about).to_bytes() == order.to_bytes()
    assert b"input.x" not in sealed
    assert seal_order(KEY.public, order) != sealed


def test_the_key_follows_from_the_secret_alone() -> None:
    assert OrderKey(SECRET).public == KEY.public
    assert OrderKey(bytes(32)).public != KEY.public
    assert len(KEY.public) == 2 * PUBLIC_BYTES
    with pytest.raises(MalformedInputError, match="secret: got 31 bytes"):
        OrderKey(SECRET[:31])


def test_an_order_opens_under_no_other_segments_key() -> None:
    sealed = seal_order(KEY.public, make_order())
    with pytest.raises(VerificationError, match="segment 0: does not open"):
        OrderKey(bytes(32)).open(sealed, ABOUT)


@pytest.mark.parametrize(
    "other",
    [
        replace(ABOUT, receipt_id="00" * 16),
        replace(ABOUT, receipt_digest=digest_json("other")),
        replace(ABOUT, infer=3),
        replace(ABOUT, segment=1),
    ],
    ids=["request", "receipt", "infer", "segment"],
)
def test_an_order_is_not_replayed_as_one_about_another_proof(other: About) -> None:
    sealed = seal_order(KEY.public, make_order())
    assert KEY.open(sealed, ABOUT).about == ABOUT
    with pytest.raises(VerificationError, match="about this proof"):
        KEY.open(sealed, other)


def test_without_the_binding_a_replay_would_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sealing, "_order_info", lambda about: b"unbound")
    other = replace(ABOUT, infer=3)
    sealed = seal_order(KEY.public, make_order())
    # The header inside still says which proof it is.
    with pytest.raises(VerificationError, match="order about: got"):
        KEY.open(sealed, other)
    monkeypatch.setattr(About, "__eq__", lambda self, other: True)
    monkeypatch.setattr(About, "__ne__", lambda self, other: False, raising=False)
    assert KEY.open(sealed, other).about.infer == ABOUT.infer


def test_no_bit_of_a_sealed_order_can_be_flipped() -> None:
    sealed = seal_order(KEY.public, make_order(1))
    about = make_order(1).about
    # The encapsulated key, its two halves, the ciphertext, the tag.
    for place in (0, 1087, 1088, 1119, 1120, len(sealed) // 2, len(sealed) - 1):
        edited = bytearray(sealed)
        edited[place] ^= 1
        with pytest.raises(VerificationError, match="does not open"):
            KEY.open(bytes(edited), about)


@pytest.mark.parametrize("length", [0, 16, 1119, 1135, 1136, 1500])
def test_a_cut_order_does_not_open(length: int) -> None:
    sealed = seal_order(KEY.public, make_order())
    with pytest.raises(SecureError, match=r"sealed order: got|does not open"):
        KEY.open(sealed[:length], ABOUT)


def test_whoever_knows_the_public_key_can_seal_no_other_form() -> None:
    recipient = hpke.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(bytes.fromhex(KEY.public)[:1184]),
        X25519PublicKey.from_public_bytes(bytes.fromhex(KEY.public)[1184:]),
    )
    info = sealing._order_info(ABOUT)
    sealed = sealing._SUITE.encrypt(b"\xff" * 40, recipient, info)
    with pytest.raises(MalformedInputError, match="header: got 4294967295"):
        KEY.open(sealed, ABOUT)
    another = make_order(1).to_bytes()
    with pytest.raises(VerificationError, match="order about: got"):
        KEY.open(sealing._SUITE.encrypt(another, recipient, info), ABOUT)


@pytest.mark.parametrize(
    ("public", "reason"),
    [
        ("00" * 32, "order key: got 64 hex digits"),
        ("ff" * PUBLIC_BYTES, "order key: "),
        ("zz", "order key: got 'zz'"),
    ],
)
def test_only_an_order_key_is_sealed_to(public: str, reason: str) -> None:
    with pytest.raises(MalformedInputError, match=reason):
        seal_order(public, make_order())
