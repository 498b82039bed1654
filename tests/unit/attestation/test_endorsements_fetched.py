"""Endorsements from services that speak as Intel's and AMD's do, then verified with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bentoml_secure.attestation.endorsements import KINDS, fetch_endorsements
from bentoml_secure.attestation.endorsements.cache import CachedFetch, ExpiryOf
from bentoml_secure.attestation.endorsements.fetching import (
    Endorsement,
    HttpsFetch,
    Response,
)
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.az_snp_vtpm import AzSnpVtpm
from bentoml_secure.attestation.tees.sev_snp import SevSnp
from bentoml_secure.attestation.tees.sgx import Sgx
from bentoml_secure.attestation.tees.snp_report import Product, SigningKey
from bentoml_secure.attestation.tees.tdx import Tdx
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.testing.amd_pki import AmdPki
from bentoml_secure.testing.az_vm import AzVm
from bentoml_secure.testing.dcap_pki import DcapPki, QuoteParts
from tests.evidence_vectors import vector
from tests.unit.attestation.vendor_services import (
    Service,
    answer,
    intel_answers,
    serve,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SGX_EXTENSIONS = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
FMSPC = bytes.fromhex("060a2a864886f84d010d01040406")


@pytest.fixture
def service() -> Iterator[Service]:
    with serve() as running:
        yield running


def get(url: str, expiry_of: ExpiryOf) -> Response:
    fetch = HttpsFetch(timeout_seconds=10)
    return CachedFetch(fetch=fetch, clock=lambda: NOW)(url, expiry_of)


def fetch(kind: str, blob: bytes, service: Service) -> tuple[Endorsement, ...]:
    return fetch_endorsements(
        Evidence(kind=kind, blob=blob), get, service=f"{service.url}/"
    )


def data_of(fetched: tuple[Endorsement, ...]) -> tuple[bytes, ...]:
    return tuple(endorsement.data for endorsement in fetched)


@pytest.fixture
def intel() -> DcapPki:
    return DcapPki(now=NOW)


def dev_answers(pki: DcapPki, tee: str) -> dict[str, Response]:
    return intel_answers(
        pki.collateral_fields(tee.upper()),
        tee=tee,
        fmspc=pki.platform.fmspc.hex().upper(),
        ca="platform",
    )


class TestIntel:
    @pytest.mark.parametrize(
        ("kind", "quote", "fmspc", "ca"),
        [
            ("tdx", "tdx/tdx_quote", "B0C06F000000", "platform"),
            ("sgx", "sgx/sgx_quote", "00A067110000", "processor"),
        ],
    )
    def test_real_collateral_comes_out_as_its_tools_write_it(
        self, service: Service, kind: str, quote: str, fmspc: str, ca: str
    ) -> None:
        wanted = json.loads(vector(f"{quote}_collateral.json"))
        service.answers = intel_answers(wanted, tee=kind, fmspc=fmspc, ca=ca)
        (fetched,) = fetch(kind, vector(quote), service)
        assert fetched.name == "collateral.json"
        assert json.loads(fetched.data) == wanted
        assert sorted(service.asked) == sorted(service.answers)

    def test_what_was_fetched_verifies_the_quote(
        self, service: Service, intel: DcapPki
    ) -> None:
        service.answers = dev_answers(intel, "tdx") | dev_answers(intel, "sgx")
        for kind, tee, blob in (
            ("tdx", Tdx(root=intel.root_digest), intel.tdx_quote(bytes(64))),
            ("sgx", Sgx(root=intel.root_digest), intel.sgx_quote(bytes(64))),
        ):
            evidence = Evidence(kind=kind, blob=blob)
            fetched = fetch(kind, blob, service)
            claims = tee.verify(evidence, data_of(fetched), now=NOW)
            assert claims.simulated

    def test_lists_may_come_as_pem_hex_or_der(
        self, service: Service, intel: DcapPki
    ) -> None:
        answers = dev_answers(intel, "tdx")
        (path,) = (path for path in answers if "pckcrl" in path)
        der = answers[path].body
        pem = x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)
        for body in (der, pem, der.hex().encode(), der.hex().upper().encode() + b"\n"):
            answers[path] = Response(
                status=200, headers=answers[path].headers, body=body
            )
            service.answers = answers
            (fetched,) = fetch("tdx", intel.tdx_quote(bytes(64)), service)
            assert json.loads(fetched.data)["pck_crl"] == der.hex()

    def test_the_signed_text_is_kept_byte_for_byte(
        self, service: Service, intel: DcapPki
    ) -> None:
        answers = dev_answers(intel, "tdx")
        (path,) = (path for path in answers if "/tcb?" in path)
        spaced = answers[path].body.replace(b'{"tcbInfo":', b'{ "tcbInfo" :\n ')
        answers[path] = Response(status=200, headers=answers[path].headers, body=spaced)
        service.answers = answers
        (fetched,) = fetch("tdx", intel.tdx_quote(bytes(64)), service)
        wanted = intel.collateral_fields("TDX")["tcb_info"]
        assert json.loads(fetched.data)["tcb_info"] == wanted

    @pytest.mark.parametrize(
        ("part", "change", "match"),
        [
            ("/tcb?", {"body": b"<html>"}, "not valid JSON"),
            ("/tcb?", {"body": b"[]"}, "does not begin with that object"),
            ("/tcb?", {"body": b'{"tcbInfo":1}'}, "does not begin with that object"),
            (
                "/tcb?",
                {"body": b'{"a":{"tcbInfo":1},"tcbInfo":{}}'},
                "does not begin with that object",
            ),
            ("/tcb?", {"body": b'{"tcbInfo":{}}'}, "128 hex digits"),
            (
                "/tcb?",
                {"body": b'{"tcbInfo":{},"signature":"' + b"0" * 128 + b'"}'},
                "nextUpdate",
            ),
            ("/tcb?", {"headers": {}}, "no header tcb-info-issuer-chain"),
            ("qe/identity", {"headers": {}}, "no header sgx-enclave"),
            ("pckcrl", {"headers": {}}, "no header sgx-pck-crl"),
            ("pckcrl", {"body": b"\x30\x00"}, "does not parse"),
            ("rootcacrl", {"body": b""}, "does not parse"),
        ],
    )
    def test_an_answer_of_another_form_is_refused(
        self,
        service: Service,
        intel: DcapPki,
        part: str,
        change: dict[str, Any],
        match: str,
    ) -> None:
        service.answers = dev_answers(intel, "tdx")
        (path,) = (path for path in service.answers if part in path)
        good = service.answers[path]
        service.answers[path] = dataclasses.replace(good, **change)
        with pytest.raises(MalformedInputError, match=match):
            fetch("tdx", intel.tdx_quote(bytes(64)), service)

    def test_a_quote_without_its_certificate_names_no_platform(
        self, service: Service, intel: DcapPki
    ) -> None:
        quote = intel.tdx_quote(bytes(64), parts=QuoteParts().without_chain())
        with pytest.raises(ConfigurationError, match="does not carry"):
            fetch("tdx", quote, service)
        assert service.asked == []

    @pytest.mark.parametrize(
        ("certification", "match"),
        [
            (b"", "does not parse"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "parse"),
        ],
    )
    def test_a_certificate_that_does_not_parse_is_refused(
        self, service: Service, intel: DcapPki, certification: bytes, match: str
    ) -> None:
        parts = QuoteParts(certification=certification)
        with pytest.raises(MalformedInputError, match=match):
            fetch("tdx", intel.tdx_quote(bytes(64), parts=parts), service)

    @pytest.mark.parametrize("issued", ["root", "tcb_signer"])
    def test_a_certificate_of_no_platform_is_refused(
        self, service: Service, intel: DcapPki, issued: str
    ) -> None:
        pem = getattr(intel, issued).pem.encode()
        quote = intel.tdx_quote(bytes(64), parts=QuoteParts(certification=pem))
        with pytest.raises(MalformedInputError, match="does not parse"):
            fetch("tdx", quote, service)

    @pytest.mark.parametrize(
        ("issuer", "extension", "match"),
        [
            ("a PCK Platform CA", b"\x30\x00", "no platform model"),
            ("a PCK Platform CA", FMSPC + b"\x01", "no platform model"),
            ("a PCK Platform CA", (FMSPC + bytes(6)) * 2, "no platform model"),
            ("someone", FMSPC + bytes(6), "issued by 'someone'"),
        ],
    )
    def test_a_certificate_that_names_none_is_refused(
        self,
        service: Service,
        intel: DcapPki,
        issuer: str,
        extension: bytes,
        match: str,
    ) -> None:
        def name(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        builder = (
            x509.CertificateBuilder()
            .subject_name(name("platform"))
            .issuer_name(name(issuer))
            .public_key(intel.pck.key.public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW)
            .add_extension(
                x509.UnrecognizedExtension(SGX_EXTENSIONS, extension), critical=False
            )
        )
        certificate = builder.sign(intel.pck.key, hashes.SHA256())
        parts = QuoteParts(certification=certificate.public_bytes(Encoding.PEM))
        quote = intel.tdx_quote(bytes(64), parts=parts)
        with pytest.raises(MalformedInputError, match=match):
            fetch("tdx", quote, service)
        assert service.asked == []


def amd_answers(pki: AmdPki, path: str) -> dict[str, Response]:
    """Return what the service answers for one chip and its product."""
    chain = b"".join(
        x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
        for der in (pki.ask, pki.ark)
    )
    base = f"/vcek/v1/{pki.product}"
    return {
        f"{base}/{path}": answer(pki.vcek),
        f"{base}/cert_chain": answer(chain),
        f"{base}/crl": answer(pki.issue_crl()),
    }


class TestAmd:
    @pytest.mark.parametrize(
        ("product", "levels"),
        [
            (Product.MILAN, "blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=219"),
            (Product.GENOA, "blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=219"),
            (Product.TURIN, "fmcSPL=1&blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=219"),
        ],
    )
    def test_what_was_fetched_verifies_the_report(
        self, service: Service, product: Product, levels: str
    ) -> None:
        pki = AmdPki(now=NOW, product=product)
        service.answers = amd_answers(pki, f"{pki.hwid.hex()}?{levels}")
        evidence = pki.attest(bytes(64))
        fetched = fetch("sev-snp", evidence.blob, service)
        assert [file.name for file in fetched] == [
            "vcek.der",
            "cert_chain.pem",
            "crl.der",
        ]
        claims = SevSnp(roots=pki.roots).verify(evidence, data_of(fetched), now=NOW)
        assert claims.claims["revocation_checked"]

    def test_a_vm_of_azure_s_needs_its_report_s(self, service: Service) -> None:
        pki = AmdPki(now=NOW)
        levels = "blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=219"
        service.answers = amd_answers(pki, f"{pki.hwid.hex()}?{levels}")
        evidence = AzVm(pki).attest(bytes(32))
        fetched = fetch("az-snp-vtpm", evidence.blob, service)
        claims = AzSnpVtpm(roots=pki.roots).verify(evidence, data_of(fetched), now=NOW)
        assert claims.simulated

    def test_an_old_report_is_asked_for_at_each_product(self, service: Service) -> None:
        pki = AmdPki(now=NOW, product=Product.GENOA)
        levels = "blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=219"
        service.answers = amd_answers(pki, f"{pki.hwid.hex()}?{levels}")
        fetched = fetch("sev-snp", pki.sign_report(version=2), service)
        (leaf,) = (path for path in service.answers if "SPL" in path)
        assert fetched[0].data == service.answers[leaf].body
        assert [path.split("/")[3] for path in service.asked] == [
            "Milan",
            "Genoa",
            "Genoa",
            "Genoa",
        ]

    def test_a_chip_that_no_product_knows_is_said(self, service: Service) -> None:
        pki = AmdPki(now=NOW)
        with pytest.raises(UnavailableError, match=r"/Genoa/.*status 404"):
            fetch("sev-snp", pki.sign_report(version=2), service)
        with pytest.raises(UnavailableError, match=r"/Milan/.*status 404"):
            fetch("sev-snp", pki.sign_report(), service)

    def test_another_trouble_is_not_taken_for_another_product(
        self, service: Service
    ) -> None:
        pki = AmdPki(now=NOW)
        levels = "blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=219"
        path = f"/vcek/v1/Milan/{pki.hwid.hex()}?{levels}"
        service.answers = {path: Response(status=429, headers={"Retry-After": "7"})}
        with pytest.raises(UnavailableError, match="after 7"):
            fetch("sev-snp", pki.sign_report(version=2), service)
        assert service.asked == [path]

    def test_of_a_vlek_only_its_issuers_are_fetched(self, service: Service) -> None:
        pki = AmdPki(now=NOW)
        chain = b"".join(
            x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
            for der in (pki.asvk, pki.ark)
        )
        service.answers = {
            "/vlek/v1/Milan/cert_chain": answer(chain),
            "/vlek/v1/Milan/crl": answer(pki.issue_crl()),
        }
        blob = pki.sign_report(key=SigningKey.VLEK)
        fetched = fetch("sev-snp", blob, service)
        assert [file.name for file in fetched] == ["cert_chain.pem", "crl.der"]
        evidence = Evidence(kind="sev-snp", blob=blob)
        given = (pki.vlek, *data_of(fetched))
        assert SevSnp(roots=pki.roots).verify(evidence, given, now=NOW).simulated

    @pytest.mark.parametrize(
        ("key", "fields", "match"),
        [
            (SigningKey.VCEK, {"chip_id": bytes(64)}, "masked"),
            (SigningKey.VLEK, {"version": 2}, "which product"),
            (SigningKey.VCEK, {"cpuid": b"\x17\x01\x00"}, "no product"),
        ],
    )
    def test_reports_that_cannot_be_asked_for(
        self,
        service: Service,
        key: SigningKey,
        fields: dict[str, Any],
        match: str,
    ) -> None:
        with pytest.raises(ConfigurationError, match=match):
            fetch("sev-snp", AmdPki(now=NOW).sign_report(key=key, **fields), service)
        assert service.asked == []

    @pytest.mark.parametrize(
        ("part", "body"),
        [
            ("SPL", b"<html>"),
            ("cert_chain", b"<html>"),
            ("cert_chain", b""),
            ("crl", b"<html>"),
        ],
    )
    def test_an_answer_of_another_form_is_refused(
        self, service: Service, part: str, body: bytes
    ) -> None:
        pki = AmdPki(now=NOW)
        levels = "blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=219"
        service.answers = amd_answers(pki, f"{pki.hwid.hex()}?{levels}")
        (path,) = (path for path in service.answers if part in path)
        service.answers[path] = answer(body)
        with pytest.raises(MalformedInputError, match=service.url):
            fetch("sev-snp", pki.sign_report(), service)


def test_kinds_without_a_service_are_refused() -> None:
    assert KINDS == ("az-snp-vtpm", "sev-snp", "sgx", "tdx")
    with pytest.raises(ConfigurationError, match="nothing to fetch"):
        fetch_endorsements(Evidence(kind="nitro", blob=b"1"), get)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blob", [b"1", bytes(1184), bytes(5000)])
def test_bytes_that_are_no_evidence_ask_nothing(
    service: Service, kind: str, blob: bytes
) -> None:
    with pytest.raises(SecureError):
        fetch(kind, blob, service)
    assert service.asked == []
