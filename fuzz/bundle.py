"""Bundles: parsed, judged, and never accepted unless they say what was signed."""

from __future__ import annotations

import json
from datetime import timedelta

from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.testing.deployment import NOW, build_deployment
from bentoml_secure.testing.receipts import Behaviour, build_draft
from fuzz._same import require_same

DEPLOYMENT = build_deployment(segments=1)
LATE = {(0, 0, 2): Behaviour.LATE}
GENUINE = build_draft(DEPLOYMENT, behaviours=LATE).bundle()


def seeds() -> list[bytes]:
    """Return a genuine bundle."""
    return [json.dumps(GENUINE.to_json()).encode()]


def one(data: bytes) -> None:
    """Read bytes as a bundle and judge it."""
    try:
        bundle = parse_bundle(data)
        verify_bundle(bundle, DEPLOYMENT.trust, now=NOW + timedelta(seconds=3))
    except SecureError:
        return
    require_same(bundle.receipt, GENUINE.receipt)
