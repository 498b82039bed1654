"""A draw as a receipt shows it, and the commitment that an entry signs ahead."""

from __future__ import annotations

import json
from contextlib import suppress

from bentoml_secure.digest import canonical_json, digest_bytes, parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.draw import Commitment, Draw, commit_draw
from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.deployment import build_deployment
from fuzz._same import require_same

MAX_BYTES = 1 << 14


def seeds() -> list[bytes]:
    """Return a draw of each kind, and a commitment."""
    r = bytes(32)
    commitment = Commitment(
        commitment=digest_bytes(r),
        key_document=build_deployment(segments=1).entry.document.digest,
        evidence_nonce="ab" * 32,
    )
    signed = commit_draw(SigningKey.generate(), commitment)
    said = (Draw.of(r), Draw.of(r, signed), commitment)
    return [json.dumps(document.to_json()).encode() for document in said]


def one(data: bytes) -> None:
    """Read bytes as either; what is read is written as it was read."""
    with suppress(SecureError):
        document = parse_json(data, what="draw", max_bytes=MAX_BYTES)
        for parse in (Draw.from_json, Commitment.from_json):
            with suppress(SecureError):
                require_same(
                    canonical_json(parse(document).to_json()), canonical_json(document)
                )
