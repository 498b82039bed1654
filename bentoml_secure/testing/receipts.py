"""Receipts of a deployment in memory, honest or not.

``build_draft`` runs a request through made-up segments with real commitments,
statements and tallies. A draft is not signed yet: change what you like with
``dataclasses.replace`` and let ``Draft.bundle`` sign the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.audit.recompute import Recomputation
from bentoml_secure.audit.sampling import audited
from bentoml_secure.digest import commit_body, digest_bytes
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.draw import Commitment, commit_draw
from bentoml_secure.receipts.late_votes import (
    LATE_VOTES,
    LateRound,
    LateVotes,
    issue_late_votes,
)
from bentoml_secure.receipts.localisation import (
    LOCALISATION,
    Localisation,
    Place,
    issue_localisation,
    localisation_due,
)
from bentoml_secure.receipts.proofs import PROOF, proofs_due
from bentoml_secure.receipts.receipt import (
    CALLER,
    SEALED,
    Draw,
    InferRecord,
    Receipt,
    RequiredAttachment,
    SegmentRecord,
    issue,
)
from bentoml_secure.scenario import Mode, Scenario
from bentoml_secure.signing import Envelope, SigningKey
from bentoml_secure.statements import format_time
from bentoml_secure.tensors import Array
from bentoml_secure.testing.chains import run_chains
from bentoml_secure.testing.deployment import (
    EVIDENCE_AGE,
    Deployment,
    Process,
    build_deployment,
)
from bentoml_secure.testing.request import Behaviour, Request, SaltOf, draw_bytes
from bentoml_secure.testing.rounds import run_round

__all__ = ["Behaviour", "Draft", "build_bundle", "build_draft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A receipt before it is signed, and all that belongs to it.

    Attributes:
        deployment: Whose.
        receipt: What will be signed.
        late: What the attachment will say, by (infer index, segment index).
        faults: What the localisation will say, by infer index and chain.
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
    faults: Mapping[Place, tuple[Recomputation, ...]] = field(default_factory=dict)
    evidence: tuple[EvidenceRecord, ...]
    salt: bytes
    request: bytes
    response: bytes
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    def bundle(self, *, key: SigningKey | None = None, attach: bool = True) -> Bundle:
        """Sign the receipt, its late votes and localisation; return the whole bundle.

        Args:
            key: Signs in place of the entry.
            attach: Whether those attachments are there, if any are due.
        """
        deployment = self.deployment
        key = key or deployment.entry.signing
        envelope = issue(self.receipt, key)
        due = {due.kind for due in self.receipt.attachments} if attach else set()
        attachments: tuple[Envelope, ...] = ()
        if LATE_VOTES in due:
            attachments += (issue_late_votes(self.late_votes(envelope), key),)
        if LOCALISATION in due:
            attachments += (issue_localisation(self.localisation(envelope), key),)
        named = {party.name for party in self.receipt.parties}
        return Bundle(
            receipt=envelope,
            attachments=attachments,
            key_documents=tuple(
                process.document
                for process in deployment.processes
                if process.name in named or process not in deployment.referees
            ),
            evidence=self.evidence,
            plan=deployment.plan,
            scenario=deployment.scenario,
            configuration=deployment.configuration.to_json(),
            verification_keys=None
            if deployment.set_up is None
            else deployment.set_up.document,
        )

    def late_votes(self, receipt: Envelope) -> LateVotes:
        """Return the late votes of a signed receipt, to be signed."""
        return LateVotes(
            receipt_id=self.receipt.receipt_id,
            receipt_digest=receipt.payload_digest,
            issued_at=format_time(self.deployment.now + timedelta(seconds=2)),
            rounds=self.late,
        )

    def localisation(self, receipt: Envelope) -> Localisation:
        """Return what was found of a signed receipt's dissenting chains."""
        return Localisation(
            receipt_id=self.receipt.receipt_id,
            receipt_digest=receipt.payload_digest,
            issued_at=format_time(self.deployment.now + timedelta(seconds=2)),
            chains=self.faults,
        )


