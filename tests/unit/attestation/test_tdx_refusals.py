"""TDX evidence that is signed throughout and that one named check must refuse."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import dcap_qvl
import pytest

from bentoml_secure.attestation.tees.dcap_refusals import refuse
from bentoml_secure.errors import CheckFailedError
from bentoml_secure.testing.dcap_pki import DcapPki, QuoteParts
from bentoml_secure.testing.dcap_platform import Platform
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
    tdx,
)

SECOND = timedelta(seconds=1)
ATTRIBUTES = slice(120, 128)
SIGNATURE_DATA = 48 + 584 + 4
QE_REPORT = SIGNATURE_DATA + 128 + 6
QE_DATA = QE_REPORT + 384 + 64 + 2


def under(check: str, **collateral: Any) -> None:
    """Demand that a good quote is refused under this collateral."""
    refused(check, lambda: tdx(None, PKI.collateral("TDX", **collateral)))


def quoting(check: str, **quote: Any) -> None:
    """Demand that this quote is refused under good collateral."""
    refused(check, lambda: tdx(PKI.tdx_quote(REPORT_DATA, **quote)))


class TestLists:
    def test_ended(self) -> None:
        for issuer, name in ((PKI.root, "root_ca_crl"), (PKI.platform_ca, "pck_crl")):
            ended = PKI.revocation_list(issuer, next_update=NOW)
            under("crl.expired", **{name: ended.hex()})

    @pytest.mark.parametrize("name", ["root", "platform_ca", "tcb_signer"])
    def test_what_the_root_revokes(self, name: str) -> None:
        revoking = PKI.revocation_list(PKI.root, [getattr(PKI, name)])
        under("chain.revoked", root_ca_crl=revoking.hex())

    def test_a_revoked_platform(self) -> None:
        revoking = PKI.revocation_list(PKI.platform_ca, [PKI.pck])
        under("chain.revoked", pck_crl=revoking.hex())

    def test_a_list_of_another_issuer(self) -> None:
        under("crl.issuer", pck_crl=PKI.revocation_list(PKI.root).hex())

    def test_a_list_that_another_signed(self) -> None:
        for name, issuer in (("root_ca_crl", FOREIGN.root), ("pck_crl", FOREIGN.root)):
            got = FOREIGN.revocation_list(issuer)
            check = "crl" if name == "root_ca_crl" else "crl.issuer"
            under(check, **{name: got.hex()})

    def test_a_list_that_was_changed(self) -> None:
        for name, issuer in (("root_ca_crl", PKI.root), ("pck_crl", PKI.platform_ca)):
            good = PKI.revocation_list(issuer)
            under("crl", **{name: flipped(good, len(good) - 1).hex()})

    def test_a_list_that_is_none(self) -> None:
        for name in ("root_ca_crl", "pck_crl"):
            under("crl", **{name: "3000"})


class TestCollateral:
    def test_ended(self) -> None:
        ended = field(nextUpdate="2026-03-01T11:59:59Z")
        under("collateral.expired", edit_tcb=ended)
        under("collateral.expired", edit_qe=ended)

    def test_not_issued_yet(self) -> None:
        later = field(issueDate="2026-03-01T12:00:01Z")
        under("collateral.issued", edit_tcb=later)
        under("collateral.issued", edit_qe=later)
        refused(
            "collateral.issued", lambda: tdx(now=NOW - timedelta(hours=1, seconds=1))
        )

    def test_a_time_before_there_were_computers(self) -> None:
        refused("collateral.issued", lambda: tdx(now=NOW.replace(year=1066)))

    @pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
    def test_changed_after_it_was_signed(self, name: str) -> None:
        text = PKI.collateral_fields("TDX")[name]
        changed = text.replace('"UpToDate"', '"OutOfDate"', 1)
        assert changed != text
        under(f"{name}.signature", **{name: changed})

    @pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
    def test_signed_by_another(self, name: str) -> None:
        foreign = FOREIGN.collateral_fields("TDX")
        both = {key: foreign[key] for key in (name, f"{name}_signature")}
        under(f"{name}.signature", **both)

    @pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
    def test_a_foreign_signer(self, name: str) -> None:
        chain = FOREIGN.tcb_signer.pem + FOREIGN.root.pem
        under("chain", **{f"{name}_issuer_chain": chain})

    def test_of_the_other_tee(self) -> None:
        refused("collateral.tee", lambda: tdx(None, PKI.collateral("SGX")))

    def test_with_the_other_quoting_enclave(self) -> None:
        under("collateral.tee", edit_qe=field(id="QE"))

    def test_with_an_identity_of_a_version_to_come(self) -> None:
        under("collateral.tee", edit_qe=field(version=4))

    def test_with_tcb_info_of_a_version_that_knew_no_td(self) -> None:
        under("collateral.tee", edit_tcb=field(version=2))

    def test_of_another_model(self) -> None:
        other = DcapPki(now=NOW, platform=Platform(fmspc=bytes(6)))
        refused("fmspc", lambda: tdx(None, other.collateral("TDX")))


class TestChain:
    def test_a_foreign_platform(self) -> None:
        quote = FOREIGN.tdx_quote(REPORT_DATA)
        refused("chain", lambda: tdx(quote))

    def test_no_chain_at_all(self) -> None:
        quoting("chain", parts=QuoteParts(certification=b"\0"))

    def test_a_leaf_alone(self) -> None:
        quoting("chain", parts=QuoteParts(certification=PKI.pck.pem.encode()))

    def test_more_certificates_than_a_chain_has(self) -> None:
        chain = PKI.pck_chain + 3 * PKI.root.pem
        quoting("chain", parts=QuoteParts(certification=chain.encode()))

    def test_an_authority_as_the_platform(self) -> None:
        chain = PKI.platform_ca.pem + PKI.root.pem
        quoting("chain", parts=QuoteParts(certification=chain.encode()))

    def test_a_platform_that_has_ended(self) -> None:
        pki = DcapPki(now=NOW, pck_until=NOW - SECOND)
        refused("chain.dates", lambda: tdx(pki.tdx_quote(REPORT_DATA)))

    def test_a_platform_certificate_without_its_extension(self) -> None:
        pki = DcapPki(now=NOW, platform=Platform(cpu_svn=bytes(15)))
        quote = pki.tdx_quote(REPORT_DATA, edit=setting(slice(0, 0), b""))
        refused("pck.extension", lambda: tdx(quote))


class TestQuotingEnclave:
    def test_its_report_changed(self) -> None:
        quote = PKI.tdx_quote(REPORT_DATA)
        for at in (QE_REPORT, QE_REPORT + 320, QE_REPORT + 384):
            refused("qe_report.signature", partial(tdx, flipped(quote, at)))

    def test_another_key_than_it_vouches_for(self) -> None:
        quote = PKI.tdx_quote(REPORT_DATA)
        for at in (SIGNATURE_DATA + 64, QE_DATA):
            refused("qe_report.key", partial(tdx, flipped(quote, at)))
        quoting("qe_report.key", parts=QuoteParts(qe_data=bytes(31)))

    @pytest.mark.parametrize(
        ("where", "value"),
        [
            (slice(128, 129), b"\0"),
            (slice(256, 258), b"\x01\x00"),
            (slice(258, 260), b"\x05\x00"),
            (slice(16, 17), b"\x01"),
            (slice(48, 49), b"\x07"),
            (slice(48, 49), b"\x15"),
        ],
        ids=["signer", "product", "version", "miscselect", "debug", "provisioning"],
    )
    def test_another_enclave(self, where: slice, value: bytes) -> None:
        parts = QuoteParts(edit_qe=setting(where, value))
        quoting("qe_report.identity", parts=parts)

    def test_no_version_of_it_is_known(self) -> None:
        under("qe_report.identity", edit_qe=field(tcbLevels=[]))


@pytest.mark.parametrize("at", [28, 48, 48 + 136, 48 + 520, SIGNATURE_DATA])
def test_a_quote_changed_after_it_was_signed(at: int) -> None:
    refused("quote.signature", lambda: tdx(flipped(PKI.tdx_quote(REPORT_DATA), at)))


class TestTcb:
    def edit(self, change: Callable[[dict[str, Any]], object]) -> Callable[..., None]:
        def edit(info: dict[str, Any]) -> None:
            change(info["tcbLevels"][0]["tcb"])

        return edit

    def raise_third(self, tee: str, tcb: dict[str, Any]) -> None:
        tcb[f"{tee}tcbcomponents"][2]["svn"] = 9

    def test_below_every_level(self) -> None:
        under("tcb.level", edit_tcb=self.edit(lambda tcb: tcb.update(pcesvn=12)))
        for tee in ("sgx", "tdx"):
            under("tcb.level", edit_tcb=self.edit(partial(self.raise_third, tee)))

    def test_levels_of_another_form(self) -> None:
        under(
            "tcb.level", edit_tcb=self.edit(lambda tcb: tcb.update(tdxtcbcomponents=[]))
        )

    def test_a_module_below_every_level(self) -> None:
        def edit(info: dict[str, Any]) -> None:
            info["tdxModuleIdentities"][0]["tcbLevels"][0]["tcb"]["isvsvn"] = 4

        under("tcb.level", edit_tcb=edit)

    def test_a_module_that_intel_does_not_list(self) -> None:
        under("tcb.level", edit_tcb=field(tdxModuleIdentities=[]))

    def test_revoked(self) -> None:
        def module(info: dict[str, Any]) -> None:
            level(tcbStatus="Revoked")(info["tdxModuleIdentities"][0])

        under("tcb.revoked", edit_tcb=level(tcbStatus="Revoked"))
        under("tcb.revoked", edit_qe=level(tcbStatus="Revoked"))
        under("tcb.revoked", edit_tcb=module)

    def test_a_module_of_another_signer(self) -> None:
        quoting("tdx_module", edit=setting(slice(64, 65), b"\x01"))
        quoting("tdx_module", edit=setting(slice(112, 113), b"\x01"))
        under("tdx_module", edit_tcb=field(tdxModule=None))

    @pytest.mark.parametrize(
        "status",
        [
            "SWHardeningNeeded",
            "ConfigurationNeeded",
            "ConfigurationAndSWHardeningNeeded",
            "OutOfDate",
            "OutOfDateConfigurationNeeded",
        ],
    )
    def test_other_statuses_are_for_the_policy(self, status: str) -> None:
        advisories = ["INTEL-SA-00002", "INTEL-SA-00001"]
        edit = level(tcbStatus=status, advisoryIDs=advisories)
        claims = tdx(None, PKI.collateral("TDX", edit_tcb=edit)).claims
        assert claims["status"] == status
        assert claims["advisories"] == sorted(advisories)

    def test_an_old_quoting_enclave_is_an_old_platform(self) -> None:
        parts = QuoteParts(edit_qe=setting(slice(258, 260), b"\x06\x00"))
        claims = tdx(PKI.tdx_quote(REPORT_DATA, parts=parts)).claims
        assert claims["status"] == claims["qe_status"] == "OutOfDate"
        assert claims["advisories"] == ["INTEL-SA-00615"]

    def test_advisories_of_the_module_that_runs_now(self) -> None:
        # Launched with an older module than the one that has replaced it since.
        def edit(info: dict[str, Any]) -> None:
            newer, older = (
                {
                    "tcb": {"isvsvn": svn},
                    "tcbDate": "2024-03-13T00:00:00Z",
                    "tcbStatus": status,
                    "advisoryIDs": [advisory],
                }
                for svn, status, advisory in (
                    (3, "UpToDate", "INTEL-SA-00003"),
                    (2, "OutOfDate", "INTEL-SA-00002"),
                )
            )
            info["tdxModuleIdentities"][0]["tcbLevels"] = [newer, older]

        quote = PKI.tdx_quote(
            REPORT_DATA, version=5, body_type=3, edit=setting(slice(0, 1), b"\x02")
        )
        claims = tdx(quote, PKI.collateral("TDX", edit_tcb=edit)).claims
        assert claims["status"] == "TDRelaunchAdvised"
        assert claims["advisories"] == ["INTEL-SA-00002", "INTEL-SA-00003"]


class TestAttributes:
    @pytest.mark.parametrize(
        ("check", "bits"),
        [
            ("debug", 1 << 0 | 1 << 28),
            ("td_attributes.profiling", 1 << 4 | 1 << 28),
            ("td_attributes.profiling", 1 << 6 | 1 << 28),
            ("td_attributes.reserved", 1 << 1 | 1 << 28),
            ("td_attributes.reserved", 1 << 15 | 1 << 28),
            ("td_attributes.reserved", 1 << 61 | 1 << 28),
            ("td_attributes.migratable", 1 << 29 | 1 << 28),
            ("td_attributes.sept_ve_disable", 0),
            ("mr_service_td", 1 << 17 | 1 << 28),
        ],
    )
    def test_what_no_policy_may_accept(self, check: str, bits: int) -> None:
        quoting(check, edit=setting(ATTRIBUTES, bits.to_bytes(8, "little")))

    @pytest.mark.parametrize("body_type", [3, 4])
    def test_a_service_td(self, body_type: int) -> None:
        edit = setting(slice(600, 601), b"\x01")
        quoting("mr_service_td", version=5, body_type=body_type, edit=edit)

    def test_what_a_td_may_have(self) -> None:
        bits = sum(1 << bit for bit in (16, 27, 28, 30, 31, 63))
        edit = setting(ATTRIBUTES, bits.to_bytes(8, "little"))
        claims = tdx(PKI.tdx_quote(REPORT_DATA, edit=edit)).claims
        assert claims["td_attributes"] == bits.to_bytes(8, "little").hex()


class PanicException(BaseException):
    """As the library's binding calls what it raises when its Rust panics."""


