"""Receipts of a deployment in memory, honest or not.

``build_draft`` runs a request through made-up segments with real commitments,
statements and tallies. A draft is not signed yet: change what you like with
``dataclasses.replace`` and let ``Draft.bundle`` sign the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import numpy as np

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.consensus.committee import Candidate, draw_order, seed
from bentoml_secure.consensus.quorum import Absence, Member, Tally, Vote, decide
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.digest import Digest, commit_body, derive_salt, digest_bytes
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.draw import Commitment, commit_draw
from bentoml_secure.receipts.late_votes import (
    LATE_VOTES,
    LateAnswer,
    LateRound,
    LateVotes,
    issue_late_votes,
)
from bentoml_secure.receipts.receipt import (
    CALLER,
    SEALED,
    Draw,
    InferRecord,
    Party,
    Receipt,
    RequiredAttachment,
    SegmentRecord,
    derive_request_id,
    issue,
)
from bentoml_secure.signing import Envelope, SigningKey
from bentoml_secure.statements import Statement, format_time, sign_statement
from bentoml_secure.tensors import Array, commit
from bentoml_secure.testing.deployment import (
    EVIDENCE_AGE,
    Deployment,
    Process,
    build_deployment,
)

SaltOf = Callable[[int, str, str], bytes]
"""(infer index, purpose, name) to the 32 bytes that the commitment is made with."""


class Behaviour(StrEnum):
    """What a replica does with one exchange."""

    HONEST = "honest"
    NEAR = "near"  # within the tolerance, other bits
    LIAR = "liar"
    ABSENT = "absent"
    LATE = "late"  # honest, after the decision
    LATE_LIAR = "late-liar"
    LOST = "lost"  # pending at the decision, and never came


_RULE = load_rule("within_tolerance")
_VOTING = {Behaviour.HONEST, Behaviour.NEAR, Behaviour.LIAR}
_SHIFT = {Behaviour.NEAR: 1e-6, Behaviour.LIAR: 0.5, Behaviour.LATE_LIAR: 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A receipt before it is signed, and all that belongs to it.

    Attributes:
        deployment: Whose.
        receipt: What will be signed.
        late: What the attachment will say, by (infer index, segment index).
        evidence: Of every party.
        salt: The request's root salt, 32 bytes.
        request: Body.
        response: Body.
        inputs: Tensors of the first ``infer``.
        outputs: Tensors of the first ``infer``.
    """

    deployment: Deployment
    receipt: Receipt
    late: Mapping[tuple[int, int], LateRound]
    evidence: tuple[EvidenceRecord, ...]
    salt: bytes
    request: bytes
    response: bytes
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    def bundle(self, *, key: SigningKey | None = None, attach: bool = True) -> Bundle:
        """Sign the receipt and its late votes, and return the whole bundle.

        Args:
            key: Signs in place of the entry.
            attach: Whether the late votes are there, if any are due.
        """
        deployment = self.deployment
        key = key or deployment.entry.signing
        envelope = issue(self.receipt, key)
        attachments: tuple[Envelope, ...] = ()
        if attach and LATE_VOTES in {due.kind for due in self.receipt.attachments}:
            attachments = (issue_late_votes(self.late_votes(envelope), key),)
        return Bundle(
            receipt=envelope,
            attachments=attachments,
            key_documents=tuple(p.document for p in deployment.processes),
            evidence=self.evidence,
            plan=deployment.plan,
            scenario=deployment.scenario,
            configuration=deployment.configuration.to_json(),
        )

    def late_votes(self, receipt: Envelope) -> LateVotes:
        """Return the late votes of a signed receipt, to be signed."""
        return LateVotes(
            receipt_id=self.receipt.receipt_id,
            receipt_digest=receipt.payload_digest,
            issued_at=format_time(self.deployment.now + timedelta(seconds=2)),
            rounds=self.late,
        )


