"""What rests on the entry's word alone: every leaf of a receipt, changed and re-signed.

The entry signs whatever it likes here. A change either is found, or the leaf stands in
``ASSERTED``: the list of what a reader of a receipt takes on the entry's word.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.signing import sign
from bentoml_secure.statements import INTOTO_TYPE
from bentoml_secure.testing.deployment import build_deployment
from bentoml_secure.testing.receipts import Behaviour, build_draft

Path = tuple[str | int, ...]

ASSERTED = {
    # Bodies: only who holds the root salt can compare them.
    "subject/0/digest/hmac-sha256",
    "subject/1/digest/hmac-sha256",
    "predicate/api",
    "predicate/status",
    "predicate/salt_drawn_by",
    # Times, within bounds.
    "predicate/started_at",
    "predicate/issued_at",
    *(f"predicate/parties/{n}/nonce_issued_at" for n in range(4)),
}
# How much a vote weighs, and how far answers lie apart, takes two leaves: see below.


# Where the entry commits to no draw. Elsewhere, a caller that could use a commitment
# drew its nonce itself, and sent it sealed.
UNCOMMITTED = {"predicate/nonce_drawn_by", "predicate/first_hop"}


def leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(node, dict | list):
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in pairs:
            yield from leaves(child, (*path, key))
    else:
        yield path, node


def put(document: Any, path: Path, value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


def other(value: Any) -> Any:
    """Return another value of the same form, so that no parser stops it."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value * 1.5 if value != int(value) else value + 1
        case "caller":
            return "entry"
        case "sealed":
            return "unsealed"
        case str() if re.fullmatch(r"(.*:)?[0-9a-f]{32,}", value):
            return value[:-1] + ("0" if value[-1] != "0" else "1")
        case str() if re.match(r"\d{4}-", value):
            return value.replace(".000Z", ".001Z")
        case str() if re.search(r"_\d$", value):
            return value[:-1] + str((int(value[-1]) + 1) % 3)
        case str():
            return value + "x"
        case _:
            return 0


@pytest.mark.parametrize(
    ("committed", "asserted"), [(True, ASSERTED), (False, ASSERTED | UNCOMMITTED)]
)
def test_every_leaf_is_found_or_listed(committed: bool, asserted: set[str]) -> None:
    deployment = build_deployment(segments=1)
    draft = build_draft(
        deployment, behaviours={(0, 0, 2): Behaviour.LIAR}, committed=committed
    )
    bundle, statement = draft.bundle(), draft.receipt.to_statement()
    now = datetime.fromisoformat("2026-06-01T12:00:03Z")
    verify_bundle(bundle, deployment.trust, now=now)
    believed, count = set(), 0
    for path, value in leaves(statement):
        changed = copy.deepcopy(statement)
        put(changed, path, other(value))
        assert changed != statement, path
        count += 1
        receipt = sign(deployment.entry.signing, INTOTO_TYPE, changed)
        try:
            verify_bundle(replace(bundle, receipt=receipt), deployment.trust, now=now)
        except SecureError:
            continue
        believed.add("/".join(map(str, path)))
    assert count > 80
    assert believed == asserted


def test_a_distance_is_believed_if_the_matrix_is_symmetric() -> None:
    deployment = build_deployment(segments=1)
    draft = build_draft(deployment, behaviours={(0, 0, 2): Behaviour.LIAR})
    statement = draft.receipt.to_statement()
    distances = statement["predicate"]["infers"][0]["segments"][0]["tally"]["distances"]
    assert distances[0][1] > 0.1
    distances[0][1] = distances[1][0] = 7
    receipt = sign(deployment.entry.signing, INTOTO_TYPE, statement)
    bundle = replace(draft.bundle(), receipt=receipt)
    now = datetime.fromisoformat("2026-06-01T12:00:03Z")
    verdict = verify_bundle(bundle, deployment.trust, now=now)
    assert verdict.claims["labels"]["distances"] == "asserted by the entry"


@pytest.mark.parametrize("where", ["", "draw", "scenario", "parties/0", "infers/0"])
def test_no_object_takes_another_field(where: str) -> None:
    deployment = build_deployment(segments=1)
    draft = build_draft(deployment)
    statement = draft.receipt.to_statement()
    node: Any = statement["predicate"]
    for key in filter(None, where.split("/")):
        node = node[int(key) if key.isdigit() else key]
    node["note"] = "trust me"
    receipt = sign(deployment.entry.signing, INTOTO_TYPE, statement)
    now = datetime.fromisoformat("2026-06-01T12:00:03Z")
    with pytest.raises(SecureError, match="note"):
        verify_bundle(
            replace(draft.bundle(), receipt=receipt), deployment.trust, now=now
        )
