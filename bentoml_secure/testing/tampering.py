"""Tampering with drafts of receipts: whatever the entry or a replica could sign.

Each function returns a changed draft; ``Draft.bundle`` then signs it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from bentoml_secure.receipts.chains import ChainsRecord
from bentoml_secure.receipts.receipt import Party, SegmentRecord
from bentoml_secure.statements import Statement, sign_statement, verify_statement
from bentoml_secure.testing.deployment import EVIDENCE_AGE, Deployment, Process
from bentoml_secure.testing.receipts import Draft, build_draft


def segments(draft: Draft, *records: SegmentRecord) -> Draft:
    """Return the draft with other segments in its first ``infer``."""
    infer = replace(draft.receipt.infers[0], segments=records)
    return replace(draft, receipt=replace(draft.receipt, infers=(infer,)))


def with_segment(draft: Draft, index: int, record: SegmentRecord) -> Draft:
    """Return the draft with another record of one segment."""
    records = list(draft.receipt.infers[0].segments)
    records[index] = record
    return segments(draft, *records)


def with_tally(draft: Draft, index: int, **changes: Any) -> Draft:
    """Return the draft with one segment's tally changed."""
    record = draft.receipt.infers[0].segments[index]
    tally = replace(record.tally, **changes)
    return with_segment(draft, index, replace(record, tally=tally))


def with_record(draft: Draft, index: int, **changes: Any) -> Draft:
    """Return the draft with fields of one segment's record changed."""
    record = draft.receipt.infers[0].segments[index]
    return with_segment(draft, index, replace(record, **changes))


def chains_of(draft: Draft) -> ChainsRecord:
    """Return the chains of the first ``infer``.

    Raises:
        ValueError: It was served in lock-step.
    """
    chains = draft.receipt.infers[0].chains
    if chains is None:
        raise ValueError("served in lock-step")
    return chains


def with_chains(draft: Draft, **changes: Any) -> Draft:
    """Return the draft with fields of its chains' record or tally changed."""
    record, tally = chains_of(draft), chains_of(draft).tally
    counted = {name: changes.pop(name) for name in tally.__slots__ if name in changes}
    chains = replace(record, tally=replace(tally, **counted), **changes)
    infer = replace(draft.receipt.infers[0], chains=chains)
    return with_receipt(draft, infers=(infer,))


def with_receipt(draft: Draft, **changes: Any) -> Draft:
    """Return the draft with fields of its receipt changed."""
    return replace(draft, receipt=replace(draft.receipt, **changes))


def with_party(draft: Draft, name: str, **changes: Any) -> Draft:
    """Return the draft with one party changed."""
    parties = tuple(
        replace(party, **changes) if party.name == name else party
        for party in draft.receipt.parties
    )
    return with_receipt(draft, parties=parties)


def invite(draft: Draft, *guests: Process) -> Draft:
    """Return the draft with more parties, each with evidence of its own."""
    drawn_at = draft.deployment.now - EVIDENCE_AGE
    for guest in guests:
        nonce = hashlib.sha256(f"nonce {guest.name}".encode()).digest()
        shown, evidence = guest.party(nonce, drawn_at)
        draft = replace(draft, evidence=(*draft.evidence, evidence))
        draft = with_receipt(draft, parties=(*draft.receipt.parties, shown))
    return draft


def party(draft: Draft, name: str) -> Party:
    """Return the party of that name."""
    return next(p for p in draft.receipt.parties if p.name == name)


def process(draft: Draft, name: str) -> Process:
    """Return the process of that name: its keys can sign anything."""
    return next(p for p in draft.deployment.processes if p.name == name)


def statement(draft: Draft, index: int, name: str) -> Statement:
    """Return what a replica signed in the first ``infer``."""
    envelope = draft.receipt.infers[0].segments[index].statements[name]
    return verify_statement(envelope, process(draft, name).signing.public)


def restate(draft: Draft, index: int, name: str, **changes: Any) -> Draft:
    """Let a replica sign something else in place of its statement."""
    record = draft.receipt.infers[0].segments[index]
    said = replace(statement(draft, index, name), **changes)
    envelope = sign_statement(process(draft, name).signing, said)
    statements = {**record.statements, name: envelope}
    return with_segment(draft, index, replace(record, statements=statements))


def another(draft: Draft, **changes: Any) -> Draft:
    """Another request of the same deployment."""
    return build_draft(draft.deployment, label="another request", **changes)


def runners_of(draft: Draft, *rows: tuple[Process, ...]) -> Deployment:
    """Return the draft's deployment with other runners."""
    return replace(draft.deployment, runners=rows)
