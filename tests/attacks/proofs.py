"""Judging receipts whose proofs somebody has changed and signed anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import ReceiptError
from bentoml_secure.receipts.bundle import Bundle, parse_bundle
from bentoml_secure.receipts.opening import Opened, Opening
from bentoml_secure.receipts.proofs import (
    ProofRecord,
)
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.receipts.verify import Verdict, verify_bundle
from bentoml_secure.testing.proofs import (
    attach,
)
from bentoml_secure.testing.receipts import Draft

Change = Callable[[ProofRecord], ProofRecord]
OTHER = "another request"


def judge(
    draft: Draft,
    records: Mapping[tuple[int, int], ProofRecord] | Sequence[ProofRecord],
    *,
    trust: Trust | None = None,
    opened: bool = False,
    seconds: float = 5,
    bundle: Bundle | None = None,
    response: Opened | None = None,
) -> Verdict:
    """Judge a receipt with these proofs, as it would travel."""
    deployment = draft.deployment
    whole = attach(bundle or draft.bundle(), deployment, records)
    opening = Opening(
        salt=draft.salt, request=draft.request, response=response or draft.response
    )
    return verify_bundle(
        parse_bundle(canonical_json(whole.to_json())),
        trust or deployment.trust,
        now=deployment.now + timedelta(seconds=seconds),
        opening=opening if opened else None,
    )


def findings(draft: Draft, records: Any, **options: Any) -> dict[str, str]:
    with pytest.raises(ReceiptError, match="rejected") as rejected:
        judge(draft, records, **options)
    return {finding.field: finding.got for finding in rejected.value.findings}


def with_proof(record: ProofRecord, proof: bytes) -> ProofRecord:
    return replace(record, proof=replace(record.proof, proof=proof))


def with_facts(record: ProofRecord, **facts: str) -> ProofRecord:
    changed = replace(record.proof.facts, **facts)
    return replace(record, proof=replace(record.proof, facts=changed))
