"""The broker's log: entries, each naming the one before by its digest.

    {"sequence", "at", "event", "details", "previous"}, digest = sha256-jcs-v1

A chain that verifies up to a digest noted elsewhere holds exactly what was written
until then. Every released key carries the digest of its entry, so whoever got one can
show that the log must hold it. Without such a digest from elsewhere, who owns the
file can still cut the chain's end off, or write another chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bentoml_secure.attestation.checks import require
from bentoml_secure.digest import JSON, Digest, digest_json

BEFORE_THE_FIRST = Digest(f"{JSON}:{'0' * 64}")


class Event(StrEnum):
    """What the log tells of."""

    CREATED = "created"
    KEY_ADDED = "key-added"
    REVOKED = "revoked"
    RELEASED = "released"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One thing that happened.

    Attributes:
        sequence: From 1.
        at: RFC 3339 with milliseconds, the broker's clock.
        event: What happened.
        details: To whom and why; no secrets.
        previous: Digest of the entry before.
        digest: Of this one.
    """

    sequence: int
    at: str
    event: Event
    details: Mapping[str, Any]
    previous: Digest
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return the document that the digest is taken over."""
        return {
            "sequence": self.sequence,
            "at": self.at,
            "event": self.event.value,
            "details": dict(self.details),
            "previous": self.previous,
        }


def verify_chain(
    entries: Iterable[tuple[AuditEntry, str]], *, head: Digest | None = None
) -> Digest:
    """Verify that a log is one chain from its first entry on.

    Args:
        entries: Each with the digest that stands beside it, in order.
        head: A digest noted earlier; the chain must hold it.

    Returns:
        Digest of the last entry.

    Raises:
        CheckFailedError: An entry missing, edited, out of order or not there.
    """
    last, found = BEFORE_THE_FIRST, head is None
    for wanted, (entry, digest) in enumerate(entries, start=1):
        require("sequence", entry.sequence == wanted, got=entry.sequence, want=wanted)
        require("previous", entry.previous == last, got=entry.previous, want=last)
        require("digest", digest == entry.digest, got=digest, want=entry.digest)
        last = entry.digest
        found = found or last == head
    require("head", found, got=f"a chain that ends in {last}", want=head)
    return last
