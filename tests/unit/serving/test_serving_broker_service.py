"""A broker as a service: its files, its start, in this process."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation.attesters import DEV_ROOT
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import ConfigurationError, SecureError
from bentoml_secure.keys.broker_store import BrokerStore
from bentoml_secure.keys.wrapping_key import create_wrapping_key
from bentoml_secure.serving import broker_service as services
from bentoml_secure.serving.broker_app import BrokerDoor
from bentoml_secure.serving.broker_service import OpenBroker, broker_service
from bentoml_secure.serving.settings import (
    BROKER_FOLDER,
    BROKER_WRAPPING_KEY,
    read_broker_settings,
)
from tests.harness import Project

PLAN = digest_json("a plan")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note hardening in place of doing it: this process is the tests'."""
    noted: list[str] = []
    harden = functools.partial(noted.append, "hardened")
    monkeypatch.setattr(services, "forbid_core_dumps", harden)
    return noted


@pytest.fixture
def folder(project: Project, tmp_path: Path) -> Path:
    """A broker's folder, as the command line makes it."""
    made = tmp_path / "broker"
    made.mkdir()
    wrapping = create_wrapping_key(made / "wrapping.key")
    now = datetime.now(UTC)
    BrokerStore.create(made / "broker.db", wrapping, now=now).close()
    policy = (project.dev_root / "policy.toml").read_text()
    top, _, simulated = policy.partition("[simulated]")
    (made / "policy.toml").write_text(
        f"""version = 1
[[models]]
plan = "{PLAN}"
roles = ["runner"]
config_digests = ["{PLAN}"]
package_digests = {{ unchecked = "tests" }}
[appraisal]
{top}
[appraisal.simulated]
{simulated}"""
    )
    return made


@pytest.fixture
def broker(
    folder: Path,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[str],
    configure: Callable[..., None],
) -> Callable[..., Any]:
    monkeypatch.setenv(DEV_ROOT, str(project.dev_root))
    monkeypatch.setenv(BROKER_FOLDER, str(folder))
    monkeypatch.delenv(BROKER_WRAPPING_KEY, raising=False)

    def make(**options: Any) -> Any:
        service = broker_service("Made", module=__name__, **options)
        configure(service)
        return service

    return make


def test_a_broker_is_a_service_with_one_door(
    broker: Callable[..., Any], steps: list[str]
) -> None:
    service = broker()
    assert service.name == "Made"
    assert service._caller_module == __name__
    assert [m[0] for m in service.middlewares] == [BrokerDoor]
    assert not service.apis
    service.inner.bsec_check()
    with pytest.raises(ConfigurationError, match="has not started"):
        service.inner.running()
    instance = service.inner()
    document = service.inner.running().responder.identity.keys.document
    assert (document.role, document.service) == (Role.BROKER, "Made")
    assert (document.plan, document.segment) == (None, None)
    assert document.config_digest == instance.opened.config_digest
    instance.bsec_stop()
    # Before the check as well: it reads the wrapping key.
    assert steps == ["hardened", "hardened"]


def test_another_policy_is_another_configuration(
    broker: Callable[..., Any], folder: Path
) -> None:
    def digest() -> str:
        opened = OpenBroker(read_broker_settings(os.environ))
        opened.store.close()
        return opened.config_digest

    before = digest()
    path = folder / "policy.toml"
    path.write_text(path.read_text().replace('["runner"]', '["prover"]'))
    assert digest() != before


def drop(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


WRONGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no policy": (drop("policy.toml"), "broker policy"),
    "an empty policy": (lambda f: (f / "policy.toml").write_text(""), "version: got"),
    "no store": (drop("broker.db"), "is not there"),
    "no wrapping key": (drop("wrapping.key"), "wrapping key"),
    "a wrapping key for all": (
        lambda f: (f / "wrapping.key").chmod(0o644),
        "want 0600",
    ),
}


@pytest.mark.parametrize(("hurt", "said"), WRONGS.values(), ids=WRONGS.keys())
def test_a_broker_that_cannot_start_says_why(
    broker: Callable[..., Any], folder: Path, hurt: Callable[[Path], Any], said: str
) -> None:
    hurt(folder)
    service = broker()
    for start in (service.inner.bsec_check, service.inner):
        with pytest.raises(SecureError, match=said):
            start()


def test_the_wrapping_key_may_lie_elsewhere(
    broker: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = folder.with_name("elsewhere.key")
    (folder / "wrapping.key").rename(elsewhere)
    monkeypatch.setenv(BROKER_WRAPPING_KEY, str(elsewhere))
    broker().inner.bsec_check()
    elsewhere.unlink()
    create_wrapping_key(elsewhere)
    with pytest.raises(ConfigurationError, match="was made with"):
        broker().inner.bsec_check()


def test_a_broker_without_a_folder(
    broker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(BROKER_FOLDER)
    with pytest.raises(ConfigurationError, match=f"{BROKER_FOLDER} is not set") as e:
        broker().inner.bsec_check()
    assert "broker init" in e.value.remedy
    monkeypatch.setenv(BROKER_FOLDER, "x")
    monkeypatch.delenv(DEV_ROOT)
    with pytest.raises(ConfigurationError, match="no attester is configured"):
        broker().inner.bsec_check()


def test_a_broker_has_one_worker(broker: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="Made workers: got 2, want 1"):
        broker(workers=2)
