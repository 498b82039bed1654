"""A served deployment that proves: requests while it does, and what one comes to.

``python -m benchmarks.proofs_service --json``: the network of services/digits.py, all
on one machine. Requests that ask for no proof are timed over HTTP with the provers
idle, then with orders of proofs that take longer than the measurement. Then a receipt
that has all its proofs is verified offline.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

import bentoml_secure
from benchmarks.proofs_models import Built, build, cases, first
from benchmarks.report import report
from benchmarks.serving import ROOT, Server, serve
from bentoml_secure import SecureClient
from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.cli import main as command_line
from bentoml_secure.client import Answer
from bentoml_secure.errors import UnavailableError
from examples.diagnosis.commands import verdict_of

REQUESTS = 100
ORDERS = 6
SEGMENTS = 3
ROOT_FOLDER = "root"
VERIFICATIONS = 5
PROVEN_SECONDS = 1800.0
SCENARIOS = ROOT / "services" / "digits.toml"
WARM_UP = 5
_BEGIN_SECONDS = 60.0
_CHILD = b"bentoml_secure.proofs.backends.ezkl_child"
_PLAN, _PROOFS, _INPUT = "PROOFS_PLAN", "PROOFS_FOLDER", "PROOFS_INPUT"
SERVICE = "Proven"


def served(plan: str, proofs: str, name: str) -> Any:
    """Return a service on a plan and a set-up, three replicas and a prover each.

    Args:
        plan: Folder of the plan.
        proofs: Folder of the set-up.
        name: Of the plan's only input.
    """

    @bentoml_secure.service(
        plan=plan,
        proofs=proofs,
        replicas=3,
        scenarios=str(SCENARIOS),
        name=SERVICE,
        traffic={"timeout": 60},
    )
    class Proven:
        """Answers with all outputs of the plan."""

        secure: bentoml_secure.Secure

        @bentoml.api
        async def run(self, values: list[Any]) -> dict[str, list[Any]]:
            """Return the outputs by name."""
            out = await self.secure.infer({name: np.asarray(values, np.float32)})
            return {output: tensor.tolist() for output, tensor in out.items()}

    return Proven


if _PLAN in os.environ:
    Proven = served(os.environ[_PLAN], os.environ[_PROOFS], os.environ[_INPUT])


@contextlib.contextmanager
def serving(built: Built, folder: Path) -> Iterator[Server]:
    """Serve a set-up under a development root of its own.

    Args:
        built: The set-up.
        folder: Gets the root, and files of ``ask_proven``.
    """
    create_dev_root(folder / ROOT_FOLDER, now=datetime.now(UTC))
    variables = {
        _PLAN: str(built.plan),
        _PROOFS: str(built.proofs),
        _INPUT: next(iter(built.case.tests)),
        "BENTOML_SECURE_DEV_ROOT": str(folder / ROOT_FOLDER),
    }
    with serve(f"benchmarks.proofs_service:{SERVICE}", variables) as server:
        yield server


def example(built: Built) -> Any:
    """Return the values of the first request of the test set."""
    return next(iter(first(built.case.tests, 1).values())).tolist()


def timed(server: Server, values: Any, requests: int) -> list[float]:
    """Return how long each of so many requests took, in milliseconds."""
    took = []
    for _ in range(requests):
        begun = time.perf_counter()
        server.call("run", {"values": values}, scenario="general")
        took.append((time.perf_counter() - begun) * 1e3)
    return took


def is_proving() -> bool:
    """Tell whether a proof is being made on this machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            # It may have ended meanwhile.
            with contextlib.suppress(OSError):
                if _CHILD in (entry / "cmdline").read_bytes():
                    return True
    return False


