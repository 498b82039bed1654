"""Firmware of trust domains, made by hand, and a second way to compute its MRTD."""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Sequence

FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
METADATA = "e47a6535-984a-4798-865e-4685a7bf8ec2"
PAGE = 4096
BFV, CFV, TD_HOB, TEMP_MEM = range(4)

Sections = Sequence[tuple[int, int, int, int, int, int]]
"""Offset and size in the image, address and size in the TD, type, attributes."""

SMALL: Sections = (
    (1 * PAGE, 3 * PAGE, 0xFFFFD000, 3 * PAGE, BFV, 1),
    (0 * PAGE, 1 * PAGE, 0xFFFFC000, 1 * PAGE, CFV, 0),
    (0, 0, 0x810000, 2 * PAGE, TEMP_MEM, 0),
    (0, 0, 0x809000, 2 * PAGE, TD_HOB, 0),
)
"""As edk2's OvmfPkgX64 asks for, with less of each."""


def tdvf(
    sections: Sections = SMALL,
    *,
    pages: int = 4,
    head: bytes | None = None,
    from_end: int = 2048,
    name: str = METADATA,
) -> bytes:
    """An OVMF image of nothing but its tables."""
    size = 16 + 32 * len(sections)
    metadata = head or struct.pack("<4sIII", b"TDVF", size, 1, len(sections))
    metadata += b"".join(struct.pack("<IIQQII", *section) for section in sections)
    table = struct.pack("<IH", from_end, 22) + uuid.UUID(name).bytes_le
    table += struct.pack("<H", len(table) + 18) + uuid.UUID(FOOTER).bytes_le
    image = bytearray(i * i % 253 for i in range(PAGE * pages))
    image[-2048 : -2048 + len(metadata)] = metadata
    image[-32 - len(table) : -32] = table
    return bytes(image)


class TdxModule:
    """What two calls of the module do to the measurement, as its specification says."""

    def __init__(self) -> None:
        self._memory: dict[int, bytes] = {}
        self._measured = bytearray()

    def mem_page_add(self, address: int, content: bytes) -> None:
        assert address not in self._memory, "a page is added once"
        self._memory[address] = content
        buffer = bytearray(128)
        buffer[0:12] = b"MEM.PAGE.ADD"
        buffer[16:24] = address.to_bytes(8, "little")
        self._measured += buffer

    def mr_extend(self, address: int) -> None:
        page, offset = address & ~0xFFF, address & 0xFFF
        buffer = bytearray(384)
        buffer[0:9] = b"MR.EXTEND"
        buffer[16:24] = address.to_bytes(8, "little")
        buffer[128:384] = self._memory[page][offset : offset + 256]
        self._measured += buffer

    def mr_finalize(self) -> bytes:
        return hashlib.sha384(self._measured).digest()


def build_td(image: bytes, sections: Sections, *, page_by_page: bool) -> bytes:
    """Build a TD of an image as QEMU does, and return what the module measured."""
    module = TdxModule()
    for offset, _, address, size, kind, attributes in sections:
        waiting: list[int] = []
        for at in range(0, size, PAGE):
            from_image = image[offset + at : offset + at + PAGE]
            module.mem_page_add(
                address + at, from_image if kind in (BFV, CFV) else bytes(PAGE)
            )
            if attributes & 1:
                waiting += range(address + at, address + at + PAGE, 256)
            if page_by_page:
                while waiting:
                    module.mr_extend(waiting.pop(0))
        for chunk in waiting:
            module.mr_extend(chunk)
    return module.mr_finalize()
