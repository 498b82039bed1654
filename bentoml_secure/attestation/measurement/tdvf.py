"""TDVF: OVMF firmware that can run as a trust domain (TD), and where it is put.

Its table (``firmware_table``) says where its TDX metadata is. These list sections, in
the order in which the hypervisor puts them into the TD:

    BFV         code, from the image
    CFV         variables, from the image
    TD_HOB      what the hypervisor tells of the machine
    TEMP_MEM    zeros

Of a section whose attributes say so, what it holds is measured; of every other one only
which pages it has. Variables and the machine's description are measured by the firmware
when it runs, into RTMR 0.

Source: Intel TDX Virtual Firmware Design Guide 344991-004US, 11 (TDVF metadata); QEMU,
hw/i386/tdvf.c and target/i386/kvm/tdx.c.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from bentoml_secure.attestation.measurement.firmware_table import (
    FIRMWARE_END,
    PAGE_BYTES,
    number,
    parse_firmware_table,
)
from bentoml_secure.errors import MalformedInputError

MAX_SECTION_BYTES = 64 << 20
"""Of all sections together; real firmware has its own size and some 150 KiB."""

RESET_VECTOR = 0xFFFFFFF0

_METADATA = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
_HEAD = struct.Struct("<4sIII")
_ITEM = struct.Struct("<IIQQII")
_SIGNATURE = b"TDVF"
_VERSION = 1
_MAX_ITEMS = 64
_MR_EXTEND = 1


class SectionType(IntEnum):
    """What a section is for."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TEMP_MEM = 3


_OF_IMAGE = (SectionType.BFV, SectionType.CFV)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Pages of a TD.

    Attributes:
        type: What they are for.
        address: Of the first, in the TD; that of a page.
        size: In bytes, whole pages.
        offset: Where in the image they are; None if they are not from there.
        measured: Whether what they hold is measured, too.
    """

    type: SectionType
    address: int
    size: int
    offset: int | None
    measured: bool

    @property
    def end(self) -> int:
        """The address after the last page."""
        return self.address + self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Tdvf:
    """An image and its sections, in the order of its metadata."""

    data: bytes
    sections: tuple[Section, ...]

    def page(self, section: Section, at: int) -> bytes:
        """Return what a measured section's page at an offset within it holds."""
        if section.offset is None:
            return bytes(PAGE_BYTES)
        start = section.offset + at
        return self.data[start : start + PAGE_BYTES]


def parse_tdvf(data: bytes) -> Tdvf:
    """Parse an OVMF image that can run as a TD.

    Refused is whatever would leave open what a TD runs or how it is measured: code that
    is not measured, sections of which hypervisors make different things.

    Raises:
        MalformedInputError: No image of OVMF, none with TDX metadata, metadata of
            another form, sections outside of the image, of other types, that overlap,
            that are too large, or that do not measure what the TD runs first.
    """
    from_end = number(parse_firmware_table(data), _METADATA)
    if from_end is None:
        raise MalformedInputError(
            "firmware: it has no TDX metadata; build OVMF with TDX support"
        )
    sections = tuple(_parse_metadata(data, len(data) - from_end))
    _require_layout(sections)
    return Tdvf(data=data, sections=sections)


def _parse_metadata(data: bytes, start: int) -> Iterable[Section]:
    if not 0 <= start <= len(data) - _HEAD.size:
        raise MalformedInputError("firmware: its TDX metadata lies outside of it")
    signature, size, version, count = _HEAD.unpack_from(data, start)
    if signature != _SIGNATURE or version != _VERSION:
        raise MalformedInputError(
            f"firmware: TDX metadata {signature!r} of version {version}, want"
            f" {_SIGNATURE!r} of version {_VERSION}"
        )
    wanted = _HEAD.size + count * _ITEM.size
    if not 1 <= count <= _MAX_ITEMS or size != wanted or start + size > len(data):
        raise MalformedInputError(
            f"firmware: TDX metadata of {count} sections in {size} bytes"
        )
    for at in range(start + _HEAD.size, start + size, _ITEM.size):
        yield _parse_section(data, *_ITEM.unpack_from(data, at))


def _parse_section(
    data: bytes,
    offset: int,
    raw_size: int,
    address: int,
    size: int,
    kind: int,
    attributes: int,
) -> Section:
    where = f"firmware: TDX section of {size:#x} bytes at {address:#x}"
    if address % PAGE_BYTES or size % PAGE_BYTES or not size:
        raise MalformedInputError(f"{where}: not pages")
    if address + size > FIRMWARE_END:
        raise MalformedInputError(f"{where}: beyond 4 GiB")
    if kind not in SectionType.__members__.values():
        raise MalformedInputError(f"{where}: of unknown type {kind:#x}")
    if attributes not in (0, _MR_EXTEND):
        raise MalformedInputError(f"{where}: of unknown attributes {attributes:#x}")
    section = Section(
        type=SectionType(kind),
        address=address,
        size=size,
        offset=offset if kind in _OF_IMAGE else None,
        measured=attributes == _MR_EXTEND,
    )
    if raw_size != (size if kind in _OF_IMAGE else 0):
        raise MalformedInputError(
            f"{where}: {section.type.name} with {raw_size:#x} bytes of the image"
        )
    if offset + raw_size > len(data):
        raise MalformedInputError(
            f"{where}: outside of the image of {len(data):#x} bytes; give the whole"
            " image, such as OVMF.fd, not its CODE half"
        )
    if section.type is SectionType.BFV and not section.measured:
        raise MalformedInputError(f"{where}: code that is not measured")
    if section.type is SectionType.TD_HOB and section.measured:
        raise MalformedInputError(
            f"{where}: it measures what the hypervisor tells of the machine, which no"
            " image says"
        )
    return section


def _require_layout(sections: Sequence[Section]) -> None:
    total = sum(section.size for section in sections)
    if total > MAX_SECTION_BYTES:
        raise MalformedInputError(
            f"firmware: TDX sections of {total} bytes, want at most {MAX_SECTION_BYTES}"
        )
    in_order = sorted(sections, key=lambda section: section.address)
    for before, after in pairwise(in_order):
        if before.end > after.address:
            raise MalformedInputError(
                f"firmware: TDX sections overlap at {after.address:#x}"
            )
    if not any(
        section.type is SectionType.BFV
        and section.address <= RESET_VECTOR < section.end
        for section in sections
    ):
        raise MalformedInputError(
            f"firmware: no code at {RESET_VECTOR:#x}, where a TD begins"
        )
