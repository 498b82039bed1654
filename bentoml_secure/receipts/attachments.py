"""Attachments: what comes after a receipt, each signed apart.

The receipt's entry signs them, one of each kind. What the kinds in ``SIGNED_APART`` are
about, somebody else does; such a kind says who it is, and there may be many of it.

An in-toto Statement v1 whose only subject is the receipt, by its digest. The kind is
in the predicate type, ``https://bentoml-secure.dev/<kind>/v1``; every predicate has a
version, the receipt's id and the time of issue, and what else its kind says.

A new kind is one file with one judge, and one line in ``ATTACHMENTS``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from bentoml_secure import registry
from bentoml_secure.digest import (
    JSON,
    REQUEST_ID_BYTES,
    Digest,
    parse_digest,
    parse_hex,
    parse_json,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.strict import whole
from bentoml_secure.signing import (
    MAX_ENVELOPE_BYTES,
    Envelope,
    SigningKey,
    VerificationKey,
    sign,
    verify,
)
from bentoml_secure.statements import (
    INTOTO_TYPE,
    intoto_statement,
    parse_intoto,
    parse_time,
)

if TYPE_CHECKING:
    from bentoml_secure.receipts.rounds import Judgement

GROUP = "bentoml_secure.attachments"
ATTACHMENTS: Mapping[str, str] = {
    "audit": "bentoml_secure.receipts.audit:judge",
    "epoch": "bentoml_secure.receipts.epoch:judge",
    "late-votes": "bentoml_secure.receipts.late_votes:judge",
    "localisation": "bentoml_secure.receipts.localisation:judge",
    "proof": "bentoml_secure.receipts.proving:judge",
}
SIGNED_APART: Mapping[str, str] = {"proof": "bentoml_secure.receipts.proofs:prover_key"}
"""Kinds that not the entry signs: what finds the key that an attachment names."""

_SUBJECT = "receipt"
_HEADER = ("version", "receipt_id", "issued_at")
_PREDICATE_TYPE = re.compile(r"https://bentoml-secure\.dev/([a-z0-9-]{1,40})/v1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """What every attachment says, whatever its kind.

    Attributes:
        kind: A key of ``ATTACHMENTS``.
        receipt_digest: Of the receipt that it belongs to.
        receipt_id: Of the receipt that it belongs to.
        issued_at: When it was signed; the entry's clock.
        content: What its kind says beyond that.
    """

    kind: str
    receipt_digest: Digest
    receipt_id: str
    issued_at: str
    content: Mapping[str, Any]


class Judge(Protocol):
    """What the table holds for a kind: judges one attachment against its receipt."""

    def __call__(self, attachment: Attachment, judgement: Judgement) -> None:
        """Add every finding and claim to the judgement's report.

        Raises:
            MalformedInputError: The content is not of this kind's form.
        """
        ...


def load_judge(kind: str) -> Judge:
    """Return what judges attachments of a kind.

    Raises:
        UnknownKindError: No such kind.
    """
    return cast(Judge, registry.load(kind, ATTACHMENTS, GROUP))


def signer_of(attachment: Attachment) -> VerificationKey | None:
    """Return the key that must have signed an attachment; None: its receipt's entry's.

    Args:
        attachment: As read; nothing of it is verified, so its judge has to find out
            whose key that is.

    Raises:
        MalformedInputError: The content is not of its kind's form.
    """
    if attachment.kind not in SIGNED_APART:
        return None
    find = registry.load(attachment.kind, SIGNED_APART, GROUP)
    return cast(VerificationKey, find(attachment))


def predicate_type(kind: str) -> str:
    """Return the predicate type of a kind's in-toto statements."""
    return f"https://bentoml-secure.dev/{kind}/v1"


def issue_attachment(attachment: Attachment, key: SigningKey) -> Envelope:
    """Sign an attachment: with the key that signed the receipt, or its kind's own."""
    predicate = {
        **attachment.content,
        "version": 1,
        "receipt_id": attachment.receipt_id,
        "issued_at": attachment.issued_at,
    }
    return sign(
        key,
        INTOTO_TYPE,
        intoto_statement(
            [(_SUBJECT, attachment.receipt_digest)],
            predicate_type(attachment.kind),
            predicate,
        ),
    )


def verify_attachment(envelope: Envelope, key: VerificationKey) -> Attachment:
    """Verify an attachment's signature and read what all kinds have in common.

    Raises:
        VerificationError: Another key or payload type, or the signature does not fit.
        MalformedInputError: Signed, but not an attachment to one receipt.
    """
    return parse_attachment(verify(envelope, key, payload_type=INTOTO_TYPE))


def read_attachment(envelope: Envelope) -> Attachment:
    """Read what an envelope says; the signature is NOT checked here.

    Raises:
        MalformedInputError: Another payload type; not an attachment to one receipt.
    """
    if envelope.payload_type != INTOTO_TYPE:
        raise MalformedInputError(
            f"attachment payloadType: got {envelope.payload_type!r:.100}, "
            f"want {INTOTO_TYPE}"
        )
    return parse_attachment(
        parse_json(envelope.payload, what="attachment", max_bytes=MAX_ENVELOPE_BYTES)
    )


def parse_attachment(document: object) -> Attachment:
    """Parse an attachment's in-toto statement, all but its kind's content.

    Raises:
        MalformedInputError: Another predicate type or subject; a field missing.
    """
    named = document.get("predicateType") if isinstance(document, dict) else None
    match = _PREDICATE_TYPE.fullmatch(named) if isinstance(named, str) else None
    if match is None:
        raise MalformedInputError(
            f"attachment predicateType: got {named!r:.100}, want "
            f"{predicate_type('<kind>')}"
        )
    subjects, predicate = parse_intoto(
        document, predicate_type=predicate_type(match[1]), what="attachment"
    )
    if subjects.keys() != {_SUBJECT}:
        raise MalformedInputError(
            f"attachment subject: got {sorted(subjects)!r:.100}, want {_SUBJECT!r} only"
        )
    if missing := [name for name in _HEADER if name not in predicate]:
        raise MalformedInputError(f"attachment: field {missing[0]!r} is missing")
    whole(predicate["version"], what="attachment version", low=1, high=1)
    parse_time(predicate["issued_at"], what="attachment issued_at")
    parse_hex(
        predicate["receipt_id"], what="attachment receipt_id", length=REQUEST_ID_BYTES
    )
    return Attachment(
        kind=match[1],
        receipt_digest=parse_digest(
            subjects[_SUBJECT], what="attachment subject", algorithm=JSON
        ),
        receipt_id=predicate["receipt_id"],
        issued_at=predicate["issued_at"],
        content={k: v for k, v in predicate.items() if k not in _HEADER},
    )
