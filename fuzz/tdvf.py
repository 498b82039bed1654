"""Firmware of trust domains: its table, its TDX metadata, and what MRTD it has."""

from __future__ import annotations

import struct
import uuid

from bentoml_secure.attestation.measurement.mrtd import PageOrder, mrtd
from bentoml_secure.attestation.measurement.tdvf import (
    MAX_SECTION_BYTES,
    RESET_VECTOR,
    parse_tdvf,
)
from bentoml_secure.errors import MalformedInputError
from fuzz._same import require_same

_PAGE = 4096


def seeds() -> list[bytes]:
    """Return an image of code alone, and one of each sort of section."""
    code = (_PAGE, _PAGE, 0xFFFFF000, _PAGE, 0, 1)
    variables = (0, _PAGE, 0xFFFFE000, _PAGE, 1, 0)
    memory = (0, 0, 0x810000, _PAGE, 3, 1)
    handoff = (0, 0, 0x809000, _PAGE, 2, 0)
    return [_image([code]), _image([code, variables, memory, handoff])]


def one(data: bytes) -> None:
    """Read bytes as an image, and compute its MRTD in both orders."""
    try:
        firmware = parse_tdvf(data)
    except MalformedInputError:
        return
    begins = [
        section
        for section in firmware.sections
        if section.measured and section.address <= RESET_VECTOR < section.end
    ]
    require_same(len(begins), 1)
    size = sum(section.size for section in firmware.sections)
    require_same(max(size, MAX_SECTION_BYTES), MAX_SECTION_BYTES)
    for section in firmware.sections:
        require_same(len(firmware.page(section, section.size - _PAGE)), _PAGE)
    for order in PageOrder:
        require_same(len(mrtd(firmware, order=order)), 48)


def _image(sections: list[tuple[int, int, int, int, int, int]]) -> bytes:
    metadata = struct.pack(
        "<4sIII", b"TDVF", 16 + 32 * len(sections), 1, len(sections)
    ) + b"".join(struct.pack("<IIQQII", *section) for section in sections)
    offset = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
    footer = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
    table = struct.pack("<IH", 1024, 22) + offset.bytes_le
    table += struct.pack("<H", len(table) + 18) + footer.bytes_le
    tail = metadata.ljust(1024 - 32 - len(table), b"\0") + table + bytes(32)
    return tail.rjust(2 * _PAGE, b"\x90")
