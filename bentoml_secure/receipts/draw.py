"""The entry's share of a request id: drawn, and committed to, before it knows more.

An entry that could choose its 32 bytes ``r`` once it has seen the caller's nonce could
choose what follows from both. So it signs SHA-256(r) beforehand and hands that out in
a session; the caller names it in one request, and the receipt shows ``r`` beside it.

Only the caller knows which commitment it was given, and when. To everybody else the
signature says that the entry made this one, for this session, not that it made it in
time: see ``verify_bundle``'s argument ``committed``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bentoml_secure.digest import (
    JSON,
    NONCE_BYTES,
    REQUEST_ID_BYTES,
    Digest,
    digest_bytes,
    parse_digest,
    parse_hex,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.strict import fields, flag, whole
from bentoml_secure.signing import (
    Envelope,
    SigningKey,
    VerificationKey,
    parse_envelope,
    sign,
    verify,
)

DRAW_TYPE = "application/vnd.bentoml-secure.draw.v1+json"
REQUEST_ID_LABEL = b"bentoml-secure/request/v1"
DRAW_BYTES = 32
MAX_COMMITMENT_BYTES = 1024
MAX_ENVELOPE_TEXT = 4096

_COMMITMENT = ("version", "commitment", "key_document", "evidence_nonce")
_DRAW = ("commitment", "r", "asserted", "signed")


class Drawn(StrEnum):
    """How a draw came about; what a trust file demands at least."""

    ASSERTED = "asserted"
    COMMITTED = "committed"


def derive_request_id(r: bytes, nonce: bytes) -> bytes:
    """Return the 16-byte id of a request.

    SHA-256("bentoml-secure/request/v1" || SHA-256(r) || nonce), its first 16 bytes:
    neither side can choose it alone, once the entry has shown SHA-256(r).

    Args:
        r: The entry's 32 random bytes, single use.
        nonce: The caller's 32 bytes.
    """
    inner = hashlib.sha256(r).digest()
    return hashlib.sha256(REQUEST_ID_LABEL + inner + nonce).digest()[:REQUEST_ID_BYTES]


def parse_commitment(value: object, *, what: str) -> Digest:
    """Return the digest of an ``r``.

    Raises:
        MalformedInputError: Not ``sha256:<hex>``.
    """
    return parse_digest(value, what=what, algorithm="sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """What the entry signs before it knows what it draws for.

    Attributes:
        commitment: SHA-256 digest of ``r``.
        key_document: The entry's, whose key signs.
        evidence_nonce: That the caller began the session with, hex: the commitment is
            for this session, as a receipt names it too.
    """

    commitment: Digest
    key_document: Digest
    evidence_nonce: str

    def to_json(self) -> dict[str, Any]:
        """Return the document that is signed."""
        return {"version": 1} | {name: getattr(self, name) for name in _COMMITMENT[1:]}

    @classmethod
    def from_json(cls, document: object) -> Commitment:
        """Parse a signed document.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        what = "draw commitment"
        got = fields(document, _COMMITMENT, what=what)
        whole(got["version"], what=f"{what} version", low=1, high=1)
        return cls(
            commitment=parse_commitment(got["commitment"], what=what),
            key_document=parse_digest(
                got["key_document"], what=f"{what} key_document", algorithm=JSON
            ),
            evidence_nonce=parse_hex(
                got["evidence_nonce"], what=f"{what} evidence_nonce", length=NONCE_BYTES
            ).hex(),
        )


def commit_draw(key: SigningKey, commitment: Commitment) -> Envelope:
    """Sign a commitment as the entry whose key document it names."""
    return sign(key, DRAW_TYPE, commitment.to_json())


def verify_commitment(envelope: Envelope, key: VerificationKey) -> Commitment:
    """Verify an entry's envelope and return what it commits to.

    Raises:
        VerificationError: Another key or type, or the signature does not fit.
        MalformedInputError: Signed, but not a commitment.
    """
    return Commitment.from_json(verify(envelope, key, payload_type=DRAW_TYPE))


def parse_commitment_envelope(document: object) -> Envelope:
    """Parse the JSON form of a commitment's envelope, within its size limit.

    Raises:
        MalformedInputError: Not an envelope, or too large.
    """
    return parse_envelope(
        document, what="draw commitment", max_bytes=MAX_COMMITMENT_BYTES
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The entry's share of the request id and of the committee's seed.

    Attributes:
        commitment: SHA-256 digest of ``r``.
        r: 32 bytes, hex.
        signed: The commitment as the entry signed it beforehand. None: it was shown to
            nobody, so the entry may have chosen ``r`` at will.
    """

    commitment: Digest
    r: str
    signed: Envelope | None

    @classmethod
    def of(cls, r: bytes, signed: Envelope | None = None) -> Draw:
        """Return the draw of 32 bytes ``r``."""
        return cls(commitment=digest_bytes(r), r=r.hex(), signed=signed)

    @property
    def asserted(self) -> bool:
        """Whether the draw rests on the entry's word alone."""
        return self.signed is None

    def to_json(self) -> dict[str, Any]:
        """Return the predicate's ``draw``."""
        return {
            "commitment": self.commitment,
            "r": self.r,
            "asserted": self.asserted,
            "signed": None if self.signed is None else self.signed.to_json(),
        }

    @classmethod
    def from_json(cls, document: object) -> Draw:
        """Parse ``draw``.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form; signed
                and asserted at once, or neither.
        """
        got = fields(document, _DRAW, what="draw")
        asserted, signed = flag(got["asserted"], what="draw asserted"), got["signed"]
        if asserted is not (signed is None):
            raise MalformedInputError(
                "draw: want a signed commitment, or none and asserted"
            )
        return cls(
            commitment=parse_commitment(got["commitment"], what="draw commitment"),
            r=parse_hex(got["r"], what="draw r", length=DRAW_BYTES).hex(),
            signed=None if signed is None else parse_commitment_envelope(signed),
        )
