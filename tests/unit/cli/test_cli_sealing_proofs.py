"""``seal-proofs``: from a set-up in plain to a broker that has its prover keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.keys.key_file import read_keys
from bentoml_secure.keys.sealed_proofs import open_sealed_setup, require_sealed_setup
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.testing.deployment import make_plan
from tests.unit.cli.conftest import Run
from tests.unit.keys.proof_setups import write_setup


@pytest.fixture
def proofs_dir(tmp_path: Path) -> Path:
    return tmp_path / "proofs"


@pytest.fixture
def manifest(proofs_dir: Path) -> Manifest:
    return write_setup(proofs_dir, make_plan(2))


def test_a_setup_is_sealed_and_its_keys_go_to_a_broker(
    run: Run, proofs_dir: Path, manifest: Manifest, tmp_path: Path
) -> None:
    out, keys_file = tmp_path / "sealed", tmp_path / "prover.keys"
    result = run("seal-proofs", proofs_dir, "--out", out, "--keys", keys_file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == (
        f"manifest {manifest.digest}, signed by {manifest.signer_id}"
    )
    keys = read_keys(keys_file)
    assert keys.role is Role.PROVER
    for index, (segment, key) in enumerate(keys.keys):
        assert f"{segment}  prover key {key.key_id}" in result.stdout
        assert key.reveal().hex() not in result.stdout
        assert require_sealed_setup(out, manifest, index) == key.key_id
        open_sealed_setup(out, manifest, index, key).close()
    store, wrapping = tmp_path / "broker.db", tmp_path / "wrapping.key"
    run("broker", "init", store, "--wrapping-key", wrapping)
    result = run("broker", "add-keys", store, keys_file, "--wrapping-key", wrapping)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"2 keys of plan {manifest.plan}, for a prover only\n"
    log = json.loads(run("broker", "audit", store, "--json").stdout)
    added = [entry["details"] for entry in log["entries"][1:]]
    assert [details["role"] for details in added] == ["prover", "prover"]


def test_a_setup_that_was_altered_is_not_sealed_and_leaves_no_keys(
    run: Run, proofs_dir: Path, manifest: Manifest, tmp_path: Path
) -> None:
    assert manifest.plan
    (proofs_dir / "1/pk").write_bytes(b"other")
    keys_file = tmp_path / "prover.keys"
    result = run(
        "seal-proofs", proofs_dir, "--out", tmp_path / "o", "--keys", keys_file
    )
    assert (result.exit_code, result.stdout) == (1, "")
    assert "1/pk: got sha256" in result.stderr
    assert not keys_file.exists()


def test_a_folder_without_a_manifest(run: Run, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    keys_file = tmp_path / "prover.keys"
    result = run(
        *("seal-proofs", tmp_path / "none", "--out", tmp_path / "o"),
        *("--keys", keys_file),
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert "manifest.json" in result.stderr
    assert not keys_file.exists()
