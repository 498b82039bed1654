"""What auditors sign and keep: nonces, challenges, roots, and lines of signed roots."""

from __future__ import annotations

import json
from contextlib import suppress

from bentoml_secure.client.auditing import parse_seen
from bentoml_secure.digest import Digest, parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.epoch_root import (
    NONCE_TYPE,
    AuditorNonce,
    EpochRoot,
    verify_nonce,
)
from bentoml_secure.receipts.late_challenge import LateChallenge, verify_challenge
from bentoml_secure.signing import SigningKey, parse_envelope, sign
from fuzz._same import require_same

MAX_BYTES = 1 << 16
_DIGEST = Digest("sha256-jcs-v1:" + "11" * 32)
_KEY = SigningKey.generate()


def _documents() -> list[dict[str, object]]:
    key = _KEY.public.raw.hex()
    nonce = AuditorNonce(root=_DIGEST, nonce="22" * 32, key=key)
    challenge = LateChallenge(receipt_id="33" * 16, receipt=_DIGEST, key=key)
    return [nonce.to_json(), challenge.to_json()]


def seeds() -> list[bytes]:
    """Return what is signed, its envelopes, and a line."""
    documents = _documents()
    envelopes = [sign(_KEY, NONCE_TYPE, document).to_json() for document in documents]
    line = ["sha256:" + "44" * 32, _DIGEST, 7, _DIGEST]
    return [json.dumps(each).encode() for each in (*documents, *envelopes, line)]


def one(data: bytes) -> None:
    """Read bytes as each of them."""
    with suppress(SecureError):
        document = parse_json(data, what="document", max_bytes=MAX_BYTES)
        for form in (EpochRoot, AuditorNonce, LateChallenge):
            with suppress(SecureError):
                require_same(form.from_json(document).to_json(), document)
        for verify in (verify_nonce, verify_challenge):
            with suppress(SecureError):
                verify(parse_envelope(document, what="envelope"))
    with suppress(SecureError):
        parse_seen(data)
