"""``measure``: the policy it writes accepts what was measured, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import rsa

from bentoml_secure.attestation.appraisal import appraise, parse_policy
from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.attestation.event_log import LogKind, parse_event_log, replay
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.key_document import package_digest
from bentoml_secure.attestation.measurement.mrtd import PageOrder
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.tees.nitro import Nitro
from bentoml_secure.attestation.tees.sev_snp import SevSnp
from bentoml_secure.attestation.tees.sgx import Sgx
from bentoml_secure.attestation.tees.simulated import Simulated, SimulatedAttester
from bentoml_secure.attestation.tees.tdx import Tdx
from bentoml_secure.digest import Digest
from bentoml_secure.errors import PolicyRejected
from bentoml_secure.testing.amd_pki import AmdPki
from bentoml_secure.testing.dcap_pki import DcapPki
from bentoml_secure.testing.nitro_pki import NitroPki
from tests.unit.attestation.enclave_images import (
    SIGNATURE,
    UNSIGNED,
    Signer,
    eif,
    sigstruct,
)
from tests.unit.attestation.event_logs import ccel, event, head
from tests.unit.attestation.tdvf_images import SMALL, build_td, tdvf
from tests.unit.attestation.test_measure_snp_launch import firmware
from tests.unit.cli.conftest import Run

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROOT = f"sha256:{'12' * 32}"


def findings(result: Result, claims: VerifiedClaims) -> list[str]:
    """Return the fields of the claims that the policy written does not accept."""
    assert result.exit_code == 0, result.stderr
    assert "key document" in result.stderr
    try:
        appraise(
            claims,
            parse_policy(result.stdout.encode()),
            report_data=Unchecked("a test"),
            now=NOW,
            nonce_issued_at=NOW,
        )
    except PolicyRejected as rejection:
        return [finding.field for finding in rejection.findings]
    return []


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / f"file-{len(list(tmp_path.iterdir()))}"
        path.write_bytes(data)
        return path

    return write


WriteFile = Callable[[bytes], Path]


class TestEventLog:
    LOG = ccel((1, b"a"), (2, b"kernel"), (3, b"c"), (2, b"command line"))

    def claims(self, log: bytes) -> VerifiedClaims:
        registers = replay(parse_event_log(log, LogKind.TDX), LogKind.TDX)
        pki = DcapPki(now=NOW)

        def set_registers(body: bytearray) -> None:
            body[136:184] = b"\x11" * 48
            body[328:520] = b"".join(registers.get(i, bytes(48)) for i in range(4))

        quote = pki.tdx_quote(bytes(64), edit=set_registers)
        return Tdx(root=pki.root_digest).verify(
            Evidence(kind="tdx", blob=quote), (pki.collateral("TDX"),), now=NOW
        )

    def test_of_a_td(self, run: Run, file: WriteFile) -> None:
        command = ("measure", "event-log", file(self.LOG), "--kind", "tdx")
        result = run(*command, "--mr-td", "11" * 48)
        assert findings(result, self.claims(self.LOG)) == []
        other = ccel((1, b"a"), (2, b"kernel"), (3, b"c"), (2, b"another line"))
        assert findings(result, self.claims(other)) == ["rtmr.1"]
        wrong = run(*command, "--mr-td", "22" * 48)
        assert findings(wrong, self.claims(self.LOG)) == ["mr_td"]
        left_out = run(*command, "--unchecked-mr-td", "firmware varies")
        assert findings(left_out, self.claims(self.LOG)) == []

    def test_only_registers_that_are_asked_for(self, run: Run, file: WriteFile) -> None:
        command = ("measure", "event-log", file(self.LOG), "--kind", "tdx")
        result = run(*command, "--unchecked-mr-td", "why", "--register", "0")
        other = ccel((1, b"a"), (2, b"another kernel"))
        assert findings(result, self.claims(other)) == []
        missing = run(*command, "--unchecked-mr-td", "why", "--register", "3")
        assert (missing.exit_code, missing.stdout) == (2, "")
        assert "no event extends register 3" in missing.stderr

    def test_of_a_tpm(self, run: Run, file: WriteFile) -> None:
        log = head() + event(0, b"a") + event(7, b"b\nREJECTED \x1b[2J")
        registers = replay(parse_event_log(log, LogKind.TPM), LogKind.TPM)
        path = file(log)
        result = run(
            *("measure", "event-log", path, "--kind", "tpm", "--events"),
            *("--ek-root", ROOT, "--enrolment", ROOT),
        )
        claims = VerifiedClaims(
            kind="tpm",
            report_data=bytes(32),
            claims={
                "pcrs": {str(i): value.hex() for i, value in registers.items()},
                "enrolment": ROOT,
            },
            platform_id="a",
            vendor="a",
            root=Digest(ROOT),
            issued_at=None,
            expires_at=None,
            simulated=True,
        )
        assert findings(result, claims) == []
        comments = [li for li in result.stdout.splitlines() if li.startswith("#")]
        assert comments[0] == f"# measured: {path}"
        assert "EV_EFI_ACTION  a" in comments[1]
        assert comments[2].endswith("bytes")
        assert len(comments) == 3

    def test_text_that_is_not_digested_is_marked(
        self, run: Run, file: WriteFile
    ) -> None:
        log = head() + event(8, b"linux", digested=b"other")
        result = run(
            *("measure", "event-log", file(log), "--kind", "tpm", "--events"),
            *("--ek-root", ROOT, "--unchecked-enrolment", "why"),
        )
        assert "not what is digested: linux" in result.stdout

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--kind", "tdx"), "want one of --mr-td"),
            (
                ("--kind", "tdx", "--mr-td", "11", "--unchecked-mr-td", "a"),
                "want one of --mr-td",
            ),
            (("--kind", "tdx", "--mr-td", "11"), "mr_td"),
            (("--kind", "tdx", "--unchecked-mr-td", ""), "reason"),
            (("--kind", "tpm"), "--ek-root"),
            (("--kind", "tpm", "--ek-root", ROOT), "want one of --enrolment"),
            (("--kind", "nitro"), "nitro"),
        ],
    )
    def test_usage(
        self, run: Run, file: WriteFile, options: tuple[str, ...], said: str
    ) -> None:
        result = run("measure", "event-log", file(self.LOG), *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr

    def test_the_environment_leaves_nothing_out(
        self, run: Run, file: WriteFile
    ) -> None:
        name = "BENTOML_SECURE_MEASURE_EVENT_LOG_UNCHECKED_MR_TD"
        command = ("measure", "event-log", file(self.LOG), "--kind", "tdx")
        assert run(*command, env={name: "why"}).exit_code == 2

    def test_what_is_no_log_is_refused(self, run: Run, file: WriteFile) -> None:
        command = ("measure", "event-log", file(b"no log"), "--kind", "tdx")
        result = run(*command, "--unchecked-mr-td", "why")
        assert (result.exit_code, result.stdout) == (1, "")
        missing = run(
            *("measure", "event-log", "/nowhere", "--kind", "tdx"),
            *("--unchecked-mr-td", "why"),
        )
        assert missing.exit_code == 2


class TestNitro:
    def test_an_image(self, run: Run, file: WriteFile) -> None:
        signer = Signer.make()
        unsigned = run("measure", "nitro", file(eif()))
        pcr0 = bytes.fromhex(
            parse_policy(unsigned.stdout.encode()).to_json()["nitro"]["pcr"]["0"][0]
        )
        image = eif([*UNSIGNED, (SIGNATURE, signer.section(pcr0))])
        result = run("measure", "nitro", file(image))
        policy = parse_policy(result.stdout.encode()).to_json()["nitro"]["pcr"]
        assert list(policy) == ["0", "1", "2", "8"]
        assert "# signed by CN=signer" in result.stdout
        pki = NitroPki(now=NOW)

        def claims(**changes: bytes) -> VerifiedClaims:
            pcrs = {index: bytes([index] * 48) for index in range(16)}
            pcrs |= {int(i): bytes.fromhex(value[0]) for i, value in policy.items()}
            pcrs |= {int(i): value for i, value in changes.items()}
            evidence = pki.document(pcrs=pcrs)
            return Nitro(root=pki.root).verify(evidence, (), now=NOW)

        assert findings(result, claims()) == []
        for index in ("0", "1", "2", "8"):
            assert len(findings(result, claims(**{index: b"\x77" * 48}))) == 1

    def test_what_is_no_image(self, run: Run, file: WriteFile, tmp_path: Path) -> None:
        assert run("measure", "nitro", file(b"no image")).exit_code == 1
        assert run("measure", "nitro", tmp_path / "none").exit_code == 2
        signer = Signer.make()
        forged = eif([*UNSIGNED, (SIGNATURE, signer.section(bytes(48)))])
        result = run("measure", "nitro", file(forged))
        assert (result.exit_code, result.stdout) == (1, "")
        assert "eif.pcr0" in result.stderr


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(3, 3072)


class TestSgx:
    def claims(self, data: bytes, *, version: int = 3) -> VerifiedClaims:
        pki = DcapPki(now=NOW)

        def set_enclave(body: bytearray) -> None:
            body[64:96] = data[960:992]
            body[128:160] = hashlib.sha256(data[128:512]).digest()
            body[256:258] = data[1024:1026]
            body[258:260] = version.to_bytes(2, "little")

        quote = pki.sgx_quote(bytes(64), edit=set_enclave)
        return Sgx(root=pki.root_digest).verify(
            Evidence(kind="sgx", blob=quote), (pki.collateral("SGX"),), now=NOW
        )

    def test_a_signed_enclave(
        self, run: Run, file: WriteFile, key: rsa.RSAPrivateKey
    ) -> None:
        data = sigstruct(key)
        other = sigstruct(key, mr_enclave=bytes(32), version=4)
        one = run("measure", "sgx", file(data))
        assert findings(one, self.claims(data)) == []
        assert findings(one, self.claims(other)) == ["mr_enclave"]
        by_signer = run("measure", "sgx", file(data), "--by-signer")
        assert findings(by_signer, self.claims(data)) == []
        assert findings(by_signer, self.claims(other, version=4)) == []
        assert findings(by_signer, self.claims(other, version=2)) == ["isv_svn"]

    def test_one_for_debugging_is_warned_of(
        self, run: Run, file: WriteFile, key: rsa.RSAPrivateKey
    ) -> None:
        data = sigstruct(key, attributes=6, mask=0xFFFFFFFFFFFFFFFF)
        result = run("measure", "sgx", file(data))
        assert result.exit_code == 0
        assert "open to a debugger" in result.stderr

    def test_another_s_signature(
        self, run: Run, file: WriteFile, key: rsa.RSAPrivateKey
    ) -> None:
        data = bytearray(sigstruct(key))
        data[600] ^= 1
        result = run("measure", "sgx", file(bytes(data)))
        assert (result.exit_code, result.stdout) == (1, "")
        assert "sigstruct.signature" in result.stderr
        assert run("measure", "sgx", file(bytes(data) + b"\0")).exit_code == 1


class TestSevSnp:
    def claims(self, measurement: str) -> VerifiedClaims:
        pki = AmdPki(now=NOW)
        report = pki.sign_report(measurement=bytes.fromhex(measurement))
        return SevSnp(roots=pki.roots).verify(
            Evidence(kind="sev-snp", blob=report), pki.endorsements(), now=NOW
        )

    def test_a_guest(self, run: Run, file: WriteFile) -> None:
        result = run(
            *("measure", "sev-snp", "--ovmf", file(firmware()), "--vcpus", "2"),
            *("--vcpu-type", "EPYC-Milan", "--kernel", file(b"kernel")),
            *("--initrd", file(b"initrd"), "--append", "console=ttyS0"),
            *("--guest-features", "0x1"),
        )
        # As another program computes it, see test_measure_snp_launch.
        known = (
            "853c05569d62dc1c263c2b8613e6f5daa684d781bb47cefc9c9f8a729e0edfff70ce58437ef8"
            "2ccfc447ea6aec528263"
        )
        assert findings(result, self.claims(known)) == []
        assert findings(result, self.claims("00" * 48)) == ["measurement"]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--vcpu-type", "EPYC-Nowhere"), "want one of EPYC,"),
            (("--vcpu-type", "EPYC", "--append", "a"), "go with --kernel"),
            (("--vcpu-type", "EPYC", "--kernel", "/nowhere"), "cannot be read"),
            (("--vcpu-type", "EPYC", "--guest-features", "0x20"), "bit 0"),
            (("--vcpu-type", "EPYC", "--guest-features", "snp"), "want a number"),
            (("--vcpu-type", "EPYC", "--guest-features", "1" * 99), "64 bits"),
        ],
    )
    def test_usage(
        self, run: Run, file: WriteFile, options: tuple[str, ...], said: str
    ) -> None:
        command = ("measure", "sev-snp", "--ovmf", file(firmware()), "--vcpus", "1")
        result = run(*command, *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr

    def test_a_folder_is_no_kernel(
        self, run: Run, file: WriteFile, tmp_path: Path
    ) -> None:
        command = ("measure", "sev-snp", "--ovmf", file(firmware()), "--vcpus", "1")
        result = run(*command, "--vcpu-type", "EPYC", "--kernel", tmp_path)
        assert result.exit_code == 2


class TestTdx:
    def claims(self, mr_td: bytes) -> VerifiedClaims:
        pki = DcapPki(now=NOW)

        def set_measurement(body: bytearray) -> None:
            body[136:184] = mr_td

        quote = pki.tdx_quote(bytes(64), edit=set_measurement)
        return Tdx(root=pki.root_digest).verify(
            Evidence(kind="tdx", blob=quote), (pki.collateral("TDX"),), now=NOW
        )

    def test_a_trust_domain(self, run: Run, file: WriteFile) -> None:
        image = tdvf()
        by_page = self.claims(build_td(image, SMALL, page_by_page=True))
        by_section = self.claims(build_td(image, SMALL, page_by_page=False))
        result = run("measure", "tdx", "--firmware", file(image))
        assert findings(result, by_page) == []
        assert findings(result, by_section) == ["mr_td"]
        assert "0xffffd000    0x3000 BFV       measured" in result.stdout
        assert "0xffffc000    0x1000 CFV       only where it is" in result.stdout
        assert "whatever this firmware boots" in result.stderr
        command = ("measure", "tdx", "--firmware", file(image), "--order", "section")
        other = run(*command)
        assert findings(other, by_page) == ["mr_td"]
        assert findings(other, by_section) == []
        both = run(*command, "--order", "page", "--order", "page")
        assert findings(both, by_page) == findings(both, by_section) == []
        assert "# mr_td by order: section, page" in both.stdout

    def test_what_is_no_firmware(self, run: Run, file: WriteFile) -> None:
        result = run("measure", "tdx", "--firmware", file(tdvf()[4096:]))
        assert (result.exit_code, result.stdout) == (1, "")
        assert "not its CODE half" in result.stderr
        assert run("measure", "tdx", "--firmware", "/nowhere").exit_code == 2
        assert run("measure", "tdx").exit_code == 2

    def test_every_order_can_be_asked_for(self, run: Run, file: WriteFile) -> None:
        command = ("measure", "tdx", "--firmware", file(tdvf()))
        for order in PageOrder:
            assert run(*command, "--order", order).exit_code == 0
        assert run(*command, "--order", "backwards").exit_code == 2


def test_this_release_under_a_development_root(run: Run, tmp_path: Path) -> None:
    root = create_dev_root(tmp_path / "root", now=NOW)
    result = run("measure", "runtime", "--root", root)
    attester = SimulatedAttester.from_folder(tmp_path / "root", clock=lambda: NOW)
    claims = Simulated().verify(attester.attest(bytes(64)), (), now=NOW)
    assert findings(result, claims) == []
    assert f"# package {package_digest()}" in result.stdout
    other = run("measure", "runtime", "--root", ROOT)
    assert findings(other, claims) == ["root"]
    assert run("measure", "runtime", "--root", "none").exit_code == 2
