"""Images that measure to known values, made as their makers' tools make them."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

KERNEL, COMMAND_LINE, RAMDISK, SIGNATURE, METADATA = range(1, 6)
Sections = Sequence[tuple[int, bytes]]

UNSIGNED: Sections = (
    (KERNEL, b"kernel" * 1000),
    (COMMAND_LINE, b"console=ttyS0"),
    (METADATA, b'{"ImageName": "a"}'),
    (RAMDISK, b"init" * 500),
    (RAMDISK, b"application" * 700),
    (RAMDISK, b"more"),
)


def eif(
    sections: Sections = UNSIGNED,
    *,
    magic: bytes = b".eif",
    version: int = 4,
    count: int | None = None,
    edit: Callable[[list[int], list[int]], object] = lambda offsets, sizes: None,
    crc: int | None = None,
) -> bytes:
    """An image of sections, in their order."""
    offsets, sizes, body = [], [], b""
    for kind, data in sections:
        offsets.append(548 + len(body))
        sizes.append(len(data))
        body += struct.pack(">HHQ", kind, 0, len(data)) + data
    padded = [values + [0] * (32 - len(values)) for values in (offsets, sizes)]
    edit(padded[0], padded[1])
    header = struct.pack(
        ">4sHHQQHH32Q32QI",
        magic,
        version,
        0,
        1 << 30,
        2,
        0,
        len(sections) if count is None else count,
        *padded[0],
        *padded[1],
        0,
    )
    checked = zlib.crc32(header + body) if crc is None else crc
    return header + struct.pack(">I", checked) + body


def pcr(*contents: bytes) -> bytes:
    """A register: the hash extended once into zeros."""
    digest = hashlib.sha384(b"".join(contents)).digest()
    return hashlib.sha384(bytes(48) + digest).digest()


@dataclass(frozen=True)
class Signer:
    """A key and its certificate, as `nitro-cli build-enclave` takes them."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls) -> Signer:
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
        )
        return cls(key, builder.sign(key, hashes.SHA384()))

    def section(
        self,
        value: bytes,
        *,
        index: int = 0,
        key: ec.EllipticCurvePrivateKey | None = None,
        as_numbers: bool = True,
    ) -> bytes:
        """A signature section; its bytes are lists of numbers, as serde writes them."""

        def spelled(data: bytes) -> object:
            return list(data) if as_numbers else data

        payload = cbor2.dumps(
            {"register_index": index, "register_value": spelled(value)}
        )
        protected = cbor2.dumps({1: -35})
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        der = (key or self.key).sign(signed, ec.ECDSA(hashes.SHA384()))
        signature = b"".join(
            number.to_bytes(48, "big") for number in decode_dss_signature(der)
        )
        pem = self.certificate.public_bytes(Encoding.PEM)
        cose = cbor2.dumps([protected, {}, payload, signature])
        return cbor2.dumps(
            [{"signing_certificate": spelled(pem), "signature": spelled(cose)}]
        )


def sigstruct(
    key: rsa.RSAPrivateKey,
    *,
    mr_enclave: bytes = bytes(range(32)),
    product: int = 7,
    version: int = 3,
    attributes: int = 0x04,
    mask: int = 0xFFFFFFFFFFFFFFFD,
    signing_key: rsa.RSAPrivateKey | None = None,
) -> bytes:
    """A SIGSTRUCT with its signature."""
    first = bytes.fromhex("06000000e10000000000010000000000")
    first += struct.pack("<II", 0, 0x20260301)
    first += bytes.fromhex("01010000600000006000000001000000")
    first = first.ljust(128, b"\0")
    second = struct.pack(
        "<II4x16sQQQQ32s16x16sHH",
        0,
        0xFFFFFFFF,
        bytes(16),
        attributes,
        3,
        mask,
        0,
        mr_enclave,
        bytes(16),
        product,
        version,
    )
    signer = signing_key or key
    signature = signer.sign(first + second, padding.PKCS1v15(), hashes.SHA256())
    modulus = key.public_key().public_numbers().n
    number = modulus.to_bytes(384, "little")
    return b"".join(
        [
            first,
            number,
            struct.pack("<I", 3),
            signature[::-1],
            second,
            bytes(12),
            bytes(768),
        ]
    )
