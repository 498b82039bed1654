"""The form of Intel DCAP quotes: every length read and compared before use.

    header                48 bytes: version, key type, TEE type, ...
    body descriptor       version 5 only: type, size
    body                  the report of an enclave or TD
    signature data        length, then signature, key, report of the quoting enclave,
                          its signature, and what certifies that: certification data

The header, descriptor and body are what the attestation key signs. Zero bytes may pad
the quote and what is nested in it; anything else that no length covers is refused.

Source: Intel SGX ECDSA QuoteLibReference, appendix A.4; Intel TDX DCAP Quoting Library
API, appendix A.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from bentoml_secure.attestation.checks import require
from bentoml_secure.errors import MalformedInputError

HEADER_BYTES = 48
ENCLAVE_REPORT_BYTES = 384
TD_REPORT_10_BYTES = 584
TD_REPORT_15_BYTES = 648
TD_REPORT_15_EX_BYTES = 885

ECDSA_P256 = 2
"""The attestation key type; P-384 is reserved and in no product."""

INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

PCK_CHAIN = 5
"""Certification data: a chain of PEM certificates, leaf first."""

_QE_REPORT = 6
_SIGNATURE_AND_KEY_BYTES = 128
_QE_REPORT_BYTES = ENCLAVE_REPORT_BYTES + 64


class TeeType(IntEnum):
    """TEE types of quote headers."""

    SGX = 0x00
    TDX = 0x81


_BODY_BYTES: Mapping[tuple[TeeType, int], int] = {
    (TeeType.SGX, 3): ENCLAVE_REPORT_BYTES,
    (TeeType.TDX, 4): TD_REPORT_10_BYTES,
}
_BODY_TYPES: Mapping[int, int] = {
    2: TD_REPORT_10_BYTES,
    3: TD_REPORT_15_BYTES,
    4: TD_REPORT_15_EX_BYTES,
}
"""Of TDX quotes of version 5; SGX quotes are of version 3 alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A quote whose lengths fit; nothing in it is verified.

    Attributes:
        version: 3 for SGX; 4 or 5 for TDX.
        body: The report, its length one of those above.
        signed: The quote without padding.
        certification_type: ``PCK_CHAIN``, or another that names the PCK certificate.
        certification: That data.
    """

    version: int
    body: bytes
    signed: bytes
    certification_type: int
    certification: bytes

    @property
    def pck_chain(self) -> bytes | None:
        """The PEM certificates in the quote, if it carries them."""
        return self.certification if self.certification_type == PCK_CHAIN else None


class _Cursor:
    """Reads bytes in order and never beyond their end."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.position = 0

    def take(self, length: int, field: str) -> bytes:
        left = len(self._data) - self.position
        if length > left:
            raise MalformedInputError(
                f"{self._what}: {field} has {length} bytes, {left} are left"
            )
        self.position += length
        return self._data[self.position - length : self.position]

    def integer(self, length: int, field: str) -> int:
        return int.from_bytes(self.take(length, field), "little")

    def end(self) -> None:
        rest = self._data[self.position :]
        if rest.strip(b"\0"):
            raise MalformedInputError(
                f"{self._what}: {len(rest)} bytes beyond its end, and not all zero"
            )


def parse_quote(blob: bytes, tee: TeeType) -> Quote:
    """Parse a quote of one kind of TEE.

    Args:
        blob: From outside.
        tee: What the quote must be of.

    Raises:
        MalformedInputError: Lengths that do not fit, bytes beyond the quote's end, a
            version, TEE type, key type or body type that is not supported.
        CheckFailedError: Not from Intel's quoting enclave.
    """
    what = f"{tee.name} quote"
    cursor = _Cursor(blob, what)
    version = _parse_header(cursor.take(HEADER_BYTES, "header"), tee, what)
    body_bytes = _BODY_BYTES.get((tee, version)) or _parse_descriptor(cursor, what)
    body = cursor.take(body_bytes, "body")
    length = cursor.integer(4, "length of signature data")
    authentication = cursor.take(length, "signature data")
    cursor.end()
    certification_type, certification = _parse_authentication(
        authentication, version, what
    )
    return Quote(
        version=version,
        body=body,
        signed=blob[: cursor.position],
        certification_type=certification_type,
        certification=certification,
    )


def _parse_header(header: bytes, tee: TeeType, what: str) -> int:
    cursor = _Cursor(header, f"{what} header")
    version = cursor.integer(2, "version")
    key_type = cursor.integer(2, "key type")
    tee_type = cursor.integer(4, "TEE type")
    versions = (3,) if tee is TeeType.SGX else (4, 5)
    for field, got, wanted in (
        ("TEE type", tee_type, (tee.value,)),
        ("version", version, versions),
        ("attestation key type", key_type, (ECDSA_P256,)),
    ):
        if got not in wanted:
            raise MalformedInputError(
                f"{what} {field}: got {got:#x}, want {' or '.join(map(hex, wanted))}"
            )
    vendor = header[12:28]
    require(
        "qe_vendor",
        vendor == INTEL_QE_VENDOR,
        got=vendor.hex(),
        want=INTEL_QE_VENDOR.hex(),
    )
    return version


def _parse_descriptor(cursor: _Cursor, what: str) -> int:
    body_type = cursor.integer(2, "body type")
    size = cursor.integer(4, "body size")
    wanted = _BODY_TYPES.get(body_type)
    if wanted is None:
        raise MalformedInputError(
            f"{what} body type: got {body_type},"
            f" want one of {', '.join(map(str, _BODY_TYPES))}"
        )
    if size != wanted:
        raise MalformedInputError(
            f"{what} body of type {body_type}: got {size} bytes, want {wanted}"
        )
    return wanted


def _parse_authentication(data: bytes, version: int, what: str) -> tuple[int, bytes]:
    cursor = _Cursor(data, f"{what} signature data")
    cursor.take(_SIGNATURE_AND_KEY_BYTES, "signature and key")
    if version > 3:
        outer = cursor.integer(2, "type of certification data")
        if outer != _QE_REPORT:
            raise MalformedInputError(
                f"{what} certification data: got type {outer}, want {_QE_REPORT}"
            )
        length = cursor.integer(4, "length of certification data")
        nested = cursor.take(length, "certification data")
        cursor.end()
        cursor = _Cursor(nested, f"{what} report of the quoting enclave")
    cursor.take(_QE_REPORT_BYTES, "report of the quoting enclave and its signature")
    length = cursor.integer(2, "length of the quoting enclave's data")
    cursor.take(length, "the quoting enclave's data")
    certification_type = cursor.integer(2, "type of certification data")
    length = cursor.integer(4, "length of certification data")
    certification = cursor.take(length, "certification data")
    cursor.end()
    return certification_type, certification
