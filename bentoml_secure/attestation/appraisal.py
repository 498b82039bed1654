"""The relying party's policy: which authentic claims are acceptable.

    version = 1
    max_age_seconds = 300
    allow = ["simulated"]
    require_gpu = true                # optional: a GPU's evidence beside the CPU's
    [simulated]                       # the table of each kind is that kind's own
    roots = ["sha256:<hex>"]
    [platforms]                       # optional: machines known by id
    allow = ["<id>"]

Reading is strict: unknown keys, empty lists and a kind allowed without its table are
refused. Nothing is left out silently: a result lists each check that was not made.

Source: RFC 9334 section 8.
"""

from __future__ import annotations

import hmac
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from bentoml_secure.attestation.evidence import (
    GPU_KINDS,
    KIND_PATTERN,
    REPORT_DATA_LENGTHS,
    AttestationResult,
    VerifiedClaims,
    format_seconds,
)
from bentoml_secure.attestation.reference_values import (
    Unchecked,
    compare_reference,
    one_of,
    read_list,
    require_known,
)
from bentoml_secure.attestation.roles import Comparison, KindPolicy
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.errors import (
    ConfigurationError,
    Finding,
    PolicyRejected,
    UnknownKindError,
)

VERSION = 1
MAX_POLICY_BYTES = 256 * 1024
MAX_AGE_SECONDS = 7 * 86_400
CLOCK_SKEW_SECONDS = 60
"""How far an attester's clock may run ahead of the verifier's."""

