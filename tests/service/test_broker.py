"""Sealed weights in service: runners that get their keys from a broker.

Broker and deployment are processes of their own, started as docs/sealed-models.md says.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bentoml_secure.keys.audit_log import Event
from bentoml_secure.keys.release import RELEASE_PATH
from bentoml_secure.keys.release_messages import OPERATION, ReleasedKey
from bentoml_secure.serving.settings import BROKER
from bentoml_secure.session.bodies import SealedCall
from tests.attacks import raw
from tests.attacks.raiders import SEALED, opened, sealed
from tests.harness import serve
from tests.service.brokers import PAGE, BrokerHost, Vault, shown
from tests.service.deployments import (
    BACK_SECONDS,
    REPLICAS,
    Deployment,
    absent,
    eventually,
)
from tests.service.scanning import WINDOW_BYTES, Scanner, weights_of

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """TMPDIR of the deployment; short, for sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def served(vault: Vault, broker: BrokerHost, temporary: Path) -> Iterator[Deployment]:
    """The sealed model, served as the page shows, and its callers' trust file."""
    vault.run(shown("bentoml-secure trust"))
    (command,) = shown("BENTOML_SECURE_BROKER=").splitlines()
    setting, *words = command.split()
    assert setting.partition("=")[0] == BROKER
    assert words[:2] == ["bentoml", "serve"]
    env = {BROKER: broker.url, "TMPDIR": str(temporary)}
    home = vault.project.folder / "home"
    with serve(words[2], vault.project, home, env=env) as entry:
        deployment = Deployment(
            entry=entry, project=vault.project, trust=vault.folder / "trust.toml"
        )
        yield deployment.whole()


def test_the_service_is_the_pages() -> None:
    code = (HERE / "sealed.py").read_text()
    decorator = code[code.index("@bentoml_secure.service") : code.index("    secure:")]
    assert f"```python\n{decorator}    ...\n```" in PAGE.read_text()


def test_answers_are_right_receipts_verify_and_each_release_is_in_the_log(
    served: Deployment, vault: Vault
) -> None:
    with served.client() as client:
        answers = [served.ask(client) for _ in range(12)]
    assert not any(absent(answer) for answer in answers)
    for answer in answers:
        assert answer.verdict.claims["dissenters"] == []
    segments = {
        entry.details["service"]: entry.details["segment"]
        for entry in vault.audit()
        if entry.event is Event.RELEASED and entry.details["service"] in REPLICAS
    }
    assert segments == {
        name: vault.plan.segments[index // 3].identity
        for index, name in enumerate(REPLICAS)
    }


def test_a_plain_deployments_trust_file_does_not_accept_it(
    served: Deployment, vault: Vault, deployment: Deployment
) -> None:
    shown_digest = vault.config_digest
    assert shown_digest in served.trust.read_text()
    assert shown_digest not in deployment.trust.read_text()


def test_runners_of_sealed_weights_are_not_dumped(
    served: Deployment, broker: BrokerHost
) -> None:
    workers = served.entry.workers()
    assert broker.served is not None
    holders = {**broker.served.workers(), **{name: workers[name] for name in REPLICAS}}
    assert len(holders) == 7
    for name, process in holders.items():
        limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
        (core,) = (line for line in limits if line.startswith("Max core file size"))
        assert core.split()[-3:-1] == ["0", "0"], name
        # The kernel gives what belongs to an undumpable process to the superuser.
        assert Path(f"/proc/{process.pid}/environ").stat().st_uid == 0
        if os.geteuid() != 0:
            with pytest.raises(psutil.AccessDenied):
                process.environ()


def test_no_weight_is_in_any_file(
    served: Deployment, vault: Vault, temporary: Path
) -> None:
    with served.client() as client:
        served.ask(client)
    scanner = Scanner(weights_of(vault.plain_plan))
    looked = [path for path in vault.project.folder.rglob("*") if path.is_file()]
    names = {path.name for path in looked}
    assert {"log", "plan.json", "sealed.json", "diagnosis.sqlite"} <= names
    assert scanner.files(vault.project.folder) == []
    assert scanner.files(temporary) == []
    assert scanner.files(vault.broker_folder) == []
    assert scanner.files(vault.folder / "home-broker") == []


def test_the_scan_finds_weights_where_a_model_is_served_in_plain(
    deployment: Deployment,
) -> None:
    scanner = Scanner(weights_of(deployment.project.plan))
    found = scanner.files(deployment.project.folder)
    plan = deployment.project.plan.relative_to(deployment.project.folder)
    assert {f"{plan}/segment-{index}.onnx" for index in range(2)} <= set(found)


def test_the_scan_finds_every_window_wherever_it_stands() -> None:
    # Noise shares no byte with the secret: nothing around a window may lengthen it.
    drawn = random.Random(1)
    secret = bytes(drawn.choices(range(128), k=1000))
    scanner = Scanner([secret])
    noise = bytes(drawn.choices(range(128, 256), k=500))
    for begin in (0, 1, 7, 500, 1000 - WINDOW_BYTES):
        window = secret[begin : begin + WINDOW_BYTES]
        for before in range(9):
            assert scanner.finds(noise[:before] + window + noise)
            assert not scanner.finds(noise[:before] + window[:-1] + noise)
    assert scanner.finds(b"key: " + secret.hex().encode())
    assert scanner.finds(b"...." + secret[:1] + secret[1:].hex().encode())


def test_a_broker_that_goes_and_comes_back(
    served: Deployment, broker: BrokerHost, vault: Vault
) -> None:
    raider = vault.raider()
    call = SealedCall.begin(broker.session(raider), OPERATION)
    body = sealed(call, vault.request(0).to_bytes())
    first = opened(call, raw.post(broker.url, RELEASE_PATH, body, SEALED))
    released = ReleasedKey.from_bytes(first.body, request=vault.request(0))
    assert released.key == vault.keys.keys[0][1]
    name = "DiagnosisSegment0Replica1"
    broker.stop()
    with served.client() as client:
        # Who has a key goes on without the broker.
        assert not absent(served.ask(client))
        killed = served.entry.workers()[name]
        killed.kill()
        assert absent(served.ask(client)) == {name}
        eventually(
            lambda: f"broker {broker.url}: {broker.url}" in served.entry.log(),
            seconds=BACK_SECONDS,
            what=f"{name} waits for the broker",
        )
        assert absent(served.ask(client)) == {name}
        waiting = served.entry.workers()[name]
        before = len(vault.audit())
        broker.start()
        # The session is gone with the old process, and a replay with it.
        replayed = raw.post(broker.url, RELEASE_PATH, body, SEALED)
        assert (replayed.status, replayed.code) == (401, "unknown-session")
        eventually(
            lambda: not absent(served.ask(client)),
            seconds=BACK_SECONDS,
            what=f"{name} is back",
        )
    assert served.entry.workers()[name].pid == waiting.pid
    entries = vault.audit()[before:]
    assert [(e.event, e.details["service"]) for e in entries] == [
        (Event.RELEASED, name)
    ]
