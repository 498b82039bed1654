"""Chains of elliptic-curve certificates, root to leaf, under one pinned root.

Each authority of AWS Nitro Enclaves and of NVIDIA's devices has a P-384 key, signs with
SHA-384, and says what it may issue. What a chain says of itself counts only once the
first certificate is the one that is pinned, byte for byte.

Source: RFC 5280 sections 4.2.1 and 6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from bentoml_secure.attestation.checks import require, requiring
from bentoml_secure.attestation.dev_chain import MARK
from bentoml_secure.attestation.evidence import format_seconds
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import ConfigurationError, MalformedInputError

MAX_CERTIFICATE_BYTES = 4096
CURVE = "secp384r1"

_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_KNOWN_CRITICAL = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})
_UNPARSABLE = (
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
class Certificate:
    """What is read of a certificate, all of it before anything is believed.

    Attributes:
        what: Its place in the chain, for errors.
        der: All of it.
        key: Its public key, on P-384.
        signed: What its issuer signed.
        hash_algorithm: What the signature says that it is taken over.
        extensions: By object identifier: critical, value.
    """

    what: str
    der: bytes
    subject: x509.Name
    issuer: x509.Name
    serial_number: int
    key: ec.EllipticCurvePublicKey
    signed: bytes
    signature: bytes
    hash_algorithm: hashes.HashAlgorithm | None
    extensions: dict[x509.ObjectIdentifier, tuple[bool, x509.ExtensionType]]
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain whose every link holds.

    Attributes:
        leaf: The last, whose key signs evidence.
        root: Digest of the first.
        expires_at: End of the shortest validity.
    """

    leaf: Certificate
    root: Digest
    expires_at: datetime


def read_certificate(der: bytes, *, what: str) -> Certificate:
    """Parse a certificate and all of it that is judged later.

    Args:
        der: From outside.
        what: Its place in the chain, for errors.

    Raises:
        MalformedInputError: Too long, no certificate, a key of another curve.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise MalformedInputError(
            f"{what}: got {len(der)} bytes, want at most {MAX_CERTIFICATE_BYTES}"
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != CURVE:
            raise MalformedInputError(f"{what}: want a key on {CURVE}")
        return Certificate(
            what=what,
            der=der,
            subject=certificate.subject,
            issuer=certificate.issuer,
            serial_number=certificate.serial_number,
            key=key,
            signed=certificate.tbs_certificate_bytes,
            signature=certificate.signature,
            hash_algorithm=certificate.signature_hash_algorithm,
            extensions={e.oid: (e.critical, e.value) for e in certificate.extensions},
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
    except _UNPARSABLE as error:
        raise MalformedInputError(f"{what} does not parse: {error}") from error


def verify_chain(
    certificates: Sequence[Certificate], *, root: Digest, now: datetime
) -> Chain:
    """Verify that a chain leads from a pinned root to its leaf.

    Args:
        certificates: At least two: root, intermediates, leaf.
        root: Digest of the pinned root's DER.
        now: Every certificate must be within its dates.

    Raises:
        CheckFailedError: A link that does not hold.
    """
    got = digest_bytes(certificates[0].der)
    require("chain.root", got == root, got=got, want=root)
    last = len(certificates) - 1
    for index, certificate in enumerate(certificates):
        _require_valid(certificate, now)
        _require_known_extensions(certificate)
        if index < last:
            # Intermediates below this one, the leaf not counted.
            _require_authority(certificate, below=last - 1 - index)
        else:
            _require_leaf(certificate)
        if index > 0:
            _require_issued(certificate, certificates[index - 1])
    return Chain(
        leaf=certificates[-1],
        root=got,
        expires_at=min(each.not_after for each in certificates),
    )


def development_root(der: bytes) -> Digest:
    """Return the digest of a development root that is to be pinned.

    Args:
        der: Its certificate.

    Raises:
        ConfigurationError: Its subject does not carry ``MARK``: whatever hangs on it
            would be taken for hardware.
    """
    try:
        subject = read_certificate(der, what="development root").subject
    except MalformedInputError as error:
        raise ConfigurationError(str(error)) from error
    if MARK not in subject.rfc4514_string():
        raise ConfigurationError(
            f"development root of {subject.rfc4514_string()!r:.100}, want {MARK!r} in"
            " its subject."
        )
    return digest_bytes(der)


def _require_valid(certificate: Certificate, now: datetime) -> None:
    begin, end = certificate.not_before, certificate.not_after
    require(
        "chain.validity",
        begin <= now <= end,
        got=format_seconds(now),
        want=f"{certificate.what} holds from {format_seconds(begin)} to"
        f" {format_seconds(end)}",
    )


def _require_known_extensions(certificate: Certificate) -> None:
    critical = {oid for oid, (must, _) in certificate.extensions.items() if must}
    unknown = sorted(oid.dotted_string for oid in critical - _KNOWN_CRITICAL)
    require(
        "chain.critical",
        not unknown,
        got=f"{certificate.what}: {', '.join(unknown)}",
        want="no critical extension besides basic constraints and key usage",
    )


def _require_authority(certificate: Certificate, *, below: int) -> None:
    constraints = _basic_constraints(certificate)
    require(
        "chain.ca",
        constraints is not None and constraints.ca,
        got=f"{certificate.what}: no authority",
        want="basic constraints with CA true",
    )
    limit = constraints.path_length if constraints else None
    require(
        "chain.path_length",
        limit is None or limit >= below,
        got=f"{certificate.what}: {below} authorities below it",
        want=f"at most {limit}",
    )
    usage = _key_usage(certificate)
    require(
        "chain.key_cert_sign",
        usage is not None and usage.key_cert_sign,
        got=f"{certificate.what}: may not sign certificates",
        want="key usage with keyCertSign",
    )


def _require_leaf(certificate: Certificate) -> None:
    constraints = _basic_constraints(certificate)
    require(
        "chain.leaf_ca",
        constraints is None or not constraints.ca,
        got=f"{certificate.what}: an authority",
        want="a certificate that issues none",
    )
    usage = _key_usage(certificate)
    require(
        "chain.digital_signature",
        usage is not None and usage.digital_signature,
        got=f"{certificate.what}: may not sign evidence",
        want="key usage with digitalSignature",
    )


def _require_issued(certificate: Certificate, issuer: Certificate) -> None:
    require(
        "chain.issuer",
        certificate.issuer == issuer.subject,
        got=f"{certificate.what}: issued by {certificate.issuer.rfc4514_string():.200}",
        want=issuer.subject.rfc4514_string(),
    )
    algorithm = certificate.hash_algorithm
    require(
        "chain.hash",
        isinstance(algorithm, _HASHES),
        got=f"{certificate.what}: {algorithm.name if algorithm else 'none'}",
        want="SHA-256, SHA-384 or SHA-512",
    )
    with requiring(
        "chain.signature",
        InvalidSignature,
        want=f"{certificate.what} signed by {issuer.what}",
    ):
        issuer.key.verify(
            certificate.signature,
            certificate.signed,
            # Not SHA-384 alone: which hash an authority takes is its own choice.
            ec.ECDSA(algorithm or hashes.SHA384()),
        )


def _basic_constraints(certificate: Certificate) -> x509.BasicConstraints | None:
    _, value = certificate.extensions.get(ExtensionOID.BASIC_CONSTRAINTS, (False, None))
    return value if isinstance(value, x509.BasicConstraints) else None


def _key_usage(certificate: Certificate) -> x509.KeyUsage | None:
    _, value = certificate.extensions.get(ExtensionOID.KEY_USAGE, (False, None))
    return value if isinstance(value, x509.KeyUsage) else None
