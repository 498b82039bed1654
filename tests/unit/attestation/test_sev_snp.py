"""Attacks on SEV-SNP reports, signed under a development root: each check alone.

Every case is good but for one thing, so that only the check it names refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.sev_snp import SevSnp
from bentoml_secure.attestation.tees.snp_report import (
    LAYOUT,
    REPORT_BYTES,
    SIGNED_BYTES,
    Product,
    SigningKey,
)
from bentoml_secure.digest import digest_bytes
from bentoml_secure.errors import CheckFailedError, MalformedInputError
from bentoml_secure.testing.amd_pki import (
    CPUIDS,
    CSP_ID,
    MEASUREMENT,
    AmdPki,
    encode_tcb,
    integer,
    rsa_key,
    text,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
REPORT_DATA = bytes(range(64))
VCEK, VLEK = SigningKey.VCEK, SigningKey.VLEK


@pytest.fixture(scope="module")
def pki() -> AmdPki:
    return AmdPki(now=NOW)


def verify(
    pki: AmdPki,
    report: bytes | None = None,
    endorsements: Sequence[bytes] | None = None,
    now: datetime = NOW,
) -> VerifiedClaims:
    blob = pki.sign_report(REPORT_DATA) if report is None else report
    given = pki.endorsements() if endorsements is None else endorsements
    tee = SevSnp(roots=pki.roots)
    return tee.verify(Evidence(kind="sev-snp", blob=blob), given, now=now)


def refused(
    pki: AmdPki,
    report: bytes | None = None,
    endorsements: Sequence[bytes] | None = None,
    now: datetime = NOW,
) -> str:
    with pytest.raises(CheckFailedError) as caught:
        verify(pki, report, endorsements, now)
    (finding,) = caught.value.findings
    return finding.field


class TestGood:
    def test_a_report_says_what_was_signed(self, pki: AmdPki) -> None:
        claims = verify(pki)
        assert claims.kind == "sev-snp"
        assert claims.simulated
        assert claims.vendor == "none (simulated)"
        assert claims.root == digest_bytes(pki.ark)
        assert claims.report_data == REPORT_DATA
        assert claims.platform_id == pki.hwid.hex()
        assert claims.issued_at is None
        assert claims.expires_at == NOW + timedelta(days=30)
        got = claims.claims
        assert got["measurement"] == MEASUREMENT.hex()
        assert got["chip_id"] == pki.hwid.hex()
        assert (got["product"], got["key"], got["csp_id"]) == ("Milan", "vcek", None)
        assert got["tcb"]["reported"] == {
            "bootloader": 4,
            "tee": 0,
            "snp": 24,
            "microcode": 219,
        }
        assert got["firmware"] == {"current": "1.55.21", "committed": "1.55.21"}
        assert got["cpuid"] == {"family": 0x19, "model": 1, "stepping": 1}
        assert got["policy"]["smt"]
        assert not got["policy"]["debug"]
        assert not got["revocation_checked"]

    @pytest.mark.parametrize("product", Product)
    @pytest.mark.parametrize("version", [2, 3, 4, 5])
    @pytest.mark.parametrize("key", [VCEK, VLEK])
    def test_every_product_version_and_key(
        self, product: Product, version: int, key: SigningKey
    ) -> None:
        pki = AmdPki(now=NOW, product=product)
        report = pki.sign_report(REPORT_DATA, version=version, key=key)
        claims = verify(pki, report, pki.endorsements(key))
        assert claims.claims["product"] == product
        assert claims.claims["key"] == key
        assert claims.claims["version"] == version
        assert claims.claims["tcb"]["reported"] == pki.tcb.to_json()
        assert ("fmc" in claims.claims["tcb"]["current"]) == (product == "Turin")

    def test_mitigations_are_read_from_version_4_on(self, pki: AmdPki) -> None:
        fields: dict[str, Any] = {"launch_mitigations": 3, "current_mitigations": 0x1F}
        old = verify(pki, pki.sign_report(version=3, **fields))
        new = verify(pki, pki.sign_report(version=4, **fields))
        assert old.claims["mitigations"] == {}
        assert new.claims["mitigations"] == {"launch": "0x3", "current": "0x1f"}

    def test_the_machine_is_the_certificates_where_the_report_masks_it(
        self, pki: AmdPki
    ) -> None:
        claims = verify(pki, pki.sign_report(chip_id=b""))
        assert claims.platform_id == pki.hwid.hex()
        assert claims.claims["chip_id"] == "00" * 64

    def test_masked_machines_of_one_provider_are_one(self, pki: AmdPki) -> None:
        masked = verify(pki, pki.sign_report(key=VLEK), pki.endorsements(VLEK))
        assert CSP_ID == "CN=simulated.example.org"
        assert masked.platform_id == "vlek:CN_simulated.example.org"
        assert masked.claims["csp_id"] == CSP_ID
        told = pki.sign_report(key=VLEK, chip_id=pki.hwid)
        assert verify(pki, told, pki.endorsements(VLEK)).platform_id == pki.hwid.hex()

    def test_a_turin_chip_id_is_eight_bytes(self) -> None:
        pki = AmdPki(now=NOW, product=Product.TURIN)
        assert verify(pki).platform_id == pki.hwid.hex()
        told = pki.sign_report(key=VLEK, chip_id=pki.hwid)
        claims = verify(pki, told, pki.endorsements(VLEK))
        assert claims.platform_id == pki.hwid.hex()
        assert len(claims.platform_id) == 16

    def test_a_wrapped_hardware_id_is_the_same(self, pki: AmdPki) -> None:
        wrapped = pki.issue_leaf(VCEK, extensions={"4": b"\x04\x40" + pki.hwid})
        assert verify(pki, endorsements=(wrapped, pki.ask, pki.ark)) == verify(pki)

    def test_bergamo_and_siena_are_genoa(self) -> None:
        pki = AmdPki(now=NOW, product=Product.GENOA)
        report = pki.sign_report(cpuid=bytes([0x19, 0xA0, 2]))
        assert verify(pki, report).claims["product"] == "Genoa"

    def test_the_development_root_attests(self, pki: AmdPki) -> None:
        evidence = pki.attest(REPORT_DATA)
        assert evidence.kind == "sev-snp"
        assert verify(pki, evidence.blob) == verify(pki)

    def test_zeros_after_the_report(self, pki: AmdPki) -> None:
        assert verify(pki, pki.sign_report(REPORT_DATA) + bytes(100)) == verify(pki)


class TestForm:
    @pytest.mark.parametrize(
        "change",
        [
            lambda report: report[:-1],
            lambda report: report[:64],
            lambda report: report + b"\0\0\1",
            lambda report: b"\0" + report,
        ],
        ids=["short", "head", "more", "shifted"],
    )
    def test_another_length(self, pki: AmdPki, change: Any) -> None:
        with pytest.raises(MalformedInputError, match="SEV-SNP report"):
            verify(pki, change(pki.sign_report()))

    @pytest.mark.parametrize("version", [0, 1, 6, 1 << 31])
    def test_another_version(self, pki: AmdPki, version: int) -> None:
        with pytest.raises(MalformedInputError, match=r"version: got .* want 2 to 5"):
            verify(pki, pki.sign_report(version=version))

    def test_another_kind(self, pki: AmdPki) -> None:
        evidence = Evidence(kind="tdx", blob=pki.sign_report())
        with pytest.raises(CheckFailedError, match="kind") as caught:
            SevSnp(roots=pki.roots).verify(evidence, pki.endorsements(), now=NOW)
        assert caught.value.findings[0].field == "kind"

    @pytest.mark.parametrize(
        "fields",
        [
            {"reserved_4c": b"\1"},
            {"reserved_18b": b"\0\1"},
            {"reserved_1eb": b"\1"},
            {"reserved_1ef": b"\1"},
            {"reserved_208": b"\0" * 151 + b"\1"},
            {"key_info": 1 << 5},
            {"version": 2, "cpuid": b"\x19\x01\x01"},
        ],
        ids=str,
    )
    def test_reserved_bytes(self, pki: AmdPki, fields: dict[str, Any]) -> None:
        assert refused(pki, pki.sign_report(**fields)) == "report.reserved"

    @pytest.mark.parametrize("algorithm", [0, 2, 0x101])
    def test_another_algorithm(self, pki: AmdPki, algorithm: int) -> None:
        report = pki.sign_report(signature_algorithm=algorithm)
        assert refused(pki, report) == "report.signature_algorithm"

    @pytest.mark.parametrize("at", [2 * 72, 511])
    def test_bytes_that_the_signature_does_not_cover(
        self, pki: AmdPki, at: int
    ) -> None:
        report = bytearray(pki.sign_report())
        report[SIGNED_BYTES + at] = 1
        assert refused(pki, bytes(report)) == "report.signature_form"


class TestSignature:
    def test_every_signed_byte(self, pki: AmdPki) -> None:
        report = pki.sign_report(REPORT_DATA)
        tee, given = SevSnp(roots=pki.roots), pki.endorsements()
        for at in range(SIGNED_BYTES):
            hurt = bytearray(report)
            hurt[at] ^= 1 << at % 8
            with pytest.raises((CheckFailedError, MalformedInputError), match=r"."):
                tee.verify(Evidence(kind="sev-snp", blob=bytes(hurt)), given, now=NOW)

    @pytest.mark.parametrize("at", [0, 47, 48, 71, 72, 119, 120, 143])
    def test_r_and_s(self, pki: AmdPki, at: int) -> None:
        report = bytearray(pki.sign_report())
        report[SIGNED_BYTES + at] ^= 0x10
        assert refused(pki, bytes(report)) == "report.signature"

    @pytest.mark.parametrize("signature", [bytes(512), b"\1" + bytes(511)])
    def test_no_signature(self, pki: AmdPki, signature: bytes) -> None:
        report = pki.sign_report(signature=signature)
        assert refused(pki, report) == "report.signature"

    def test_another_key(self, pki: AmdPki) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        assert refused(pki, pki.sign_report(signing_key=key)) == "report.signature"

    def test_a_key_of_another_curve(self, pki: AmdPki) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = pki.issue_leaf(VCEK, key=key.public_key())
        report = pki.sign_report(signing_key=key)
        assert refused(pki, report, (leaf, pki.ask, pki.ark)) == "leaf.key"


class TestLeaf:
    def test_a_vlek_for_a_report_that_names_the_vcek(self, pki: AmdPki) -> None:
        report = pki.sign_report(key=VCEK)
        assert refused(pki, report, pki.endorsements(VLEK)) == "report.signing_key"

    def test_a_vcek_for_a_report_that_names_the_vlek(self, pki: AmdPki) -> None:
        report = pki.sign_report(key=VLEK, chip_id=pki.hwid)
        assert refused(pki, report) == "report.signing_key"

    @pytest.mark.parametrize("number", [2, 7])
    def test_a_report_that_names_no_key(self, pki: AmdPki, number: int) -> None:
        report = pki.sign_report(key_info=number << 2)
        assert refused(pki, report) == "report.signing_key"

    def test_another_chip(self, pki: AmdPki) -> None:
        report = pki.sign_report(chip_id=bytes(63) + b"\1")
        assert refused(pki, report) == "leaf.hwid"

    def test_a_longer_chip_id_that_begins_alike(self) -> None:
        pki = AmdPki(now=NOW, product=Product.TURIN)
        report = pki.sign_report(chip_id=pki.hwid + b"\1")
        assert refused(pki, report) == "leaf.hwid"

    @pytest.mark.parametrize("part", ["bootloader", "tee", "snp", "microcode", "fmc"])
    @pytest.mark.parametrize("step", [-1, 1])
    def test_another_tcb(self, part: str, step: int) -> None:
        pki = AmdPki(now=NOW, product=Product.TURIN)
        oid = {"bootloader": "1", "tee": "2", "snp": "3", "microcode": "8", "fmc": "9"}
        level = max(pki.tcb.to_json()[part] + step, 0) or 1
        level += level == pki.tcb.to_json()[part]
        leaf = pki.issue_leaf(VCEK, extensions={f"3.{oid[part]}": integer(level)})
        assert refused(pki, None, (leaf, pki.ask, pki.ark)) == "leaf.tcb"

    @pytest.mark.parametrize("oid", ["3.1", "3.2", "3.3", "3.8"])
    def test_a_leaf_without_a_level(self, pki: AmdPki, oid: str) -> None:
        leaf = pki.issue_leaf(VCEK, extensions={oid: None})
        assert refused(pki, None, (leaf, pki.ask, pki.ark)) == "leaf.tcb"

    def test_the_processor_of_another_product(self, pki: AmdPki) -> None:
        for cpuid in (CPUIDS[Product.GENOA], CPUIDS[Product.TURIN], b"\x17\x31\0"):
            report = pki.sign_report(cpuid=cpuid)
            assert refused(pki, report) == "report.cpuid"

    def test_turins_layout_is_not_the_reports_to_choose(self, pki: AmdPki) -> None:
        # Before version 3 a report does not say its product: the root does.
        turin = AmdPki(now=NOW, product=Product.TURIN)
        report = pki.sign_report(
            version=2, reported_tcb=encode_tcb(turin.tcb), chip_id=b""
        )
        assert refused(pki, report) == "leaf.tcb"


class TestChain:
    def test_a_root_that_is_not_pinned(self, pki: AmdPki) -> None:
        other = AmdPki(now=NOW)
        given = Evidence(kind="sev-snp", blob=pki.sign_report())
        for tee in (SevSnp(), load_tee("sev-snp"), SevSnp(roots=other.roots)):
            with pytest.raises(CheckFailedError, match=r"ark\.pinned") as caught:
                tee.verify(given, pki.endorsements(), now=NOW)
            assert caught.value.findings[0].field == "ark.pinned"

    def test_an_ask_that_another_ark_signed(self, pki: AmdPki) -> None:
        ask = pki.issue("SEV-Milan", "ARK-Milan", ca=True, issuer_key=rsa_key("other"))
        assert refused(pki, None, (pki.vcek, ask, pki.ark)) == "ask.signature"

    def test_an_ask_of_another_issuers_name(self, pki: AmdPki) -> None:
        key = rsa_key("ARK-Milan")
        ask = pki.issue("SEV-Milan", "ARK-Genoa", ca=True, issuer_key=key)
        assert refused(pki, None, (pki.vcek, ask, pki.ark)) == "ask.issuer"

    def test_an_ask_that_is_no_ca(self, pki: AmdPki) -> None:
        ask = pki.issue("SEV-Milan", "ARK-Milan", ca=False)
        assert refused(pki, None, (pki.vcek, ask, pki.ark)) == "ask.ca"

    def test_an_ask_of_another_product(self, pki: AmdPki) -> None:
        ask = pki.issue("SEV-Genoa", "ARK-Milan", ca=True)
        leaf = pki.issue_leaf(VCEK, issuer="SEV-Genoa")
        assert refused(pki, None, (leaf, ask, pki.ark)) == "ask.product"

    def test_a_leaf_that_another_ask_signed(self, pki: AmdPki) -> None:
        leaf = pki.issue_leaf(VCEK, issuer_key=rsa_key("other"))
        assert refused(pki, None, (leaf, pki.ask, pki.ark)) == "leaf.signature"

    def test_a_leaf_of_another_issuers_name(self, pki: AmdPki) -> None:
        leaf = pki.issue_leaf(VCEK, issuer="SEV-Rome", issuer_key=rsa_key("SEV-Milan"))
        assert refused(pki, None, (leaf, pki.ask, pki.ark)) == "leaf.issuer"

    def test_a_leaf_of_another_product(self, pki: AmdPki) -> None:
        leaf = pki.issue_leaf(VCEK, extensions={"2": text("Genoa-B1")})
        assert refused(pki, None, (leaf, pki.ask, pki.ark)) == "leaf.product"

    def test_the_ask_of_another_product_line(self, pki: AmdPki) -> None:
        other = AmdPki(now=NOW, product=Product.GENOA)
        given = (pki.vcek, other.ask, other.ark)
        tee = SevSnp(roots=pki.roots | other.roots)
        evidence = Evidence(kind="sev-snp", blob=pki.sign_report())
        with pytest.raises(CheckFailedError, match=r"leaf\.issuer"):
            tee.verify(evidence, given, now=NOW)

    def test_a_vcek_from_whoever_signs_vleks(self, pki: AmdPki) -> None:
        leaf = pki.issue_leaf(VCEK, issuer="SEV-VLEK-Milan")
        assert refused(pki, None, (leaf, pki.asvk, pki.ark)) == "leaf.signer"

    def test_a_vlek_from_whoever_signs_vceks(self, pki: AmdPki) -> None:
        leaf = pki.issue_leaf(VLEK, issuer="SEV-Milan")
        report = pki.sign_report(key=VLEK)
        assert refused(pki, report, (leaf, pki.ask, pki.ark)) == "leaf.signer"

    @pytest.mark.parametrize("which", ["ark", "ask", "leaf"])
    @pytest.mark.parametrize("dates", ["ended", "to come"])
    def test_dates(self, which: str, dates: str) -> None:
        pki = AmdPki(now=NOW)
        bounds = {
            "ended": {"not_after": NOW - timedelta(seconds=1)},
            "to come": {"not_before": NOW + timedelta(seconds=1)},
        }[dates]
        leaf = pki.vcek
        if which == "ark":
            pki.ark = pki.issue("ARK-Milan", "ARK-Milan", ca=True, **bounds)
        elif which == "ask":
            pki.ask = pki.issue("SEV-Milan", "ARK-Milan", ca=True, **bounds)
        else:
            leaf = pki.issue_leaf(VCEK, **bounds)
        assert refused(pki, None, (leaf, pki.ask, pki.ark)) == "chain.dates"

    def test_the_verifiers_time_counts(self, pki: AmdPki) -> None:
        for now in (NOW - timedelta(days=1), NOW + timedelta(days=31)):
            assert refused(pki, now=now) == "chain.dates"

    def test_the_shortest_date_ends_the_claims(self, pki: AmdPki) -> None:
        soon = NOW + timedelta(hours=1)
        leaf = pki.issue_leaf(VCEK, not_after=soon)
        assert verify(pki, None, (leaf, pki.ask, pki.ark)).expires_at == soon
        crl = pki.issue_crl(until=soon)
        assert verify(pki, None, (*pki.endorsements(), crl)).expires_at == soon


class TestRevocation:
    def serial(self, der: bytes) -> int:
        return x509.load_der_x509_certificate(der).serial_number

    def test_a_list_without_the_ask(self, pki: AmdPki) -> None:
        crl = pki.issue_crl([self.serial(pki.asvk)])
        claims = verify(pki, None, (crl, *pki.endorsements()))
        assert claims.claims["revocation_checked"]

    def test_a_revoked_ask(self, pki: AmdPki) -> None:
        crl = pki.issue_crl([1, self.serial(pki.ask), 2])
        assert refused(pki, None, (crl, *pki.endorsements())) == "crl.serial"

    def test_a_revoked_asvk(self, pki: AmdPki) -> None:
        crl = pki.issue_crl([self.serial(pki.asvk)])
        given = (*pki.endorsements(VLEK), crl)
        assert refused(pki, pki.sign_report(key=VLEK), given) == "crl.serial"

    def test_every_list_counts(self, pki: AmdPki) -> None:
        given = (pki.issue_crl(), pki.issue_crl([self.serial(pki.ask)]))
        assert refused(pki, None, (*given, *pki.endorsements())) == "crl.serial"

    def test_a_list_that_another_key_signed(self, pki: AmdPki) -> None:
        crl = pki.issue_crl(issuer_key=rsa_key("other"))
        assert refused(pki, None, (*pki.endorsements(), crl)) == "crl.signature"

    def test_a_list_out_of_date(self, pki: AmdPki) -> None:
        crl = pki.issue_crl(until=NOW - timedelta(seconds=1))
        assert refused(pki, None, (*pki.endorsements(), crl)) == "crl.dates"

    def test_a_list_of_something_else(self, pki: AmdPki) -> None:
        only = x509.IssuingDistributionPoint(
            full_name=None,
            relative_name=None,
            only_contains_user_certs=True,
            only_contains_ca_certs=False,
            only_some_reasons=None,
            indirect_crl=False,
            only_contains_attribute_certs=False,
        )
        crl = pki.issue_crl(extension=only)
        assert refused(pki, None, (*pki.endorsements(), crl)) == "crl.extensions"

    def test_a_list_of_another_ark_is_none(self, pki: AmdPki) -> None:
        crl = AmdPki(now=NOW, product=Product.GENOA).issue_crl()
        claims = verify(pki, None, (*pki.endorsements(), crl))
        assert not claims.claims["revocation_checked"]


def test_describing_needs_no_signature(pki: AmdPki) -> None:
    report = pki.sign_report(REPORT_DATA, signature=bytes(512))
    described = SevSnp().describe(Evidence(kind="sev-snp", blob=report))
    assert described["report_data"] == REPORT_DATA.hex()
    assert described["measurement"] == MEASUREMENT.hex()
    assert (described["product"], described["key"]) == ("Milan", "vcek")


def test_describing_reads_the_layout_that_a_report_shows() -> None:
    turin = AmdPki(now=NOW, product=Product.TURIN)
    for version in (2, 3):
        blob = turin.sign_report(version=version)
        described = SevSnp().describe(Evidence(kind="sev-snp", blob=blob))
        assert described["tcb"]["reported"] == turin.tcb.to_json()
    blob = turin.sign_report(key_info=3 << 2, cpuid=b"\x1a\x50\0")
    described = SevSnp().describe(Evidence(kind="sev-snp", blob=blob))
    assert (described["product"], described["key"]) == (None, None)


def test_the_layout_is_the_abis() -> None:
    assert LAYOUT.size == REPORT_BYTES == 1184
    assert SIGNED_BYTES == 0x2A0
