from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature

from bentoml_secure.digest import canonical_json
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.testing import worked_example
from bentoml_secure.testing.receipts import Draft

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
    assert [d["replica"] for d in verdict.claims["dissenters"]] == ["DSegment0Replica1"]


def test_the_verifier_on_the_page_agrees(
    recorded: bytes, example: Draft, verifier: dict[str, Any]
) -> None:
    x = example.inputs["x"].reshape(-1).tolist()
    verified = verifier["verify"](json.loads(recorded), example.salt, x)
    assert verified == example.receipt.receipt_id


def test_the_verifier_on_the_page_can_fail(
    recorded: bytes, example: Draft, verifier: dict[str, Any]
) -> None:
    x = example.inputs["x"].reshape(-1).tolist()
    with pytest.raises(AssertionError, match=r"hmac-sha256|^$"):
        verifier["verify"](json.loads(recorded), example.salt, [x[0] + 1, *x[1:]])
    bundle = json.loads(recorded)
    payload = base64.b64decode(bundle["receipt"]["payload"])
    payload = payload.replace(b'"status":200', b'"status":500')
    bundle["receipt"]["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(InvalidSignature, match=r"^$"):
        verifier["verify"](bundle, example.salt, x)
