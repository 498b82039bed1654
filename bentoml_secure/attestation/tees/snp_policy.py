"""Reference values for SEV-SNP: the table ``[sev-snp]`` of an appraisal policy.

    measurement = ["<96 hex>"]        # required
    min_tcb = { bootloader = 4, tee = 0, snp = 24, microcode = 219 }
    max_vmpl = 0                      # the default

and, where wanted, ``min_launch_tcb`` (of the platform when the guest was launched),
``min_abi`` ("1.55", of the firmware), ``host_data``, ``id_key_digest``,
``author_key_digest``, ``products``, ``keys`` (vcek, vlek), ``require_platform`` and
``refuse_platform`` (names of ``PLATFORM_BITS``), ``require_policy`` and
``refuse_policy`` (names of ``POLICY_BITS``), ``require_crl``. What is left out shows as
unchecked.

No key accepts a guest that its host may debug or migrate, or whose policy permits what
is not known here.

Source: AMD 56860 (SEV-SNP firmware ABI) revision 1.58, GUEST_POLICY, PLATFORM_INFO.
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
    require_known,
)
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.attestation.tees.snp_report import (
    PLATFORM_BITS,
    POLICY_BITS,
    Product,
    unknown_policy_bits,
)
from bentoml_secure.errors import ConfigurationError

Levels = Mapping[str, int]
"""Security patch levels by name, of those that matter."""

LEVELS = ("bootloader", "tee", "snp", "microcode")
FMC = "fmc"
MAX_VMPL = 3

_DIGEST = re.compile(r"[0-9a-f]{96}")
_HOST_DATA = re.compile(r"[0-9a-f]{64}")
_ABI = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
_REFERENCES: Mapping[str, tuple[re.Pattern[str], str]] = {
    "measurement": (_DIGEST, "launch measurement of 96 hex digits"),
    "host_data": (_HOST_DATA, "host data of 64 hex digits"),
    "id_key_digest": (_DIGEST, "digest of an ID key, 96 hex digits"),
    "author_key_digest": (_DIGEST, "digest of an author key, 96 hex digits"),
    "products": (re.compile("|".join(Product)), f"product: {', '.join(Product)}"),
    "keys": (re.compile("vcek|vlek"), "key: vcek, vlek"),
}
_FLAGS: Mapping[str, Mapping[str, int]] = {
    "require_platform": PLATFORM_BITS,
    "refuse_platform": PLATFORM_BITS,
    "require_policy": POLICY_BITS,
    "refuse_policy": POLICY_BITS,
}
SNP_KEYS = frozenset(
    {*_REFERENCES, *_FLAGS, "min_tcb", "min_launch_tcb", "min_abi", "max_vmpl"}
    | {"require_crl"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPolicy:
    """Reference values for SEV-SNP reports.

    Attributes:
        references: Accepted values by key, or why any is accepted.
        min_tcb: What the platform must have now, committed and under its key.
        min_launch_tcb: What it must have had at launch.
        min_abi: Version of the firmware now and committed: major, minor.
        max_vmpl: 0, the most privileged, to ``MAX_VMPL``.
        flags: Names of bits by key; see ``PLATFORM_BITS`` and ``POLICY_BITS``.
        require_crl: Whether a revocation list must be among the endorsements.
    """

    references: Mapping[str, References]
    min_tcb: Levels | Unchecked
    min_launch_tcb: Levels | Unchecked
    min_abi: tuple[int, int] | Unchecked
    max_vmpl: int
    flags: Mapping[str, tuple[str, ...]]
    require_crl: bool

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between claims and this policy."""
        got = claims.claims
        return (
            self._compare_references(got)
            + _compare_guest(got, self.max_vmpl)
            + self._compare_flags(got)
            + self._compare_tcbs(got)
            + self._compare_firmware(got)
            + self._compare_revocation(got)
        )

    def _compare_references(self, got: Mapping[str, Any]) -> Comparison:
        wanted = self.references
        return (
            compare_reference("measurement", got["measurement"], wanted["measurement"])
            + compare_reference("host_data", got["host_data"], wanted["host_data"])
            + compare_reference(
                "id_key_digest", got["id_key_digest"], wanted["id_key_digest"]
            )
            + compare_reference(
                "author_key_digest",
                got["author_key_digest"],
                wanted["author_key_digest"],
            )
            + compare_reference("product", got["product"], wanted["products"])
            + compare_reference("key", got["key"], wanted["keys"])
        )

    def _compare_flags(self, got: Mapping[str, Any]) -> Comparison:
        def named(key: str, bits: Mapping[str, bool], *, wrong: bool) -> str:
            return ", ".join(name for name in self.flags[key] if bits[name] is wrong)

        platform, policy = got["platform_info"], got["policy"]
        off = named("require_platform", platform, wrong=False)
        on = named("refuse_platform", platform, wrong=True)
        lax = named("require_policy", policy, wrong=False)
        allowed = named("refuse_policy", policy, wrong=True)
        return (
            compare("platform.required", not off, got=f"no {off}", want=off)
            + compare("platform.refused", not on, got=on, want=f"no {on}")
            + compare("policy.required", not lax, got=f"no {lax}", want=lax)
            + compare("policy.refused", not allowed, got=allowed, want=f"no {allowed}")
        )

    def _compare_tcbs(self, got: Mapping[str, Any]) -> Comparison:
        tcb, comparison = got["tcb"], Comparison()
        if isinstance(self.min_tcb, Unchecked):
            comparison += _unchecked("tcb", self.min_tcb)
        else:
            low = _below(tcb["reported"], self.min_tcb)
            comparison += compare("tcb.reported", not low, got=low, want=self.min_tcb)
            low = _below(tcb["committed"], self.min_tcb)
            comparison += compare("tcb.committed", not low, got=low, want=self.min_tcb)
            low = _below(tcb["current"], self.min_tcb)
            comparison += compare("tcb.current", not low, got=low, want=self.min_tcb)
            if FMC in tcb["reported"] and FMC not in self.min_tcb:
                comparison += _unchecked("tcb.fmc", Unchecked("min_tcb has no fmc"))
        if isinstance(self.min_launch_tcb, Unchecked):
            return comparison + _unchecked("tcb.launch", self.min_launch_tcb)
        low = _below(tcb["launch"], self.min_launch_tcb)
        return comparison + compare(
            "tcb.launch", not low, got=low, want=self.min_launch_tcb
        )

    def _compare_firmware(self, got: Mapping[str, Any]) -> Comparison:
        if isinstance(self.min_abi, Unchecked):
            return _unchecked("firmware", self.min_abi)
        want = "at least {}.{}".format(*self.min_abi)
        current, committed = got["firmware"]["current"], got["firmware"]["committed"]
        return compare(
            "firmware.current", _abi(current) >= self.min_abi, got=current, want=want
        ) + compare(
            "firmware.committed",
            _abi(committed) >= self.min_abi,
            got=committed,
            want=want,
        )

    def _compare_revocation(self, got: Mapping[str, Any]) -> Comparison:
        checked = got["revocation_checked"]
        if not checked and not self.require_crl:
            return _unchecked(
                "revocation", Unchecked("no revocation list among the endorsements")
            )
        return compare(
            "revocation", checked, got="no revocation list", want="one of the ARK's"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the table of the policy."""
        abi = self.min_abi
        return {
            **{name: references_to_json(it) for name, it in self.references.items()},
            "min_tcb": _levels_to_json(self.min_tcb),
            "min_launch_tcb": _levels_to_json(self.min_launch_tcb),
            "min_abi": abi.to_json()
            if isinstance(abi, Unchecked)
            else "{}.{}".format(*abi),
            "max_vmpl": self.max_vmpl,
            **{key: list(names) for key, names in self.flags.items() if names},
            "require_crl": self.require_crl,
        }


def _compare_guest(got: Mapping[str, Any], max_vmpl: int) -> Comparison:
    policy, vmpl = got["policy"], got["vmpl"]
    unknown = unknown_policy_bits(int(policy["raw"], 16))
    return (
        compare("policy.debug", not policy["debug"], got="allowed", want="not allowed")
        + compare(
            "policy.migrate_ma",
            not policy["migrate_ma"],
            got="allowed",
            want="not allowed",
        )
        + compare(
            "policy.reserved", not unknown, got=f"{unknown:#x}", want="bits known here"
        )
        + compare("vmpl", vmpl <= max_vmpl, got=vmpl, want=f"at most {max_vmpl}")
    )


def _unchecked(name: str, why: Unchecked) -> Comparison:
    return Comparison(unchecked=(UncheckedField(field=name, reason=why.reason),))


def _below(levels: Levels, minimum: Levels) -> dict[str, int]:
    # A level that the product has not: FMC before Turin.
    return {
        name: levels[name]
        for name, least in minimum.items()
        if name in levels and levels[name] < least
    }


def _abi(version: str) -> tuple[int, int]:
    major, minor, _build = map(int, version.split("."))
    return major, minor


def _levels_to_json(levels: Levels | Unchecked) -> dict[str, Any]:
    return levels.to_json() if isinstance(levels, Unchecked) else dict(levels)


def parse_snp_policy(table: Mapping[str, Any], *, what: str) -> SnpPolicy:
    """Return the reference values that a table spells.

    Args:
        table: Its keys are among ``SNP_KEYS``; the caller has made sure.
        what: Names the table, for errors.

    Raises:
        ConfigurationError: A key of another type; no measurement; an empty list.
    """
    if "measurement" not in table:
        raise ConfigurationError(
            f"{what}: measurement is missing.",
            remedy='List the accepted ones, or write { unchecked = "why" }.',
        )
    return SnpPolicy(
        references={
            name: read_references(
                table.get(name, {"unchecked": f"the policy lists no {name}"}),
                what=f"{what} {name}",
                pattern=pattern,
                form=form,
            )
            for name, (pattern, form) in _REFERENCES.items()
        },
        min_tcb=_read_levels(table, "min_tcb", what),
        min_launch_tcb=_read_levels(table, "min_launch_tcb", what),
        min_abi=_read_abi(table, what),
        max_vmpl=_read_integer(
            table.get("max_vmpl", 0), what=f"{what} max_vmpl", most=MAX_VMPL
        ),
        flags=_read_flags(table, what),
        require_crl=_read_boolean(table, "require_crl", what),
    )


def _read_flags(table: Mapping[str, Any], what: str) -> dict[str, tuple[str, ...]]:
    return {
        key: read_list(
            table[key],
            what=f"{what} {key}",
            pattern=re.compile("|".join(bits)),
            form=f"name: {', '.join(bits)}",
        )
        if key in table
        else ()
        for key, bits in _FLAGS.items()
    }


def _read_levels(table: Mapping[str, Any], key: str, what: str) -> Levels | Unchecked:
    value = table.get(key, {"unchecked": f"the policy sets no {key}"})
    what = f"{what} {key}"
    if isinstance(value, Mapping) and "unchecked" in value:
        reason = read_references(value, what=what, pattern=_ABI, form="level")
        if isinstance(reason, Unchecked):
            return reason
    levels = require_known(value, frozenset({*LEVELS, FMC}), what=what)
    if missing := [name for name in LEVELS if name not in levels]:
        raise ConfigurationError(f"{what}: {missing[0]} is missing.")
    return {
        name: _read_integer(levels[name], what=f"{what} {name}", most=255)
        for name in (*LEVELS, FMC)
        if name in levels
    }


def _read_abi(table: Mapping[str, Any], what: str) -> tuple[int, int] | Unchecked:
    value = table.get("min_abi", {"unchecked": "the policy sets no min_abi"})
    what = f"{what} min_abi"
    if isinstance(value, Mapping):
        reason = read_references(value, what=what, pattern=_ABI, form="version")
        if isinstance(reason, Unchecked):
            return reason
    if not isinstance(value, str) or not _ABI.fullmatch(value):
        raise ConfigurationError(f'{what}: got {value!r:.60}, want such as "1.55".')
    major, minor = map(int, value.split("."))
    return major, minor


def _read_integer(value: object, *, what: str, most: int) -> int:
    # Not isinstance: true is an integer to it.
    if type(value) is not int or not 0 <= value <= most:
        raise ConfigurationError(f"{what}: got {value!r:.60}, want 0 to {most}.")
    return value


def _read_boolean(table: Mapping[str, Any], key: str, what: str) -> bool:
    value = table.get(key, False)
    if type(value) is not bool:
        raise ConfigurationError(
            f"{what} {key}: got {value!r:.60}, want true or false."
        )
    return value
