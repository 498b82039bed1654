"""A session's secrets: from the master secret to one key per exchange and direction.

    prk       HKDF-Extract(salt = transcript of (a), (b), (c), master secret)
    id        HKDF-Expand(prk, label || "id", 16)
    confirm   HKDF-Expand(prk, label || "confirm", 32): keys the MAC of (d)
    records   HKDF-Expand(prk, label || "records", 32)
    request   HKDF-Expand(records, label || "request" || exchange id, 32)
    response  HKDF-Expand(records, label || "response" || exchange id ||
              responder nonce, 32)

with label = "bentoml-secure/session/v1/". Source: RFC 5869.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import datetime

from bentoml_secure.attestation.evidence import AttestationResult, EvidenceRecord
from bentoml_secure.attestation.key_document import KeyDocument
from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.session.identity import Keys

SESSION_ID_BYTES = 16
EXCHANGE_ID_BYTES = 16
RESPONDER_NONCE_BYTES = 16
_LABEL = b"bentoml-secure/session/v1/"


def _expand(key: bytes, info: bytes) -> bytes:
    # RFC 5869 section 2.3 for one block, which is all that is asked for here.
    return hmac.digest(key, _LABEL + info + b"\x01", "sha256")


@dataclass(frozen=True, slots=True)
class Secrets:
    """What both ends derive from the master secret and the transcript."""

    session_id: bytes
    _confirm: bytes = field(repr=False)
    _records: bytes = field(repr=False)

    @classmethod
    def derive(cls, master: bytes, transcript: bytes) -> Secrets:
        """Derive them.

        Args:
            master: 32 secret bytes.
            transcript: Hash of messages (a), (b), (c).
        """
        prk = hmac.digest(transcript, master, "sha256")
        return cls(
            _expand(prk, b"id")[:SESSION_ID_BYTES],
            _expand(prk, b"confirm"),
            _expand(prk, b"records"),
        )

    def confirmation(self, transcript: bytes) -> bytes:
        """Return the MAC of message (d)."""
        return hmac.digest(self._confirm, transcript, "sha256")

    def request_key(self, exchange_id: bytes) -> bytes:
        """Return the AES-256 key of one exchange's request: for one message only.

        Args:
            exchange_id: 16 bytes that were never used before.
        """
        _require_length("exchange id", exchange_id, EXCHANGE_ID_BYTES)
        return _expand(self._records, b"request" + exchange_id)

    def response_key(self, exchange_id: bytes, responder_nonce: bytes) -> bytes:
        """Return the AES-256 key of one exchange's response.

        Args:
            exchange_id: The caller's 16 bytes.
            responder_nonce: The responder's 16, fresh: a replayed request under a lost
                replay window would otherwise have two responses under one key.
        """
        _require_length("exchange id", exchange_id, EXCHANGE_ID_BYTES)
        _require_length("responder nonce", responder_nonce, RESPONDER_NONCE_BYTES)
        return _expand(self._records, b"response" + exchange_id + responder_nonce)


def _require_length(what: str, value: bytes, length: int) -> None:
    # A shorter one would let its neighbour slide: two ids, one key.
    if len(value) != length:
        raise MalformedInputError(f"{what}: got {len(value)} bytes, want {length}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What one end shows of itself, for the other to judge.

    Attributes:
        document: Its key document.
        record: Its evidence; None for a client.
        nonce: That the evidence must cover: drawn by who judges.
        nonce_issued_at: When it was drawn.
    """

    document: KeyDocument
    record: EvidenceRecord | None
    nonce: bytes
    nonce_issued_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What either end holds once a handshake is done.

    Attributes:
        secrets: Keys of its exchanges.
        keys: That this end showed, and signs with. HPKE's private keys are not among
            them: a session must not keep those beyond their time.
        own: What this end showed, over the other's nonce.
        peer: What the other end showed, over this end's nonce.
        result: Of the other end's evidence; None for a client, which has none.
        responder: The responder's key document: names what records are for.
        expires_at: No exchange begins after that; whoever begins one compares.
        draw: From an entry's (d).
    """

    secrets: Secrets
    keys: Keys
    own: Shown
    peer: Shown
    result: AttestationResult | None
    responder: KeyDocument
    expires_at: datetime
    draw: dict[str, object] | None = None
    _context: dict[str, str | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        document = self.responder
        context = {
            "role": document.role.value,
            "service": document.service,
            "segment": document.segment,
        }
        object.__setattr__(self, "_context", context)

    def context(
        self,
        direction: str,
        *,
        operation: str,
        request_id: bytes,
        status: int | None = None,
    ) -> bytes:
        """Return the associated data of one direction's records.

        Args:
            direction: "request" or "response".
            operation: What is asked: "infer", "release", or "POST /path" of an API.
            request_id: The request's 16 bytes; where it has none yet, the exchange's.
            status: HTTP status of a response.
        """
        return canonical_json(
            {
                **self._context,
                "direction": direction,
                "operation": operation,
                "request_id": request_id.hex(),
                "status": status,
            }
        )
