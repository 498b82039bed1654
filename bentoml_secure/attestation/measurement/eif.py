"""Enclave image files of AWS Nitro: the registers that an enclave of one will show.

    header    magic, version, flags, ..., offsets and sizes of sections, CRC-32
    section   type, flags, size, then so many bytes: kernel, command line, ramdisks,
              signature, metadata

    PCR 0     kernel, command line and all ramdisks
    PCR 1     kernel, command line and the first ramdisk: what boots
    PCR 2     the other ramdisks: the application
    PCR 8     the certificate that signed PCR 0, in images that are signed

Each is the SHA-384 of 48 zero bytes and the SHA-384 of these bytes, in their order in
the file. Integers are big-endian.

Source: aws-nitro-enclaves-image-format 0.4; AWS Nitro Enclaves user guide, "Where to
get an enclave's measurements".
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import IO, Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from bentoml_secure.attestation.checks import require, requiring
from bentoml_secure.attestation.tees.cbor import parse_cbor
from bentoml_secure.attestation.tees.cose import parse_sign1
from bentoml_secure.errors import MalformedInputError

MAX_IMAGE_BYTES = 64 << 30
MAX_SIGNATURE_BYTES = 64 * 1024

_WHAT = "enclave image"
_MAGIC = b".eif"
_VERSIONS = range(2, 5)
_MAX_SECTIONS = 32
_HEADER = struct.Struct(">4sHHQQHH32Q32QII")
_CRC_BYTES = 4
_SECTION = struct.Struct(">HHQ")
_CHUNK_BYTES = 1 << 20

_KERNEL, _COMMAND_LINE, _RAMDISK, _SIGNATURE, _METADATA = range(1, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveImage:
    """What an image measures to.

    Attributes:
        pcrs: SHA-384 registers by index: 0, 1, 2, and 8 where it is signed.
        signer: Subject of the signing certificate, or None.
    """

    pcrs: dict[int, bytes]
    signer: str | None


def measure_eif(image: IO[bytes]) -> EnclaveImage:
    """Measure an image, read once from its beginning to its end.

    Raises:
        MalformedInputError: Not an image, of another version, cut short, its sections
            not where its header says, a CRC that does not fit.
        CheckFailedError: A signature that is not over its PCR 0.
    """
    sizes, crc = _parse_header(_take(image, _HEADER.size, "header"))
    running = _Measuring(image)
    running.crc = zlib.crc32(crc[1])
    for index, (offset, size) in enumerate(sizes):
        running.read_section(index, offset, size)
    if image.read(1):
        raise MalformedInputError(f"{_WHAT}: bytes after its last section")
    if running.crc != crc[0]:
        raise MalformedInputError(
            f"{_WHAT}: its CRC is {running.crc:08x}, its header says {crc[0]:08x}"
        )
    return running.finish()


def _parse_header(header: bytes) -> tuple[list[tuple[int, int]], tuple[int, bytes]]:
    """Return offset and size of each section, and the CRC with what it covers first."""
    magic, version, _, _, _, _, count, *rest = _HEADER.unpack(header)
    offsets, sizes = rest[:_MAX_SECTIONS], rest[_MAX_SECTIONS : 2 * _MAX_SECTIONS]
    if magic != _MAGIC:
        raise MalformedInputError(f"{_WHAT}: begins with {magic!r}, want {_MAGIC!r}")
    if version not in _VERSIONS:
        raise MalformedInputError(
            f"{_WHAT}: version {version}, want {_VERSIONS.start} to {_VERSIONS[-1]}"
        )
    if not 1 <= count <= _MAX_SECTIONS:
        raise MalformedInputError(
            f"{_WHAT}: {count} sections, want 1 to {_MAX_SECTIONS}"
        )
    sections = sorted(zip(offsets[:count], sizes[:count], strict=True))
    if sum(sizes[:count]) > MAX_IMAGE_BYTES:
        raise MalformedInputError(f"{_WHAT}: larger than {MAX_IMAGE_BYTES} bytes")
    return sections, (rest[-1], header[:-_CRC_BYTES])


def _take(image: IO[bytes], length: int, what: str) -> bytes:
    data = image.read(length)
    if len(data) != length:
        raise MalformedInputError(
            f"{_WHAT}: {what} is cut short: {len(data)} of {length} bytes"
        )
    return data


class _Measuring:
    """Reads sections in the order of the file and keeps the running hashes."""

    def __init__(self, image: IO[bytes]) -> None:
        self._image = image
        self._at = _HEADER.size
        self._whole, self._boot, self._application = (
            hashlib.sha384() for _ in range(3)
        )
        self._seen: list[int] = []
        self._signature = b""
        self.crc = 0

    def read_section(self, index: int, offset: int, size: int) -> None:
        head = _take(self._image, _SECTION.size, f"section {index}")
        kind, _, length = _SECTION.unpack(head)
        if (self._at, length) != (offset, size):
            raise MalformedInputError(
                f"{_WHAT}: section {index} at {self._at} has {length} bytes, the"
                f" header says {size} at {offset}"
            )
        self.crc = zlib.crc32(head, self.crc)
        self._at += _SECTION.size + length
        hashes = self._hashes_of(kind)
        keep = kind == _SIGNATURE
        if keep and length > MAX_SIGNATURE_BYTES:
            raise MalformedInputError(f"{_WHAT}: a signature of {length} bytes")
        left = length
        while left:
            chunk = _take(self._image, min(left, _CHUNK_BYTES), f"section {index}")
            left -= len(chunk)
            self.crc = zlib.crc32(chunk, self.crc)
            for running in hashes:
                running.update(chunk)
            if keep:
                self._signature += chunk

    def _hashes_of(self, kind: int) -> tuple[Any, ...]:
        """Return the hashes that a section of a type goes into."""
        first_ramdisk = _RAMDISK not in self._seen
        if kind != _RAMDISK and kind in self._seen:
            raise MalformedInputError(f"{_WHAT}: two sections of type {kind}")
        self._seen.append(kind)
        if kind in (_KERNEL, _COMMAND_LINE) or (kind == _RAMDISK and first_ramdisk):
            return self._whole, self._boot
        if kind == _RAMDISK:
            return self._whole, self._application
        if kind in (_SIGNATURE, _METADATA):
            return ()
        raise MalformedInputError(f"{_WHAT}: a section of unknown type {kind}")

    def finish(self) -> EnclaveImage:
        for kind, name in ((_KERNEL, "kernel"), (_COMMAND_LINE, "command line")):
            if kind not in self._seen:
                raise MalformedInputError(f"{_WHAT}: no {name}")
        pcrs = {
            index: _extend(running.digest())
            for index, running in enumerate(
                (self._whole, self._boot, self._application)
            )
        }
        if _SIGNATURE not in self._seen:
            return EnclaveImage(pcrs=pcrs, signer=None)
        certificate = _verify_signature(self._signature, pcrs[0])
        der = certificate.public_bytes(Encoding.DER)
        pcrs[8] = _extend(hashlib.sha384(der).digest())
        return EnclaveImage(pcrs=pcrs, signer=certificate.subject.rfc4514_string())


def _extend(digest: bytes) -> bytes:
    return hashlib.sha384(bytes(len(digest)) + digest).digest()


def _verify_signature(section: bytes, pcr0: bytes) -> x509.Certificate:
    """Return the certificate whose key signed PCR 0."""
    what = f"{_WHAT} signature"
    entries = parse_cbor(section, what=what)
    entry = entries[0] if isinstance(entries, list) and len(entries) == 1 else None
    if not isinstance(entry, dict):
        raise MalformedInputError(f"{what}: want a list of one, of PCR 0")
    try:
        pem = _octets(entry.get("signing_certificate"), what)
        certificate = x509.load_pem_x509_certificate(pem)
        key = certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedInputError(f"{what}: certificate: {error}") from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise MalformedInputError(f"{what}: want a certificate of an elliptic curve")
    message = parse_sign1(_octets(entry.get("signature"), what), what=what)
    with requiring("eif.signature", InvalidSignature, want="the certificate's"):
        message.verify(key)
    payload = parse_cbor(message.payload, what=what)
    if not isinstance(payload, dict):
        raise MalformedInputError(f"{what}: want a register and its value")
    require(
        "eif.pcr0",
        payload.get("register_index") == 0
        and _octets(payload.get("register_value"), what) == pcr0,
        got=payload.get("register_index"),
        want=f"PCR 0 = {pcr0.hex()}",
    )
    return certificate


def _octets(value: object, what: str) -> bytes:
    """Return bytes that are written as such, or as a list of numbers."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, list) and all(
        type(item) is int and 0 <= item < 256 for item in value
    ):
        return bytes(value)
    raise MalformedInputError(f"{what}: want bytes, got {type(value).__name__}")
