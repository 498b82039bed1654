"""Receipts outlive the process: killed at any moment, or started anew."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from bentoml_secure.client import Answer
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.receipts.verify import verify_bundle
from tests.harness import Project, sample, serve, wait_until_ready
from tests.service.counters import attested_series, scrape, series
from tests.service.deployments import (
    ENTRY,
    REPLICAS,
    STAGED,
    Deployment,
    eventually,
    readiness,
)

BURST = 40
"""Answers after which the entry is killed, with others on their way."""

BACK_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a caller kept of an answered request."""

    receipt_id: str
    digest: str
    answered_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One store, three lives of its entry: killed, started anew, stopped, served again.

    Attributes:
        deployment: Its third life.
        asked: Answers of the first, verified by the client.
        answered: Every further answer of the first, up to the kill.
        found: Status and body for each of those ids, in the second.
        metrics: Text of the second's /metrics.
    """

    deployment: Deployment
    asked: list[Answer]
    answered: list[Receipt]
    found: list[tuple[int, bytes]]
    metrics: str


@pytest.fixture(scope="module")
def history(
    staged: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[History]:
    """Ask, kill the entry between answers, look, stop everything, serve again."""
    home = tmp_path_factory.mktemp("store")
    trust = staged.trust()
    with serve(STAGED, staged, home) as entry:
        deployment = Deployment(entry=entry, project=staged, trust=trust)
        with deployment.client() as client:
            asked = [deployment.ask(client) for _ in range(10)]
        leave_a_gauge(home)
        answered = asyncio.run(kill_within_a_burst(deployment))
        wait_until_ready(entry, BACK_SECONDS)
        with deployment.http() as http:
            found = [fetch(http, receipt.receipt_id) for receipt in answered]
        metrics = entry.metrics()
    with serve(STAGED, staged, home) as entry:
        yield History(
            deployment=Deployment(entry=entry, project=staged, trust=trust),
            asked=asked,
            answered=answered,
            found=found,
            metrics=metrics,
        )


async def kill_within_a_burst(deployment: Deployment) -> list[Receipt]:
    """Ask from eight sides, kill the entry amid it, return what was answered."""
    worker = deployment.entry.workers()[ENTRY]
    answered: list[Receipt] = []

    async def caller(client: httpx.AsyncClient) -> None:
        payload = {"features": sample(2).tolist()}
        while True:
            try:
                response = await client.post("/diagnose", json=payload)
            except httpx.HTTPError:
                return
            if len(answered) >= BURST and response.status_code == 503:
                # Its successor already, which has attested nobody yet.
                return
            assert response.status_code == 200
            answered.append(
                Receipt(
                    receipt_id=response.headers["bsec-receipt-id"],
                    digest=response.headers["bsec-receipt-digest"],
                    answered_at=datetime.now(UTC),
                )
            )
            if len(answered) == BURST:
                worker.kill()

    # Short: the port stays open while nobody serves it.
    async with httpx.AsyncClient(base_url=deployment.url, timeout=5) as client:
        await asyncio.gather(*(caller(client) for _ in range(8)))
    return answered


def leave_a_gauge(home: Path) -> None:
    """Leave what an entry leaves that is killed while it distrusts a replica."""
    code = (
        "import os, signal; from bentoml_secure import metrics;"
        f"metrics.set_attested('0', '{REPLICAS[0]}', 'simulated', False);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    folder = str(home / "prometheus_multiproc_dir")
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder},
        check=False,
        timeout=30,
    )


def fetch(http: httpx.Client, receipt_id: str) -> tuple[int, bytes]:
    """Return status and body of a receipt's bundle."""
    response = http.get(f"/bsec/v1/receipts/{receipt_id}")
    return response.status_code, response.content


def test_every_answer_before_a_kill_has_its_receipt_after_it(history: History) -> None:
    assert len(history.answered) >= BURST
    assert len({receipt.receipt_id for receipt in history.answered}) == len(
        history.answered
    )
    trust = parse_trust(history.deployment.trust.read_bytes())
    for receipt, (status, body) in zip(history.answered, history.found, strict=True):
        assert status == 200, body
        bundle = parse_bundle(body)
        assert bundle.receipt.payload_digest == receipt.digest
        # Judged for the time of the answer: late votes may have died with the entry,
        # and a receipt that waits for them in vain fails at its deadline.
        verdict = verify_bundle(bundle, trust, now=receipt.answered_at)
        assert verdict.receipt_id == receipt.receipt_id


def test_a_killed_entrys_counters_go_on_and_its_gauges_are_gone(
    history: History,
) -> None:
    counts = scrape(history.metrics)
    issued = counts[series("receipts_total", scenario="general", state="issued")]
    assert issued >= len(history.asked) + len(history.answered)
    attested = {key: value for key, value in counts.items() if key[0] == "attested"}
    assert attested == {attested_series(name): 1 for name in REPLICAS}


def test_receipts_verify_after_the_service_was_stopped_and_served_again(
    history: History,
) -> None:
    deployment = history.deployment
    trust = parse_trust(deployment.trust.read_bytes())
    with deployment.http() as http:
        assert eventually(lambda: readiness(http), seconds=20, what="ready")
        for answer in history.asked:
            status, body = fetch(http, answer.receipt_id)
            assert status == 200, body
            bundle = parse_bundle(body)
            assert bundle.receipt == answer.bundle.receipt
            verdict = verify_bundle(bundle, trust, now=datetime.now(UTC))
            assert verdict.state == answer.verdict.state
            assert verdict.receipt_digest == answer.verdict.receipt_digest


def test_the_service_goes_on_with_new_keys_and_the_same_store(
    history: History,
) -> None:
    deployment = history.deployment
    with deployment.client() as client, deployment.http() as http:
        answer = deployment.ask(client)
        assert answer.receipt_id not in {a.receipt_id for a in history.asked}
        before = {a.bundle.receipt.key_id for a in history.asked}
        assert answer.bundle.receipt.key_id not in before
        assert fetch(http, answer.receipt_id)[0] == 200
