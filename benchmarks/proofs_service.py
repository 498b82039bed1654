"""Requests while proofs are made, and while none are.

``python -m benchmarks.proofs_service --json``: the service of services/digits.py, all
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
from examples.diagnosis.commands import verdict_of

REQUESTS = 100
ORDERS = 6
SEGMENTS = 3
VERIFICATIONS = 5
PROVEN_SECONDS = 1800.0
SCENARIOS = ROOT / "services" / "digits.toml"
WARM_UP = 5
_BEGIN_SECONDS = 60.0
_CHILD = b"bentoml_secure.proofs.backends.ezkl_child"
_VARIABLES = ("PROOFS_PLAN", "PROOFS_FOLDER")


def served(plan: str, proofs: str) -> Any:
    """Return the digits' service on a plan and a set-up.

    Args:
        plan: Folder of the plan.
        proofs: Folder of the set-up.
    """

    @bentoml_secure.service(
        plan=plan,
        proofs=proofs,
        replicas=3,
        scenarios=str(SCENARIOS),
        name="Digits",
        traffic={"timeout": 60},
    )
    class Digits:
        """Reads a digit."""

        secure: bentoml_secure.Secure

        @bentoml.api
        async def read(self, image: list[Any]) -> dict[str, list[float]]:
            """Return the logits of the ten digits."""
            out = await self.secure.infer({"image": np.asarray(image, np.float32)})
            return {"logits": out["logits"][0].tolist()}

    return Digits


if all(name in os.environ for name in _VARIABLES):
    Digits = served(*(os.environ[name] for name in _VARIABLES))


def timed(server: Server, image: Any, requests: int) -> list[float]:
    """Return how long each of so many requests took, in milliseconds."""
    took = []
    for _ in range(requests):
        begun = time.perf_counter()
        server.call("read", {"image": image}, scenario="general")
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


def order_proofs(server: Server, image: Any, orders: int) -> None:
    """Keep the provers busy; return when they are.

    Raises:
        RuntimeError: No proof was begun in time.
    """
    for _ in range(orders):
        server.call("read", {"image": image}, scenario="proven")
    end = time.monotonic() + _BEGIN_SECONDS
    while not is_proving():
        if time.monotonic() > end:
            raise RuntimeError(f"no proof was begun within {_BEGIN_SECONDS:g} s")
        time.sleep(0.1)


def time_receipt(server: Server, built: Built, image: Any, folder: Path) -> float:
    """Return the milliseconds that verifying a receipt with all proofs takes.

    Offline, with everything opened: bodies, proven input and answer. The median of
    several, in one process, each of which starts the backend's once.

    Args:
        server: Serves ``built``.
        built: The set-up.
        image: Asked about.
        folder: Has the development root; gets files.
    """
    trust, stem = folder / "trust.toml", folder / "asked"
    words: list[str | Path] = ["trust", built.plan, "--scenarios", SCENARIOS]
    words += ["--policy", folder / "root" / "policy.toml", "--service", "Digits"]
    words += ["--replicas", "3", "--proofs", built.proofs, "--out", trust]
    command_line.main(list(map(str, words)), standalone_mode=False)
    end = time.monotonic() + PROVEN_SECONDS
    with SecureClient(server.url, trust, scenario="proven", wait_seconds=60) as client:
        answer = client.call("read", {"image": image})
        while answer.is_provisional:
            if time.monotonic() > end:
                raise RuntimeError(f"not proven within {PROVEN_SECONDS:g} s")
            answer = client.confirm(answer)
    bundle = stem.with_suffix(".json")
    bundle.write_text(json.dumps(answer.bundle.to_json()))
    stem.with_suffix(".request").write_bytes(answer.question.body)
    stem.with_suffix(".response").write_bytes(answer.body)
    words = ["verify", "receipt", bundle, "--trust", trust]
    words += ["--input", f"{stem}.request", "--output", f"{stem}.response"]
    words += ["--salt", answer.root_salt.hex()]
    took = []
    for _ in range(VERIFICATIONS):
        begun = time.perf_counter()
        verdict = verdict_of(*words)
        took.append((time.perf_counter() - begun) * 1e3)
        if verdict["proof_opening"] != "checked":
            raise RuntimeError(f"the opening was {verdict['proof_opening']}")
    return statistics.median(took)


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
        create_dev_root(folder / "root", now=datetime.now(UTC))
        image = first(case.tests, 1)["image"].tolist()
        variables = {
            "PROOFS_PLAN": str(built.plan),
            "PROOFS_FOLDER": str(built.proofs),
            "BENTOML_SECURE_DEV_ROOT": str(folder / "root"),
        }
        with serve("benchmarks.proofs_service:Digits", variables) as server:
            timed(server, image, WARM_UP)
            idle = timed(server, image, requests)
            order_proofs(server, image, orders)
            busy = timed(server, image, requests)
            if not is_proving():
                raise RuntimeError("proofs were done too early: order more of them")
            verify_ms = time_receipt(server, built, image, folder)
    figures = {
        "latency_ratio_while_proving": statistics.median(busy)
        / statistics.median(idle),
        "request_p50_ms_idle": statistics.median(idle),
        "request_p50_ms_proving": statistics.median(busy),
        "request_p99_ms_idle": float(np.percentile(idle, 99)),
        "request_p99_ms_proving": float(np.percentile(busy, 99)),
        "verify_receipt_ms": verify_ms,
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
