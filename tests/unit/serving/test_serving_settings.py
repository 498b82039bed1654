"""What a process is told by its environment, and what it is told is missing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from bentoml_secure.attestation.attesters import ATTESTER, DEV_ROOT
from bentoml_secure.cli.reputations import SUFFIX
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.serving.settings import (
    KEY_LIFETIME_SECONDS,
    POLICY,
    REPUTATION,
    SALT_TOKEN_FILE,
    STORE,
    TRIALS,
    Settings,
    from_environment,
    own_environment,
    read_settings,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "policy.toml").write_text("")
    return folder


def test_a_development_root_is_enough(root: Path, tmp_path: Path) -> None:
    environment = {DEV_ROOT: str(root), "BENTOML_HOME": str(tmp_path / "home")}
    assert read_settings(environment, service="Diagnosis") == Settings(
        attester="simulated",
        policy=root / "policy.toml",
        store=tmp_path / "home" / "bentoml_secure" / "diagnosis.sqlite",
        reputation=tmp_path / "home" / "bentoml_secure" / "diagnosis.reputation.sqlite",
        salt_token=None,
    )


def test_everything_may_be_named(root: Path, tmp_path: Path) -> None:
    policy, token = tmp_path / "policy", tmp_path / "token"
    policy.write_text("")
    token.write_text("  " + "t" * 32 + "\n")
    environment = {
        DEV_ROOT: str(root),
        POLICY: str(policy),
        STORE: str(tmp_path / "store"),
        SALT_TOKEN_FILE: str(token),
        ATTESTER: "tpm",
        KEY_LIFETIME_SECONDS: "3600",
    }
    settings = read_settings(environment, service="Diagnosis")
    assert settings.attester == "tpm"
    assert settings.key_lifetime == timedelta(hours=1)
    assert settings.policy == policy
    assert settings.store == tmp_path / "store"
    assert settings.salt_token == "t" * 32


def test_reputations_are_beside_the_receipts(root: Path, tmp_path: Path) -> None:
    home = {DEV_ROOT: str(root), "BENTOML_HOME": str(tmp_path)}
    settings = read_settings(home, service="Diagnosis")
    folder = tmp_path / "bentoml_secure"
    assert settings.reputation == folder / "diagnosis.reputation.sqlite"
    # Where the command line looks for it.
    assert settings.reputation.name.endswith(SUFFIX)
    assert settings.trials is None
    named = home | {STORE: str(tmp_path / "receipts.db")}
    settings = read_settings(named, service="Diagnosis")
    assert settings.reputation == tmp_path / "receipts.reputation.sqlite"


def test_reputations_and_trials_may_be_named(root: Path, tmp_path: Path) -> None:
    environment = {
        DEV_ROOT: str(root),
        REPUTATION: str(tmp_path / "ledger"),
        TRIALS: str(tmp_path / "trials"),
    }
    settings = read_settings(environment, service="Diagnosis")
    assert settings.reputation == tmp_path / "ledger"
    assert settings.trials == tmp_path / "trials"


def test_without_a_home_receipts_are_beside_bentomls_own(root: Path) -> None:
    settings = read_settings({DEV_ROOT: str(root)}, service="D")
    assert settings.store == Path.home() / "bentoml" / "bentoml_secure" / "d.sqlite"


def test_relative_paths_are_of_the_working_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    settings = read_settings({DEV_ROOT: "root", STORE: "s"}, service="D")
    assert settings.policy == root / "policy.toml"
    assert settings.store == root.parent / "s"


def test_hardware_wants_a_policy_of_its_own(root: Path) -> None:
    with pytest.raises(ConfigurationError, match="policy: none is named"):
        read_settings({ATTESTER: "tdx"}, service="D")
    policy = root / "policy.toml"
    settings = read_settings({ATTESTER: "tdx", POLICY: str(policy)}, service="D")
    assert (settings.attester, settings.policy) == ("tdx", policy)


@pytest.mark.parametrize("lifetime", ["0", "1", "x", "-60", "9" * 30, "1.5"])
def test_a_lifetime_of_keys_that_is_none(root: Path, lifetime: str) -> None:
    environment = {DEV_ROOT: str(root), KEY_LIFETIME_SECONDS: lifetime}
    with pytest.raises(ConfigurationError, match="KEY_LIFETIME_SECONDS: got"):
        read_settings(environment, service="D")


def test_one_process_of_several_has_variables_of_its_own(root: Path) -> None:
    environment = {
        DEV_ROOT: str(root),
        f"{ATTESTER}__DSegment0Replica1": "tpm",
        f"{DEV_ROOT}__DSegment0Replica2": str(root / "other"),
        "PATH__DSegment0Replica1": "/elsewhere",
        "PATH": "/bin",
    }
    kinds = [
        read_settings(own_environment(environment, name), service=name).attester
        for name in ("D", "DSegment0Replica0", "DSegment0Replica1")
    ]
    assert kinds == ["simulated", "simulated", "tpm"]
    assert own_environment(environment, "DSegment0Replica1")["PATH"] == "/bin"
    with pytest.raises(ConfigurationError, match="other does not exist"):
        read_settings(own_environment(environment, "DSegment0Replica2"), service="D")


@pytest.mark.parametrize("environment", [{}, {DEV_ROOT: ""}])
def test_a_process_that_cannot_attest_itself_does_not_start(
    environment: dict[str, str],
) -> None:
    with pytest.raises(ConfigurationError, match="no attester is configured") as caught:
        read_settings(environment, service="D")
    assert "bentoml-secure dev-root DIR" in caught.value.remedy
    assert DEV_ROOT in caught.value.remedy


def test_folders_and_files_that_are_not_there(root: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for environment, why in (
        ({DEV_ROOT: missing}, f"development root: {missing} does not exist"),
        ({DEV_ROOT: str(root), POLICY: missing}, f"policy: {missing} does not exist"),
    ):
        with pytest.raises(ConfigurationError, match=why) as caught:
            read_settings(environment, service="D")
        assert "correct the variable" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"short", "got a token of 5 characters, want 32"),
        (b" " * 40, "got a token of 0 characters"),
        (b"\xff" * 40, f"{SALT_TOKEN_FILE}: 'utf-8' codec"),
        (None, "No such file"),
    ],
)
def test_a_token_that_is_none(
    root: Path, tmp_path: Path, content: bytes | None, why: str
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    environment = {DEV_ROOT: str(root), SALT_TOKEN_FILE: str(token)}
    with pytest.raises(ConfigurationError, match=why):
        read_settings(environment, service="D")


def test_the_environment_of_this_process(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (POLICY, STORE, SALT_TOKEN_FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(DEV_ROOT, str(root))
    assert from_environment("D").policy == root / "policy.toml"
