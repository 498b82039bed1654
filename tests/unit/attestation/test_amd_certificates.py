"""Endorsements of SEV-SNP as they come: any order, any form, others among them."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bentoml_secure.attestation.dev_chain import MARK
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.tees.amd_certificates import (
    MAX_CERTIFICATE_BYTES,
    MAX_CERTIFICATES,
    MAX_CRL_BYTES,
    Role,
    find_amd_endorsements,
)
from bentoml_secure.attestation.tees.sev_snp import SevSnp
from bentoml_secure.attestation.tees.snp_report import Product, SigningKey
from bentoml_secure.errors import (
    CheckFailedError,
    MalformedInputError,
    MissingEndorsementError,
)
from bentoml_secure.testing.amd_pki import AmdPki, integer, text

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
VCEK, VLEK = SigningKey.VCEK, SigningKey.VLEK


@pytest.fixture(scope="module")
def pki() -> AmdPki:
    return AmdPki(now=NOW)


def verify(
    pki: AmdPki, endorsements: Sequence[bytes], report: bytes | None = None
) -> VerifiedClaims:
    evidence = Evidence(kind="sev-snp", blob=report or pki.sign_report())
    return SevSnp(roots=pki.roots).verify(evidence, endorsements, now=NOW)


def pem(*ders: bytes, label: str = "CERTIFICATE") -> bytes:
    blocks = [
        f"-----BEGIN {label}-----\n".encode()
        + base64.encodebytes(der)
        + f"-----END {label}-----\n".encode()
        for der in ders
    ]
    return b"".join(blocks)


def other_vendors() -> bytes:
    """A certificate of nobody's here."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Another Root CA")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )


class TestForms:
    def test_any_order(self, pki: AmdPki) -> None:
        for given in itertools.permutations(pki.endorsements()):
            assert verify(pki, given).simulated

    def test_der_and_pem_are_one(self, pki: AmdPki) -> None:
        leaf, ask, ark = pki.endorsements()
        want = verify(pki, (leaf, ask, ark))
        assert verify(pki, (pem(leaf, ask, ark),)) == want
        assert verify(pki, (ark, pem(ask), b"a line before\n" + pem(leaf))) == want
        crlf = pem(leaf, ask, ark).replace(b"\n", b"\r\n")
        assert verify(pki, (crlf,)) == want

    def test_each_twice(self, pki: AmdPki) -> None:
        leaf, ask, ark = pki.endorsements()
        assert verify(pki, (leaf, ask, ark, pem(leaf, ask, ark))).simulated

    def test_a_revocation_list_in_pem(self, pki: AmdPki) -> None:
        crl = pem(pki.issue_crl(), label="X509 CRL")
        claims = verify(pki, (*pki.endorsements(), crl))
        assert claims.claims["revocation_checked"]

    def test_what_others_signed_is_not_read(self, pki: AmdPki) -> None:
        others = (
            other_vendors(),
            pem(other_vendors()),
            b'{"tcb_info": "{}"}',
            b"\x30\x82 not a certificate",
            b"",
            b"\xff" * 100,
            pki.issue("another simulated root", "another simulated root", ca=True),
        )
        for given in ((*others, *pki.endorsements()), (*pki.endorsements(), *others)):
            assert verify(pki, given).simulated

    def test_the_leaf_that_fits_is_found(self, pki: AmdPki) -> None:
        other = AmdPki(now=NOW)
        stale = pki.issue_leaf(VCEK, not_after=NOW - timedelta(seconds=1))
        leaves = (other.vcek, pki.vlek, stale, pki.vcek, AmdPki(now=NOW).vcek)
        for given in itertools.permutations(leaves):
            assert verify(pki, (*given, pki.ask, pki.ark)).simulated

    def test_the_issuer_that_signed_is_found_among_namesakes(self, pki: AmdPki) -> None:
        key = rsa.generate_private_key(65537, 2048)
        false_ask = pki.issue("SEV-Milan", "ARK-Milan", ca=True, key=key.public_key())
        false_ark = pki.issue("ARK-Milan", "ARK-Milan", ca=True, key=key.public_key())
        given = (false_ask, false_ark, *pki.endorsements())
        assert verify(pki, given).simulated
        assert verify(pki, given[::-1]).simulated

    def test_all_products_at_once(self, pki: AmdPki) -> None:
        others = [AmdPki(now=NOW, product=product) for product in Product]
        given = [der for each in others for der in each.endorsements()]
        assert verify(pki, (*given, *pki.endorsements())).simulated
        assert verify(pki, (*pki.endorsements(), *given)).simulated


