"""Starts of sealed and signed models that are refused, each with its reason."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bentoml_secure.keys.audit_log import Event
from bentoml_secure.serving.settings import BROKER, POLICY
from tests.harness import environment, free_port, start_http_server
from tests.service.brokers import BrokerHost, Vault
from tests.service.deployments import REPLICAS, eventually
from tests.service.test_refused_starts import ALONE, END_SECONDS, SERVE

TARGET = "services.diagnosis:Diagnosis"
RUNNER = REPLICAS[3]


def ended(
    vault: Vault,
    folder: Path,
    home: Path,
    command: Sequence[str],
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a start that must fail by itself; return what it said."""
    words = [sys.executable, "-m", *command, TARGET, *arguments]
    done = subprocess.run(
        [*words, "--host", "127.0.0.1", "--port", str(free_port())],
        cwd=folder,
        env=environment(vault.project, home, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "initialized" not in done.stdout
    return done.stdout


def test_sealed_weights_without_a_broker(vault: Vault, tmp_path: Path) -> None:
    said = ended(vault, vault.project.folder, tmp_path, SERVE)
    assert "is sealed, and no broker is configured" in said
    assert f"Set {BROKER}=URL" in said


@pytest.fixture
def altered(vault: Vault, tmp_path: Path) -> Path:
    """The sealed project, in which somebody edited plan.json."""
    folder = tmp_path / "project"
    for name in ("services", "models", "owner.pub"):
        source = vault.project.folder / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copyfile(source, folder / name)
    plan = folder / "models" / "diagnosis" / "plan.json"
    plan.write_bytes(plan.read_bytes().replace(b'"diagnosis"', b'"diagnosed"'))
    return folder


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(SERVE, ()), (ALONE, ("--service-name", RUNNER))],
    ids=["all of it", "a runner alone"],
)
def test_a_plan_that_its_signer_did_not_sign(
    vault: Vault,
    altered: Path,
    tmp_path: Path,
    command: Sequence[str],
    arguments: Sequence[str],
) -> None:
    env = {BROKER: "http://127.0.0.1:9"}
    said = ended(vault, altered, tmp_path / "home", command, arguments, env)
    assert "signed_file: got plan.json " in said


def test_a_runner_of_another_configuration_is_refused_and_told_why(
    vault: Vault, broker: BrokerHost, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    text = (vault.project.dev_root / "policy.toml").read_text()
    policy.write_text(text.replace("max_age_seconds = 300", "max_age_seconds = 299"))
    with start_http_server(
        TARGET,
        vault.project,
        tmp_path / "home",
        service_name=RUNNER,
        env={BROKER: broker.url, POLICY: str(policy)},
        ready_seconds=None,
    ) as runner:
        reason = f"runner {RUNNER}; config_digest: got sha256-jcs-v1:"
        eventually(
            lambda: reason in runner.log(), seconds=END_SECONDS, what="it is refused"
        )
    (entry, *_) = [e for e in vault.audit() if e.details.get("service") == RUNNER][-1:]
    assert entry.event is Event.REFUSED
    assert [f["field"] for f in entry.details["findings"]] == ["config_digest"]
