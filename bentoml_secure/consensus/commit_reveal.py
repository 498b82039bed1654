"""Commit, then reveal: a replica binds itself to an answer before it shows any.

    commitment = SHA-256(label || H(task) || H(replica) || H(outputs) || H(nonce))

with H = SHA-256, label = "bentoml-secure/commitment/v1", the task and the commitments
of the output tensors by name as canonical JSON, the replica's name as UTF-8, and 16
random bytes that the replica keeps until it reveals. All parts have one length, so no
two tuples of them have one spelling.

The replica's name makes a commitment that was copied from a peer worthless: whoever
copied it cannot open it, for no nonce turns one name into another. Who copied from
whom does not follow from which came first: who reads the wire can be the faster one.
So both are asked to reveal, and it is the opening that tells them apart.

What this cannot stop: replicas that agree on an answer out of band, and one that sends
what it is asked to another and commits to what comes back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.digest import (
    JSON,
    NONCE_BYTES,
    REQUEST_ID_BYTES,
    Digest,
    canonical_json,
    equal,
    parse_digest,
    parse_hex,
    require_fields,
)
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.signing import (
    Envelope,
    SigningKey,
    VerificationKey,
    parse_envelope,
    sign,
    verify,
)
from bentoml_secure.statements import EXCHANGE_ID_BYTES, Statement

COMMITMENT_TYPE = "application/vnd.bentoml-secure.commitment.v1+json"
"""Payload type of the envelope: no statement passes for a commitment, or back."""

ANSWER = "sha256-answer-v1"
"""Algorithm of the commitment's digest."""

OPENING_BYTES = 16
MAX_COMMITMENT_BYTES = 4096
"""Of the signed payload; a real one has about 700 bytes."""

_LABEL = b"bentoml-secure/commitment/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a replica was asked, as its commitment names it.

    Attributes:
        request_id: 16 bytes, hex.
        nonce: The caller's 32 bytes, hex.
        plan_digest: Of the plan.
        infer_index: Which ``infer`` of the request, from 0.
        exchange_id: 16 bytes, hex; of the exchange whose answer is committed to.
        segment: Identity of the segment.
    """

    request_id: str
    nonce: str
    plan_digest: Digest
    infer_index: int
    exchange_id: str
    segment: Digest

    @classmethod
    def of(cls, statement: Statement) -> Task:
        """Return what a replica was asked, as its statement says."""
        return cls(**{name: getattr(statement, name) for name in cls.__slots__})

    def to_json(self) -> dict[str, Any]:
        """Return the document whose digest enters the commitment."""
        return {name: getattr(self, name) for name in self.__slots__}


def commit_answer(
    task: Task, replica: str, outputs: Mapping[str, Digest], nonce: bytes
) -> Digest:
    """Return the commitment to an answer.

    Args:
        task: What was asked.
        replica: Name of the replica that answers.
        outputs: Commitment of each output tensor, by name.
        nonce: 16 random bytes; without them nothing follows from the commitment.

    Raises:
        MalformedInputError: A nonce of another length, or no canonical JSON.
    """
    if len(nonce) != OPENING_BYTES:
        raise MalformedInputError(
            f"opening nonce: got {len(nonce)} bytes, want {OPENING_BYTES}"
        )
    # surrogatepass: a name from outside must not raise what is not ours.
    parts = (
        canonical_json(task.to_json()),
        replica.encode(errors="surrogatepass"),
        canonical_json(dict(outputs)),
        nonce,
    )
    hasher = hashlib.sha256(_LABEL)
    for part in parts:
        hasher.update(hashlib.sha256(part).digest())
    return Digest(f"{ANSWER}:{hasher.hexdigest()}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """What a replica signs before anybody's answer is shown.

    Attributes:
        task: What it was asked.
        key_document: Digest of its key document.
        commitment: To its answer.
    """

    task: Task
    key_document: Digest
    commitment: Digest

    def to_json(self) -> dict[str, Any]:
        """Return the document that is signed."""
        return {
            "version": 1,
            **self.task.to_json(),
            "key_document": self.key_document,
            "commitment": self.commitment,
        }

    @classmethod
    def from_json(cls, document: object) -> Commitment:
        """Parse a signed document; anything unexpected is refused.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        names = {"version", "key_document", "commitment", *Task.__slots__}
        got = require_fields(document, names, what="commitment")
        if got["version"] != 1 or isinstance(got["version"], bool):
            raise MalformedInputError("commitment version: want 1")
        index = got["infer_index"]
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise MalformedInputError("commitment infer_index: want an integer from 0")
        for name, length in (
            ("request_id", REQUEST_ID_BYTES),
            ("nonce", NONCE_BYTES),
            ("exchange_id", EXCHANGE_ID_BYTES),
        ):
            parse_hex(got[name], what=f"commitment {name}", length=length)
        for name, algorithm in (
            ("plan_digest", JSON),
            ("segment", JSON),
            ("key_document", JSON),
            ("commitment", ANSWER),
        ):
            parse_digest(got[name], what=f"commitment {name}", algorithm=algorithm)
        return cls(
            task=Task(**{name: got[name] for name in Task.__slots__}),
            key_document=got["key_document"],
            commitment=got["commitment"],
        )


def sign_commitment(key: SigningKey, commitment: Commitment) -> Envelope:
    """Sign a commitment as the replica whose key document it names."""
    return sign(key, COMMITMENT_TYPE, commitment.to_json())


def parse_commitment_envelope(document: object) -> Envelope:
    """Parse the JSON form of a commitment's envelope, within its size limit.

    Raises:
        MalformedInputError: Not an envelope, or too large.
    """
    return parse_envelope(document, what="commitment", max_bytes=MAX_COMMITMENT_BYTES)


def verify_commitment(envelope: Envelope, key: VerificationKey) -> Commitment:
    """Verify a replica's envelope and return what it says.

    Raises:
        VerificationError: Another key or type, or the signature does not fit.
        MalformedInputError: Signed, but not a commitment.
    """
    return Commitment.from_json(verify(envelope, key, payload_type=COMMITMENT_TYPE))


def require_commitment(
    commitment: Commitment, task: Task, key_document: Digest
) -> None:
    """Refuse a commitment to anything but the answer that was asked for.

    Args:
        commitment: Verified, so the replica's own words.
        task: What was asked.
        key_document: Digest of the document under whose key it was verified.

    Raises:
        VerificationError: The first field that differs, with got and want.
    """
    got, want = (
        commitment.to_json(),
        Commitment(
            task=task, key_document=key_document, commitment=commitment.commitment
        ).to_json(),
    )
    for name, wanted in want.items():
        if got[name] != wanted:
            raise VerificationError(
                f"commitment {name}: got {got[name]!r:.200}, want {wanted!r:.200}"
            )


def require_opening(
    commitment: Commitment, replica: str, outputs: Mapping[str, Digest], nonce: bytes
) -> None:
    """Refuse an answer that is not the one a replica committed to.

    Args:
        commitment: Verified.
        replica: Who showed the answer.
        outputs: Commitment of each output tensor of that answer, by name.
        nonce: That the replica opens its commitment with.

    Raises:
        VerificationError: Another answer, another replica's commitment, or another
            nonce.
        MalformedInputError: A nonce of another length.
    """
    made = commit_answer(commitment.task, replica, outputs, nonce)
    if not equal(made, commitment.commitment):
        raise VerificationError(
            f"commitment of {replica:.100}: opened another answer: got {made}, "
            f"want {commitment.commitment}"
        )
