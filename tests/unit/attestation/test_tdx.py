"""TDX evidence that is good, and bytes that are no TDX evidence."""

from __future__ import annotations

import json
import struct
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.dcap import INTEL_ROOT
from bentoml_secure.attestation.tees.tdx import Tdx
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
    flipped,
    refused,
    tdx,
)

HEADER_BYTES = 48
BODY_BYTES = 584
NO_SERVICE_TD = "00" * 48


@pytest.mark.parametrize(("version", "body_type"), [(4, 2), (5, 2), (5, 3), (5, 4)])
def test_a_td_says_what_was_signed(version: int, body_type: int) -> None:
    claims = tdx(PKI.tdx_quote(REPORT_DATA, version=version, body_type=body_type))
    got = claims.claims
    assert claims.kind == "tdx"
    assert claims.report_data == REPORT_DATA
    assert claims.issued_at is None
    assert got["quote_version"] == version
    assert got["mr_td"] == measurement("TD").hex()
    assert got["mr_config_id"] == measurement("configuration").hex()
    assert got["mr_owner"] == measurement("owner").hex()
    assert got["mr_owner_config"] == measurement("owner's configuration").hex()
    assert got["mr_seam"] == measurement("TDX module").hex()
    assert got["rtmr"] == {str(i): measurement(f"RTMR{i}").hex() for i in range(4)}
    assert got["td_attributes"] == "0000001000000000"
    assert got["xfam"] == "e702060000000000"
    assert got["mr_service_td"] == NO_SERVICE_TD
    assert ("tee_tcb_svn2" in got) is (body_type > 2)
    assert got.get("cur_service_td_hash") == (NO_SERVICE_TD if body_type == 4 else None)
    assert json.dumps(claims.to_json())


def test_the_platform_is_claimed_from_its_certificate_and_collateral() -> None:
    claims = tdx()
    assert claims.platform_id == bytes(range(16)).hex()
    wanted = {
        "status": "UpToDate",
        "advisories": [],
        "tcb_evaluation": 17,
        "tcb_date": "2024-03-13T00:00:00Z",
        "qe_status": "UpToDate",
        "fmspc": "50806f000000",
        "ppid": bytes(range(16)).hex(),
        "pck_ca": "platform",
        "dynamic_platform": True,
        "cached_keys": True,
        "smt": True,
    }
    assert {name: claims.claims[name] for name in wanted} == wanted


def test_a_processor_has_neither_instance_nor_flags() -> None:
    pki = DcapPki(now=NOW, platform=Platform(instance=None))
    claims = tdx(pki.tdx_quote(REPORT_DATA), pki.collateral("TDX"))
    flags = [claims.claims[name] for name in ("dynamic_platform", "cached_keys", "smt")]
    assert claims.claims["pck_ca"] == "processor"
    assert flags == [None, None, None]


def test_flags_that_are_off() -> None:
    pki = DcapPki(now=NOW, platform=Platform(flags=(False, False, False)))
    claims = tdx(pki.tdx_quote(REPORT_DATA), pki.collateral("TDX"))
    flags = [claims.claims[name] for name in ("dynamic_platform", "cached_keys", "smt")]
    assert flags == [False, False, False]


def test_without_a_ppid_the_platform_instance_is_the_machine() -> None:
    pki = DcapPki(now=NOW, platform=Platform(ppid=bytes(16)))
    claims = tdx(pki.tdx_quote(REPORT_DATA), pki.collateral("TDX"))
    assert claims.platform_id == bytes(range(16, 32)).hex()


def test_a_machine_without_any_id() -> None:
    pki = DcapPki(now=NOW, platform=Platform(ppid=bytes(16), instance=None))
    refused("ppid", lambda: tdx(pki.tdx_quote(REPORT_DATA), pki.collateral("TDX")))


class TestRoot:
    def test_any_but_intels_makes_the_claims_simulated(self) -> None:
        claims = tdx()
        assert claims.simulated
        assert claims.vendor == "none (simulated)"
        assert claims.root == PKI.root_digest

    def test_the_table_of_kinds_knows_intels_alone(self) -> None:
        evidence = Evidence(kind="tdx", blob=PKI.tdx_quote(REPORT_DATA))
        for tee in (load_tee("tdx"), Tdx(), Tdx(root=INTEL_ROOT)):
            given = (PKI.collateral("TDX"),)
            refused("chain.root", partial(tee.verify, evidence, given, now=NOW))

    def test_a_foreign_root(self) -> None:
        quote, collateral = FOREIGN.tdx_quote(REPORT_DATA), FOREIGN.collateral("TDX")
        refused("chain.root", lambda: tdx(quote, collateral))

    def test_a_copy_of_the_root_beside_a_foreign_chain(self) -> None:
        both = FOREIGN.collateral_fields("TDX")["pck_crl_issuer_chain"] + PKI.root.pem
        collateral = FOREIGN.collateral("TDX", pck_crl_issuer_chain=both)
        refused("crl", lambda: tdx(FOREIGN.tdx_quote(REPORT_DATA), collateral))

    def test_a_copy_in_the_quote_will_do(self) -> None:
        fields = PKI.collateral_fields("TDX")
        without: dict[str, Any] = {
            name: fields[name].replace(PKI.root.pem, "")
            for name in fields
            if name.endswith("_chain")
        }
        assert tdx(None, PKI.collateral("TDX", **without)) == tdx()

    def test_the_copy_in_the_quote_is_not_needed(self) -> None:
        chain = PKI.pck.pem + PKI.platform_ca.pem
        quote = PKI.tdx_quote(
            REPORT_DATA, parts=QuoteParts(certification=chain.encode())
        )
        assert tdx(quote) == tdx()


