"""Each service in a network of its own, with no edge but those it needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.harness import Project, wait_until_ready
from tests.service.deployments import ENTRY, REPLICAS, Deployment, absent, each_alone
from tests.service.networks import Host, Network, star, why_not

PORT = 3000

_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
except OSError as error:
    print(type(error).__name__, error.errno)
else:
    print("connected")
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A namespace for the entry and one for each replica."""
    if reason := why_not():
        pytest.skip(f"no network namespaces: {reason}")
    with star(len(REPLICAS)) as made:
        yield made


@pytest.fixture(scope="module")
def separated(
    staged: Project, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """The deployment, every service on its own network."""
    places = dict(zip(REPLICAS, network.runners, strict=True))
    urls = {name: f"http://{host.address}:{PORT}" for name, host in places.items()}
    hosts = {
        name: {"host": host.address, "port": PORT, "prefix": host.enter}
        for name, host in ((ENTRY, network.entry), *places.items())
    }
    hosts[ENTRY]["depends"] = urls
    with each_alone(staged, tmp_path_factory.mktemp("networks"), hosts) as running:
        wait_until_ready(running[ENTRY])
        deployment = Deployment(
            entry=running[ENTRY], project=staged, trust=staged.trust()
        )
        yield deployment.whole()


def connect_from(host: Host, address: str) -> str:
    """Return what comes of a connection from inside a namespace."""
    command = [*host.enter, sys.executable, "-c", _CONNECT, address, str(PORT)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.strip()


def test_networks_with_the_entrys_edges_only_answer_with_receipts(
    separated: Deployment,
) -> None:
    with separated.client() as client:
        for _ in range(5):
            assert absent(separated.ask(client)) == set()


def test_only_the_entry_reaches_runners(
    separated: Deployment, network: Network
) -> None:
    first, second = network.runners[:2]
    assert connect_from(network.entry, first.address) == "connected"
    assert connect_from(first, first.address) == "connected"
    # No route at all: 101 is ENETUNREACH.
    assert connect_from(first, second.address) == "OSError 101"
    assert connect_from(first, network.entry.address) == "OSError 101"
    # Nor does the entry listen at its end of a runner's edge.
    own_end = first.address.removesuffix("2") + "1"
    assert connect_from(first, own_end) == "ConnectionRefusedError 111"


def test_each_networks_metrics_are_its_own(
    separated: Deployment, network: Network
) -> None:
    with separated.client() as client:
        separated.ask(client)
    assert "bentoml_secure_quorum_total" in separated.entry.metrics()
    url = f"http://{network.runners[0].address}:{PORT}/metrics"
    fetch = f"import httpx; r = httpx.get('{url}'); print(r.status_code, r.text)"
    done = subprocess.run(
        [*network.entry.enter, sys.executable, "-c", fetch],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith("200 ")
    assert "bentoml_secure_" not in done.stdout
