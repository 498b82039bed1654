"""A TPM's maker, a TPM and an enrolment authority in memory, honest or not.

They sign whatever they are told, so that a test can ask what a verifier says of it.
Keys follow from nothing and protect nothing; certificates say ``MARK``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from bentoml_secure.attestation.dev_chain import MARK
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.tpm import TpmEvidence
from bentoml_secure.attestation.tees.tpm_endorsement import EK_CERTIFICATE
from bentoml_secure.attestation.tees.tpm_enrolment import issue_enrolment
from bentoml_secure.attestation.tees.tpm_keys import parse_attestation_key
from bentoml_secure.attestation.tees.tpm_quote import ATTEST_QUOTE, GENERATED
from bentoml_secure.attestation.tees.tpm_structures import (
    ALG_ECC,
    ALG_ECDSA,
    ALG_NULL,
    ALG_RSA,
    ALG_RSAPSS,
    ALG_RSASSA,
    ALG_SHA256,
)
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.signing import SigningKey

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
CHALLENGE = bytes(range(32))
ATTRIBUTES = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 16 | 1 << 18
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign."""

PCRS = {0: bytes([1]) * 32, 7: bytes([2]) * 32}
PrivateKey = RSAPrivateKey | ec.EllipticCurvePrivateKey

_CURVES = {256: 3, 384: 4}


def make_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def _integer(value: int, length: int) -> bytes:
    return value.to_bytes(length, "big")


def _sized(data: bytes) -> bytes:
    return _integer(len(data), 2) + data


