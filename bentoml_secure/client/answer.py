"""What was asked, what came back, and judging that the second answers the first."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bentoml_secure.attestation.appraisal import CLOCK_SKEW_SECONDS
from bentoml_secure.client.entry import AttestedEntry
from bentoml_secure.client.exchange import Reply
from bentoml_secure.digest import (
    JSON,
    REQUEST_ID_BYTES,
    Digest,
    parse_digest,
    parse_hex,
)
from bentoml_secure.errors import (
    Finding,
    MalformedInputError,
    ReceiptError,
    UnavailableError,
)
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.opening import Opening
from bentoml_secure.receipts.receipt import CALLER, SEALED, Receipt, parse_receipt
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.receipts.verify import State, Verdict, verify_bundle
from bentoml_secure.statements import parse_time

RECEIPT_ID = "bsec-receipt-id"
RECEIPT_DIGEST = "bsec-receipt-digest"
SCENARIO = "bsec-scenario"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call, as the caller made it.

    Attributes:
        path: Of the API.
        body: Exact bytes of the request.
        scenario: Asked for by name, or None for the service's minimum.
        nonce: 32 bytes.
        root_salt: 32 secret bytes: who has them can open the receipt's commitments.
        entry: Whom it was sent to.
        committed: The commitment to the entry's draw that was named for it; None: the
            entry had given none that was left.
        asked_at: The caller's clock, before it was sent.
    """

    path: str
    body: bytes = field(repr=False)
    scenario: str | None
    nonce: bytes
    root_salt: bytes = field(repr=False)
    entry: AttestedEntry
    committed: Digest | None
    asked_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What the reply's headers say of its receipt.

    Attributes:
        receipt_id: 16 bytes, hex.
        receipt_digest: Of the receipt.
        scenario: Digest of the scenario.
    """

    receipt_id: str
    receipt_digest: Digest
    scenario: Digest

    @classmethod
    def of(cls, reply: Reply) -> Announced:
        """Read the headers.

        Raises:
            ReceiptError: One is missing or malformed: an answer without a receipt.
        """
        try:
            return cls(
                receipt_id=parse_hex(
                    reply.header(RECEIPT_ID), what=RECEIPT_ID, length=REQUEST_ID_BYTES
                ).hex(),
                receipt_digest=_digest(reply, RECEIPT_DIGEST),
                scenario=_digest(reply, SCENARIO),
            )
        except MalformedInputError as error:
            raise ReceiptError(
                "an answer came without a receipt",
                [Finding("headers", str(error), "those of a receipt")],
            ) from error


def _digest(reply: Reply, name: str) -> Digest:
    return parse_digest(reply.header(name), what=name, algorithm=JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer whose receipt holds. A rejection is a ``ReceiptError`` instead.

    Attributes:
        value: The response: parsed JSON, or its bytes.
        verdict: On the receipt; provisional while something required may still come.
        bundle: The receipt with all that it takes to judge it again, offline.
        question: What was asked.
        announced: What the reply's headers said of the receipt.
        status: HTTP status.
        body: Exact bytes of the response.
        answered_at: The caller's clock, when the response had come.
    """

    value: Any
    verdict: Verdict
    bundle: Bundle = field(repr=False)
    question: Question
    announced: Announced
    status: int
    body: bytes = field(repr=False)
    answered_at: datetime

    @property
    def receipt_id(self) -> str:
        """Name of the receipt: 16 bytes, hex."""
        return self.verdict.receipt_id

    @property
    def nonce(self) -> bytes:
        """The 32 bytes that the caller drew for this call."""
        return self.question.nonce

    @property
    def root_salt(self) -> bytes:
        """The 32 secret bytes that open the receipt's commitments."""
        return self.question.root_salt

    @property
    def is_provisional(self) -> bool:
        """Whether something that the receipt requires is still to come."""
        return self.verdict.state is State.PROVISIONAL


