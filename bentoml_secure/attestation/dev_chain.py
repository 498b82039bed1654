"""Certificates of a development root: how they are made, and read strictly.

A chain has two Ed25519 certificates, leaf and root. Both carry ``MARK`` in the common
name of their subject, so that no tool shows them without it. What does not look
exactly like what is made here is refused.

Source: RFC 5280, RFC 8410.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from bentoml_secure.attestation.evidence import format_seconds
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import AttestationError, MalformedInputError

MARK = "SIMULATED - NOT HARDWARE"
ROOT_LIFETIME = timedelta(days=365)
MAX_CERTIFICATE_BYTES = 2048

_SIGNATURE_HEADER = bytes([0x03, 0x41, 0x00])
"""DER of a BIT STRING of 64 bytes, no bits unused."""

_BACKDATED = timedelta(minutes=1)
"""Another machine's clock may be behind that of the maker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevChain:
    """A leaf and the development root that signed it, both within their dates."""

    leaf_key: Ed25519PublicKey
    root: Digest
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _Certificate:
    what: str
    x509: x509.Certificate
    key: Ed25519PublicKey
    not_before: datetime
    not_after: datetime


def make_root(key: Ed25519PrivateKey, *, now: datetime) -> bytes:
    """Return the DER of a self-signed development root, good for a year."""
    name = _name("bentoml-secure development root")
    return _make(
        name, name, key.public_key(), key, now=now, until=now + ROOT_LIFETIME, ca=True
    )


def make_leaf(
    key: Ed25519PublicKey, root_key: Ed25519PrivateKey, root: bytes, *, now: datetime
) -> bytes:
    """Return the DER of a leaf for ``key``, good for as long as the root is.

    Args:
        key: The attester's.
        root_key: The root's.
        root: The root's DER.
        now: Start of the validity, less a minute.
    """
    issuer = x509.load_der_x509_certificate(root)
    return _make(
        _name("bentoml-secure development attester"),
        issuer.subject,
        key,
        root_key,
        now=now,
        until=issuer.not_valid_after_utc,
        ca=False,
    )


def _name(what: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{what}, {MARK}")])


def _make(
    subject: x509.Name,
    issuer: x509.Name,
    key: Ed25519PublicKey,
    issuer_key: Ed25519PrivateKey,
    *,
    now: datetime,
    until: datetime,
    ca: bool,
) -> bytes:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - _BACKDATED)
        .not_valid_after(until.astimezone(UTC))
        .add_extension(_basic_constraints(ca), critical=True)
        .add_extension(_key_usage(ca), critical=True)
        .sign(issuer_key, None)
        .public_bytes(Encoding.DER)
    )


def _basic_constraints(ca: bool) -> x509.BasicConstraints:
    return x509.BasicConstraints(ca=ca, path_length=0 if ca else None)


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def verify_chain(leaf: bytes, root: bytes, *, now: datetime) -> DevChain:
    """Verify that a development root signed a leaf, whichever root it is.

    Args:
        leaf: DER, from outside.
        root: DER, from outside. Only a policy that lists its digest accepts it.
        now: Both certificates must be within their dates.

    Raises:
        MalformedInputError: Not certificates, or not of this form.
        AttestationError: Unmarked, out of date, or not signed by the root.
    """
    upper = _read(root, ca=True)
    lower = _read(leaf, ca=False)
    _require_issued(upper, upper)
    _require_issued(lower, upper)
    for certificate in (upper, lower):
        if not certificate.not_before <= now <= certificate.not_after:
            raise AttestationError(
                f"simulated evidence: {certificate.what} certificate is good from"
                f" {format_seconds(certificate.not_before)} to"
                f" {format_seconds(certificate.not_after)}, not at"
                f" {format_seconds(now)}.",
                remedy="Restart the attester; a development root lasts a year.",
            )
    return DevChain(
        leaf_key=lower.key,
        root=digest_bytes(root),
        expires_at=min(upper.not_after, lower.not_after),
    )


def _read(der: bytes, *, ca: bool) -> _Certificate:
    what = "root" if ca else "leaf"
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise MalformedInputError(
            f"simulated evidence: {what} certificate has {len(der)} bytes,"
            f" want at most {MAX_CERTIFICATE_BYTES}"
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = certificate.public_key()
        extensions = {e.oid: (e.critical, e.value) for e in certificate.extensions}
        not_before = certificate.not_valid_before_utc
        not_after = certificate.not_valid_after_utc
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
        # Odd serial numbers warn, and some processes turn warnings into errors.
        UserWarning,
    ) as error:
        raise MalformedInputError(
            f"simulated evidence: {what} certificate does not parse: {error}"
        ) from error
    if len(names) != 1 or MARK not in str(names[0].value):
        raise AttestationError(
            f"simulated evidence: {what} certificate of"
            f" {certificate.subject.rfc4514_string()!r:.100}, want {MARK!r} in its"
            " common name"
        )
    wanted = {
        ExtensionOID.BASIC_CONSTRAINTS: (True, _basic_constraints(ca)),
        ExtensionOID.KEY_USAGE: (True, _key_usage(ca)),
    }
    # Parsers let the count of unused bits vary; a certificate has one spelling here.
    if not der.endswith(_SIGNATURE_HEADER + certificate.signature):
        raise MalformedInputError(
            f"simulated evidence: {what} certificate does not end in 64 bytes of"
            " signature"
        )
    if extensions != wanted or not isinstance(key, Ed25519PublicKey):
        raise AttestationError(
            f"simulated evidence: {what} certificate is no {what} of a development"
            f" root: want an Ed25519 key, {'CA' if ca else 'not CA'}, key usage"
            f" {'keyCertSign' if ca else 'digitalSignature'}, nothing else"
        )
    return _Certificate(
        what=what,
        x509=certificate,
        key=key,
        not_before=not_before,
        not_after=not_after,
    )


def _require_issued(certificate: _Certificate, issuer: _Certificate) -> None:
    try:
        certificate.x509.verify_directly_issued_by(issuer.x509)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AttestationError(
            f"simulated evidence: {certificate.what} certificate is not signed by"
            " the root certificate beside it"
        ) from error
