"""Audits: read back as they were read, and judged as the entry could sign them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.attachments import (
    Attachment,
    issue_attachment,
    verify_attachment,
)
from bentoml_secure.receipts.audit import Audit
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.testing.audits import attach_audit, recompute_draft, require_audit
from bentoml_secure.testing.deployment import NOW, build_deployment
from bentoml_secure.testing.receipts import Behaviour, build_draft
from fuzz._same import require_same

DEPLOYMENT = build_deployment(audit_rate=1.0)
DRAFT = require_audit(build_draft(DEPLOYMENT))
KEY = DEPLOYMENT.entry.signing
GENUINE = attach_audit(DRAFT, recompute_draft(DRAFT))
STATEMENTS = [made.statement for made in recompute_draft(DRAFT)]
MAX_BYTES = 1 << 20


def _attachment(behaviour: Behaviour) -> Attachment:
    bundle = attach_audit(DRAFT, recompute_draft(DRAFT, {(0, 1): behaviour}))
    return verify_attachment(bundle.attachments[-1], KEY.public)


def seeds() -> list[bytes]:
    """Return what an audit says where all agree, and where one is absent or lies."""
    behaviours = (Behaviour.HONEST, Behaviour.ABSENT, Behaviour.LIAR)
    return [json.dumps(_attachment(b).content).encode() for b in behaviours]


def one(data: bytes) -> None:
    """Read bytes as what an audit says, and judge it under the entry's signature."""
    with suppress(SecureError):
        content = parse_json(data, what="audit", max_bytes=MAX_BYTES)
        if not isinstance(content, dict):
            return
        attachment = replace(_attachment(Behaviour.HONEST), content=content)
        audit = Audit.from_attachment(attachment)
        require_same(
            canonical_json({"infers": audit.to_json()}), canonical_json(content)
        )
        signed = issue_attachment(attachment, KEY)
        bundle = replace(GENUINE, attachments=(signed,))
        verify_bundle(bundle, DEPLOYMENT.trust, now=NOW + timedelta(seconds=4))
        for made, genuine in zip(audit.recomputed, STATEMENTS, strict=True):
            if made.statement is not None:
                require_same(made.statement, genuine)
