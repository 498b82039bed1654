"""SGX evidence that is good, and evidence that a named check must refuse."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.sgx import Sgx
from bentoml_secure.errors import (
    AttestationError,
    MalformedInputError,
    MissingEndorsementError,
)
from bentoml_secure.testing.dcap_pki import DcapPki, QuoteParts
from bentoml_secure.testing.dcap_platform import Platform, measurement
from tests.unit.attestation.dcap import (
    FOREIGN,
    NOW,
    PKI,
    REPORT_DATA,
    field,
    flipped,
    level,
    refused,
    setting,
    sgx,
)

ATTRIBUTES = slice(48, 64)


def under(check: str, **collateral: Any) -> None:
    refused(check, lambda: sgx(None, PKI.collateral("SGX", **collateral)))


def quoting(check: str, **quote: Any) -> None:
    refused(check, lambda: sgx(PKI.sgx_quote(REPORT_DATA, **quote)))


def test_an_enclave_says_what_was_signed() -> None:
    claims = sgx()
    wanted = {
        "quote_version": 3,
        "status": "UpToDate",
        "mr_enclave": measurement("enclave")[:32].hex(),
        "mr_signer": measurement("signer")[:32].hex(),
        "isv_prod_id": 7,
        "isv_svn": 3,
        "config_id": hashlib.sha512(b"configuration").hexdigest(),
        "config_svn": 0,
        "attributes": "0500000000000000e700000000000000",
        "misc_select": "00000000",
        "cpu_svn": "05" * 16,
        "fmspc": "50806f000000",
    }
    assert {name: claims.claims[name] for name in wanted} == wanted
    assert claims.kind == "sgx"
    assert claims.simulated
    assert claims.vendor == "none (simulated)"
    assert claims.report_data == REPORT_DATA
    assert claims.platform_id == bytes(range(16)).hex()
    assert json.dumps(claims.to_json())


def test_every_field_stands_where_the_format_has_it() -> None:
    def number(body: bytearray) -> None:
        body[16:48] = bytes(range(16, 48))
        body[256:320] = bytes(range(64))

    got = sgx(PKI.sgx_quote(REPORT_DATA, edit=number)).claims
    assert got["misc_select"] == bytes(range(16, 20)).hex()
    assert got["isv_ext_prod_id"] == bytes(range(32, 48)).hex()
    assert got["isv_prod_id"] == 0x0100
    assert got["isv_svn"] == 0x0302
    assert got["config_svn"] == 0x0504
    assert got["isv_family_id"] == bytes(range(48, 64)).hex()


def test_the_table_of_kinds_knows_intels_root_alone() -> None:
    evidence = Evidence(kind="sgx", blob=PKI.sgx_quote(REPORT_DATA))
    given = (PKI.collateral("SGX"),)
    refused("chain.root", lambda: load_tee("sgx").verify(evidence, given, now=NOW))
    quote, collateral = FOREIGN.sgx_quote(REPORT_DATA), FOREIGN.collateral("SGX")
    refused("chain.root", lambda: sgx(quote, collateral))


class TestForm:
    def test_another_kind(self) -> None:
        evidence = Evidence(kind="tdx", blob=PKI.sgx_quote(REPORT_DATA))
        with pytest.raises(AttestationError, match="got tdx, want sgx"):
            Sgx().verify(evidence, (), now=NOW)

    def test_zero_bytes_after_the_quote_and_no_others(self) -> None:
        quote = PKI.sgx_quote(REPORT_DATA)
        assert sgx(quote + bytes(9)) == sgx()
        with pytest.raises(MalformedInputError, match="1 bytes beyond its end"):
            sgx(quote + b"\x01")

    @pytest.mark.parametrize(("at", "value"), [(0, 4), (0, 5), (2, 3), (4, 0x81)])
    def test_what_is_not_supported(self, at: int, value: int) -> None:
        quote = bytearray(PKI.sgx_quote(REPORT_DATA))
        quote[at] = value
        with pytest.raises(MalformedInputError, match=f"got {value:#x}, want"):
            sgx(bytes(quote))

    def test_a_quoting_enclave_of_another_vendor(self) -> None:
        refused("qe_vendor", lambda: sgx(flipped(PKI.sgx_quote(REPORT_DATA), 27)))

    def test_every_length_that_is_cut(self) -> None:
        quote = PKI.sgx_quote(REPORT_DATA)
        for length in (*range(1, 1100, 5), *range(1100, len(quote), 97)):
            with pytest.raises(MalformedInputError, match="are left"):
                sgx(quote[:length])

    def test_a_quote_of_a_td(self) -> None:
        with pytest.raises(MalformedInputError, match="TEE type: got 0x81, want 0x0"):
            sgx(PKI.tdx_quote(REPORT_DATA))

    def test_a_quote_that_only_names_its_certificate(self) -> None:
        parts = QuoteParts().without_chain()
        quote = PKI.sgx_quote(REPORT_DATA, parts=parts)
        with pytest.raises(MissingEndorsementError, match="of type 3"):
            sgx(quote)
        given = PKI.collateral("SGX", pck_certificate_chain=PKI.pck_chain)
        assert sgx(quote, given) == sgx()

    def test_what_a_quote_says_without_verifying_it(self) -> None:
        evidence = Evidence(kind="sgx", blob=flipped(PKI.sgx_quote(REPORT_DATA), 500))
        described = Sgx().describe(evidence)
        assert described["isv_prod_id"] == 7
        assert described["report_data"] == REPORT_DATA.hex()


class TestRefusals:
    def test_no_collateral(self) -> None:
        with pytest.raises(MissingEndorsementError, match="no DCAP collateral"):
            sgx(None, b"PEM of another kind")

    def test_collateral_of_a_td(self) -> None:
        refused("collateral.tee", lambda: sgx(None, PKI.collateral("TDX")))
        under("collateral.tee", edit_qe=field(id="TD_QE"))

    def test_a_debugger(self) -> None:
        debug = setting(ATTRIBUTES, bytes([7, *[0] * 15]))
        quoting("debug", edit=debug)

    def test_a_quoting_enclave_with_a_debugger(self) -> None:
        parts = QuoteParts(edit_qe=setting(ATTRIBUTES, bytes([7, *[0] * 15])))
        quoting("qe_report.identity", parts=parts)

    def test_signatures(self) -> None:
        quote = PKI.sgx_quote(REPORT_DATA)
        data = 48 + 384 + 4
        for at, check in (
            (48 + 64, "quote.signature"),
            (48 + 320, "quote.signature"),
            (data, "quote.signature"),
            (data + 64, "qe_report.key"),
            (data + 128, "qe_report.signature"),
        ):
            with pytest.raises(AttestationError, match=check):
                sgx(flipped(quote, at))

    def test_a_foreign_platform(self) -> None:
        refused("chain", lambda: sgx(FOREIGN.sgx_quote(REPORT_DATA)))

    def test_a_revoked_platform(self) -> None:
        revoking = PKI.revocation_list(PKI.platform_ca, [PKI.pck])
        under("chain.revoked", pck_crl=revoking.hex())

    def test_lists_that_have_ended(self) -> None:
        ended = PKI.revocation_list(PKI.platform_ca, next_update=NOW)
        under("crl.expired", pck_crl=ended.hex())

    def test_another_model(self) -> None:
        other = DcapPki(now=NOW, platform=Platform(fmspc=bytes(6)))
        refused("fmspc", lambda: sgx(None, other.collateral("SGX")))

    def test_a_tcb_that_is_revoked_or_unknown(self) -> None:
        def raised(info: dict[str, Any]) -> None:
            info["tcbLevels"][0]["tcb"]["pcesvn"] = 12

        under("tcb.revoked", edit_tcb=level(tcbStatus="Revoked"))
        under("tcb.level", edit_tcb=raised)

    def test_ended_or_not_issued(self) -> None:
        under("collateral.expired", edit_tcb=field(nextUpdate="2026-03-01T11:59:59Z"))
        under("collateral.issued", edit_qe=field(issueDate="2026-03-01T12:00:01Z"))

    def test_edited_collateral(self) -> None:
        for name in ("tcb_info", "qe_identity"):
            text = PKI.collateral_fields("SGX")[name]
            edited: dict[str, Any] = {name: text.replace("UpToDate", "OutOfDate", 1)}
            under(f"{name}.signature", **edited)
