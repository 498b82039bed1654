"""``prove setup``: what it makes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from bentoml_secure.cli import main
from bentoml_secure.errors import ProofError
from bentoml_secure.proofs.backends import open_backend
from bentoml_secure.proofs.folder import ProofFolder
from bentoml_secure.proofs.linking import verify_chain
from bentoml_secure.proofs.links import Link
from bentoml_secure.proofs.proof import BoundaryValues, Limits
from bentoml_secure.split import load_plan
from tests.proof_case import INPUT, measurements, proof_plan

LIMITS = Limits(memory_bytes=4 << 30, seconds=120, threads=2)
PEM = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def work(tmp_path: Path) -> Path:
    proof_plan(tmp_path / "plan", segments=1)
    np.savez(tmp_path / "samples.npz", measurements=measurements(4)[INPUT])
    (tmp_path / "owner.pem").write_bytes(
        Ed25519PrivateKey.generate().private_bytes(*PEM)
    )
    return tmp_path


def setup(work: Path, *options: str, key: str = "owner.pem") -> Result:
    command = ["prove", "setup", str(work / "plan"), "--out", str(work / "proofs")]
    command += ["--samples", str(work / "samples.npz"), "--key", str(work / key)]
    command += ["--srs", str(work / "srs"), "--accuracy", "0.05", *options]
    return CliRunner().invoke(main, command)


def test_a_plan_is_set_up_with_chosen_parameters(work: Path) -> None:
    np.savez(work / "tests.npz", measurements=measurements(7)[INPUT])
    result = setup(
        *(work, "--unsafe-srs", "--shape", "measurements=1,4", "--memory", "64"),
        *("--tests", str(work / "tests.npz")),
    )
    assert result.exit_code == 0, result.output
    assert "scores, test set: largest difference" in result.stdout
    assert "7 requests" in result.stdout
    manifest = ProofFolder.read(work / "proofs", load_plan(work / "plan")).manifest
    assert f"manifest {manifest.digest}" in result.stdout
    assert f"signer {manifest.signer_id}" in result.stdout
    assert "scores, samples: largest difference" in result.stdout
    assert "2^11 rows" in result.stdout
    assert "unsafe" in result.stderr


def test_segments_are_linked_by_commitments_where_it_is_asked_for(
    work: Path, tmp_path: Path
) -> None:
    proof_plan(tmp_path / "three" / "plan", segments=3)
    (work / "plan").rename(work / "other")
    (tmp_path / "three" / "plan").rename(work / "plan")
    result = setup(work, "--unsafe-srs", "--links", "polycommit")
    assert result.exit_code == 0, result.output
    assert "warning: polycommit links: proofs tell of" in result.stderr
    plan = load_plan(work / "plan")
    folder = ProofFolder.read(work / "proofs", plan)
    made = folder.manifest
    assert made.link is Link.POLYCOMMIT
    assert len({segment.parameters.logrows for segment in made.segments}) == 1
    backend, proofs = open_backend("ezkl"), []
    boundary = (*[0] * 4, *made.salt.expand(bytes(32)))
    for index in range(3):
        salt, outs = made.salt.expand(bytes([index]) * 32), list[BoundaryValues]()
        key = folder.proving_key(index)
        proofs.append(backend.prove(key, boundary, salt, LIMITS, outs.append))
        (boundary,) = outs
    keys = [folder.verification_key(index) for index in range(3)]
    verify_chain(made, keys, proofs, backend=backend)
    with pytest.raises(ProofError, match="link 0 to 1"):
        verify_chain(made, keys, [proofs[0], proofs[2], proofs[1]], backend=backend)
    command = ["verify", "vk", str(folder.path), "--plan", str(work / "plan")]
    told = CliRunner().invoke(main, [*command, "--signer", made.signer_id, "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["links"] == "polycommit"


def test_a_test_set_that_shows_more_than_the_bound_is_an_error(work: Path) -> None:
    # Numbers that no sample prepared the circuits for.
    far = measurements(4)[INPUT] * np.float32(30)
    np.savez(work / "tests.npz", measurements=far)
    result = setup(
        *(work, "--unsafe-srs", "--shape", "measurements=1,4"),
        *("--tests", str(work / "tests.npz")),
    )
    assert result.exit_code != 0
    assert "on the test set, want at most 0.05" in result.stderr or (
        "range" in result.stderr
    ), result.stderr
    assert not (work / "proofs").exists()


def test_no_string_is_made_unasked_and_the_environment_does_not_ask(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_SECURE_PROVE_SETUP_UNSAFE_SRS", "1")
    monkeypatch.setenv("BENTOML_SECURE_PROVE_SETUP_LINKS", "neither")
    result = setup(work)
    assert result.exit_code == 2
    assert "has no file of 2**11 rows" in result.stderr
    assert "prove srs import" in result.stderr
    assert not (work / "proofs").exists()


def test_a_key_of_another_kind_is_refused(work: Path) -> None:
    key = generate_private_key(SECP256R1()).private_bytes(*PEM)
    (work / "other.pem").write_bytes(key)
    result = setup(work, key="other.pem")
    assert result.exit_code == 2
    assert "want an Ed25519 private key" in result.stderr
    assert "openssl genpkey -algorithm ed25519" in result.stderr


def test_what_is_no_key_is_refused(work: Path) -> None:
    assert "want an Ed25519" in setup(work, key="samples.npz").stderr


@pytest.mark.parametrize(
    "text", ["", "=1,4", "measurements", "measurements=1,x", "m=0"]
)
def test_a_shape_is_a_name_and_sizes(work: Path, text: str) -> None:
    result = setup(work, "--shape", text)
    assert result.exit_code == 2
    assert "want such as features=1,30" in result.stderr


def test_samples_that_are_no_archive_are_refused(work: Path) -> None:
    (work / "samples.npz").write_bytes(b"none")
    result = setup(work)
    assert result.exit_code == 2
    assert "samples.npz: is not an .npz" in result.stderr
