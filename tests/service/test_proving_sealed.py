"""A sealed proof set-up in service: provers get their keys, and write no plaintext."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.cli import main as cli
from bentoml_secure.client import Answer
from bentoml_secure.digest import derive_salt
from bentoml_secure.keys.audit_log import Event
from bentoml_secure.keys.key_file import PlanKeys, read_keys
from bentoml_secure.keys.release_messages import ReleasedKey
from bentoml_secure.proofs.boundary import activations_of
from bentoml_secure.serving.settings import BROKER
from bentoml_secure.tensors import Array
from tests.harness import REPOSITORY, serve
from tests.proof_case import INPUT, OUTPUT, ProofCase
from tests.service.brokers import BrokerHost, Vault, broker_of, pinned
from tests.service.faulting import suspended
from tests.service.proving import (
    PROVEN_FOLDER,
    SECONDS,
    SERVICE,
    TARGET,
    Proving,
    configuration_of,
    proven_project,
    write_proven_trust,
)
from tests.service.test_proving_kills import child_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A sealed model with a sealed proof set-up, and who owns it.

    Attributes:
        vault: The owner's, with the keys of the plan.
        prover_keys: Of the set-up.
        case: The set-up in plain.
        broker: Running.
    """

    vault: Vault
    prover_keys: PlanKeys
    case: ProofCase
    broker: BrokerHost


