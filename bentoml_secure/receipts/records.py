"""The parts of a receipt: parties, segments, infers, what must follow.

Each is a noun that writes its part of the predicate and reads it back strictly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bentoml_secure.consensus.tally import Absence, Tally, parse_absences
from bentoml_secure.digest import (
    JSON,
    NONCE_BYTES,
    Digest,
    parse_digest,
    parse_hex,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.chains import ChainsRecord, statements_from_json
from bentoml_secure.receipts.commitments import (
    Revealed,
    commitments_from_json,
    commitments_to_json,
)
from bentoml_secure.receipts.strict import choice, fields, items, numbers, text
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import parse_statement_envelope, parse_time

ENTRY = "entry"
RUNNER = "runner"

MAX_REPLICAS = 64
MIN_YEAR = 2000
MAX_YEAR = 2999


def parse_moment(value: object, *, what: str) -> str:
    """Return a time's text, if it is one that arithmetic may be done on.

    Raises:
        MalformedInputError: Another spelling, or a year out of all proportion.
    """
    moment = parse_time(value, what=what)
    if not MIN_YEAR <= moment.year <= MAX_YEAR:
        raise MalformedInputError(
            f"{what}: got {value!r:.40}, want a year from {MIN_YEAR} to {MAX_YEAR}"
        )
    return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Who took part, and the evidence that the entry had of it.

    Attributes:
        name: Of the entry service or the replica.
        role: "entry" or "runner".
        key_document: Digest of its key document.
        evidence: Digest of its evidence, see ``bundle.EvidenceRecord``.
        evidence_nonce: The 32 bytes that the evidence answers, hex.
        nonce_issued_at: When that nonce was drawn; asserted by the entry.
    """

    name: str
    role: str
    key_document: Digest
    evidence: Digest
    evidence_nonce: str
    nonce_issued_at: str

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the predicate's ``parties``."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, document: object) -> Party:
        """Parse an entry of ``parties``.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        got = fields(document, cls.__slots__, what="party")
        name = text(got["name"], what="party name")
        what = f"party {name!r:.60}"
        return cls(
            name=name,
            role=choice(got["role"], (ENTRY, RUNNER), what=f"{what} role"),
            key_document=parse_digest(
                got["key_document"], what=f"{what} key_document", algorithm=JSON
            ),
            evidence=parse_digest(
                got["evidence"], what=f"{what} evidence", algorithm=JSON
            ),
            evidence_nonce=parse_hex(
                got["evidence_nonce"], what=f"{what} evidence_nonce", length=NONCE_BYTES
            ).hex(),
            nonce_issued_at=parse_moment(
                got["nonce_issued_at"], what=f"{what} nonce_issued_at"
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RefereeRecord:
    """What a segment's referee answered where no quorum agreed: it is what was served.

    Attributes:
        replica: Name of the referee.
        statement: What it signed.
        distances: Of the first of each group of the tally from its answer, by name;
            None where they cannot be compared. Asserted by the entry.
    """

    replica: str
    statement: Envelope
    distances: Mapping[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """Return a segment's ``referee``."""
        return {
            "replica": self.replica,
            "statement": self.statement.to_json(),
            "distances": dict(self.distances),
        }

    @classmethod
    def from_json(cls, document: object, *, what: str) -> RefereeRecord:
        """Parse a segment's ``referee``.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        got = fields(document, cls.__slots__, what=what)
        distances = numbers(got["distances"], what=f"{what} distances", nullable=True)
        return cls(
            replica=text(got["replica"], what=f"{what} replica"),
            statement=parse_statement_envelope(got["statement"]),
            distances=distances,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """What one segment's replicas answered within one ``infer``.

    Attributes:
        segment: The segment's identity.
        weights: Of every replica of the segment, as the draw was weighted; asserted.
        skips: Who was drawn and lost its seat to a spare, in the drawn order, and why.
        unused: Who was asked as well, and got no seat; by name.
        tally: How the votes were counted, at the moment of decision.
        statements: Each voter's signed statement, by replica.
        commitments: What voters had committed to before, by replica; none where the
            scenario does not ask for it.
        referee: What decided in place of a quorum, where none agreed.
    """

    segment: Digest
    weights: Mapping[str, float]
    skips: tuple[Absence, ...] = ()
    unused: tuple[str, ...] = ()
    tally: Tally
    statements: Mapping[str, Envelope]
    commitments: Mapping[str, Revealed] = field(default_factory=dict)
    referee: RefereeRecord | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of an infer's ``segments``."""
        return {
            "segment": self.segment,
            "weights": dict(self.weights),
            "skips": [{"replica": s.replica, "reason": s.reason} for s in self.skips],
            "unused": list(self.unused),
            "tally": self.tally.to_json(),
            "statements": {n: e.to_json() for n, e in self.statements.items()},
            "commitments": commitments_to_json(self.commitments),
            "referee": None if self.referee is None else self.referee.to_json(),
        }

    @classmethod
    def from_json(cls, document: object, *, what: str) -> SegmentRecord:
        """Parse an entry of ``segments``.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        got = fields(document, cls.__slots__, what=what)
        return cls(
            segment=parse_digest(
                got["segment"], what=f"{what} segment", algorithm=JSON
            ),
            weights=numbers(got["weights"], what=f"{what} weights"),
            skips=parse_absences(got["skips"], f"{what} skips"),
            unused=_names(got["unused"], f"{what} unused"),
            tally=Tally.from_json(got["tally"], what=f"{what} tally"),
            statements=statements_from_json(
                got["statements"], what=f"{what} statements"
            ),
            commitments=commitments_from_json(
                got["commitments"], what=f"{what} commitments"
            ),
            referee=None
            if got["referee"] is None
            else RefereeRecord.from_json(got["referee"], what=f"{what} referee"),
        )


def _names(value: object, what: str) -> tuple[str, ...]:
    names = items(value, what=what, most=MAX_REPLICAS)
    return tuple(text(name, what=what) for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRecord:
    """One run of the whole chain.

    Attributes:
        index: Which ``infer`` of the request, from 0.
        inputs: Commitment of each of the plan's inputs, by name.
        outputs: Commitment of each of the plan's outputs, by name.
        segments: In the plan's order; none where chains were compared at their ends.
        chains: Those, in mode "end-to-end".
    """

    index: int
    inputs: Mapping[str, Digest]
    outputs: Mapping[str, Digest]
    segments: tuple[SegmentRecord, ...] = ()
    chains: ChainsRecord | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of ``infers``; the tensors stand among the subjects."""
        return {
            "index": self.index,
            "segments": [segment.to_json() for segment in self.segments],
            "chains": None if self.chains is None else self.chains.to_json(),
        }

    def subjects(self) -> list[tuple[str, Digest]]:
        """Return the subjects of this infer, in the order of the receipt."""
        return [
            (f"infer/{self.index}/{side}/{name}", tensors[name])
            for side, tensors in (("input", self.inputs), ("output", self.outputs))
            for name in sorted(tensors)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredAttachment:
    """What must be attached to the receipt, and until when (the verifier's clock)."""

    kind: str
    deadline: str

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the predicate's ``attachments``."""
        return {"kind": self.kind, "deadline": self.deadline}

    @classmethod
    def from_json(cls, document: object) -> RequiredAttachment:
        """Parse an entry of ``attachments``.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        got = fields(document, cls.__slots__, what="required attachment")
        return cls(
            kind=text(got["kind"], what="required attachment kind"),
            deadline=parse_moment(got["deadline"], what="required attachment deadline"),
        )
