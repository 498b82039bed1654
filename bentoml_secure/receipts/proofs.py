"""The attachment "proof": one segment of one ``infer``, proven in zero knowledge.

There is one for every segment of every ``infer``. It is not the entry that signs it
but the segment's *prover*, a process of its own, that the receipt does not know yet:
the attachment brings its key document and evidence along, over a nonce that follows
from the receipt, the ``infer`` and the segment (``evidence_nonce``), so that neither
the prover nor the entry chooses it.

The proof's facts are three hashes; what ties them to the receipt is said here: the
prover of the first segment signs which commitments the tensors have whose activations
it hashed, the prover of the last one those of the answer that was served, and how far
the proven answer is from it.

``proving`` judges this, ``proof_opening`` what the caller can open of it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.attestation.key_document import KeyDocument
from bentoml_secure.digest import JSON, NONCE_BYTES, Digest, parse_digest, parse_hex
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.proofs.orders import About
from bentoml_secure.proofs.proof import SegmentProof
from bentoml_secure.receipts.attachments import Attachment, issue_attachment
from bentoml_secure.receipts.receipt import MAX_INFERS, MAX_SEGMENTS
from bentoml_secure.receipts.records import parse_moment
from bentoml_secure.receipts.strict import fields, numbers, whole
from bentoml_secure.scenario import Proving, Scenario
from bentoml_secure.signing import (
    Envelope,
    SigningKey,
    VerificationKey,
    decode_base64,
)
from bentoml_secure.statements import parse_commitments
from bentoml_secure.tensors import MAX_TENSORS

PROOF = "proof"
MAX_OPENING_BYTES = 8 << 20
_EVIDENCE_LABEL = b"bentoml-secure/proof-evidence/v1"


def evidence_nonce(receipt_digest: Digest, infer: int, segment: int) -> bytes:
    """Return the 32 bytes that the evidence of one proof's prover answers.

    SHA-256("bentoml-secure/proof-evidence/v1" || receipt digest || u32 big-endian
    infer || u32 big-endian segment).

    Args:
        receipt_digest: Of the receipt that the proof is for, as it is written.
        infer: Index of the ``infer``.
        segment: Index of the segment in the plan.
    """
    place = infer.to_bytes(4, "big") + segment.to_bytes(4, "big")
    return hashlib.sha256(_EVIDENCE_LABEL + receipt_digest.encode() + place).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofRecord:
    """What the prover of a segment signs of one ``infer``.

    Attributes:
        receipt_id: Of the receipt.
        receipt_digest: Of the receipt.
        issued_at: When this is signed; the prover's clock.
        infer: Index of the ``infer``.
        segment: Index of the segment in the plan.
        nonce: Of the client, 32 bytes, hex.
        manifest: Digest of the manifest of the proof set-up.
        proof: Of the segment.
        key_document: Of the prover.
        evidence: Of the prover, over ``evidence_nonce``.
        inputs: Commitments of the tensors that went into the first segment, by name;
            None for the others.
        outputs: Commitments of the agreed answer's tensors, by name, for the last
            segment; None for the others.
        deviation: Largest difference of the proven from the agreed answer, by output;
            None where ``outputs`` is.
        proven: Commitments of the proven answer's tensors, by name, where the scenario
            serves that one; None elsewhere.
        opening: Sealed for who has the request's root salt; see ``proof_opening``.
    """

    receipt_id: str
    receipt_digest: Digest
    issued_at: str
    infer: int
    segment: int
    nonce: str
    manifest: Digest
    proof: SegmentProof
    key_document: KeyDocument
    evidence: EvidenceRecord
    inputs: Mapping[str, Digest] | None = None
    outputs: Mapping[str, Digest] | None = None
    deviation: Mapping[str, float] | None = None
    proven: Mapping[str, Digest] | None = None
    opening: bytes | None = None

    @property
    def about(self) -> About:
        """Which proof: what its opening is bound to."""
        return About(
            receipt_id=self.receipt_id,
            receipt_digest=self.receipt_digest,
            infer=self.infer,
            segment=self.segment,
        )

    @property
    def place(self) -> tuple[int, int]:
        """Indexes of infer and segment."""
        return self.infer, self.segment

    def to_json(self) -> dict[str, Any]:
        """Return what the predicate says beyond what every attachment does."""
        opening = self.opening
        return {
            "infer": self.infer,
            "segment": self.segment,
            "nonce": self.nonce,
            "manifest": self.manifest,
            "proof": self.proof.to_json(),
            "prover": {
                "key_document": self.key_document.to_json(),
                "evidence": self.evidence.to_json(),
            },
            "inputs": _or_none(self.inputs),
            "outputs": _or_none(self.outputs),
            "deviation": _or_none(self.deviation),
            "proven": _or_none(self.proven),
            "opening": None if opening is None else base64.b64encode(opening).decode(),
        }

    @classmethod
    def from_attachment(cls, attachment: Attachment) -> ProofRecord:
        """Parse what this kind of attachment says.

        Raises:
            MalformedInputError: A field is missing, unknown, too long or of another
                form; a deviation below zero, or one without outputs.
        """
        got = fields(attachment.content, _CONTENT, what=PROOF)
        prover = fields(
            got["prover"], ("key_document", "evidence"), what=f"{PROOF} prover"
        )
        return cls(
            receipt_id=attachment.receipt_id,
            receipt_digest=attachment.receipt_digest,
            issued_at=parse_moment(attachment.issued_at, what=f"{PROOF} issued_at"),
            infer=whole(
                got["infer"], what=f"{PROOF} infer", low=0, high=MAX_INFERS - 1
            ),
            segment=whole(
                got["segment"], what=f"{PROOF} segment", low=0, high=MAX_SEGMENTS - 1
            ),
            nonce=parse_hex(
                got["nonce"], what=f"{PROOF} nonce", length=NONCE_BYTES
            ).hex(),
            manifest=parse_digest(
                got["manifest"], what=f"{PROOF} manifest", algorithm=JSON
            ),
            proof=SegmentProof.from_json(got["proof"], what=PROOF),
            key_document=KeyDocument.from_json(prover["key_document"]),
            evidence=EvidenceRecord.from_json(prover["evidence"]),
            inputs=_commitments(got["inputs"], f"{PROOF} inputs"),
            outputs=_commitments(got["outputs"], f"{PROOF} outputs"),
            deviation=_deviation(got["deviation"], got["outputs"]),
            proven=_commitments(got["proven"], f"{PROOF} proven"),
            opening=None
            if got["opening"] is None
            else decode_base64(
                got["opening"], what=f"{PROOF} opening", max_bytes=MAX_OPENING_BYTES
            ),
        )


_CONTENT = (
    "infer",
    "segment",
    "nonce",
    "manifest",
    "proof",
    "prover",
    "inputs",
    "outputs",
    "deviation",
    "proven",
    "opening",
)


def _or_none(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if values is None else dict(values)


def _commitments(value: object, what: str) -> dict[str, Digest] | None:
    return None if value is None else parse_commitments(value, what=what)


def _deviation(value: object, outputs: object) -> dict[str, float] | None:
    what = f"{PROOF} deviation"
    got = None if value is None else numbers(value, what=what, most=MAX_TENSORS)
    of = outputs.keys() if isinstance(outputs, dict) else None
    if (None if got is None else got.keys()) != of:
        raise MalformedInputError(f"{what}: want one number for each of the outputs")
    if got is not None and any(apart < 0 for apart in got.values()):
        raise MalformedInputError(f"{what}: got one below zero")
    return got


def issue_proof(record: ProofRecord, key: SigningKey) -> Envelope:
    """Sign a proof and what it belongs to, with the key of its key document.

    Raises:
        MalformedInputError: An opening that no verifier would read, or a deviation
            that is no number.
    """
    if record.opening is not None and len(record.opening) > MAX_OPENING_BYTES:
        raise MalformedInputError(
            f"{PROOF} opening: got {len(record.opening)} bytes, want at most "
            f"{MAX_OPENING_BYTES}"
        )
    return issue_attachment(
        Attachment(
            kind=PROOF,
            receipt_digest=record.receipt_digest,
            receipt_id=record.receipt_id,
            issued_at=record.issued_at,
            content=record.to_json(),
        ),
        key,
    )


def proofs_due(scenario: Scenario) -> bool:
    """Tell whether a receipt has to say that proofs must follow.

    Where requests are challenged, it is the challenge that says so.

    Args:
        scenario: The receipt's.
    """
    return scenario.proof is Proving.EVERY


def longest_proof(scenario: Scenario) -> timedelta:
    """Return how long after its issue a receipt may wait for its proofs."""
    return timedelta(seconds=scenario.proof_deadline_seconds)


def prover_key(attachment: Attachment) -> VerificationKey:
    """Return the key that an attachment of this kind says has signed it.

    Whose key that is follows from the evidence that comes with it.

    Raises:
        MalformedInputError: Not of this kind's form.
    """
    record = ProofRecord.from_attachment(attachment)
    return VerificationKey.from_hex(record.key_document.ed25519)
