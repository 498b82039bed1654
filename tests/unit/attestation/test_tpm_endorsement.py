"""Chains of endorsement keys, each broken in one place."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from bentoml_secure.attestation.tees.tpm_endorsement import (
    EndorsementKey,
    read_certificates,
    verify_endorsement_key,
)
from bentoml_secure.digest import digest_bytes
from bentoml_secure.errors import (
    CheckFailedError,
    MalformedInputError,
    MissingEndorsementError,
)
from bentoml_secure.testing.tpm_pki import (
    NOW,
    CertificateForm,
    TpmPki,
    issue,
    make_key,
)

PKI = TpmPki()
CODE_SIGNING = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.3")
UNKNOWN = x509.ObjectIdentifier("1.2.3.4")


def verify(
    certificate: bytes = PKI.ek_certificate,
    endorsements: Sequence[bytes] = PKI.chain,
    now: datetime = NOW,
) -> EndorsementKey:
    return verify_endorsement_key(certificate, endorsements, now=now)


def refused(check: str, *arguments: Any, **changes: Any) -> None:
    with pytest.raises(CheckFailedError) as caught:
        verify(*arguments, **changes)
    assert [finding.field for finding in caught.value.findings] == [check]


def pem(*certificates: bytes) -> bytes:
    return b"".join(
        b"-----BEGIN CERTIFICATE-----\n"
        + base64.encodebytes(der)
        + b"-----END CERTIFICATE-----\n"
        for der in certificates
    )


def test_a_chain_says_who_made_the_tpm() -> None:
    ek = verify()
    assert ek.digest == PKI.ek
    assert ek.root == digest_bytes(PKI.root)
    assert (ek.vendor, ek.manufacturer, ek.model) == (
        "Maker",
        "id:00000000",
        "in memory",
    )
    assert ek.simulated
    assert ek.expires_at == NOW + timedelta(days=365)


def test_a_root_without_an_organisation_is_named_by_its_digest() -> None:
    pki = TpmPki()
    pki.root_form = CertificateForm.issuer("root", organisation=None)
    pki.root = issue(pki.root_form, pki.root_key, pki.root_form, pki.root_key)
    pki.issuer = pki.issue_issuer()
    ek = verify(pki.ek_certificate, pki.chain)
    assert ek.vendor == f"tpm:{pki.root_digest[7:19]}"


@pytest.mark.parametrize(
    "endorsements",
    [
        PKI.chain[::-1],
        (pem(*PKI.chain),),
        (pem(PKI.root), PKI.issuer),
        (b"{}", b"", b"\x30\x82\xff\xff", *PKI.chain, b"\x00"),
        (b"-----BEGIN CERTIFICATE-----\nnothing", *PKI.chain),
        (*TpmPki().chain, *PKI.chain),
        (PKI.ek_certificate, *PKI.chain),
    ],
    ids=["reversed", "pem", "both", "others", "no pem", "another maker", "itself"],
)
def test_endorsements_in_any_order_and_form(endorsements: Sequence[bytes]) -> None:
    assert verify(endorsements=endorsements) == verify()


def test_the_shortest_validity_ends_the_chain() -> None:
    sooner = NOW + timedelta(days=2)
    ek = verify(endorsements=(PKI.issue_issuer(not_after=sooner), PKI.root))
    assert ek.expires_at == sooner


def test_a_chain_of_three_issuers() -> None:
    between, key = CertificateForm.issuer("between"), make_key()
    upper = issue(between, key, PKI.root_form, PKI.root_key)
    lower = issue(PKI.issuer_form, PKI.issuer_key, between, key)
    assert verify(endorsements=(lower, upper, PKI.root)).root == PKI.root_digest


class TestMissing:
    @pytest.mark.parametrize(
        ("endorsements", "match"),
        [
            ((), "issuer.*not among the endorsements"),
            ((PKI.root,), "issuer.*not among the endorsements"),
            ((PKI.issuer,), "root.*not among the endorsements"),
            (TpmPki().chain[1:], "issuer.*not among"),
        ],
    )
    def test_a_certificate(self, endorsements: Sequence[bytes], match: str) -> None:
        with pytest.raises(MissingEndorsementError, match=match):
            verify(endorsements=endorsements)

    def test_only_so_many_are_looked_at(self) -> None:
        many = [PKI.ek_certificate] * 64
        with pytest.raises(MissingEndorsementError, match="not among"):
            verify(endorsements=(*many, *PKI.chain))
        assert verify(endorsements=(*many[2:], *PKI.chain)) == verify()
        assert len(read_certificates([*many, *many])) == 64


class TestChecks:
    def test_signature_of_another_issuer_of_that_name(self) -> None:
        refused("chain.signature", endorsements=TpmPki().chain)

    def test_signature_of_another_root_of_that_name(self) -> None:
        refused("chain.signature", endorsements=(PKI.issuer, TpmPki().root))

    def test_signature_of_a_root_that_another_key_signed(self) -> None:
        root = issue(PKI.root_form, PKI.root_key, PKI.root_form, make_key())
        refused("chain.signature", endorsements=(PKI.issuer, root))

    def test_length_of_a_key_that_signed_itself(self) -> None:
        form = CertificateForm()
        alone = issue(form, PKI.ek_key, form, PKI.ek_key)
        refused("chain.length", alone, PKI.chain)

    def test_length_of_too_many(self) -> None:
        forms = [CertificateForm.issuer(f"issuer {n}") for n in range(6)]
        keys = [make_key() for _ in forms]
        pool = [issue(forms[0], keys[0], forms[0], keys[0])]
        for at in range(1, 6):
            below, key = forms[at - 1], keys[at - 1]
            pool.append(issue(forms[at], keys[at], below, key))
        good = issue(CertificateForm(), PKI.ek_key, forms[4], keys[4])
        assert verify(good, pool).digest == PKI.ek
        long = issue(CertificateForm(), PKI.ek_key, forms[5], keys[5])
        refused("chain.length", long, pool)

    def test_length_of_a_circle(self) -> None:
        one, other = CertificateForm.issuer("one"), CertificateForm.issuer("other")
        pool = [
            issue(one, PKI.issuer_key, other, PKI.root_key),
            issue(other, PKI.root_key, one, PKI.issuer_key),
        ]
        ek = issue(CertificateForm(), PKI.ek_key, one, PKI.issuer_key)
        refused("chain.length", ek, pool)

    @pytest.mark.parametrize("days", [-2, 366])
    def test_validity(self, days: int) -> None:
        refused("chain.validity", now=NOW + timedelta(days=days))

    def test_validity_of_the_issuer_alone(self) -> None:
        ended = PKI.issue_issuer(not_after=NOW - timedelta(seconds=1))
        refused("chain.validity", endorsements=(ended, PKI.root))

    @pytest.mark.parametrize("seconds", [-86_400, 365 * 86_400])
    def test_the_first_and_last_second_are_good(self, seconds: int) -> None:
        verify(now=NOW + timedelta(seconds=seconds))

    def test_critical(self) -> None:
        refused("chain.critical", PKI.issue_ek(critical=UNKNOWN))
        strange = PKI.issue_issuer(critical=UNKNOWN)
        refused("chain.critical", endorsements=(strange, PKI.root))

    def test_key(self) -> None:
        pki = TpmPki()
        pki.issuer_key = ec.generate_private_key(ec.SECP224R1())
        pki.issuer = pki.issue_issuer()
        refused("chain.key", pki.issue_ek(), pki.chain)

    def test_hash(self) -> None:
        refused("chain.hash", PKI.issue_ek(hash=hashes.SHA224()))

    def test_a_roots_own_signature_does_not_matter(self) -> None:
        form = CertificateForm.issuer("root", hash=hashes.SHA224())
        root = issue(form, PKI.root_key, form, PKI.root_key)
        assert verify(endorsements=(PKI.issuer, root)).root == digest_bytes(root)

    @pytest.mark.parametrize("change", [{"ca": False}, {"signs": False}])
    def test_ca(self, change: dict[str, bool]) -> None:
        refused("chain.ca", endorsements=(PKI.issue_issuer(**change), PKI.root))

    def test_ca_of_an_endorsement_key(self) -> None:
        below = issue(CertificateForm(), make_key(), CertificateForm(), PKI.ek_key)
        refused("chain.length", below, (PKI.ek_certificate, *PKI.chain))
        named = CertificateForm(name="another endorsement key")
        below = issue(named, make_key(), CertificateForm(), PKI.ek_key)
        refused("chain.ca", below, (PKI.ek_certificate, *PKI.chain))

    def test_path_length(self) -> None:
        verify(endorsements=(PKI.issue_issuer(path_length=0), PKI.root))
        pki = TpmPki()
        pki.root_form = CertificateForm.issuer("root", path_length=0)
        pki.root = issue(pki.root_form, pki.root_key, pki.root_form, pki.root_key)
        refused("chain.path_length", pki.ek_certificate, pki.chain)

    @pytest.mark.parametrize("usage", [None, CODE_SIGNING])
    def test_usage(self, usage: x509.ObjectIdentifier | None) -> None:
        refused("ek.usage", PKI.issue_ek(usage=usage))


class TestForm:
    @pytest.mark.parametrize(
        "der",
        [
            b"",
            b"\x30\x00",
            PKI.ek_certificate + b"\0",
            PKI.ek_certificate[:-1],
            bytes(8193),
            pem(PKI.ek_certificate),
        ],
        ids=["empty", "nothing", "padded", "cut", "long", "pem"],
    )
    def test_what_is_no_certificate(self, der: bytes) -> None:
        with pytest.raises(MalformedInputError, match="does not parse"):
            verify(der)

    def test_a_key_of_another_type(self) -> None:
        key: Any = Ed25519PrivateKey.generate()
        ek = issue(CertificateForm(), key, PKI.issuer_form, PKI.issuer_key)
        with pytest.raises(MalformedInputError, match="neither RSA nor ECC"):
            verify(ek)

    def test_every_flipped_byte_is_refused(self) -> None:
        genuine = PKI.ek_certificate
        for at in range(len(genuine)):
            flipped = bytearray(genuine)
            flipped[at] ^= 1
            with pytest.raises(
                (CheckFailedError, MalformedInputError, MissingEndorsementError),
                match=r"chain\.|does not parse|not among",
            ):
                verify(bytes(flipped))

    def test_a_certificate_without_a_makers_name(self) -> None:
        form = CertificateForm()
        builder = (
            x509.CertificateBuilder()
            .subject_name(form.subject)
            .issuer_name(PKI.issuer_form.subject)
            .public_key(PKI.ek_key.public_key())
            .serial_number(7)
            .not_valid_before(form.not_before)
            .not_valid_after(form.not_after)
            .add_extension(
                x509.ExtendedKeyUsage([form.usage] if form.usage else []), False
            )
        )
        ek = builder.sign(PKI.issuer_key, hashes.SHA256()).public_bytes(Encoding.DER)
        assert verify(ek).manufacturer == verify(ek).model == "unknown"
