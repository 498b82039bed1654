"""The roles of RFC 9334 as protocols: attester, verifier, and a kind's policy.

A kind of evidence is one class under ``tees`` that fills ``Tee``. It owns the parsing
of its evidence and of its policy table, so that nothing else knows its fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from bentoml_secure.attestation.evidence import (
    Endorsements,
    Evidence,
    UncheckedField,
    VerifiedClaims,
)
from bentoml_secure.errors import Finding

REPORT_DATA_BYTES = 64


class Attester(Protocol):
    """A device that signs evidence about the machine it is in."""

    @property
    def kind(self) -> str:
        """Kind of the evidence that it makes."""
        ...

    @property
    def endorsements(self) -> Endorsements:
        """Certificates at hand for what ``attest`` made last; may be none.

        They are a convenience: whoever verifies judges them like any others.
        """
        ...

    def attest(self, report_data: bytes) -> Evidence:
        """Return fresh evidence that covers ``report_data``; blocks on the device.

        Args:
            report_data: Exactly 64 bytes, see ``key_document.report_data``; 32 for a
                GPU.

        Raises:
            UnavailableError: The device does not answer.
        """
        ...


class Verifier(Protocol):
    """A pure function from evidence to claims."""

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what the evidence says, if every signature under it holds.

        Args:
            evidence: From outside.
            endorsements: From outside, any order, perhaps those of other kinds.
            now: Judges validity dates; with a time zone.

        Raises:
            MalformedInputError: Bytes that do not parse.
            AttestationError: Bytes that are not authentic, or out of date.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of comparing claims with reference values."""

    findings: tuple[Finding, ...] = ()
    unchecked: tuple[UncheckedField, ...] = ()

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            findings=self.findings + other.findings,
            unchecked=self.unchecked + other.unchecked,
        )


class KindPolicy(Protocol):
    """The reference values of one kind: its table in an appraisal policy."""

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between the claims of this kind and the policy."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the table; equal policies give equal documents."""
        ...


class Tee(Verifier, Protocol):
    """A kind of evidence: what the table of ``tees`` holds, made without arguments."""

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return what the bytes say, JSON-able, with nothing verified: for people.

        Raises:
            MalformedInputError: Bytes that do not parse.
        """
        ...

    def parse_policy(self, table: Mapping[str, Any]) -> KindPolicy:
        """Return the reference values that a policy's table of this kind spells.

        Raises:
            ConfigurationError: A key unknown, missing or of another type; an empty
                list.
        """
        ...
