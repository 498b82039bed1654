"""Sealed and signed plans in a deployment, in this process."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import bentoml_secure
from bentoml_secure.attestation.attesters import DEV_ROOT
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
)
from bentoml_secure.keys.key_file import PlanKeys
from bentoml_secure.keys.model_signing import ModelSignature, sign_model, signer_digest
from bentoml_secure.keys.release_messages import ReleasedKey, ReleaseRequest
from bentoml_secure.keys.seal_model import seal_plan
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.serving import deployment as deployments
from bentoml_secure.serving import weights
from bentoml_secure.serving.deployment import Deployment
from bentoml_secure.serving.service import Runner
from bentoml_secure.serving.settings import (
    BROKER,
    STORE,
    read_settings,
)
from bentoml_secure.session.identity import Identity
from bentoml_secure.split import run_chain
from tests.harness import Project, sample

URL = "http://broker.example:3900"


class Owner:
    """A model's owner: their key, the plan signed, plain and sealed.

    Attributes:
        plain: A copy of the plan's folder.
        sealed: The same, sealed, with the signature in it.
        signature: Its file, outside of both.
        pem: The public key's file.
    """

    def __init__(self, folder: Path, plan: Path) -> None:
        self.private = folder / "owner.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        self.private.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        self.public = key.public_key()
        self.pem = write_public(folder / "owner.pub", self.public)
        self.plain = Path(shutil.copytree(plan, folder / "plain"))
        self.signature = folder / "plan.sig"
        self.signed: ModelSignature = sign_model(
            self.plain, self.private, self.signature
        )
        self.sealed = folder / "sealed"
        self.keys: PlanKeys
        _, self.keys = seal_plan(self.plain, self.sealed, signature=self.signed)


def write_public(path: Path, key: ec.EllipticCurvePublicKey) -> Path:
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


@pytest.fixture
def owner(project: Project, tmp_path: Path) -> Owner:
    return Owner(tmp_path, project.plan)


@pytest.fixture
def environment(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    monkeypatch.setenv(DEV_ROOT, str(project.dev_root))
    monkeypatch.setenv(STORE, str(tmp_path / "home" / "store"))
    monkeypatch.delenv(BROKER, raising=False)
    return monkeypatch


Read = Callable[..., Deployment]


@pytest.fixture
def read(project: Project, environment: pytest.MonkeyPatch) -> Read:
    def read(plan: Path, **changes: Any) -> Deployment:
        return Deployment.read(
            name="D",
            plan=plan,
            replicas=3,
            scenarios=project.folder / "services" / "scenarios.toml",
            threads=1,
            in_process=False,
            max_message_bytes=1 << 20,
            module="nowhere",
            **changes,
        )

    return read


def refused(call: Callable[[], object]) -> tuple[str, str]:
    """Return the check that refused, and what it got."""
    with pytest.raises(CheckFailedError) as caught:
        call()
    (finding,) = caught.value.findings
    return finding.field, finding.got


# Signed


def test_a_signed_plan_is_served_plain_and_sealed(read: Read, owner: Owner) -> None:
    plain = read(owner.plain, signer=owner.pem, signature=owner.signature)
    sealed = read(owner.sealed, signer=owner.pem)
    also = read(owner.sealed, signer=owner.pem, signature=owner.signature)
    assert plain.plan == sealed.plan == also.plan
    for deployment in (plain, sealed, also):
        for index in range(2):
            deployment.require_segment(index)


def test_what_is_demanded_of_the_model_is_in_the_configuration(
    read: Read, owner: Owner
) -> None:
    signed = {"signer": owner.pem, "signature": owner.signature}
    made = [
        read(owner.plain).configuration,
        read(owner.plain, **signed).configuration,
        read(owner.sealed).configuration,
        read(owner.sealed, **signed).configuration,
    ]
    assert len({c.digest for c in made}) == 4
    signer = signer_digest(owner.public)
    assert [(c.sealed, c.signer) for c in made] == [
        (False, None),
        (False, signer),
        (True, None),
        (True, signer),
    ]


def test_another_signer(read: Read, owner: Owner, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = write_public(tmp_path / "other.pub", key)
    assert refused(lambda: read(owner.sealed, signer=pem))[0] == "key"


@pytest.mark.parametrize("form", ["plain", "sealed"])
def test_an_altered_plan_does_not_even_load(
    read: Read, owner: Owner, form: str
) -> None:
    folder: Path = getattr(owner, form)
    path = folder / "plan.json"
    path.write_bytes(path.read_bytes() + b"\n")
    field, got = refused(
        lambda: read(folder, signer=owner.pem, signature=owner.signature)
    )
    assert field == "signed_file"
    assert got.startswith("plan.json ")


def test_an_unsigned_folder(read: Read, owner: Owner, tmp_path: Path) -> None:
    for folder in (owner.plain, owner.sealed):
        (folder / "model.sig").unlink(missing_ok=True)
        with pytest.raises(
            ConfigurationError, match=r"the model is not signed: .*model\.sig"
        ) as caught:
            read(folder, signer=owner.pem)
        assert "seal-model --signature" in caught.value.remedy
    with pytest.raises(ConfigurationError, match="none: not found"):
        read(owner.plain, signer=owner.pem, signature="none")
    with pytest.raises(ConfigurationError, match="got one, and no signer"):
        read(owner.plain, signature=owner.signature)
    with pytest.raises(ConfigurationError, match=r"signature: .*Is a directory"):
        read(owner.plain, signer=owner.pem, signature=tmp_path)


def change(folder: Path) -> None:
    data = bytearray((folder / "segment-1.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "segment-1.onnx").write_bytes(data)


HURTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "changed": (change, "segment-1.onnx was changed"),
    "added": (lambda f: (f / "more").write_text("x"), "more was added"),
    "missing": (lambda f: (f / "segment-1.onnx").unlink(), "onnx is missing"),
}


@pytest.mark.parametrize(("hurt", "said"), HURTS.values(), ids=HURTS.keys())
def test_a_plain_folder_that_is_not_as_it_was_signed(
    read: Read, owner: Owner, hurt: Callable[[Path], Any], said: str
) -> None:
    deployment = read(owner.plain, signer=owner.pem, signature=owner.signature)
    hurt(owner.plain)
    for _ in range(2):
        field, got = refused(lambda: deployment.require_segment(0))
        assert (field, said in got) == ("folder", True)


def test_a_sealed_file_that_is_not_as_it_was_sealed(read: Read, owner: Owner) -> None:
    deployment = read(owner.sealed, signer=owner.pem)
    file = owner.sealed / "sealed" / "1" / "segment-1.onnx.sealed"
    file.write_bytes(file.read_bytes()[:-1])
    deployment.require_segment(0)
    assert refused(lambda: deployment.require_segment(1))[0] == "length"
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"segment-1\.onnx\.sealed"):
        deployment.require_segment(1)


# Sealed


class Desk:
    """What stands in for the broker: hands out keys, notes who asked."""

    def __init__(self, keys: PlanKeys) -> None:
        self.keys = keys
        self.asked: list[tuple[str, Role, str, str]] = []

    def fetch(
        self,
        url: str,
        identity: Identity,
        judge: Any,
        request: ReleaseRequest,
        **_: Any,
    ) -> ReleasedKey:
        document = identity.keys.document
        self.asked.append((url, document.role, document.service, str(document.segment)))
        by_segment: dict[str, SegmentKey] = dict(self.keys.keys)
        key = by_segment[request.segment]
        assert request.key_id == key.key_id
        return ReleasedKey(segment=request.segment, key=key, audit=self.keys.plan)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note hardening in place of doing it: this process is the tests'."""
    noted: list[str] = []
    harden = functools.partial(noted.append, "hardened")
    monkeypatch.setattr(weights, "forbid_core_dumps", harden)
    return noted


