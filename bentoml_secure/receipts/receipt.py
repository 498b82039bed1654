"""The receipt: what the entry signs of one HTTP request.

An in-toto Statement v1 in a DSSE envelope. Its subjects are commitments: to the
request and the response body, and for each ``infer`` to the tensors that went into
the chain and came out of it. Its predicate says under which scenario, plan and
configuration, which parties took part (by key document and evidence), and for each
segment what every replica signed and how its votes were counted.

A receipt holds no salt: who has it learns nothing of the tensors. It never changes;
what comes later is an attachment. ``docs/receipt-format.md`` describes it for who
writes a verifier of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.audit.challenge import Epoch
from bentoml_secure.digest import (
    BODIES,
    JSON,
    NONCE_BYTES,
    REQUEST_ID_BYTES,
    TENSORS,
    Digest,
    canonical_json,
    parse_digest,
    parse_hex,
    parse_json,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.chains import ChainsRecord
from bentoml_secure.receipts.draw import Draw, derive_request_id
from bentoml_secure.receipts.epoch_root import epoch_from_json, epoch_to_json
from bentoml_secure.receipts.records import (
    ENTRY,
    RUNNER,
    InferRecord,
    Party,
    RequiredAttachment,
    SegmentRecord,
    parse_moment,
)
from bentoml_secure.receipts.strict import choice, fields, items, text, whole
from bentoml_secure.signing import MAX_ENVELOPE_BYTES, Envelope, SigningKey, sign
from bentoml_secure.statements import (
    INTOTO_TYPE,
    intoto_statement,
    parse_intoto,
)
from bentoml_secure.tensors import MAX_TENSORS

__all__ = [
    "CALLER",
    "Draw",
    "ENTRY",
    "InferRecord",
    "Party",
    "RUNNER",
    "Receipt",
    "RequiredAttachment",
    "SEALED",
    "SegmentRecord",
    "UNSEALED",
    "derive_request_id",
    "issue",
    "parse_receipt",
]

PREDICATE_TYPE = "https://bentoml-secure.dev/receipt/v1"
SEALED = "sealed"
UNSEALED = "unsealed"
CALLER = "caller"

MAX_PARTIES = 4096
MAX_INFERS = 1024
MAX_SEGMENTS = 256
MAX_ATTACHMENTS = 64

_EPOCH = "epoch"
_PREDICATE = (
    "version",
    "receipt_id",
    "service",
    "api",
    "status",
    "scenario",
    "plan_digest",
    "config_digest",
    "client_nonce",
    "nonce_drawn_by",
    "salt_drawn_by",
    "first_hop",
    "draw",
    "parties",
    "infers",
    "attachments",
    "started_at",
    "issued_at",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the entry signs of one HTTP request.

    Attributes:
        receipt_id: The request id, 16 bytes, hex.
        service: Name of the entry service.
        api: Path of the HTTP request.
        status: Status of the HTTP response.
        scenario_name: As the caller asked for it.
        scenario_digest: Of the scenario's document.
        plan_digest: Of the plan that was run.
        config_digest: Of the deployment's configuration.
        client_nonce: 32 bytes, hex.
        nonce_drawn_by: "caller" or "entry".
        salt_drawn_by: "caller" or "entry": who drew the root salt.
        first_hop: "sealed": request and answer travelled in the caller's session;
            "unsealed": over plain HTTP, or TLS that ends anywhere.
        draw: What the request id follows from, beside the nonce.
        parties: The entry and every runner that answered or was still pending.
        request: Commitment of the request body.
        response: Commitment of the response body.
        infers: At least one, in order.
        attachments: What must follow.
        started_at: When the request came; the entry's clock.
        issued_at: When the receipt was signed; the entry's clock.
        epoch: That the receipt is gathered into, where the scenario challenges; the
            document has no such field otherwise.
    """

    receipt_id: str
    service: str
    api: str
    status: int
    scenario_name: str
    scenario_digest: Digest
    plan_digest: Digest
    config_digest: Digest
    client_nonce: str
    nonce_drawn_by: str
    salt_drawn_by: str
    first_hop: str
    draw: Draw
    parties: tuple[Party, ...]
    request: Digest
    response: Digest
    infers: tuple[InferRecord, ...]
    attachments: tuple[RequiredAttachment, ...]
    started_at: str
    issued_at: str
    epoch: Epoch | None = None

    def to_statement(self) -> dict[str, Any]:
        """Return the in-toto Statement that is signed."""
        subjects = [("request", self.request), ("response", self.response)]
        for infer in self.infers:
            subjects += infer.subjects()
        parties = sorted(self.parties, key=lambda party: party.name)
        predicate = {
            "version": 1,
            "receipt_id": self.receipt_id,
            "service": self.service,
            "api": self.api,
            "status": self.status,
            "scenario": {"name": self.scenario_name, "digest": self.scenario_digest},
            "plan_digest": self.plan_digest,
            "config_digest": self.config_digest,
            "client_nonce": self.client_nonce,
            "nonce_drawn_by": self.nonce_drawn_by,
            "salt_drawn_by": self.salt_drawn_by,
            "first_hop": self.first_hop,
            "draw": self.draw.to_json(),
            "parties": [party.to_json() for party in parties],
            "infers": [infer.to_json() for infer in self.infers],
            "attachments": [required.to_json() for required in self.attachments],
            "started_at": self.started_at,
            "issued_at": self.issued_at,
        }
        if self.epoch is not None:
            predicate[_EPOCH] = epoch_to_json(self.epoch)
        return intoto_statement(subjects, PREDICATE_TYPE, predicate)

    @classmethod
    def from_statement(cls, document: object) -> Receipt:
        """Parse a receipt's in-toto Statement; anything unexpected is refused.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form; a
                subject that belongs to no infer; a list in another order.
        """
        subjects, predicate = parse_intoto(
            document, predicate_type=PREDICATE_TYPE, what="receipt"
        )
        epoch = {_EPOCH} & predicate.keys()
        got = fields(predicate, {*_PREDICATE, *epoch}, what="receipt")
        whole(got["version"], what="receipt version", low=1, high=1)
        scenario = fields(got["scenario"], ("name", "digest"), what="receipt scenario")
        receipt = cls(
            receipt_id=_hex(got["receipt_id"], "receipt_id", REQUEST_ID_BYTES),
            service=text(got["service"], what="service"),
            api=text(got["api"], what="api"),
            status=whole(got["status"], what="status", low=100, high=599),
            scenario_name=text(scenario["name"], what="scenario name"),
            scenario_digest=_json_digest(scenario["digest"], "scenario digest"),
            plan_digest=_json_digest(got["plan_digest"], "plan_digest"),
            config_digest=_json_digest(got["config_digest"], "config_digest"),
            client_nonce=_hex(got["client_nonce"], "client_nonce", NONCE_BYTES),
            nonce_drawn_by=_drawn_by(got["nonce_drawn_by"], "nonce_drawn_by"),
            salt_drawn_by=_drawn_by(got["salt_drawn_by"], "salt_drawn_by"),
            first_hop=choice(got["first_hop"], (SEALED, UNSEALED), what="first_hop"),
            draw=Draw.from_json(got["draw"]),
            parties=_parties(got["parties"]),
            request=_body(subjects, "request"),
            response=_body(subjects, "response"),
            infers=_infers(got["infers"], subjects),
            attachments=_attachments(got["attachments"]),
            started_at=parse_moment(got["started_at"], what="started_at"),
            issued_at=parse_moment(got["issued_at"], what="issued_at"),
            epoch=epoch_from_json(got[_EPOCH], what=_EPOCH) if epoch else None,
        )
        if receipt.to_statement() != document:
            raise MalformedInputError(
                "receipt: subjects or parties are not exactly those of its infers, "
                "each once and in order"
            )
        return receipt


