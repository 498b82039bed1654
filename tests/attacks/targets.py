"""What is attacked, and how a test looks at it: questions, verdicts, memory."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bentoml_secure.client import Answer, SecureClient
from tests.harness import Project, Served, sample

CAP_BYTES = 8 << 20
ALLOWANCE_BYTES = 64 << 20
SERVICE = "Attacked"
TARGET = "attacked:Attacked"
REPLICAS = [f"{SERVICE}Segment{s}Replica{r}" for s in range(2) for r in range(3)]

_SEEDS = itertools.count(100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A running deployment under attack.

    Attributes:
        served: Its entry, and its runners where they are real ones.
        project: Whose plan it serves.
        trust: Trust file that accepts it.
        http: A client that judges nothing.
        client: A client that verifies.
        idle_bytes: Resident memory of each process before the first attack.
    """

    served: Served
    project: Project
    trust: Path
    http: httpx.Client
    client: SecureClient
    idle_bytes: Mapping[str, int]

    @property
    def url(self) -> str:
        """Of the entry."""
        return self.served.url

    def post(
        self,
        api: str = "diagnose",
        *,
        scenario: str | None = None,
        features: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Ask as plain HTTP, without a client that judges."""
        stated = {"bsec-scenario": scenario} if scenario else {}
        payload = {"features": sample(2).tolist() if features is None else features}
        return self.http.post(
            f"/{api}", json=payload, headers={**stated, **(headers or {})}
        )

    def ask(self) -> Answer:
        """Ask something new through the verifying client, and compare the answer.

        Raises:
            SecureError: Refused.
        """
        features = sample(3, seed=next(_SEEDS))
        answer = self.client.call("diagnose", {"features": features.tolist()})
        expected = self.project.expected(features)[:, 0]
        # One runtime, one machine, a cut that changes no bit: equal, not close.
        np.testing.assert_array_equal(
            np.asarray(answer.value["malignant"], np.float32), expected
        )
        return answer

    def is_whole(self) -> bool:
        """Tell whether every replica of every segment answers and agrees."""
        return self.post(scenario="unanimous").status_code == 200

    def wait_until_whole(self, seconds: float = 15.0) -> None:
        """Wait until it serves with every replica again."""
        ends = time.monotonic() + seconds
        while not self.is_whole():
            if time.monotonic() > ends:
                response = self.post(scenario="unanimous")
                raise AssertionError(f"not whole again: {response.text[:2000]}")
            time.sleep(0.2)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Fail where memory grew beyond the cap plus 64 MiB above idle."""
        with MemoryWatch(self.served) as watch:
            yield
        for name, peak in watch.peak_bytes.items():
            grown = peak - self.idle_bytes[name]
            assert grown <= CAP_BYTES + ALLOWANCE_BYTES, (
                f"{name}: resident memory grew by {grown >> 20} MiB"
            )
        PEAKS.append(max(watch.grown(self.idle_bytes), default=0))


PEAKS: list[int] = []
"""Growth above idle, in bytes, of every watched attack so far."""


class MemoryWatch:
    """Samples the resident memory of a deployment's workers in a thread."""

    def __init__(self, served: Served) -> None:
        self._workers = served.workers()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes: dict[str, int] = dict.fromkeys(self._workers, 0)

    def _watch(self) -> None:
        while True:
            for name, process in self._workers.items():
                resident = process.memory_info().rss
                self.peak_bytes[name] = max(self.peak_bytes[name], resident)
            if self._over.wait(0.02):
                return

    def grown(self, idle: Mapping[str, int]) -> list[int]:
        """Return the growth of each process above idle."""
        return [peak - idle[name] for name, peak in self.peak_bytes.items()]

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error that a refusal tells."""
    error: dict[str, Any] = response.json()["error"]
    return error


@contextlib.contextmanager
def target_of(served: Served, project: Project, trust: Path) -> Iterator[Target]:
    """Yield a target, warmed up and measured."""
    with (
        httpx.Client(base_url=served.url, timeout=30) as http,
        SecureClient(served.url, trust) as client,
    ):
        cold = Target(
            served=served,
            project=project,
            trust=trust,
            http=http,
            client=client,
            idle_bytes={},
        )
        for _ in range(20):
            cold.ask()
        yield replace(cold, idle_bytes=served.resident_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rogues:
    """Control of the rogue host whose replicas a deployment has.

    Attributes:
        control: Client of its control port.
        marker: Folder that its pickles make where they are loaded.
        host: Its process.
    """

    control: httpx.Client
    marker: Path
    host: Served

    def behave(
        self, replica: str, *, infer: str = "honest", attest: str = "honest"
    ) -> None:
        """Switch one replica's behaviour."""
        wanted = {"replica": replica, "infer": infer, "attest": attest}
        response = self.control.post("/behave", json=wanted)
        assert response.status_code == 200, response.text

    @contextlib.contextmanager
    def behaving(self, **behaviours: str) -> Iterator[None]:
        """Switch replicas' behaviour towards exchanges, and back at the end."""
        try:
            for replica, infer in behaviours.items():
                self.behave(replica, infer=infer)
            yield
        finally:
            for replica in behaviours:
                self.behave(replica)

    def state(self) -> dict[str, Any]:
        """Return the replicas' URLs and how often a trap was entered."""
        state: dict[str, Any] = self.control.get("/state").json()
        return state
