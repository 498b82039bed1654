"""Collateral as tools write it, and which of several counts."""

from __future__ import annotations

import base64
import functools
import json
import textwrap
from collections.abc import Callable
from typing import Any
from urllib.parse import quote as percent_encoded

import pytest

from bentoml_secure.attestation.evidence import MAX_ENDORSEMENT_BYTES
from bentoml_secure.errors import (
    CheckFailedError,
    MalformedInputError,
    MissingEndorsementError,
)
from bentoml_secure.testing.dcap_pki import DcapPki, Issued, QuoteParts
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
    tdx,
)

FIELDS = PKI.collateral_fields("TDX")
BINARY = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")
KEYS = {"tcb_info": "tcbInfo", "qe_identity": "enclaveIdentity"}
CHAINS = tuple(name for name in FIELDS if name.endswith("_chain"))
OUT_OF_DATE = level(tcbStatus="OutOfDate")


def pem(data: bytes, label: str = "X509 CRL") -> str:
    lines = "\n".join(textwrap.wrap(base64.b64encode(data).decode(), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


def written(names: tuple[str, ...], write: Callable[[Any], object]) -> bytes:
    return json.dumps(
        {n: write(v) if n in names else v for n, v in FIELDS.items()}
    ).encode()


class TestForm:
    @pytest.mark.parametrize(
        "write",
        [
            str.upper,
            lambda text: f"0x{text}",
            lambda text: "\n".join(textwrap.wrap(text, 64)) + "\n",
            lambda text: base64.b64encode(bytes.fromhex(text)).decode(),
            lambda text: list(bytes.fromhex(text)),
            lambda text: pem(bytes.fromhex(text)),
            lambda text: f"{text}\0",
        ],
        ids=["upper", "0x", "lines", "base64", "list", "pem", "c-string"],
    )
    def test_bytes(self, write: Callable[[str], object]) -> None:
        assert tdx(None, written(BINARY, write)) == tdx()

    @pytest.mark.parametrize(
        "write",
        [
            percent_encoded,
            lambda text: f"{text}\0",
            lambda text: text.replace("\n", "\r\n"),
            lambda text: f"\n{text}\n\n",
        ],
        ids=["percent", "c-string", "crlf", "lines"],
    )
    def test_chains(self, write: Callable[[str], object]) -> None:
        assert tdx(None, written(CHAINS, write)) == tdx()

    def test_whatever_order_and_space(self) -> None:
        document = dict(reversed(FIELDS.items()))
        assert tdx(None, json.dumps(document, indent=4).encode() + b"\n") == tdx()
        assert tdx(None, b" \r\n\t" + json.dumps(document).encode()) == tdx()

    def test_fields_of_other_tools(self) -> None:
        more = {"version": 3, "tee_type": 129, "pck_certificate_chain": None}
        assert tdx(None, json.dumps({**FIELDS, **more}).encode()) == tdx()

    @pytest.mark.parametrize("space", ["", " \n"])
    def test_the_whole_answers_of_the_service(self, space: str) -> None:
        answers = {
            name: f'{{{space}"{key}"{space}:{space}{FIELDS[name]}{space},'
            f'"signature":"{FIELDS[f"{name}_signature"]}"}}'
            for name, key in (
                ("tcb_info", "tcbInfo"),
                ("qe_identity", "enclaveIdentity"),
            )
        }
        document = {n: v for n, v in FIELDS.items() if not n.endswith("_signature")}
        assert tdx(None, json.dumps({**document, **answers}).encode()) == tdx()

    def test_an_answer_whose_signed_part_was_changed(self) -> None:
        changed = FIELDS["tcb_info"].replace("UpToDate", "OutOfDate")
        answer = json.dumps(
            {
                "tcbInfo": json.loads(changed),
                "signature": FIELDS["tcb_info_signature"],
            }
        )
        given = PKI.collateral("TDX", tcb_info=answer)
        refused("tcb_info.signature", lambda: tdx(None, given))

    def test_an_answer_that_hides_its_signed_part(self) -> None:
        answer = '{"a": "\\"tcbInfo\\"", "tcbInfo": [], "signature": "00"}'
        with pytest.raises(MalformedInputError, match="tcb_info"):
            tdx(None, PKI.collateral("TDX", tcb_info=answer))


class TestChains:
    @pytest.mark.parametrize("name", CHAINS)
    def test_a_chain_that_ends_elsewhere(self, name: str) -> None:
        edited: dict[str, Any] = {name: FIELDS[name] + FOREIGN.root.pem}
        given = PKI.collateral("TDX", **edited)
        refused("chain.links", lambda: tdx(None, given))

    @pytest.mark.parametrize("first", [b"\0\0\0", PKI.root.der[:-1]])
    def test_a_chain_with_what_is_no_certificate(self, first: bytes) -> None:
        chain = pem(first, "CERTIFICATE") + PKI.root.pem
        given = PKI.collateral("TDX", pck_crl_issuer_chain=chain)
        refused("chain.links", lambda: tdx(None, given))

    def test_a_copy_of_the_root_that_is_no_certificate(self) -> None:
        version = PKI.root.der.index(b"\xa0\x03\x02\x01\x02") + 4
        for at in (version, *range(0, len(PKI.root.der), 13)):
            changed = pem(flipped(PKI.root.der, at, 0x40), "CERTIFICATE")
            chain = FIELDS["pck_crl_issuer_chain"].replace(PKI.root.pem, changed)
            given = PKI.collateral("TDX", pck_crl_issuer_chain=chain)
            refused("chain.links", functools.partial(tdx, None, given))

    @pytest.mark.parametrize("name", CHAINS)
    def test_a_copy_of_the_root_with_a_bit_flipped(self, name: str) -> None:
        changed = pem(flipped(PKI.root.der, 200), "CERTIFICATE")
        chain = FIELDS[name].replace(PKI.root.pem, changed)
        edited: dict[str, Any] = {name: chain}
        given = PKI.collateral("TDX", **edited)
        refused("chain.links", lambda: tdx(None, given))

    @pytest.mark.parametrize("rest", ["zz", pem(b"\0"), "-----BEGIN CERTIFICATE-----"])
    def test_a_chain_with_more_than_certificates(self, rest: str) -> None:
        for chain in (PKI.pck_chain + rest, rest + PKI.pck_chain):
            parts = QuoteParts(certification=chain.encode())
            quote = PKI.tdx_quote(REPORT_DATA, parts=parts)
            with pytest.raises(CheckFailedError, match="chain"):
                tdx(quote)

    def test_a_copy_of_the_root_in_the_quote_with_a_bit_flipped(self) -> None:
        changed = pem(flipped(PKI.root.der, 200), "CERTIFICATE")
        chain = PKI.pck_chain.replace(PKI.root.pem, changed).encode()
        quote = PKI.tdx_quote(REPORT_DATA, parts=QuoteParts(certification=chain))
        refused("chain.links", lambda: tdx(quote))

    @pytest.mark.parametrize("issuers", [[], [PKI.root], [PKI.tcb_signer, PKI.root]])
    def test_a_list_that_its_chain_did_not_issue(self, issuers: list[Issued]) -> None:
        chain = "".join(issued.pem for issued in issuers)
        given = PKI.collateral("TDX", pck_crl_issuer_chain=chain)
        refused("crl.issuer_chain", lambda: tdx(None, given))


class TestMalformed:
    @pytest.mark.parametrize("name", sorted(FIELDS))
    @pytest.mark.parametrize("value", [7, {}, ["a"], [256], True])
    def test_a_field_of_another_type(self, name: str, value: Any) -> None:
        with pytest.raises(MalformedInputError, match=f"DCAP collateral {name}: got"):
            tdx(None, PKI.collateral("TDX", **{name: value}))

    @pytest.mark.parametrize("name", sorted(FIELDS))
    def test_a_field_that_is_missing(self, name: str) -> None:
        without: dict[str, Any] = {name: None}
        with pytest.raises(MalformedInputError, match=f"DCAP collateral.*{name}"):
            tdx(None, PKI.collateral("TDX", **without))

    @pytest.mark.parametrize("name", BINARY)
    @pytest.mark.parametrize("value", ["", "0", "zz", "MII=A", [], "\0"])
    def test_bytes_that_are_none(self, name: str, value: Any) -> None:
        with pytest.raises(MalformedInputError, match="want bytes as hex, base64 or"):
            tdx(None, PKI.collateral("TDX", **{name: value}))

    def test_a_signature_of_another_length(self) -> None:
        given = PKI.collateral("TDX", tcb_info_signature="00" * 63)
        refused("tcb_info.signature", lambda: tdx(None, given))

    @pytest.mark.parametrize("name", CHAINS)
    def test_a_chain_that_is_not_text(self, name: str) -> None:
        surrogate: dict[str, Any] = {name: "\ud800"}
        with pytest.raises(MalformedInputError, match="want PEM, which is ASCII"):
            tdx(None, PKI.collateral("TDX", **surrogate))

    def test_json_that_is_cut_or_too_long(self) -> None:
        given = PKI.collateral("TDX")
        with pytest.raises(MalformedInputError, match="is not valid JSON"):
            tdx(None, given[:-1])
        with pytest.raises(MalformedInputError, match="want at most"):
            tdx(None, given + bytes(MAX_ENDORSEMENT_BYTES))

    @pytest.mark.parametrize("text", ["", "[]", "{", '"TDX"', '{"id": "TDX"}'])
    def test_tcb_info_that_is_none(self, text: str) -> None:
        with pytest.raises(MalformedInputError, match="tcb_info"):
            tdx(None, PKI.collateral("TDX", tcb_info=text))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("id", 1),
            ("fmspc", None),
            ("tcbEvaluationDataNumber", True),
            ("tcbEvaluationDataNumber", 17.0),
            ("issueDate", 5),
        ],
    )
    def test_tcb_info_of_other_types(self, name: str, value: Any) -> None:
        given = PKI.collateral("TDX", edit_tcb=field(**{name: value}))
        with pytest.raises(MalformedInputError, match=f"tcb_info {name}: got"):
            tdx(None, given)

    def test_a_pem_chain_that_is_broken(self) -> None:
        broken = FIELDS["tcb_info_issuer_chain"].replace("MII", "M!I")
        given = PKI.collateral("TDX", tcb_info_issuer_chain=broken)
        refused("chain", lambda: tdx(None, given))


