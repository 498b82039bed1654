"""The launch digest of a SEV-SNP guest under QEMU: the ``measurement`` of its reports.

It begins as zeros. Each page that the hypervisor gives the guest extends it with what
the page holds, what sort of page it is and where it is: the firmware's pages, those
that its metadata names, and the save area of each processor. Kernel, initrd and command
line count where the firmware takes their hashes (QEMU's ``kernel-hashes=on``).

What else the hypervisor shows the guest, such as ACPI tables and disks, is not in it.

Source: AMD 56860 (SEV-SNP firmware ABI), 8.17.2 (PAGE_INFO); QEMU, target/i386/sev.c.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from dataclasses import dataclass
from enum import IntEnum

from bentoml_secure.attestation.measurement.firmware_table import PAGE_BYTES
from bentoml_secure.attestation.measurement.ovmf import Firmware, Section, SectionType
from bentoml_secure.attestation.measurement.vmsa import RESET_VECTOR, make_vmsa
from bentoml_secure.errors import MalformedInputError

DIGEST_BYTES = 48

_PAGE_INFO = struct.Struct("<48s48sHBBBBBBQ")
_ZEROS = bytes(DIGEST_BYTES)
_VMSA_ADDRESS = 0xFFFFFFFFF000
"""Of all ones, what a physical address of 48 bits can hold, cut to a page."""

_HASHES = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
_COMMAND_LINE = uuid.UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
_INITRD = uuid.UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
_KERNEL = uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b")
_HASHES_HEAD = struct.Struct("<16sH")
_HASHES_ENTRY = struct.Struct("<16sH32s")
_HASHES_ALIGNMENT = 16


class _PageType(IntEnum):
    NORMAL = 1
    VMSA = 2
    ZERO = 3
    SECRETS = 5
    CPUID = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectBoot:
    """What QEMU boots without a boot loader; SHA-256 of the files.

    Attributes:
        kernel: Of the kernel's file.
        initrd: Of the initrd's; of nothing without one.
        command_line: As given to QEMU, without its final zero.
    """

    kernel: bytes
    initrd: bytes = hashlib.sha256(b"").digest()
    command_line: str = ""


def launch_digest(
    firmware: Firmware,
    *,
    processors: int,
    cpu_signature: int,
    features: int,
    boot: DirectBoot | None = None,
    start: bytes | None = None,
) -> bytes:
    """Return the launch digest of a guest.

    Args:
        firmware: Its OVMF.
        processors: How many virtual ones, at least 1.
        cpu_signature: Of their type; see ``vmsa.CPU_SIGNATURES``.
        features: SEV_FEATURES; the host's kernel decides some of its bits.
        boot: What is booted directly, or None.
        start: What ``firmware_digest`` gives for the firmware's own pages, where that
            is known from elsewhere.

    Raises:
        MalformedInputError: A firmware that does not fit: it takes no hashes for a
            direct boot, or no second processor.
    """
    digest = _Running(firmware_digest(firmware) if start is None else start)
    if boot and not any(
        section.type is SectionType.KERNEL_HASHES for section in firmware.sections
    ):
        raise MalformedInputError(
            "firmware: it takes no hashes of a kernel, so that a direct boot is not in"
            " the launch digest"
        )
    for section in firmware.sections:
        _prepare(digest, section, firmware, boot)
    for index in range(processors):
        address = RESET_VECTOR if index == 0 else _reset_address(firmware)
        page = make_vmsa(address, cpu_signature=cpu_signature, features=features)
        digest.extend(_PageType.VMSA, _VMSA_ADDRESS, page)
    return digest.value


def firmware_digest(firmware: Firmware) -> bytes:
    """Return the launch digest after the firmware's own pages."""
    digest = _Running(_ZEROS)
    for offset in range(0, len(firmware.data), PAGE_BYTES):
        page = firmware.data[offset : offset + PAGE_BYTES]
        digest.extend(_PageType.NORMAL, firmware.address + offset, page)
    return digest.value


class _Running:
    """A launch digest on its way."""

    def __init__(self, start: bytes) -> None:
        self.value = start

    def extend(self, kind: _PageType, address: int, page: bytes | None) -> None:
        """Extend it with one page, or with one whose content is not measured."""
        content = _ZEROS if page is None else hashlib.sha384(page).digest()
        # Then: not an image migration page, no permissions for VMPLs 1 to 3.
        info = _PAGE_INFO.pack(
            self.value, content, _PAGE_INFO.size, kind, 0, 0, 0, 0, 0, address
        )
        self.value = hashlib.sha384(info).digest()


def _prepare(
    digest: _Running, section: Section, firmware: Firmware, boot: DirectBoot | None
) -> None:
    if section.type is SectionType.KERNEL_HASHES and boot is not None:
        page = _hashes_page(firmware, section, boot)
        digest.extend(_PageType.NORMAL, section.address, page)
        return
    kinds = {
        SectionType.SECRETS: _PageType.SECRETS,
        SectionType.CPUID: _PageType.CPUID,
    }
    kind = kinds.get(section.type, _PageType.ZERO)
    if kind is not _PageType.ZERO and section.size != PAGE_BYTES:
        raise MalformedInputError(
            f"firmware: {section.type.name} of {section.size} bytes, want one page"
        )
    for offset in range(0, section.size, PAGE_BYTES):
        digest.extend(kind, section.address + offset, None)


def _hashes_page(firmware: Firmware, section: Section, boot: DirectBoot) -> bytes:
    table = _hashes_table(boot)
    address = firmware.hashes_address
    if (
        address is None
        or section.size != PAGE_BYTES
        or not 0 <= address - section.address <= PAGE_BYTES - len(table)
    ):
        raise MalformedInputError(
            "firmware: its table of hashes is not within its page of hashes"
        )
    return (bytes(address - section.address) + table).ljust(PAGE_BYTES, b"\0")


def _hashes_table(boot: DirectBoot) -> bytes:
    line = hashlib.sha256(boot.command_line.encode() + b"\0").digest()
    entries = b"".join(
        _HASHES_ENTRY.pack(name.bytes_le, _HASHES_ENTRY.size, value)
        for name, value in (
            (_COMMAND_LINE, line),
            (_INITRD, boot.initrd),
            (_KERNEL, boot.kernel),
        )
    )
    size = _HASHES_HEAD.size + len(entries)
    table = _HASHES_HEAD.pack(_HASHES.bytes_le, size) + entries
    return table.ljust(-(-size // _HASHES_ALIGNMENT) * _HASHES_ALIGNMENT, b"\0")


def _reset_address(firmware: Firmware) -> int:
    if not firmware.reset_address:
        raise MalformedInputError(
            "firmware: it does not say where further processors begin"
        )
    return firmware.reset_address
