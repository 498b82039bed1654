"""``tpm``: a software TPM is enrolled, on one host and across two."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.attesters import open_attester
from bentoml_secure.attestation.attesters.tpm_tools import Tpm2Tools
from bentoml_secure.attestation.tees.tpm import Tpm
from bentoml_secure.attestation.tees.tpm_authority import parse_authority_key
from bentoml_secure.attestation.tees.tpm_credential import EnrolmentRequest
from bentoml_secure.attestation.tees.tpm_enrolment import parse_enrolment
from bentoml_secure.digest import digest_bytes
from bentoml_secure.errors import PolicyRejected
from bentoml_secure.testing.swtpm import SoftwareTpm, missing_tools
from bentoml_secure.testing.tpm_pki import TpmPki, marshal_public
from tests.unit.cli.conftest import Run

needs_swtpm = pytest.mark.skipif(
    bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}"
)

ZERO = bytes(32).hex()
OTHER_ROOT = "sha256:" + "0" * 64
SECONDS = 60.0


@pytest.fixture(scope="module")
def device() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as running:
        yield running


@pytest.fixture
def root(device: SoftwareTpm) -> str:
    certificates = x509.load_pem_x509_certificates(device.chain)
    return digest_bytes(certificates[-1].public_bytes(Encoding.DER))


@pytest.fixture
def key(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    assert run("tpm", "authority", path).exit_code == 0
    return path


@pytest.fixture
def chain(device: SoftwareTpm, tmp_path: Path) -> Path:
    path = tmp_path / "chain.pem"
    path.write_bytes(device.chain)
    return path


def table_of(printed: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(printed)["tpm"]
    return table


def key_id(key: Path) -> str:
    return parse_authority_key(key.read_bytes()).public.key_id


def judge(device: SoftwareTpm, folder: Path, table: dict[str, Any]) -> str:
    """Open the TPM as a service does, and have the policy judge what it shows."""
    environ = {
        "BENTOML_SECURE_TPM_TCTI": device.tcti,
        "BENTOML_SECURE_TPM_FOLDER": str(folder),
    }
    now = datetime.now(UTC)
    opened = open_attester("tpm", environ, clock=lambda: now)
    claims = Tpm().verify(opened.attest(bytes(64)), opened.endorsements, now=now)
    policy = {"version": 1, "max_age_seconds": 300, "allow": ["tpm"], "tpm": table}
    return appraise(
        claims,
        AppraisalPolicy.from_table(policy),
        report_data=bytes(64),
        now=now,
        nonce_issued_at=now,
    ).kind


class TestAuthority:
    def test_its_key_is_a_secret_and_new(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        made = run("tpm", "authority", path)
        assert made.exit_code == 0
        assert made.stdout.strip() == key_id(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        before = path.read_bytes()
        again = run("tpm", "authority", path)
        assert again.exit_code == 2
        assert "nothing is overwritten" in again.stderr
        assert path.read_bytes() == before

    def test_one_that_others_may_read(
        self, run: Run, key: Path, tmp_path: Path
    ) -> None:
        key.chmod(0o640)
        done = run(
            *("tpm", "enrol", "--authority", key, "--ek-root", OTHER_ROOT),
            *("--folder", tmp_path / "tpm"),
        )
        assert done.exit_code == 2
        assert "got mode 0640, want 0600" in done.stderr
        assert not (tmp_path / "tpm").exists()

    def test_a_root_that_is_no_digest(
        self, run: Run, key: Path, tmp_path: Path
    ) -> None:
        done = run(
            *("tpm", "enrol", "--authority", key, "--ek-root", "sha256:12"),
            *("--folder", tmp_path / "tpm"),
        )
        assert done.exit_code == 2
        assert "--ek-root" in done.stderr


@needs_swtpm
class TestEnrol:
    def test_a_service_shows_it_under_the_policy_that_was_printed(
        self, run: Run, key: Path, chain: Path, root: str, device: SoftwareTpm
    ) -> None:
        folder = key.parent / "new" / "tpm"
        options: tuple[str | Path, ...] = ("--folder", folder, "--tcti", device.tcti)
        done = run(
            *("tpm", "enrol", "--authority", key, "--ek-root", root, *options),
            *("--ek-chain", chain, "--days", "3"),
        )
        assert done.exit_code == 0, done.stderr
        assert "SIMULATED" in done.stderr
        table = table_of(done.stdout)
        assert table["ek_roots"] == [root]
        assert table["enrolment"] == [key_id(key)]
        assert set(table["pcr"]) == {str(n) for n in (*range(10), 11, 12, 13, 14)}
        assert judge(device, folder, table) == "tpm"
        _, enrolment = parse_enrolment(
            json.loads((folder / "enrolment.json").read_bytes())
        )
        assert enrolment.not_after - enrolment.issued_at == timedelta(days=3)
        # Anew, over the folder that is there, and with one that does not read.
        (folder / "enrolment.json").write_text("{}")
        again = run("tpm", "enrol", "--authority", key, "--ek-root", root, *options)
        assert again.exit_code == 0, again.stderr
        assert table_of(again.stdout) == table
        # What is booted later is not what the policy lists.
        measured = "11" * 32
        Tpm2Tools(device.tcti).run(["tpm2_pcrextend", f"4:sha256={measured}"])
        try:
            with pytest.raises(PolicyRejected, match="pcr"):
                judge(device, folder, table)
            now = run("tpm", "policy", *options, "--pcrs", "4,7")
        finally:
            device.reset()
        booted = table_of(now.stdout)["pcr"]
        assert set(booted) == {"4", "7"}
        assert booted["7"] == [ZERO] != booted["4"]

    def test_a_chain_of_der_is_kept_as_pem(
        self, run: Run, key: Path, root: str, device: SoftwareTpm
    ) -> None:
        folder = key.parent / "tpm"
        given: list[str | Path] = []
        for at, each in enumerate(x509.load_pem_x509_certificates(device.chain)):
            path = key.parent / f"{at}.der"
            path.write_bytes(each.public_bytes(Encoding.DER))
            given += ["--ek-chain", path]
        done = run(
            *("tpm", "enrol", "--authority", key, "--ek-root", root),
            *("--folder", folder, "--tcti", device.tcti, *given),
        )
        assert done.exit_code == 0, done.stderr
        kept = x509.load_pem_x509_certificates((folder / "ek_chain.pem").read_bytes())
        assert kept == x509.load_pem_x509_certificates(device.chain)

    def test_a_maker_that_is_not_enrolled(
        self, run: Run, key: Path, chain: Path, device: SoftwareTpm
    ) -> None:
        folder = key.parent / "tpm"
        done = run(
            *("tpm", "enrol", "--authority", key, "--ek-root", OTHER_ROOT),
            *("--folder", folder, "--tcti", device.tcti, "--ek-chain", chain),
        )
        assert done.exit_code == 1
        assert "enrolment.ek_root" in done.stderr
        assert done.stdout == ""
        assert not (folder / "enrolment.json").exists()

    def test_no_chain(
        self, run: Run, key: Path, root: str, device: SoftwareTpm
    ) -> None:
        done = run(
            *("tpm", "enrol", "--authority", key, "--ek-root", root),
            *("--folder", key.parent / "tpm", "--tcti", device.tcti),
        )
        assert done.exit_code == 3
        assert "is not among the endorsements" in done.stderr

    def test_a_chain_that_is_none(
        self, run: Run, key: Path, root: str, device: SoftwareTpm
    ) -> None:
        done = run(
            *("tpm", "enrol", "--authority", key, "--ek-root", root),
            *("--folder", key.parent / "tpm", "--tcti", device.tcti),
            *("--ek-chain", key),
        )
        assert done.exit_code == 2
        assert "--ek-chain: no certificate" in done.stderr

    def test_no_policy_without_an_enrolment(
        self, run: Run, tmp_path: Path, device: SoftwareTpm
    ) -> None:
        done = run("tpm", "policy", "--folder", tmp_path, "--tcti", device.tcti)
        assert done.exit_code == 2
        assert "has no enrolment" in done.stderr


@needs_swtpm
class TestAcrossHosts:
    @pytest.fixture
    def asked(self, run: Run, tmp_path: Path, chain: Path, device: SoftwareTpm) -> Path:
        path = tmp_path / "request.json"
        done = run(
            *("tpm", "request", "--folder", tmp_path / "tpm", "--out", path),
            *("--tcti", device.tcti, "--ek-chain", chain),
        )
        assert done.exit_code == 0, done.stderr
        return path

    @pytest.fixture
    def arguments(self, asked: Path, key: Path, root: str) -> list[str]:
        """Of ``authorise``."""
        folder = asked.parent
        named = {
            "authority": key,
            "ek-root": root,
            "request": asked,
            "challenge": folder / "challenge.json",
            "answer": folder / "answer.json",
            "out": folder / "tpm" / "enrolment.json",
            "timeout-seconds": SECONDS,
        }
        return [part for n, value in named.items() for part in (f"--{n}", str(value))]

    def test_three_steps(
        self, run: Run, tmp_path: Path, arguments: list[str], device: SoftwareTpm
    ) -> None:
        code = "from bentoml_secure.cli import main; main()"
        command = [sys.executable, "-c", code, "tpm", "authorise", *arguments]
        pipe, options = subprocess.PIPE, ("--folder", tmp_path / "tpm")
        with subprocess.Popen(command, stdout=pipe, stderr=pipe) as authority:
            wait_for(tmp_path / "challenge.json")
            answered = run(
                *("tpm", "answer", tmp_path / "challenge.json", *options),
                *("--tcti", device.tcti, "--out", tmp_path / "answer.json"),
            )
            assert answered.exit_code == 0, answered.stderr
            said, complained = authority.communicate(timeout=SECONDS)
        assert authority.returncode == 0, complained
        assert b"enrolled by sha256:" in said
        done = run("tpm", "policy", *options, "--tcti", device.tcti)
        assert done.exit_code == 0, done.stderr
        assert judge(device, tmp_path / "tpm", table_of(done.stdout)) == "tpm"

    def test_another_answer(
        self, run: Run, tmp_path: Path, arguments: list[str]
    ) -> None:
        def answer() -> None:
            wait_for(tmp_path / "challenge.json")
            path = tmp_path / "answer.json"
            # As if it were still being copied, at first.
            path.write_text('{"secret": "')
            time.sleep(0.3)
            path.write_text('{"secret": "AAAA"}')

        device = threading.Thread(target=answer)
        device.start()
        done = run("tpm", "authorise", *arguments)
        device.join()
        assert done.exit_code == 1
        assert "enrolment.answer" in done.stderr
        assert not (tmp_path / "tpm" / "enrolment.json").exists()

    def test_no_answer(self, run: Run, tmp_path: Path, arguments: list[str]) -> None:
        arguments[-1] = "0.1"
        done = run("tpm", "authorise", *arguments)
        assert done.exit_code == 3
        assert "no answer within 0.1 s" in done.stderr
        assert not (tmp_path / "tpm" / "enrolment.json").exists()

    def test_an_answer_that_never_reads(
        self, run: Run, tmp_path: Path, arguments: list[str]
    ) -> None:
        arguments[-1] = "1"

        def answer() -> None:
            wait_for(tmp_path / "challenge.json")
            (tmp_path / "answer.json").write_text("{}")

        device = threading.Thread(target=answer)
        device.start()
        done = run("tpm", "authorise", *arguments)
        device.join()
        assert done.exit_code == 1
        assert "enrolment answer" in done.stderr

    def test_an_answer_from_before(
        self, run: Run, tmp_path: Path, arguments: list[str]
    ) -> None:
        (tmp_path / "answer.json").write_text('{"secret": "AAAA"}')
        done = run("tpm", "authorise", *arguments)
        assert done.exit_code == 2
        assert "answer.json: exists" in done.stderr
        assert not (tmp_path / "challenge.json").exists()

    def test_a_request_with_another_key_is_not_answered(
        self, run: Run, tmp_path: Path, arguments: list[str], device: SoftwareTpm
    ) -> None:
        asked = tmp_path / "request.json"
        document = json.loads(asked.read_bytes())
        forged = EnrolmentRequest.from_json(
            document
            | {
                "ak_public": EnrolmentRequest(
                    ek_certificate=b"",
                    ak_public=marshal_public(TpmPki().ak_key),
                    endorsements=(),
                ).to_json()["ak_public"]
            }
        )
        asked.write_text(json.dumps(forged.to_json()))
        arguments[-1] = "0.1"
        assert run("tpm", "authorise", *arguments).exit_code == 3
        answered = run(
            *("tpm", "answer", tmp_path / "challenge.json"),
            *("--folder", tmp_path / "tpm", "--tcti", device.tcti),
            *("--out", tmp_path / "answer.json"),
        )
        assert answered.exit_code == 3
        assert "tpm2_activatecredential failed" in answered.stderr
        assert not (tmp_path / "answer.json").exists()

    def test_a_request_of_another_form(
        self, run: Run, tmp_path: Path, arguments: list[str]
    ) -> None:
        (tmp_path / "request.json").write_text("[]")
        done = run("tpm", "authorise", *arguments)
        assert done.exit_code == 1
        assert "enrolment request" in done.stderr

    def test_a_challenge_of_another_form(
        self, run: Run, tmp_path: Path, asked: Path, device: SoftwareTpm
    ) -> None:
        done = run(
            *("tpm", "answer", asked, "--folder", tmp_path / "tpm"),
            *("--tcti", device.tcti, "--out", tmp_path / "answer.json"),
        )
        assert done.exit_code == 1
        assert "enrolment challenge" in done.stderr


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)
