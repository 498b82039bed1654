"""SPDM 1.1 measurements, as NVIDIA's devices report them.

A report is the request that was sent, 37 bytes, and the device's response to it:

    request    version, code, flags, which, nonce (32), slot
    response   version, code, two parameters, count of blocks, length of the record (3),
               record, the device's own nonce (32), length of opaque data (2), opaque
               data, signature (96)
    block      index, specification, length (2), type, length of the value (2), value
    opaque     repeated: identifier (2), length (2), value

Numbers are little-endian. The signature, ECDSA with SHA-384 on P-384, covers everything
before it, so the verifier's nonce too.

Source: DMTF DSP0274 1.1.1 sections 10.11 and 10.11.1; NVIDIA nvtrust, local GPU
verifier (opaque data).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bentoml_secure.errors import MalformedInputError

VERSION = 0x11
GET_MEASUREMENTS = 0xE0
MEASUREMENTS = 0x60
SIGNED = 0x01
ALL_BLOCKS = 0xFF

REQUEST_BYTES = 37
NONCE_BYTES = 32
SIGNATURE_BYTES = 96
MAX_REPORT_BYTES = 64 * 1024

_DMTF = 0x01
_NUMBER_BYTES = SIGNATURE_BYTES // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report as received; nothing is verified by parsing it.

    Attributes:
        flags: Of the request: bit 0 asks for a signature.
        which: Of the request: ``ALL_BLOCKS``, or the index of one.
        nonce: Of the request: the verifier's.
        measurements: Values by index of the block.
        opaque: Values by identifier.
        signed: What the signature covers.
        signature: As received.
    """

    flags: int
    which: int
    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes

    def verify(self, key: ec.EllipticCurvePublicKey) -> None:
        """Verify the signature over request and response.

        Args:
            key: On P-384.

        Raises:
            InvalidSignature: By another key, or over other bytes.
        """
        r, s = (
            int.from_bytes(half, "big")
            for half in (
                self.signature[:_NUMBER_BYTES],
                self.signature[_NUMBER_BYTES:],
            )
        )
        key.verify(encode_dss_signature(r, s), self.signed, ec.ECDSA(hashes.SHA384()))


class _Reader:
    """Takes fields off the front, and never more than there is."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._at = 0

    def take(self, count: int, field: str) -> bytes:
        left = len(self._data) - self._at
        if count > left:
            raise MalformedInputError(
                f"{self._what} {field}: got {left} bytes, want {count}"
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, count: int, field: str) -> int:
        return int.from_bytes(self.take(count, field), "little")

    def exactly(self, field: str, want: int) -> None:
        got = self.number(1, field)
        if got != want:
            raise MalformedInputError(
                f"{self._what} {field}: got 0x{got:02x}, want 0x{want:02x}"
            )

    @property
    def left(self) -> int:
        return len(self._data) - self._at


def parse_report(data: bytes) -> Report:
    """Parse a request and its response.

    Raises:
        MalformedInputError: Of another version or length, a block or an opaque value
            twice, lengths that do not add up.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise MalformedInputError(
            f"SPDM report: got {len(data)} bytes, want at most {MAX_REPORT_BYTES}"
        )
    request = _Reader(data[:REQUEST_BYTES], "SPDM request")
    request.exactly("version", VERSION)
    request.exactly("code", GET_MEASUREMENTS)
    flags, which = request.number(1, "flags"), request.number(1, "which")
    nonce = request.take(NONCE_BYTES, "nonce")
    request.number(1, "slot")
    response = _Reader(data[REQUEST_BYTES:], "SPDM response")
    response.exactly("version", VERSION)
    response.exactly("code", MEASUREMENTS)
    response.take(2, "parameters")
    count = response.number(1, "count of blocks")
    record = response.take(response.number(3, "length of record"), "record")
    response.take(NONCE_BYTES, "nonce")
    opaque = response.take(response.number(2, "length of opaque data"), "opaque data")
    signature = response.take(SIGNATURE_BYTES, "signature")
    if response.left:
        raise MalformedInputError(
            f"SPDM response: {response.left} bytes after the signature"
        )
    measurements = _unique(_blocks(record), "block")
    if len(measurements) != count:
        raise MalformedInputError(
            f"SPDM response: got {len(measurements)} blocks, want {count} as it says"
        )
    return Report(
        flags=flags,
        which=which,
        nonce=nonce,
        measurements=measurements,
        opaque=_unique(_opaque(opaque), "opaque value"),
        signed=data[:-SIGNATURE_BYTES],
        signature=signature,
    )


def _blocks(record: bytes) -> Iterator[tuple[int, bytes]]:
    reader = _Reader(record, "SPDM measurement")
    while reader.left:
        index = reader.number(1, "index")
        reader.exactly("specification", _DMTF)
        size = reader.number(2, "length")
        block = _Reader(reader.take(size, "block"), f"SPDM measurement {index}")
        block.number(1, "type")
        value = block.take(block.number(2, "length of value"), "value")
        if block.left:
            raise MalformedInputError(
                f"SPDM measurement {index}: {block.left} bytes after its value"
            )
        yield index, value


def _opaque(data: bytes) -> Iterator[tuple[int, bytes]]:
    reader = _Reader(data, "SPDM opaque data")
    while reader.left:
        identifier = reader.number(2, "identifier")
        yield identifier, reader.take(reader.number(2, "length"), "value")


def _unique(pairs: Iterator[tuple[int, bytes]], what: str) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    for name, value in pairs:
        if name in values:
            raise MalformedInputError(f"SPDM {what} {name} stands twice")
        values[name] = value
    return values
