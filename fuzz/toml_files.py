"""TOML that operators and callers write: scenarios, policies, trust files."""

from __future__ import annotations

from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.toml import write_toml
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.scenario import parse_scenarios
from bentoml_secure.testing.deployment import build_deployment


def seeds() -> list[bytes]:
    """Return a file of each."""
    deployment = build_deployment(segments=1)
    fields = deployment.scenario.to_json()
    table = {fields.pop("name"): fields}
    scenarios = {"version": 1, "minimum": "general", **table}
    texts = [write_toml(scenarios), write_toml(deployment.policy.to_json())]
    return [text.encode() for text in (*texts, deployment.trust_file)]


def one(data: bytes) -> None:
    """Read bytes as each."""
    for parse in (parse_scenarios, parse_policy, parse_trust):
        try:
            parse(data)
        except SecureError:
            continue
