"""What is signed: a runner's statement per exchange, and in-toto statements.

A runner signs, for each exchange, which tensors (by commitment) it made from which,
for which request, with which segment and key document. The entry signs receipts and
attachments, which are in-toto Statements v1.

Source: in-toto Attestation Framework, Statement v1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bentoml_secure.digest import (
    JSON,
    NONCE_BYTES,
    REQUEST_ID_BYTES,
    TENSORS,
    Digest,
    parse_digest,
    parse_hex,
)
from bentoml_secure.errors import MalformedInputError, StatementError
from bentoml_secure.signing import (
    Envelope,
    SigningKey,
    VerificationKey,
    parse_envelope,
    sign,
    verify,
)
from bentoml_secure.tensors import MAX_TENSORS

STATEMENT_TYPE = "application/vnd.bentoml-secure.statement.v1+json"
INTOTO_TYPE = "application/vnd.in-toto+json"
INTOTO_STATEMENT = "https://in-toto.io/Statement/v1"
EXCHANGE_ID_BYTES = 16
MAX_STATEMENT_BYTES = 512 * 1024

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")


def utc_now() -> datetime:
    """Return the time of the machine's clock, in UTC."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """Return RFC 3339 in UTC with milliseconds: always 24 characters."""
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat(timespec="milliseconds") + "Z"


