from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.attestation.dev_root import create_dev_root, load_dev_root
from bentoml_secure.digest import digest_bytes
from bentoml_secure.errors import ConfigurationError

MakeRoot = Callable[[Path], Path]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_root_is_a_key_a_certificate_and_a_policy(
    tmp_path: Path, now: datetime
) -> None:
    folder = tmp_path / "a" / "root"
    digest = create_dev_root(folder, now=now)
    assert {path.name for path in folder.iterdir()} == {
        "root.key",
        "root.pem",
        "policy.toml",
    }
    assert (mode(folder), mode(folder / "root.key")) == (0o700, 0o600)
    policy = parse_policy((folder / "policy.toml").read_bytes())
    assert policy.to_json()["simulated"]["roots"] == [digest]
    assert (policy.allow, policy.max_age_seconds) == (("simulated",), 300)
    _, der = load_dev_root(folder, now=now)
    assert digest_bytes(der) == digest
    certificate = x509.load_der_x509_certificate(der)
    assert "SIMULATED - NOT HARDWARE" in certificate.subject.rfc4514_string()
    assert "SIMULATED - NOT HARDWARE" in (folder / "policy.toml").read_text()


def test_an_empty_folder_becomes_private(tmp_path: Path, now: datetime) -> None:
    folder = tmp_path / "root"
    folder.mkdir(mode=0o755)
    create_dev_root(folder, now=now)
    assert mode(folder) == 0o700


def test_nothing_is_overwritten(tmp_path: Path, now: datetime) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="is not empty"):
        create_dev_root(tmp_path, now=now)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert mode(tmp_path) == 0o755


def test_a_folder_that_cannot_be_made(tmp_path: Path, now: datetime) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"development root in .*file"):
        create_dev_root(tmp_path / "file" / "root", now=now)


def test_a_missing_root_names_the_command(tmp_path: Path, now: datetime) -> None:
    with pytest.raises(ConfigurationError, match=r"root\.key.*bentoml-secure dev-root"):
        load_dev_root(tmp_path, now=now)


@pytest.mark.parametrize("name", ["root.key", "root.pem"])
def test_a_damaged_file_is_refused(
    tmp_path: Path, now: datetime, make_root: MakeRoot, name: str
) -> None:
    folder = make_root(tmp_path / "root")
    (folder / name).write_text("damaged")
    with pytest.raises(ConfigurationError, match="development root in"):
        load_dev_root(folder, now=now)


def test_a_key_and_a_certificate_of_two_roots(
    tmp_path: Path, now: datetime, make_root: MakeRoot
) -> None:
    one, other = make_root(tmp_path / "one"), make_root(tmp_path / "other")
    (one / "root.pem").write_bytes((other / "root.pem").read_bytes())
    with pytest.raises(ConfigurationError, match="leaf certificate is not signed by"):
        load_dev_root(one, now=now)


def test_a_key_of_another_algorithm(
    tmp_path: Path, now: datetime, make_root: MakeRoot
) -> None:
    folder = make_root(tmp_path / "root")
    (folder / "root.key").write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )
    with pytest.raises(ConfigurationError, match="not an Ed25519 key"):
        load_dev_root(folder, now=now)


def test_a_root_lasts_a_year(
    tmp_path: Path, now: datetime, make_root: MakeRoot
) -> None:
    folder = make_root(tmp_path / "root")
    load_dev_root(folder, now=now + timedelta(days=365))
    with pytest.raises(ConfigurationError, match="certificate is good from"):
        load_dev_root(folder, now=now + timedelta(days=365, seconds=1))
