"""A deployment of which every byte is seen: entry, two runners, a wire to each."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bentoml_secure import SecureClient
from tests.harness import Project, free_port, wait_until_ready
from tests.service.deployments import each_alone
from tests.service.recording import Wire

HERE = Path(__file__).parent
TARGET = "wired:Wired"
ENTRY = "Wired"
RUNNERS = tuple(f"{ENTRY}Segment{segment}Replica0" for segment in range(2))
SEALED, UNSEALED = "closed", "open"
"""Scenarios, by what they say of tensors between entry and runners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wired:
    """A running deployment and the wires to its processes.

    Attributes:
        project: Whose plan it serves.
        trust: Trust file that accepts it.
        entry: The wire from clients to the entry.
        runners: The wires from the entry to its runners by name.
        direct: URL of the entry itself.
    """

    project: Project
    trust: Path
    entry: Wire
    runners: Mapping[str, Wire]
    direct: str

    @property
    def depends(self) -> dict[str, str]:
        """URLs of the runners, by their wires."""
        return {name: wire.url for name, wire in self.runners.items()}

    def client(
        self, scenario: str = SEALED, url: str | None = None, **settings: Any
    ) -> SecureClient:
        """Return a client that believes this deployment only."""
        return SecureClient(
            url or self.entry.url, self.trust, scenario=scenario, **settings
        )

    def http(self, scenario: str) -> httpx.Client:
        """Return a client that seals nothing and judges nothing."""
        return httpx.Client(
            base_url=self.entry.url, headers={"bsec-scenario": scenario}, timeout=30
        )

    def inside(self) -> list[bytes]:
        """Return what went by between the entry and its runners."""
        return [data for wire in self.runners.values() for data in wire.streams()]

    def forget(self) -> None:
        """Keep only what goes by from now on."""
        for wire in (self.entry, *self.runners.values()):
            wire.forget()


@contextlib.contextmanager
def wired_up(project: Project, home: Path) -> Iterator[Wired]:
    """Start a deployment with a wire in front of each of its processes."""
    project.add(HERE / "wired.py")
    shutil.copyfile(HERE / "wired.toml", project.folder / "wired.toml")
    ports = {name: free_port() for name in (ENTRY, *RUNNERS)}
    with contextlib.ExitStack() as stack:
        wires = {n: stack.enter_context(Wire(port)) for n, port in ports.items()}
        hosts: dict[str, dict[str, Any]] = {n: {"port": ports[n]} for n in ports}
        hosts[ENTRY]["depends"] = {name: wires[name].url for name in RUNNERS}
        alone = each_alone(project, home, hosts, target=TARGET)
        running = stack.enter_context(alone)
        wait_until_ready(running[ENTRY])
        yield Wired(
            project=project,
            trust=trust_of(project),
            entry=wires[ENTRY],
            runners={name: wires[name] for name in RUNNERS},
            direct=running[ENTRY].url,
        )


def trust_of(project: Project) -> Path:
    """Write the trust file of such a deployment."""
    return project.trust(service=ENTRY, replicas=1, scenarios="wired.toml")