def judge(
    bundle: Bundle,
    question: Question,
    announced: Announced,
    *,
    trust: Trust,
    status: int,
    body: bytes,
    answered_at: datetime,
    now: datetime,
) -> Verdict:
    """Judge a bundle, and that it answers this very question.

    Evidence is judged for the time of issue, which must lie within the call.

    Args:
        bundle: As fetched.
        question: As asked.
        announced: As the reply's headers say.
        trust: The caller's.
        status: Of the reply.
        body: Of the reply.
        answered_at: The caller's clock, when the reply had come.
        now: The caller's clock; judges deadlines of attachments.

    Raises:
        ReceiptError: Rejected; ``findings`` lists every failing point.
        UnavailableError: The bundle lacks an endorsement, and nothing else failed.
    """
    findings: list[Finding] = []
    try:
        receipt = parse_receipt(bundle.receipt)
    except MalformedInputError as error:
        raise ReceiptError(
            f"{question.path}: receipt cannot be read",
            [Finding("receipt", str(error), "the form of receipt/v1")],
        ) from error
    for name, got, want in (
        *_announced(bundle, receipt, announced),
        *_asked(receipt, question, status),
    ):
        if got != want:
            findings.append(Finding(name, str(got), str(want)))
    findings += _times(receipt, question.asked_at, answered_at)
    opening = Opening(salt=question.root_salt, request=question.body, response=body)
    try:
        verdict = verify_bundle(
            bundle, trust, now=now, opening=opening, committed=question.committed
        )
    except ReceiptError as error:
        findings += error.findings
        raise _rejection(receipt, question, findings) from error
    except UnavailableError as error:
        if findings:
            raise _rejection(receipt, question, findings) from error
        raise
    if findings:
        raise _rejection(receipt, question, findings)
    return verdict


_Comparison = tuple[str, object, object]


def _announced(
    bundle: Bundle, receipt: Receipt, announced: Announced
) -> tuple[_Comparison, ...]:
    return (
        (RECEIPT_ID, receipt.receipt_id, announced.receipt_id),
        (RECEIPT_DIGEST, bundle.receipt.payload_digest, announced.receipt_digest),
        (SCENARIO, receipt.scenario_digest, announced.scenario),
    )


def _asked(receipt: Receipt, question: Question, status: int) -> list[_Comparison]:
    entry = question.entry
    parties = {party.name: party for party in receipt.parties}
    own = parties.get(entry.document.service)
    # The digest of the scenario of that name is compared with the trust file's.
    scenario = question.scenario or receipt.scenario_name
    return [
        ("client_nonce", receipt.client_nonce, question.nonce.hex()),
        ("nonce_drawn_by", receipt.nonce_drawn_by, CALLER),
        ("salt_drawn_by", receipt.salt_drawn_by, CALLER),
        ("first_hop", receipt.first_hop, SEALED),
        ("draw asserted", receipt.draw.asserted, question.committed is None),
        ("scenario name", receipt.scenario_name, scenario),
        ("service", receipt.service, entry.document.service),
        ("api", receipt.api, question.path),
        ("status", receipt.status, status),
        (
            "entry evidence_nonce",
            own.evidence_nonce if own else "no such party",
            entry.nonce.hex(),
        ),
        (
            "entry key_document",
            own.key_document if own else "no such party",
            entry.document.digest,
        ),
    ]


def _times(
    receipt: Receipt, asked_at: datetime, answered_at: datetime
) -> list[Finding]:
    skew = timedelta(seconds=CLOCK_SKEW_SECONDS)
    issued_at = parse_time(receipt.issued_at, what="issued_at")
    if asked_at - skew <= issued_at <= answered_at + skew:
        return []
    want = f"{asked_at.isoformat()} to {answered_at.isoformat()}, the time of the call"
    return [Finding("issued_at", receipt.issued_at, want)]


def _rejection(
    receipt: Receipt, question: Question, findings: list[Finding]
) -> ReceiptError:
    return ReceiptError(
        f"{question.path}: receipt {receipt.receipt_id} rejected", findings
    )
