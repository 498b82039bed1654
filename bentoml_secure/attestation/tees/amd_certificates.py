"""Certificates that endorse SEV-SNP: found among endorsements, and read.

    ARK    root of a product line                           CN ARK-Milan
    ASK    signed by the ARK, signs VCEKs                   CN SEV-Milan
    ASVK   signed by the ARK, signs VLEKs                   CN SEV-VLEK-Milan
    VCEK   key of one chip at one TCB                       CN SEV-VCEK
    VLEK   key of one provider's machines at one TCB        CN SEV-VLEK
    CRL    signed by the ARK: which ASK or ASVK is revoked

They come from outside and in any order, PEM or DER, several in one file, beside those
of other vendors. Whatever names neither AMD nor a development root in its bytes is not
looked at; what does has to parse.

Source: AMD 57230 (VCEK certificate and KDS interface) revision 1.00, chapter 3.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.x509.oid import NameOID

from bentoml_secure.attestation.dev_chain import MARK
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import MalformedInputError

MAX_CERTIFICATES = 64
MAX_CERTIFICATE_BYTES = 16 * 1024
MAX_CRL_BYTES = 256 * 1024
MAX_RSA_BITS = 4096

TCB_EXTENSIONS: Mapping[str, str] = {
    "bootloader": "3.1",
    "tee": "3.2",
    "snp": "3.3",
    "microcode": "3.8",
    "fmc": "3.9",
}
"""AMD's object identifiers of security patch levels, below 1.3.6.1.4.1.3704.1."""

_OID = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, _HWID, _CSP_ID = "2", "4", "5"
_ORGANISATIONS = (b"Advanced Micro Devices", MARK.encode())
_PEM = re.compile(
    rb"-----BEGIN (CERTIFICATE|X509 CRL)-----([A-Za-z0-9+/=\s]*)-----END \1-----"
)
_DER_SEQUENCE = b"\x30"
_DER_BITS = 0x03
_DER_INTEGER, _DER_OCTETS, _DER_TEXTS = (0x02,), (0x04,), (0x0C, 0x13, 0x16)
_HWID_LENGTHS = (8, 64)
_UNPARSABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_filters = threading.Lock()


class Role(StrEnum):
    """What a certificate is for, by its subject's common name."""

    ARK = "ARK"
    ASK = "ASK"
    ASVK = "ASVK"
    VCEK = "VCEK"
    VLEK = "VLEK"


