"""Independence with real processes: what shares a machine counts once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure import SecureClient
from bentoml_secure.client import Answer
from bentoml_secure.errors import ReceiptError
from bentoml_secure.receipts.receipt import parse_receipt
from tests.harness import Project, Served, free_port, sample, wait_until_ready
from tests.service.deployments import (
    ENTRY,
    REPLICAS,
    Deployment,
    each_alone,
    eventually,
)

HERE = Path(__file__).parent
SIMULATED_PLATFORM = "BENTOML_SECURE_SIMULATED_PLATFORM"
CRITICAL = {"bsec-scenario": "critical"}
MACHINES = dict(zip(REPLICAS, ("a", "b", "b", "a", "b", "c"), strict=True))
"""Which machine each replica pretends to run on: two of segment 0 share one."""


@pytest.fixture(scope="module")
def machines(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Served]]:
    """Every service alone, each told which machine its evidence is to name."""
    project.add(HERE / "alike.py")
    home = tmp_path_factory.mktemp("machines")
    ports = {name: free_port() for name in (ENTRY, *REPLICAS)}
    hosts: dict[str, dict[str, Any]] = {
        name: {"port": ports[name], "env": {SIMULATED_PLATFORM: f"machine-{where}"}}
        for name, where in MACHINES.items()
    }
    hosts[ENTRY] = {
        "port": ports[ENTRY],
        "depends": {name: f"http://127.0.0.1:{ports[name]}" for name in REPLICAS},
    }
    with each_alone(project, home, hosts, target="alike:Diagnosis") as running:
        for host in running.values():
            wait_until_ready(host)
        yield running


@pytest.fixture
def spread(project: Project, machines: dict[str, Served]) -> Deployment:
    """The entry of those machines."""
    return Deployment(entry=machines[ENTRY], project=project, trust=project.trust())


@pytest.fixture(scope="module")
def demanding(deployment: Deployment) -> Path:
    """A trust file that asks for a quorum of platforms, whatever the scenario says."""
    text = deployment.trust.read_text()
    assert text.count('independence = "none"') == 1
    path = deployment.trust.with_name("trust-demanding.toml")
    path.write_text(text.replace('independence = "none"', 'independence = "platform"'))
    return path


def test_three_replicas_on_one_host_are_refused_with_the_reason(
    deployment: Deployment,
) -> None:
    payload = {"features": sample(2).tolist()}
    with deployment.http() as http:
        refused = http.post("/diagnose", json=payload, headers=CRITICAL)
        served = http.post("/diagnose", json=payload)
    assert refused.status_code == 503
    error = refused.json()["error"]
    assert error["code"] == "quorum-not-reached"
    assert "nobody was asked about segment 0, where 1 voice may vote" in str(error)
    assert "is that of DiagnosisSegment0Replica" in str(error)
    assert sorted(error["tally"]["pending"]) == list(REPLICAS[:3])
    assert "bsec-receipt-id" not in refused.headers
    # The scenario that asks for no independence is served as ever.
    assert served.status_code == 200


def test_a_caller_may_ask_for_more_than_the_scenario(
    deployment: Deployment, demanding: Path
) -> None:
    features = sample(2).tolist()
    with deployment.client() as client:
        assert client.call("diagnose", {"features": features}).value
    with (
        SecureClient(deployment.url, demanding) as client,
        pytest.raises(ReceiptError, match="independence: got 1 platforms"),
    ):
        client.call("diagnose", {"features": features})


def voices(answer: Answer) -> list[set[str]]:
    """Return the platforms that agreed, of each segment."""
    where = {p["name"]: p["platform_id"] for p in answer.verdict.claims["parties"]}
    (infer,) = parse_receipt(answer.bundle.receipt).infers
    return [{where[name] for name in record.tally.clique} for record in infer.segments]


def test_two_machines_of_three_replicas_carry_a_quorum(
    spread: Deployment, demanding: Path
) -> None:
    with SecureClient(spread.url, demanding, scenario="critical") as client:
        for _ in range(5):
            answer = spread.ask(client)
            assert answer.verdict.claims["independence"] == "platform"
            first, second = voices(answer)
            assert first == {"machine-a", "machine-b"}
            assert len(second) >= 2


def test_a_machine_that_lies_with_all_its_replicas_wins_nothing(
    spread: Deployment,
) -> None:
    features = sample(2)
    payload = {"features": features.tolist()}
    with spread.switched("lie-alike"), spread.http() as http:
        refused = http.post("/diagnose", json=payload, headers=CRITICAL)
        heads = http.post("/diagnose", json=payload)
    assert refused.status_code == 503
    error = refused.json()["error"]
    assert error["code"] == "quorum-not-reached"
    assert "with 1 voice between them" in str(error)
    # Where heads are counted the two carry their lie: f+1 that collude are the limit.
    assert heads.status_code == 200
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        spread.require_right(heads.json(), features)


@contextlib.contextmanager
def suspended(host: Served) -> Iterator[None]:
    """Stop a service alone, with all its processes, and let it go on at the end."""
    family = [host.process, *host.process.children(recursive=True)]
    try:
        for process in family:
            process.suspend()
        yield
    finally:
        for process in family:
            process.resume()


def test_without_its_second_machine_a_segment_is_not_served(
    spread: Deployment, machines: dict[str, Served]
) -> None:
    payload = {"features": sample(2).tolist()}
    with spread.http() as http:
        with suspended(machines[REPLICAS[0]]):
            refused = http.post("/diagnose", json=payload, headers=CRITICAL)
            heads = http.post("/diagnose", json=payload)
        eventually(
            lambda: (
                http.post("/diagnose", json=payload, headers=CRITICAL).status_code
                == 200
            ),
            seconds=30,
            what="machine a is back",
        )
    assert refused.status_code == 503
    assert "2 of 3 replicas agree with 1 voice between them" in str(refused.json())
    assert heads.status_code == 200
