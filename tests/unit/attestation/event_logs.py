"""Event logs built by the specification, for tests of what reads them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence

SHA1, SHA256, SHA384 = 0x04, 0x0B, 0x0C
NAMES = {SHA1: "sha1", SHA256: "sha256", SHA384: "sha384"}
SIZES = {SHA1: 20, SHA256: 32, SHA384: 48}

SEPARATOR, NO_ACTION, ACTION, IPL = 4, 3, 0x80000007, 0x0D


def head(
    banks: Sequence[int] = (SHA1, SHA256),
    *,
    signature: bytes = b"Spec ID Event03\0",
    register: int = 0,
    kind: int = NO_ACTION,
    sizes: Mapping[int, int] = SIZES,
) -> bytes:
    """TCG_PCClientPCREvent with a TCG_EfiSpecIDEvent."""
    spec = struct.pack("<16sIBBBBI", signature, 0, 0, 2, 105, 2, len(banks))
    spec += b"".join(struct.pack("<HH", bank, sizes[bank]) for bank in banks)
    spec += b"\0"
    return struct.pack("<II20sI", register, kind, bytes(20), len(spec)) + spec


def event(
    register: int,
    data: bytes,
    *,
    kind: int = ACTION,
    banks: Sequence[int] = (SHA1, SHA256),
    digested: bytes | None = None,
) -> bytes:
    """TCG_PCR_EVENT2, its digests those of its data or of ``digested``."""
    source = data if digested is None else digested
    out = struct.pack("<III", register, kind, len(banks))
    for bank in banks:
        digest = hashlib.new(NAMES[bank], source).digest()
        if kind == NO_ACTION:
            digest = bytes(len(digest))
        out += struct.pack("<H", bank) + digest
    return out + struct.pack("<I", len(data)) + data


def startup_locality(locality: int) -> bytes:
    data = b"StartupLocality\0" + bytes([locality])
    return event(0, data, kind=NO_ACTION)


def ccel(*events: tuple[int, bytes]) -> bytes:
    """A TD's log in its table: padded with ones to 64 KiB."""
    body = head((SHA384,)) + b"".join(
        event(register, data, banks=(SHA384,)) for register, data in events
    )
    return body.ljust(65536, b"\xff")
