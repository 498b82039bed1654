"""What the attacks on drawn committees, rulings and chains have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from inspect import signature
from typing import Any

import pytest

from bentoml_secure.errors import ReceiptError
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.testing.deployment import NOW, Deployment, build_deployment
from bentoml_secure.testing.receipts import Draft
from bentoml_secure.testing.request import Request, draw_bytes

AT = NOW + timedelta(seconds=3)


def deploy(**options: Any) -> Deployment:
    """Return a deployment with referees, whose callers take their word.

    Args:
        options: Of ``build_deployment``; every other is a term of the scenario.
    """
    named = {*signature(build_deployment).parameters}
    terms = {name: options.pop(name) for name in {*options} - named}
    made = build_deployment(**{"audit_rate": 0.0, "terms": terms, **options})
    return replace(made, trust=replace(made.trust, referee=True))


def order(
    deployment: Deployment,
    segment: int = 0,
    label: str = "a request",
    weights: Mapping[str, float] | None = None,
) -> tuple[str, ...]:
    """Return a segment's replicas as a request draws them; equals by default."""
    request = Request(
        deployment=deployment,
        label=label,
        weights=weights or {},
        r=draw_bytes(label, "r", 32),
    )
    return request.order(0, segment)


def seat(name: str) -> int:
    """Return the index of a replica, as drafts know it."""
    return int(name.rpartition("Replica")[2])


def accepted(
    draft: Draft | Bundle, deployment: Deployment, trust: Trust | None = None
) -> Mapping[str, Any]:
    """Return the claims of a bundle that holds, its attachments included."""
    bundle = draft.bundle() if isinstance(draft, Draft) else draft
    verdict = verify_bundle(bundle, trust or deployment.trust, now=AT)
    assert verdict.state == "accepted"
    return verdict.claims


def rejected(
    draft: Draft | Bundle,
    deployment: Deployment,
    trust: Trust | None = None,
    now: datetime = AT,
) -> dict[str, str]:
    """Return what was found of a bundle that does not hold, and what was got."""
    bundle = draft.bundle() if isinstance(draft, Draft) else draft
    with pytest.raises(ReceiptError, match=r"rejected|cannot be read") as error:
        verify_bundle(bundle, trust or deployment.trust, now=now)
    return {finding.field: finding.got for finding in error.value.findings}
