"""Orders and links: round trips, and every change refused with an error of ours."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bentoml_secure.digest import Scheme, digest_json
from bentoml_secure.errors import SecureError
from bentoml_secure.proofs.orders import About, Order, Priority
from bentoml_secure.proofs.sealing import (
    LARGEST_VALUE,
    OrderKey,
    open_link,
    open_opening,
    seal_link,
    seal_opening,
    seal_order,
)
from bentoml_secure.statements import format_time
from bentoml_secure.tensors import Array

KEY = OrderKey(bytes(range(32)))
SECRETS = st.binary(min_size=32, max_size=32)
DIGESTS = st.integers().map(lambda number: digest_json(str(number)))
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
MOMENTS = st.datetimes(
    min_value=datetime(1900, 1, 1),
    max_value=datetime(2900, 1, 1),
    timezones=st.just(UTC),
)
TENSORS = st.dictionaries(
    NAMES,
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8]),
        arrays.array_shapes(max_dims=3, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    min_size=1,
    max_size=3,
)


def salts_of(tensors: dict[str, Array] | None) -> st.SearchStrategy[Any]:
    """Return salts for just these tensors."""
    if tensors is None:
        return st.none()
    return st.fixed_dictionaries(dict.fromkeys(tensors, SECRETS))


@st.composite
def orders(draw: Any) -> Order:
    """Return any order that may be."""
    segments = draw(st.integers(1, 4))
    segment = draw(st.integers(0, segments - 1))
    first, last = segment == 0, segment == segments - 1
    inputs: dict[str, Array] | None = draw(TENSORS) if first else None
    served: dict[str, Array] | None = draw(TENSORS) if last else None
    return Order(
        about=About(
            receipt_id=draw(st.binary(min_size=16, max_size=16)).hex(),
            receipt_digest=draw(DIGESTS),
            infer=draw(st.integers(0, 2**32 - 1)),
            segment=segment,
        ),
        segments=segments,
        segment_identity=draw(DIGESTS),
        plan=draw(DIGESTS),
        manifest=draw(DIGESTS),
        nonce=draw(SECRETS).hex(),
        scheme=draw(st.sampled_from(Scheme)),
        priority=draw(st.sampled_from(Priority)),
        deadline=format_time(draw(MOMENTS)),
        salts=(draw(SECRETS), draw(SECRETS)),
        link_in=None if first else draw(SECRETS),
        link_out=None if last else draw(SECRETS),
        opening_key=draw(SECRETS) if first or last else None,
        inputs=inputs,
        input_salts=None
        if inputs is None
        else {name: draw(SECRETS) for name in inputs},
        served=served,
        output_salts=draw(salts_of(served)),
        proven_salts=draw(st.none() | salts_of(served)),
    )


def same(left: Any, right: Any) -> bool:
    """Tell whether two maps hold the same arrays, dtype included."""
    if left is None or right is None:
        return left is right
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


@settings(max_examples=60)
@given(orders())
def test_an_order_comes_back_whole(order: Order) -> None:
    back = KEY.open(seal_order(KEY.public, order), order.about)
    for name in Order.__slots__:
        if name in ("inputs", "served"):
            assert same(getattr(back, name), getattr(order, name))
        else:
            assert getattr(back, name) == getattr(order, name)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_an_order(data: bytes) -> None:
    with pytest.raises(SecureError, match=r"order|tensors"):
        Order.from_bytes(data)


@settings(max_examples=150)
@given(orders(), st.data())
def test_an_edited_order_parses_to_itself_or_not_at_all(
    order: Order, data: st.DataObject
) -> None:
    edited = bytearray(order.to_bytes())
    at = data.draw(st.integers(0, len(edited) - 1))
    edited[at] ^= data.draw(st.integers(1, 255))
    try:
        back = Order.from_bytes(bytes(edited))
    except SecureError:
        return
    assert back.to_bytes() == bytes(edited)


@settings(max_examples=80)
@given(orders(), st.data())
def test_no_bit_of_a_sealed_order_can_be_flipped(
    order: Order, data: st.DataObject
) -> None:
    edited = bytearray(seal_order(KEY.public, order))
    bit = data.draw(st.integers(0, 8 * len(edited) - 1))
    edited[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SecureError, match="does not open"):
        KEY.open(bytes(edited), order.about)


LINKED = About(
    receipt_id="00" * 16, receipt_digest=digest_json("r"), infer=0, segment=1
)


@settings(max_examples=80)
@given(
    st.lists(st.integers(-LARGEST_VALUE, LARGEST_VALUE), min_size=1, max_size=50),
    SECRETS,
    st.data(),
)
def test_links_come_back_unless_touched(
    values: list[int], key: bytes, data: st.DataObject
) -> None:
    sealed = seal_link(key, tuple(values), LINKED)
    after = replace(LINKED, segment=2)
    assert open_link(key, sealed, after) == tuple(values)
    edited = bytearray(sealed)
    bit = data.draw(st.integers(0, 8 * len(edited) - 1))
    edited[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SecureError, match="does not open"):
        open_link(key, bytes(edited), after)


@settings(max_examples=60)
@given(TENSORS, SECRETS, st.data())
def test_openings_come_back_unless_touched(
    tensors: dict[str, Array], key: bytes, data: st.DataObject
) -> None:
    named = {f"served.{name}": array for name, array in tensors.items()}
    assume(len(named) == len(tensors))
    sealed = seal_opening(key, named, LINKED)
    assert same(open_opening(key, sealed, LINKED), named)
    edited = bytearray(sealed)
    bit = data.draw(st.integers(0, 8 * len(edited) - 1))
    edited[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SecureError, match="does not open"):
        open_opening(key, bytes(edited), LINKED)