class TestChoice:
    def test_none_was_given(self) -> None:
        others = (b"", b"-----BEGIN CERTIFICATE-----", b"\x30\x82", b'{"kty": "EC"}')
        for given in (others, (b"not collateral",)):
            with pytest.raises(MissingEndorsementError, match="no DCAP collateral"):
                tdx(None, *given)

    def test_others_are_passed_over(self) -> None:
        others = (b"\x30\x82", b'{"kty": "EC"}', PKI.pck_chain.encode())
        assert tdx(None, *others, PKI.collateral("TDX"), b"") == tdx()

    def test_that_of_the_tee_and_the_model(self) -> None:
        model = DcapPki(now=NOW, platform=Platform(fmspc=bytes(6)))
        newer = field(tcbEvaluationDataNumber=99)
        given = (
            PKI.collateral("SGX", edit_tcb=newer),
            model.collateral("TDX", edit_tcb=newer),
            PKI.collateral("TDX"),
        )
        for order in (given, given[::-1]):
            assert tdx(None, *order) == tdx()

    def test_the_one_that_is_not_rolled_back(self) -> None:
        def old(info: dict[str, Any]) -> None:
            info["tcbEvaluationDataNumber"] = 16

        def now(info: dict[str, Any]) -> None:
            OUT_OF_DATE(info)

        given = [PKI.collateral("TDX", edit_tcb=edit) for edit in (old, now)]
        for order in (given, given[::-1]):
            assert tdx(None, *order).claims["status"] == "OutOfDate"

    def test_the_later_of_two(self) -> None:
        def later(info: dict[str, Any]) -> None:
            info["issueDate"] = "2026-03-01T11:59:00Z"
            OUT_OF_DATE(info)

        given = [PKI.collateral("TDX"), PKI.collateral("TDX", edit_tcb=later)]
        for order in (given, given[::-1]):
            assert tdx(None, *order).claims["status"] == "OutOfDate"

    def test_a_newer_one_that_does_not_hold_is_not_passed_over(self) -> None:
        forged = FOREIGN.collateral("TDX", edit_tcb=field(tcbEvaluationDataNumber=99))
        refused("crl", lambda: tdx(None, forged, PKI.collateral("TDX")))

    def test_for_a_quote_without_its_certificate(self) -> None:
        parts = QuoteParts().without_chain()
        model = DcapPki(now=NOW, platform=Platform(fmspc=bytes(6)))
        given = (
            PKI.collateral("TDX"),
            model.collateral("TDX", pck_certificate_chain=PKI.pck_chain),
            PKI.collateral("TDX", pck_certificate_chain=PKI.pck_chain),
        )
        assert tdx(PKI.tdx_quote(REPORT_DATA, parts=parts), *given) == tdx()
