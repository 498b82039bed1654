"""Readiness is bounded: a stopped replica neither hangs it nor is counted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.service.deployments import (
    BACK_SECONDS,
    DEADLINE_SECONDS,
    Deployment,
    absent,
    eventually,
    readiness,
)


@contextlib.contextmanager
def stopped(deployment: Deployment, *names: str) -> Iterator[None]:
    """Stop replicas (SIGSTOP), and let them go on at the end."""
    workers = deployment.entry.workers()
    processes: list[psutil.Process] = [workers[name] for name in names]
    try:
        for process in processes:
            process.suspend()
        yield
    finally:
        for process in processes:
            process.resume()


@pytest.mark.parametrize("segment", [0, 1])
def test_two_of_three_are_ready_and_serve_within_the_deadline(
    deployment: Deployment, segment: int
) -> None:
    name = f"DiagnosisSegment{segment}Replica0"
    with deployment.http() as http, deployment.client() as client:
        with stopped(deployment, name):
            for _ in range(3):
                assert readiness(http)
                started = time.monotonic()
                assert absent(deployment.ask(client)) == {name}
                assert time.monotonic() - started < DEADLINE_SECONDS
        deployment.whole()
        assert readiness(http)


@pytest.mark.parametrize("segment", [0, 1])
def test_one_of_three_is_not_ready_and_refuses_within_the_deadline(
    deployment: Deployment, segment: int
) -> None:
    names = [f"DiagnosisSegment{segment}Replica{replica}" for replica in (0, 2)]
    with deployment.http() as http:
        with stopped(deployment, *names):
            for _ in range(3):
                assert not readiness(http)
            started = time.monotonic()
            refused = deployment.post(http)
            assert time.monotonic() - started < DEADLINE_SECONDS + 2
            assert refused.status_code == 503
            error = refused.json()["error"]
            assert error["code"] == "quorum-not-reached"
            assert sorted(error["tally"]["pending"]) == names
            # Refused, so nothing was signed.
            assert "bsec-receipt-id" not in refused.headers
        eventually(lambda: readiness(http), seconds=BACK_SECONDS, what="ready again")
        deployment.whole()


def test_every_replica_stopped_still_answers_at_once(deployment: Deployment) -> None:
    workers = set(deployment.entry.workers()) - {"Diagnosis"}
    with deployment.http() as http:
        with stopped(deployment, *workers):
            assert not readiness(http)
            assert http.get("/livez", timeout=2).status_code == 200
        eventually(lambda: readiness(http), seconds=BACK_SECONDS, what="ready again")
        deployment.whole()
