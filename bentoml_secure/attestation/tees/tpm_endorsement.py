"""Endorsement keys: the certificate that a TPM's maker put into it, and its chain.

Any root verifies here, for there is no one list of makers; a policy accepts those whose
digest it lists. What links an attestation key to the endorsement key is an enrolment,
see ``tpm_enrolment``.

Certificates that are revoked are not told apart: makers publish their lists in ways
that differ, and none is read here.

Source: TCG EK Credential Profile for TPM Family 2.0, 2.6; RFC 5280, 6.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID

from bentoml_secure.attestation.checks import require
from bentoml_secure.attestation.dev_chain import MARK
from bentoml_secure.attestation.evidence import format_seconds
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import MalformedInputError, MissingEndorsementError

MAX_CERTIFICATE_BYTES = 8192
MAX_CERTIFICATES = 64
"""Among the endorsements; those beyond are not looked at."""

MAX_CHAIN = 6
SOFTWARE_MODEL = "swtpm"
EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate: what a maker certifies as an endorsement key."""

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)
_MANUFACTURER = x509.ObjectIdentifier("2.23.133.2.1")
_MODEL = x509.ObjectIdentifier("2.23.133.2.2")
_PEM = b"-----BEGIN CERTIFICATE-----"
_DER = b"\x30"
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    # Odd serial numbers warn, and some processes turn warnings into errors.
    UserWarning,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementKey:
    """A TPM's identity, under whichever root.

    Attributes:
        key: What credentials for this TPM are encrypted to.
        digest: ``sha256:`` of the DER of the key.
        root: ``sha256:`` of the DER of the root certificate.
        vendor: Organisation that the root names, or ``tpm:`` and part of its digest.
        manufacturer: Of the TPM, as its certificate says: ``id:`` and eight hex digits.
        model: Likewise.
        simulated: No hardware stands behind it: a software TPM, or a root whose name
            has ``dev_chain.MARK``.
        expires_at: End of the shortest validity in the chain.
    """

    key: RSAPublicKey | EllipticCurvePublicKey
    digest: Digest
    root: Digest
    vendor: str
    manufacturer: str
    model: str
    simulated: bool
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _Certificate:
    der: bytes
    parsed: x509.Certificate
    subject: x509.Name
    issuer: x509.Name
    key: RSAPublicKey | EllipticCurvePublicKey
    hash: hashes.HashAlgorithm | None
    extensions: x509.Extensions
    not_before: datetime
    not_after: datetime

    @property
    def name(self) -> str:
        return repr(self.subject.rfc4514_string())[:100]

    @property
    def is_root(self) -> bool:
        return self.subject == self.issuer

    def extension(self, kind: type[_Extension]) -> _Extension | None:
        try:
            return self.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return None


def verify_endorsement_key(
    certificate: bytes, endorsements: Sequence[bytes], *, now: datetime
) -> EndorsementKey:
    """Return the endorsement key that a chain of certificates ends in.

    Args:
        certificate: DER of the endorsement key's; zeros after it, as TPMs keep it, are
            not part of it and refused.
        endorsements: Certificates above it up to a self-signed root, PEM (several in
            one) or DER, in any order; what is none of them is passed over.
        now: Judges validity dates.

    Raises:
        MalformedInputError: No certificate, or of another key than RSA or ECC.
        MissingEndorsementError: The chain's next certificate is not there.
        CheckFailedError: ``ek.usage`` or one of ``chain.length``, ``.signature``,
            ``.hash``, ``.key``, ``.ca``, ``.path_length``, ``.critical`` and
            ``.validity`` does not hold.

    Source: RFC 5280, 6.1.3; TCG EK Credential Profile, 3.2.
    """
    try:
        leaf = _read(certificate)
    except _UNREADABLE as error:
        raise MalformedInputError(
            f"endorsement key certificate does not parse: {error}"
        ) from error
    # 1. Each is signed by the next, up to one that names itself.
    chain = _build_chain(leaf, _read_all(endorsements))
    # 2. Each may be what it is.
    for depth, link in enumerate(chain):
        _require_sound(link, now)
        if depth:
            _require_issuer(link, depth)
    usage = leaf.extension(x509.ExtendedKeyUsage)
    require(
        "ek.usage",
        usage is not None and EK_CERTIFICATE in usage,
        got=f"a certificate of {leaf.name} for other uses",
        want=f"tcg-kp-EKCertificate, {EK_CERTIFICATE.dotted_string}",
    )
    # 3. Only now what it says.
    root = digest_bytes(chain[-1].der)
    public = leaf.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    model = _described(leaf, _MODEL)
    return EndorsementKey(
        key=leaf.key,
        digest=digest_bytes(public),
        root=root,
        vendor=_organisation(chain[-1].subject) or f"tpm:{root[7:19]}",
        manufacturer=_described(leaf, _MANUFACTURER),
        model=model,
        simulated=model == SOFTWARE_MODEL or MARK in chain[-1].subject.rfc4514_string(),
        expires_at=min(link.not_after for link in chain),
    )


def read_certificates(endorsements: Iterable[bytes]) -> list[bytes]:
    """Return the DER of the certificates among endorsements, unverified."""
    return [certificate.der for certificate in _read_all(endorsements)]


