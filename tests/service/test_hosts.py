"""Each service alone, as on a machine of its own: ``start-http-server``, TCP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import Project, Served, free_port, wait_until_ready
from tests.service.counters import attested_series, scrape, series
from tests.service.deployments import (
    DEADLINE_SECONDS,
    ENTRY,
    REPLICAS,
    Deployment,
    absent,
    each_alone,
    eventually,
    readiness,
)

START_SECONDS = 60.0


@pytest.fixture(scope="module")
def runners(
    staged: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Served]]:
    """Every replica on a port and with a BENTOML_HOME of its own."""
    home = tmp_path_factory.mktemp("hosts")
    hosts = {name: {"port": free_port()} for name in REPLICAS}
    with each_alone(staged, home, hosts) as running:
        for host in running.values():
            wait_until_ready(host)
        yield running


@contextlib.contextmanager
def entry_of(
    project: Project, home: Path, depends: dict[str, str], *, ready: bool = True
) -> Iterator[Deployment]:
    """Run an entry that has its replicas at these URLs."""
    options: dict[str, Any] = {"depends": depends, "port": free_port()}
    with each_alone(project, home, {ENTRY: options}) as running:
        if ready:
            wait_until_ready(running[ENTRY])
        yield Deployment(entry=running[ENTRY], project=project, trust=project.trust())


@pytest.fixture(scope="module")
def apart(
    staged: Project,
    runners: dict[str, Served],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    """The entry of those runners."""
    home = tmp_path_factory.mktemp("entry")
    urls = {name: host.url for name, host in runners.items()}
    with entry_of(staged, home, urls) as deployment:
        yield deployment.whole()


def test_an_entry_and_six_runners_apart_answer_as_one(
    apart: Deployment, runners: dict[str, Served]
) -> None:
    assert len({host.home for host in runners.values()} | {apart.entry.home}) == 7
    # The entry runs no segment itself.
    assert set(apart.entry.workers()) == {ENTRY}
    with apart.client() as client:
        for _ in range(5):
            answer = apart.ask(client)
            assert absent(answer) == set()


def test_each_hosts_metrics_are_its_own(
    apart: Deployment, runners: dict[str, Served]
) -> None:
    with apart.client() as client:
        apart.ask(client)
    assert "bentoml_secure_quorum_total" in apart.entry.metrics()
    for host in runners.values():
        # What is verified is verified by the entry.
        assert "bentoml_secure_" not in host.metrics()


def test_a_host_that_ends_is_named_absent(
    staged: Project, runners: dict[str, Served], apart: Deployment, tmp_path: Path
) -> None:
    name = "DiagnosisSegment1Replica2"
    port = free_port()
    with each_alone(staged, tmp_path, {name: {"port": port}}) as extra:
        wait_until_ready(extra[name])
        urls = {n: host.url for n, host in runners.items()}
        urls[name] = extra[name].url
        with (
            entry_of(staged, tmp_path / "entry", urls) as deployment,
            deployment.client() as client,
        ):
            deployment.whole()
            for worker in extra[name].workers().values():
                worker.kill()
            extra[name].process.kill()
            assert absent(deployment.ask(client)) == {name}


def test_one_runner_named_twice_is_one_voice(
    staged: Project, runners: dict[str, Served], apart: Deployment, tmp_path: Path
) -> None:
    name, other = "DiagnosisSegment0Replica1", "DiagnosisSegment0Replica0"
    urls = {n: host.url for n, host in runners.items()}
    with (
        entry_of(staged, tmp_path, {**urls, name: urls[other]}) as deployment,
    ):
        deployment.whole(but=[name])
        counts = scrape(deployment.entry.metrics())
    labels = {"mechanism": "attestation", "segment": "0"}
    assert counts[series("verifications_total", result="fail", **labels)] >= 1
    assert counts[series("verifications_total", result="pass", **labels)] == 2
    attested = {key for key, value in counts.items() if key[0] == "attested" and value}
    assert attested == {attested_series(n) for n in REPLICAS if n != name}


def test_one_replica_hangs_in_its_constructor_and_one_never_starts(
    staged: Project, runners: dict[str, Served], apart: Deployment, tmp_path: Path
) -> None:
    hanging, missing = "DiagnosisSegment0Replica1", "DiagnosisSegment0Replica2"
    urls = {name: host.url for name, host in runners.items()}
    urls[missing] = f"http://127.0.0.1:{free_port()}"
    with (
        apart.switched("hang"),
        each_alone(staged, tmp_path, {hanging: {"port": free_port()}}) as extra,
        entry_of(
            staged,
            tmp_path / "entry",
            {**urls, hanging: extra[hanging].url},
            ready=False,
        ) as deployment,
        deployment.http() as http,
    ):
        eventually(
            lambda: "Service Diagnosis initialized" in deployment.entry.log(),
            seconds=START_SECONDS,
            what="the entry has started",
        )
        require_refusal(deployment, http)
        (apart.project.folder / "switches" / "hang").unlink()
        eventually(
            lambda: readiness(http), seconds=START_SECONDS, what="ready with 2 of 3"
        )
        deployment.whole(but=[missing])
        with deployment.client() as client:
            started = time.monotonic()
            assert absent(deployment.ask(client)) == {missing}
            assert time.monotonic() - started < DEADLINE_SECONDS


def require_refusal(deployment: Deployment, http: httpx.Client) -> None:
    """Require that one attested replica of three neither is ready nor answers."""
    for _ in range(3):
        assert not readiness(http)
    started = time.monotonic()
    refused = deployment.post(http)
    assert time.monotonic() - started < DEADLINE_SECONDS + 2
    assert refused.status_code == 503, refused.text
    assert refused.json()["error"]["code"] == "quorum-not-reached"
