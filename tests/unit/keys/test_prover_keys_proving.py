"""A sealed set-up proves: its files in memory are what a real backend is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.keys.seal_proofs import seal_setup
from bentoml_secure.keys.sealed_proofs import open_sealed_setup
from bentoml_secure.proofs.folder import ProofFolder
from bentoml_secure.proofs.proof import BoundaryValues, Contents, Limits
from bentoml_secure.testing.deployment import make_plan
from bentoml_secure.testing.proof_set_up import ProofSetUp
from tests import proven_case

LIMITS = Limits(memory_bytes=4 << 30, seconds=120, threads=2)


def write_folder(folder: Path, made: ProofSetUp) -> Path:
    """Write a set-up as its owner has it."""

    def write(path: str, contents: Contents) -> None:
        """Write one file, from bytes or from another."""
        assert not isinstance(contents, int)
        data = contents if isinstance(contents, bytes) else contents.read_bytes()
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)

    for index, key in enumerate(made.keys):
        write(f"{index}/settings.json", key.verification.settings)
        write(f"{index}/vk", key.verification.key)
        write(f"{index}/circuit", key.circuit)
        write(f"{index}/pk", key.key)
        write(f"srs/{key.srs.name}", key.srs)
    write("manifest.json", canonical_json(made.envelope.to_json()))
    return folder


def test_a_sealed_setup_proves_and_its_proof_verifies(tmp_path: Path) -> None:
    made = proven_case.set_up()
    plain = write_folder(tmp_path / "proofs", made)
    manifest, keys = seal_setup(plain, tmp_path / "sealed")
    assert manifest == made.manifest
    plan = make_plan(2, provable=True)
    folder = ProofFolder.read(tmp_path / "sealed", plan)
    with pytest.raises(ConfigurationError, match="are sealed"):
        folder.proving_key(1)
    opened = open_sealed_setup(folder.path, folder.manifest, 1, keys.keys[1][1])
    try:
        key = folder.proving_key(1, lambda _: (opened.circuit, opened.proving_key))
        salt = manifest.salt.expand(bytes(32))
        boundary = (3, -5, 0, 7, *salt)
        out: list[BoundaryValues] = []
        proof = made.backend.prove(key, boundary, salt, LIMITS, out.append)
        (came_out,) = out
        assert came_out == (3, 0, 0, 7, *salt)
        made.backend.verify([(proof, key.verification)], manifest.srs.verifier, LIMITS)
    finally:
        opened.close()
