"""Images that are measured: enclave image files, SIGSTRUCTs, firmware."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

from bentoml_secure.attestation.measurement.eif import measure_eif
from bentoml_secure.attestation.measurement.ovmf import parse_firmware
from bentoml_secure.attestation.measurement.sigstruct import parse_sigstruct
from bentoml_secure.errors import SecureError


def seeds() -> list[bytes]:
    """Return an image with a kernel and a command line, and one with nothing."""
    return [_eif([(1, b"kernel"), (2, b"line")]), _eif([]), bytes(1808), bytes(4096)]


def one(data: bytes) -> None:
    """Read bytes as each sort of image."""
    with suppress(SecureError):
        measure_eif(io.BytesIO(data))
    with suppress(SecureError):
        parse_sigstruct(data)
    with suppress(SecureError):
        parse_firmware(data)


def _eif(sections: list[tuple[int, bytes]]) -> bytes:
    offsets, body = [], b""
    for kind, content in sections:
        offsets.append(548 + len(body))
        body += struct.pack(">HHQ", kind, 0, len(content)) + content
    padding = [0] * (32 - len(sections))
    sizes = [len(content) for _, content in sections]
    header = struct.pack(">4sHHQQHH", b".eif", 4, 0, 0, 0, 0, len(sections))
    header += struct.pack(">32Q32QI", *offsets, *padding, *sizes, *padding, 0)
    return header + struct.pack(">I", zlib.crc32(header + body)) + body