def _hex(value: object, what: str, length: int) -> str:
    return parse_hex(value, what=what, length=length).hex()


def _json_digest(value: object, what: str) -> Digest:
    return parse_digest(value, what=what, algorithm=JSON)


def _drawn_by(value: object, what: str) -> str:
    return choice(value, (CALLER, ENTRY), what=what)


def _body(subjects: Mapping[str, Digest], name: str) -> Digest:
    return parse_digest(subjects.get(name), what=f"subject {name!r}", algorithm=BODIES)


def _parties(value: object) -> tuple[Party, ...]:
    parties = tuple(
        Party.from_json(party)
        for party in items(value, what="parties", most=MAX_PARTIES)
    )
    if len({party.name for party in parties}) != len(parties):
        raise MalformedInputError("parties: a name stands twice")
    return parties


def _attachments(value: object) -> tuple[RequiredAttachment, ...]:
    required = tuple(
        RequiredAttachment.from_json(entry)
        for entry in items(value, what="attachments", most=MAX_ATTACHMENTS)
    )
    if len({entry.kind for entry in required}) != len(required):
        raise MalformedInputError("attachments: a kind stands twice")
    return required


def _infers(value: object, subjects: Mapping[str, Digest]) -> tuple[InferRecord, ...]:
    infers = []
    for position, entry in enumerate(items(value, what="infers", most=MAX_INFERS)):
        what = f"infer {position}"
        got = fields(entry, ("index", "segments", "chains"), what=what)
        index = whole(got["index"], what=f"{what} index", low=position, high=position)
        segments = items(got["segments"], what=f"{what} segments", most=MAX_SEGMENTS)
        infers.append(
            InferRecord(
                index=index,
                inputs=_tensors(subjects, f"infer/{index}/input/"),
                outputs=_tensors(subjects, f"infer/{index}/output/"),
                segments=tuple(
                    SegmentRecord.from_json(segment, what=f"{what} segment {number}")
                    for number, segment in enumerate(segments)
                ),
                chains=None
                if got["chains"] is None
                else ChainsRecord.from_json(got["chains"], what=f"{what} chains"),
            )
        )
    if not infers:
        raise MalformedInputError("infers: got none, want at least 1")
    return tuple(infers)


def _tensors(subjects: Mapping[str, Digest], prefix: str) -> dict[str, Digest]:
    tensors = {
        name.removeprefix(prefix): parse_digest(
            digest, what=f"subject {name!r:.80}", algorithm=TENSORS
        )
        for name, digest in subjects.items()
        if name.startswith(prefix)
    }
    if len(tensors) > MAX_TENSORS:
        raise MalformedInputError(f"{prefix}: want at most {MAX_TENSORS} tensors")
    return tensors


def issue(receipt: Receipt, key: SigningKey) -> Envelope:
    """Sign a receipt with the entry's key; ``payload_digest`` names it from then on."""
    return sign(key, INTOTO_TYPE, receipt.to_statement())


def parse_receipt(envelope: Envelope) -> Receipt:
    """Read what an envelope says; the signature is NOT checked here.

    Raises:
        MalformedInputError: Another payload type, not canonical JSON, not a receipt.
    """
    if envelope.payload_type != INTOTO_TYPE:
        raise MalformedInputError(
            f"receipt payloadType: got {envelope.payload_type!r:.100}, "
            f"want {INTOTO_TYPE}"
        )
    document = parse_json(
        envelope.payload, what="receipt", max_bytes=MAX_ENVELOPE_BYTES
    )
    if canonical_json(document) != envelope.payload:
        raise MalformedInputError("receipt: payload is not canonical JSON")
    return Receipt.from_statement(document)
