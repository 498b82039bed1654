"""Attacks on evidence of VMs on Azure, under a development root: each check alone."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.tees.az_snp_vtpm import AzSnpVtpm
from bentoml_secure.attestation.tees.snp_report import Product
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    MissingEndorsementError,
    PolicyRejected,
)
from bentoml_secure.testing.amd_pki import MEASUREMENT, POLICY, AmdPki, rsa_key
from bentoml_secure.testing.az_vm import AzVm, base64url, jwk, pack_quote

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
CHALLENGE = bytes(range(32))
WHY = Unchecked("a test of reference values")


@pytest.fixture(scope="module")
def pki() -> AmdPki:
    return AmdPki(now=NOW)


@pytest.fixture
def vm(pki: AmdPki) -> AzVm:
    return AzVm(pki)


def verify(
    vm: AzVm,
    document: dict[str, Any] | None = None,
    endorsements: Sequence[bytes] | None = None,
) -> VerifiedClaims:
    blob = json.dumps(vm.document(CHALLENGE) if document is None else document)
    given = (vm.pki.ark, vm.pki.ask) if endorsements is None else endorsements
    return AzSnpVtpm(roots=vm.pki.roots).verify(
        Evidence(kind="az-snp-vtpm", blob=blob.encode()), given, now=NOW
    )


def refused(vm: AzVm, document: dict[str, Any]) -> str:
    with pytest.raises(CheckFailedError) as caught:
        verify(vm, document)
    (finding,) = caught.value.findings
    return finding.field


def malformed(vm: AzVm, document: Any, match: str) -> None:
    with pytest.raises(MalformedInputError, match=match):
        verify(vm, document)


class TestGood:
    def test_a_quote_says_what_was_signed(self, vm: AzVm) -> None:
        claims = verify(vm)
        assert claims.kind == "az-snp-vtpm"
        assert claims.simulated
        assert claims.vendor == "none (simulated)"
        assert claims.report_data == CHALLENGE
        assert claims.platform_id == vm.pki.hwid.hex()
        assert claims.claims["measurement"] == MEASUREMENT.hex()
        assert claims.claims["pcr"]["7"] == "07" * 32
        assert len(claims.claims["pcr"]) == 24
        assert claims.claims["extra_data"] == CHALLENGE.hex()
        assert claims.claims["reset_count"] == 2
        assert claims.claims["vm_configuration"]["secure-boot"]
        assert claims.claims["key"] == "vcek"

    @pytest.mark.parametrize(
        ("extra_data", "report_data"),
        [
            (b"challenge", b"challenge" + bytes(23)),
            (b"", bytes(32)),
            (bytes(range(48)), bytes(range(32))),
            (bytes(range(64)), bytes(range(32))),
        ],
        ids=["short", "none", "48", "64"],
    )
    def test_a_challenge_of_another_length(
        self, vm: AzVm, extra_data: bytes, report_data: bytes
    ) -> None:
        claims = verify(vm, vm.document(extra_data))
        assert claims.report_data == report_data
        assert claims.claims["extra_data"] == extra_data.hex()

    def test_the_three_forms_say_the_same(self, vm: AzVm) -> None:
        first = vm.document(CHALLENGE)
        quote = first["tpm_quote"]
        hcl_report = base64.urlsafe_b64decode(first["hcl_report"] + "==")
        certificate = x509.load_der_x509_certificate(vm.pki.vcek)
        bare = {
            "quote": {
                "message": list(bytes.fromhex(quote["message"])),
                "signature": list(bytes.fromhex(quote["signature"])),
                "pcrs": [list(bytes.fromhex(pcr)) for pcr in quote["pcrs"]],
            },
            "report": list(hcl_report),
            "vcek": certificate.public_bytes(Encoding.PEM).decode(),
        }
        want = verify(vm, first)
        assert verify(vm, first | {"version": 2, "another": "field"}) == want
        assert verify(vm, bare) == want
        assert verify(vm, first | {"hcl_report": first["hcl_report"] + "="}) == want

    @pytest.mark.parametrize("version", [1, 2])
    def test_both_headers(self, vm: AzVm, version: int) -> None:
        hcl_report = vm.hcl_report(header_version=version)
        assert verify(vm, vm.document(CHALLENGE, hcl_report=hcl_report)).simulated

    def test_the_vcek_may_come_beside(self, vm: AzVm) -> None:
        document = vm.document(CHALLENGE) | {"vcek": ""}
        given = vm.pki.endorsements()
        assert verify(vm, document, given) == verify(vm)
        with pytest.raises(MissingEndorsementError, match="no VCEK"):
            verify(vm, document)

    def test_turin(self) -> None:
        vm = AzVm(AmdPki(now=NOW, product=Product.TURIN))
        assert verify(vm).claims["tcb"]["reported"]["fmc"] == 1


class TestChecks:
    def test_another_kind(self, vm: AzVm) -> None:
        evidence = Evidence(kind="sev-snp", blob=vm.attest(bytes(64)).blob)
        with pytest.raises(CheckFailedError, match="kind") as caught:
            AzSnpVtpm(roots=vm.pki.roots).verify(evidence, (), now=NOW)
        assert caught.value.findings[0].field == "kind"

    def test_a_report_that_the_guest_asked_for(self, vm: AzVm) -> None:
        hcl_report = vm.hcl_report(vmpl=2)
        document = vm.document(CHALLENGE, hcl_report=hcl_report)
        assert refused(vm, document) == "hcl.vmpl"

    def test_keys_that_the_report_does_not_cover(self, vm: AzVm) -> None:
        covered = hashlib.sha256(json.dumps(vm.runtime).encode()).digest()
        vm.key = rsa.generate_private_key(65537, 2048)
        vm.runtime["keys"] = [jwk(vm.key.public_key(), "HCLAkPub")]
        hcl_report = vm.hcl_report(report_data=covered + bytes(32))
        document = vm.document(CHALLENGE, hcl_report=hcl_report)
        assert refused(vm, document) == "hcl.runtime_data"

    def test_something_after_the_hash(self, vm: AzVm) -> None:
        covered = hashlib.sha256(json.dumps(vm.runtime).encode()).digest()
        hcl_report = vm.hcl_report(report_data=covered + bytes(31) + b"\1")
        document = vm.document(CHALLENGE, hcl_report=hcl_report)
        assert refused(vm, document) == "hcl.runtime_data"

    def test_a_quote_of_another_key(self, vm: AzVm) -> None:
        vm.key = rsa_key("another TPM")
        assert refused(vm, vm.document(CHALLENGE)) == "quote.signature"

    def test_a_quote_that_no_tpm_made(self, vm: AzVm) -> None:
        message = pack_quote(CHALLENGE, vm.pcrs, magic=0x12345678)
        assert refused(vm, vm.document(b"", message=message)) == "quote.magic"

    def test_registers_that_were_not_quoted(self, vm: AzVm) -> None:
        document = vm.document(CHALLENGE)
        document["tpm_quote"]["pcrs"][7] = "00" * 32
        assert refused(vm, document) == "quote.pcr_digest"
        document = vm.document(CHALLENGE)
        del document["tpm_quote"]["pcrs"][23]
        assert refused(vm, document) == "quote.pcrs"

    def test_a_weak_key_of_the_vtpm(self, vm: AzVm) -> None:
        vm.key = rsa.generate_private_key(65537, 1024)  # noqa: S505
        vm.runtime["keys"] = [jwk(vm.key.public_key(), "HCLAkPub")]
        assert refused(vm, vm.document(CHALLENGE)) == "quote.key"

    def test_a_root_that_is_not_pinned(self, vm: AzVm) -> None:
        with pytest.raises(CheckFailedError, match=r"ark\.pinned"):
            AzSnpVtpm().verify(vm.attest(bytes(64)), vm.pki.endorsements(), now=NOW)

    def test_any_byte_of_the_report(self, vm: AzVm) -> None:
        good = vm.hcl_report()
        for at in range(32, 32 + 0x2A0, 5):
            hurt = bytearray(good)
            hurt[at] ^= 0x40
            document = vm.document(CHALLENGE, hcl_report=bytes(hurt))
            with pytest.raises((CheckFailedError, MalformedInputError), match=r"."):
                verify(vm, document)


class TestForms:
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"version": 3}, "version: got 3, want 1, 2 or none"),
            ({"version": True}, "version: got True"),
            ({"version": "1"}, "version: got '1'"),
            ({"hcl_report": None}, "hcl_report: want base64url"),
            ({"hcl_report": "A"}, "hcl_report is not base64url"),
            ({"hcl_report": "A+/A"}, "hcl_report: want base64url"),
            ({"hcl_report": "A" * 100_000}, "hcl_report: want base64url of at most"),
            ({"tpm_quote": []}, "tpm_quote: want an object"),
            ({"tpm_quote": {}}, "message: want hex"),
            ({"vcek": 3}, "vcek: want base64url"),
            ({"version": None}, "version: got None"),
        ],
        ids=str,
    )
    def test_versioned(self, vm: AzVm, change: dict[str, Any], match: str) -> None:
        malformed(vm, vm.document(CHALLENGE) | change, match)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"message": "ff 54"}, "message: want hex"),
            ({"message": "ff5"}, "message: want hex"),
            ({"message": "ff" * 2000}, "message: want at most"),
            ({"message": "ff54"}, "TPM quote"),
            ({"signature": "zz"}, "signature: want hex"),
            ({"signature": "00" * 2000}, "signature: want at most"),
            ({"pcrs": {}}, "pcrs: want a list of at most 24"),
            ({"pcrs": ["00" * 32] * 25}, "pcrs: want a list of at most 24"),
            ({"pcrs": ["00" * 33] * 24}, "pcr 0: want at most 32"),
            ({"pcrs": ["00" * 31] * 24}, "PCR 0: got 31 bytes"),
            ({"pcrs": [0]}, "pcr 0: want hex"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_the_quote(self, vm: AzVm, change: dict[str, Any], match: str) -> None:
        document = vm.document(CHALLENGE)
        quote = document["tpm_quote"] | change
        if change.get("message") == "ff54":
            signed = vm.document(b"", message=bytes.fromhex("ff54"))
            quote["signature"] = signed["tpm_quote"]["signature"]
        malformed(vm, document | {"tpm_quote": quote}, match)

    @pytest.mark.parametrize(
        ("document", "match"),
        [
            ([], "want an object"),
            ({}, "quote: want an object"),
            ({"quote": {}}, "vcek: want PEM"),
            ({"quote": {}, "vcek": "x" * 100_000}, "vcek: want PEM"),
            ({"quote": {}, "vcek": ""}, "report: want a list"),
            ({"quote": {}, "vcek": "", "report": [256]}, "report: want a list"),
            ({"quote": {}, "vcek": "", "report": [True]}, "report: want a list"),
            ({"quote": {}, "vcek": "", "report": [0] * 70_000}, "report: want a list"),
            ({"quote": {}, "vcek": "", "report": [0]}, "HCL report: got 1 bytes"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_unversioned(self, vm: AzVm, document: Any, match: str) -> None:
        malformed(vm, document, match)

    def test_no_json(self) -> None:
        for blob in (b"{", b"\xff", b"[" * 5000):
            with pytest.raises(MalformedInputError, match="az-snp-vtpm evidence"):
                AzSnpVtpm().describe(Evidence(kind="az-snp-vtpm", blob=blob))

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"magic": b"HCLB"}, "got b'HCLB' version 2"),
            ({"header_version": 3}, "version 3, want b'HCLA' version 1 or 2"),
            ({"report_type": 4}, "report type 4"),
            ({"hash_type": 2}, "hash type 2"),
            ({"length": 5000}, "want 5000 bytes of runtime data"),
            ({"length": 100}, "nothing but zeros after"),
            ({"version": 9}, "SEV-SNP report version"),
            ({"runtime_data": b"{"}, "runtime data is not valid JSON"),
            ({"runtime_data": b"[]"}, "runtime data: want an object"),
            ({"runtime_data": b'{"a": 1, "a": 2}'}, "a key stands twice"),
            ({"runtime_data": b"{}"}, "want one RSA key HCLAkPub"),
            ({"runtime_data": b'{"keys": [3]}'}, "want one RSA key HCLAkPub"),
            ({"runtime_data": b'{"keys": [], "user-data": 3}'}, "and user-data"),
            ({"runtime_data": b'{"vm-configuration": 3}'}, "want vm-configuration"),
        ],
        ids=str,
    )
    def test_the_paravisors_report(
        self, vm: AzVm, fields: dict[str, Any], match: str
    ) -> None:
        hcl_report = vm.hcl_report(**fields)
        malformed(vm, vm.document(CHALLENGE, hcl_report=hcl_report), match)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"kty": "EC"}, "want one RSA key"),
            ({"n": None}, "HCLAkPub n: want base64url"),
            ({"n": "A" * 5000}, "HCLAkPub n: want base64url of at most 512"),
            ({"n": ""}, "HCLAkPub"),
            ({"n": base64url(bytes(256))}, "HCLAkPub"),
            ({"e": ""}, "HCLAkPub"),
            ({"e": "AQ"}, "HCLAkPub"),
            ({"e": "AA"}, "HCLAkPub"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_the_vtpms_key(self, vm: AzVm, change: dict[str, Any], match: str) -> None:
        vm.runtime["keys"][0] |= change
        malformed(vm, vm.document(CHALLENGE), match)

    def test_two_keys_of_one_name(self, vm: AzVm) -> None:
        vm.runtime["keys"] *= 2
        malformed(vm, vm.document(CHALLENGE), "want one RSA key")


class TestPolicy:
    def judged(self, vm: AzVm, table: dict[str, Any], **fields: Any) -> list[str]:
        hcl_report = vm.hcl_report(**fields)
        claims = verify(vm, vm.document(CHALLENGE, hcl_report=hcl_report))
        policy = AppraisalPolicy.from_table(
            {
                "version": 1,
                "max_age_seconds": 300,
                "allow": ["az-snp-vtpm"],
                "az-snp-vtpm": table,
            }
        )
        try:
            appraise(
                claims,
                policy,
                report_data=CHALLENGE + bytes(32),
                now=NOW,
                nonce_issued_at=NOW,
            )
        except PolicyRejected as rejection:
            return [finding.field for finding in rejection.findings]
        return []

    def test_paravisor_and_registers(self, vm: AzVm) -> None:
        table = {
            "measurement": [MEASUREMENT.hex()],
            "pcr": {"4": ["04" * 32], "7": ["00" * 32, "07" * 32]},
        }
        assert self.judged(vm, table) == []
        vm.pcrs[7] = b"\xff" * 32
        assert self.judged(vm, table) == ["pcr"]
        assert self.judged(vm, table, measurement=b"") == ["measurement", "pcr"]

    def test_the_platform_counts(self, vm: AzVm) -> None:
        table = {
            "measurement": {"unchecked": "a test"},
            "pcr": {"unchecked": "a test"},
            "min_tcb": {"bootloader": 4, "tee": 0, "snp": 25, "microcode": 0},
        }
        tcbs = ["tcb.reported", "tcb.committed", "tcb.current"]
        assert self.judged(vm, table) == tcbs
        del table["min_tcb"]
        assert self.judged(vm, table, policy=POLICY | 1 << 19) == ["policy.debug"]

    def test_another_challenge(self, vm: AzVm) -> None:
        table = {"measurement": WHY.to_json(), "pcr": WHY.to_json()}
        claims = verify(vm)
        policy = AppraisalPolicy.from_table(
            {
                "version": 1,
                "max_age_seconds": 300,
                "allow": ["az-snp-vtpm"],
                "az-snp-vtpm": table,
            }
        )
        with pytest.raises(PolicyRejected, match="report_data"):
            appraise(
                claims,
                policy,
                report_data=bytes(32),
                now=NOW,
                nonce_issued_at=NOW,
            )

    def test_a_root_of_endorsement_keys_is_never_met(self, vm: AzVm) -> None:
        table = {"measurement": WHY.to_json(), "pcr": WHY.to_json()}
        assert self.judged(vm, table) == []
        listed = {**table, "ek_roots": ["sha256:" + "00" * 32]}
        assert self.judged(vm, listed) == ["ek_root"]
        policy = AzSnpVtpm().parse_policy(listed)
        assert AzSnpVtpm().parse_policy(policy.to_json()) == policy

    def test_a_policy_reads_back(self) -> None:
        table = {"measurement": ["00" * 48], "pcr": {"7": ["00" * 32]}, "max_vmpl": 1}
        policy = AzSnpVtpm().parse_policy(table)
        assert AzSnpVtpm().parse_policy(policy.to_json()) == policy

    @pytest.mark.parametrize(
        ("table", "match"),
        [
            ({"pcr": {"7": ["00" * 32]}}, "measurement is missing"),
            ({"measurement": ["00" * 48]}, "pcr: got None"),
            ({"measurement": ["00" * 48], "pcr": {"24": []}}, "unknown key '24'"),
            (
                {"measurement": ["00" * 48], "pcr": {"7": ["00" * 32]}, "ek_roots": []},
                "ek_roots: got",
            ),
        ],
        ids=str,
    )
    def test_mistakes_are_the_operators(
        self, table: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=match):
            AzSnpVtpm().parse_policy(table)


def test_describing_needs_no_signature(vm: AzVm) -> None:
    document = vm.document(CHALLENGE)
    document["tpm_quote"]["signature"] = "00" * 256
    evidence = Evidence(kind="az-snp-vtpm", blob=json.dumps(document).encode())
    described = AzSnpVtpm().describe(evidence)
    assert described["extra_data"] == CHALLENGE.hex()
    assert described["measurement"] == MEASUREMENT.hex()
    assert described["pcr"]["7"] == "07" * 32
