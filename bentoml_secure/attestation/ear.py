"""Words of attestation results: tiers, trustworthiness vectors, names of claims.

An attestation result travels as an EAR, a set of claims. Each machine or device it
speaks of is one of its ``submods`` with a status and a vector of numbers:

    affirming         2 to 31, and -2 to -32
    none              -1 to 1: nothing is said
    warning           32 to 95, and -33 to -96
    contraindicated   96 to 127, and -97 to -128

Source: draft-ietf-rats-ear-04 (names with underscores), draft-ietf-rats-ar4si section
2.3 (the numbers); Trustee's tokens have the names of earlier drafts, with dots and
hyphens, or these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

EAR_PROFILE = "tag:ietf.org,2026:rats/ear#04"
TRUSTEE_PROFILE = "tag:github.com,2024:confidential-containers/Trustee"

CPU = "cpu0"
GPU = "gpu0"
PRIVATE = "bentoml_secure"
"""Under ``ear_verifier_claims``: what this package's verifier says of its own."""

AREAS = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
"""Of a trustworthiness vector; one that is left out says nothing."""

NO_CLAIM = 0
RECOGNIZED_INSTANCE = 2
APPROVED_CONFIGURATION = 2
APPROVED_BOOT = 3
GENUINE_HARDWARE = 2
UNSAFE_HARDWARE = 32
UNRECOGNIZED_HARDWARE = 97
ENCRYPTED_MEMORY = 2


class Tier(StrEnum):
    """What a status says, from the best to the worst."""

    AFFIRMING = "affirming"
    NONE = "none"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


_RANK = {tier: rank for rank, tier in enumerate(Tier)}


def tier_of(value: int) -> Tier:
    """Return the tier of a number of a trustworthiness vector, -128 to 127."""
    if -1 <= value <= 1:
        return Tier.NONE
    if -32 <= value <= 31:
        return Tier.AFFIRMING
    if -96 <= value <= 95:
        return Tier.WARNING
    return Tier.CONTRAINDICATED


def worst(tiers: Iterable[Tier]) -> Tier:
    """Return the worst of some tiers; of none, that nothing is said."""
    return max(tiers, key=_RANK.__getitem__, default=Tier.NONE)


def is_better(left: Tier, right: Tier) -> bool:
    """Tell whether one tier is better than another."""
    return _RANK[left] < _RANK[right]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How the results of one ``eat_profile`` spell what all of them say.

    Each attribute has the names that a claim may have; only one of them may be there.
    """

    status: tuple[str, ...] = ("ear_status",)
    vector: tuple[str, ...] = ("ear_trustworthiness_vector",)
    policies: tuple[str, ...] = ("ear_appraisal_policy_ids",)
    verifier: tuple[str, ...] = ("ear_verifier_id",)
    attester_claims: tuple[str, ...] = ("ear_attester_claims",)
    verifier_claims: tuple[str, ...] = ("ear_verifier_claims",)


PROFILES: Mapping[str, Profile] = {
    EAR_PROFILE: Profile(),
    TRUSTEE_PROFILE: Profile(
        status=("ear.status", "ear_status"),
        vector=("ear.trustworthiness-vector", "ear_trustworthiness_vector"),
        policies=("ear.appraisal-policy-id", "ear_appraisal_policy_ids"),
        verifier=("ear.verifier-id", "ear_verifier_id"),
        attester_claims=("ear.veraison.annotated-evidence", "ear_attester_claims"),
        verifier_claims=("ear.veraison.policy-claims", "ear_verifier_claims"),
    ),
}
"""Results that are read; others are refused."""
