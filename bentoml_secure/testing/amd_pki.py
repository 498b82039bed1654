"""A development root in place of AMD's: signs VCEKs, VLEKs and SEV-SNP reports.

Everything has AMD's form, so that the real verifier runs, and every subject says
``SIMULATED - NOT HARDWARE`` where AMD's say Advanced Micro Devices. A verifier accepts
it only where it is given ``AmdPki.roots``, and marks what it verified as simulated.

Source: AMD 56860 (SEV-SNP firmware ABI), ATTESTATION_REPORT; AMD 57230 (VCEK
certificate and KDS interface), chapter 3.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bentoml_secure.attestation.dev_chain import MARK
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.amd_certificates import TCB_EXTENSIONS
from bentoml_secure.attestation.tees.snp_report import (
    ECDSA_P384_SHA384,
    FIELDS,
    LAYOUT,
    SIGNED_BYTES,
    TURIN_CHIP_ID_BYTES,
    Product,
    SigningKey,
    Tcb,
)
from bentoml_secure.digest import Digest, digest_bytes

CSP_ID = "CN=simulated.example.org"
MEASUREMENT = hashlib.sha384(b"simulated guest").digest()
POLICY = 0x30000
"""SMT allowed, and the bit that must be one."""

CPUIDS: Mapping[Product, bytes] = {
    Product.MILAN: bytes([0x19, 0x01, 1]),
    Product.GENOA: bytes([0x19, 0x11, 1]),
    Product.TURIN: bytes([0x1A, 0x02, 1]),
}
"""Family, model and stepping, as reports hold them."""

_OID = "1.3.6.1.4.1.3704.1."
_PSS = PSS(MGF1(SHA384()), 48)
_KEY_NUMBERS = {SigningKey.VCEK: 0, SigningKey.VLEK: 1, SigningKey.NONE: 7}
_BACKDATED = timedelta(hours=1)
_LIFETIME = timedelta(days=30)
_NUMBER_BYTES = 72


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """Return this process's key of a name; such keys take a while to make."""
    return rsa.generate_private_key(65537, 2048)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateForm:
    """What goes into a certificate besides its keys.

    Attributes:
        subject: Common name.
        issuer: Common name of whoever signs.
        ca: Whether it may sign certificates.
        extensions: AMD's, raw, by what follows 1.3.6.1.4.1.3704.1.
        organisation: Of subject and issuer.
    """

    subject: str
    issuer: str
    not_before: datetime
    not_after: datetime
    ca: bool = False
    extensions: Mapping[str, bytes] | None = None
    serial_number: int | None = None
    organisation: str = MARK


def make_certificate(
    form: CertificateForm,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    issuer_key: rsa.RSAPrivateKey,
) -> bytes:
    """Return the DER of a certificate of any form, good or bad."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(form.subject, form.organisation))
        .issuer_name(_name(form.issuer, form.organisation))
        .public_key(key)
        .serial_number(form.serial_number or x509.random_serial_number())
        .not_valid_before(form.not_before.astimezone(UTC))
        .not_valid_after(form.not_after.astimezone(UTC))
    )
    if form.ca:
        usage = x509.KeyUsage(
            False, False, False, False, False, True, True, False, False
        )
        builder = builder.add_extension(x509.BasicConstraints(True, None), True)
        builder = builder.add_extension(usage, True)
    for oid, value in (form.extensions or {}).items():
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(_OID + oid), value), False
        )
    certificate = builder.sign(issuer_key, SHA384(), rsa_padding=_PSS)
    return certificate.public_bytes(Encoding.DER)


def _name(common_name: str, organisation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
        ]
    )


def integer(level: int) -> bytes:
    """Return the DER of an integer of 0 to 255, as in AMD's extensions."""
    body = level.to_bytes(1 if level < 128 else 2, "big")
    return bytes([2, len(body)]) + body


def text(value: str) -> bytes:
    """Return the DER of an IA5String, as in AMD's extensions."""
    return bytes([0x16, len(value)]) + value.encode("ascii")


