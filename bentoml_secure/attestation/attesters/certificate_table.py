"""Certificates that a SEV-SNP host hands its guests: the table after a report.

    guid     16 bytes
    offset   4 bytes, little-endian, from the start of the table
    length   4 bytes, little-endian

once a certificate, until a row of zeros; then the certificates themselves.

Source: AMD 56421, SEV-ES Guest-Hypervisor Communication Block, 4.1.8.1.
"""

from __future__ import annotations

import struct
import uuid

from bentoml_secure.attestation.evidence import MAX_ENDORSEMENT_BYTES
from bentoml_secure.errors import MalformedInputError

MAX_ROWS = 64

_ROW = struct.Struct("<16sII")
_NAMES = {
    "63da758d-e664-4564-adc5-f4b93be8accd": "VCEK",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1": "VLEK",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ASK",
    "c0b406a4-a803-4952-9743-3fb6014cd0ae": "ARK",
    "92f81bc3-5811-4d3d-97ff-d19f88dc67ea": "CRL",
}
# Hosts write the identifiers in either byte order.
_KNOWN = {
    spelled
    for name in _NAMES
    for spelled in (uuid.UUID(name).bytes, uuid.UUID(name).bytes_le)
}


def parse_certificate_table(table: bytes) -> tuple[bytes, ...]:
    """Return the certificates and revocation lists of a table, in its order.

    Args:
        table: From the host; empty if it gives none. Rows of other makers are passed
            over.

    Raises:
        MalformedInputError: No row of zeros, too many rows, a certificate that is not
            within the table.
    """
    if not table.strip(b"\0"):
        return ()
    if len(table) > MAX_ENDORSEMENT_BYTES:
        raise MalformedInputError(
            f"certificate table: got {len(table)} bytes,"
            f" want at most {MAX_ENDORSEMENT_BYTES}"
        )
    certificates: list[bytes] = []
    left = len(table)
    for row in range(MAX_ROWS):
        if len(table) < _ROW.size * (row + 1):
            raise MalformedInputError("certificate table: no end")
        guid, offset, length = _ROW.unpack_from(table, _ROW.size * row)
        if not any(guid):
            return tuple(certificates)
        # Together no more than there is: rows that share bytes would multiply them.
        left -= length
        if not 0 < length <= len(table) - offset or left < 0:
            raise MalformedInputError(
                f"certificate table, row {row}: got {length} bytes at {offset}"
                f" of {len(table)}"
            )
        if guid in _KNOWN:
            certificates.append(table[offset : offset + length])
    raise MalformedInputError(f"certificate table: more than {MAX_ROWS} rows")
