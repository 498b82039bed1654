"""Envelopes, statements in them, and in-toto statements."""

from __future__ import annotations

import json

from bentoml_secure.digest import parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.receipt import PREDICATE_TYPE
from bentoml_secure.signing import parse_envelope
from bentoml_secure.statements import Statement, parse_intoto
from bentoml_secure.testing.receipts import build_bundle
from fuzz._same import require_same


def seeds() -> list[bytes]:
    """Return a receipt's envelope and what it signs."""
    receipt = build_bundle().receipt
    return [json.dumps(receipt.to_json()).encode(), receipt.payload]


def one(data: bytes) -> None:
    """Read bytes as each."""
    try:
        document = parse_json(data, what="document", max_bytes=1 << 20)
    except SecureError:
        return
    for parse in (
        lambda: require_same(parse_envelope(document, what="").to_json(), document),
        lambda: require_same(Statement.from_json(document).to_json(), document),
        lambda: parse_intoto(document, predicate_type=PREDICATE_TYPE, what=""),
    ):
        try:
            parse()
        except SecureError:
            continue
