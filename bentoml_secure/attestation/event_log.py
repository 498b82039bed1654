"""Event logs of measured boot: what was extended into which register, and why.

    TCG2    a TPM's log: registers are PCRs, here of the SHA-256 bank
    CCEL    a TD's log, from the ACPI table of that name: registers are RTMRs, SHA-384

Both are crypto-agile logs: a head of the older form that lists the hashes, then events
with one digest for each. A log is a claim: whoever holds the machine can write another.
It counts as far as replaying it gives the registers that evidence shows; the text of an
event counts only where its digest is the digest of that text.

Registers begin as zeros. PCR 0 begins with the locality that an event of the log names;
PCRs 17 to 22 are reset by a late launch, which no log shows, and are not replayed.

Source: TCG PC Client Platform Firmware Profile 1.06, chapter 10; UEFI 2.10, 38.4
(CC event log); Intel Guest-Host Communication Interface for TDX, 4.3 (CCEL).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from bentoml_secure.errors import MalformedInputError

MAX_LOG_BYTES = 16 * 1024 * 1024
MAX_EVENTS = 65_536
MAX_BANKS = 8

TPM_PCRS = 24
RTMRS = 4

_NO_ACTION = 0x03
_HEAD = struct.Struct("<II20sI")
_SPEC = struct.Struct("<16sIBBBBI")
_SPEC_SIGNATURE = b"Spec ID Event03\0"
_STARTUP_LOCALITY = b"StartupLocality\0"
_LATE_LAUNCH = range(17, 23)
_PADDING = (b"\0", b"\xff")

EVENT_TYPES: Mapping[int, str] = {
    0x00: "EV_PREBOOT_CERT",
    0x01: "EV_POST_CODE",
    0x03: "EV_NO_ACTION",
    0x04: "EV_SEPARATOR",
    0x05: "EV_ACTION",
    0x06: "EV_EVENT_TAG",
    0x07: "EV_S_CRTM_CONTENTS",
    0x08: "EV_S_CRTM_VERSION",
    0x09: "EV_CPU_MICROCODE",
    0x0A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0B: "EV_TABLE_OF_DEVICES",
    0x0C: "EV_COMPACT_HASH",
    0x0D: "EV_IPL",
    0x0E: "EV_IPL_PARTITION_DATA",
    0x0F: "EV_NONHOST_CODE",
    0x10: "EV_NONHOST_CONFIG",
    0x11: "EV_NONHOST_INFO",
    0x12: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x13: "EV_POST_CODE2",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x8000000D: "EV_EFI_GPT_EVENT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}


class LogKind(StrEnum):
    """Whose log: which registers it is about, and their hash."""

    TPM = "tpm"
    TDX = "tdx"

    @property
    def hash_name(self) -> str:
        """Hash of the registers, as ``hashlib`` calls it."""
        return "sha256" if self is LogKind.TPM else "sha384"

    @property
    def algorithm(self) -> int:
        """The same as TCG numbers it."""
        return 0x000B if self is LogKind.TPM else 0x000C


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of a log.

    Attributes:
        register: PCR, or RTMR; -1 for a TD's events that are in no RTMR.
        type: Number of its type; see ``EVENT_TYPES``.
        digest: What the register was extended with, in its hash.
        data: What the log says of it.
    """

    register: int
    type: int
    digest: bytes
    data: bytes

    @property
    def type_name(self) -> str:
        """Name of its type, or the number in hex."""
        return EVENT_TYPES.get(self.type, f"{self.type:#x}")

    @property
    def extends(self) -> bool:
        """Whether a register changed by it."""
        return self.type != _NO_ACTION and self.register >= 0

    @property
    def data_is_digested(self) -> bool:
        """Whether its digest is that of its data, so that the data can be believed."""
        name = "sha256" if len(self.digest) == 32 else "sha384"
        return hashlib.new(name, self.data).digest() == self.digest


def parse_event_log(data: bytes, kind: LogKind) -> tuple[Event, ...]:
    """Parse a log; zeros or ones may pad its end.

    Args:
        data: From outside: ``/sys/kernel/security/tpm0/binary_bios_measurements``, or
            ``/sys/firmware/acpi/tables/data/CCEL``.
        kind: Whose log it is.

    Raises:
        MalformedInputError: Too long, cut short, of the older form, without digests of
            the register's hash, about a register that there is not.
    """
    if len(data) > MAX_LOG_BYTES:
        raise MalformedInputError(
            f"event log: got {len(data)} bytes, want at most {MAX_LOG_BYTES}"
        )
    reader = _Reader(data)
    sizes = _parse_head(reader)
    if sizes.get(kind.algorithm) != hashlib.new(kind.hash_name).digest_size:
        raise MalformedInputError(
            f"event log: it has no {kind.hash_name} digests, which {kind.upper()} needs"
        )
    events: list[Event] = []
    while not reader.at_padding():
        if len(events) == MAX_EVENTS:
            raise MalformedInputError(f"event log: more than {MAX_EVENTS} events")
        events.append(_parse_event(reader, sizes, kind))
    return tuple(events)


