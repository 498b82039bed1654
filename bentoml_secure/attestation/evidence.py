"""Nouns of attestation: evidence as sent, claims as verified, the result.

Only verifiers (``bentoml_secure.attestation.tees``) build ``VerifiedClaims``; only
``appraise`` builds ``AttestationResult``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bentoml_secure.digest import Digest, digest_json, require_fields
from bentoml_secure.errors import Finding, MalformedInputError
from bentoml_secure.signing import decode_base64

MAX_EVIDENCE_BYTES = 256 * 1024
"""A list of eight GPU reports with their certificates is about 100 KiB."""

MAX_ENDORSEMENTS = 64
MAX_ENDORSEMENT_BYTES = 1024 * 1024

REPORT_DATA_LENGTHS = (32, 64)
"""Bytes that a kind's field for the verifier's challenge can hold."""

GPU_KINDS = frozenset({"nvidia-gpu"})
"""Kinds that speak of a device beside a CPU and of no process: never alone."""

KIND_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")

Endorsements = tuple[bytes, ...]
"""Collateral and certificates of a vendor, in any order."""


def format_seconds(time: datetime) -> str:
    """Return a time as RFC 3339 in UTC, cut to whole seconds: ``2026-01-31T23:59:59Z``.

    Args:
        time: With a time zone.
    """
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def parse_seconds(text: object, *, what: str) -> datetime:
    """Return the time that RFC 3339 text in UTC and whole seconds says.

    Raises:
        MalformedInputError: Any other form, fractions and offsets included, so that a
            time has one spelling.
    """
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        raise MalformedInputError(
            f"{what}: got {text!r:.60}, want YYYY-MM-DDThh:mm:ssZ"
        )
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise MalformedInputError(f"{what}: {text} is no time: {error}") from error


def parse_kind(text: object, *, what: str) -> str:
    """Return ``text`` as the name of a kind of evidence.

    Raises:
        MalformedInputError: Not 1 to 32 of a-z, 0-9 and inner hyphens.
    """
    if not isinstance(text, str) or not KIND_PATTERN.fullmatch(text):
        raise MalformedInputError(
            f"{what}: got {text!r:.60}, want a kind such as 'sev-snp'"
        )
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an attester sends: a kind, and the bytes that its hardware signed.

    Attributes:
        kind: What the sender says it is; which verifier to ask, never a verdict.
        blob: The vendor's bytes, 1 to ``MAX_EVIDENCE_BYTES``.

    Raises:
        MalformedInputError: No kind's name, or a blob out of bounds.
    """

    kind: str
    blob: bytes

    def __post_init__(self) -> None:
        parse_kind(self.kind, what="evidence kind")
        if not 0 < len(self.blob) <= MAX_EVIDENCE_BYTES:
            raise MalformedInputError(
                f"{self.kind} evidence: got {len(self.blob)} bytes,"
                f" want 1 to {MAX_EVIDENCE_BYTES}"
            )

    @property
    def digest(self) -> Digest:
        """Digest of kind and bytes, as receipts name the evidence."""
        return digest_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the evidence as it travels; the bytes as base64."""
        return {"kind": self.kind, "blob": base64.b64encode(self.blob).decode()}

    @classmethod
    def from_json(cls, document: object) -> Evidence:
        """Parse what ``to_json`` wrote.

        Raises:
            MalformedInputError: A field missing, unknown, of another type or too long.
        """
        fields = require_fields(document, frozenset({"kind", "blob"}), what="evidence")
        blob = decode_base64(
            fields["blob"], what="evidence blob", max_bytes=MAX_EVIDENCE_BYTES
        )
        return cls(kind=parse_kind(fields["kind"], what="evidence kind"), blob=blob)


def endorsements_to_json(endorsements: Endorsements) -> list[str]:
    """Return endorsements as they travel: a list of base64."""
    return [base64.b64encode(endorsement).decode() for endorsement in endorsements]


def endorsements_from_json(document: object) -> Endorsements:
    """Parse what ``endorsements_to_json`` wrote.

    Raises:
        MalformedInputError: Not a list of base64, too many, one too long.
    """
    if not isinstance(document, list) or len(document) > MAX_ENDORSEMENTS:
        raise MalformedInputError(
            f"endorsements: want a list of at most {MAX_ENDORSEMENTS}"
        )
    return tuple(
        decode_base64(
            item, what=f"endorsement {index}", max_bytes=MAX_ENDORSEMENT_BYTES
        )
        for index, item in enumerate(document)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRecord:
    """One party's evidence with what it takes to verify it later.

    Attributes:
        evidence: As the party sent it.
        endorsements: The vendor's certificates and collateral; not part of the digest,
            since a verifier may bring fresher ones.
        gpu: Evidence of the GPU beside the CPU, which the CPU's evidence covers.
        digest: Of the evidence's kind and bytes.
    """

    evidence: Evidence
    endorsements: tuple[bytes, ...] = ()
    gpu: Evidence | None = None
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", self.evidence.digest)

    def to_json(self) -> dict[str, Any]:
        """Return the record as it travels and stands in a bundle."""
        document: dict[str, Any] = {
            "evidence": self.evidence.to_json(),
            "endorsements": endorsements_to_json(self.endorsements),
        }
        if self.gpu is not None:
            document["gpu"] = self.gpu.to_json()
        return document

    @classmethod
    def from_json(cls, document: object) -> EvidenceRecord:
        """Parse what ``to_json`` wrote.

        Raises:
            MalformedInputError: A field missing, unknown, of another form or too long.
        """
        gpu = isinstance(document, dict) and "gpu" in document
        wanted = {"evidence", "endorsements"} | ({"gpu"} if gpu else set())
        got = require_fields(document, frozenset(wanted), what="evidence record")
        return cls(
            evidence=Evidence.from_json(got["evidence"]),
            endorsements=endorsements_from_json(got["endorsements"]),
            gpu=Evidence.from_json(got["gpu"]) if gpu else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedClaims:
    """What signed bytes say, once the signatures hold. Authentic, not yet judged.

    Attributes:
        kind: Decided by the root that verified, not by what the sender said.
        report_data: The kind's field for the challenge, whole: 32 or 64 bytes. None
            where the evidence covers no challenge of these lengths; it equals nothing.
        claims: Values that a policy of this kind compares, JSON-able.
        platform_id: The machine; two replicas with one id are one voice.
        vendor: Who stands behind the root.
        root: ``sha256:`` of the DER of the root certificate that verified.
        issued_at: When the evidence was signed, where the kind signs a time.
        expires_at: End of the shortest validity in the chain, where it has one.
        simulated: No hardware stands behind this.
        any_length: The attester chose the length of ``report_data``: it has to equal
            all of what is wanted, where a kind's short field equals the first of it.
    """

    kind: str
    report_data: bytes | None
    claims: Mapping[str, Any]
    platform_id: str
    vendor: str
    root: Digest
    issued_at: datetime | None
    expires_at: datetime | None
    simulated: bool
    any_length: bool = False

    def __post_init__(self) -> None:
        # A comparison with fewer bytes would be weaker, one with none would pass.
        if (
            self.report_data is not None
            and len(self.report_data) not in REPORT_DATA_LENGTHS
        ):
            raise MalformedInputError(
                f"{self.kind} report data: got {len(self.report_data)} bytes,"
                " want 32 or 64"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the claims as the command line prints them."""
        return {
            **self.claims,
            "kind": self.kind,
            "simulated": self.simulated,
            "vendor": self.vendor,
            "platform_id": self.platform_id,
            "root": self.root,
            "report_data": self.report_data.hex() if self.report_data else None,
            "issued_at": format_seconds(self.issued_at) if self.issued_at else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class UncheckedField:
    """A check that the policy leaves out, and why."""

    field: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """Return the field as the command line prints it."""
        return {"field": self.field, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """Claims that a policy accepted. A rejection is a ``PolicyRejected`` instead.

    Attributes:
        claims: What was accepted.
        gpu: What was accepted of the GPU beside the CPU, where there is one.
        unchecked: What the policy left out, with its reasons.
        verified_at: The time that the appraisal was made for.
        expires_at: No session or cache outlives this. Equal to ``verified_at`` where
            the evidence's age could not be checked.
    """

    claims: VerifiedClaims
    unchecked: tuple[UncheckedField, ...]
    verified_at: datetime
    expires_at: datetime
    gpu: VerifiedClaims | None = None

    @property
    def kind(self) -> str:
        """Kind of the evidence, as verified."""
        return self.claims.kind

    @property
    def simulated(self) -> bool:
        """Whether no hardware stands behind this, or behind its GPU."""
        gpu = self.gpu is not None and self.gpu.simulated
        return self.claims.simulated or gpu

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Nothing: an appraisal with findings has no result."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as the command line prints it."""
        gpu = {} if self.gpu is None else {"gpu": self.gpu.to_json()}
        return {
            **self.claims.to_json(),
            **gpu,
            "verdict": "accepted",
            "findings": [],
            "unchecked": [field.to_json() for field in self.unchecked],
            "verified_at": format_seconds(self.verified_at),
            "expires_at": format_seconds(self.expires_at),
        }