def _read(der: bytes) -> _Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise ValueError(f"{len(der)} bytes, want at most {MAX_CERTIFICATE_BYTES}")
    certificate = x509.load_der_x509_certificate(der)
    # Parsers let the count of unused bits vary; a certificate has one spelling here.
    if not der.endswith(b"\0" + certificate.signature):
        raise ValueError("its signature leaves bits unused")
    key = certificate.public_key()
    if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey):
        raise ValueError("its key is neither RSA nor ECC")
    return _Certificate(
        der=der,
        parsed=certificate,
        subject=certificate.subject,
        issuer=certificate.issuer,
        key=key,
        hash=certificate.signature_hash_algorithm,
        extensions=certificate.extensions,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _read_all(endorsements: Iterable[bytes]) -> list[_Certificate]:
    found: list[_Certificate] = []
    for der in _split(endorsements):
        # What does not read is another kind's, or nothing that a chain can hold.
        with suppress(*_UNREADABLE):
            found.append(_read(der))
        if len(found) == MAX_CERTIFICATES:
            break
    return found


def _split(endorsements: Iterable[bytes]) -> Iterable[bytes]:
    for endorsement in endorsements:
        if _PEM in endorsement:
            with suppress(*_UNREADABLE):
                for certificate in x509.load_pem_x509_certificates(endorsement):
                    yield certificate.public_bytes(Encoding.DER)
        elif endorsement.startswith(_DER):
            yield endorsement


def _build_chain(
    leaf: _Certificate, pool: Sequence[_Certificate]
) -> list[_Certificate]:
    chain = [leaf]
    while not chain[-1].is_root and len(chain) <= MAX_CHAIN:
        chain.append(_issuer(chain[-1], pool))
    require(
        "chain.length",
        2 <= len(chain) <= MAX_CHAIN,
        got=f"{len(chain)} certificates or more",
        want=f"2 to {MAX_CHAIN}, the last one a root's",
    )
    if chain[-1].is_root:
        _issuer(chain[-1], chain[-1:])
    return chain


def _issuer(certificate: _Certificate, pool: Sequence[_Certificate]) -> _Certificate:
    named = [other for other in pool if other.subject == certificate.issuer]
    if not named:
        wanted = certificate.issuer.rfc4514_string()
        raise MissingEndorsementError(
            f"the certificate of {wanted!r:.100} is not among the endorsements; it"
            f" issued that of {certificate.name}.",
            remedy="Give the chain of the endorsement key up to the maker's root.",
        )
    signers = [other for other in named if _is_signed(certificate, other)]
    require(
        "chain.signature",
        bool(signers),
        got=f"{certificate.name} signed by another key",
        want=f"a signature of {named[0].name}",
    )
    # A root rather than the same name and key under yet another root.
    return min(signers or named, key=lambda other: not other.is_root)


def _is_signed(certificate: _Certificate, issuer: _Certificate) -> bool:
    try:
        certificate.parsed.verify_directly_issued_by(issuer.parsed)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _require_sound(link: _Certificate, now: datetime) -> None:
    require(
        "chain.validity",
        link.not_before <= now <= link.not_after,
        got=f"{link.name} at {format_seconds(now)}",
        want=f"from {format_seconds(link.not_before)}"
        f" to {format_seconds(link.not_after)}",
    )
    unknown = [
        extension.oid.dotted_string
        for extension in link.extensions
        if extension.critical and extension.oid not in _UNDERSTOOD
    ]
    require(
        "chain.critical",
        not unknown,
        got=f"{link.name} with {', '.join(unknown)}",
        want="no critical extension that is not understood",
    )
    small = 256 if isinstance(link.key, EllipticCurvePublicKey) else 2048
    require(
        "chain.key",
        link.key.key_size >= small,
        got=f"{link.name} of {link.key.key_size} bits",
        want=f"at least {small}",
    )
    require(
        "chain.hash",
        # A root's own signature adds nothing to its digest.
        link.is_root or isinstance(link.hash, _HASHES),
        got=f"{link.name} over {link.hash.name if link.hash else 'no hash'}",
        want="SHA-256, SHA-384 or SHA-512",
    )


def _require_issuer(link: _Certificate, depth: int) -> None:
    constraints = link.extension(x509.BasicConstraints)
    usage = link.extension(x509.KeyUsage)
    require(
        "chain.ca",
        constraints is not None
        and constraints.ca
        and usage is not None
        and usage.key_cert_sign,
        got=f"{link.name}, which issues none",
        want="CA and keyCertSign",
    )
    longest = constraints.path_length if constraints else None
    require(
        "chain.path_length",
        longest is None or depth - 1 <= longest,
        got=f"{depth - 1} issuers below {link.name}",
        want=f"at most {longest}",
    )


def _organisation(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""


def _described(leaf: _Certificate, kind: x509.ObjectIdentifier) -> str:
    names = leaf.extension(x509.SubjectAlternativeName) or ()
    for name in names:
        if isinstance(name, x509.DirectoryName):
            for attribute in name.value.get_attributes_for_oid(kind):
                return str(attribute.value)
    return "unknown"
