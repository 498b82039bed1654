"""From the result of an appraisal to the claims of an EAR.

Only what was compared is affirmed. What counts for an area of the vector is listed by
kind below; where one of these checks was left out, the area says nothing, and where
the hardware or the executables say nothing, or the evidence covers no known challenge,
neither does the status. A kind that is not listed affirms nothing. Evidence with no
hardware behind it is contraindicated whatever it says.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bentoml_secure import __version__
from bentoml_secure.attestation import ear
from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.ear import Tier
from bentoml_secure.attestation.evidence import (
    GPU_KINDS,
    AttestationResult,
    UncheckedField,
    VerifiedClaims,
    format_seconds,
)
from bentoml_secure.attestation.key_document import package_digest
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import ConfigurationError

PRIVATE_VERSION = 1
MAX_LIFETIME_SECONDS = 7 * 86_400
DEVELOPER = "https://github.com/bentoml-secure/bentoml-secure"

NONCE_PATTERN = re.compile(r"[A-Za-z0-9_-]{8,88}")
"""Source: RFC 9711 section 4.1; base64url and hex digits are of this form."""

NAME_PATTERN = re.compile(r"[!-~]{1,256}")
"""An issuer, an audience, a token's id: printable ASCII without spaces."""

_UP_TO_DATE = "UpToDate"
_GPU_PREFIX = "gpu."

