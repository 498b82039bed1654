"""A deployment whose evidence and keys are short-lived, and load on it."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from bentoml_secure import SecureClient
from bentoml_secure.attestation.dev_root import POLICY
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.bundle import Bundle, parse_bundle
from bentoml_secure.receipts.receipt import parse_receipt
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.split import split_onnx
from bentoml_secure.statements import utc_now
from tests.harness import Project, Served, make_project, sample, serve

HERE = Path(__file__).parent
ENTRY = "Rotated"
REPLICAS = tuple(f"{ENTRY}Segment0Replica{replica}" for replica in range(3))
MAX_AGE_SECONDS = 6
KEY_LIFETIME_SECONDS = 14
ANY_TWO, ALL_THREE, ALL_THREE_OPEN = "any-two", "all-three", "all-three-open"
_SAMPLES = 60
"""Receipts of plain requests that are fetched and judged, evenly apart."""

_SEEDS = itertools.count(20_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotating:
    """A running deployment.

    Attributes:
        served: Its entry, and its runners.
        project: Whose plan it serves.
        trust: Trust file that accepts it.
    """

    served: Served
    project: Project
    trust: Path

    def http(self, scenario: str = ALL_THREE) -> httpx.Client:
        """Return a client that seals nothing and judges nothing."""
        return httpx.Client(
            base_url=self.served.url, headers={"bsec-scenario": scenario}, timeout=30
        )

    def client(self, scenario: str = ALL_THREE, **settings: Any) -> SecureClient:
        """Return a client that believes this deployment only."""
        return SecureClient(self.served.url, self.trust, scenario=scenario, **settings)

    def bundle(self, http: httpx.Client, receipt_id: str) -> Bundle:
        """Return a receipt's bundle."""
        return parse_bundle(http.get(f"/bsec/v1/receipts/{receipt_id}").content)

    def switched(self, *names: str) -> contextlib.AbstractContextManager[None]:
        """Switch faults of ``rotated.py`` on, and off at the end."""
        return self.project.switched(*names)


@contextlib.contextmanager
def rotating_in(folder: Path) -> Iterator[Rotating]:
    """Start a deployment whose evidence is good for seconds."""
    project = make_project(folder)
    project = replace(project, plan=folder / "models" / "whole")
    split_onnx(project.model, project.plan, segments=1)
    policy = project.dev_root / POLICY
    text = policy.read_text()
    assert "max_age_seconds = 300" in text
    policy.write_text(text.replace("= 300", f"= {MAX_AGE_SECONDS}"))
    project.add(HERE / "rotated.py")
    shutil.copyfile(HERE / "rotated.toml", folder / "rotated.toml")
    env = {"BENTOML_SECURE_KEY_LIFETIME_SECONDS": str(KEY_LIFETIME_SECONDS)}
    with serve("rotated:Rotated", project, folder / "home", env=env) as served:
        yield Rotating(
            served=served,
            project=project,
            trust=project.trust(service=ENTRY, scenarios="rotated.toml"),
        )


def body(count: int = 2) -> dict[str, Any]:
    """Return a request's body, of new features."""
    return {"features": sample(count, seed=next(_SEEDS)).tolist()}


@dataclass(kw_only=True)
class Load:
    """Requests from several threads, until told to stop.

    Attributes:
        target: Who is asked.
        errors: What went wrong: every answer but a good one.
        plain: Receipts of requests in the clear.
        judged: Bundles that were accepted.
        slowest: Seconds that the slowest request took.
    """

    target: Rotating
    errors: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    judged: list[Bundle] = field(default_factory=list)
    slowest: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def run(
        self, *, until: Callable[[Load], bool], plain: Mapping[str, int], sealed: int
    ) -> None:
        """Ask from all threads until it is over.

        Args:
            until: Asked again and again, whether it is.
            plain: Threads that ask in the clear, by scenario.
            sealed: Threads that ask with one client that verifies, together.
        """
        with self.target.client() as client:
            threads = [
                threading.Thread(target=self._ask_plainly, args=(scenario,))
                for scenario, count in plain.items()
                for _ in range(count)
            ]
            threads += [
                threading.Thread(target=self._ask_sealed, args=(client,))
                for _ in range(sealed)
            ]
            for thread in threads:
                thread.start()
            while not (self.errors or until(self)):
                time.sleep(0.05)
            self._over.set()
            for thread in threads:
                thread.join()

    @property
    def count(self) -> int:
        """Answers so far."""
        return len(self.plain) + len(self.judged)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.slowest = max(self.slowest, time.monotonic() - started)

    def _ask_plainly(self, scenario: str) -> None:
        with self.target.http(scenario) as http:
            while not self._over.is_set():
                try:
                    with self._timed():
                        said = http.post("/diagnose", json=body())
                except httpx.HTTPError as error:
                    self.errors.append(f"{scenario}: {error!r}")
                    continue
                if said.status_code != 200:
                    self.errors.append(f"{scenario}: {said.text}")
                    continue
                self.plain.append(said.headers["bsec-receipt-id"])

    def _ask_sealed(self, client: SecureClient) -> None:
        while not self._over.is_set():
            try:
                with self._timed():
                    answer = client.call("diagnose", body())
            except SecureError as error:
                self.errors.append(f"sealed: {error!r}, {error.__notes__}")
                continue
            if answer.verdict.state is not State.ACCEPTED:
                self.errors.append(f"sealed: {answer.verdict}")
            self.judged.append(answer.bundle)

    def judge_some(self) -> None:
        """Fetch some of the receipts of plain requests and judge them offline."""
        trust = parse_trust(self.target.trust.read_bytes())
        with self.target.http() as http:
            for receipt_id in self.plain[:: len(self.plain) // _SAMPLES or 1]:
                bundle = self.target.bundle(http, receipt_id)
                verdict = verify_bundle(bundle, trust, now=utc_now())
                assert verdict.state is State.ACCEPTED, verdict
                self.judged.append(bundle)

    def rotations(self) -> dict[str, tuple[int, int]]:
        """Return how often each party's evidence and keys were others than before."""
        evidence, keys = defaultdict(set), defaultdict(set)
        for bundle in self.judged:
            for party in parse_receipt(bundle.receipt).parties:
                evidence[party.name].add(party.evidence_nonce)
                keys[party.name].add(party.key_document)
        return {
            name: (len(evidence[name]) - 1, len(keys[name]) - 1) for name in evidence
        }
