"""What the tests of running deployments share: asking, waiting, several hosts."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import numpy as np
import psutil

from bentoml_secure import SecureClient
from bentoml_secure.client import Answer
from tests.harness import (
    Project,
    Served,
    sample,
    start_http_server,
)

T = TypeVar("T")

ENTRY = "Diagnosis"
REPLICAS = tuple(f"{ENTRY}Segment{s}Replica{r}" for s in range(2) for r in range(3))
STAGED = "staged:Diagnosis"
DEADLINE_SECONDS = 5.0
"""Of each of the service's scenarios."""

BACK_SECONDS = 60.0
"""BentoML looks for ended workers every 10 s; then it imports, loads, attests."""

_SEEDS = itertools.count(1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A running deployment, and how a test asks it.

    Attributes:
        entry: Its entry service, and its runners where they are the entry's siblings.
        project: Whose plan it serves.
        trust: Trust file that accepts it.
    """

    entry: Served
    project: Project
    trust: Path

    @property
    def url(self) -> str:
        """Of the entry."""
        return self.entry.url

    def client(self) -> SecureClient:
        """Return a client that believes this deployment only."""
        return SecureClient(self.url, self.trust)

    def ask(self, client: SecureClient) -> Answer:
        """Ask something new; the answer must be the whole model's, bit for bit."""
        features = sample(3, seed=next(_SEEDS))
        answer = client.call("diagnose", {"features": features.tolist()})
        self.require_right(answer.value, features)
        return answer

    def require_right(self, value: Any, features: Any) -> None:
        """Compare an answer with what the whole model says."""
        np.testing.assert_array_equal(
            np.asarray(value["malignant"], np.float32),
            self.project.expected(features)[:, 0],
        )

    def whole(self, *, but: Sequence[str] = ()) -> Self:
        """Wait until all replicas but these vote: a quorum makes an entry ready."""
        with self.client() as client:
            eventually(
                lambda: absent(self.ask(client)) == {*but},
                seconds=BACK_SECONDS,
                what=f"all replicas vote but {but}",
            )
        return self

    def post(self, client: httpx.Client) -> httpx.Response:
        """Ask as plain HTTP, without a client that judges."""
        payload = {"features": sample(2, seed=next(_SEEDS)).tolist()}
        return client.post("/diagnose", json=payload)

    def http(self) -> httpx.Client:
        """Return a plain client."""
        return httpx.Client(base_url=self.url, timeout=30)

    def switched(self, *names: str) -> contextlib.AbstractContextManager[None]:
        """Switch faults of ``staged.py`` on, and off at the end."""
        return self.project.switched(*names)


def absent(answer: Answer) -> set[str]:
    """Return the replicas that a receipt names as absent, in it or after it."""
    return {missing["replica"] for missing in answer.verdict.claims["absent"]}


def eventually(
    look: Callable[[], T | None], *, seconds: float, what: str, every: float = 0.1
) -> T:
    """Return the first true value of ``look``; fail when the time is over."""
    ends = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > ends:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(every)
    return found


def readiness(client: httpx.Client, *, within: float = 2.0) -> bool:
    """Ask ``/readyz``, which must answer in time whatever the replicas do."""
    started = time.monotonic()
    status = client.get("/readyz", timeout=10).status_code
    assert time.monotonic() - started < within, "readiness must be bounded"
    assert status in (200, 503)
    return status == 200


@contextlib.contextmanager
def each_alone(
    project: Project,
    home: Path,
    hosts: Mapping[str, Mapping[str, Any]],
    *,
    target: str = STAGED,
) -> Iterator[dict[str, Served]]:
    """Run services alone, each with a BENTOML_HOME of its own; all start at once.

    Args:
        project: Their folder.
        home: Folder of their homes.
        hosts: Further arguments of ``start_http_server`` by name of the service.
        target: ``module:Class`` that all of them run.
    """
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(
                start_http_server(
                    target,
                    project,
                    home / name,
                    service_name=name,
                    ready_seconds=None,
                    **options,
                )
            )
            for name, options in hosts.items()
        }
        try:
            yield running
        finally:
            # All are told before the first is waited for.
            for host in running.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    host.process.terminate()
