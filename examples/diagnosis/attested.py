"""Who is attested how, as verified receipts say; and a broker's log, in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from bentoml_secure.receipts.verify import Verdict
from examples.diagnosis.report import boxed

SHOWN_CHARACTERS = 12
_HEADER = (
    "service",
    "role",
    "kind",
    "platform",
    "vendor",
    "root",
    "evidence",
    "hardware",
    "verified at",
    "holds for",
)

Claims = Mapping[str, Any]


def short(text: str) -> str:
    """Return the first digits of a digest, or of any long name."""
    name = text.rpartition(":")[2]
    return name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}.."


def own_name(service: str) -> str:
    """Return a replica's name without the deployment's."""
    return service.removeprefix("Diagnosis") or service


def roster(verdict: Verdict) -> str:
    """Return a table of a receipt's parties and of the evidence that was verified."""
    rows = [_HEADER, *(_row(party) for party in verdict.claims["parties"])]
    return boxed(rows)


def _row(party: Claims) -> tuple[str, ...]:
    verified, expires = (
        datetime.fromisoformat(party[name]) for name in ("verified_at", "expires_at")
    )
    return (
        own_name(party["name"]),
        party["role"],
        party["platform"],
        short(party["platform_id"]),
        party["vendor"],
        short(party["root"]),
        short(party["evidence"]),
        "simulated" if party["simulated"] else "real",
        f"{verified:%H:%M:%SZ}",
        f"{(expires - verified).total_seconds():.0f} s",
    )


def audit_table(entries: Sequence[Claims]) -> str:
    """Return a broker's log as a table.

    Args:
        entries: As ``bentoml-secure broker audit --json`` has them.
    """
    header = ("#", "at", "event", "to", "kind", "platform", "about")
    return boxed([header, *(_entry_row(entry) for entry in entries)])


def _entry_row(entry: Claims) -> tuple[str, ...]:
    details = entry["details"]
    at = datetime.fromisoformat(entry["at"])
    return (
        str(entry["sequence"]),
        f"{at:%H:%M:%SZ}",
        entry["event"],
        own_name(details.get("service", "")),
        details["kind"] if "platform_id" in details else "",
        short(details.get("platform_id", "")),
        _about(entry["event"], details),
    )


def _about(event: str, details: Claims) -> str:
    match event:
        case "revoked":
            return f"{details['kind']} {short(details['value'])}: {details['reason']}"
        case "refused":
            return ", ".join(finding["field"] for finding in details["findings"])
        case "created":
            return f"wrapping key {short(details['wrapping_key'])}"
        case _:
            return f"key {short(details['key_id'])}"
