"""The one error tree of the package.

    SecureError                     .remedy: what to do next
    |- ConfigurationError           the operator's or caller's mistake
    |  |- UnknownKindError          no such kind in a registry
    |  `- MissingDependencyError    an optional package is not installed
    |- MalformedInputError          bytes that do not parse
    |- VerificationError            not authentic
    |  |- AttestationError
    |  |  `- CheckFailedError      a named check; .findings has the one
    |  |- StatementError
    |  |- ProofError              .findings
    |  `- ReceiptError              .findings
    |- PolicyRejected               authentic, not acceptable; .findings
    |- QuorumNotReached             .tally: why no answer was agreed
    `- UnavailableError             device or network; may be tried again
       `- MissingEndorsementError   a certificate or collateral that was not given

A message names the thing, what was got, what was wanted; ``remedy`` says what to
do about it. Bytes from outside never raise anything but a ``SecureError``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One check that failed: which field, what stood there, what was wanted."""

    field: str
    got: str
    want: str

    def __str__(self) -> str:
        return f"{self.field}: got {self.got}, want {self.want}"

    def to_json(self) -> dict[str, str]:
        """Return the finding as the command line prints it."""
        return {"field": self.field, "got": self.got, "want": self.want}


class SecureError(Exception):
    """Base of every error that this package raises on purpose."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} {self.remedy}" if self.remedy else message


class ConfigurationError(SecureError):
    """A setting, file or call that the operator or caller must change."""


class UnknownKindError(ConfigurationError):
    """A kind that no registry knows."""


class MissingDependencyError(ConfigurationError):
    """An optional package that this call needs is not installed."""


class MalformedInputError(SecureError):
    """Bytes that do not parse, or break a limit before they are parsed."""


class VerificationError(SecureError):
    """Something is not authentic."""


class AttestationError(VerificationError):
    """Evidence that does not verify."""


class CheckFailedError(AttestationError):
    """A named check of a verifier that does not hold."""

    def __init__(self, finding: Finding, *, remedy: str = "") -> None:
        super().__init__(str(finding), remedy=remedy)
        self.findings = (finding,)


class StatementError(VerificationError):
    """A runner's statement that does not verify or says something else."""


def _listed(headline: str, findings: Sequence[Finding]) -> str:
    return "; ".join([headline, *map(str, findings)])


class ProofError(VerificationError):
    """A proof that does not verify; ``findings`` lists the reasons, if named."""

    def __init__(self, headline: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(_listed(headline, findings))
        self.findings = tuple(findings)


class ReceiptError(VerificationError):
    """A receipt or bundle that does not verify; ``findings`` lists every reason."""

    def __init__(self, headline: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(_listed(headline, findings))
        self.findings = tuple(findings)


class PolicyRejected(SecureError):  # noqa: N818 - an outcome, not a failure
    """Authentic, but the policy does not accept it; ``findings`` says why."""

    def __init__(self, headline: str, findings: Sequence[Finding]) -> None:
        super().__init__(_listed(headline, findings))
        self.findings = tuple(findings)


_SEE_TALLY = "See the tally for the replicas that failed or disagreed."


class QuorumNotReached(SecureError):  # noqa: N818 - an outcome, not a failure
    """Too few replicas agreed; ``tally`` says who answered what."""

    def __init__(self, message: str, tally: Mapping[str, Any]) -> None:
        # A service's words may hold the remedy already.
        said = message.removesuffix(_SEE_TALLY).rstrip()
        super().__init__(said, remedy=_SEE_TALLY)
        self.tally = dict(tally)


class UnavailableError(SecureError):
    """A device, service or peer that did not answer; may be tried again."""


class MissingEndorsementError(UnavailableError):
    """Evidence cannot be judged without an endorsement that was not given."""