_ROLES = (
    (Role.VCEK, re.compile(r"SEV-VCEK")),
    (Role.VLEK, re.compile(r"SEV-VLEK")),
    (Role.ARK, re.compile(r"ARK-(\w+)")),
    (Role.ASVK, re.compile(r"SEV-VLEK-(\w+)")),
    (Role.ASK, re.compile(r"SEV-(\w+)")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What is read of any of them."""

    role: Role
    parsed: x509.Certificate
    subject: x509.Name
    issuer: x509.Name
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer(Certificate):
    """An ARK, ASK or ASVK, as read.

    Attributes:
        digest: Of its DER.
        product: From its common name.
        is_ca: Whether it may sign certificates, by its own extensions.
    """

    digest: Digest
    product: str
    key: RSAPublicKey
    serial_number: int
    is_ca: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf(Certificate):
    """A VCEK or VLEK, as read.

    Attributes:
        product: From its extension, without the stepping.
        tcb: Security patch levels by name, those that it has.
        hwid: The chip's, of a VCEK; 8 bytes from Turin on, else 64.
        csp_id: The cloud provider's, of a VLEK.
    """

    product: str
    key: EllipticCurvePublicKey
    tcb: Mapping[str, int]
    hwid: bytes | None
    csp_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crl:
    """A revocation list, as read.

    Attributes:
        critical: Object identifiers of its critical extensions.
        not_after: When the next is due; None if it does not say.
    """

    parsed: x509.CertificateRevocationList
    issuer: x509.Name
    critical: tuple[str, ...]
    not_before: datetime
    not_after: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdEndorsements:
    """What AMD signed, among endorsements of all sorts."""

    roots: tuple[Issuer, ...]
    signers: tuple[Issuer, ...]
    leaves: tuple[Leaf, ...]
    crls: tuple[Crl, ...]


def find_amd_endorsements(endorsements: Sequence[bytes]) -> AmdEndorsements:
    """Return AMD's certificates and revocation lists among endorsements.

    Raises:
        MalformedInputError: One of them does not parse, or there are too many.
    """
    ders: dict[bytes, None] = {}
    for index, endorsement in enumerate(endorsements):
        for der in _split(endorsement, what=f"endorsement {index}"):
            if any(organisation in der for organisation in _ORGANISATIONS):
                ders[der] = None
    if len(ders) > MAX_CERTIFICATES:
        raise MalformedInputError(
            f"endorsements: got {len(ders)} certificates of AMD's,"
            f" want at most {MAX_CERTIFICATES}"
        )
    with _quiet():
        read = [_read(der) for der in ders]
    issuers = [item for item in read if isinstance(item, Issuer)]
    return AmdEndorsements(
        roots=tuple(issuer for issuer in issuers if issuer.role is Role.ARK),
        signers=tuple(issuer for issuer in issuers if issuer.role is not Role.ARK),
        leaves=tuple(item for item in read if isinstance(item, Leaf)),
        crls=tuple(item for item in read if isinstance(item, Crl)),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Read certificates as AMD writes them: a VCEK's serial number is 0.

    ``cryptography`` warns of that, and of odd names in certificates that somebody
    changed; some processes turn warnings into errors. Whoever needs the number of an
    issuer takes it from ``Issuer``.
    """
    # The lock: warning filters are the process's, and threads would mix them up.
    with _filters, warnings.catch_warnings():
        # What cryptography warns with is one.
        warnings.simplefilter("ignore", UserWarning)
        yield


def _split(endorsement: bytes, *, what: str) -> Iterator[bytes]:
    if endorsement.startswith(_DER_SEQUENCE):
        yield endorsement
        return
    for block in _PEM.finditer(endorsement):
        try:
            yield base64.b64decode(b"".join(block[2].split()), validate=True)
        except binascii.Error as error:
            raise MalformedInputError(f"{what} is not PEM: {error}") from error


def _read(der: bytes) -> Issuer | Leaf | Crl | None:
    if len(der) > MAX_CRL_BYTES:
        raise MalformedInputError(
            f"AMD endorsement: got {len(der)} bytes, want at most {MAX_CRL_BYTES}"
        )
    try:
        crl = x509.load_der_x509_crl(der)
    except _UNPARSABLE:
        # Of the two, a certificate is what it has to be.
        return _read_certificate(der)
    try:
        _require_one_spelling(der, crl.tbs_certlist_bytes, crl.signature)
        return Crl(
            parsed=crl,
            issuer=crl.issuer,
            critical=tuple(
                extension.oid.dotted_string
                for extension in crl.extensions
                if extension.critical
            ),
            not_before=crl.last_update_utc,
            not_after=crl.next_update_utc,
        )
    except _UNPARSABLE as error:
        raise _malformed("revocation list", error) from error


def _require_one_spelling(der: bytes, signed: bytes, signature: bytes) -> None:
    """Refuse changes to what no signature covers: the algorithm's second mention."""
    size = len(signature) + 1
    header = bytes([_DER_BITS, 0x82, *size.to_bytes(2, "big"), 0])
    _, _, rest = der.partition(signed)
    algorithm = rest.removesuffix(header + signature)
    if algorithm == rest or algorithm not in signed:
        raise _malformed("endorsement", "it names two algorithms of its signature")


def _read_certificate(der: bytes) -> Issuer | Leaf | None:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise MalformedInputError(
            f"AMD certificate: got {len(der)} bytes,"
            f" want at most {MAX_CERTIFICATE_BYTES}"
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        subject = certificate.subject
        names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        role, product = _role(str(names[0].value) if len(names) == 1 else "")
        if role is None:
            return None
        _require_one_spelling(
            der, certificate.tbs_certificate_bytes, certificate.signature
        )
        common = Certificate(
            role=role,
            parsed=certificate,
            subject=subject,
            issuer=certificate.issuer,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
        key, extensions = certificate.public_key(), certificate.extensions
        number = certificate.serial_number
    except _UNPARSABLE as error:
        raise _malformed("certificate", error) from error
    if role in (Role.VCEK, Role.VLEK):
        return _read_leaf(common, key, extensions)
    if not isinstance(key, RSAPublicKey) or key.key_size > MAX_RSA_BITS:
        raise _malformed(role, f"want an RSA key of at most {MAX_RSA_BITS} bits")
    return Issuer(
        **_fields(common),
        digest=digest_bytes(der),
        product=product,
        key=key,
        serial_number=number,
        is_ca=_may_sign_certificates(extensions),
    )


def _fields(certificate: Certificate) -> dict[str, Any]:
    return {item.name: getattr(certificate, item.name) for item in fields(certificate)}


def _role(name: str) -> tuple[Role | None, str]:
    for role, pattern in _ROLES:
        if match := pattern.fullmatch(name):
            return role, match[1] if pattern.groups else ""
    return None, ""


def _may_sign_certificates(extensions: x509.Extensions) -> bool:
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and usage.key_cert_sign


def _read_leaf(common: Certificate, key: object, extensions: x509.Extensions) -> Leaf:
    role = common.role
    if not isinstance(key, EllipticCurvePublicKey):
        raise _malformed(role, "want an elliptic-curve key")
    own = {
        extension.oid.dotted_string.removeprefix(_OID): extension.value.value
        for extension in extensions
        if extension.oid.dotted_string.startswith(_OID)
        and isinstance(extension.value, x509.UnrecognizedExtension)
    }
    hwid, csp_id = own.get(_HWID), own.get(_CSP_ID)
    if (role is Role.VCEK) != (hwid is not None):
        raise _malformed(role, "want a hardware id in a VCEK, and in no other")
    if (role is Role.VLEK) != (csp_id is not None):
        raise _malformed(role, "want a provider's id in a VLEK, and in no other")
    return Leaf(
        **_fields(common),
        product=_text(own.get(_PRODUCT_NAME), role, "product name").partition("-")[0],
        key=key,
        tcb={
            name: _level(own[oid], role, name)
            for name, oid in TCB_EXTENSIONS.items()
            if oid in own
        },
        hwid=None if hwid is None else _hardware_id(hwid, role),
        csp_id=None if csp_id is None else _text(csp_id, role, "provider's id"),
    )


def _body(value: bytes | None, tags: tuple[int, ...]) -> bytes:
    """Return what a short DER value of these tags holds, nothing if it is none."""
    if value is None or len(value) < 2 or value[0] not in tags:
        return b""
    return value[2:] if value[1] == len(value) - 2 < 128 else b""


def _level(value: bytes, role: Role, what: str) -> int:
    # One byte, or from 128 on two.
    body = _body(value, _DER_INTEGER)
    level = int.from_bytes(body, "big", signed=True)
    if not 1 <= len(body) <= 2 or not 0 <= level <= 255:
        raise _malformed(role, f"{what} is no integer from 0 to 255")
    return level


def _text(value: bytes | None, role: Role, what: str) -> str:
    body = _body(value, _DER_TEXTS)
    if (
        not body.isascii()
        or not (text := body.decode("ascii")).isprintable()
        or not text
    ):
        raise _malformed(role, f"{what} is no printable text")
    return text


def _hardware_id(value: bytes, role: Role) -> bytes:
    # Some are wrapped as DER octets, most are not.
    for hwid in (value, _body(value, _DER_OCTETS)):
        if len(hwid) in _HWID_LENGTHS:
            return hwid
    raise _malformed(role, f"hardware id has {len(value)} bytes, want 8 or 64")


def _malformed(what: str, why: object) -> MalformedInputError:
    return MalformedInputError(f"AMD {what} does not parse: {why}")
