"""Judging whether the claims of an EAR say enough.

The claims are authentic by then (``results``). What a relying party expects is spelled
out; what it leaves out shows in the result.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bentoml_secure.attestation import ear
from bentoml_secure.attestation.appraisal import CLOCK_SKEW_SECONDS
from bentoml_secure.attestation.checks import compare
from bentoml_secure.attestation.ear import Tier
from bentoml_secure.attestation.ear_parsing import ResultClaims, ResultSubmod
from bentoml_secure.attestation.evidence import UncheckedField, format_seconds
from bentoml_secure.attestation.reference_values import Unchecked, one_of
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.errors import ConfigurationError, PolicyRejected

ANY_POLICY = Unchecked("no appraisal policy was named")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedResult:
    """What a relying party demands of a result.

    Attributes:
        issuer: ``iss``, or why any issuer with the key is accepted.
        audience: One of ``aud``, or why it is not compared.
        nonce: The ``eat_nonce``, or why the result need not be fresh.
        policies: Appraisal policies accepted, by their ids, or why any is.
        allow_warning: Whether a status of ``warning`` is enough.
        allow_simulated: Whether there need be no hardware behind the evidence.

    Raises:
        ConfigurationError: An empty text or list, which would be met by chance.
    """

    issuer: str | Unchecked
    audience: str | Unchecked
    nonce: str | Unchecked
    policies: tuple[str, ...] | Unchecked = ANY_POLICY
    allow_warning: bool = False
    allow_simulated: bool = False

    def __post_init__(self) -> None:
        for name in ("issuer", "audience", "nonce", "policies"):
            if not getattr(self, name):
                raise ConfigurationError(
                    f"expected result: {name} is empty.",
                    remedy='Name one, or give Unchecked("why").',
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedResult:
    """A result that a relying party accepts; a rejection is a ``PolicyRejected``.

    Attributes:
        claims: What it says.
        unchecked: What the relying party left out, with its reasons.
    """

    claims: ResultClaims
    unchecked: tuple[UncheckedField, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as the command line prints it."""
        claims = self.claims
        return {
            "profile": claims.profile,
            "issuer": claims.issuer,
            "audience": list(claims.audience),
            "token_id": claims.token_id,
            "issued_at": format_seconds(_time(claims.issued_at)),
            "expires_at": format_seconds(_time(claims.expires_at)),
            "status": claims.status.value,
            "simulated": claims.simulated,
            "verifier": dict(claims.verifier),
            "submods": {submod.name: submod.to_json() for submod in claims.submods},
            "unchecked": [field.to_json() for field in self.unchecked],
        }


def appraise_claims(
    claims: ResultClaims, expected: ExpectedResult, *, now: datetime
) -> AcceptedResult:
    """Judge authentic claims by what a relying party expects.

    Args:
        claims: Read from a token whose signature holds.
        expected: What they have to say.
        now: The time to judge for, with a time zone.

    Raises:
        PolicyRejected: At least one demand is not met; ``findings`` lists all.
    """
    comparison = (
        _compare_names(claims, expected)
        + _compare_times(claims, now)
        + _compare_policies(claims, expected)
        + _compare_status(claims, expected)
    )
    if comparison.findings:
        raise PolicyRejected(
            "the attestation result is authentic but not acceptable",
            comparison.findings,
        )
    return AcceptedResult(claims=claims, unchecked=comparison.unchecked)


def _compare_names(claims: ResultClaims, expected: ExpectedResult) -> Comparison:
    comparison = Comparison()
    if isinstance(expected.issuer, Unchecked):
        comparison += _left_out("issuer", expected.issuer)
    else:
        got, want = claims.issuer, expected.issuer
        comparison += compare("issuer", got == want, got=got or "none", want=want)
    if isinstance(expected.audience, Unchecked):
        comparison += _left_out("audience", expected.audience)
    else:
        shown, want = ", ".join(claims.audience) or "none", expected.audience
        meant = expected.audience in claims.audience
        comparison += compare("audience", meant, got=shown, want=want)
    if isinstance(expected.nonce, Unchecked):
        return comparison + _left_out("nonce", expected.nonce)
    wanted = expected.nonce.encode()
    same = [hmac.compare_digest(nonce.encode(), wanted) for nonce in claims.nonce]
    shown = ", ".join(claims.nonce) or "none"
    return comparison + compare("nonce", any(same), got=shown, want=expected.nonce)