_CLOCK_SKEW = timedelta(seconds=CLOCK_SKEW_SECONDS)
_GENERAL = frozenset(
    {"version", "max_age_seconds", "allow", "platforms", "require_gpu"}
)
_PLATFORM_ID = re.compile(r"[A-Za-z0-9._:-]{1,256}")
_NO_PLATFORMS = Unchecked("the policy lists no machines")
_NO_TIME = "neither a signed time nor the time of the nonce is known"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalPolicy:
    """What a relying party accepts.

    Attributes:
        max_age_seconds: Older evidence is refused, 1 to ``MAX_AGE_SECONDS``.
        allow: Kinds accepted, sorted; at least one, each with its table.
        kinds: Reference values by kind.
        platforms: Machines accepted, or the reason why any is.
        require_gpu: Whether a CPU's evidence counts only with a GPU's beside it.
    """

    max_age_seconds: int
    allow: tuple[str, ...]
    kinds: Mapping[str, KindPolicy]
    platforms: tuple[str, ...] | Unchecked
    require_gpu: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the policy as a document: equal policies give equal ones.

        It is what a configuration digest is taken over, and ``from_table`` reads it.
        """
        document: dict[str, Any] = {
            "version": VERSION,
            "max_age_seconds": self.max_age_seconds,
            "allow": list(self.allow),
            **{kind: policy.to_json() for kind, policy in self.kinds.items()},
        }
        if not isinstance(self.platforms, Unchecked):
            document["platforms"] = {"allow": list(self.platforms)}
        if self.require_gpu:
            document["require_gpu"] = True
        return document

    @classmethod
    def from_table(cls, table: object) -> AppraisalPolicy:
        """Read a policy that stands as a table in a larger file.

        Raises:
            ConfigurationError: A key unknown, missing or of another type; an empty
                list; a kind allowed without its table.
        """
        if not isinstance(table, Mapping):
            raise ConfigurationError("appraisal policy: want a table.")
        version, max_age = table.get("version"), table.get("max_age_seconds")
        # Not ==: true and 1.0 equal 1.
        if type(version) is not int or version != VERSION:
            raise ConfigurationError(
                f"appraisal policy version: got {version!r:.40}, want {VERSION}."
            )
        if type(max_age) is not int or not 1 <= max_age <= MAX_AGE_SECONDS:
            raise ConfigurationError(
                f"appraisal policy max_age_seconds: got {max_age!r:.40},"
                f" want 1 to {MAX_AGE_SECONDS}."
            )
        allow = read_list(
            table.get("allow"),
            what="appraisal policy allow",
            pattern=KIND_PATTERN,
            form="kind of evidence",
        )
        kinds = {
            str(kind): _kind_policy(kind, table[kind])
            for kind in sorted(table.keys() - _GENERAL, key=str)
        }
        if without := sorted(set(allow) - kinds.keys()):
            raise ConfigurationError(
                f"appraisal policy allows {without[0]!r} without saying what of it.",
                remedy=f"Add the table [{without[0]}], or do not allow it.",
            )
        return cls(
            max_age_seconds=max_age,
            allow=allow,
            kinds=kinds,
            platforms=_read_platforms(table),
            require_gpu=_read_require_gpu(table, allow),
        )


def _kind_policy(kind: object, table: object) -> KindPolicy:
    if not isinstance(kind, str) or not isinstance(table, Mapping):
        raise ConfigurationError(
            f"appraisal policy: unknown key {kind!r:.60}; known:"
            f" {', '.join(sorted(_GENERAL))} and the table of each kind.",
            remedy="Correct or remove it.",
        )
    try:
        tee = load_tee(kind)
    except UnknownKindError as error:
        raise ConfigurationError(
            f"appraisal policy: unknown table [{kind:.60}]: {error}"
        ) from error
    return tee.parse_policy(table)


def _read_platforms(table: Mapping[str, Any]) -> tuple[str, ...] | Unchecked:
    if "platforms" not in table:
        return _NO_PLATFORMS
    what = "appraisal policy [platforms]"
    platforms = require_known(table["platforms"], frozenset({"allow"}), what=what)
    return read_list(
        platforms.get("allow"),
        what=f"{what} allow",
        pattern=_PLATFORM_ID,
        form="platform id",
    )


def _read_require_gpu(table: Mapping[str, Any], allow: tuple[str, ...]) -> bool:
    value = table.get("require_gpu", False)
    if type(value) is not bool:
        raise ConfigurationError(
            f"appraisal policy require_gpu: got {value!r:.40}, want true or false."
        )
    if value and not GPU_KINDS & set(allow):
        raise ConfigurationError(
            "appraisal policy requires a GPU's evidence and allows none.",
            remedy=f"Allow {one_of(tuple(sorted(GPU_KINDS)))}, with its table.",
        )
    return value


def parse_policy(data: bytes) -> AppraisalPolicy:
    """Parse an appraisal policy's TOML.

    Raises:
        ConfigurationError: Too long, not TOML, or refused by ``from_table``.
    """
    if len(data) > MAX_POLICY_BYTES:
        raise ConfigurationError(
            f"appraisal policy: got {len(data)} bytes, want at most {MAX_POLICY_BYTES}."
        )
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"appraisal policy is not TOML: {error}.") from error
    return AppraisalPolicy.from_table(table)


def appraise(
    claims: VerifiedClaims,
    policy: AppraisalPolicy,
    *,
    report_data: bytes | Unchecked,
    now: datetime,
    nonce_issued_at: datetime | None,
    beside_gpu: bool = False,
) -> AttestationResult:
    """Judge authentic claims against a relying party's policy.

    Signatures are already checked by the verifier; this compares values only and
    reports every field that fails, not just the first.

    Args:
        claims: What ``Verifier.verify`` returned.
        policy: Reference values. Where it leaves a check out, the result says so.
        report_data: The 64 bytes that the evidence must cover (32 for a kind with a
            challenge of its own); a kind with a shorter field covers the first of
            them. Or why it is not compared.
        now: The time to judge for, with a time zone.
        nonce_issued_at: When the nonce under ``report_data`` was drawn: the evidence
            is younger. None where that is not known.
        beside_gpu: Whether a GPU's evidence stands beside a CPU's, judged apart.

    Returns:
        What was accepted, what was not checked, and until when it holds.

    Raises:
        PolicyRejected: At least one field failed; ``findings`` lists all.
        ConfigurationError: ``report_data`` of neither length.
    """
    times = _known_times(claims, nonce_issued_at)
    comparison = (
        _compare_kind(claims, policy)
        + _compare_gpu(claims, policy, beside_gpu)
        + _compare_report_data(claims, report_data)
        + _compare_times(times, policy, now)
        + _compare_expiry(claims, now)
        + compare_reference("platform_id", claims.platform_id, policy.platforms)
    )
    if comparison.findings:
        raise PolicyRejected(
            f"{claims.kind} evidence is authentic but not acceptable",
            comparison.findings,
        )
    return AttestationResult(
        claims=claims,
        unchecked=comparison.unchecked,
        verified_at=now,
        expires_at=_expiry(claims, times, policy) if times else now,
    )


def _compare_kind(claims: VerifiedClaims, policy: AppraisalPolicy) -> Comparison:
    comparison = Comparison()
    if claims.kind not in policy.allow:
        comparison = Comparison(
            findings=(Finding("kind", claims.kind, one_of(policy.allow)),)
        )
    if claims.kind in policy.kinds:
        comparison += policy.kinds[claims.kind].compare(claims)
    return comparison


def _compare_gpu(
    claims: VerifiedClaims, policy: AppraisalPolicy, beside_gpu: bool
) -> Comparison:
    if not policy.require_gpu or beside_gpu or claims.kind in GPU_KINDS:
        return Comparison()
    return Comparison(findings=(Finding("gpu", "none", "a GPU's evidence beside it"),))


def _compare_report_data(
    claims: VerifiedClaims, report_data: bytes | Unchecked
) -> Comparison:
    if isinstance(report_data, Unchecked):
        return compare_reference("report_data", "", report_data)
    if len(report_data) not in REPORT_DATA_LENGTHS:
        raise ConfigurationError(
            f"report data to compare with: got {len(report_data)} bytes,"
            " want 64, or 32 for a kind with a challenge of its own."
        )
    if claims.report_data is None:
        return Comparison(findings=(Finding("report_data", "none", report_data.hex()),))
    got, want = claims.report_data, report_data
    if not claims.any_length:
        want = want[: len(got)]
    if hmac.compare_digest(got, want):
        return Comparison()
    return Comparison(findings=(Finding("report_data", got.hex(), want.hex()),))


def _known_times(
    claims: VerifiedClaims, nonce_issued_at: datetime | None
) -> dict[str, datetime]:
    times = {"issued_at": claims.issued_at, "nonce_issued_at": nonce_issued_at}
    return {field: time for field, time in times.items() if time is not None}


def _compare_times(
    times: Mapping[str, datetime], policy: AppraisalPolicy, now: datetime
) -> Comparison:
    if not times:
        return compare_reference("age", "", Unchecked(_NO_TIME))
    max_age = timedelta(seconds=policy.max_age_seconds)
    findings = []
    for field, time in times.items():
        got, age = format_seconds(time), now - time
        if age > max_age:
            got = f"{got}, {age.total_seconds():.0f} s old"
            want = f"at most {policy.max_age_seconds} s old"
            findings.append(Finding(field, got, want))
        if -age > _CLOCK_SKEW:
            want = f"at most {CLOCK_SKEW_SECONDS} s after {format_seconds(now)}"
            findings.append(Finding(field, got, want))
    return Comparison(findings=tuple(findings))


def _compare_expiry(claims: VerifiedClaims, now: datetime) -> Comparison:
    # Ends are inclusive, as those of certificates and collateral are.
    if claims.expires_at is None or claims.expires_at >= now:
        return Comparison()
    got, want = format_seconds(claims.expires_at), f"{format_seconds(now)} or later"
    return Comparison(findings=(Finding("expires_at", got, want),))


def _expiry(
    claims: VerifiedClaims, times: Mapping[str, datetime], policy: AppraisalPolicy
) -> datetime:
    oldest, max_age = min(times.values()), timedelta(seconds=policy.max_age_seconds)
    # Bounded, for an offline verifier's time may be near the last that there is.
    aged = oldest + min(max_age, datetime.max.replace(tzinfo=UTC) - oldest)
    return aged if claims.expires_at is None else min(aged, claims.expires_at)