class TestMissing:
    def test_no_vcek_says_where_to_get_it(self, pki: AmdPki) -> None:
        with pytest.raises(MissingEndorsementError, match="no VCEK") as caught:
            verify(pki, (pki.ask, pki.ark))
        message = str(caught.value)
        assert pki.hwid.hex() in message
        assert "bootloader 4, tee 0, snp 24, microcode 219" in message
        assert (
            f"https://kdsintf.amd.com/vcek/v1/Milan/{pki.hwid.hex()}"
            "?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219." in message
        )

    def test_turin_has_one_level_more_and_a_shorter_id(self) -> None:
        pki = AmdPki(now=NOW, product=Product.TURIN)
        want = (
            f"/vcek/v1/Turin/{pki.hwid.hex()}"
            r"\?fmcSPL=01&blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219"
        )
        for version in (2, 5):
            with pytest.raises(MissingEndorsementError, match=want):
                verify(pki, (), pki.sign_report(version=version))

    def test_an_old_report_says_no_product(self, pki: AmdPki) -> None:
        with pytest.raises(MissingEndorsementError, match=r"/\{Milan or Genoa\}/"):
            verify(pki, (), pki.sign_report(version=2))

    def test_a_masked_chip_cannot_be_asked_for(self, pki: AmdPki) -> None:
        with pytest.raises(MissingEndorsementError, match="masked: ask the machine's"):
            verify(pki, (), pki.sign_report(chip_id=b""))

    def test_no_vlek(self, pki: AmdPki) -> None:
        report = pki.sign_report(key=VLEK)
        with pytest.raises(MissingEndorsementError, match=r"no VLEK .* provider"):
            verify(pki, (pki.asvk, pki.ark), report)

    def test_no_ask(self, pki: AmdPki) -> None:
        want = "no ASK .*/vcek/v1/Milan/cert_chain"
        for given in ((pki.vcek, pki.ark), (pki.vcek, pki.asvk, pki.ark)):
            with pytest.raises(MissingEndorsementError, match=want):
                verify(pki, given)

    def test_no_asvk(self, pki: AmdPki) -> None:
        report, given = pki.sign_report(key=VLEK), (pki.vlek, pki.ask, pki.ark)
        want = "no ASVK .*/vlek/v1/Milan/cert_chain"
        with pytest.raises(MissingEndorsementError, match=want):
            verify(pki, given, report)

    def test_no_ark(self, pki: AmdPki) -> None:
        with pytest.raises(MissingEndorsementError, match="no ARK"):
            verify(pki, (pki.vcek, pki.ask))


