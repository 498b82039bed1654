"""Chains of a receipt as the entry could sign them: judged, never believed for form.

The genuine ones have a liar in the first segment, whom a localisation names.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.chains import ChainsRecord
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.scenario import Mode
from bentoml_secure.testing.deployment import NOW, build_deployment
from bentoml_secure.testing.receipts import Behaviour, build_draft
from bentoml_secure.testing.tampering import chains_of, with_receipt
from fuzz._same import require_same

DEPLOYMENT = build_deployment(
    audit_rate=0.0, terms={"mode": Mode.END_TO_END, "referee": True}
)
DRAFT = build_draft(DEPLOYMENT, behaviours={(0, 0, 0): Behaviour.LIAR})
GENUINE = DRAFT.bundle()
STATEMENTS = chains_of(DRAFT).statements
MAX_BYTES = 1 << 20


def seeds() -> list[bytes]:
    """Return genuine chains."""
    return [json.dumps(chains_of(DRAFT).to_json()).encode()]


def one(data: bytes) -> None:
    """Read bytes as chains, sign them as the entry and judge them."""
    try:
        document = parse_json(data, what="chains", max_bytes=MAX_BYTES)
        record = ChainsRecord.from_json(document, what="chains")
        require_same(canonical_json(record.to_json()), canonical_json(document))
        infer = replace(DRAFT.receipt.infers[0], chains=record)
        bundle = with_receipt(DRAFT, infers=(infer,)).bundle()
        verify_bundle(bundle, DEPLOYMENT.trust, now=NOW + timedelta(seconds=3))
    except SecureError:
        return
    for row, genuine in zip(record.statements, STATEMENTS, strict=True):
        for name, envelope in row.items():
            require_same(envelope, genuine[name])