def test_claims_hold_until_the_first_date_ends() -> None:
    sooner = "2026-03-05T12:00:00Z"

    def end(document: dict[str, object]) -> None:
        document["nextUpdate"] = sooner

    lists = PKI.revocation_list(PKI.platform_ca, next_update=NOW + timedelta(days=3))
    pki = DcapPki(now=NOW, pck_until=NOW + timedelta(days=2))
    for days, quote, collateral in (
        (30, PKI.tdx_quote(REPORT_DATA), PKI.collateral("TDX")),
        (4, PKI.tdx_quote(REPORT_DATA), PKI.collateral("TDX", edit_tcb=end)),
        (4, PKI.tdx_quote(REPORT_DATA), PKI.collateral("TDX", edit_qe=end)),
        (3, PKI.tdx_quote(REPORT_DATA), PKI.collateral("TDX", pck_crl=lists.hex())),
        (2, pki.tdx_quote(REPORT_DATA), pki.collateral("TDX")),
    ):
        assert tdx(quote, collateral).expires_at == NOW + timedelta(days=days)


class TestForm:
    def test_another_kind(self) -> None:
        evidence = Evidence(kind="sgx", blob=PKI.tdx_quote(REPORT_DATA))
        with pytest.raises(AttestationError, match="got sgx, want tdx"):
            Tdx().verify(evidence, (), now=NOW)

    def test_zero_bytes_after_the_quote(self) -> None:
        assert tdx(PKI.tdx_quote(REPORT_DATA) + bytes(4096)) == tdx()

    @pytest.mark.parametrize("tail", [b"\n", b"\0\0\x01", b"\0" * 100 + b"0"])
    def test_other_bytes_after_the_quote(self, tail: bytes) -> None:
        with pytest.raises(MalformedInputError, match="bytes beyond its end"):
            tdx(PKI.tdx_quote(REPORT_DATA) + tail)

    def test_every_length_that_is_cut(self) -> None:
        quote = PKI.tdx_quote(REPORT_DATA, version=5, body_type=4)
        for length in (*range(1, 1400, 5), *range(1400, len(quote), 97)):
            with pytest.raises(MalformedInputError, match="are left"):
                tdx(quote[:length])

    @pytest.mark.parametrize(
        ("at", "value", "match"),
        [
            (0, 3, "version: got 0x3, want 0x4 or 0x5"),
            (0, 6, "version: got 0x6"),
            (2, 3, "attestation key type: got 0x3, want 0x2"),
            (4, 0, "TEE type: got 0x0, want 0x81"),
            (48, 1, "body type: got 1, want one of 2, 3, 4"),
            (48, 5, "body type: got 5"),
            (50, 0x49, "body of type 3: got 585 bytes, want 648"),
            (54 + 648 + 4 + 128, 5, "certification data: got type 5, want 6"),
        ],
    )
    def test_what_is_not_supported(self, at: int, value: int, match: str) -> None:
        quote = bytearray(PKI.tdx_quote(REPORT_DATA, version=5, body_type=3))
        quote[at] = value
        with pytest.raises(MalformedInputError, match=match):
            tdx(bytes(quote))

    def test_a_quoting_enclave_of_another_vendor(self) -> None:
        refused("qe_vendor", lambda: tdx(flipped(PKI.tdx_quote(REPORT_DATA), 12)))

    def test_bytes_that_no_length_covers(self) -> None:
        quote = PKI.tdx_quote(REPORT_DATA)
        at = HEADER_BYTES + BODY_BYTES
        length = struct.unpack_from("<I", quote, at)[0]
        longer = quote[:at] + struct.pack("<I", length + 3) + quote[at + 4 :]
        assert tdx(longer + bytes(3)) == tdx()
        with pytest.raises(MalformedInputError, match="3 bytes beyond its end"):
            tdx(longer + b"abc")

    def test_a_length_of_four_gigabytes(self) -> None:
        quote = PKI.tdx_quote(REPORT_DATA)
        at = HEADER_BYTES + BODY_BYTES
        with pytest.raises(MalformedInputError, match="has 4294967295 bytes"):
            tdx(quote[:at] + b"\xff" * 4 + quote[at + 4 :])

    def test_a_quote_that_only_names_its_certificate(self) -> None:
        parts = QuoteParts().without_chain()
        quote = PKI.tdx_quote(REPORT_DATA, parts=parts)
        with pytest.raises(MissingEndorsementError, match="of type 3"):
            tdx(quote)
        given = PKI.collateral("TDX", pck_certificate_chain=PKI.pck_chain)
        assert tdx(quote, given) == tdx()

    def test_a_certificate_in_the_quote_goes_before_that_in_the_collateral(
        self,
    ) -> None:
        given = PKI.collateral("TDX", pck_certificate_chain=FOREIGN.pck_chain)
        assert tdx(None, given) == tdx()


def test_what_a_quote_says_without_verifying_it() -> None:
    forged = flipped(PKI.tdx_quote(REPORT_DATA), HEADER_BYTES + 136)
    described = Tdx().describe(Evidence(kind="tdx", blob=forged))
    assert described["mr_td"] != measurement("TD").hex()
    assert described["report_data"] == REPORT_DATA.hex()
    with pytest.raises(MalformedInputError, match="TDX quote: header"):
        Tdx().describe(Evidence(kind="tdx", blob=b"x"))
