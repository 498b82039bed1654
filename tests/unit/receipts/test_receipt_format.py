from __future__ import annotations

import base64
import json
import random
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature

from bentoml_secure.digest import canonical_json
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.testing import worked_example
from bentoml_secure.testing.deployment import build_deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import with_record, with_tally

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def recorded() -> bytes:
    return (DOCS / worked_example.BUNDLE).read_bytes()


@pytest.fixture(scope="module")
def example(recorded: bytes) -> Draft:
    return worked_example.draft(parse_bundle(recorded))


@pytest.fixture(scope="module")
def page() -> str:
    return (DOCS / worked_example.PAGE).read_text()


@pytest.fixture(scope="module")
def verifier(page: str) -> dict[str, Any]:
    """The verifier that stands on the page: it imports nothing of this package."""
    match = re.search(r"<!-- verifier -->\n```python\n(.*?)```\n", page, re.DOTALL)
    assert match is not None
    assert "import bentoml" not in match[1]
    names: dict[str, Any] = {}
    exec(match[1], names)  # noqa: S102 - our own page
    return names


def test_the_bundle_is_recomputed_byte_for_byte(
    recorded: bytes, example: Draft
) -> None:
    assert canonical_json(example.bundle().to_json()) + b"\n" == recorded


def test_the_page_shows_what_is_recomputed(page: str, example: Draft) -> None:
    shown = {m[2]: m[3] for m in worked_example.BLOCK.finditer(page)}
    assert shown == worked_example.blocks(example)


def test_the_example_verifies(recorded: bytes) -> None:
    trust = parse_trust((DOCS / worked_example.TRUST).read_bytes())
    now = datetime(2030, 1, 1, tzinfo=UTC)
    verdict = verify_bundle(parse_bundle(recorded), trust, now=now)
    assert verdict.state is State.ACCEPTED
    assert [d["replica"] for d in verdict.claims["dissenters"]] == ["DSegment0Replica2"]
    assert [s["replica"] for s in verdict.claims["skipped"]] == ["DSegment0Replica0"]


def test_the_verifier_on_the_page_agrees(
    recorded: bytes, example: Draft, verifier: dict[str, Any]
) -> None:
    x = x_of(example)
    verified = verifier["verify"](json.loads(recorded), example.salt, x)
    assert verified == example.receipt.receipt_id


def test_the_verifier_on_the_page_can_fail(
    recorded: bytes, example: Draft, verifier: dict[str, Any]
) -> None:
    x = x_of(example)
    with pytest.raises(AssertionError, match=r"hmac-sha256|^$"):
        verifier["verify"](json.loads(recorded), example.salt, [x[0] + 1, *x[1:]])
    bundle = json.loads(recorded)
    payload = base64.b64decode(bundle["receipt"]["payload"])
    payload = payload.replace(b'"status":200', b'"status":500')
    bundle["receipt"]["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(InvalidSignature, match=r"^$"):
        verifier["verify"](bundle, example.salt, x)


def x_of(draft: Draft) -> list[float]:
    values: list[float] = draft.inputs["x"].reshape(-1).tolist()
    return values


@pytest.mark.parametrize("label", [*"abcdefgh"])
def test_the_verifier_on_the_page_draws_and_seats_alike(
    label: str, verifier: dict[str, Any]
) -> None:
    """Seven replicas of any weight, any of which may be out."""
    chance = random.Random(label)
    deployment = build_deployment(
        replicas=7, committee=3, terms={"spares": 2, "escalation": 1}
    )
    names = [runner.name for runner in deployment.runners[0]]
    draft = build_draft(
        deployment,
        label=label,
        weights={name: chance.choice([0.01, 0.5, 1.0, 2.0]) for name in names},
        behaviours={(0, 0, chance.randrange(7)): Behaviour.ABSENT for _ in range(2)},
    )
    bundle = draft.bundle()
    verify_bundle(bundle, deployment.trust, now=deployment.now + timedelta(seconds=3))
    assert verifier["verify"](bundle.to_json(), draft.salt, x_of(draft))


def forged(example: Draft) -> dict[str, Draft]:
    """Return what an entry could sign in place of the example."""
    record = example.receipt.infers[0].segments[0]
    seats = record.tally.committee
    heaviest = replace(seats[0], weight=2.0)
    order = (*record.weights,)[::-1]
    return {
        "skip hidden": with_record(example, 0, skips=()),
        "skip too many": with_record(example, 0, skips=record.skips * 2),
        "another order": with_tally(example, 0, committee=seats[::-1]),
        "not lowered": with_tally(example, 0, committee=(heaviest, *seats[1:])),
        "other weights": with_record(
            example, 0, weights={**record.weights, seats[0].replica: 0.01}
        ),
        "one left out": with_record(
            example, 0, weights={m.replica: m.weight for m in seats}
        ),
        "quorum": with_tally(example, 0, quorum=1),
        "chosen": build_draft(
            example.deployment,
            label="worked example",
            weights=worked_example.WEIGHTS,
            orders={(0, 0): order},
        ),
    }


FORGED = (
    "skip hidden",
    "skip too many",
    "another order",
    "not lowered",
    "other weights",
    "one left out",
    "quorum",
    "chosen",
)


@pytest.mark.parametrize("name", FORGED)
def test_the_verifier_on_the_page_finds_a_committee_that_was_not_drawn(
    name: str, example: Draft, verifier: dict[str, Any]
) -> None:
    document = forged(example)[name].bundle(attach=False).to_json()
    with pytest.raises(AssertionError) as found:
        verifier["verify"](document, example.salt, x_of(example))
    functions = {entry.name for entry in found.traceback}
    assert functions & {"judge_committee", "seated"}
