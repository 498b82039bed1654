"""plan.json."""

from __future__ import annotations

from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import SecureError
from bentoml_secure.split.plan import parse_plan
from bentoml_secure.testing.deployment import make_plan
from fuzz._same import require_same


def seeds() -> list[bytes]:
    """Return plans of one and of three segments."""
    return [canonical_json(make_plan(segments).to_json()) for segments in (1, 3)]


def one(data: bytes) -> None:
    """Read bytes as a plan."""
    try:
        plan = parse_plan(data)
    except SecureError:
        return
    again = parse_plan(canonical_json(plan.to_json()))
    require_same((again, again.digest), (plan, plan.digest))