def runner_of(deployment: Deployment, index: int) -> Any:
    return type(
        "Made",
        (Runner,),
        {"deployment": deployment, "name": f"R{index}", "segment_index": index},
    )


def test_runners_open_their_segments_with_keys_from_the_broker(
    read: Read,
    owner: Owner,
    environment: pytest.MonkeyPatch,
    steps: list[str],
) -> None:
    desk = Desk(owner.keys)
    identified: list[str] = []
    identify = Deployment.identify

    def noting(self: Deployment, *arguments: Any) -> Identity:
        identified.append(arguments[1])
        steps.append("identified")
        return identify(self, *arguments)

    environment.setattr(Deployment, "identify", noting)
    environment.setattr(deployments, "fetch_segment_key", desk.fetch)
    environment.setenv(BROKER, URL)
    deployment = read(owner.sealed, signer=owner.pem)
    tensors: dict[str, Any] = {"features": sample(3)}
    want = run_chain(owner.plain, tensors)["probability"]
    cores = [runner_of(deployment, index)().core for index in range(2)]
    for core, part in zip(cores, deployment.plan.segments, strict=True):
        inputs = {spec.name: tensors[spec.name] for spec in part.inputs}
        tensors |= core._run(inputs)
    np.testing.assert_array_equal(tensors["probability"], want)
    # Hardened before there is a key of its own even, and one identity for all of it.
    assert steps == ["hardened", "identified"] * 2
    assert desk.asked == [
        (URL, Role.RUNNER, f"R{index}", deployment.plan.segments[index].identity)
        for index in range(2)
    ]


