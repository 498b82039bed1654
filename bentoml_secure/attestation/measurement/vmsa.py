"""The save area of a virtual processor (VMSA) as QEMU and KVM set it at the start.

Its page is measured, so every register counts, reserved ones as zeros. The first
processor begins at the reset vector, the others where the firmware says.

Source: AMD 24593 (APM volume 2), table B-4; QEMU, target/i386/cpu.c (reset) and sev.c;
Linux, arch/x86/kvm/svm/svm.c (init_vmcb).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

RESET_VECTOR = 0xFFFFFFF0
SNP_ACTIVE = 0x1
"""SEV_FEATURES bit 0: always set for SEV-SNP."""

_SEGMENT = struct.Struct("<HHIQ")
_PAGE_BYTES = 4096

_DATA = 0x93
_SEGMENTS: Mapping[int, tuple[int, int]] = {
    # Offset: selector, attributes. All have a limit of 0xffff and, but for CS, base 0.
    0x00: (0, _DATA),  # ES
    0x20: (0, _DATA),  # SS
    0x30: (0, _DATA),  # DS
    0x40: (0, _DATA),  # FS
    0x50: (0, _DATA),  # GS
    0x60: (0, 0),  # GDTR
    0x70: (0, 0x82),  # LDTR
    0x80: (0, 0),  # IDTR
    0x90: (0, 0x8B),  # TR
}
_CS = 0x10
_REGISTERS: Mapping[int, tuple[str, int]] = {
    0x0D0: ("<Q", 0x1000),  # EFER, SVME
    0x148: ("<Q", 0x40),  # CR4, MCE
    0x158: ("<Q", 0x10),  # CR0, ET
    0x160: ("<Q", 0x400),  # DR7
    0x168: ("<Q", 0xFFFF0FF0),  # DR6
    0x170: ("<Q", 0x2),  # RFLAGS
    0x268: ("<Q", 0x0007040600070406),  # PAT
    0x3E8: ("<Q", 0x1),  # XCR0
    0x408: ("<I", 0x1F80),  # MXCSR
    0x410: ("<H", 0x37F),  # x87 control word
}
_RIP, _RDX, _SEV_FEATURES = 0x178, 0x310, 0x3B0


def _signature(family: int, model: int, stepping: int) -> int:
    """Return CPUID Fn0000_0001_EAX of a processor of family 0Fh or later."""
    return (
        (family - 0xF) << 20
        | model >> 4 << 16
        | 0xF << 8
        | (model & 0xF) << 4
        | stepping
    )


_NAPLES = _signature(0x17, 0x01, 2)
_ROME = _signature(0x17, 0x31, 0)
_MILAN = _signature(0x19, 0x01, 1)
_GENOA = _signature(0x19, 0x11, 0)
_TURIN = _signature(0x1A, 0x00, 0)

CPU_SIGNATURES: Mapping[str, int] = {
    "EPYC": _NAPLES,
    "EPYC-v1": _NAPLES,
    "EPYC-v2": _NAPLES,
    "EPYC-v3": _NAPLES,
    "EPYC-v4": _NAPLES,
    "EPYC-IBPB": _NAPLES,
    "EPYC-Rome": _ROME,
    "EPYC-Rome-v1": _ROME,
    "EPYC-Rome-v2": _ROME,
    "EPYC-Rome-v3": _ROME,
    "EPYC-Milan": _MILAN,
    "EPYC-Milan-v1": _MILAN,
    "EPYC-Milan-v2": _MILAN,
    "EPYC-Genoa": _GENOA,
    "EPYC-Genoa-v1": _GENOA,
    "EPYC-Turin": _TURIN,
}
"""By the name that QEMU takes as ``-cpu``."""


def make_vmsa(address: int, *, cpu_signature: int, features: int) -> bytes:
    """Return the page of a processor that begins at an address.

    Args:
        address: Of its first instruction, below 4 GiB.
        cpu_signature: CPUID Fn0000_0001_EAX, which it finds in RDX.
        features: SEV_FEATURES.
    """
    page = bytearray(_PAGE_BYTES)
    for offset, (selector, attributes) in _SEGMENTS.items():
        _SEGMENT.pack_into(page, offset, selector, attributes, 0xFFFF, 0)
    _SEGMENT.pack_into(page, _CS, 0xF000, 0x9B, 0xFFFF, address & 0xFFFF0000)
    for offset, (form, value) in _REGISTERS.items():
        struct.pack_into(form, page, offset, value)
    struct.pack_into("<Q", page, _RIP, address & 0xFFFF)
    struct.pack_into("<Q", page, _RDX, cpu_signature)
    struct.pack_into("<Q", page, _SEV_FEATURES, features)
    return bytes(page)
