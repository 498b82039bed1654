"""Scenarios: what one request must carry; and the configuration of a deployment.

A scenario is a TOML table with a name. The caller asks for one by name and gets that
or a refusal; its digest stands in every receipt. The configuration is what all
parties of a deployment must hold alike: its digest stands in every key document.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, assert_never

from bentoml_secure.attestation.evidence import VerifiedClaims, parse_kind
from bentoml_secure.digest import Digest, digest_json
from bentoml_secure.errors import ConfigurationError, MalformedInputError

MAX_SCENARIO_BYTES = 64 * 1024
MAX_PLACED_KINDS = 32
OTHERS = "*"
"""In a placement: every segment that it does not name."""

_BOUNDS: Mapping[str, tuple[int, int]] = {
    "replicas": (1, 64),
    "quorum": (1, 64),
    "deadline_ms": (1, 3_600_000),
    "grace_ms": (0, 60_000),
    "evidence_max_age_seconds": (1, 86_400),
}
# What a file may leave out, and what it then says.
_DEFAULTS: Mapping[str, Any] = {
    "sealed": True,
    "independence": "none",
    "placement": {},
}
_SEGMENT = re.compile(r"0|[1-9][0-9]{0,2}")


class Independence(StrEnum):
    """What the replicas of a quorum must not share, from verified evidence."""

    NONE = "none"
    PLATFORM = "platform"
    VENDOR = "vendor"

    def voice(self, replica: str, claims: VerifiedClaims | None) -> str:
        """Return the voice that a replica votes with: equal ones count once.

        Args:
            replica: The replica's name.
            claims: Of its accepted evidence; None where it showed none. It then has
                a voice of its own, for it cannot vote.
        """
        if self is Independence.NONE or claims is None:
            return replica
        # The word in front keeps a replica's name and an empty id apart.
        match self:
            case Independence.PLATFORM:
                return f"platform {claims.platform_id}"
            case Independence.VENDOR:
                return f"vendor {claims.vendor}"
            case _:
                assert_never(self)

    def weaker_than(self, other: Independence) -> bool:
        """Tell whether ``other`` demands more."""
        demands = list(Independence)
        return demands.index(self) < demands.index(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What one request must carry.

    Attributes:
        name: The table's name.
        replicas: Committee size per segment, n.
        quorum: Votes that must agree; more than half of ``replicas``.
        deadline_ms: Per segment: no quorum by then is a refusal. Milliseconds.
        grace_ms: How long votes are still collected after a decision. Milliseconds.
        evidence_max_age_seconds: Evidence older than this serves no request.
        sealed: Whether tensors travel sealed between entry and runners.
        independence: What agreeing replicas must not share, or they count once.
        placement: Kinds of evidence (TEE classes) by segment, "0", "1" and so on, or
            "*" for the segments not named. Who shows another kind may not run that
            segment. A segment without an entry is open to every kind that the
            appraisal policy allows.
        digest: By which receipts and trust files name the scenario.
    """

    name: str
    replicas: int
    quorum: int
    deadline_ms: int
    grace_ms: int
    evidence_max_age_seconds: int
    sealed: bool = True
    independence: Independence = Independence.NONE
    placement: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # One spelling of a set, and one digest.
        placed = {key: tuple(sorted(kinds)) for key, kinds in self.placement.items()}
        object.__setattr__(self, "placement", placed)
        object.__setattr__(self, "digest", digest_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return the document whose digest receipts carry."""
        return {
            "name": self.name,
            **{field: getattr(self, field) for field in _BOUNDS},
            "sealed": self.sealed,
            "independence": self.independence.value,
            "placement": {key: list(kinds) for key, kinds in self.placement.items()},
        }

    @classmethod
    def from_json(cls, document: object) -> Scenario:
        """Parse a scenario's document; what has a default may be left out.

        Raises:
            ConfigurationError: A field is missing, unknown or out of range.
        """
        if not isinstance(document, dict) or not isinstance(document.get("name"), str):
            raise ConfigurationError("scenario: want a table with a name")
        name = document["name"]
        what = f"scenario {name!r:.60}"
        fields = {**_DEFAULTS, **document}
        del fields["name"]
        known = {*_BOUNDS, *_DEFAULTS}
        if fields.keys() != known:
            odd = sorted(fields.keys() ^ known)
            raise ConfigurationError(
                f"{what}: missing or unknown {', '.join(odd):.200}; want exactly "
                f"{', '.join(_BOUNDS)}, and where wanted {', '.join(_DEFAULTS)}."
            )
        if not isinstance(fields["sealed"], bool):
            raise ConfigurationError(f"{what} sealed: want true or false")
        return cls(
            name=name,
            **_read_counts(fields, what),
            sealed=fields["sealed"],
            independence=read_independence(fields["independence"], what=what),
            placement=_read_placement(fields["placement"], f"{what} placement"),
        )

    def kinds(self, segment: int) -> tuple[str, ...] | None:
        """Return the kinds that may run a segment; None where any may."""
        return self._placed(str(segment))

    def _placed(self, key: str) -> tuple[str, ...] | None:
        return self.placement.get(key, self.placement.get(OTHERS))

    def weaker_than(self, minimum: Scenario) -> list[str]:
        """Return the fields in which this scenario demands less than ``minimum``."""
        more = ("replicas", "quorum")
        weaker = [f for f in more if getattr(self, f) < getattr(minimum, f)]
        if self.evidence_max_age_seconds > minimum.evidence_max_age_seconds:
            weaker.append("evidence_max_age_seconds")
        if minimum.sealed and not self.sealed:
            weaker.append("sealed")
        if self.independence.weaker_than(minimum.independence):
            weaker.append("independence")
        if self._places_wider_than(minimum):
            weaker.append("placement")
        return weaker

    def _places_wider_than(self, minimum: Scenario) -> bool:
        for key in {OTHERS, *self.placement, *minimum.placement}:
            own, least = self._placed(key), minimum._placed(key)
            if least is not None and (own is None or not set(own) <= set(least)):
                return True
        return False


def read_independence(value: object, *, what: str) -> Independence:
    """Return the independence that a file asks for by name.

    Raises:
        ConfigurationError: No such name.
    """
    if not isinstance(value, str) or value not in tuple(Independence):
        raise ConfigurationError(
            f"{what} independence: got {value!r:.40}, "
            f"want one of {', '.join(Independence)}."
        )
    return Independence(value)


def _read_counts(fields: Mapping[str, Any], what: str) -> dict[str, int]:
    for bound, (low, high) in _BOUNDS.items():
        value = fields[bound]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigurationError(f"{what} {bound}: want an integer")
        if not low <= value <= high:
            raise ConfigurationError(
                f"{what} {bound}: got {value}, want {low} to {high}"
            )
    if not fields["replicas"] // 2 < fields["quorum"] <= fields["replicas"]:
        raise ConfigurationError(
            f"{what} quorum: got {fields['quorum']}, want more than "
            f"half of {fields['replicas']} replicas.",
            remedy="With n = 2f+1 replicas the quorum is f+1.",
        )
    return {bound: fields[bound] for bound in _BOUNDS}


def _read_placement(value: object, what: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{what}: got {value!r:.60}, want a table")
    for key in value:
        if key != OTHERS and not _SEGMENT.fullmatch(key):
            raise ConfigurationError(
                f"{what}: got segment {key!r:.60}, want 0 to 999 or {OTHERS!r}"
            )
    return {key: _read_kinds(kinds, f"{what} {key}") for key, kinds in value.items()}


def _read_kinds(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_PLACED_KINDS:
        raise ConfigurationError(
            f"{what}: got {value!r:.60}, want a list of 1 to {MAX_PLACED_KINDS} kinds"
        )
    try:
        kinds = {parse_kind(kind, what=what) for kind in value}
    except MalformedInputError as error:
        raise ConfigurationError(str(error)) from error
    if len(kinds) != len(value):
        raise ConfigurationError(f"{what}: a kind stands twice")
    return tuple(kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenarios:
    """The scenarios of a service and the least that it serves."""

    minimum: str
    by_name: Mapping[str, Scenario]

    def select(self, name: str | None) -> Scenario:
        """Return the scenario asked for, or the minimum where none was.

        Raises:
            ConfigurationError: Unknown, or weaker than the service's minimum.
        """
        least = self.by_name[self.minimum]
        if name is None:
            return least
        if name not in self.by_name:
            raise ConfigurationError(
                f"scenario: got {name!r:.60}, want one of {', '.join(self.by_name)}."
            )
        chosen = self.by_name[name]
        if weaker := chosen.weaker_than(least):
            raise ConfigurationError(
                f"scenario {name!r:.60}: below the service's minimum "
                f"{self.minimum!r} in {', '.join(weaker)}."
            )
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Return the document that enters the configuration digest."""
        return {
            "minimum": self.minimum,
            "scenarios": [s.to_json() for _, s in sorted(self.by_name.items())],
        }


def parse_scenarios(data: bytes) -> Scenarios:
    """Parse a scenarios file (TOML).

    Raises:
        ConfigurationError: Not TOML, an unknown key, no scenario, no such minimum.
    """
    if len(data) > MAX_SCENARIO_BYTES:
        raise ConfigurationError(
            f"scenarios: got {len(data)} bytes, want at most {MAX_SCENARIO_BYTES}"
        )
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        # Beside its own error: integers of thousands of digits, deep nesting.
        raise ConfigurationError(f"scenarios: not TOML: {error}") from error
    if document.pop("version", None) != 1:
        raise ConfigurationError("scenarios version: want 1")
    minimum = document.pop("minimum", None)
    for name, table in document.items():
        if not isinstance(table, dict) or "name" in table:
            raise ConfigurationError(f"scenarios: unknown key {name!r:.60}")
    by_name = {
        name: Scenario.from_json({"name": name, **table})
        for name, table in document.items()
    }
    if not isinstance(minimum, str) or minimum not in by_name:
        raise ConfigurationError(
            f"scenarios minimum: got {minimum!r:.60}, want the name of a scenario here"
        )
    return Scenarios(minimum=minimum, by_name=by_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What all parties of one deployment hold alike; URLs and keys are left out.

    Attributes:
        service: Name of the entry service.
        replicas: Replicas of each segment.
        segments: Segments of the plan.
        scenarios: As the service offers them.
        policy: The appraisal policy's document: who may be a runner, and who the
            broker of its key.
        sealed: Weights lie sealed, and a broker releases their keys.
        signer: Of the model; ``keys.model_signing.signer_digest``. None: nobody's
            signature is demanded.
        digest: The ``config_digest`` of key documents and trust files.
    """

    service: str
    replicas: int
    segments: int
    scenarios: Scenarios
    policy: Mapping[str, Any]
    sealed: bool = False
    signer: Digest | None = None
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_json(self.to_json()))
        for scenario in self.scenarios.by_name.values():
            if scenario.replicas > self.replicas:
                raise ConfigurationError(
                    f"scenario {scenario.name!r} asks for {scenario.replicas} "
                    f"replicas, the service has {self.replicas}.",
                    remedy="Raise replicas= of the service or lower the scenario's.",
                )
            self._require_placeable(scenario)

    def _require_placeable(self, scenario: Scenario) -> None:
        what = f"scenario {scenario.name!r} placement"
        for key, kinds in scenario.placement.items():
            if key != OTHERS and int(key) >= self.segments:
                raise ConfigurationError(
                    f"{what}: got segment {key}, the plan has {self.segments}, from 0."
                )
            allowed = self.policy.get("allow", ())
            if not set(kinds) & set(allowed):
                raise ConfigurationError(
                    f"{what} {key}: got {', '.join(kinds)}, want one that the "
                    f"appraisal policy allows: {', '.join(allowed)}."
                )

    def to_json(self) -> dict[str, Any]:
        """Return the document whose digest is ``config_digest``.

        What is not demanded of the model is left out of it.
        """
        model: dict[str, Any] = {"sealed": True} if self.sealed else {}
        if self.signer is not None:
            model["signer"] = self.signer
        return {
            "version": 1,
            "service": self.service,
            "topology": {"segments": self.segments, "replicas": self.replicas},
            "policy": dict(self.policy),
            **({"model": model} if model else {}),
            **self.scenarios.to_json(),
        }
