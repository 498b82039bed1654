"""Rounds of a receipt as the entry could sign them: judged, never believed for form.

The genuine round has a skip, an absence, a lie, commitments, and a referee that ruled.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.records import SegmentRecord
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.testing.deployment import NOW, build_deployment
from bentoml_secure.testing.receipts import Behaviour, build_draft
from bentoml_secure.testing.tampering import segments
from fuzz._same import require_same

DEPLOYMENT = build_deployment(
    segments=1,
    replicas=5,
    committee=3,
    audit_rate=0.0,
    terms={"spares": 1, "escalation": 1, "referee": True, "commit_reveal": True},
)
TRUST = replace(DEPLOYMENT.trust, referee=True)
# Whoever is drawn: one honest at most, and nobody agrees with anybody.
ACTING = (Behaviour.ABSENT, Behaviour.LIAR, Behaviour.OTHER_LIAR, Behaviour.LOST)
DRAFT = build_draft(
    DEPLOYMENT,
    behaviours={(0, 0, seat): behaviour for seat, behaviour in enumerate(ACTING)},
    weights={"DSegment0Replica0": 2.0, "DSegment0Replica4": 0.5},
)
GENUINE = DRAFT.receipt.infers[0].segments[0]
MAX_BYTES = 1 << 20


def seeds() -> list[bytes]:
    """Return a genuine round, and the same without its ruling."""
    alone = replace(GENUINE, referee=None)
    return [json.dumps(record.to_json()).encode() for record in (GENUINE, alone)]


def one(data: bytes) -> None:
    """Read bytes as a round, sign it as the entry and judge it."""
    try:
        document = parse_json(data, what="round", max_bytes=MAX_BYTES)
        record = SegmentRecord.from_json(document, what="round")
        require_same(canonical_json(record.to_json()), canonical_json(document))
        bundle = segments(DRAFT, record).bundle()
        verify_bundle(bundle, TRUST, now=NOW + timedelta(seconds=3))
    except SecureError:
        return
    for name, envelope in record.statements.items():
        require_same(envelope, GENUINE.statements[name])
