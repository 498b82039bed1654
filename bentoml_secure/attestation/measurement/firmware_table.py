"""The table at the end of an OVMF image, by which hypervisors find what they need.

The image ends at 4 GiB. A table of entries, each known by a GUID and read backwards,
ends 32 bytes before its end.

Source: edk2, OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping

from bentoml_secure.errors import MalformedInputError

PAGE_BYTES = 4096
MAX_FIRMWARE_BYTES = 64 << 20
FIRMWARE_END = 1 << 32

_FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_ENTRY = struct.Struct("<H16s")
_AFTER_TABLE_BYTES = 32


def parse_firmware_table(data: bytes) -> Mapping[uuid.UUID, bytes]:
    """Return the entries of an OVMF image, by name.

    Raises:
        MalformedInputError: Not whole pages, too long, no table, one of another form.
    """
    if not data or len(data) % PAGE_BYTES or len(data) > MAX_FIRMWARE_BYTES:
        raise MalformedInputError(
            f"firmware: got {len(data)} bytes, want whole pages of {PAGE_BYTES},"
            f" at most {MAX_FIRMWARE_BYTES}"
        )
    end = len(data) - _AFTER_TABLE_BYTES
    size, guid = _ENTRY.unpack_from(data, end - _ENTRY.size)
    if uuid.UUID(bytes_le=guid) != _FOOTER:
        raise MalformedInputError("firmware: not OVMF, or without its table of GUIDs")
    # The size counts the footer itself.
    left = size - _ENTRY.size
    start = end - size
    if left < 0 or start < 0:
        raise MalformedInputError(f"firmware: a table of {size} bytes")
    return _parse_entries(data[start : start + left])


def _parse_entries(entries: bytes) -> Mapping[uuid.UUID, bytes]:
    table: dict[uuid.UUID, bytes] = {}
    stop = len(entries)
    while stop:
        if stop < _ENTRY.size:
            raise MalformedInputError(f"firmware: {stop} bytes before its table")
        size, guid = _ENTRY.unpack_from(entries, stop - _ENTRY.size)
        if not _ENTRY.size <= size <= stop:
            raise MalformedInputError(f"firmware: a table entry of {size} bytes")
        name = uuid.UUID(bytes_le=guid)
        if name in table:
            raise MalformedInputError(f"firmware: {name} stands twice in its table")
        table[name] = entries[stop - size : stop - _ENTRY.size]
        stop -= size
    return table


def number(table: Mapping[uuid.UUID, bytes], name: uuid.UUID) -> int | None:
    """Return the 32 bits, little-endian, that an entry begins with; None without it.

    Raises:
        MalformedInputError: An entry of less.
    """
    if name not in table:
        return None
    if len(table[name]) < 4:
        raise MalformedInputError(f"firmware: entry {name} is cut short")
    return int.from_bytes(table[name][:4], "little")
