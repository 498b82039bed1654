"""MRTD: what the TDX module measures while the hypervisor builds a trust domain (TD).

One SHA-384 over blocks, in the order of the hypervisor's calls. It covers the firmware
alone, and nothing of the host: not how many processors the TD has, nor its memory.

    TDH.MEM.PAGE.ADD    a page is given to the TD: the call's name, the page's address
    TDH.MR.EXTEND       256 bytes of one are measured: name, address, these bytes

A block is 128 bytes, its name at the start, an address at 16, little-endian, and zeros.

Source: Intel TDX Module ABI Specification 348551, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND.
"""

from __future__ import annotations

import hashlib
import struct
from enum import StrEnum

from bentoml_secure.attestation.measurement.firmware_table import PAGE_BYTES
from bentoml_secure.attestation.measurement.tdvf import Section, Tdvf

_BLOCK = struct.Struct("<16sQ104x")
_ADD = b"MEM.PAGE.ADD"
_EXTEND = b"MR.EXTEND"
_CHUNK_BYTES = 256


class PageOrder(StrEnum):
    """In which order a hypervisor gives pages and has them measured.

    The values that follow from the same image differ, and each stands for all of it.

    Attributes:
        PAGE: Each page is measured when it is given: KVM as it is in Linux since 6.16.
        SECTION: All pages of a section are given, then they are measured: KVM as it was
            before, with the patches of Canonical's TDX releases for Ubuntu 24.04.
    """

    PAGE = "page"
    SECTION = "section"


def mrtd(firmware: Tdvf, *, order: PageOrder) -> bytes:
    """Return the MRTD of a TD that QEMU and KVM build from a firmware."""
    digest = hashlib.sha384()
    for section in firmware.sections:
        pages = range(0, section.size, PAGE_BYTES)
        for at in pages:
            digest.update(_BLOCK.pack(_ADD, section.address + at))
            if section.measured and order is PageOrder.PAGE:
                digest.update(_content(firmware, section, at))
        if section.measured and order is PageOrder.SECTION:
            for at in pages:
                digest.update(_content(firmware, section, at))
    return digest.digest()


def _content(firmware: Tdvf, section: Section, at: int) -> bytes:
    """Return the blocks by which what a page holds is measured."""
    address, page = section.address + at, firmware.page(section, at)
    return b"".join(
        _BLOCK.pack(_EXTEND, address + offset) + page[offset : offset + _CHUNK_BYTES]
        for offset in range(0, PAGE_BYTES, _CHUNK_BYTES)
    )
