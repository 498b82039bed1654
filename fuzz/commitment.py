"""Commitments, their envelopes, openings, reveals and what a receipt has of them."""

from __future__ import annotations

import json

from bentoml_secure.consensus.commit_reveal import (
    Commitment,
    Task,
    commit_answer,
    parse_commitment_envelope,
    sign_commitment,
)
from bentoml_secure.digest import canonical_json, digest_json, parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.commitments import (
    Revealed,
    commitments_from_json,
    commitments_to_json,
)
from bentoml_secure.serving.exchange import (
    Opening,
    decode_reveal,
    encode_reveal,
)
from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.deployment import key_of
from fuzz._same import require_same


def seeds() -> list[bytes]:
    """Return one of each."""
    task = Task(
        request_id="11" * 16,
        nonce="22" * 32,
        plan_digest=digest_json(1),
        infer_index=0,
        exchange_id="33" * 16,
        segment=digest_json(2),
    )
    made = Commitment(
        task=task,
        key_document=digest_json(3),
        commitment=commit_answer(task, "R", {}, bytes(16)),
    )
    envelope = sign_commitment(SigningKey(key_of("R")), made)
    revealed = Revealed(commitment=envelope, nonce=bytes(16), blind=True)
    return [
        canonical_json(made.to_json()),
        json.dumps(envelope.to_json()).encode(),
        json.dumps(commitments_to_json({"R": revealed})).encode(),
        Opening(nonce=bytes(16), statement=envelope.to_json()).encode(),
        encode_reveal("33" * 16),
    ]


def one(data: bytes) -> None:
    """Read bytes as each."""
    try:
        document = parse_json(data, what="document", max_bytes=1 << 20)
    except SecureError:
        return
    for reads_back in (
        lambda: Commitment.from_json(document).to_json(),
        lambda: parse_commitment_envelope(document).to_json(),
        lambda: commitments_to_json(commitments_from_json(document, what="")),
        lambda: json.loads(Opening.from_json(document).encode()),
        lambda: json.loads(encode_reveal(decode_reveal(data))),
    ):
        try:
            got = reads_back()
        except SecureError:
            continue
        require_same(got, document)
