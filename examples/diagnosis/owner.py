"""The model's owner: seals the model, keeps its keys at a broker, reads its log.

Owner and host are two parties; in this demo two folders of one machine. What the host
of the replicas gets is the sealed plan and the address of the broker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from examples.diagnosis.asking import Asked
from examples.diagnosis.commands import command, say, verdict_of
from examples.diagnosis.processes import Served, serve

TARGET = "services.broker:Broker"
REASON = "withdrawn by its operator"
REFUSAL_SECONDS = 60.0
WINDOW_BYTES = 64

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The owner's files.

    Attributes:
        folder: Of all of them.
        deployment: What `broker policy` and `trust` take beside the plan.
    """

    folder: Path
    deployment: tuple[str, ...]

    @property
    def plan(self) -> Path:
        """The plan in plain. It stays here."""
        return self.folder / "plan"

    @property
    def broker(self) -> Path:
        """The broker's folder."""
        return self.folder / "broker"

    @property
    def store(self) -> Path:
        """The broker's keys and log."""
        return self.broker / "broker.db"

    def seal(self, model: Path, sealed: Path) -> None:
        """Split and seal the model, and make a broker that has its keys.

        Args:
            model: ONNX.
            sealed: New folder of the sealed plan: all that leaves the owner.
        """
        keys, wrapping = self.folder / "plan.keys", self.broker / "wrapping.key"
        command("split", model, "--segments", "2", "--out", self.plan)
        command("seal-model", self.plan, "--out", sealed, "--keys", keys)
        self.broker.mkdir(mode=0o700)
        command("broker", "init", self.store, "--wrapping-key", wrapping)
        words = ["broker", "add-keys", str(self.store), str(keys)]
        command(*words, "--wrapping-key", wrapping)
        keys.unlink()
        policy = self.broker / "policy.toml"
        command("broker", "policy", sealed, *self.deployment, "--out", policy)

    @contextmanager
    def serve_broker(self, environment: Mapping[str, str]) -> Iterator[Served]:
        """Run the broker until the context ends.

        Args:
            environment: Says what it attests itself with.
        """
        own = {
            "BENTOML_HOME": str((self.folder / "home").resolve()),
            "BENTOML_SECURE_BROKER_FOLDER": str(self.broker.resolve()),
        }
        log = self.folder / "broker.log"
        with serve(
            TARGET, project=Path.cwd(), environment={**environment, **own}, log=log
        ) as served:
            yield served

    def audit(self, head: str | None = None) -> tuple[Entry, ...]:
        """Return the broker's log, verified to be one chain.

        Args:
            head: Digest of an entry, noted earlier, that must still be in it.
        """
        noted = [] if head is None else ["--head", head]
        verdict = verdict_of("broker", "audit", self.store, *noted)
        return tuple(verdict["entries"])


@dataclass(slots=True, kw_only=True)
class Withdrawal:
    """A machine is withdrawn: its replica is started anew and gets no key any more.

    Attributes:
        owner: Who withdraws it.
        victim: Name of the replica's service.
        refusal: The log's entry, once there is one.
        after: A request that was asked then.
    """

    owner: Owner
    victim: str
    refusal: Entry | None = None
    after: Asked | None = None

    def act(self, served: Served, asked: Sequence[Asked]) -> None:
        """Revoke the replica's platform, restart its process, wait for the refusal.

        Args:
            served: The deployment.
            asked: Its receipts say what platform that is.

        Raises:
            RuntimeError: No receipt names it; nothing was refused in time.
        """
        platform = self._platform(asked)
        before = len(self.owner.audit())
        words = ["broker", "revoke", str(self.owner.store), "platform", platform]
        command(*words, "--reason", REASON)
        process = served.worker(self.victim)
        if process is not None:
            process.kill()
        say(f"killed {self.victim} again; its next process asks for the key")
        ends = time.monotonic() + REFUSAL_SECONDS
        while self.refusal is None:
            if time.monotonic() > ends:
                raise RuntimeError(f"{self.victim} was not refused a key")
            time.sleep(0.2)
            self.refusal = self._refused_since(before)

    def _platform(self, asked: Sequence[Asked]) -> str:
        for one in reversed(asked):
            for party in one.verdict.claims["parties"]:
                if party["name"] == self.victim:
                    return str(party["platform_id"])
        raise RuntimeError(f"{self.victim} stands in no receipt")

    def _refused_since(self, before: int) -> Entry | None:
        for entry in self.owner.audit()[before:]:
            asker = entry["details"].get("service")
            if entry["event"] == "refused" and asker == self.victim:
                return entry
        return None


def windows_of(model: Path) -> tuple[bytes, ...]:
    """Return some bytes from the middle of each larger tensor of weights."""
    windows = []
    for tensor in onnx.load(model).graph.initializer:
        data = numpy_helper.to_array(tensor).tobytes()
        middle = len(data) // 2
        if len(data) >= 2 * WINDOW_BYTES:
            windows.append(data[middle : middle + WINDOW_BYTES])
    return tuple(windows)


def files_with(windows: Sequence[bytes], *folders: Path) -> tuple[Path, ...]:
    """Return the files below folders that hold one of these windows."""
    return tuple(
        path
        for folder in folders
        for path in sorted(_files_below(folder))
        if _holds(path, windows)
    )


def _files_below(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


def _holds(path: Path, windows: Sequence[bytes]) -> bool:
    if not path.is_file():
        return False
    data = path.read_bytes()
    return any(window in data for window in windows)
