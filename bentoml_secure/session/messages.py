"""The four messages of a handshake: JSON objects with exactly these fields.

    (a) hello     caller      version, nonce
    (b) offer     responder   version, nonce, key_document, attestation
    (c) finish    caller      version, nonce (the responder's), key_document,
                              attestation or null, suite, sealed, signature
    (d) confirm   responder   version, draw or null, mac, signature

An attestation is an evidence record: evidence, endorsements, and gpu where there is
one. Nonces have 32 bytes; bytes are lower-case hex, ``sealed`` is base64.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.attestation.key_document import KeyDocument
from bentoml_secure.digest import (
    NONCE_BYTES,
    canonical_json,
    parse_hex,
    require_fields,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.session.suites import PREFERENCE, ciphertext_bytes
from bentoml_secure.signing import SIGNATURE_BYTES, decode_base64

VERSION = 1
MAX_MESSAGE_BYTES = 4 << 20
"""Of one message as JSON: evidence with its endorsements."""

MASTER_BYTES = 32
MAC_BYTES = 32

_TRANSCRIPT = b"bentoml-secure/session/v1/transcript"
_HELLO = frozenset({"version", "nonce"})
_OFFER = frozenset({"version", "nonce", "key_document", "attestation"})
_FINISH = frozenset(
    {
        "version",
        "nonce",
        "key_document",
        "attestation",
        "suite",
        "sealed",
        "signature",
    }
)
_CONFIRM = frozenset({"version", "draw", "mac", "signature"})

Document = dict[str, Any]


def _fields(document: object, wanted: frozenset[str], what: str) -> Mapping[str, Any]:
    fields = require_fields(document, wanted, what=what)
    version = fields["version"]
    # Not ==: true and 1.0 equal 1.
    if type(version) is not int or version != VERSION:
        raise MalformedInputError(f"{what} version: got {version!r:.40}, want 1")
    return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Message (a)."""

    nonce: bytes

    def to_json(self) -> Document:
        """Return the message as it travels."""
        return {"version": VERSION, "nonce": self.nonce.hex()}

    @classmethod
    def from_json(cls, document: object) -> Hello:
        """Parse what ``to_json`` wrote.

        Raises:
            MalformedInputError: A field missing, unknown or of another form.
        """
        fields = _fields(document, _HELLO, "session hello")
        return cls(nonce=_nonce(fields, "session hello"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Message (b)."""

    nonce: bytes
    key_document: KeyDocument
    record: EvidenceRecord

    def to_json(self) -> Document:
        """Return the message as it travels."""
        return {
            "version": VERSION,
            "nonce": self.nonce.hex(),
            "key_document": self.key_document.to_json(),
            "attestation": self.record.to_json(),
        }

    @classmethod
    def from_json(cls, document: object) -> Offer:
        """Parse what ``to_json`` wrote.

        Raises:
            MalformedInputError: A field missing, unknown or of another form.
        """
        fields = _fields(document, _OFFER, "session offer")
        return cls(
            nonce=_nonce(fields, "session offer"),
            key_document=KeyDocument.from_json(fields["key_document"]),
            record=EvidenceRecord.from_json(fields["attestation"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Message (c).

    Attributes:
        nonce: The responder's, which says which handshake this ends.
        key_document: The caller's.
        record: Its evidence over that nonce; callers of role ``client`` have none.
        suite: Chosen from those that the responder's key document offers.
        sealed: The master secret, sealed to the responder's key of that suite.
        signature: Of the caller's key over the transcript so far.
    """

    nonce: bytes
    key_document: KeyDocument
    record: EvidenceRecord | None
    suite: str
    sealed: bytes
    signature: bytes = b""

    def unsigned(self) -> Document:
        """Return the message without its signature: what that covers."""
        return {
            "version": VERSION,
            "nonce": self.nonce.hex(),
            "key_document": self.key_document.to_json(),
            "attestation": None if self.record is None else self.record.to_json(),
            "suite": self.suite,
            "sealed": base64.b64encode(self.sealed).decode(),
        }

    def to_json(self) -> Document:
        """Return the message as it travels."""
        return {**self.unsigned(), "signature": self.signature.hex()}

    @staticmethod
    def nonce_of(document: object) -> bytes:
        """Return the nonce alone: a stranger's evidence is not even parsed.

        Raises:
            MalformedInputError: A field missing, unknown, or no nonce.
        """
        return _nonce(_fields(document, _FINISH, "session finish"), "session finish")

    @classmethod
    def from_json(cls, document: object) -> Finish:
        """Parse what ``to_json`` wrote.

        Raises:
            MalformedInputError: A field missing, unknown or of another form.
        """
        what = "session finish"
        fields = _fields(document, _FINISH, what)
        suite, record = fields["suite"], fields["attestation"]
        if suite not in PREFERENCE:
            raise MalformedInputError(
                f"{what} suite: got {suite!r:.80}, want one of {PREFERENCE}"
            )
        length = ciphertext_bytes(suite, MASTER_BYTES)
        sealed = decode_base64(
            fields["sealed"], what=f"{what} sealed", max_bytes=length
        )
        if len(sealed) != length:
            raise MalformedInputError(
                f"{what} sealed: got {len(sealed)} bytes, want {length}"
            )
        return cls(
            nonce=_nonce(fields, what),
            key_document=KeyDocument.from_json(fields["key_document"]),
            record=None if record is None else EvidenceRecord.from_json(record),
            suite=suite,
            sealed=sealed,
            signature=_signature(fields, what),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """Message (d).

    Attributes:
        draw: From an entry: its signed commitment to the first committee draw.
        mac: Shows that the responder has the master secret.
        signature: Of the responder's key over the whole transcript.
    """

    draw: Document | None
    mac: bytes = b""
    signature: bytes = b""

    def unsigned(self) -> Document:
        """Return the message without MAC and signature: what those cover."""
        return {"version": VERSION, "draw": self.draw}

    def to_json(self) -> Document:
        """Return the message as it travels."""
        return {
            **self.unsigned(),
            "mac": self.mac.hex(),
            "signature": self.signature.hex(),
        }

    @classmethod
    def from_json(cls, document: object) -> Confirm:
        """Parse what ``to_json`` wrote.

        Raises:
            MalformedInputError: A field missing, unknown or of another form.
        """
        what = "session confirm"
        fields = _fields(document, _CONFIRM, what)
        draw = fields["draw"]
        if draw is not None and not isinstance(draw, dict):
            raise MalformedInputError(f"{what} draw: want an object or null")
        return cls(
            draw=draw,
            mac=parse_hex(fields["mac"], what=f"{what} mac", length=MAC_BYTES),
            signature=_signature(fields, what),
        )


def _nonce(fields: Mapping[str, Any], what: str) -> bytes:
    return parse_hex(fields["nonce"], what=f"{what} nonce", length=NONCE_BYTES)


def _signature(fields: Mapping[str, Any], what: str) -> bytes:
    return parse_hex(
        fields["signature"], what=f"{what} signature", length=SIGNATURE_BYTES
    )


def transcript(*messages: Document) -> bytes:
    """Return the 32-byte hash of messages in their order.

    SHA-256("bentoml-secure/session/v1/transcript" || SHA-256(JCS(message)) ...).
    """
    hashes = (hashlib.sha256(canonical_json(message)).digest() for message in messages)
    return hashlib.sha256(_TRANSCRIPT + b"".join(hashes)).digest()