class AmdPki:
    """A development ARK, ASK and ASVK of one product, and a chip with its keys.

    Args:
        now: Certificates are good from an hour before to a month after.
        product: The line of processors that the chip is of.
        csp_id: The provider in the VLEK.
    """

    def __init__(
        self,
        *,
        now: datetime,
        product: Product = Product.MILAN,
        csp_id: str = CSP_ID,
    ) -> None:
        turin = product is Product.TURIN
        self.now, self.product, self.csp_id = now, product, csp_id
        self.tcb = Tcb(
            bootloader=4, tee=0, snp=24, microcode=219, fmc=1 if turin else None
        )
        self.hwid = secrets.token_bytes(TURIN_CHIP_ID_BYTES if turin else 64)
        self.leaf_key = ec.generate_private_key(ec.SECP384R1())
        self.ark = self.issue(f"ARK-{product}", f"ARK-{product}", ca=True)
        self.ask = self.issue(f"SEV-{product}", f"ARK-{product}", ca=True)
        self.asvk = self.issue(f"SEV-VLEK-{product}", f"ARK-{product}", ca=True)

    @property
    def roots(self) -> dict[Digest, Product]:
        """What ``SevSnp(roots=...)`` takes to accept this PKI."""
        return {digest_bytes(self.ark): self.product}

    @property
    def vcek(self) -> bytes:
        """DER of the chip's VCEK at its TCB."""
        return self.issue_leaf(SigningKey.VCEK)

    @property
    def vlek(self) -> bytes:
        """DER of a VLEK at the chip's TCB; of the same key as the VCEK."""
        return self.issue_leaf(SigningKey.VLEK)

    def endorsements(self, key: SigningKey = SigningKey.VCEK) -> tuple[bytes, ...]:
        """Return all that a report under a key is verified with."""
        if key is SigningKey.VLEK:
            return self.vlek, self.asvk, self.ark
        return self.vcek, self.ask, self.ark

    def issue(self, subject: str, issuer: str, **changes: Any) -> bytes:
        """Return the DER of a certificate whose parties' keys go by their names.

        Args:
            subject: Common name.
            issuer: Common name.
            changes: Other fields of ``CertificateForm``; ``key`` and ``issuer_key``
                in place of the names' own.
        """
        key = changes.pop("key", None) or rsa_key(subject).public_key()
        issuer_key = changes.pop("issuer_key", None) or rsa_key(issuer)
        good: dict[str, Any] = {
            "subject": subject,
            "issuer": issuer,
            "not_before": self.now - _BACKDATED,
            "not_after": self.now + _LIFETIME,
        }
        return make_certificate(CertificateForm(**good | changes), key, issuer_key)

    def issue_leaf(self, which: SigningKey, **changes: Any) -> bytes:
        """Return the DER of a VCEK or VLEK.

        Args:
            which: Of the two.
            changes: As for ``issue``; besides, ``extensions`` are put over AMD's own,
                and one that is None is left out.
        """
        signer = "SEV-VLEK" if which is SigningKey.VLEK else "SEV"
        identity = (
            {"5": text(self.csp_id)} if which is SigningKey.VLEK else {"4": self.hwid}
        )
        levels = self.tcb.to_json().items()
        own = {
            "1": integer(0),
            "2": text(f"{self.product}-B1"),
            **{TCB_EXTENSIONS[name]: integer(level) for name, level in levels},
            **identity,
        }
        extensions = {**own, **changes.pop("extensions", {})}
        return self.issue(
            changes.pop("subject", f"SEV-{which.upper()}"),
            changes.pop("issuer", f"{signer}-{self.product}"),
            **{
                "key": self.leaf_key.public_key(),
                "extensions": {
                    oid: value for oid, value in extensions.items() if value is not None
                },
            }
            | changes,
        )

    def issue_crl(
        self,
        revoked: Iterable[int] = (),
        *,
        until: datetime | None = None,
        issuer_key: rsa.RSAPrivateKey | None = None,
        extension: x509.ExtensionType | None = None,
    ) -> bytes:
        """Return the DER of the ARK's revocation list.

        Args:
            revoked: Serial numbers.
            until: When the next is due; by default in a month.
            issuer_key: Signs it, by default the ARK's.
            extension: A critical one to add.
        """
        ark = f"ARK-{self.product}"
        start = self.now - _BACKDATED
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(x509.load_der_x509_certificate(self.ark).subject)
            .last_update(start)
            .next_update(until or self.now + _LIFETIME)
        )
        for number in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(number)
            builder = builder.add_revoked_certificate(
                entry.revocation_date(start).build()
            )
        if extension is not None:
            builder = builder.add_extension(extension, critical=True)
        crl = builder.sign(issuer_key or rsa_key(ark), SHA384(), rsa_padding=_PSS)
        return crl.public_bytes(Encoding.DER)

    def sign_report(
        self,
        report_data: bytes = bytes(64),
        *,
        version: int = 3,
        key: SigningKey = SigningKey.VCEK,
        signing_key: ec.EllipticCurvePrivateKey | None = None,
        **fields: Any,
    ) -> bytes:
        """Return a signed report.

        Args:
            report_data: 64 bytes.
            version: 2 to 5, or any other to see it refused.
            key: Which key the report names.
            signing_key: Signs it, by default the chip's.
            fields: Of ``FIELDS``, in place of the chip's own.
        """
        values = self._report_fields(version, key) | fields
        values["report_data"] = report_data
        empty = {name: b"" if form[-1] == "s" else 0 for name, form in FIELDS}
        report = LAYOUT.pack(*(empty | values).values())
        if "signature" in fields:
            return report
        signed = report[:SIGNED_BYTES]
        signer = signing_key or self.leaf_key
        signature = encode_signature(signer.sign(signed, ec.ECDSA(SHA384())))
        return signed + signature.ljust(len(report) - SIGNED_BYTES, b"\0")

    def _report_fields(self, version: int, key: SigningKey) -> dict[str, Any]:
        chip_id = self.hwid if key is SigningKey.VCEK else b""
        tcb = encode_tcb(self.tcb)
        return {
            "version": version,
            "policy": POLICY,
            "signature_algorithm": ECDSA_P384_SHA384,
            "platform_info": 1,
            "key_info": _KEY_NUMBERS[key] << 2,
            "measurement": MEASUREMENT,
            "report_id": hashlib.sha256(self.hwid).digest(),
            "report_id_ma": b"\xff" * 32,
            "cpuid": CPUIDS[self.product] if version >= 3 else b"",
            "chip_id": chip_id,
            "current_tcb": tcb,
            "reported_tcb": tcb,
            "committed_tcb": tcb,
            "launch_tcb": tcb,
            "current_version": bytes([21, 55, 1]),
            "committed_version": bytes([21, 55, 1]),
        }

    def attest(self, report_data: bytes) -> Evidence:
        """Return evidence over 64 bytes, under the VCEK."""
        return Evidence(kind="sev-snp", blob=self.sign_report(report_data))


def encode_tcb(tcb: Tcb) -> bytes:
    """Return the eight bytes of a TCB; with an FMC, in the layout of Turin."""
    if tcb.fmc is not None:
        low = [tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp]
        return bytes([*low, 0, 0, 0, tcb.microcode])
    return bytes([tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode])


def encode_signature(der: bytes) -> bytes:
    """Return R and S as a report holds them: 72 bytes each, little-endian."""
    return b"".join(
        number.to_bytes(_NUMBER_BYTES, "little") for number in decode_dss_signature(der)
    )