Alternatives = tuple[frozenset[str], ...]
"""Sets of checks, one of which is enough. ``pcr/4``: register 4 in its list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Areas:
    """The checks that an area of the vector rests on; none, and nothing is said."""

    hardware: Alternatives
    executables: Alternatives
    configuration: Alternatives = ()
    encrypts_memory: bool = False


def _all_of(*names: str) -> frozenset[str]:
    return frozenset(names)


# The vendor's root is pinned: genuine needs no check of the policy.
_GENUINE = _all_of()
_DCAP_FLAGS = ("dynamic_platform", "cached_keys", "smt")
_SNP_CONFIGURATION = (_all_of("host_data", "id_key_digest", "author_key_digest"),)

_KINDS: Mapping[str, _Areas] = {
    "tdx": _Areas(
        hardware=(_GENUINE,),
        # rtmr.0 is the firmware's configuration, rtmr.3 the workload's to extend.
        executables=(_all_of("mr_td", "rtmr.1", "rtmr.2"),),
        configuration=(
            _all_of(
                "rtmr.0",
                "mr_config_id",
                "mr_owner",
                "mr_owner_config",
                "xfam",
                *_DCAP_FLAGS,
            ),
        ),
        encrypts_memory=True,
    ),
    "sgx": _Areas(
        hardware=(_GENUINE,),
        executables=(
            _all_of("mr_enclave"),
            _all_of("mr_signer", "isv_prod_id", "isv_svn"),
        ),
        configuration=(_all_of("config_id", *_DCAP_FLAGS),),
        encrypts_memory=True,
    ),
    "sev-snp": _Areas(
        hardware=(_all_of("tcb"),),
        executables=(_all_of("measurement"),),
        configuration=_SNP_CONFIGURATION,
        encrypts_memory=True,
    ),
    "az-snp-vtpm": _Areas(
        hardware=(_all_of("tcb"),),
        # The measurement is the paravisor's; the guest's boot stands in the vTPM.
        executables=(_all_of("measurement", "pcr/4"),),
        configuration=_SNP_CONFIGURATION,
        encrypts_memory=True,
    ),
    # PCR 0 is the image, PCR 8 whose certificate signed it.
    "nitro": _Areas(
        hardware=(_GENUINE,), executables=(_all_of("pcr/0"), _all_of("pcr/8"))
    ),
    # Firmware and boot loader.
    "tpm": _Areas(
        hardware=(_all_of("ek_root", "enrolment"),),
        executables=(_all_of("pcr/0", "pcr/4"),),
    ),
    "cca": _Areas(hardware=(_all_of("cpak"),), executables=(_all_of("rim"),)),
    "nvidia-gpu": _Areas(
        hardware=(_all_of("min_driver", "min_vbios"),),
        executables=(_all_of("firmware"),),
    ),
    "simulated": _Areas(hardware=(), executables=(_all_of("measurement"),)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Submod:
    """One machine or device: what was accepted of it, what was left out."""

    claims: VerifiedClaims
    unchecked: tuple[UncheckedField, ...]
    table: Mapping[str, Any]

    def rests_on(self, alternatives: Alternatives) -> bool:
        return any(all(map(self._was_compared, names)) for names in alternatives)

    def _was_compared(self, name: str) -> bool:
        register, slash, index = name.partition("/")
        if slash:
            # A list with its own reasons inside is not unchecked as a whole.
            return isinstance(self.table.get(register, {}).get(index), list)
        return all(left.field != name for left in self.unchecked)


def ear_claims(
    result: AttestationResult,
    policy: AppraisalPolicy,
    *,
    issuer: str,
    audience: str,
    nonce: str,
    token_id: str,
    now: datetime,
    lifetime_seconds: int,
) -> dict[str, Any]:
    """Return a result as the claims of a token.

    Args:
        result: What ``appraise`` or ``verify_key_document`` returned.
        policy: The policy that accepted it.
        issuer: Who will sign.
        audience: Whom it is for.
        nonce: The relying party's, 8 to 88 of A-Z a-z 0-9 - _.
        token_id: Different for every token.
        now: The time of issue, with a time zone; cut to whole seconds.
        lifetime_seconds: At most; the claims never outlive the result.

    Raises:
        ConfigurationError: A name, nonce or lifetime out of bounds; a policy that
            does not accept the result's kind; a GPU without its CPU; a result that has
            no time left.
    """
    for what, text in (("issuer", issuer), ("audience", audience), ("id", token_id)):
        if not NAME_PATTERN.fullmatch(text):
            raise ConfigurationError(
                f"token {what}: got {text!r:.100},"
                " want 1 to 256 printable ASCII characters without spaces."
            )
    if not NONCE_PATTERN.fullmatch(nonce):
        raise ConfigurationError(
            f"token nonce: got {nonce!r:.100}, want 8 to 88 of A-Z a-z 0-9 - _."
        )
    submods = {name: _appraisal(each, policy) for name, each in _split(result, policy)}
    issued_at = int(now.timestamp())
    return {
        "eat_profile": ear.EAR_PROFILE,
        "iss": issuer,
        "aud": audience,
        "jti": token_id,
        "iat": issued_at,
        "nbf": issued_at,
        "exp": _expiry(result, now, lifetime_seconds),
        "eat_nonce": nonce,
        "ear_verifier_id": {"developer": DEVELOPER, "build": _build()},
        "ear_status": ear.worst(Tier(each["ear_status"]) for each in submods.values()),
        "submods": submods,
    }


def _expiry(result: AttestationResult, now: datetime, lifetime_seconds: int) -> int:
    if not 1 <= lifetime_seconds <= MAX_LIFETIME_SECONDS:
        raise ConfigurationError(
            f"token lifetime: got {lifetime_seconds} s,"
            f" want 1 to {MAX_LIFETIME_SECONDS}."
        )
    issued_at, ends_at = int(now.timestamp()), int(result.expires_at.timestamp())
    if ends_at <= issued_at:
        raise ConfigurationError(
            f"a token of {format_seconds(now)} cannot outlive its result,"
            f" which ends at {format_seconds(result.expires_at)}.",
            remedy="Evidence without a signed time ends at once unless it is said when"
            " the challenge was drawn that it covers.",
        )
    return min(issued_at + lifetime_seconds, ends_at)


def _split(
    result: AttestationResult, policy: AppraisalPolicy
) -> Iterator[tuple[str, _Submod]]:
    if result.kind in GPU_KINDS:
        raise ConfigurationError(
            f"a token about {result.kind} evidence alone would vouch for no process.",
            remedy="Appraise it beside a CPU's.",
        )
    of_gpu = tuple(
        UncheckedField(field=left.field.removeprefix(_GPU_PREFIX), reason=left.reason)
        for left in result.unchecked
        if left.field.startswith(_GPU_PREFIX)
    )
    of_cpu = tuple(
        left for left in result.unchecked if not left.field.startswith(_GPU_PREFIX)
    )
    yield ear.CPU, _submod(result.claims, of_cpu, policy)
    if result.gpu is not None:
        yield ear.GPU, _submod(result.gpu, of_gpu, policy)


def _submod(
    claims: VerifiedClaims,
    unchecked: tuple[UncheckedField, ...],
    policy: AppraisalPolicy,
) -> _Submod:
    if claims.kind not in policy.allow:
        raise ConfigurationError(
            f"the policy given does not accept {claims.kind},"
            " so it is not the one that accepted this result."
        )
    table = policy.kinds[claims.kind].to_json()
    return _Submod(claims=claims, unchecked=unchecked, table=table)


def _appraisal(submod: _Submod, policy: AppraisalPolicy) -> dict[str, Any]:
    claims, vector = submod.claims, _vector(submod)
    own = {
        "version": PRIVATE_VERSION,
        "kind": claims.kind,
        "simulated": claims.simulated,
        "vendor": claims.vendor,
        "platform_id": claims.platform_id,
        "root": claims.root,
        "report_data": claims.report_data.hex() if claims.report_data else None,
        "issued_at": format_seconds(claims.issued_at) if claims.issued_at else None,
        "unchecked": [left.to_json() for left in submod.unchecked],
    }
    return {
        "ear_status": _status(submod, vector),
        "ear_trustworthiness_vector": vector,
        "ear_appraisal_policy_ids": [digest_json(policy.to_json())],
        # Kinds keep tuples and mappings of their own.
        "ear_attester_claims": json.loads(json.dumps(dict(claims.claims))),
        "ear_verifier_claims": {ear.PRIVATE: own},
    }


def _vector(submod: _Submod) -> dict[str, int]:
    areas = _areas(submod.claims)
    identified = submod.rests_on((_all_of("platform_id"),))
    approved = submod.rests_on(areas.executables)
    configured = submod.rests_on(areas.configuration)
    encrypted = areas.encrypts_memory and not submod.claims.simulated
    vector = {
        "instance-identity": ear.RECOGNIZED_INSTANCE if identified else ear.NO_CLAIM,
        "configuration": ear.APPROVED_CONFIGURATION if configured else ear.NO_CLAIM,
        "executables": ear.APPROVED_BOOT if approved else ear.NO_CLAIM,
        "hardware": _hardware(submod, areas),
        "runtime-opaque": ear.ENCRYPTED_MEMORY if encrypted else ear.NO_CLAIM,
    }
    return {area: vector[area] for area in ear.AREAS if area in vector}


def _areas(claims: VerifiedClaims) -> _Areas:
    kind = claims.kind
    if claims.simulated:
        # "simulated-tdx" is compared as "tdx" is.
        kind = kind.removeprefix("simulated-")
    return _KINDS.get(kind, _Areas(hardware=(), executables=()))


def _hardware(submod: _Submod, areas: _Areas) -> int:
    claims = submod.claims
    if claims.simulated:
        return ear.UNRECOGNIZED_HARDWARE
    if not submod.rests_on(areas.hardware):
        return ear.NO_CLAIM
    # Intel's word on the platform; a policy may accept more than the best.
    known = claims.claims.get("status", _UP_TO_DATE) != _UP_TO_DATE
    if known or claims.claims.get("advisories"):
        return ear.UNSAFE_HARDWARE
    return ear.GENUINE_HARDWARE


def _status(submod: _Submod, vector: Mapping[str, int]) -> Tier:
    said = ear.worst(
        tier for value in vector.values() if (tier := ear.tier_of(value)) != Tier.NONE
    )
    essential = vector["hardware"], vector["executables"]
    answers = submod.rests_on((_all_of("report_data"),))
    if said != Tier.CONTRAINDICATED and not (all(essential) and answers):
        # Not a warning either: who accepts warnings must not accept this.
        return Tier.NONE
    return said


@functools.cache
def _build() -> str:
    return f"bentoml-secure {__version__} {package_digest()}"
