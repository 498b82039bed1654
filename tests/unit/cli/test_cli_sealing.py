"""``sign-model``, ``verify-model``, ``seal-model``: options, files, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bentoml_secure.keys.key_file import read_keys
from bentoml_secure.keys.sealed_plan import load_manifest, open_sealed_segment
from bentoml_secure.split import load_plan
from bentoml_secure.testing.deployment import make_plan
from tests.unit.cli.conftest import Run
from tests.unit.keys.conftest import write_plan


@pytest.fixture
def plan_dir(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "plan", make_plan(2))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public half lies beside it as .pub."""
    secret = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "owner.pem"
    path.write_bytes(
        secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    path.with_suffix(".pub").write_bytes(
        secret.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


@pytest.fixture
def signature(run: Run, plan_dir: Path, key: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.sig"
    result = run("sign-model", plan_dir, "--key", key, "--out", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{plan_dir}: 3 files signed in {path}\n"
    return path


def test_a_plan_is_sealed_and_opens_with_its_keys(
    run: Run, plan_dir: Path, tmp_path: Path
) -> None:
    out, keys_file = tmp_path / "sealed", tmp_path / "keys.json"
    result = run("seal-model", plan_dir, "--out", out, "--keys", keys_file)
    assert (result.exit_code, result.stderr) == (0, "")
    plan = load_plan(out)
    assert result.stdout.splitlines()[-1] == f"plan {plan.digest}"
    keys, manifest = read_keys(keys_file), load_manifest(out)
    for index, (segment, secret) in enumerate(keys.keys):
        assert f"{segment}  key {secret.key_id}" in result.stdout
        assert manifest.key_id(plan, index) == secret.key_id
        assert open_sealed_segment(out, plan, index, secret)
        assert secret.reveal().hex() not in result.stdout


def test_a_signed_plan_is_sealed_with_its_signature(
    run: Run, plan_dir: Path, key: Path, signature: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sealed"
    options: list[str | Path] = [
        "--signature",
        signature,
        "--public-key",
        key.with_suffix(".pub"),
    ]
    result = run(
        "seal-model", plan_dir, "--out", out, "--keys", tmp_path / "k", *options
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert (out / "model.sig").read_bytes() == signature.read_bytes()


def test_an_altered_plan_is_not_sealed(
    run: Run, plan_dir: Path, key: Path, signature: Path, tmp_path: Path
) -> None:
    (plan_dir / "more.txt").write_text("more")
    out, keys_file = tmp_path / "sealed", tmp_path / "keys.json"
    options: list[str | Path] = [
        "--signature",
        signature,
        "--public-key",
        key.with_suffix(".pub"),
    ]
    result = run("seal-model", plan_dir, "--out", out, "--keys", keys_file, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "more.txt was added" in result.stderr
    assert not out.exists()
    assert not keys_file.exists()


def test_half_a_demand_for_a_signature_is_none(
    run: Run, plan_dir: Path, signature: Path, tmp_path: Path
) -> None:
    for option in ("--signature", "--public-key"):
        result = run(
            *("seal-model", plan_dir, "--out", tmp_path / "o"),
            *("--keys", tmp_path / "k", option, signature),
        )
        assert result.exit_code == 2
        assert "together" in result.stderr


def test_a_failed_sealing_leaves_no_keys(
    run: Run, plan_dir: Path, tmp_path: Path
) -> None:
    (plan_dir / "segment-1.onnx").write_bytes(b"other")
    keys_file = tmp_path / "keys.json"
    result = run("seal-model", plan_dir, "--out", tmp_path / "o", "--keys", keys_file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "segment-1.onnx: got sha256" in result.stderr
    assert not keys_file.exists()


def test_keys_are_never_written_over_a_file(
    run: Run, plan_dir: Path, tmp_path: Path
) -> None:
    keys_file = tmp_path / "keys.json"
    keys_file.write_text("mine")
    result = run("seal-model", plan_dir, "--out", tmp_path / "o", "--keys", keys_file)
    assert result.exit_code == 2
    assert "nothing is overwritten" in result.stderr
    assert keys_file.read_text() == "mine"
    assert not (tmp_path / "o").exists()


def test_a_model_verifies(run: Run, plan_dir: Path, key: Path, signature: Path) -> None:
    options: list[str | Path] = [
        "--signature",
        signature,
        "--public-key",
        key.with_suffix(".pub"),
    ]
    result = run("verify-model", plan_dir, *options)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "ACCEPTED  model"
    verdict = json.loads(run("verify-model", plan_dir, *options, "--json").stdout)
    assert verdict["verdict"] == "accepted"
    assert verdict["files"].keys() == {
        "plan.json",
        "segment-0.onnx",
        "segment-1.onnx",
    }


def test_an_altered_model_is_rejected(
    run: Run, plan_dir: Path, key: Path, signature: Path
) -> None:
    (plan_dir / "segment-0.onnx").write_bytes(b"other")
    options: list[str | Path] = [
        "--signature",
        signature,
        "--public-key",
        key.with_suffix(".pub"),
    ]
    result = run("verify-model", plan_dir, *options, "--json")
    assert result.exit_code == 1
    verdict = json.loads(result.stdout)
    assert [finding["field"] for finding in verdict["findings"]] == ["folder"]
    assert verdict["findings"][0]["got"] == "segment-0.onnx was changed"


@pytest.mark.parametrize("missing", ["signature", "key", "folder"])
def test_files_that_are_not_there_are_usage_errors(
    run: Run, plan_dir: Path, key: Path, signature: Path, missing: str, tmp_path: Path
) -> None:
    none = tmp_path / "none"
    result = run(
        "verify-model",
        none if missing == "folder" else plan_dir,
        *("--signature", none if missing == "signature" else signature),
        *("--public-key", none if missing == "key" else key.with_suffix(".pub")),
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(none) in result.stderr


def test_a_private_key_is_no_public_key(
    run: Run, plan_dir: Path, key: Path, signature: Path
) -> None:
    result = run(
        "verify-model", plan_dir, "--signature", signature, "--public-key", key
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert "PRIVATE" not in result.stderr