def build_draft(
    deployment: Deployment,
    *,
    behaviours: Mapping[tuple[int, int, int], Behaviour] | None = None,
    referees: Mapping[tuple[int, int], Behaviour] | None = None,
    weights: Mapping[str, float] | None = None,
    infers: int = 1,
    label: str = "a request",
    request: bytes = b'{"features": [[1.0, 2.0, 3.0, 4.0]]}',
    response: bytes = b'{"malignant": [0.25]}',
    inputs: Mapping[str, Array] | None = None,
    salt_of: SaltOf | None = None,
    heads_counted: bool = False,
    orders: Mapping[tuple[int, int], tuple[str, ...]] | None = None,
    runs_by: Scenario | None = None,
    r: bytes | None = None,
    committed: bool = True,
) -> Draft:
    """Run a request through a deployment.

    Args:
        deployment: Of ``build_deployment``.
        behaviours: By (infer, segment, replica); honest where left out.
        referees: By (infer, segment); honest where left out.
        weights: Of replicas by name; 1 where left out.
        infers: Runs of the chain.
        label: Nonces, salt and exchange ids follow from it, and who is drawn.
        request: Body.
        response: Body.
        inputs: Of every ``infer``; made up by default.
        salt_of: In place of the derivation from the root salt.
        heads_counted: The entry counts replicas where it should count voices.
        orders: By (infer, segment), where the entry asks in an order of its own.
        runs_by: What the entry keeps to in place of the deployment's scenario.
        r: The entry's 32 bytes; they follow from the label by default.
        committed: The entry signs a commitment to them.

    Raises:
        ValueError: No quorum: there is no receipt to draft.
    """
    asked = Request(
        deployment=deployment,
        label=label,
        behaviours=behaviours or {},
        referees=referees or {},
        weights=weights or {},
        salts=salt_of,
        heads_counted=heads_counted,
        orders=orders or {},
        runs_by=runs_by,
        r=r or draw_bytes(label, "r", 32),
    )
    tensors: Mapping[str, Array] = inputs or {
        "x": np.arange(1, 5, dtype=np.float32).reshape(1, 4)
    }
    run = _Run(asked)
    outputs = [run.infer(index, tensors) for index in range(infers)]
    receipt, evidence = run.receipt(request, response, committed=committed)
    return Draft(
        deployment=deployment,
        receipt=receipt,
        late=run.late,
        faults=run.faults,
        evidence=evidence,
        salt=asked.root_salt,
        request=request,
        response=response,
        inputs=tensors,
        outputs=outputs[0],
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


class _Run:
    """What the entry keeps of one request while it runs."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.records: list[InferRecord] = []
        self.late: dict[tuple[int, int], LateRound] = {}
        self.faults: dict[Place, tuple[Recomputation, ...]] = {}

    def infer(self, index: int, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the plan as the scenario has it, and return its outputs."""
        request, chains = self.request, None
        plan, scenario = request.deployment.plan, request.scenario
        segments: tuple[SegmentRecord, ...] = ()
        if scenario.mode is Mode.END_TO_END:
            chains = run_chains(request, index, inputs)
        if chains is None:
            segments, known = self._lockstep(index, inputs)
        else:
            known = dict(chains.known)
            for name, faults in chains.faults.items():
                self.faults[index, name] = faults
        outputs = {spec.name: known[spec.name] for spec in plan.outputs}
        self.records.append(
            InferRecord(
                index=index,
                inputs=request.commit(index, inputs),
                outputs=request.commit(index, outputs),
                segments=segments,
                chains=None if chains is None else chains.record,
            )
        )
        return outputs

    def _lockstep(
        self, index: int, inputs: Mapping[str, Array]
    ) -> tuple[tuple[SegmentRecord, ...], dict[str, Array]]:
        known, records = dict(inputs), []
        for number, segment in enumerate(self.request.deployment.plan.segments):
            given = {spec.name: known[spec.name] for spec in segment.inputs}
            ran = run_round(self.request, index, number, given)
            if ran.late is not None:
                self.late[index, number] = ran.late
            records.append(ran.record)
            known.update(ran.agreed)
        return tuple(records), known

    def receipt(
        self, request: bytes, response: bytes, *, committed: bool
    ) -> tuple[Receipt, tuple[EvidenceRecord, ...]]:
        """Return the receipt, and the evidence of its parties."""
        asked, deployment = self.request, self.request.deployment
        parties, evidence = zip(
            *(
                process.party(
                    draw_bytes(asked.label, f"nonce {process.name}", 32),
                    deployment.now - EVIDENCE_AGE,
                )
                for process in self._processes()
            ),
            strict=True,
        )
        scheme = deployment.scenario.commitments
        receipt = Receipt(
            receipt_id=asked.request_id.hex(),
            service=deployment.entry.name,
            api="/diagnose",
            status=200,
            scenario_name=deployment.scenario.name,
            scenario_digest=deployment.scenario.digest,
            plan_digest=deployment.plan.digest,
            config_digest=deployment.config_digest,
            client_nonce=asked.nonce.hex(),
            nonce_drawn_by=CALLER,
            salt_drawn_by=CALLER,
            first_hop=SEALED,
            draw=Draw.of(asked.r, self._draw() if committed else None),
            parties=parties,
            request=commit_body(asked.salt_of(0, "body", "request"), request, scheme),
            response=commit_body(
                asked.salt_of(0, "body", "response"), response, scheme
            ),
            infers=tuple(self.records),
            attachments=self._due(),
            started_at=format_time(deployment.now),
            issued_at=format_time(deployment.now + timedelta(seconds=1)),
        )
        return receipt, evidence

    def _due(self) -> tuple[RequiredAttachment, ...]:
        scenario = self.request.deployment.scenario
        located = localisation_due(self.records, scenario)
        issued = self.request.deployment.now + timedelta(seconds=1)
        return tuple(
            RequiredAttachment(
                kind=kind, deadline=format_time(issued + timedelta(seconds=seconds))
            )
            for kind, due, seconds in (
                (LATE_VOTES, self.late, 5),
                (LOCALISATION, located, 5),
                (PROOF, proofs_due(scenario), scenario.proof_deadline_seconds),
            )
            if due
        )

    def _processes(self) -> tuple[Process, ...]:
        """Return all but the referees that nobody needs."""
        deployment = self.request.deployment
        scenario = deployment.scenario
        recomputed = localisation_due(self.records, scenario) or audited(
            self.request.seed, scenario.audit_rate
        )
        ruled = {
            record.referee.replica
            for infer in self.records
            for record in infer.segments
            if record.referee is not None
        }
        return tuple(
            process
            for process in deployment.processes
            if process not in deployment.referees or recomputed or process.name in ruled
        )

    def _draw(self) -> Envelope:
        entry = self.request.deployment.entry
        nonce = draw_bytes(self.request.label, f"nonce {entry.name}", 32)
        return commit_draw(
            entry.signing,
            Commitment(
                commitment=digest_bytes(self.request.r),
                key_document=entry.document.digest,
                evidence_nonce=nonce.hex(),
            ),
        )
