"""OVMF firmware, as far as the launch digest of a SEV-SNP guest depends on it.

The image ends at 4 GiB. A table of entries, each known by a GUID and read backwards,
ends 32 bytes before its end; three entries matter here:

    reset block      where the processors after the first begin
    hashes table     where the hashes of kernel, initrd and command line are put
    SEV metadata     which pages the hypervisor prepares, and how

Source: edk2, OvmfPkg/ResetVector (OvmfSevMetadata.asm, ResetVectorVtf0.asm); AMD 56860
(SEV-SNP firmware ABI), 8.17.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from bentoml_secure.errors import MalformedInputError

PAGE_BYTES = 4096
MAX_FIRMWARE_BYTES = 64 << 20
MAX_PREPARED_PAGES = 1 << 18
"""1 GiB; real firmware asks for less than 200 KiB."""

_END = 1 << 32
_FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_RESET_BLOCK = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
_HASHES_TABLE = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
_METADATA = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")

_ENTRY = struct.Struct("<H16s")
_AFTER_TABLE_BYTES = 32
_METADATA_HEAD = struct.Struct("<4sIII")
_METADATA_ITEM = struct.Struct("<III")
_MAX_ITEMS = 64


class SectionType(IntEnum):
    """What the hypervisor does with pages that the firmware names."""

    MEMORY = 1
    SECRETS = 2
    CPUID = 3
    SVSM_CALLING_AREA = 4
    KERNEL_HASHES = 0x10


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Pages at an address of the guest, and how they are prepared."""

    address: int
    size: int
    type: SectionType


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """An OVMF image.

    Attributes:
        data: Whole pages.
        address: Where its first byte is.
        sections: In the order of its metadata.
        reset_address: Where further processors begin; None if it does not say.
        hashes_address: Where hashes of a direct boot are put; None if it takes none.
    """

    data: bytes
    address: int
    sections: tuple[Section, ...]
    reset_address: int | None
    hashes_address: int | None


def parse_firmware(data: bytes) -> Firmware:
    """Parse an OVMF image that can run as a SEV-SNP guest.

    Raises:
        MalformedInputError: Not whole pages, too long, no table, a table or metadata
            of another form, no SEV metadata.
    """
    if not data or len(data) % PAGE_BYTES or len(data) > MAX_FIRMWARE_BYTES:
        raise MalformedInputError(
            f"firmware: got {len(data)} bytes, want whole pages of {PAGE_BYTES},"
            f" at most {MAX_FIRMWARE_BYTES}"
        )
    table = _parse_table(data)
    if _METADATA not in table:
        raise MalformedInputError(
            "firmware: it has no SEV metadata; build OVMF with SEV-SNP support"
        )
    hashes = _address(table, _HASHES_TABLE)
    return Firmware(
        data=data,
        address=_END - len(data),
        sections=_parse_metadata(data, _address(table, _METADATA) or 0),
        reset_address=_address(table, _RESET_BLOCK),
        # Zero says that this build takes no hashes.
        hashes_address=hashes or None,
    )


def _parse_table(data: bytes) -> Mapping[uuid.UUID, bytes]:
    end = len(data) - _AFTER_TABLE_BYTES
    size, guid = _ENTRY.unpack_from(data, end - _ENTRY.size)
    if uuid.UUID(bytes_le=guid) != _FOOTER:
        raise MalformedInputError("firmware: not OVMF, or without its table of GUIDs")
    # The size counts the footer itself.
    left = size - _ENTRY.size
    start = end - size
    if left < 0 or start < 0:
        raise MalformedInputError(f"firmware: a table of {size} bytes")
    table: dict[uuid.UUID, bytes] = {}
    while left:
        stop = start + left
        if left < _ENTRY.size:
            raise MalformedInputError(f"firmware: {left} bytes before its table")
        size, guid = _ENTRY.unpack_from(data, stop - _ENTRY.size)
        if not _ENTRY.size <= size <= left:
            raise MalformedInputError(f"firmware: a table entry of {size} bytes")
        name = uuid.UUID(bytes_le=guid)
        if name in table:
            raise MalformedInputError(f"firmware: {name} stands twice in its table")
        table[name] = data[stop - size : stop - _ENTRY.size]
        left -= size
    return table


def _address(table: Mapping[uuid.UUID, bytes], name: uuid.UUID) -> int | None:
    if name not in table:
        return None
    if len(table[name]) < 4:
        raise MalformedInputError(f"firmware: entry {name} is cut short")
    return int.from_bytes(table[name][:4], "little")


def _parse_metadata(data: bytes, from_end: int) -> tuple[Section, ...]:
    start = len(data) - from_end
    if not 0 <= start <= len(data) - _METADATA_HEAD.size:
        raise MalformedInputError("firmware: its SEV metadata lies outside of it")
    signature, size, version, count = _METADATA_HEAD.unpack_from(data, start)
    if signature != b"ASEV" or version != 1:
        raise MalformedInputError(
            f"firmware: SEV metadata {signature!r} of version {version}, want b'ASEV'"
            " of version 1"
        )
    wanted = _METADATA_HEAD.size + count * _METADATA_ITEM.size
    if count > _MAX_ITEMS or size < wanted or wanted > from_end:
        raise MalformedInputError(
            f"firmware: SEV metadata of {count} items in {size} bytes"
        )
    sections = tuple(
        _section(*_METADATA_ITEM.unpack_from(data, at))
        for at in range(
            start + _METADATA_HEAD.size, start + wanted, _METADATA_ITEM.size
        )
    )
    if sum(section.size for section in sections) > MAX_PREPARED_PAGES * PAGE_BYTES:
        raise MalformedInputError("firmware: SEV metadata of more than 1 GiB")
    return sections


def _section(address: int, size: int, kind: int) -> Section:
    if address % PAGE_BYTES or size % PAGE_BYTES or not size:
        raise MalformedInputError(
            f"firmware: SEV metadata of {size:#x} bytes at {address:#x}: not pages"
        )
    if kind not in SectionType.__members__.values():
        raise MalformedInputError(f"firmware: SEV metadata of unknown type {kind:#x}")
    return Section(address=address, size=size, type=SectionType(kind))
