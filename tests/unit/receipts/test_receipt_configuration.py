"""Attacks on the configuration in a bundle: who the replicas are is read from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.digest import canonical_json, digest_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.bundle import Bundle, parse_bundle
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Draft, build_draft
from bentoml_secure.testing.tampering import with_receipt
from tests.unit.receipts.judging import accepted, deploy, rejected


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    return deploy(replicas=5, committee=3)


def shown(draft: Draft, **changes: Any) -> Bundle:
    """Show another configuration, and leave the receipt."""
    bundle = draft.bundle()
    return replace(bundle, configuration={**bundle.configuration, **changes})


def signed(draft: Draft, **changes: Any) -> Bundle:
    """Show another configuration, in a receipt that names it."""
    configuration = shown(draft, **changes).configuration
    named = with_receipt(draft, config_digest=digest_json(configuration))
    return replace(named.bundle(), configuration=configuration)


def topology(**changes: Any) -> dict[str, Any]:
    table = {"segments": 2, "replicas": 5, "referees": True, **changes}
    return {"topology": table}


def without_topology(draft: Draft) -> Bundle:
    configuration = dict(draft.bundle().configuration)
    del configuration["topology"]
    named = with_receipt(draft, config_digest=digest_json(configuration))
    return replace(named.bundle(), configuration=configuration)


def unlisted_scenario(draft: Draft) -> Bundle:
    other = {**draft.bundle().scenario.to_json(), "name": "lax"}
    return signed(draft, scenarios=[other])


Attack = Callable[[Draft], Bundle]
ATTACKS: list[tuple[str, Attack, str]] = [
    ("another shown", lambda d: shown(d, version=2), "config_digest"),
    ("fewer shown", lambda d: shown(d, **topology(replicas=3)), "config_digest"),
    ("fewer", lambda d: signed(d, **topology(replicas=3)), "config_digest"),
    (
        "fewer candidates",
        lambda d: signed(d, **topology(replicas=3)),
        "infer 0 segment 0 candidates",
    ),
    (
        "not what runners hold",
        lambda d: signed(d, **topology(replicas=3)),
        "party DSegment0Replica0 config_digest",
    ),
    (
        "more segments",
        lambda d: signed(d, **topology(segments=3)),
        "configuration segments",
    ),
    ("none", without_topology, "configuration"),
    ("none at all", lambda d: signed(d, topology=[]), "configuration"),
    ("nobody", lambda d: signed(d, **topology(replicas=0)), "configuration"),
    ("too many", lambda d: signed(d, **topology(replicas=65)), "configuration"),
    ("true", lambda d: signed(d, **topology(segments=True)), "configuration"),
    ("referees", lambda d: signed(d, **topology(referees=1)), "configuration"),
    ("no service", lambda d: signed(d, service=""), "configuration"),
    ("another service", lambda d: signed(d, service="E"), "configuration service"),
    ("another scenario", unlisted_scenario, "scenario"),
    ("no scenarios", lambda d: signed(d, scenarios="general"), "scenario"),
]


@pytest.mark.parametrize(
    ("attack", "finding"), [case[1:] for case in ATTACKS], ids=[c[0] for c in ATTACKS]
)
def test_attack_is_named(attack: Attack, finding: str, deployment: Deployment) -> None:
    draft = build_draft(deployment)
    accepted(draft, deployment)
    assert finding in rejected(attack(draft), deployment)


def test_a_configuration_is_an_object(deployment: Deployment) -> None:
    document = build_draft(deployment).bundle().to_json()
    others: list[Any] = [[], None, "x", 1]
    for other in others:
        document["configuration"] = other
        with pytest.raises(MalformedInputError, match="configuration: want an object"):
            parse_bundle(canonical_json(document))