def parse_time(text: object, *, what: str) -> datetime:
    """Parse what ``format_time`` writes.

    Raises:
        MalformedInputError: Any other spelling.
    """
    if not isinstance(text, str) or not _TIME.match(text):
        raise MalformedInputError(f"{what}: got {text!r:.60}, want RFC 3339 UTC")
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise MalformedInputError(f"{what}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a runner says of one exchange.

    Attributes:
        request_id: 16 bytes, hex.
        nonce: The caller's 32 bytes, hex.
        plan_digest: Of the plan the runner serves.
        infer_index: Which ``infer`` of the request, from 0.
        exchange_id: 16 bytes, hex; new for every attempt.
        segment: Identity of the segment that ran.
        key_document: Digest of the runner's key document.
        inputs: Commitment of each tensor it was given, by name.
        outputs: Commitment of each tensor it made, by name.
        started_at: RFC 3339, the runner's clock.
        ended_at: RFC 3339, the runner's clock.
    """

    request_id: str
    nonce: str
    plan_digest: Digest
    infer_index: int
    exchange_id: str
    segment: Digest
    key_document: Digest
    inputs: Mapping[str, Digest]
    outputs: Mapping[str, Digest]
    started_at: str
    ended_at: str

    def to_json(self) -> dict[str, Any]:
        """Return the document that is signed."""
        return {
            "version": 1,
            "request_id": self.request_id,
            "nonce": self.nonce,
            "plan_digest": self.plan_digest,
            "infer_index": self.infer_index,
            "exchange_id": self.exchange_id,
            "segment": self.segment,
            "key_document": self.key_document,
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "started_at": self.started_at,
            "ended_at": self.ended_at,
        }

    @classmethod
    def from_json(cls, document: object) -> Statement:
        """Parse a signed document; anything unexpected is refused.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        wanted = {"version", *cls.__slots__}
        if not isinstance(document, dict) or document.keys() != wanted:
            raise MalformedInputError(f"statement: want exactly {sorted(wanted)}")
        if document["version"] != 1 or isinstance(document["version"], bool):
            raise MalformedInputError("statement version: want 1")
        index = document["infer_index"]
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise MalformedInputError("statement infer_index: want an integer from 0")
        for name in ("started_at", "ended_at"):
            parse_time(document[name], what=f"statement {name}")
        for name, length in (
            ("request_id", REQUEST_ID_BYTES),
            ("nonce", NONCE_BYTES),
            ("exchange_id", EXCHANGE_ID_BYTES),
        ):
            parse_hex(document[name], what=f"statement {name}", length=length)
        for name in ("plan_digest", "segment", "key_document"):
            parse_digest(document[name], what=f"statement {name}", algorithm=JSON)
        return cls(
            **{k: v for k, v in document.items() if k not in {"version", *_TENSORS}},
            inputs=parse_commitments(document["inputs"], what="statement inputs"),
            outputs=parse_commitments(document["outputs"], what="statement outputs"),
        )


_TENSORS = frozenset({"inputs", "outputs"})


def parse_commitments(document: object, *, what: str) -> dict[str, Digest]:
    """Parse an object of tensor names and commitments, sorted by name.

    Raises:
        MalformedInputError: Too many, or a value that is no tensor commitment.
    """
    if not isinstance(document, dict) or len(document) > MAX_TENSORS:
        raise MalformedInputError(
            f"{what}: want an object of at most {MAX_TENSORS} tensors"
        )
    return {
        name: parse_digest(
            document[name], what=f"{what} {name!r:.60}", algorithm=TENSORS
        )
        for name in sorted(document)
    }


def sign_statement(key: SigningKey, statement: Statement) -> Envelope:
    """Sign a statement as the runner whose key document it names."""
    return sign(key, STATEMENT_TYPE, statement.to_json())


def verify_statement(envelope: Envelope, key: VerificationKey) -> Statement:
    """Verify a runner's envelope and return what it says.

    Raises:
        VerificationError: Another key or type, or the signature does not fit.
        MalformedInputError: Signed, but not a statement.
    """
    return Statement.from_json(verify(envelope, key, payload_type=STATEMENT_TYPE))


def parse_statement_envelope(document: object) -> Envelope:
    """Parse the JSON form of a statement's envelope, within its size limit.

    Raises:
        MalformedInputError: Not an envelope, or too large.
    """
    return parse_envelope(document, what="statement", max_bytes=MAX_STATEMENT_BYTES)


def require_statement(statement: Statement, expected: Mapping[str, Any]) -> None:
    """Refuse a statement that says anything but what was asked.

    Args:
        statement: Verified, so the runner's own words.
        expected: Field name to the value wanted.

    Raises:
        StatementError: The first field that differs, with got and want.
    """
    for name, want in expected.items():
        got = getattr(statement, name)
        if got != want:
            raise StatementError(
                f"statement {name}: got {got!r:.200}, want {want!r:.200}"
            )


def intoto_statement(
    subjects: Sequence[tuple[str, Digest]], predicate_type: str, predicate: Any
) -> dict[str, Any]:
    """Return an in-toto Statement v1 over named digests."""
    return {
        "_type": INTOTO_STATEMENT,
        "subject": [
            {"name": name, "digest": dict([digest.split(":", 1)])}
            for name, digest in subjects
        ],
        "predicateType": predicate_type,
        "predicate": predicate,
    }


def parse_intoto(
    document: object, *, predicate_type: str, what: str
) -> tuple[dict[str, Digest], dict[str, Any]]:
    """Return the subjects by name and the predicate of an in-toto Statement v1.

    Raises:
        MalformedInputError: Another type, an extra field, a subject named twice or
            with more than one digest.
    """
    fields = {"_type", "subject", "predicateType", "predicate"}
    if not isinstance(document, dict) or document.keys() != fields:
        raise MalformedInputError(f"{what}: want exactly {sorted(fields)}")
    for name, want in (
        ("_type", INTOTO_STATEMENT),
        ("predicateType", predicate_type),
    ):
        if document[name] != want:
            raise MalformedInputError(
                f"{what} {name}: got {document[name]!r:.100}, want {want}"
            )
    if not isinstance(document["subject"], list):
        raise MalformedInputError(f"{what} subject: want a list")
    subjects: dict[str, Digest] = {}
    for subject in document["subject"]:
        if not isinstance(subject, dict) or subject.keys() != {"name", "digest"}:
            raise MalformedInputError(f"{what} subject: want name and digest")
        name, digest = subject["name"], subject["digest"]
        if not isinstance(name, str) or name in subjects:
            raise MalformedInputError(f"{what} subject {name!r:.60}: stands twice")
        if not isinstance(digest, dict) or len(digest) != 1:
            raise MalformedInputError(f"{what} subject {name!r:.60}: want one digest")
        ((algorithm, value),) = digest.items()
        if not isinstance(value, str):
            raise MalformedInputError(f"{what} subject {name!r:.60}: want hex")
        subjects[name] = parse_digest(
            f"{algorithm}:{value}", what=f"{what} subject {name!r:.60}"
        )
    if not isinstance(document["predicate"], dict):
        raise MalformedInputError(f"{what} predicate: want an object")
    return subjects, document["predicate"]