def build_draft(
    deployment: Deployment,
    *,
    behaviours: Mapping[tuple[int, int, int], Behaviour] | None = None,
    infers: int = 1,
    label: str = "a request",
    request: bytes = b'{"features": [[1.0, 2.0, 3.0, 4.0]]}',
    response: bytes = b'{"malignant": [0.25]}',
    inputs: Mapping[str, Array] | None = None,
    salt_of: SaltOf | None = None,
    heads_counted: bool = False,
    r: bytes | None = None,
    committed: bool = True,
) -> Draft:
    """Run a request through a deployment.

    Args:
        deployment: Of ``build_deployment``.
        behaviours: By (infer, segment, replica); honest where left out.
        infers: Runs of the chain.
        label: Nonces, salt and exchange ids follow from it.
        request: Body.
        response: Body.
        inputs: Of every ``infer``; made up by default.
        salt_of: In place of the derivation from the root salt.
        heads_counted: The entry counts replicas where it should count voices.
        r: The entry's 32 bytes; they follow from the label by default.
        committed: The entry signs a commitment to them.

    Raises:
        ValueError: No quorum: there is no receipt to draft.
    """
    run = _Request(
        deployment, label, behaviours or {}, salt_of, heads_counted, r, committed
    )
    tensors: Mapping[str, Array] = inputs or {
        "x": np.arange(1, 5, dtype=np.float32).reshape(1, 4)
    }
    runs = [run.infer(index, tensors) for index in range(infers)]
    parties, evidence = zip(
        *(
            process.party(
                _bytes(label, f"nonce {process.name}", 32),
                deployment.now - EVIDENCE_AGE,
            )
            for process in deployment.processes
        ),
        strict=True,
    )
    receipt = run.receipt(
        parties=parties,
        request=commit_body(run.salt_of(0, "body", "request"), request),
        response=commit_body(run.salt_of(0, "body", "response"), response),
        infers=tuple(record for record, _ in runs),
    )
    return Draft(
        deployment=deployment,
        receipt=receipt,
        late=run.late,
        evidence=evidence,
        salt=run.salt,
        request=request,
        response=response,
        inputs=tensors,
        outputs=runs[0][1],
    )


def build_bundle(
    deployment: Deployment | None = None,
    *,
    behaviours: Mapping[tuple[int, int, int], Behaviour] | None = None,
    infers: int = 1,
) -> Bundle:
    """Return the bundle of an ordinary request, of an ordinary deployment."""
    draft = build_draft(
        deployment or build_deployment(), behaviours=behaviours, infers=infers
    )
    return draft.bundle()


