"""One request to a deployment in memory: its secrets, who acts how, what is signed.

What ``rounds.py`` and ``chains.py`` share. Commitments, statements and signatures are
real; what replicas compute is made up, and follows from their inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from bentoml_secure.consensus.commit_reveal import (
    OPENING_BYTES,
    Commitment,
    Task,
    commit_answer,
    sign_commitment,
)
from bentoml_secure.consensus.committee import Candidate, draw_order, seed
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.digest import Digest, derive_salt
from bentoml_secure.receipts.commitments import Revealed
from bentoml_secure.receipts.receipt import derive_request_id
from bentoml_secure.scenario import Scenario
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import Statement, format_time, sign_statement
from bentoml_secure.tensors import Array, commit
from bentoml_secure.testing.deployment import Deployment, Process

SaltOf = Callable[[int, str, str], bytes]
"""(infer index, purpose, name) to the 32 bytes that the commitment is made with."""


class Behaviour(StrEnum):
    """What a replica does with one exchange."""

    HONEST = "honest"
    NEAR = "near"  # within the tolerance, other bits
    LIAR = "liar"
    OTHER_LIAR = "other-liar"  # and not the same lie
    ABSENT = "absent"  # makes way for a spare, where there is one
    LATE = "late"  # honest, after the decision
    LATE_LIAR = "late-liar"
    LOST = "lost"  # pending at the decision, and never came


VOTING = frozenset(
    {Behaviour.HONEST, Behaviour.NEAR, Behaviour.LIAR, Behaviour.OTHER_LIAR}
)
NO_ANSWER = "connection refused"

_RULE = load_rule("within_tolerance")
_SHIFT = {
    Behaviour.NEAR: 1e-6,
    Behaviour.LIAR: 0.5,
    Behaviour.OTHER_LIAR: 0.75,
    Behaviour.LATE_LIAR: 0.5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request on its way through the segments.

    Attributes:
        deployment: Whose.
        label: Nonces, salt and exchange ids follow from it.
        behaviours: By (infer, segment, replica); honest where left out.
        referees: By (infer, segment); honest where left out, absent where it says so.
        weights: Of replicas by name, as reputations have them; 1 where left out.
        salts: In place of the derivation from the root salt.
        heads_counted: The entry counts replicas where it should count voices.
        orders: By (infer, segment), where the entry asks in an order of its own.
        runs_by: What the entry keeps to in place of the deployment's scenario.
        r: The entry's 32 bytes.
    """

    deployment: Deployment
    label: str
    behaviours: Mapping[tuple[int, int, int], Behaviour] = field(default_factory=dict)
    referees: Mapping[tuple[int, int], Behaviour] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    salts: SaltOf | None = None
    heads_counted: bool = False
    orders: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    runs_by: Scenario | None = None
    r: bytes

    @property
    def scenario(self) -> Scenario:
        """What the entry keeps to; an honest one, to the deployment's."""
        return self.runs_by or self.deployment.scenario

    @property
    def nonce(self) -> bytes:
        """Of the caller."""
        return draw_bytes(self.label, "client nonce", 32)

    @property
    def root_salt(self) -> bytes:
        """Of the request."""
        return draw_bytes(self.label, "root salt", 32)

    @property
    def request_id(self) -> bytes:
        """Of the entry's and the caller's bytes."""
        return derive_request_id(self.r, self.nonce)

    @property
    def seed(self) -> bytes:
        """Of every draw."""
        return seed(self.r, self.nonce, self.request_id)

    def salt_of(self, infer: int, purpose: str, name: str) -> bytes:
        """Return the salt of one tensor or body."""
        if self.salts is not None:
            return self.salts(infer, purpose, name)
        return derive_salt(
            self.root_salt,
            request_id=self.request_id,
            infer_index=infer,
            purpose=purpose,
            name=name,
        )

    def commit(self, infer: int, tensors: Mapping[str, Array]) -> dict[str, Digest]:
        """Return the commitment of each tensor."""
        salts = {name: self.salt_of(infer, "tensor", name) for name in tensors}
        return commit(tensors, salts, self.deployment.scenario.commitments)

    def voice(self, name: str) -> str:
        """Return the voice that the entry gives a replica."""
        return name if self.heads_counted else self.deployment.voice(name)

    def weights_of(self, segment: int) -> dict[str, float]:
        """Return the weight of each replica of a segment."""
        runners = self.deployment.runners[segment]
        return {r.name: self.weights.get(r.name, 1.0) for r in runners}

    def acting(self, infer: int, segment: int) -> dict[str, Behaviour]:
        """Return what each replica of a segment does."""
        return {
            runner.name: self.behaviours.get((infer, segment, seat), Behaviour.HONEST)
            for seat, runner in enumerate(self.deployment.runners[segment])
        }

    def order(self, infer: int, segment: int) -> tuple[str, ...]:
        """Return a segment's replicas as they are drawn, or as the entry likes."""
        if (infer, segment) in self.orders:
            return self.orders[infer, segment]
        weights = self.weights_of(segment)
        return draw_order(
            self.seed,
            [Candidate(replica=name, weight=weights[name]) for name in weights],
            infer_index=infer,
            segment_index=segment,
        )

    def state(
        self,
        process: Process,
        place: tuple[int, int],
        given: Mapping[str, Array],
        answer: Mapping[str, Array],
        *,
        on: str = "",
    ) -> Envelope:
        """Return what a process signs of one exchange.

        Args:
            process: Whose key signs.
            place: Indexes of infer and segment.
            given: To it, by name.
            answer: That it made, by name.
            on: Tells exchanges of one process and place apart.
        """
        infer, number = place
        exchange = f"exchange {infer} {number} {process.name}{on}"
        return sign_statement(
            process.signing,
            Statement(
                request_id=self.request_id.hex(),
                nonce=self.nonce.hex(),
                plan_digest=self.deployment.plan.digest,
                infer_index=infer,
                exchange_id=draw_bytes(self.label, exchange, 16).hex(),
                segment=self.deployment.plan.segments[number].identity,
                key_document=process.document.digest,
                inputs=self.commit(infer, given),
                outputs=self.commit(infer, answer),
                started_at=format_time(self.deployment.now),
                ended_at=format_time(self.deployment.now),
            ),
        )

    def reveal(self, process: Process, vote: Statement) -> Revealed:
        """Return what a replica had committed to its vote with."""
        nonce = draw_bytes(self.label, f"opening {vote.exchange_id}", OPENING_BYTES)
        task = Task.of(vote)
        made = Commitment(
            task=task,
            key_document=process.document.digest,
            commitment=commit_answer(task, process.name, vote.outputs, nonce),
        )
        envelope = sign_commitment(process.signing, made)
        return Revealed(commitment=envelope, nonce=nonce, blind=True)


def compute(given: Mapping[str, Array], behaviour: Behaviour) -> Array:
    """Return what a replica makes of its inputs: their sum, or another number."""
    total = np.sum([array for _, array in sorted(given.items())], axis=0)
    shift = np.float32(1 + _SHIFT.get(behaviour, 0.0))
    return np.asarray(total * shift, np.float32)


def apart(a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
    """Return the distance of two answers."""
    return _RULE.distance(a, b)


def draw_bytes(label: str, name: str, length: int) -> bytes:
    """Return bytes that follow from a label and a name."""
    return hashlib.sha256(f"{label}: {name}".encode()).digest()[:length]
