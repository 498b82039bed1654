"""Intel's DCAP from root to quote, made here: for signed evidence that must be refused.

Every certificate says ``SIMULATED - NOT HARDWARE``, and every key follows from its
name and a secret, by default none: what is signed here is the same in every process and
protects nothing. Only ``Tdx(root=...)`` and ``Sgx(root=...)`` with this root's digest
verify it, as simulated.

    pki = DcapPki(now=now)
    quote = pki.tdx_quote(report_data, edit=lambda body: set_debug(body))
    collateral = pki.collateral("TDX", edit_tcb=lambda info: outdate(info))

Source: Intel SGX PCK Certificate and CRL Profile Specification; Intel SGX and TDX
Provisioning Certification Service API, version 4.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bentoml_secure.attestation.dev_chain import MARK
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.testing.dcap_platform import Platform

INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
QE_SIGNER = hashlib.sha256(b"quoting enclave").digest()
QE_DATA = bytes(range(32))
EVALUATION = 17

Edit = Callable[[dict[str, Any]], object]
EditBytes = Callable[[bytearray], object]

_DAY = timedelta(days=1)
_SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_PRODUCTS = {"SGX": ("QE", 1), "TDX": ("TD_QE", 2)}


def _no_edit(_: Any) -> None:
    return None


def make_key(name: str, secret: bytes = b"") -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key that follows from a name and a secret."""
    scalar = int.from_bytes(hashlib.sha256(secret + name.encode()).digest())
    return ec.derive_private_key(scalar, ec.SECP256R1())


