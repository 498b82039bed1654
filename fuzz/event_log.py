"""Event logs of TPMs and TDs, and replaying them."""

from __future__ import annotations

import struct
from contextlib import suppress

from bentoml_secure.attestation.event_log import LogKind, parse_event_log, replay
from bentoml_secure.errors import SecureError

_SEPARATOR = 4


def seeds() -> list[bytes]:
    """Return a log of each kind, of one event."""
    return [_log(0x0B, 32), _log(0x0C, 48)]


def one(data: bytes) -> None:
    """Read bytes as a log of each kind; what is read can be replayed, or is refused."""
    for kind in LogKind:
        with suppress(SecureError):
            replay(parse_event_log(data, kind), kind)


def _log(algorithm: int, size: int) -> bytes:
    spec = struct.pack("<16sIBBBBI", b"Spec ID Event03\0", 0, 0, 2, 105, 2, 1)
    spec += struct.pack("<HHB", algorithm, size, 0)
    head = struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec
    event = struct.pack("<IIIH", 1, _SEPARATOR, 1, algorithm) + bytes(size)
    return head + event + struct.pack("<I", 4) + bytes(4)
