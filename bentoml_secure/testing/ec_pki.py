"""Chains of P-384 certificates under a development root, right or wrong on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bentoml_secure.attestation.dev_chain import MARK

Extension = tuple[x509.ExtensionType, bool]
"""An extension's value, and whether it is critical."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A certificate to make.

    Attributes:
        name: Common name of the subject; ``MARK`` is added as its organisation.
        not_before: Start of its validity.
        not_after: End of it.
        ca: Value of the basic constraints; None leaves them out.
        path_length: Of the basic constraints.
        key_cert_sign: Bit of the key usage.
        digital_signature: Bit of the key usage.
        issuer: Common name of the issuer; by default the one above.
        signer: Key that signs; by default that of the one above.
        serial_number: By default its place in the chain, from 1.
        weak_hash: Whether it is signed over SHA-224.
        extensions: More of them.
    """

    name: str
    not_before: datetime
    not_after: datetime
    ca: bool | None = True
    path_length: int | None = None
    key_cert_sign: bool = True
    digital_signature: bool = False
    issuer: str | None = None
    signer: ec.EllipticCurvePrivateKey | None = None
    serial_number: int | None = None
    weak_hash: bool = False
    extensions: tuple[Extension, ...] = ()


class EcPki:
    """Keys and certificates of a chain; the root comes first.

    Args:
        names: Common names from root to leaf.
        now: The authorities are good a year around it.
        leaf_seconds: The leaf is good so long around it.
        leaf_extensions: More of the leaf's extensions.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        now: datetime,
        leaf_seconds: int = 86_400,
        leaf_extensions: tuple[Extension, ...] = (),
    ) -> None:
        year, short = timedelta(days=365), timedelta(seconds=leaf_seconds)
        self.keys = [ec.generate_private_key(ec.SECP384R1()) for _ in names]
        self.specs = [
            Spec(name=name, not_before=now - year, not_after=now + year)
            for name in names
        ]
        self.specs[-1] = replace(
            self.specs[-1],
            not_before=now - short,
            not_after=now + short,
            ca=False,
            key_cert_sign=False,
            digital_signature=True,
            extensions=leaf_extensions,
        )
        self._certificates = [
            self._certificate(at, spec) for at, spec in enumerate(self.specs)
        ]
        self.root = self._certificates[0]

    @property
    def leaf_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that signs evidence."""
        return self.keys[-1]

    def chain(self, index: int = 0, **changes: Any) -> list[bytes]:
        """Return the DER of every certificate, root first.

        Args:
            index: Which one differs.
            changes: Fields of its ``Spec``.
        """
        chain = list(self._certificates)
        if changes:
            chain[index] = self._certificate(
                index, replace(self.specs[index], **changes)
            )
        return chain

    def _certificate(self, at: int, spec: Spec) -> bytes:
        issuer = self.specs[max(0, at - 1)].name
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(spec.name))
            .issuer_name(_name(spec.issuer or issuer))
            .public_key(self.keys[at].public_key())
            .serial_number(spec.serial_number or at + 1)
            .not_valid_before(spec.not_before)
            .not_valid_after(spec.not_after)
            .add_extension(_usage(spec), critical=True)
        )
        if spec.ca is not None:
            builder = builder.add_extension(
                x509.BasicConstraints(spec.ca, spec.path_length), critical=True
            )
        for value, critical in spec.extensions:
            builder = builder.add_extension(value, critical)
        signer = spec.signer or self.keys[max(0, at - 1)]
        algorithm = hashes.SHA224() if spec.weak_hash else hashes.SHA384()
        return builder.sign(signer, algorithm).public_bytes(Encoding.DER)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, MARK),
        ]
    )


def _usage(spec: Spec) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=spec.digital_signature,
        key_cert_sign=spec.key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def sign_raw(
    key: ec.EllipticCurvePrivateKey,
    data: bytes,
    algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:
    """Return a signature as two numbers side by side, each as long as the curve's.

    Args:
        key: Whose.
        data: What is signed.
        algorithm: Hash; by default SHA-384.
    """
    size = (key.curve.key_size + 7) // 8
    pair = decode_dss_signature(key.sign(data, ec.ECDSA(algorithm or hashes.SHA384())))
    return b"".join(number.to_bytes(size, "big") for number in pair)