def order_proofs(server: Server, values: Any, orders: int) -> None:
    """Keep the provers busy; return when they are.

    Raises:
        RuntimeError: No proof was begun in time.
    """
    for _ in range(orders):
        server.call("run", {"values": values}, scenario="proven")
    end = time.monotonic() + _BEGIN_SECONDS
    while not is_proving():
        if time.monotonic() > end:
            raise RuntimeError(f"no proof was begun within {_BEGIN_SECONDS:g} s")
        time.sleep(0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one critical request came to.

    Attributes:
        answer_ms: Until the answer was there and verified, provisional.
        proven_seconds: After that, until its receipt had all proofs and was verified.
        verify_ms: Of verifying that receipt offline, everything opened.
    """

    answer_ms: float
    proven_seconds: float
    verify_ms: float


def ask_proven(server: Server, built: Built, folder: Path) -> Asked:
    """Ask a critical request, wait for its proofs, and verify its receipt offline.

    The time of verifying, with bodies, proven input and answer opened, is the median
    of several, in one process, each of which starts the backend's once.

    Args:
        server: Serves ``built``.
        built: The set-up.
        folder: Of ``serving``.
    """
    trust, stem = folder / "trust.toml", folder / "asked"
    words: list[str | Path] = ["trust", built.plan, "--scenarios", SCENARIOS]
    words += ["--policy", folder / ROOT_FOLDER / "policy.toml", "--service", SERVICE]
    words += ["--replicas", "3", "--proofs", built.proofs, "--out", trust]
    command_line.main(list(map(str, words)), standalone_mode=False)
    with SecureClient(server.url, trust, scenario="proven", wait_seconds=60) as client:
        begun, answer = _first_answer(client, example(built))
        answered = time.monotonic()
        while answer.is_provisional:
            if time.monotonic() > answered + PROVEN_SECONDS:
                raise RuntimeError(f"not proven within {PROVEN_SECONDS:g} s")
            answer = client.confirm(answer)
        proven = time.monotonic()
    bundle = stem.with_suffix(".json")
    bundle.write_text(json.dumps(answer.bundle.to_json()))
    stem.with_suffix(".request").write_bytes(answer.question.body)
    stem.with_suffix(".response").write_bytes(answer.body)
    words = ["verify", "receipt", bundle, "--trust", trust]
    words += ["--input", f"{stem}.request", "--output", f"{stem}.response"]
    words += ["--salt", answer.root_salt.hex()]
    took = []
    for _ in range(VERIFICATIONS):
        verifying = time.perf_counter()
        verdict = verdict_of(*words)
        took.append((time.perf_counter() - verifying) * 1e3)
        if verdict["proof_opening"] != "checked":
            raise RuntimeError(f"the opening was {verdict['proof_opening']}")
    return Asked(
        answer_ms=(answered - begun) * 1e3,
        proven_seconds=proven - answered,
        verify_ms=statistics.median(took),
    )


def _first_answer(client: SecureClient, values: Any) -> tuple[float, Answer]:
    """Ask until provers are attested; return when it was asked last, and the answer."""
    ends = time.monotonic() + _BEGIN_SECONDS
    while True:
        client.attest()
        begun = time.monotonic()
        try:
            return begun, client.call("run", {"values": values})
        except UnavailableError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.2)


def measure(*, requests: int = REQUESTS, orders: int = ORDERS) -> dict[str, Any]:
    """Return the JSON object of this benchmark.

    Args:
        requests: That are timed, idle and busy.
        orders: Requests whose proofs keep the provers busy.
    """
    with tempfile.TemporaryDirectory(prefix="proofs-service-") as name:
        folder = Path(name)
        case = cases(folder)["digits"]
        built = build(case, SEGMENTS, folder)
        values = example(built)
        with serving(built, folder) as server:
            timed(server, values, WARM_UP)
            idle = timed(server, values, requests)
            order_proofs(server, values, orders)
            busy = timed(server, values, requests)
            if not is_proving():
                raise RuntimeError("proofs were done too early: order more of them")
            asked = ask_proven(server, built, folder)
    figures = {
        "latency_ratio_while_proving": statistics.median(busy)
        / statistics.median(idle),
        "request_p50_ms_idle": statistics.median(idle),
        "request_p50_ms_proving": statistics.median(busy),
        "request_p99_ms_idle": float(np.percentile(idle, 99)),
        "request_p99_ms_proving": float(np.percentile(busy, 99)),
        "verify_receipt_ms": asked.verify_ms,
    }
    return report(
        "proofs_service",
        figures,
        "bentoml",
        "ezkl",
        requests=requests,
        orders=orders,
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Requests while proofs are made.")
    parser.add_argument("--json", action="store_true", help="what it prints anyway")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--orders", type=int, default=ORDERS)
    options = parser.parse_args()
    found = measure(requests=options.requests, orders=options.orders)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