def _compare_times(claims: ResultClaims, now: datetime) -> Comparison:
    seconds, shown = now.timestamp(), format_seconds(now)
    soon = f"at most {CLOCK_SKEW_SECONDS} s after {shown}"
    latest = seconds + CLOCK_SKEW_SECONDS
    return (
        compare(
            "issued_at",
            claims.issued_at <= latest,
            got=format_seconds(_time(claims.issued_at)),
            want=soon,
        )
        + compare(
            "not_before",
            claims.not_before <= latest,
            got=format_seconds(_time(claims.not_before)),
            want=soon,
        )
        # No skew: a result is short-lived, and lent time is its issuer's to give.
        + compare(
            "expires_at",
            claims.expires_at > seconds,
            got=format_seconds(_time(claims.expires_at)),
            want=f"after {shown}",
        )
    )


def _compare_policies(claims: ResultClaims, expected: ExpectedResult) -> Comparison:
    if isinstance(expected.policies, Unchecked):
        return _left_out("policy", expected.policies)
    comparison = Comparison()
    for submod in claims.submods:
        # All of them: one that is not accepted may have decided.
        accepted = bool(submod.policies) and set(submod.policies) <= set(
            expected.policies
        )
        shown = f"{submod.name}: {', '.join(submod.policies) or 'none'}"
        want = one_of(expected.policies)
        comparison += compare("policy", accepted, got=shown, want=want)
    return comparison


def _compare_status(claims: ResultClaims, expected: ExpectedResult) -> Comparison:
    names = [submod.name for submod in claims.submods]
    comparison = compare("cpu", ear.CPU in names, got=", ".join(names), want=ear.CPU)
    for submod in claims.submods:
        name = submod.name
        comparison += compare(
            "simulated",
            expected.allow_simulated or not submod.simulated,
            got=f"{name}: no hardware",
            want="hardware, or leave for there being none",
        )
        # An issuer that says better than it means is not believed at all. To say
        # nothing is always its right, and is never enough.
        meant = _tier_said(submod.vector)
        silent = Tier.NONE in (meant, submod.status)
        consistent = silent or not ear.is_better(submod.status, meant)
        shown = f"{name}: {submod.status}"
        want = f"{meant} or worse"
        comparison += compare("vector", consistent, got=shown, want=want)
        comparison += compare(
            "status",
            _is_enough(_status(submod, expected), expected),
            got=shown,
            want=_wanted(expected),
        )
    if claims.simulated and expected.allow_simulated:
        # Contraindicated as a whole, too; each part was judged.
        return comparison
    return comparison + compare(
        "overall",
        _is_enough(claims.status, expected),
        got=claims.status,
        want=_wanted(expected),
    )


def _is_enough(status: Tier, expected: ExpectedResult) -> bool:
    accepted = {Tier.AFFIRMING} | ({Tier.WARNING} if expected.allow_warning else set())
    return status in accepted


def _wanted(expected: ExpectedResult) -> str:
    return "affirming or warning" if expected.allow_warning else "affirming"


def _status(submod: ResultSubmod, expected: ExpectedResult) -> Tier:
    """Return the status; where a simulation will do, without what only that costs.

    What a simulation leaves unsaid is no worse then: there is no machine to speak of.
    """
    unrecognized = submod.vector.get("hardware") == ear.UNRECOGNIZED_HARDWARE
    if not (expected.allow_simulated and submod.simulated and unrecognized):
        return submod.status
    rest = {area: said for area, said in submod.vector.items() if area != "hardware"}
    said = _tier_said(rest)
    return Tier.AFFIRMING if said == Tier.NONE else said


def _tier_said(vector: Mapping[str, int]) -> Tier:
    tiers = map(ear.tier_of, vector.values())
    return ear.worst(tier for tier in tiers if tier != Tier.NONE)


def _left_out(field: str, unchecked: Unchecked) -> Comparison:
    return Comparison(unchecked=(UncheckedField(field=field, reason=unchecked.reason),))


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