class TestMalformed:
    def refused(self, endorsement: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            find_amd_endorsements([endorsement])

    @pytest.mark.parametrize("role", ["vcek", "ask", "ark"])
    def test_edits_of_any_byte_are_refused(self, pki: AmdPki, role: str) -> None:
        der = getattr(pki, role)
        leaf, ask, ark = pki.endorsements()
        given = {"vcek": leaf, "ask": ask, "ark": ark}
        for at in range(0, len(der), 7):
            hurt = bytearray(der)
            hurt[at] ^= 1 << at % 8
            given[role] = bytes(hurt)
            with pytest.raises(
                (CheckFailedError, MalformedInputError, MissingEndorsementError),
                match=r".",
            ):
                verify(pki, tuple(given.values()))

    def test_edits_of_a_revocation_list_are_never_accepted(self, pki: AmdPki) -> None:
        good = pki.issue_crl([1])
        for at in range(0, len(good), 3):
            hurt = bytearray(good)
            hurt[at] ^= 1 << at % 8
            try:
                claims = verify(pki, (*pki.endorsements(), bytes(hurt)))
            except (CheckFailedError, MalformedInputError):
                continue
            # Another issuer's by its name, and so none.
            assert not claims.claims["revocation_checked"]

    def test_a_revocation_list_of_broken_extensions(self, pki: AmdPki) -> None:
        broken = x509.UnrecognizedExtension(x509.CRLNumber.oid, b"\xff")
        crl = pki.issue_crl(extension=broken)
        self.refused(crl, "AMD revocation list does not parse")

    def test_truncated(self, pki: AmdPki) -> None:
        self.refused(pki.vcek[:-1], "AMD certificate does not parse")
        self.refused(pem(pki.vcek[:-1]), "AMD certificate does not parse")

    def test_pem_of_no_base64(self) -> None:
        block = b"-----BEGIN CERTIFICATE-----\nAAAAA\n-----END CERTIFICATE-----\n"
        self.refused(block, "endorsement 0 is not PEM")

    def test_too_long(self, pki: AmdPki) -> None:
        mark = MARK.encode()
        self.refused(b"\x30" + mark + bytes(MAX_CRL_BYTES), "AMD endorsement: got")
        long = b"\x30" + mark + bytes(MAX_CERTIFICATE_BYTES)
        self.refused(long, "AMD certificate: got")

    def test_too_many(self, pki: AmdPki) -> None:
        many = [
            b"\x30" + MARK.encode() + bytes([i]) for i in range(MAX_CERTIFICATES + 1)
        ]
        with pytest.raises(MalformedInputError, match="65 certificates of AMD's"):
            find_amd_endorsements(many)

    @pytest.mark.parametrize(
        ("extensions", "match"),
        [
            ({"4": None}, "want a hardware id in a VCEK"),
            ({"5": text("x")}, "want a provider's id in a VLEK"),
            ({"2": None}, "product name is no printable text"),
            ({"2": b""}, "product name"),
            ({"2": b"\x16\x05Mila"}, "product name"),
            ({"2": b"\x04\x05Milan"}, "product name"),
            ({"2": b"\x16\x05Mil\nn"}, "product name"),
            ({"2": b"\x16\x05Mil\xe4n"}, "product name"),
            ({"3.1": b"\x02\x01"}, "bootloader is no integer"),
            ({"3.1": b"\x02\x01\x80"}, "bootloader"),
            ({"3.1": b"\x02\x02\x01\x00"}, "bootloader"),
            ({"3.8": b"\x04\x01\x00"}, "microcode"),
            ({"3.3": b""}, "snp"),
            ({"4": bytes(63)}, "hardware id has 63 bytes"),
            ({"4": b"\x04\x40" + bytes(63)}, "hardware id has 65 bytes"),
            ({"4": b""}, "hardware id has 0 bytes"),
        ],
        ids=str,
    )
    def test_a_leafs_extensions(
        self, pki: AmdPki, extensions: dict[str, bytes | None], match: str
    ) -> None:
        self.refused(pki.issue_leaf(VCEK, extensions=extensions), match)

    def test_a_vlek_with_a_hardware_id(self, pki: AmdPki) -> None:
        leaf = pki.issue_leaf(VLEK, extensions={"4": bytes(64)})
        self.refused(leaf, "want a hardware id in a VCEK")

    def test_levels_from_128_on_have_two_bytes(self, pki: AmdPki) -> None:
        assert integer(219) == b"\x02\x02\x00\xdb"
        (leaf,) = find_amd_endorsements([pki.vcek]).leaves
        assert leaf.tcb["microcode"] == 219

    def test_keys_of_another_type(self, pki: AmdPki) -> None:
        edwards: Any = ed25519.Ed25519PrivateKey.generate().public_key()
        curve = ec.generate_private_key(ec.SECP384R1()).public_key()
        self.refused(pki.issue_leaf(VCEK, key=edwards), "want an elliptic-curve key")
        ask = pki.issue("SEV-Milan", "ARK-Milan", ca=True, key=curve)
        self.refused(ask, "want an RSA key of at most 4096 bits")


def test_roles_go_by_the_common_name(pki: AmdPki) -> None:
    found = find_amd_endorsements(
        [pki.vcek, pki.vlek, pki.ask, pki.asvk, pki.ark, pki.issue_crl()]
    )
    assert [leaf.role for leaf in found.leaves] == [Role.VCEK, Role.VLEK]
    assert [signer.role for signer in found.signers] == [Role.ASK, Role.ASVK]
    assert [root.role for root in found.roots] == [Role.ARK]
    assert len(found.crls) == 1
    assert MARK in found.leaves[0].subject.rfc4514_string()
