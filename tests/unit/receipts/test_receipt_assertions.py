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
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.scenario import Mode
from bentoml_secure.signing import sign, verify
from bentoml_secure.statements import INTOTO_TYPE
from bentoml_secure.testing.deployment import Deployment, build_deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import with_record
from tests.unit.receipts.judging import AT, deploy, order, seat

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


RECORD = "predicate/infers/0/segments/0"
RULED = ASSERTED | {
    # Six runners have evidence, and the referee has.
    *(f"predicate/parties/{n}/nonce_issued_at" for n in range(7)),
    f"{RECORD}/skips/0/reason",
    f"{RECORD}/tally/absent/0/reason",
    # Beyond equal commitments.
    f"{RECORD}/referee/distances/{{liar}}",
    # Whether commitments came before answers.
    f"{RECORD}/commitments/{{liar}}/blind",
    f"{RECORD}/commitments/{{honest}}/blind",
}
CHAINED = ASSERTED | {f"predicate/parties/{n}/nonce_issued_at" for n in range(7)}


def unmoved(deployment: Deployment, segment: int = 0) -> set[str]:
    """Return the replicas whose weight, twice as much, leaves the order as it is."""
    equals = order(deployment, segment)
    names = {runner.name for runner in deployment.runners[segment]}
    return {
        name
        for name in names
        if order(deployment, segment, weights={name: 2.0}) == equals
    }


def believed(draft: Draft, trust: Trust) -> set[str]:
    """Return the leaves that an entry may change and sign, and nobody finds it."""
    bundle, statement = draft.bundle(), draft.receipt.to_statement()
    verify_bundle(bundle, trust, now=AT)
    taken = set()
    for path, value in leaves(statement):
        changed = copy.deepcopy(statement)
        put(changed, path, other(value))
        assert changed != statement, path
        receipt = sign(draft.deployment.entry.signing, INTOTO_TYPE, changed)
        try:
            verify_bundle(replace(bundle, receipt=receipt), trust, now=AT)
        except SecureError:
            continue
        taken.add("/".join(map(str, path)))
    return taken


def test_every_leaf_of_a_ruling_is_found_or_listed() -> None:
    """With a skip, an absence, a spare that was not used, commitments and weights."""
    deployment = deploy(
        segments=1, replicas=5, committee=3, spares=1, referee=True, commit_reveal=True
    )
    skipped, liar, gone, honest, last = order(deployment)
    acting = {
        (0, 0, seat(skipped)): Behaviour.ABSENT,
        (0, 0, seat(liar)): Behaviour.LIAR,
        (0, 0, seat(gone)): Behaviour.ABSENT,
    }
    draft = build_draft(deployment, behaviours=acting)
    draft = with_record(draft, 0, unused=(last,))
    asserted = {path.format(liar=liar, honest=honest) for path in RULED}
    # Who has a seat has its weight in the tally as well.
    weighed = unmoved(deployment) - {liar, gone, honest}
    asserted |= {f"{RECORD}/weights/{name}" for name in weighed}
    assert believed(draft, deployment.trust) == asserted


def test_every_leaf_of_chains_is_found_or_listed() -> None:
    deployment = deploy(mode=Mode.END_TO_END)
    liar = {(0, 0, seat(order(deployment)[0])): Behaviour.LIAR}
    draft = build_draft(deployment, behaviours=liar)
    # Chains weigh as their least replica does.
    weighed = {
        f"predicate/infers/0/chains/weights/{segment}/{name}"
        for segment in (0, 1)
        for name in unmoved(deployment, segment)
    }
    assert believed(draft, deployment.trust) == CHAINED | weighed


def test_every_leaf_of_a_localisation_is_found_or_listed() -> None:
    deployment = deploy(mode=Mode.END_TO_END, referee=True)
    liar = {(0, 0, seat(order(deployment)[0])): Behaviour.LIAR}
    draft = build_draft(deployment, behaviours=liar)
    bundle, key = draft.bundle(), deployment.entry.signing
    signed = verify(bundle.attachments[0], key.public, payload_type=INTOTO_TYPE)
    taken = set()
    for path, value in leaves(signed):
        changed: Any = copy.deepcopy(signed)
        put(changed, path, other(value))
        attachments = (sign(key, INTOTO_TYPE, changed),)
        try:
            verify_bundle(
                replace(bundle, attachments=attachments), deployment.trust, now=AT
            )
        except SecureError:
            continue
        taken.add("/".join(map(str, path)))
    assert taken == {
        "predicate/issued_at",
        "predicate/chains/0/segments/0/distance",
    }


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