def test_a_plain_plan_asks_no_broker_and_hardens_nothing(
    read: Read, owner: Owner, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        deployments, "fetch_segment_key", lambda *_, **__: pytest.fail("asked")
    )
    assert runner_of(read(owner.plain), 0)().core.identity
    assert steps == []


def test_the_wrong_key_opens_nothing(
    read: Read, owner: Owner, environment: pytest.MonkeyPatch, steps: list[str]
) -> None:
    environment.setenv(BROKER, URL)
    segment, _ = owner.keys.keys[0]
    wrong = ReleasedKey(
        segment=segment, key=SegmentKey.generate(), audit=owner.keys.plan
    )
    environment.setattr(deployments, "fetch_segment_key", lambda *_, **__: wrong)
    runner = runner_of(read(owner.sealed), 0)
    assert refused(runner)[0] == "key_id"
    assert runner.core_of_process is None
    assert steps == ["hardened"]


def test_sealed_weights_want_a_broker(
    read: Read, owner: Owner, environment: pytest.MonkeyPatch
) -> None:
    deployment = read(owner.sealed)
    with pytest.raises(ConfigurationError, match=r"R0: what is in .* is sealed") as e:
        deployment.broker_url("R0")
    assert f"Set {BROKER}=URL" in e.value.remedy
    environment.setenv(f"{BROKER}__R0", URL)
    assert deployment.broker_url("R0") == URL
    with pytest.raises(ConfigurationError, match="R1: what is in"):
        deployment.broker_url("R1")
    environment.setenv(BROKER, "ftp://broker")
    with pytest.raises(ConfigurationError, match=f"{BROKER} 'ftp://broker': want"):
        deployment.broker_url("R1")


def test_the_broker_is_named_in_settings(project: Project) -> None:
    environment = {DEV_ROOT: str(project.dev_root)}
    assert read_settings(environment, service="D").broker is None
    assert read_settings({**environment, BROKER: ""}, service="D").broker is None
    assert read_settings({**environment, BROKER: URL}, service="D").broker == URL


def test_the_supervisor_wants_the_broker_too(
    project: Project,
    owner: Owner,
    environment: pytest.MonkeyPatch,
    configure: Callable[..., None],
) -> None:
    class Asks:
        """Asks nothing."""

    made: Any = bentoml_secure.service(
        plan=owner.sealed,
        signer=owner.pem,
        replicas=3,
        scenarios=project.folder / "services" / "scenarios.toml",
        name="Made",
    )(Asks)
    configure(made)
    runner = made.all_services()["MadeSegment1Replica2"].inner
    with pytest.raises(ConfigurationError, match="MadeSegment1Replica2: what is in"):
        runner.bsec_check()
    environment.setenv(BROKER, URL)
    runner.bsec_check()
