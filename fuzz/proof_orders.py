"""What provers are sent: orders, sealed and open, links and openings."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from bentoml_secure.digest import Scheme, digest_json
from bentoml_secure.errors import SecureError
from bentoml_secure.proofs.orders import About, Order, Priority
from bentoml_secure.proofs.sealing import (
    OrderKey,
    open_link,
    open_opening,
    seal_link,
    seal_opening,
    seal_order,
)
from fuzz._same import require_same

_KEY = bytes(range(32))
_ORDER_KEY = OrderKey(_KEY)
_ABOUT = About(
    receipt_id="ab" * 16, receipt_digest=digest_json("receipt"), infer=0, segment=0
)
_VALUES = (1, -2, 3)


def _order() -> Order:
    tensors = {"x": np.array([1.5, -2.0], np.float32)}
    return Order(
        about=_ABOUT,
        segments=1,
        segment_identity=digest_json("segment"),
        plan=digest_json("plan"),
        manifest=digest_json("manifest"),
        nonce="cd" * 32,
        scheme=Scheme.BLAKE3,
        priority=Priority.AUDIT,
        deadline="2026-01-02T03:04:05.678Z",
        salts=(_KEY, _KEY),
        opening_key=_KEY,
        inputs=tensors,
        input_salts={"x": _KEY},
        served=tensors,
        output_salts={"x": _KEY},
    )


def seeds() -> list[bytes]:
    """Return one of each."""
    order = _order()
    return [
        order.to_bytes(),
        seal_order(_ORDER_KEY.public, order),
        seal_link(_KEY, _VALUES, _ABOUT),
        seal_opening(_KEY, {"proven": np.array([7], np.int64)}, _ABOUT),
    ]


def one(data: bytes) -> None:
    """Read bytes as each of them; what is sealed opens as what it was, or not."""
    with suppress(SecureError):
        require_same(Order.from_bytes(data).to_bytes(), data)
    with suppress(SecureError):
        opened = _ORDER_KEY.open(data, _ABOUT)
        require_same(opened.to_bytes(), _order().to_bytes())
    with suppress(SecureError):
        require_same(open_link(_KEY, data, _ABOUT), _VALUES)
    with suppress(SecureError):
        require_same(open_opening(_KEY, data, _ABOUT)["proven"].tolist(), [7])
