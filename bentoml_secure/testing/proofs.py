"""Proofs of a request in memory, honest or not: really proven, really signed.

``prove_draft`` proves what a draft's honest replicas did. A record is not signed yet:
change what you like with ``dataclasses.replace`` and let ``attach`` sign the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import numpy as np

from bentoml_secure.digest import Digest
from bentoml_secure.proofs.boundary import (
    activations_of,
    as_served,
    deviations,
    floats_of,
)
from bentoml_secure.proofs.orders import INPUT, SERVED, About
from bentoml_secure.proofs.proof import BoundaryValues, SegmentProof
from bentoml_secure.proofs.sealing import PROVEN, seal_opening
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.proof_opening import SERVED_PURPOSE, Secrets
from bentoml_secure.receipts.proofs import ProofRecord, evidence_nonce, issue_proof
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import format_time
from bentoml_secure.tensors import Array
from bentoml_secure.testing.deployment import Deployment, Process
from bentoml_secure.testing.proof_set_up import LIMITS, ProofSetUp
from bentoml_secure.testing.receipts import Draft

Records = dict[tuple[int, int], ProofRecord]
PROVEN_AFTER = timedelta(seconds=3)
"""After the request came; the receipt is issued one second after that."""


def set_up_of(deployment: Deployment) -> ProofSetUp:
    """Return a deployment's proof set-up.

    Raises:
        ValueError: It has none.
    """
    if deployment.set_up is None:
        raise ValueError("the deployment proves nothing")
    return deployment.set_up


def prove_draft(draft: Draft, *, served: Mapping[str, Array] | None = None) -> Records:
    """Prove every segment of every ``infer``, and return what provers would sign.

    Args:
        draft: Of a deployment that proves; every ``infer`` has the same tensors.
        served: The answer, where it is not the draft's.
    """
    digest = draft.bundle(attach=False).receipt.payload_digest
    records: Records = {}
    for infer in range(len(draft.receipt.infers)):
        secrets = secrets_of(draft, infer)
        proofs, proven = run_chain(set_up_of(draft.deployment), draft.inputs, secrets)
        for segment, proof in enumerate(proofs):
            records[infer, segment] = record_of(
                draft, digest, (infer, segment), proof, proven, served or draft.outputs
            )
    return records


def secrets_of(draft: Draft, infer: int) -> Secrets:
    """Return what follows from a draft's root salt."""
    return Secrets(
        root=draft.salt,
        request_id=bytes.fromhex(draft.receipt.receipt_id),
        infer=infer,
        scheme=draft.deployment.scenario.commitments,
    )


def run_chain(
    set_up: ProofSetUp, inputs: Mapping[str, Array], secrets: Secrets
) -> tuple[list[SegmentProof], BoundaryValues]:
    """Prove a run of the whole plan.

    Args:
        set_up: Proves.
        inputs: Of the plan.
        secrets: Give the boundaries their salts.

    Returns:
        A proof for each segment, and the activations that came out of the last.
    """
    manifest = set_up.manifest
    salts = [
        manifest.salt.expand(secrets.boundary(index))
        for index in range(len(set_up.keys) + 1)
    ]
    first = manifest.segments[0].inputs
    boundary = (*activations_of(inputs, first, manifest.scale), *salts[0])
    proofs = []
    for index, key in enumerate(set_up.keys):
        made: list[BoundaryValues] = []
        proofs.append(
            set_up.backend.prove(key, boundary, salts[index + 1], LIMITS, made.append)
        )
        boundary = made[0]
    return proofs, boundary[: -manifest.salt.elements]


def record_of(
    draft: Draft,
    receipt_digest: Digest,
    place: tuple[int, int],
    proof: SegmentProof,
    proven: BoundaryValues,
    served: Mapping[str, Array],
) -> ProofRecord:
    """Return what the prover of one segment would sign.

    Args:
        draft: Of the request.
        receipt_digest: Of the draft's receipt, signed.
        place: Indexes of infer and segment.
        proof: Of the segment.
        proven: Activations that came out of the chain.
        served: The answer.
    """
    (infer, segment), set_up = place, set_up_of(draft.deployment)
    manifest, count = set_up.manifest, len(set_up.keys)
    first, last = segment == 0, segment == count - 1
    secrets = secrets_of(draft, infer)
    about = About(
        receipt_id=draft.receipt.receipt_id,
        receipt_digest=receipt_digest,
        infer=infer,
        segment=segment,
    )
    sealed: dict[str, Array] = {}
    if first:
        sealed |= {f"{INPUT}{name}": array for name, array in draft.inputs.items()}
    if last:
        sealed |= {f"{SERVED}{name}": array for name, array in served.items()}
        sealed[PROVEN] = np.array(proven, np.int64)
    answer = floats_of(proven, manifest.segments[-1].outputs, manifest.scale)
    deviation = deviations(answer, served)
    serves = last and draft.deployment.scenario.serve_proven
    process = draft.deployment.provers[segment]
    record = ProofRecord(
        receipt_id=draft.receipt.receipt_id,
        receipt_digest=receipt_digest,
        issued_at=format_time(draft.deployment.now + PROVEN_AFTER),
        infer=infer,
        segment=segment,
        nonce=draft.receipt.client_nonce,
        manifest=manifest.digest,
        proof=proof,
        key_document=process.document,
        evidence=process.party(bytes(32), draft.deployment.now)[1],
        inputs=secrets.commit(draft.inputs) if first else None,
        outputs=secrets.commit(served) if last else None,
        deviation=deviation if last else None,
        proven=secrets.commit(as_served(answer, served), SERVED_PURPOSE)
        if serves
        else None,
        opening=seal_opening(secrets.opening_key(last=last), sealed, about)
        if sealed
        else None,
    )
    return attested(record, process)


def attested(record: ProofRecord, process: Process) -> ProofRecord:
    """Return a record with a process's key document, and its evidence over it.

    Args:
        record: Whose receipt, infer and segment the evidence is about.
        process: Takes the place of the prover.
    """
    nonce = evidence_nonce(record.receipt_digest, *record.place)
    moment = process.document.not_after
    _, evidence = process.party(nonce, moment)
    return replace(record, key_document=process.document, evidence=evidence)


def sign_records(
    deployment: Deployment, records: Iterable[ProofRecord]
) -> list[Envelope]:
    """Sign records, each with the key of its own segment's prover."""
    return [
        issue_proof(record, deployment.provers[record.segment].signing)
        for record in records
    ]


def attach(
    bundle: Bundle,
    deployment: Deployment,
    records: Mapping[tuple[int, int], ProofRecord] | Sequence[ProofRecord],
) -> Bundle:
    """Return a bundle with proofs attached, each signed by its segment's prover."""
    each = records.values() if isinstance(records, Mapping) else records
    attachments = (*bundle.attachments, *sign_records(deployment, each))
    return replace(bundle, attachments=attachments)