def owner_runs(*words: object) -> None:
    cli.main([str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    folder = tmp_path_factory.mktemp("sealed")
    project, case = proven_project(folder, replicas=1)
    owner = folder / "owner"
    shutil.copytree(REPOSITORY / "services", project.folder / "services")
    policy = project.dev_root / "policy.toml"
    policy.write_text(pinned(policy.read_text()))
    for plain in (project.plan, project.folder / PROVEN_FOLDER):
        shutil.rmtree(plain)
    plan_keys, prover_keys = owner / "plan.keys", owner / "prover.keys"
    owner_runs("seal-model", case.folder, "--out", project.plan, "--keys", plan_keys)
    proofs = project.folder / PROVEN_FOLDER
    owner_runs("seal-proofs", case.proofs, "--out", proofs, "--keys", prover_keys)
    (owner / "broker").mkdir(mode=0o700)
    store, wrapping = owner / "broker" / "broker.db", owner / "broker" / "wrapping.key"
    owner_runs("broker", "init", store, "--wrapping-key", wrapping)
    for file in (plan_keys, prover_keys):
        owner_runs("broker", "add-keys", store, file, "--wrapping-key", wrapping)
    owner_runs(
        *("broker", "policy", project.plan, "--proofs", proofs, "--policy", policy),
        *("--scenarios", project.folder / "proven.toml", "--service", SERVICE),
        *("--replicas", 1, "--out", owner / "broker" / "policy.toml"),
    )
    keys = read_keys(plan_keys)
    vault = Vault(folder=owner, project=project, keys=keys, retired=keys)
    with broker_of(vault) as broker:
        yield Sealed(
            vault=vault, prover_keys=read_keys(prover_keys), case=case, broker=broker
        )


@pytest.fixture(scope="module")
def running(sealed: Sealed) -> Iterator[Proving]:
    project, case = sealed.vault.project, sealed.case
    configuration = configuration_of(project, case, replicas=1, sealed=True)
    assert configuration.digest == sealed.vault.config_digest
    trust = write_proven_trust(project, case, configuration)
    env = {BROKER: sealed.broker.url}
    home = project.folder / "home"
    with serve(TARGET, project, home, env=env, ready_seconds=SECONDS) as entry:
        yield Proving(entry=entry, project=project, case=case, trust=trust)


def test_provers_get_their_own_segments_key(running: Proving, sealed: Sealed) -> None:
    with running.client("critical") as client:
        answer = running.confirmed(client, running.ask(client)[0])
    assert answer.verdict.claims["proof_opening"] == "checked"
    running.require_each_once(answer)
    released = {
        entry.details["service"]: entry.details["key_id"]
        for entry in sealed.vault.audit()
        if entry.event is Event.RELEASED and "Prover" in entry.details["service"]
    }
    assert released == {
        running.prover(index): key.key_id
        for index, (_, key) in enumerate(sealed.prover_keys.keys)
    }


def test_nobody_else_gets_a_prover_key(sealed: Sealed) -> None:
    vault, broker = sealed.vault, sealed.broker
    wanted = vault.request(0, sealed.prover_keys)
    runner = vault.raider(0, service=f"{SERVICE}Segment0Replica0")
    said = broker.ask(runner, wanted)
    assert said.status >= 400
    assert "key_role: got runner, want prover" in json.dumps(said.error)
    other = vault.raider(1, service=f"{SERVICE}Prover1", role=Role.PROVER)
    said = broker.ask(other, wanted)
    assert said.status >= 400
    # It is the key's owner that makes the difference, and nothing else of the request.
    own = vault.raider(0, service=f"{SERVICE}Prover0", role=Role.PROVER)
    said = broker.ask(own, wanted)
    assert (
        ReleasedKey.from_bytes(said.body, request=wanted).key
        == (sealed.prover_keys.keys[0][1])
    )


def spelled(values: Sequence[int]) -> list[bytes]:
    """Return integers as programs write them: int64, JSON with and without blanks."""
    listed = list(values)
    return [
        np.array(listed, "<i8").tobytes(),
        np.array(listed, ">i8").tobytes(),
        json.dumps(listed)[1:-1].encode(),
        json.dumps(listed, separators=(",", ":"))[1:-1].encode(),
    ]


def witness(running: Proving, answer: Answer, features: Array) -> list[bytes]:
    """Return how a witness, or what it follows from, would stand in a file."""
    manifest = running.case.manifest
    scores = np.asarray(answer.value["scores"], np.float32)
    found = [features.tobytes(), scores.tobytes(), answer.root_salt]
    found += [answer.root_salt.hex().encode()]
    found += [repr(value).encode() for value in features.ravel().tolist()]
    form = manifest.segments[0].inputs
    found += spelled(activations_of({INPUT: features}, form, manifest.scale))
    for boundary in range(len(manifest.segments) + 1):
        salt = derive_salt(
            answer.root_salt,
            request_id=bytes.fromhex(answer.receipt_id),
            infer_index=0,
            purpose="proof",
            name=str(boundary),
        )
        # Stands at the end of the boundary, whose activations nobody else knows.
        found += [salt, salt.hex().encode(), *spelled(manifest.salt.expand(salt))]
    return found


def holders(folder: Path, secrets: Sequence[bytes]) -> list[str]:
    """Return the files below a folder in which a secret stands."""
    found = []
    for path in sorted(folder.rglob("*")):
        # Who is served goes on, and removes files as it likes.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                data = path.read_bytes()
                if any(secret in data for secret in secrets):
                    found.append(path.relative_to(folder).as_posix())
    return found


def test_no_witness_is_in_any_file(running: Proving, tmp_path: Path) -> None:
    folder = running.project.folder
    with running.client("critical") as client:
        answer, features = running.ask(client)
        secrets = witness(running, answer, features)
        for segment in running.segments:
            # While it is proven: the order, and what the one before handed on.
            with suspended([child_of(running, segment)]):
                job = running.job(answer.receipt_id, segment)
                assert job is not None
                names = {path.name for path in running.state.iterdir()}
                assert f"{running.prover(segment).lower()}.jobs.sqlite" in names
                assert holders(folder, secrets) == []
        answer = running.confirmed(client, answer)
    assert holders(folder, secrets) == []
    running.require_each_once(answer)
    # The scan would have seen them.
    for number, secret in enumerate(secrets):
        (tmp_path / str(number)).write_bytes(b"before " + secret + b" after")
    assert len(holders(tmp_path, secrets)) == len(secrets)
    assert OUTPUT in answer.value


def test_proving_keys_are_sealed(sealed: Sealed) -> None:
    folder = sealed.vault.project.folder / PROVEN_FOLDER
    names = {path.name for path in folder.rglob("*")}
    assert names >= {"pk.sealed", "circuit.sealed", "vk", "settings.json"}
    assert not names & {"pk", "circuit"}
