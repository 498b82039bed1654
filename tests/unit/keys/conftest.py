"""A plan on disk, and its sealed form, for the whole room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from bentoml_secure.digest import canonical_json
from bentoml_secure.keys.key_file import PlanKeys
from bentoml_secure.keys.seal_model import seal_plan
from bentoml_secure.split.plan import Plan
from bentoml_secure.testing.deployment import make_plan


def write_plan(folder: Path, plan: Plan) -> Path:
    """Write a plan of ``make_plan``: each of its files holds its own name."""
    folder.mkdir()
    (folder / "plan.json").write_bytes(canonical_json(plan.to_json()))
    for segment in plan.segments:
        for entry in segment.files:
            (folder / entry.path).write_bytes(entry.path.encode())
    return folder


@pytest.fixture(scope="session")
def plan() -> Plan:
    return make_plan(2)


@pytest.fixture
def plain(tmp_path: Path, plan: Plan) -> Path:
    return write_plan(tmp_path / "plain", plan)


@dataclass(frozen=True)
class Sealed:
    folder: Path
    plan: Plan
    keys: PlanKeys


@pytest.fixture
def sealed(tmp_path: Path, plain: Path) -> Sealed:
    folder = tmp_path / "sealed"
    plan, keys = seal_plan(plain, folder)
    return Sealed(folder, plan, keys)


@dataclass(frozen=True)
class Signer:
    """A model owner's key, in memory and as a file."""

    key: ec.EllipticCurvePrivateKey
    path: Path


def make_signer(path: Path, curve: ec.EllipticCurve | None = None) -> Signer:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return Signer(key, path)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return make_signer(tmp_path / "signer.pem")
