"""OVMF firmware, as far as the launch digest of a SEV-SNP guest depends on it.

Three entries of its table (``firmware_table``) matter here:

    reset block      where the processors after the first begin
    hashes table     where the hashes of kernel, initrd and command line are put
    SEV metadata     which pages the hypervisor prepares, and how

Source: edk2, OvmfPkg/ResetVector (OvmfSevMetadata.asm, ResetVectorVtf0.asm); AMD 56860
(SEV-SNP firmware ABI), 8.17.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from enum import IntEnum

from bentoml_secure.attestation.measurement.firmware_table import (
    FIRMWARE_END,
    PAGE_BYTES,
    number,
    parse_firmware_table,
)
from bentoml_secure.errors import MalformedInputError

MAX_PREPARED_PAGES = 1 << 18
"""1 GiB; real firmware asks for less than 200 KiB."""

_RESET_BLOCK = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
_HASHES_TABLE = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
_METADATA = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")

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
    table = parse_firmware_table(data)
    if _METADATA not in table:
        raise MalformedInputError(
            "firmware: it has no SEV metadata; build OVMF with SEV-SNP support"
        )
    hashes = number(table, _HASHES_TABLE)
    return Firmware(
        data=data,
        address=FIRMWARE_END - len(data),
        sections=_parse_metadata(data, number(table, _METADATA) or 0),
        reset_address=number(table, _RESET_BLOCK),
        # Zero says that this build takes no hashes.
        hashes_address=hashes or None,
    )


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
