"""docs/attestation.md: its policy is one; it has all kinds and variables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.attestation.attesters import ATTESTERS, GPU_ATTESTERS
from bentoml_secure.attestation.tees import TEES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "attestation.md").read_text()
POLICY = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
DIGITS = {"<96 hex>": "0" * 96, "<64 hex>": "0" * 64, "<hex>": "0" * 64}


def filled(text: str) -> str:
    for placeholder, digits in DIGITS.items():
        text = text.replace(placeholder, digits)
    # Measurements of GPUs and realms have other lengths than digests.
    return text.replace('allow = ["<id>"]', 'allow = ["id"]')


def test_the_policy_is_one() -> None:
    policy = parse_policy(filled(POLICY).encode())
    assert set(policy.kinds) == set(TEES) - {"simulated"}


@pytest.mark.parametrize("kind", sorted(set(TEES) - {"simulated"}))
def test_each_table_stands_alone(kind: str) -> None:
    tables = re.split(r"(?m)^(?=\[)", filled(POLICY))
    (table,) = [one for one in tables if one.startswith(f"[{kind}]")]
    head = f'version = 1\nmax_age_seconds = 300\nallow = ["{kind}"]\n'
    policy = parse_policy((head + table).encode())
    assert policy.allow == (kind,)
    assert type(policy).from_table(policy.to_json()) == policy


def test_every_kind_is_described() -> None:
    rows = set(re.findall(r"(?m)^\| `([a-z0-9-]+)` \|", PAGE))
    assert rows >= TEES.keys()


def test_every_attester_is_named() -> None:
    named = set(re.findall(r"`([a-z-]+)`", PAGE))
    assert named >= ATTESTERS.keys() | GPU_ATTESTERS.keys()


def test_every_variable_is_named() -> None:
    sources = (ROOT / "bentoml_secure" / "attestation" / "attesters").glob("*.py")
    text = "".join(path.read_text() for path in sources)
    variables = set(re.findall(r'= "(BENTOML_SECURE_[A-Z_]+)"', text))
    variables -= {"BENTOML_SECURE_SERVICE"}
    assert variables
    for variable in variables:
        tail = variable.removeprefix("BENTOML_SECURE")
        assert variable in PAGE or f"...{tail}" in PAGE, variable
