"""Reading an EAR's claims: forms and bounds, in the spelling of its profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bentoml_secure.attestation import ear
from bentoml_secure.attestation.checks import require
from bentoml_secure.attestation.ear import PROFILES, Profile, Tier
from bentoml_secure.attestation.reference_values import one_of
from bentoml_secure.errors import MalformedInputError

MAX_SUBMODS = 32
MAX_LIST = 16
MAX_NAME_CHARACTERS = 256
_MAX_TIME = 253_402_300_799
"""The last second of the year 9999."""

_SAMPLES = frozenset({"sample", "sampledevice"})
"""What Trustee calls evidence with no hardware behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSubmod:
    """What a result says of one machine or device.

    Attributes:
        name: ``cpu0``, ``gpu0``.
        status: Its tier.
        vector: Numbers by area; see ``ear``.
        policies: Ids of the policies that it was appraised with.
        simulated: No hardware stands behind the evidence.
        attester_claims: What the evidence says.
        verifier_claims: What the verifier says of it.
    """

    name: str
    status: Tier
    vector: Mapping[str, int]
    policies: tuple[str, ...]
    simulated: bool
    attester_claims: Mapping[str, Any]
    verifier_claims: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return what it says as the command line prints it."""
        return {
            "status": self.status.value,
            "vector": dict(self.vector),
            "policies": list(self.policies),
            "simulated": self.simulated,
            "attester_claims": dict(self.attester_claims),
            "verifier_claims": dict(self.verifier_claims),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultClaims:
    """A result's claims, read and not yet judged. Times are whole seconds since 1970.

    ``status`` is the worst of all, whatever the result itself says.
    """

    profile: str
    issuer: str | None
    audience: tuple[str, ...]
    nonce: tuple[str, ...]
    token_id: str | None
    issued_at: int
    not_before: int
    expires_at: int
    status: Tier
    verifier: Mapping[str, str]
    submods: tuple[ResultSubmod, ...]

    @property
    def simulated(self) -> bool:
        """Whether no hardware stands behind some of it."""
        return any(submod.simulated for submod in self.submods)


def parse_claims(document: object) -> ResultClaims:
    """Read the claims of an EAR.

    Args:
        document: As parsed from JSON.

    Raises:
        MalformedInputError: A claim missing, of another form, or in two spellings.
        CheckFailedError: A profile that is not known here.
    """
    what = "attestation result"
    claims = _object(document, what)
    tag = claims.get("eat_profile")
    known = isinstance(tag, str) and tag in PROFILES
    want = one_of(tuple(PROFILES))
    require("eat_profile", known, got=f"{tag!r:.100}", want=want)
    profile = PROFILES[str(tag)]
    submods = _submods(claims.get("submods"), profile)
    # Optional for the whole; it may be worse than its parts, never better.
    said = _claim(claims, profile.status, what)
    tiers = [submod.status for submod in submods]
    if said is not None:
        tiers.append(_tier(said, what))
    issued_at = _seconds(claims, "iat")
    return ResultClaims(
        profile=str(tag),
        issuer=_optional_text(claims, "iss"),
        audience=_texts(claims.get("aud", []), f"{what} aud"),
        nonce=_texts(claims.get("eat_nonce", []), f"{what} eat_nonce"),
        token_id=_optional_text(claims, "jti"),
        issued_at=issued_at,
        not_before=_seconds(claims, "nbf") if "nbf" in claims else issued_at,
        expires_at=_seconds(claims, "exp"),
        status=ear.worst(tiers),
        verifier=_verifier(_claim(claims, profile.verifier, what)),
        submods=submods,
    )


def _submods(document: object, profile: Profile) -> tuple[ResultSubmod, ...]:
    submods = _object(document, "attestation result submods")
    if not 0 < len(submods) <= MAX_SUBMODS:
        raise MalformedInputError(
            f"attestation result submods: got {len(submods)}, want 1 to {MAX_SUBMODS}"
        )
    return tuple(_submod(name, submods[name], profile) for name in sorted(submods))


def _submod(name: str, document: object, profile: Profile) -> ResultSubmod:
    what = f"submod {name!r:.60}"
    _text(name, what)
    appraisal = _object(document, what)
    attester = _claim(appraisal, profile.attester_claims, what)
    verifier = _claim(appraisal, profile.verifier_claims, what)
    attester_claims = {} if attester is None else _object(attester, what)
    verifier_claims = {} if verifier is None else _object(verifier, what)
    policies = _claim(appraisal, profile.policies, what)
    return ResultSubmod(
        name=name,
        status=_tier(_claim(appraisal, profile.status, what), what),
        vector=_vector(_claim(appraisal, profile.vector, what), what),
        policies=_texts([] if policies is None else policies, f"{what} policies"),
        simulated=_is_simulated(attester_claims, verifier_claims, what),
        attester_claims=attester_claims,
        verifier_claims=verifier_claims,
    )


def _is_simulated(
    attester: Mapping[str, Any], verifier: Mapping[str, Any], what: str
) -> bool:
    # Trustee: the kind is the name of its claims, or stands beside them.
    names = set(attester)
    if "tee" in attester:
        names.add(_text(attester["tee"], f"{what} tee"))
    if ear.PRIVATE not in verifier:
        return bool(_SAMPLES & names)
    flag = _object(verifier[ear.PRIVATE], f"{what} {ear.PRIVATE}").get("simulated")
    if type(flag) is not bool:
        raise MalformedInputError(f"{what}: simulated is neither true nor false")
    return flag or bool(_SAMPLES & names)


def _claim(claims: Mapping[str, Any], names: Sequence[str], what: str) -> object:
    present = [name for name in names if name in claims]
    if len(present) > 1:
        raise MalformedInputError(f"{what}: both {present[0]} and {present[1]}")
    return claims[present[0]] if present else None


def _tier(value: object, what: str) -> Tier:
    if not isinstance(value, str) or value not in set(Tier):
        raise MalformedInputError(
            f"{what} status: got {value!r:.60}, want one of {', '.join(Tier)}"
        )
    return Tier(value)


def _vector(value: object, what: str) -> dict[str, int]:
    vector = {} if value is None else _object(value, f"{what} vector")
    for area, number in vector.items():
        if area not in ear.AREAS:
            raise MalformedInputError(f"{what} vector: unknown area {area!r:.60}")
        if type(number) is not int or not -128 <= number <= 127:
            raise MalformedInputError(
                f"{what} vector {area}: got {number!r:.40}, want -128 to 127"
            )
    return vector


def _verifier(value: object) -> dict[str, str]:
    what = "attestation result verifier"
    verifier = _object(value, what)
    return {name: _text(verifier.get(name), what) for name in ("developer", "build")}


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedInputError(f"{what}: got {value!r:.60}, want an object")
    return value


def _text(value: object, what: str) -> str:
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= MAX_NAME_CHARACTERS
        or not value.isprintable()
    ):
        raise MalformedInputError(
            f"{what}: got {value!r:.60},"
            f" want 1 to {MAX_NAME_CHARACTERS} printable characters"
        )
    return value


def _optional_text(claims: Mapping[str, Any], name: str) -> str | None:
    return _text(claims[name], f"attestation result {name}") if name in claims else None


def _texts(value: object, what: str) -> tuple[str, ...]:
    """Read a text, or a list of them."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or len(items) > MAX_LIST:
        raise MalformedInputError(f"{what}: want a text or at most {MAX_LIST} of them")
    return tuple(_text(item, what) for item in items)


def _seconds(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if type(value) is not int or not 0 <= value <= _MAX_TIME:
        raise MalformedInputError(
            f"attestation result {name}: got {value!r:.40}, want whole seconds"
        )
    return value
