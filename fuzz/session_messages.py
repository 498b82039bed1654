"""The messages of a handshake: which one, the first byte chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.session.identity import caller_keys
from bentoml_secure.session.messages import (
    MASTER_BYTES,
    MAX_MESSAGE_BYTES,
    Confirm,
    Finish,
    Hello,
    Offer,
)
from bentoml_secure.session.suites import CLASSIC, ciphertext_bytes
from bentoml_secure.testing.deployment import NOW, build_deployment
from fuzz._same import require_same

Message = Hello | Offer | Finish | Confirm
PARSERS: tuple[Callable[[object], Message], ...] = (
    Hello.from_json,
    Offer.from_json,
    Finish.from_json,
    Confirm.from_json,
)


def seeds() -> list[bytes]:
    """Return one of each message."""
    entry = build_deployment(segments=1).entry
    record = EvidenceRecord(evidence=entry.attest(bytes(64)))
    nonce, signature = b"n" * 32, b"s" * 64
    messages: tuple[Message, ...] = (
        Hello(nonce=nonce),
        Offer(nonce=nonce, key_document=entry.document, record=record),
        Finish(
            nonce=nonce,
            key_document=caller_keys(lambda: NOW, timedelta(minutes=5)).document,
            record=None,
            suite=CLASSIC,
            sealed=bytes(ciphertext_bytes(CLASSIC, MASTER_BYTES)),
            signature=signature,
        ),
        Confirm(draw={"payload": ""}, mac=nonce, signature=signature),
    )
    return [
        bytes([index]) + json.dumps(message.to_json()).encode()
        for index, message in enumerate(messages)
    ]


def one(data: bytes) -> None:
    """Read bytes as one of them; what is read is written as it was read."""
    parse = PARSERS[data[0] % len(PARSERS) if data else 0]
    with suppress(SecureError):
        document = parse_json(data[1:], what="message", max_bytes=MAX_MESSAGE_BYTES)
        require_same(parse(document).to_json(), document)