def replay(events: tuple[Event, ...], kind: LogKind) -> dict[int, bytes]:
    """Return the registers that a log's events give, by index, ascending.

    Registers without an event are left out: nothing is known of them.

    Raises:
        MalformedInputError: Events of a late launch, which cannot be replayed.
    """
    registers: dict[int, bytes] = {}
    size = hashlib.new(kind.hash_name).digest_size
    locality = _startup_locality(events) if kind is LogKind.TPM else 0
    for event in events:
        if not event.extends:
            continue
        if kind is LogKind.TPM and event.register in _LATE_LAUNCH:
            raise MalformedInputError(
                f"event log: PCR {event.register} is of a late launch, which a log"
                " does not show; it cannot be replayed"
            )
        start = bytes(size)
        if event.register == 0:
            start = bytes(size - 1) + bytes([locality])
        before = registers.get(event.register, start)
        extended = hashlib.new(kind.hash_name, before + event.digest)
        registers[event.register] = extended.digest()
    return dict(sorted(registers.items()))


class _Reader:
    """Reads integers and bytes in order and never beyond their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        # Once, not for each event: where nothing but zeros, or ones, is left.
        self._end = min(len(data.rstrip(byte)) for byte in _PADDING)

    def take(self, length: int, what: str) -> bytes:
        left = len(self._data) - self._at
        if length > left:
            raise MalformedInputError(
                f"event log: {what} has {length} bytes, {left} are left"
            )
        self._at += length
        return self._data[self._at - length : self._at]

    def integer(self, length: int, what: str) -> int:
        return int.from_bytes(self.take(length, what), "little")

    def at_padding(self) -> bool:
        """Return whether nothing is left, or nothing but one padding byte repeated."""
        return self._at >= self._end


def _parse_head(reader: _Reader) -> dict[int, int]:
    """Return the sizes of digests by algorithm that the log's first event lists."""
    register, kind, _, size = _HEAD.unpack(reader.take(_HEAD.size, "head"))
    if register != 0 or kind != _NO_ACTION:
        raise MalformedInputError(
            "event log: it does not begin with its specification; logs of the older"
            " form, with SHA-1 alone, are not read"
        )
    inner = _Reader(reader.take(size, "specification"))
    signature, *_, count = _SPEC.unpack(inner.take(_SPEC.size, "specification"))
    if signature != _SPEC_SIGNATURE:
        raise MalformedInputError(
            f"event log: specification {signature!r}, want {_SPEC_SIGNATURE!r}"
        )
    if not 1 <= count <= MAX_BANKS:
        raise MalformedInputError(
            f"event log: digests of {count} hashes, want 1 to {MAX_BANKS}"
        )
    sizes = {}
    for _ in range(count):
        algorithm = inner.integer(2, "hash")
        sizes[algorithm] = inner.integer(2, "size of a digest")
    if len(sizes) != count:
        raise MalformedInputError("event log: a hash is listed twice")
    return sizes


def _parse_event(reader: _Reader, sizes: Mapping[int, int], kind: LogKind) -> Event:
    index = reader.integer(4, "register")
    event_type = reader.integer(4, "event type")
    digests = _parse_digests(reader, sizes)
    data = reader.take(reader.integer(4, "size of an event"), "event")
    if kind.algorithm not in digests:
        raise MalformedInputError(f"event log: an event without {kind.hash_name}")
    # A TD's register 0 is MRTD, which is extended before there is a log.
    register = index if kind is LogKind.TPM else index - 1
    if index >= (TPM_PCRS if kind is LogKind.TPM else RTMRS + 1):
        raise MalformedInputError(f"event log: register {index}, which there is not")
    return Event(
        register=register, type=event_type, digest=digests[kind.algorithm], data=data
    )


def _parse_digests(reader: _Reader, sizes: Mapping[int, int]) -> dict[int, bytes]:
    count = reader.integer(4, "number of digests")
    if count > len(sizes):
        raise MalformedInputError(
            f"event log: an event with {count} digests, want at most {len(sizes)}"
        )
    digests: dict[int, bytes] = {}
    for _ in range(count):
        algorithm = reader.integer(2, "hash")
        if algorithm not in sizes or algorithm in digests:
            raise MalformedInputError(
                f"event log: digest by hash {algorithm:#x}, which is not listed, or"
                " stands there twice"
            )
        digests[algorithm] = reader.take(sizes[algorithm], "digest")
    return digests


def _startup_locality(events: tuple[Event, ...]) -> int:
    named = [
        event.data[len(_STARTUP_LOCALITY) :]
        for event in events
        if event.type == _NO_ACTION and event.data.startswith(_STARTUP_LOCALITY)
    ]
    if not named:
        return 0
    if len(named) > 1 or len(named[0]) != 1 or named[0][0] > 4:
        raise MalformedInputError("event log: want one start-up locality of 0 to 4")
    return named[0][0]