def marshal_public(
    key: PrivateKey, *, attributes: int = ATTRIBUTES, name_hash: int = ALG_SHA256
) -> bytes:
    """Return the ``TPM2B_PUBLIC`` of an attestation key."""
    numbers: Any = key.public_key().public_numbers()
    if isinstance(key, RSAPrivateKey):
        kind, scheme = ALG_RSA, ALG_RSASSA
        rest = _integer(key.key_size, 2) + bytes(4)
        rest += _sized(_integer(numbers.n, key.key_size // 8))
    else:
        kind, scheme = ALG_ECC, ALG_ECDSA
        rest = _integer(_CURVES[key.key_size], 2) + _integer(ALG_NULL, 2)
        rest += _sized(_integer(numbers.x, key.key_size // 8))
        rest += _sized(_integer(numbers.y, key.key_size // 8))
    head = _integer(kind, 2) + _integer(name_hash, 2) + _integer(attributes, 4)
    schemes = _integer(ALG_NULL, 2) + _integer(scheme, 2) + _integer(ALG_SHA256, 2)
    return _sized(head + _sized(b"") + schemes + rest)


@dataclass(frozen=True, kw_only=True)
class QuoteParts:
    """What a quote is made of; the defaults are those of an honest one."""

    magic: int = GENERATED
    kind: int = ATTEST_QUOTE
    extra_data: bytes = CHALLENGE
    clock: int = 1000
    safe: int = 1
    banks: Sequence[tuple[int, int]] = ((ALG_SHA256, 1 << 0 | 1 << 7),)
    select_bytes: int = 3
    pcr_digest: bytes = field(
        default_factory=lambda: hashlib.sha256(b"".join(PCRS.values())).digest()
    )

    def marshal(self) -> bytes:
        """Return the ``TPMS_ATTEST``."""
        selection = b"".join(
            _integer(bank, 2)
            + _integer(self.select_bytes, 1)
            + bits.to_bytes(self.select_bytes, "little")
            for bank, bits in self.banks
        )
        head = _integer(self.magic, 4) + _integer(self.kind, 2) + _sized(bytes(34))
        clock = _integer(self.clock, 8) + _integer(3, 4) + _integer(0, 4)
        clock += _integer(self.safe, 1) + _integer(0x20260301, 8)
        pcrs = _integer(len(self.banks), 4) + selection + _sized(self.pcr_digest)
        return head + _sized(self.extra_data) + clock + pcrs


def sign_quote(key: PrivateKey, message: bytes, *, scheme: int = 0) -> bytes:
    """Return the ``TPMT_SIGNATURE`` of a key over a quote."""
    sha256 = hashes.SHA256()
    if not isinstance(key, RSAPrivateKey):
        r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(sha256)))
        length = (key.key_size + 7) // 8
        head = _integer(ALG_ECDSA, 2) + _integer(ALG_SHA256, 2)
        return head + _sized(_integer(r, length)) + _sized(_integer(s, length))
    scheme = scheme or ALG_RSASSA
    pad: padding.AsymmetricPadding = padding.PKCS1v15()
    if scheme == ALG_RSAPSS:
        pad = padding.PSS(padding.MGF1(sha256), padding.PSS.DIGEST_LENGTH)
    value = key.sign(message, pad, sha256)
    return _integer(scheme, 2) + _integer(ALG_SHA256, 2) + _sized(value)


@dataclass(frozen=True, kw_only=True)
class CertificateForm:
    """A certificate to make; the defaults are those of an endorsement key's."""

    name: str = "endorsement key"
    organisation: str | None = None
    ca: bool = False
    path_length: int | None = None
    signs: bool = False
    not_before: datetime = NOW - timedelta(days=1)
    not_after: datetime = NOW + timedelta(days=365)
    usage: x509.ObjectIdentifier | None = EK_CERTIFICATE
    critical: x509.ObjectIdentifier | None = None
    hash: Any = field(default_factory=hashes.SHA256)

    @classmethod
    def issuer(cls, name: str, **changes: Any) -> CertificateForm:
        """Return the form of a certificate that issues others."""
        form = cls(name=name, ca=True, signs=True, usage=None, organisation="Maker")
        return replace(form, **changes)

    @property
    def subject(self) -> x509.Name:
        """Its distinguished name, marked."""
        names = [x509.NameAttribute(NameOID.COMMON_NAME, f"{self.name}, {MARK}")]
        if self.organisation is not None:
            kind = NameOID.ORGANIZATION_NAME
            names.append(x509.NameAttribute(kind, self.organisation))
        return x509.Name(names)


def issue(
    form: CertificateForm,
    key: PrivateKey,
    issuer: CertificateForm,
    issuer_key: PrivateKey,
) -> bytes:
    """Return the DER of a certificate for ``key``."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(form.subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(form.not_before)
        .not_valid_after(form.not_after)
        .add_extension(x509.BasicConstraints(form.ca, form.path_length), critical=True)
        .add_extension(_key_usage(form.signs), critical=True)
    )
    if form.usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([form.usage]), False)
        builder = builder.add_extension(_MADE, critical=True)
    if form.critical is not None:
        unknown = x509.UnrecognizedExtension(form.critical, b"\x05\x00")
        builder = builder.add_extension(unknown, critical=True)
    return builder.sign(issuer_key, form.hash).public_bytes(Encoding.DER)


def _key_usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=not signs,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


_MADE = x509.SubjectAlternativeName(
    [
        x509.DirectoryName(
            x509.Name(
                [
                    x509.NameAttribute(x509.ObjectIdentifier(f"2.23.133.2.{at}"), text)
                    for at, text in ((1, "id:00000000"), (2, "in memory"))
                ]
            )
        )
    ]
)


class TpmPki:
    """A maker with root and issuer, one TPM of theirs, and an authority.

    Attributes:
        root: DER.
        issuer: DER.
        ek_certificate: DER.
        ek: Digest of the endorsement key.
        authority: Signs enrolments.
    """

    def __init__(self) -> None:
        self.root_key, self.issuer_key = make_key(), make_key()
        self.ek_key, self.ak_key = make_key(), make_key()
        self.root_form = CertificateForm.issuer("root")
        self.issuer_form = CertificateForm.issuer("issuer")
        self.root = issue(self.root_form, self.root_key, self.root_form, self.root_key)
        self.issuer = self.issue_issuer()
        self.ek_certificate = self.issue_ek()
        public = self.ek_key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        self.ek = digest_bytes(public)
        self.authority = SigningKey.generate()

    @property
    def chain(self) -> tuple[bytes, ...]:
        """Endorsements: issuer and root."""
        return (self.issuer, self.root)

    @property
    def root_digest(self) -> Digest:
        """Digest of the root, as a policy lists it."""
        return digest_bytes(self.root)

    def issue_issuer(self, **changes: Any) -> bytes:
        """Return the issuer's certificate; keywords replace fields of its form."""
        form = replace(self.issuer_form, **changes)
        return issue(form, self.issuer_key, self.root_form, self.root_key)

    def issue_ek(self, **changes: Any) -> bytes:
        """Return the endorsement key's certificate; keywords replace fields."""
        form = replace(CertificateForm(), **changes)
        return issue(form, self.ek_key, self.issuer_form, self.issuer_key)

    def enrol(self, ak_public: bytes, **changes: Any) -> Any:
        """Return the authority's envelope for a key; keywords replace arguments."""
        arguments: dict[str, Any] = {
            "ek": self.ek,
            "ak_name": parse_attestation_key(ak_public).name,
            "now": NOW,
            "lifetime": timedelta(days=30),
        }
        key = changes.pop("key", self.authority)
        return issue_enrolment(key, **arguments | changes).to_json()

    def parts(
        self,
        *,
        ak_key: PrivateKey | None = None,
        quote: QuoteParts | None = None,
        pcrs: Mapping[int, bytes] | None = None,
        edit: Callable[[bytes], bytes] = bytes,
    ) -> TpmEvidence:
        """Return honest evidence but for what is given.

        Args:
            ak_key: Attestation key.
            quote: Parts of the quote.
            pcrs: Registers beside it.
            edit: Changes the attestation key's public area.
        """
        ak = ak_key or self.ak_key
        message = (quote or QuoteParts()).marshal()
        return TpmEvidence(
            ek_certificate=self.ek_certificate,
            ak_public=edit(marshal_public(ak)),
            message=message,
            signature=sign_quote(ak, message),
            pcrs=PCRS if pcrs is None else pcrs,
            enrolment=self.enrol(marshal_public(ak)),
            event_log=None,
        )

    def evidence(self, **changes: Any) -> Evidence:
        """Return honest evidence; keywords replace fields of ``TpmEvidence``."""
        return replace(self.parts(), **changes).to_evidence()
