"""The keys that the tables ``[sgx]`` and ``[tdx]`` share: what the platform may be.

status = ["UpToDate"]             # the default; or { unchecked = "why" }
reject_advisories = ["INTEL-SA-00960"]
min_tcb_evaluation = 17           # the collateral may not be rolled back below
dynamic_platform = false          # refuse platforms that may gain packages,
cached_keys = false               #   whose root keys Intel keeps,
smt = false                       #   or with hyperthreading
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.attestation.checks import compare
from bentoml_secure.attestation.evidence import UncheckedField, VerifiedClaims
from bentoml_secure.attestation.reference_values import (
    References,
    Unchecked,
    compare_reference,
    read_list,
    read_references,
    references_to_json,
)
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.errors import ConfigurationError

UP_TO_DATE = "UpToDate"
STATUSES = (
    UP_TO_DATE,
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
"""What verifies; ``Revoked`` never does."""

FLAGS = ("dynamic_platform", "cached_keys", "smt")
PLATFORM_KEYS = frozenset({"status", "reject_advisories", "min_tcb_evaluation", *FLAGS})

_MAX_EVALUATION = 2**32 - 1
_STATUS = re.compile("|".join(STATUSES))
_ADVISORY = re.compile(r"INTEL-SA-[0-9]{5}")
_EITHER = Unchecked("the policy accepts either")
_NOT_SET = ("false", "undefined")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformPolicy:
    """Reference values for the platform under an enclave or TD.

    Attributes:
        status: TCB statuses accepted.
        reject_advisories: Advisories that may not apply to the platform.
        min_tcb_evaluation: Lowest ``tcbEvaluationDataNumber`` of collateral, or none.
        refused_flags: Of ``FLAGS``, those that the platform may not have set.
    """

    status: References
    reject_advisories: tuple[str, ...]
    min_tcb_evaluation: int | None
    refused_flags: frozenset[str]

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between the platform and this policy."""
        got = claims.claims
        return (
            compare_reference("status", got["status"], self.status)
            + self._compare_advisories(got["advisories"])
            + self._compare_evaluation(got["tcb_evaluation"])
            + compare_reference(
                "dynamic_platform",
                _spelled(got["dynamic_platform"]),
                self._flag("dynamic_platform"),
            )
            + compare_reference(
                "cached_keys", _spelled(got["cached_keys"]), self._flag("cached_keys")
            )
            + compare_reference("smt", _spelled(got["smt"]), self._flag("smt"))
        )

    def _compare_advisories(self, got: list[str]) -> Comparison:
        if not self.reject_advisories:
            return unchecked("advisories", "the policy rejects none")
        rejected = sorted(set(got).intersection(self.reject_advisories))
        return compare(
            "advisories", not rejected, got=", ".join(rejected), want="none of these"
        )

    def _compare_evaluation(self, got: int) -> Comparison:
        if self.min_tcb_evaluation is None:
            return unchecked("tcb_evaluation", "the policy names no minimum")
        return compare(
            "tcb_evaluation",
            got >= self.min_tcb_evaluation,
            got=got,
            want=f"at least {self.min_tcb_evaluation}",
        )

    def _flag(self, name: str) -> References:
        return _NOT_SET if name in self.refused_flags else _EITHER

    def to_json(self) -> dict[str, Any]:
        """Return the keys as a policy spells them."""
        document: dict[str, Any] = {"status": references_to_json(self.status)}
        if self.reject_advisories:
            document["reject_advisories"] = list(self.reject_advisories)
        if self.min_tcb_evaluation is not None:
            document["min_tcb_evaluation"] = self.min_tcb_evaluation
        return document | dict.fromkeys(sorted(self.refused_flags), False)


def unchecked(field: str, reason: str) -> Comparison:
    """Return what a policy leaves out without being told to, for the result."""
    return Comparison(unchecked=(UncheckedField(field=field, reason=reason),))


def _spelled(flag: bool | None) -> str:
    return "undefined" if flag is None else str(flag).lower()


def read_platform_policy(table: Mapping[str, Any], what: str) -> PlatformPolicy:
    """Read the keys of ``PLATFORM_KEYS``; others are the caller's.

    Args:
        table: From a policy.
        what: The table's name, for the error.

    Raises:
        ConfigurationError: A key of another type, or a value that never verifies.
    """
    advisories: tuple[str, ...] = ()
    if table.get("reject_advisories", []) != []:
        advisories = read_list(
            table["reject_advisories"],
            what=f"{what} reject_advisories",
            pattern=_ADVISORY,
            form="advisory such as INTEL-SA-00960",
        )
    return PlatformPolicy(
        status=read_references(
            table.get("status", [UP_TO_DATE]),
            what=f"{what} status",
            pattern=_STATUS,
            form=f"one of {', '.join(STATUSES)}",
        ),
        reject_advisories=advisories,
        min_tcb_evaluation=read_integer(
            table, "min_tcb_evaluation", what, maximum=_MAX_EVALUATION
        ),
        refused_flags=frozenset(
            name for name in FLAGS if not _read_flag(table, name, what)
        ),
    )


def read_integer(
    table: Mapping[str, Any], name: str, what: str, *, maximum: int
) -> int | None:
    """Return a whole number of a policy's table, or None where it has none.

    Raises:
        ConfigurationError: Another type, or not within 0 and ``maximum``.
    """
    if name not in table:
        return None
    value = table[name]
    # Not isinstance: true is an int.
    if type(value) is not int or not 0 <= value <= maximum:
        raise ConfigurationError(
            f"{what} {name}: got {value!r:.40}, want 0 to {maximum}."
        )
    return value


def _read_flag(table: Mapping[str, Any], name: str, what: str) -> bool:
    value = table.get(name, True)
    if not isinstance(value, bool):
        raise ConfigurationError(
            f"{what} {name}: got {value!r:.40},"
            " want false to refuse it, or true to accept either."
        )
    return value