class _Request:
    """One request on its way through the segments."""

    def __init__(
        self,
        deployment: Deployment,
        label: str,
        behaviours: Mapping[tuple[int, int, int], Behaviour],
        salt_of: SaltOf | None,
        heads_counted: bool,
        r: bytes | None,
        committed: bool,
    ) -> None:
        self.deployment = deployment
        self.behaviours = behaviours
        self.nonce = _bytes(label, "client nonce", 32)
        self.salt = _bytes(label, "root salt", 32)
        self.r = r or _bytes(label, "r", 32)
        self.request_id = derive_request_id(self.r, self.nonce)
        self.salt_of = salt_of or self._derive
        self.late: dict[tuple[int, int], LateRound] = {}
        self._label = label
        self._heads_counted = heads_counted
        self._committed = committed

    def _signed(self) -> Envelope:
        entry = self.deployment.entry
        nonce = _bytes(self._label, f"nonce {entry.name}", 32)
        return commit_draw(
            entry.signing,
            Commitment(
                commitment=digest_bytes(self.r),
                key_document=entry.document.digest,
                evidence_nonce=nonce.hex(),
            ),
        )

    def _voice(self, name: str) -> str:
        return name if self._heads_counted else self.deployment.voice(name)

    def _derive(self, infer: int, purpose: str, name: str) -> bytes:
        return derive_salt(
            self.salt,
            request_id=self.request_id,
            infer_index=infer,
            purpose=purpose,
            name=name,
        )

    def commit(self, infer: int, tensors: Mapping[str, Array]) -> dict[str, Digest]:
        salts = {name: self.salt_of(infer, "tensor", name) for name in tensors}
        return commit(tensors, salts)

    def receipt(
        self,
        *,
        parties: tuple[Party, ...],
        request: Digest,
        response: Digest,
        infers: tuple[InferRecord, ...],
    ) -> Receipt:
        deployment = self.deployment
        issued = deployment.now + timedelta(seconds=1)
        due = RequiredAttachment(
            kind=LATE_VOTES, deadline=format_time(issued + timedelta(seconds=5))
        )
        return Receipt(
            receipt_id=self.request_id.hex(),
            service=deployment.entry.name,
            api="/diagnose",
            status=200,
            scenario_name=deployment.scenario.name,
            scenario_digest=deployment.scenario.digest,
            plan_digest=deployment.plan.digest,
            config_digest=deployment.config_digest,
            client_nonce=self.nonce.hex(),
            nonce_drawn_by=CALLER,
            salt_drawn_by=CALLER,
            first_hop=SEALED,
            draw=Draw.of(self.r, self._signed() if self._committed else None),
            parties=parties,
            request=request,
            response=response,
            infers=infers,
            attachments=(due,) if self.late else (),
            started_at=format_time(deployment.now),
            issued_at=format_time(issued),
        )

    def infer(
        self, index: int, inputs: Mapping[str, Array]
    ) -> tuple[InferRecord, dict[str, Array]]:
        """Run the chain; every segment forwards what its replicas agreed on."""
        plan, known = self.deployment.plan, dict(inputs)
        records: list[SegmentRecord] = []
        for number, segment in enumerate(plan.segments):
            given = {spec.name: known[spec.name] for spec in segment.inputs}
            record, agreed = self._segment(index, number, given)
            records.append(record)
            known.update(agreed)
        outputs = {spec.name: known[spec.name] for spec in plan.outputs}
        ran = InferRecord(
            index=index,
            inputs=self.commit(index, inputs),
            outputs=self.commit(index, outputs),
            segments=tuple(records),
        )
        return ran, outputs

    def _segment(
        self, infer: int, number: int, given: Mapping[str, Array]
    ) -> tuple[SegmentRecord, Mapping[str, Array]]:
        segment = self.deployment.plan.segments[number]
        output = segment.outputs[0].name
        acting = {
            runner.name: self.behaviours.get((infer, number, seat), Behaviour.HONEST)
            for seat, runner in enumerate(self.deployment.runners[number])
        }
        answers = {name: {output: _compute(given, acting[name])} for name in acting}
        statements = {
            runner.name: self._statement(
                runner, infer, number, given, answers[runner.name]
            )
            for runner in self.deployment.runners[number]
        }
        tally = self._tally(infer, number, acting, answers)
        if tally.medoid is None:
            raise ValueError("no quorum: there is no receipt to draft")
        agreed = answers[tally.medoid]
        late = [name for name in tally.pending if acting[name] is not Behaviour.LOST]
        lost = [name for name in tally.pending if acting[name] is Behaviour.LOST]
        if tally.pending:
            self.late[infer, number] = LateRound(
                answers=tuple(
                    LateAnswer(
                        replica=name,
                        statement=statements[name],
                        distance=_RULE.distance(answers[name], agreed),
                    )
                    for name in late
                ),
                absent=tuple(
                    Absence(replica=name, reason="no answer within the grace")
                    for name in lost
                ),
            )
        record = SegmentRecord(
            segment=segment.identity,
            weights=dict.fromkeys(acting, 1.0),
            tally=tally,
            statements={n: s for n, s in statements.items() if acting[n] in _VOTING},
        )
        return record, agreed

    def _tally(
        self,
        infer: int,
        number: int,
        acting: Mapping[str, Behaviour],
        answers: Mapping[str, Mapping[str, Array]],
    ) -> Tally:
        votes = [
            Vote(
                replica=name,
                commitments=tuple(sorted(self.commit(infer, answers[name]).items())),
            )
            for name, behaviour in acting.items()
            if behaviour in _VOTING
        ]
        order = draw_order(
            seed(self.r, self.nonce, self.request_id),
            [Candidate(replica=name) for name in acting],
            infer_index=infer,
            segment_index=number,
        )
        return decide(
            [Member(replica=name, voice=self._voice(name)) for name in order],
            votes,
            [
                Absence(replica=name, reason="connection refused")
                for name, behaviour in acting.items()
                if behaviour is Behaviour.ABSENT
            ],
            quorum=self.deployment.scenario.quorum,
            tolerance=self.deployment.plan.segments[number].tolerance,
            distances=lambda a, b: _RULE.distance(answers[a], answers[b]),
        )

    def _statement(
        self,
        runner: Process,
        infer: int,
        number: int,
        given: Mapping[str, Array],
        answer: Mapping[str, Array],
    ) -> Envelope:
        name = f"exchange {infer} {number} {runner.name}"
        return sign_statement(
            runner.signing,
            Statement(
                request_id=self.request_id.hex(),
                nonce=self.nonce.hex(),
                plan_digest=self.deployment.plan.digest,
                infer_index=infer,
                exchange_id=_bytes(self._label, name, 16).hex(),
                segment=self.deployment.plan.segments[number].identity,
                key_document=runner.document.digest,
                inputs=self.commit(infer, given),
                outputs=self.commit(infer, answer),
                started_at=format_time(self.deployment.now),
                ended_at=format_time(self.deployment.now),
            ),
        )


def _compute(given: Mapping[str, Array], behaviour: Behaviour) -> Array:
    total = np.sum([array for _, array in sorted(given.items())], axis=0)
    shift = np.float32(1 + _SHIFT.get(behaviour, 0.0))
    return np.asarray(total * shift, np.float32)


def _bytes(label: str, name: str, length: int) -> bytes:
    return hashlib.sha256(f"{label}: {name}".encode()).digest()[:length]
