"""Quotes: one that Azure's vTPM made, and what keys in memory sign."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from bentoml_secure.attestation.tees.tpm_quote import Quote, parse_quote, verify_quote
from bentoml_secure.attestation.tees.tpm_structures import (
    ALG_RSAPSS,
    ALG_RSASSA,
    ALG_SHA256,
)
from bentoml_secure.errors import (
    CheckFailedError,
    MalformedInputError,
    SecureError,
)
from bentoml_secure.testing.tpm_pki import (
    CHALLENGE,
    PCRS,
    PrivateKey,
    QuoteParts,
    make_key,
    sign_quote,
)
from tests.evidence_vectors import vector

KEY = make_key()
RSA = rsa.generate_private_key(65537, 2048)
HONEST = QuoteParts()
FIRST_24 = (1 << 24) - 1


def verify(
    parts: QuoteParts = HONEST,
    *,
    key: PrivateKey = KEY,
    pcrs: Mapping[int, bytes] = PCRS,
    scheme: int = 0,
) -> Quote:
    message = parts.marshal()
    signature = sign_quote(key, message, scheme=scheme)
    return verify_quote(message, signature, key.public_key(), pcrs)


def refused(check: str, *arguments: Any, **changes: Any) -> None:
    with pytest.raises(CheckFailedError) as caught:
        verify(*arguments, **changes)
    assert [finding.field for finding in caught.value.findings] == [check]


def test_a_quote_says_what_was_signed() -> None:
    quote = verify(replace(HONEST, clock=2**63, safe=0))
    assert quote == Quote(
        extra_data=CHALLENGE,
        pcr_selection=(0, 7),
        pcr_digest=hashlib.sha256(PCRS[0] + PCRS[7]).digest(),
        clock=2**63,
        reset_count=3,
        restart_count=0,
        safe=False,
        firmware_version=0x20260301,
    )


@pytest.mark.parametrize(
    ("key", "scheme"),
    [
        (KEY, 0),
        (ec.generate_private_key(ec.SECP384R1()), 0),
        (RSA, ALG_RSASSA),
        (RSA, ALG_RSAPSS),
    ],
    ids=["p-256", "p-384", "rsassa", "rsapss"],
)
def test_each_scheme(key: PrivateKey, scheme: int) -> None:
    assert verify(key=key, scheme=scheme).extra_data == CHALLENGE
    message = HONEST.marshal()
    signature = bytearray(sign_quote(key, message, scheme=scheme))
    signature[-1] ^= 1
    with pytest.raises(CheckFailedError, match=r"quote\.signature"):
        verify_quote(message, bytes(signature), key.public_key(), PCRS)


def test_banks_that_select_nothing_are_passed_over() -> None:
    verify(replace(HONEST, banks=[(4, 0), *HONEST.banks, (12, 0)]))


class TestChecks:
    def test_size(self) -> None:
        refused("quote.size", replace(HONEST, extra_data=bytes(1000)))

    def test_hash(self) -> None:
        message = HONEST.marshal()
        signature = bytearray(sign_quote(KEY, message))
        signature[2:4] = b"\x00\x0c"
        with pytest.raises(CheckFailedError, match=r"quote\.hash: got 0x000c"):
            verify_quote(message, bytes(signature), KEY.public_key(), PCRS)

    @pytest.mark.parametrize(
        "key",
        [
            rsa.generate_private_key(65537, 1024),  # noqa: S505
            ec.generate_private_key(ec.SECP521R1()),
        ],
        ids=["rsa-1024", "p-521"],
    )
    def test_key(self, key: PrivateKey) -> None:
        refused("quote.key", key=key)

    def test_signature_of_another_key(self) -> None:
        message = HONEST.marshal()
        with pytest.raises(CheckFailedError, match=r"quote\.signature"):
            verify_quote(
                message, sign_quote(make_key(), message), KEY.public_key(), PCRS
            )

    @pytest.mark.parametrize(("signer", "key"), [(KEY, RSA), (RSA, KEY)])
    def test_signature_of_another_type(
        self, signer: PrivateKey, key: PrivateKey
    ) -> None:
        message = HONEST.marshal()
        with pytest.raises(CheckFailedError, match=r"quote\.signature.*does not fit"):
            verify_quote(message, sign_quote(signer, message), key.public_key(), PCRS)

    def test_magic(self) -> None:
        refused("quote.magic", replace(HONEST, magic=0x00544347))

    def test_type(self) -> None:
        refused("quote.type", replace(HONEST, kind=0x8014))

    @pytest.mark.parametrize(
        "banks",
        [
            [(4, 0x81)],
            [(12, 0x81)],
            [(ALG_SHA256, 0x81), (4, 1)],
            [(ALG_SHA256, 0x81), (ALG_SHA256, 0x81)],
        ],
        ids=["sha1", "sha384", "sha1 too", "twice"],
    )
    def test_bank(self, banks: list[tuple[int, int]]) -> None:
        refused("quote.bank", replace(HONEST, banks=banks))

    @pytest.mark.parametrize("banks", [[], [(ALG_SHA256, 0)], [(4, 0)]])
    def test_no_bank(self, banks: list[tuple[int, int]]) -> None:
        refused("quote.bank", replace(HONEST, banks=banks), pcrs={})

    def test_a_register_beside_those_that_are_quoted(self) -> None:
        refused("quote.pcrs", pcrs={**PCRS, 16: bytes(32)})

    def test_a_quoted_register_that_is_not_given(self) -> None:
        refused("quote.pcrs", pcrs={0: PCRS[0]})

    def test_a_lying_register(self) -> None:
        refused("quote.pcr_digest", pcrs={**PCRS, 7: bytes(32)})

    def test_registers_swapped(self) -> None:
        refused("quote.pcr_digest", pcrs={0: PCRS[7], 7: PCRS[0]})

    def test_a_digest_cut_short(self) -> None:
        refused("quote.pcr_digest", replace(HONEST, pcr_digest=b""))


class TestForm:
    def test_every_length_but_the_whole_is_refused(self) -> None:
        message = HONEST.marshal()
        for length in range(len(message)):
            with pytest.raises(MalformedInputError, match="TPM quote"):
                parse_quote(message[:length])
        with pytest.raises(MalformedInputError, match="1 bytes after its end"):
            parse_quote(message + b"\0")

    @pytest.mark.parametrize(
        ("parts", "match"),
        [
            (replace(HONEST, safe=2), "safe: got 2, want 0 or 1"),
            (replace(HONEST, select_bytes=4), "selection of 4 bytes, want 3"),
            (replace(HONEST, select_bytes=1), "selection of 1 bytes, want 3"),
            (replace(HONEST, banks=[(4, 0)] * 17), "17 selections, want at most 16"),
        ],
    )
    def test_quotes_properly_signed(self, parts: QuoteParts, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(parts)

    @pytest.mark.parametrize("length", [0, 20, 31, 33, 48])
    def test_registers_of_another_length(self, length: int) -> None:
        with pytest.raises(MalformedInputError, match=f"PCR 7: got {length} bytes"):
            verify(pcrs={**PCRS, 7: bytes(length)})

    @pytest.mark.parametrize(
        ("signature", "match"),
        [
            (b"", "0 bytes are left"),
            (b"\x00\x18", "0 bytes are left at byte 2"),
            (b"\x00\x1a\x00\x0b", "got scheme 0x001a"),
            (b"\x00\x18\x00\x0b\xff\xff", "want 65535"),
            (b"\x00\x14\x00\x0b\x00\x01\x00\x00", "1 bytes after its end"),
            (bytes(1025), "got 1025 bytes, want at most 1024"),
        ],
    )
    def test_signatures(self, signature: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify_quote(HONEST.marshal(), signature, KEY.public_key(), PCRS)


class Azure:
    """What a VM on Azure sent: a quote of its vTPM, and the key its report names."""

    def __init__(self) -> None:
        document = json.loads(vector("tpm_azure/evidence-v1.json"))
        quote = document["tpm_quote"]
        self.message = bytes.fromhex(quote["message"])
        self.signature = bytes.fromhex(quote["signature"])
        self.pcrs = {i: bytes.fromhex(pcr) for i, pcr in enumerate(quote["pcrs"])}
        report = base64.urlsafe_b64decode(document["hcl_report"] + "===")
        at = 32 + 1184 + 20
        length = int.from_bytes(report[at - 4 : at], "little")
        runtime = json.loads(report[at : at + length])
        key = next(key for key in runtime["keys"] if key["kid"] == "HCLAkPub")
        e, n = (
            int.from_bytes(base64.urlsafe_b64decode(key[name] + "==="), "big")
            for name in ("e", "n")
        )
        self.key: RSAPublicKey = rsa.RSAPublicNumbers(e, n).public_key()

    def verify(self, **changes: Any) -> Quote:
        arguments: dict[str, Any] = {**vars(self), **changes}
        return verify_quote(**arguments, raw_signature=True)


@pytest.fixture(scope="module")
def azure() -> Azure:
    return Azure()


class TestAzure:
    def test_the_quote_is_accepted(self, azure: Azure) -> None:
        quote = azure.verify()
        assert quote.extra_data == b"challenge"
        assert quote.pcr_selection == tuple(range(24))
        assert (quote.reset_count, quote.restart_count, quote.safe) == (2, 0, True)

    def test_every_flipped_byte_is_refused(self, azure: Azure) -> None:
        for field in ("message", "signature"):
            genuine = getattr(azure, field)
            for at in range(len(genuine)):
                flipped = bytearray(genuine)
                flipped[at] ^= 1
                with pytest.raises(CheckFailedError, match=r"quote\.signature"):
                    azure.verify(**{field: bytes(flipped)})

    def test_a_lying_register(self, azure: Azure) -> None:
        for index in azure.pcrs:
            lying = {**azure.pcrs, index: hashlib.sha256(b"lie").digest()}
            with pytest.raises(CheckFailedError, match=r"quote\.pcr_digest"):
                azure.verify(pcrs=lying)

    def test_a_missing_register(self, azure: Azure) -> None:
        with pytest.raises(CheckFailedError, match=r"quote\.pcrs"):
            azure.verify(pcrs={i: azure.pcrs[i] for i in azure.pcrs if i != 5})

    def test_the_value_is_no_structure(self, azure: Azure) -> None:
        with pytest.raises(SecureError, match="TPM signature: got scheme"):
            verify_quote(azure.message, azure.signature, azure.key, azure.pcrs)

    def test_a_raw_signature_is_one_of_rsa(self, azure: Azure) -> None:
        with pytest.raises(CheckFailedError, match=r"quote\.signature.*does not fit"):
            azure.verify(key=KEY.public_key())
