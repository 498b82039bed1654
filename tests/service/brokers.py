"""A model's owner, its broker as a process, and who asks it: for tests of releases."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bentoml_secure.attestation.key_document import Role, package_digest
from bentoml_secure.cli import main as cli
from bentoml_secure.digest import Digest
from bentoml_secure.keys.audit_log import AuditEntry
from bentoml_secure.keys.broker_policy import parse_broker_policy
from bentoml_secure.keys.broker_store import BrokerStore, Revoked
from bentoml_secure.keys.key_file import PlanKeys, read_keys
from bentoml_secure.keys.release import RELEASE_PATH
from bentoml_secure.keys.release_messages import OPERATION, ReleaseRequest
from bentoml_secure.keys.seal_model import seal_plan
from bentoml_secure.keys.wrapping_key import read_wrapping_key
from bentoml_secure.receipts.toml import write_toml
from bentoml_secure.session.bodies import SealedCall
from bentoml_secure.session.keys import Session
from bentoml_secure.split import load_plan, split_onnx
from bentoml_secure.split.plan import Plan
from bentoml_secure.statements import utc_now
from tests.attacks.raiders import Opened, Raider, ask
from tests.harness import (
    Project,
    Served,
    environment,
    free_port,
    make_project,
    running,
)

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "sealed-models.md"
TARGET = "services.broker:Broker"
BROKER_FOLDER = "BENTOML_SECURE_BROKER_FOLDER"


def shown(containing: str) -> str:
    """Return the commands of the page's only block that has these words."""
    blocks = re.findall(
        r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    (found,) = (text for kind, text in blocks if not kind and containing in text)
    return str(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vault:
    """What the owner of a model keeps, and the project that serves it sealed.

    Attributes:
        folder: The owner's: the plain model and plan, keys, the broker's folder.
        project: Serves; nothing in its folder is plaintext.
        keys: Of the sealed plan's segments.
        retired: Keys of another plan that the broker has; nobody serves it.
    """

    folder: Path
    project: Project
    keys: PlanKeys
    retired: PlanKeys

    @property
    def broker_folder(self) -> Path:
        """Of the broker's store, policy and wrapping key."""
        return self.folder / "broker"

    @property
    def plain_plan(self) -> Path:
        """The plan's folder before it was sealed."""
        return self.folder / "plan"

    @property
    def plan(self) -> Plan:
        """The plan: plain and sealed have the same."""
        return load_plan(self.plain_plan)

    @property
    def config_digest(self) -> Digest:
        """The only configuration that gets keys."""
        policy = parse_broker_policy((self.broker_folder / "policy.toml").read_bytes())
        (digest,) = policy.models[self.plan.digest].config_digests
        return Digest(digest)

    def run(self, commands: str) -> None:
        """Run commands in the owner's folder, with this installation's programs."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(
            ["bash", "-euc", commands],
            cwd=self.folder,
            env={**environment(self.project, self.folder), "PATH": path},
            check=True,
            timeout=120,
            stdout=subprocess.PIPE,
        )

    def request(self, index: int, keys: PlanKeys | None = None) -> ReleaseRequest:
        """Return what the runner of a segment asks; of the served plan, or another."""
        segment, key = (keys or self.keys).keys[index]
        return ReleaseRequest(segment=segment, key_id=key.key_id)

    def audit(self) -> list[AuditEntry]:
        """Return the broker's log, verified."""
        with contextlib.closing(BrokerStore(self.broker_folder / "broker.db")) as store:
            return store.audit()

    def revoke(self, kind: Revoked, value: str) -> None:
        """Revoke as the owner does, beside the running broker."""
        store = str(self.broker_folder / "broker.db")
        arguments = ["broker", "revoke", store, kind.value, value, "--reason", "tests"]
        cli.main(arguments, standalone_mode=False)

    def raider(self, index: int = 0, **changes: Any) -> Raider:
        """Return an attested runner of a segment, which may show something else."""
        wanted = {
            "role": Role.RUNNER,
            "service": f"Raider{index}",
            "segment": self.plan.segments[index].identity,
            "config_digest": self.config_digest,
            "plan": self.plan.digest,
        }
        return Raider.of(self.project, **{**wanted, **changes})


def pinned(policy: str) -> str:
    """Return a development root's policy, for this package's measurement only."""
    measurement = package_digest().partition(":")[2]
    text, count = re.subn(
        "^measurement = .*$", f'measurement = ["{measurement}"]', policy, flags=re.M
    )
    assert count == 1
    return text


def make_vault(folder: Path) -> Vault:
    """Make a model, its signed and sealed plan, and a broker's folder.

    The commands are those of the page. The service is ``sealed.py``; the plain model
    and plan lie outside the project.
    """
    project = make_project(folder / "project")
    owner = folder / "owner"
    owner.mkdir()
    shutil.move(project.model, owner / "diagnosis.onnx")
    shutil.move(project.plan, owner / "plan")
    shutil.copytree(project.folder / "services", owner / "services")
    policy = pinned((project.dev_root / "policy.toml").read_text())
    for place in (project.dev_root, owner):
        (place / "policy.toml").write_text(policy)
    project = Project(
        folder=project.folder,
        model=owner / "diagnosis.onnx",
        plan=project.plan,
        dev_root=project.dev_root,
    )
    none = PlanKeys(plan=Digest(""), keys=())
    vault = Vault(folder=owner, project=project, keys=none, retired=none)
    before, shred = shown("sign-model").split("shred ")
    vault.run(before)
    keys = read_keys(owner / "plan.keys")
    vault.run(f"shred {shred}")
    shutil.copytree(owner / "sealed-plan", project.plan)
    shutil.copyfile(owner / "owner.pub", project.folder / "owner.pub")
    project.add(HERE / "sealed.py", "services/diagnosis")
    return replace(vault, keys=keys, retired=_retired(vault))


def _retired(vault: Vault) -> PlanKeys:
    """Give the broker another plan's keys, for the same configurations."""
    owner = vault.folder
    split_onnx(vault.project.model, owner / "retired", segments=3)
    plan, keys = seal_plan(owner / "retired", owner / "sealed-retired")
    wrapping = read_wrapping_key(vault.broker_folder / "wrapping.key")
    with contextlib.closing(BrokerStore(vault.broker_folder / "broker.db")) as store:
        store.add_keys(keys, wrapping, now=utc_now())
    path = vault.broker_folder / "policy.toml"
    policy = tomllib.loads(path.read_text())
    (model,) = policy["models"]
    policy["models"].append({**model, "plan": plan.digest})
    path.write_text(write_toml(policy))
    return keys


@dataclass(slots=True)
class BrokerHost:
    """The broker's process, which a test may end and start again.

    Attributes:
        vault: Whose keys it releases.
        url: Where it answers, or will.
        env: Further variables.
    """

    vault: Vault
    url: str = field(default_factory=lambda: f"http://127.0.0.1:{free_port()}")
    env: Mapping[str, str] = field(default_factory=dict)
    _running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    served: Served | None = None

    def start(self) -> None:
        """Start it, as the page shows, and wait until it is ready."""
        (command,) = shown("services.broker:Broker").splitlines()
        setting, *words = command.split()
        name, _, folder = setting.partition("=")
        assert name == BROKER_FOLDER
        assert words[0] == "bentoml"
        words[words.index("--port") + 1] = self.url.rpartition(":")[2]
        self.served = self._running.enter_context(
            running(
                [sys.executable, "-m", *words, "--host", "127.0.0.1"],
                self.vault.project,
                url=self.url,
                home=self.vault.folder / "home-broker",
                env={name: str(self.vault.folder / folder), **self.env},
            )
        )

    def stop(self) -> None:
        """End it."""
        self._running.close()
        self.served = None

    def log(self) -> str:
        """Return what its processes have written."""
        return (self.vault.folder / "home-broker" / "log").read_text(errors="replace")

    def session(self, raider: Raider) -> Session:
        """Open a session with it."""
        return raider.session(self.url)

    def ask(self, raider: Raider, request: ReleaseRequest) -> Opened:
        """Ask for a key, in a session of its own."""
        call = SealedCall.begin(self.session(raider), OPERATION)
        return ask(self.url, call, request.to_bytes(), RELEASE_PATH)


@contextlib.contextmanager
def broker_of(vault: Vault) -> Iterator[BrokerHost]:
    """Run a vault's broker until the context ends."""
    host = BrokerHost(vault)
    try:
        host.start()
        yield host
    finally:
        host.stop()
