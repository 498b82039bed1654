"""One development root, one attester and a key document for the whole room."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bentoml_secure.attestation.appraisal import AppraisalPolicy, parse_policy
from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.attestation.key_document import KeyDocument, Role
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.digest import digest_json


@pytest.fixture(scope="session")
def now() -> datetime:
    """The time of every test: fixed."""
    return datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def dev_root(tmp_path_factory: pytest.TempPathFactory, now: datetime) -> Path:
    folder = tmp_path_factory.mktemp("attestation") / "root"
    create_dev_root(folder, now=now - timedelta(days=10))
    return folder


@pytest.fixture(scope="session")
def attester(dev_root: Path, now: datetime) -> SimulatedAttester:
    return SimulatedAttester.from_folder(
        dev_root, clock=lambda: now, platform_id="host-a", measurement="ab" * 32
    )


@pytest.fixture(scope="session")
def policy(dev_root: Path) -> AppraisalPolicy:
    return parse_policy((dev_root / "policy.toml").read_bytes())


@pytest.fixture(scope="session")
def make_document(now: datetime) -> Callable[..., KeyDocument]:
    """Make a runner's key document; keywords replace fields."""

    def make(**fields: object) -> KeyDocument:
        document = {
            "version": 1,
            "role": Role.RUNNER,
            "service": "diagnosis-runner-0",
            "segment": digest_json("segment"),
            "plan": digest_json("plan"),
            "package": digest_json("package"),
            "config_digest": digest_json("configuration"),
            "hpke": {},
            "ed25519": "11" * 32,
            "platform": "simulated",
            "boot_id": "22" * 16,
            "not_after": "2026-03-02T12:00:00Z",
        }
        return KeyDocument.from_json({**document, **fields})

    return make


@pytest.fixture(scope="session")
def document(make_document: Callable[..., KeyDocument]) -> KeyDocument:
    return make_document()


@pytest.fixture(scope="session")
def make_root(now: datetime) -> Callable[[Path], Path]:
    """Make a development root in a folder and return the folder."""

    def make(folder: Path) -> Path:
        create_dev_root(folder, now=now)
        return folder

    return make