def sign_raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Return a P-256 signature as DCAP has it: r and s, 32 bytes each."""
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    signature = key.sign(message, algorithm)
    return b"".join(part.to_bytes(32) for part in utils.decode_dss_signature(signature))


def _public_point(key: ec.EllipticCurvePrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32) + numbers.y.to_bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        """The certificate's PEM."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        """The certificate's DER."""
        return self.certificate.public_bytes(Encoding.DER)


def _issue(
    name: str,
    issuer: Issued | None,
    *,
    now: datetime,
    ca: bool,
    until: datetime,
    extension: bytes | None = None,
    secret: bytes = b"",
) -> Issued:
    key = make_key(name, secret)
    signer = issuer.key if issuer else key
    subject = _subject(name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
        .not_valid_before(now - _DAY)
        .not_valid_after(until)
    )
    for one, critical in _extensions(key, signer, ca=ca):
        builder = builder.add_extension(one, critical=critical)
    if extension is not None:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(_SGX_EXTENSION, extension), critical=False
        )
    certificate = builder.sign(signer, hashes.SHA256(), ecdsa_deterministic=True)
    return Issued(certificate=certificate, key=key)


def _subject(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"{name}, {MARK}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, MARK),
        ]
    )


def _extensions(
    key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, *, ca: bool
) -> list[tuple[x509.ExtensionType, bool]]:
    usage = x509.KeyUsage(not ca, not ca, False, False, False, ca, ca, False, False)
    subject = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return [
        (x509.BasicConstraints(ca, None), True),
        (usage, True),
        (subject, False),
        (issuer, False),
    ]


class DcapPki:
    """A root, what it certifies, and quotes and collateral signed under it.

    Args:
        now: Everything is good from a day, lists and documents from an hour before.
        platform: What the platform's certificate and collateral say.
        name: Another name makes other keys: a foreign root.
        pck_until: End of the platform certificate; a year by default.
        secret: Whoever knows it has the keys; without one, everybody has.
    """

    def __init__(
        self,
        *,
        now: datetime,
        platform: Platform | None = None,
        name: str = "development",
        pck_until: datetime | None = None,
        secret: bytes = b"",
    ) -> None:
        self.now = now
        self.platform = platform or Platform()
        year = now + 365 * _DAY
        self.root = _issue(
            f"{name} root", None, now=now, ca=True, until=year, secret=secret
        )
        self.platform_ca = _issue(
            f"{name} PCK Platform CA",
            self.root,
            now=now,
            ca=True,
            until=year,
            secret=secret,
        )
        self.pck = _issue(
            f"{name} PCK",
            self.platform_ca,
            now=now,
            ca=False,
            until=pck_until or year,
            extension=self.platform.to_extension(),
            secret=secret,
        )
        self.tcb_signer = _issue(
            f"{name} TCB Signing",
            self.root,
            now=now,
            ca=False,
            until=year,
            secret=secret,
        )
        self.attestation_key = make_key(f"{name} attestation key", secret)

    @property
    def root_digest(self) -> Digest:
        """Digest of the root's DER, as ``Tdx`` and ``Sgx`` take it."""
        return digest_bytes(self.root.der)

    @property
    def pck_chain(self) -> str:
        """PEM of the platform's certificate, its authority's and the root's."""
        return self.pck.pem + self.platform_ca.pem + self.root.pem

    def tdx_quote(
        self,
        report_data: bytes,
        *,
        version: int = 4,
        body_type: int = 2,
        edit: EditBytes = _no_edit,
        parts: QuoteParts | None = None,
    ) -> bytes:
        """Return a signed quote of a TD.

        Args:
            report_data: 64 bytes.
            version: 4, or 5 with a body descriptor.
            body_type: 2, 3 or 4, which are TDX 1.0, 1.5 and 1.5 extended; of version 5.
            edit: Changes the body before it is signed.
            parts: What else differs from a good quote.
        """
        body = self.platform.to_td_report(report_data, body_type)
        edit(body)
        descriptor = b"" if version == 4 else struct.pack("<HI", body_type, len(body))
        return self._quote(version, 0x81, descriptor + body, "TDX", parts)

    def sgx_quote(
        self,
        report_data: bytes,
        *,
        edit: EditBytes = _no_edit,
        parts: QuoteParts | None = None,
    ) -> bytes:
        """Return a signed quote of an enclave; arguments as for ``tdx_quote``."""
        body = self.platform.to_enclave_report(report_data)
        edit(body)
        return self._quote(3, 0, bytes(body), "SGX", parts)

    def _quote(
        self, version: int, tee: int, body: bytes, name: str, parts: QuoteParts | None
    ) -> bytes:
        parts = parts or QuoteParts()
        header = struct.pack("<HHIHH", version, 2, tee, 0, 0)
        signed = header + INTEL_QE_VENDOR + bytes(20) + body
        point = _public_point(self.attestation_key)
        hashed = hashlib.sha256(point + parts.qe_data).digest()
        report = self.platform.to_enclave_report(hashed + bytes(32))
        report[128:160] = QE_SIGNER
        report[256:260] = struct.pack("<HH", _PRODUCTS[name][1], 8)
        parts.edit_qe(report)
        certification = parts.certification
        if certification is None:
            certification = self.pck_chain.encode() + b"\0"
        nested = (
            bytes(report)
            + sign_raw(self.pck.key, bytes(report))
            + struct.pack("<H", len(parts.qe_data))
            + parts.qe_data
            + struct.pack("<HI", parts.certification_type, len(certification))
            + certification
        )
        if version > 3:
            nested = struct.pack("<HI", 6, len(nested)) + nested
        data = sign_raw(self.attestation_key, signed) + point + nested
        return signed + struct.pack("<I", len(data)) + data

    def revocation_list(
        self,
        issuer: Issued,
        revoked: Sequence[Issued] = (),
        *,
        next_update: datetime | None = None,
    ) -> bytes:
        """Return the DER of an issuer's list."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.certificate.subject)
            .last_update(self.now - _DAY)
            .next_update(next_update or self.now + 30 * _DAY)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    issuer.key.public_key()
                ),
                critical=False,
            )
        )
        for one in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(one.certificate.serial_number)
                .revocation_date(self.now - _DAY)
                .build()
            )
        signed = builder.sign(issuer.key, hashes.SHA256(), ecdsa_deterministic=True)
        return signed.public_bytes(Encoding.DER)

    def collateral_fields(
        self, tee: str, *, edit_tcb: Edit = _no_edit, edit_qe: Edit = _no_edit
    ) -> dict[str, str]:
        """Return signed collateral by field, binary ones as hex.

        Args:
            tee: ``SGX`` or ``TDX``.
            edit_tcb: Changes the TCB info before it is signed.
            edit_qe: Changes the quoting enclave's identity before it is signed.
        """
        dates = {
            "issueDate": _format(self.now - timedelta(hours=1)),
            "nextUpdate": _format(self.now + 30 * _DAY),
            "tcbEvaluationDataNumber": EVALUATION,
        }
        info = self.platform.to_tcb_info(tee) | dates
        identity = _qe_identity(tee) | dates
        edit_tcb(info)
        edit_qe(identity)
        signers = self.tcb_signer.pem + self.root.pem
        fields = {
            "pck_crl_issuer_chain": self.platform_ca.pem + self.root.pem,
            "root_ca_crl": self.revocation_list(self.root).hex(),
            "pck_crl": self.revocation_list(self.platform_ca).hex(),
            "tcb_info_issuer_chain": signers,
            "qe_identity_issuer_chain": signers,
        }
        for name, document in (("tcb_info", info), ("qe_identity", identity)):
            text = json.dumps(document, separators=(",", ":"))
            signature = sign_raw(self.tcb_signer.key, text.encode())
            fields |= {name: text, f"{name}_signature": signature.hex()}
        return fields

    def collateral(
        self,
        tee: str,
        *,
        edit_tcb: Edit = _no_edit,
        edit_qe: Edit = _no_edit,
        **fields: object,
    ) -> bytes:
        """Return collateral's JSON; ``fields`` replace those signed, or remove them.

        Arguments as for ``collateral_fields``; a field that is None is left out.
        """
        document = self.collateral_fields(tee, edit_tcb=edit_tcb, edit_qe=edit_qe)
        merged = {**document, **fields}
        return json.dumps(
            {name: value for name, value in merged.items() if value is not None}
        ).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteParts:
    """What of a quote beside its body may differ from a good one's.

    Attributes:
        qe_data: The quoting enclave's data, hashed with the attestation key.
        edit_qe: Changes the quoting enclave's report before the platform signs it.
        certification_type: 5 is a chain of PEM certificates.
        certification: In place of that chain.
    """

    qe_data: bytes = QE_DATA
    edit_qe: EditBytes = _no_edit
    certification_type: int = 5
    certification: bytes | None = None

    def without_chain(self) -> QuoteParts:
        """Return the same with an encrypted platform id in place of the chain."""
        return replace(self, certification_type=3, certification=bytes(404))


def _qe_identity(tee: str) -> dict[str, Any]:
    name, product = _PRODUCTS[tee]
    return {
        "id": name,
        "version": 2,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "05000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": product,
        "tcbLevels": [
            {
                "tcb": {"isvsvn": 8},
                "tcbDate": "2024-03-13T00:00:00Z",
                "tcbStatus": "UpToDate",
            },
            {
                "tcb": {"isvsvn": 6},
                "tcbDate": "2021-11-10T00:00:00Z",
                "tcbStatus": "OutOfDate",
                "advisoryIDs": ["INTEL-SA-00615"],
            },
        ],
    }


def _format(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
