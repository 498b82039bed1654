"""Keys made anew: what an owner claims of a model is compared with the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bentoml_secure.cli import main
from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.errors import Finding, MissingDependencyError, VerificationError
from bentoml_secure.proofs.folder import ProofFolder
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.proofs.proof import Limits, ProofBackend
from bentoml_secure.proofs.rebuilding import rebuild
from bentoml_secure.proofs.srs_folder import SrsFolder
from bentoml_secure.testing.proof_set_up import ProofSetUp
from tests.unit.proofs.conftest import PARAMETERS, Owned, write_manifest

LIMITS = Limits(memory_bytes=4 << 30, seconds=120, threads=2)


@pytest.fixture
def altered(owned: Owned, tmp_path: Path) -> Callable[..., ProofFolder]:
    """Return what makes a copy with another manifest, signed by the owner."""

    def alter(made: ProofSetUp | None = None, **changes: bytes) -> ProofFolder:
        """Sign ``made`` and put other files in place."""
        shutil.copytree(owned.folder, tmp_path / "proofs")
        for name, data in changes.items():
            (tmp_path / "proofs/1" / name).write_bytes(data)
        write_manifest(tmp_path / "proofs", made or owned.set_up)
        return ProofFolder.read(tmp_path / "proofs", owned.plan)

    return alter


def second(made: ProofSetUp, **changes: Any) -> ProofSetUp:
    """Return a set-up that says something else of the second segment."""
    first, last = made.manifest.segments
    return made.altered(segments=(first, replace(last, **changes)))


def remade(owned: Owned, folder: ProofFolder) -> list[Finding]:
    return rebuild(
        folder,
        owned.plan,
        owned.plan_folder,
        backend=owned.set_up.backend,
        limits=LIMITS,
    )


def test_a_key_of_another_model_is_found(
    owned: Owned, altered: Callable[..., ProofFolder]
) -> None:
    # The first segment's, which an owner has signed as the second's.
    other = owned.set_up.keys[0].verification
    lie = second(owned.set_up, key=digest_file_bytes(other.key))
    (found,) = remade(owned, altered(lie, vk=other.key))
    assert found.field == "segment 1 key"
    assert found.got == digest_file_bytes(other.key)
    assert found.want == owned.set_up.manifest.segments[1].key


def test_settings_that_bind_no_weights_are_found(
    owned: Owned, altered: Callable[..., ProofFolder]
) -> None:
    settings = json.loads(owned.set_up.keys[1].verification.settings)
    settings["run_args"]["param_visibility"] = "Private"
    data = json.dumps(settings).encode()
    lie = second(owned.set_up, settings=digest_file_bytes(data))
    (found,) = remade(owned, altered(lie, **{"settings.json": data}))
    assert found.field == "segment 1 settings"
    assert "param_visibility" in found.got


def test_other_settings_are_found_by_name(
    owned: Owned, altered: Callable[..., ProofFolder]
) -> None:
    settings = json.loads(owned.set_up.keys[1].verification.settings)
    settings["run_args"]["num_inner_cols"] = 4
    data = json.dumps(settings).encode()
    lie = second(owned.set_up, settings=digest_file_bytes(data), rows=5)
    found = remade(owned, altered(lie, **{"settings.json": data}))
    assert [each.field for each in found] == [
        "segment 1 settings run_args",
        "segment 1 settings rows",
    ]


def test_another_order_of_range_checks_is_another_key_of_the_same_circuit(
    owned: Owned, altered: Callable[..., ProofFolder], tmp_path: Path
) -> None:
    made = owned.set_up.keys[1]
    settings = json.loads(made.verification.settings)
    settings["required_range_checks"].reverse()
    settings["timestamp"] = 0
    data = json.dumps(settings).encode()
    backend, proving = owned.set_up.backend, tmp_path / "pk"
    proving.touch()
    key = backend.set_up(
        backend.compile(owned.circuits[1], data, LIMITS), made.srs, proving, LIMITS
    )
    assert key != made.verification.key
    same = second(
        owned.set_up,
        settings=digest_file_bytes(data),
        key=digest_file_bytes(key),
        proving_key=digest_file_bytes(proving.read_bytes()),
    )
    folder = altered(same, vk=key, **{"settings.json": data})
    assert remade(owned, folder) == []


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"model": digest_file_bytes(b"")}, ["segment 1 model"]),
        (
            {"proving_key": digest_file_bytes(b""), "proving_key_bytes": 1},
            ["segment 1 proving_key", "segment 1 proving_key_bytes"],
        ),
    ],
)
def test_other_digests_are_found(
    owned: Owned,
    altered: Callable[..., ProofFolder],
    changes: dict[str, Any],
    fields: list[str],
) -> None:
    found = remade(owned, altered(second(owned.set_up, **changes)))
    assert [each.field for each in found] == fields


def test_files_that_are_not_the_manifests_are_findings(
    owned: Owned, altered: Callable[..., ProofFolder]
) -> None:
    (found,) = remade(owned, altered(vk=b"another"))
    assert found.field == "segment 1"
    assert found.got.startswith("1/vk: got")


def test_a_changed_plan_is_no_plan(owned: Owned, tmp_path: Path) -> None:
    shutil.copytree(owned.plan_folder, tmp_path / "plan")
    model = tmp_path / "plan" / owned.plan.segments[0].file
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(VerificationError, match="not the one that the plan"):
        rebuild(
            ProofFolder.read(owned.folder, owned.plan),
            owned.plan,
            tmp_path / "plan",
            backend=owned.set_up.backend,
            limits=LIMITS,
        )


def test_another_version_of_the_backend_makes_other_keys(
    owned: Owned, altered: Callable[..., ProofFolder]
) -> None:
    folder = altered(owned.set_up.altered(backend_version="22.0.0"))
    with pytest.raises(MissingDependencyError, match=r"want ezkl 22\.0\.0") as caught:
        remade(owned, folder)
    assert caught.value.remedy == "pip install ezkl==22.0.0"


def test_the_callers_own_strings_are_compared(owned: Owned, tmp_path: Path) -> None:
    other = SrsFolder(tmp_path / "other")
    other.generate(PARAMETERS.logrows)
    backend: ProofBackend = owned.set_up.backend
    found = rebuild(
        ProofFolder.read(owned.folder, owned.plan),
        owned.plan,
        owned.plan_folder,
        backend=backend,
        limits=LIMITS,
        srs_folder=other,
    )
    assert [each.field for each in found] == ["segment 0", "segment 1"]
    assert "kzg11.srs" in found[0].got


def verify_vk(owned: Owned, folder: Path, *more: str) -> Result:
    arguments = ["verify", "vk", str(folder), "--plan", str(owned.plan_folder)]
    return CliRunner().invoke(main, [*arguments, *more, "--json"])


def test_the_command_accepts_what_is_the_models(owned: Owned) -> None:
    manifest: Manifest = owned.set_up.manifest
    signer = ["--signer", manifest.signer_id, "--srs-folder", str(owned.srs_folder)]
    result = verify_vk(owned, owned.folder, *signer)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["verdict"] == "accepted"
    assert told["findings"] == []
    assert told["manifest"] == manifest.digest
    assert told["srs"] == manifest.srs.digest
    assert told["unsafe_srs"] is True
    assert told["segments"] == [setup.key for setup in manifest.segments]


def test_the_command_rejects_with_findings(
    owned: Owned, altered: Callable[..., ProofFolder]
) -> None:
    folder = altered(second(owned.set_up, model=digest_file_bytes(b"")))
    result = verify_vk(owned, folder.path, "--signer", "sha256:" + "0" * 64)
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["verdict"] == "rejected"
    fields = [finding["field"] for finding in told["findings"]]
    assert fields == ["manifest signer", "segment 1 model"]


def test_the_command_tells_a_verdict_from_usage(owned: Owned, tmp_path: Path) -> None:
    assert verify_vk(owned, tmp_path).exit_code == 2
    (tmp_path / "manifest.json").write_text("{}")
    assert verify_vk(owned, tmp_path).exit_code == 1
    result = CliRunner().invoke(
        main, ["verify", "vk", str(owned.folder), "--plan", str(tmp_path)]
    )
    assert result.exit_code == 2
