"""How a TPM is opened: variables, files, and what is said where there is none."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation.attesters import open_attester
from bentoml_secure.attestation.attesters.tpm import KnownTpm, TpmAttester
from bentoml_secure.attestation.attesters.tpm_tools import Tpm2Tools
from bentoml_secure.attestation.tees.tpm import Tpm, parse_tpm_evidence
from bentoml_secure.attestation.tees.tpm_credential import (
    challenge_enrolment,
    conclude_enrolment,
)
from bentoml_secure.attestation.tees.tpm_endorsement import verify_endorsement_key
from bentoml_secure.errors import (
    ConfigurationError,
    MissingDependencyError,
    UnavailableError,
)
from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.swtpm import SoftwareTpm, missing_tools
from bentoml_secure.testing.tpm_pki import TpmPki

pytestmark = pytest.mark.skipif(
    bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}"
)

AUTHORITY = SigningKey.generate()
REPORT_DATA = bytes(range(64))

NOW = datetime.now(UTC) + timedelta(days=1)
"""Later than the TPM is made, whose certificate begins by the system's clock."""


@pytest.fixture(scope="module")
def tpm() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as running:
        yield running


@pytest.fixture(scope="module")
def enrolment(tpm: SoftwareTpm) -> Any:
    known = KnownTpm(endorsements=(tpm.chain,))
    attester = TpmAttester(Tpm2Tools(tpm.tcti), known=known)
    request = attester.request_enrolment()
    ek = verify_endorsement_key(request.ek_certificate, request.endorsements, now=NOW)
    pending = challenge_enrolment(request, ek_roots=[ek.root], now=NOW)
    answer = attester.activate(pending.credential)
    lifetime = timedelta(days=30)
    return conclude_enrolment(
        pending, answer, AUTHORITY, now=NOW, lifetime=lifetime
    ).to_json()


class TestOpening:
    @pytest.fixture
    def environ(self, tpm: SoftwareTpm, enrolment: Any, tmp_path: Path) -> Any:
        (tmp_path / "enrolment.json").write_text(json.dumps(enrolment))
        (tmp_path / "ek_chain.pem").write_bytes(tpm.chain)
        return {
            "BENTOML_SECURE_TPM_TCTI": tpm.tcti,
            "BENTOML_SECURE_TPM_FOLDER": str(tmp_path),
            "BENTOML_SECURE_TPM_PCRS": "7, 0, 16",
        }

    def test_from_the_environment(self, environ: Any, tpm: SoftwareTpm) -> None:
        opened = open_attester("tpm", environ, clock=lambda: NOW)
        assert opened.kind == "tpm"
        assert opened.endorsements == (tpm.chain,)
        evidence = opened.attest(REPORT_DATA)
        claims = Tpm().verify(evidence, opened.endorsements, now=NOW)
        assert claims.claims["enrolment"] == AUTHORITY.public.key_id
        assert claims.claims["pcrs"].keys() == {"0", "7", "16"}

    def test_registers_by_default(self, environ: Any) -> None:
        del environ["BENTOML_SECURE_TPM_PCRS"]
        evidence = open_attester("tpm", environ, clock=lambda: NOW).attest(REPORT_DATA)
        pcrs = parse_tpm_evidence(evidence).pcrs
        assert set(range(15)) - set(pcrs) == {10}

    def test_a_certificate_from_a_file(self, environ: Any) -> None:
        certificate = TpmPki().ek_certificate
        folder = Path(environ["BENTOML_SECURE_TPM_FOLDER"])
        (folder / "ek_certificate.der").write_bytes(certificate)
        opened = TpmAttester.from_environment(environ, clock=lambda: NOW)
        assert opened.request_enrolment().ek_certificate == certificate

    def test_it_says_so_where_nobody_enrolled_it(
        self, environ: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        (Path(environ["BENTOML_SECURE_TPM_FOLDER"]) / "enrolment.json").unlink()
        with caplog.at_level(logging.WARNING):
            open_attester("tpm", environ, clock=lambda: NOW)
        assert "no enrolment" in caplog.text

    @pytest.mark.parametrize("text", ["x", "24", "0,0", "0,", "-1", "0 7", "100"])
    def test_registers_of_another_form(self, environ: Any, text: str) -> None:
        environ["BENTOML_SECURE_TPM_PCRS"] = text
        with pytest.raises(ConfigurationError, match="want registers 0 to 23"):
            open_attester("tpm", environ, clock=lambda: NOW)

    @pytest.mark.parametrize(
        ("name", "content", "match"),
        [
            ("enrolment.json", b"{", "Enrol this TPM anew"),
            ("enrolment.json", b"{}", "Enrol this TPM anew"),
            ("enrolment.json", bytes(1 << 17), "longer than 65536 bytes"),
            ("ek_certificate.der", bytes(8193), "longer than 8192 bytes"),
        ],
    )
    def test_files_of_another_form(
        self, environ: Any, name: str, content: bytes, match: str
    ) -> None:
        (Path(environ["BENTOML_SECURE_TPM_FOLDER"]) / name).write_bytes(content)
        with pytest.raises(ConfigurationError, match=match):
            open_attester("tpm", environ, clock=lambda: NOW)

    def test_a_file_that_does_not_read(self, environ: Any) -> None:
        (Path(environ["BENTOML_SECURE_TPM_FOLDER"]) / "ek_certificate.der").mkdir()
        with pytest.raises(ConfigurationError, match="Is a directory"):
            open_attester("tpm", environ, clock=lambda: NOW)

    def test_a_folder_that_is_not_there(self, environ: Any) -> None:
        environ["BENTOML_SECURE_TPM_FOLDER"] += "/none"
        with pytest.raises(ConfigurationError, match="is no folder"):
            open_attester("tpm", environ, clock=lambda: NOW)

    @pytest.mark.parametrize("tcti", ["device:/dev/tpm0", "cmd:rm", ""])
    def test_a_tpm_without_a_resource_manager(self, tcti: str) -> None:
        with pytest.raises(ConfigurationError, match="behind a resource manager"):
            Tpm2Tools(tcti)


class TestUnavailable:
    def test_no_tpm(self, tmp_path: Path) -> None:
        nowhere = Tpm2Tools(f"swtpm:path={tmp_path}/none")
        with pytest.raises(
            UnavailableError, match=r"no endorsement key certificate.*Cannot connect"
        ):
            TpmAttester(nowhere)

    def test_no_tools(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(MissingDependencyError, match="Install tpm2-tools"):
            Tpm2Tools("tabrmd").run(["tpm2_getrandom", "4"])
        assert "swtpm" in missing_tools()
        with pytest.raises(MissingDependencyError, match="swtpm is not installed"):
            SoftwareTpm()

    def test_a_tool_that_hangs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow = tmp_path / "tpm2_slow"
        slow.write_text("#!/bin/sh\nexec sleep 60\n")
        slow.chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(UnavailableError, match="tpm2_slow took longer than"):
            Tpm2Tools("tabrmd", timeout_seconds=0.1).run(["tpm2_slow"])

    def test_a_certificate_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Tpm2Tools, "run", lambda *_, **__: [bytes(64)])
        with pytest.raises(UnavailableError, match="is not DER"):
            TpmAttester(Tpm2Tools("tabrmd"))
