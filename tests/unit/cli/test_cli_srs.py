"""``prove srs``: strings are imported by digest, or called unsafe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.proofs import srs_folder
from bentoml_secure.proofs.srs import PUBLISHED, verifier_digest, verifier_part
from bentoml_secure.proofs.srs_folder import SrsFolder
from tests.unit.cli.conftest import Run


def test_a_generated_string_is_asked_for_by_name_and_shown_as_unsafe(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "srs"
    refused = run("prove", "srs", "generate", "3", "--folder", folder)
    assert refused.exit_code == 2
    assert "can forge proofs under it" in refused.stderr
    assert not folder.exists()
    made = run("prove", "srs", "generate", "3", "--folder", folder, "--unsafe")
    assert made.exit_code == 0
    assert "UNSAFE" in made.stdout
    shown = run("prove", "srs", "show", "--folder", folder)
    part = verifier_part(folder / "kzg3.srs")
    assert shown.exit_code == 0
    assert "UNSAFE" in shown.stdout
    assert f"srs {verifier_digest(part)}" in shown.stdout.splitlines()
    secret = json.loads((folder / "srs.json").read_bytes())["secret"]
    assert secret not in made.stdout + shown.stdout


def test_the_environment_makes_nothing_unsafe(run: Run, tmp_path: Path) -> None:
    names = {"BENTOML_SECURE_PROVE_SRS_GENERATE_UNSAFE": "1"}
    folder = tmp_path / "srs"
    refused = run("prove", "srs", "generate", "3", "--folder", folder, env=names)
    assert refused.exit_code == 2
    assert not folder.exists()


def test_what_is_listed_for_programs_is_one_object(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "srs"
    file = SrsFolder(folder).generate(2)
    shown = run("prove", "srs", "show", "--folder", folder, "--json")
    assert json.loads(shown.stdout) == {
        "files": [
            {
                "logrows": 2,
                "file": file.digest,
                "source": "local",
                "unsafe": True,
                "srs": verifier_digest(verifier_part(file.path)),
            }
        ]
    }


def test_a_file_is_imported_if_it_is_published(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = SrsFolder(tmp_path / "ceremony").generate(3).path
    folder = tmp_path / "srs"
    refused = run("prove", "srs", "import", file, "--folder", folder)
    assert refused.exit_code == 1
    assert "the published file of 2**3 rows" in refused.stderr
    digest = digest_file_bytes(file.read_bytes())
    monkeypatch.setattr(srs_folder, "PUBLISHED", {**PUBLISHED, 3: digest})
    done = run("prove", "srs", "import", file, "--folder", folder)
    assert done.exit_code == 0
    assert done.stdout == f" 3  perpetual-powers-of-tau  {digest}\n"
    assert file.exists()


def test_an_empty_folder_and_a_changed_file_are_usage(run: Run, tmp_path: Path) -> None:
    empty = run("prove", "srs", "show", "--folder", tmp_path)
    assert empty.exit_code == 2
    assert "prove srs import FILE" in empty.stderr
    path = SrsFolder(tmp_path).generate(2).path
    path.write_bytes(bytes(len(path.read_bytes())))
    changed = run("prove", "srs", "show", "--folder", tmp_path)
    assert changed.exit_code == 2
    assert "kzg2.srs" in changed.stderr


@pytest.mark.parametrize("logrows", ["0", "21", "x"])
def test_sizes_out_of_range_are_usage(run: Run, tmp_path: Path, logrows: str) -> None:
    refused = run("prove", "srs", "generate", logrows, "--folder", tmp_path, "--unsafe")
    assert refused.exit_code == 2