class TestLibrary:
    def test_a_reason_without_a_name(self) -> None:
        under("dcap", edit_tcb=level(tcbStatus="Splendid"))

    def test_a_number_that_it_cannot_hold(self) -> None:
        under("dcap", edit_tcb=field(tcbEvaluationDataNumber=1 << 40))

    def test_every_reason_is_a_refusal(self) -> None:
        for message in ("", "a sentence of a release to come", "x" * 10_000):
            with pytest.raises(CheckFailedError) as caught:
                refuse(message)
            assert caught.value.findings[0].field == "dcap"
            assert len(caught.value.findings[0].got) <= 300

    @pytest.mark.parametrize("name", ["QuoteVerifier", "parse_pck_extension_from_pem"])
    def test_a_panic_is_a_refusal(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def panic(*_: object) -> None:
            raise PanicException("attempt to subtract with overflow")

        monkeypatch.setattr(dcap_qvl, name, panic)
        refused("dcap", tdx)

    def test_an_interrupt_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(dcap_qvl, "QuoteVerifier", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tdx()

    def test_claims_that_it_cannot_make(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Verified, and then no claims: what failed is told all the same.
        def fail(*_: object) -> None:
            raise ValueError("CRL number too large for u32")

        monkeypatch.setattr(dcap_qvl.QuotePolicy, "claims_only", fail, raising=False)
        refused("dcap", tdx)
