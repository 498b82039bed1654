"""``broker init``, ``add-keys``, ``revoke``, ``audit``."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.attestation.key_document import package_digest
from bentoml_secure.digest import digest_json
from bentoml_secure.keys.broker_policy import parse_broker_policy
from bentoml_secure.keys.broker_store import BrokerStore, Revoked
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.testing.deployment import make_plan
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_cli_deployment import SCENARIOS
from tests.unit.keys.conftest import write_plan

SEGMENT = digest_json("a segment")


@pytest.fixture
def store(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "broker.db"
    result = run("broker", "init", path, "--wrapping-key", tmp_path / "wrapping.key")
    assert (result.exit_code, result.stderr) == (0, "")
    return path


@pytest.fixture
def keys_file(run: Run, tmp_path: Path) -> Path:
    folder, path = write_plan(tmp_path / "plan", make_plan(2)), tmp_path / "keys.json"
    run("seal-model", folder, "--out", tmp_path / "sealed", "--keys", path)
    return path


def entries(run: Run, store: Path) -> list[dict[str, object]]:
    result = run("broker", "audit", store, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["verdict"] == "accepted"
    assert document["head"] == document["entries"][-1]["digest"]
    made: list[dict[str, object]] = document["entries"]
    return made


def test_keys_go_from_sealing_to_the_store(
    run: Run, store: Path, keys_file: Path, tmp_path: Path
) -> None:
    wrapping = tmp_path / "wrapping.key"
    result = run("broker", "add-keys", store, keys_file, "--wrapping-key", wrapping)
    assert (result.exit_code, result.stderr) == (0, "")
    plan = make_plan(2)
    assert result.stdout == f"2 keys of plan {plan.digest}\n"
    assert [entry["event"] for entry in entries(run, store)] == [
        "created",
        "key-added",
        "key-added",
    ]
    again = run("broker", "add-keys", store, keys_file, "--wrapping-key", wrapping)
    assert again.exit_code == 2
    assert "it exists" in again.stderr


def test_another_stores_wrapping_key(
    run: Run, store: Path, keys_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.key"
    run("broker", "init", tmp_path / "other.db", "--wrapping-key", other)
    result = run("broker", "add-keys", store, keys_file, "--wrapping-key", other)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "was made with" in result.stderr


def test_a_key_file_that_others_may_read(
    run: Run, store: Path, keys_file: Path, tmp_path: Path
) -> None:
    keys_file.chmod(0o644)
    wrapping = tmp_path / "wrapping.key"
    result = run("broker", "add-keys", store, keys_file, "--wrapping-key", wrapping)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "want 0600" in result.stderr


def test_init_overwrites_nothing(run: Run, store: Path, tmp_path: Path) -> None:
    wrapping = (tmp_path / "wrapping.key").read_text()
    for options in (
        (store, "--wrapping-key", tmp_path / "new.key"),
        (tmp_path / "new.db", "--wrapping-key", tmp_path / "wrapping.key"),
    ):
        assert run("broker", "init", *options).exit_code == 2
    assert (tmp_path / "wrapping.key").read_text() == wrapping
    assert not (tmp_path / "new.db").exists()
    assert not (tmp_path / "new.key").exists()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("segment", SEGMENT),
        ("plan", digest_json("a plan")),
        ("key-document", digest_json("a document")),
        ("platform", "host-a.example 7"),
    ],
)
def test_a_revocation_holds_and_is_in_the_log(
    run: Run, store: Path, kind: str, value: str
) -> None:
    result = run("broker", "revoke", store, kind, value, "--reason", "it leaked")
    assert (result.exit_code, result.stderr) == (0, "")
    opened = BrokerStore(store)
    assert opened.is_revoked(Revoked(kind), value)
    assert not opened.is_revoked(Revoked(kind), "another")
    opened.close()
    last = entries(run, store)[-1]
    assert last["details"] == {"kind": kind, "value": value, "reason": "it leaked"}
    again = run("broker", "revoke", store, kind, value, "--reason", "again")
    assert again.exit_code == 2


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("segment", "x", "why"),
        ("plan", "sha256:" + "0" * 64, "why"),
        ("model", SEGMENT, "why"),
        ("platform", "", "why"),
        ("platform", "a\nb", "why"),
        ("segment", SEGMENT, ""),
        ("segment", SEGMENT, "a\nb"),
        ("segment", SEGMENT, "a" * 501),
    ],
)
def test_what_cannot_be_revoked(
    run: Run, store: Path, kind: str, value: str, reason: str
) -> None:
    result = run("broker", "revoke", store, kind, value, "--reason", reason)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(entries(run, store)) == 1


def test_the_log_is_shown_to_people(run: Run, store: Path) -> None:
    run("broker", "revoke", store, "segment", SEGMENT, "--reason", "it leaked")
    lines = run("broker", "audit", store).stdout.splitlines()
    assert lines[0].startswith("  1  ")
    assert "revoked  kind segment" in lines[1]
    assert lines[-2].startswith("head sha256-jcs-v1:")
    assert lines[-1] == "ACCEPTED  audit log"


def test_a_log_that_was_cut_is_rejected_by_a_noted_head(run: Run, store: Path) -> None:
    run("broker", "revoke", store, "segment", SEGMENT, "--reason", "it leaked")
    head = str(entries(run, store)[-1]["digest"])
    assert run("broker", "audit", store, "--head", head).exit_code == 0
    connection = sqlite3.connect(store)
    connection.execute("DROP TRIGGER audit_no_DELETE")
    connection.execute("DELETE FROM audit WHERE sequence = 2")
    connection.commit()
    connection.close()
    assert run("broker", "audit", store).exit_code == 0
    result = run("broker", "audit", store, "--head", head, "--json")
    assert result.exit_code == 1
    findings = json.loads(result.stdout)["findings"]
    assert [finding["field"] for finding in findings] == ["head"]


def test_a_head_that_is_no_digest(run: Run, store: Path) -> None:
    result = run("broker", "audit", store, "--head", "latest")
    assert (result.exit_code, result.stdout) == (2, "")


def test_no_store(run: Run, tmp_path: Path) -> None:
    result = run("broker", "audit", tmp_path / "none")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "broker init" in result.stderr


def test_the_policy_of_a_deployment(run: Run, tmp_path: Path) -> None:
    folder, root = write_plan(tmp_path / "plan", make_plan(2)), tmp_path / "root"
    (tmp_path / "scenarios.toml").write_text(SCENARIOS)
    run("dev-root", root)
    named: tuple[str | Path, ...] = (
        *("--scenarios", tmp_path / "scenarios.toml", "--service", "Diagnosis"),
        *("--policy", root / "policy.toml", "--replicas", "3"),
    )
    out = tmp_path / "broker.toml"
    result = run("broker", "policy", folder, *named, "--out", out)
    assert (result.exit_code, result.stdout) == (0, "")
    made = parse_broker_policy(out.read_bytes())
    assert made.appraisal == parse_policy((root / "policy.toml").read_bytes())
    plan = make_plan(2).digest
    assert list(made.models) == [plan]
    model = made.models[plan]
    assert model.roles == ("prover", "runner")
    assert model.packages == (package_digest(),)
    # What a sealed folder's trust file accepts, though this folder is plain.
    (folder / "sealed.json").write_text("")
    trust = parse_trust(run("trust", folder, *named).stdout.encode())
    assert model.config_digests == trust.config_digests
    printed = run("broker", "policy", folder, *named)
    assert printed.stdout == out.read_text()
