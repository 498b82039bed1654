"""The folder of a set-up: every file is the manifest's; what bundles carry of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    SecureError,
    VerificationError,
)
from bentoml_secure.proofs import folder as folder_module
from bentoml_secure.proofs.boundary import FixedTensor
from bentoml_secure.proofs.folder import ProofFolder, parse_verification_keys
from bentoml_secure.proofs.proof import BoundaryValues, Limits
from bentoml_secure.proofs.srs_folder import SrsFolder
from bentoml_secure.testing.deployment import make_plan
from tests.unit.proofs.conftest import PARAMETERS, Owned, write_manifest

LIMITS = Limits(memory_bytes=4 << 30, seconds=120, threads=2)


@pytest.fixture
def copied(owned: Owned, tmp_path: Path) -> ProofFolder:
    """Return a copy of the set-up that a test may damage."""
    shutil.copytree(owned.folder, tmp_path / "proofs")
    return ProofFolder.read(tmp_path / "proofs", owned.plan)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_the_folder_holds_proves_and_verifies(owned: Owned) -> None:
    folder = ProofFolder.read(owned.folder, owned.plan)
    assert folder.manifest == owned.set_up.manifest
    assert not folder.is_sealed
    manifest, backend = folder.manifest, owned.set_up.backend
    salt = manifest.salt.expand(bytes(32))
    out: list[BoundaryValues] = []
    proof = backend.prove(
        folder.proving_key(0), (128, -64, 32, 0, *salt), salt, LIMITS, out.append
    )
    (came_out,) = out
    assert came_out[8:] == salt
    keys = parse_verification_keys(folder.verification_keys_document())
    assert keys == folder.verification_keys()
    backend.verify([(proof, keys.keys[0])], manifest.srs.verifier, LIMITS)
    with pytest.raises(SecureError, match="does not verify"):
        backend.verify([(proof, keys.keys[1])], manifest.srs.verifier, LIMITS)


@pytest.mark.parametrize("name", ["settings.json", "vk", "circuit", "pk"])
def test_a_changed_file_is_refused(copied: ProofFolder, name: str) -> None:
    damage(copied.path / "1" / name)
    with pytest.raises(VerificationError, match=f"^1/{name}: got sha256-file-v1"):
        copied.proving_key(1)
    copied.proving_key(0)


@pytest.mark.parametrize("name", ["settings.json", "vk", "circuit", "pk"])
def test_a_missing_file_is_named(copied: ProofFolder, name: str) -> None:
    (copied.path / "1" / name).unlink()
    with pytest.raises(ConfigurationError, match=f"1/{name}"):
        copied.proving_key(1)


def test_keys_of_two_segments_are_not_exchanged(copied: ProofFolder) -> None:
    first, second = copied.path / "0/vk", copied.path / "1/vk"
    swapped = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(swapped)
    with pytest.raises(VerificationError, match=r"^0/vk"):
        copied.verification_keys()


def test_a_link_out_of_the_folder_is_refused(
    copied: ProofFolder, tmp_path: Path
) -> None:
    key = copied.path / "0/pk"
    key.rename(tmp_path / "pk")
    key.symlink_to(tmp_path / "pk")
    with pytest.raises(VerificationError, match="leads out of the folder"):
        copied.proving_key(0)


def test_another_string_of_the_same_size_is_refused(
    copied: ProofFolder, tmp_path: Path
) -> None:
    other = SrsFolder(tmp_path / "other").generate(PARAMETERS.logrows)
    shutil.copy(other.path, copied.path / "srs" / other.path.name)
    with pytest.raises(VerificationError, match=r"^srs/kzg11\.srs: got"):
        copied.srs(0)


def test_a_verifiers_part_that_is_not_the_files_is_refused(
    owned: Owned, copied: ProofFolder
) -> None:
    srs = replace(owned.set_up.manifest.srs, verifier=bytes(320))
    write_manifest(copied.path, owned.set_up.altered(srs=srs))
    folder = ProofFolder.read(copied.path, owned.plan)
    with pytest.raises(VerificationError, match="its verifier's part is not the one"):
        folder.proving_key(0)


def test_a_sealed_folder_gives_keys_to_verify_only(
    owned: Owned, copied: ProofFolder
) -> None:
    (copied.path / "sealed.json").write_text("{}")
    assert copied.is_sealed
    assert copied.verification_keys().keys
    with pytest.raises(ConfigurationError, match="are sealed"):
        copied.proving_key(0)
    key = copied.proving_key(0, lambda index: (b"circuit", index))
    assert (key.circuit, key.key) == (b"circuit", 0)


@pytest.mark.parametrize("index", [-1, 2])
def test_there_is_no_other_segment(owned: Owned, index: int) -> None:
    folder = ProofFolder.read(owned.folder, owned.plan)
    for use in (folder.verification_key, folder.proving_key, folder.srs):
        with pytest.raises(ConfigurationError, match="the set-up has 0 to 1"):
            use(index)


def test_the_set_up_of_another_plan_is_refused(owned: Owned) -> None:
    with pytest.raises(VerificationError, match=r"^manifest plan: got"):
        ProofFolder.read(owned.folder, make_plan(2, provable=True))


def test_segments_of_another_plan_are_refused(
    owned: Owned, copied: ProofFolder
) -> None:
    first, second = owned.set_up.manifest.segments
    other = replace(first, segment=owned.plan.digest)
    write_manifest(copied.path, owned.set_up.altered(segments=(other, second)))
    with pytest.raises(VerificationError, match="are not those of the plan that"):
        ProofFolder.read(copied.path, owned.plan)


def test_tensors_of_another_plan_are_refused(owned: Owned, copied: ProofFolder) -> None:
    first, second = owned.set_up.manifest.segments
    tensors = (FixedTensor(name="pixels", shape=(1, 4)),)
    changed = (replace(first, inputs=tensors), second)
    write_manifest(copied.path, owned.set_up.altered(segments=changed))
    with pytest.raises(VerificationError, match="segment 0 inputs: are not those"):
        ProofFolder.read(copied.path, owned.plan)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b" " * (5 << 20)])
def test_damaged_manifests_are_refused(
    owned: Owned, copied: ProofFolder, data: bytes
) -> None:
    (copied.path / "manifest.json").write_bytes(data)
    with pytest.raises(MalformedInputError, match=r"manifest\.json"):
        ProofFolder.read(copied.path, owned.plan)


def with_entry(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    first, second = document["segments"]
    return document | {"segments": [first, second | changes]}


def test_what_bundles_carry_is_read_strictly(owned: Owned) -> None:
    made = owned.set_up.document
    first, second = made["segments"]
    for given, reason in (
        (made | {"more": 1}, "unknown field 'more'"),
        ({"manifest": made["manifest"]}, "field 'segments' is missing"),
        (made | {"segments": [first]}, "got 1, want 2"),
        (made | {"segments": [first, second, second]}, "got 3, want 2"),
        (made | {"segments": [{}] * 300}, "at most 256"),
        (with_entry(made, key=None), "key 1: want base64"),
        (with_entry(made, key="!"), "key 1 is not base64"),
        (with_entry(made, settings="A" * (2 << 20)), "settings 1: want base64"),
        (made | {"manifest": {}}, "manifest: want exactly payload"),
    ):
        with pytest.raises(MalformedInputError, match=reason):
            parse_verification_keys(given)
    swapped = made | {"segments": [second, first]}
    with pytest.raises(VerificationError, match=r"^0/settings\.json: got"):
        parse_verification_keys(swapped)
    with pytest.raises(VerificationError, match=r"^1/vk: got"):
        parse_verification_keys(with_entry(made, key=first["key"]))


def test_too_much_is_refused_before_it_is_decoded(
    owned: Owned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "decode_base64", None)
    made = owned.set_up.document
    with pytest.raises(MalformedInputError, match="over 16777216 bytes in all"):
        parse_verification_keys(
            with_entry(made, settings="A" * (12 << 20), key="A" * (12 << 20))
        )


def test_keys_that_no_bundle_could_carry_are_refused_at_the_source(
    owned: Owned, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ProofFolder.read(owned.folder, owned.plan)
    assert len(folder.verification_key(0).key) > 1000
    monkeypatch.setattr(folder_module, "MAX_KEYS_BYTES", 1000)
    with pytest.raises(MalformedInputError, match="over 1000 bytes in all"):
        folder.verification_keys_document()


def test_a_key_that_the_manifest_pins_is_the_file(owned: Owned) -> None:
    folder = ProofFolder.read(owned.folder, owned.plan)
    setup = folder.manifest.segments[1]
    assert digest_file_bytes(folder.verification_key(1).key) == setup.key
