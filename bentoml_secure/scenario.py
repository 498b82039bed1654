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
from bentoml_secure.consensus.seating import ESCALATION_STEP
from bentoml_secure.digest import (
    Digest,
    digest_json,
    is_finite_number,
    require_fields,
)
from bentoml_secure.errors import ConfigurationError, MalformedInputError

MAX_SCENARIO_BYTES = 64 * 1024
MAX_PLACED_KINDS = 32
MAX_SERVICE_CHARACTERS = 200
OTHERS = "*"
"""In a placement: every segment that it does not name."""

_BOUNDS: Mapping[str, tuple[int, int]] = {
    "replicas": (1, 64),
    "quorum": (1, 64),
    "deadline_ms": (1, 3_600_000),
    "grace_ms": (0, 60_000),
    "evidence_max_age_seconds": (1, 86_400),
    "spares": (0, 8),
    "escalation": (0, 4),
}
# What a file may leave out, and what it then says.
_DEFAULTS: Mapping[str, Any] = {
    "sealed": True,
    "independence": "none",
    "placement": {},
    "spares": 0,
    "escalation": 0,
    "referee": False,
    "mode": "lock-step",
    "commit_reveal": False,
    "audit_rate": 0.0,
}
_FLAGS = ("sealed", "referee", "commit_reveal")
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


class Mode(StrEnum):
    """Where replicas are compared: after every segment, or at the chain's end."""

    LOCK_STEP = "lock-step"
    END_TO_END = "end-to-end"


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
        spares: Replicas beyond the committee that may take the seats of those that
            are out, failed or slow. A skip for each stands in the receipt: the more
            there may be, the more an entry could choose.
        escalation: How often two more replicas are asked where no quorum agrees.
        referee: Whether the segment's referee decides where no quorum agrees after
            that, and says who was wrong. Its word alone is then believed.
        mode: Where replicas are compared.
        commit_reveal: Whether replicas commit to their answers before any shows one.
        audit_rate: Share of requests that the referees recompute after the answer.
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
    spares: int = 0
    escalation: int = 0
    referee: bool = False
    mode: Mode = Mode.LOCK_STEP
    commit_reveal: bool = False
    audit_rate: float = 0.0
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
            "referee": self.referee,
            "mode": self.mode.value,
            "commit_reveal": self.commit_reveal,
            "audit_rate": self.audit_rate,
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
                f"{', '.join(n for n in _BOUNDS if n not in _DEFAULTS)}, and where "
                f"wanted {', '.join(_DEFAULTS)}."
            )
        for flag in _FLAGS:
            if not isinstance(fields[flag], bool):
                raise ConfigurationError(f"{what} {flag}: want true or false")
        scenario = cls(
            name=name,
            **_read_counts(fields, what),
            sealed=fields["sealed"],
            referee=fields["referee"],
            commit_reveal=fields["commit_reveal"],
            independence=read_independence(fields["independence"], what=what),
            placement=_read_placement(fields["placement"], f"{what} placement"),
            mode=_read_mode(fields["mode"], what),
            audit_rate=_read_share(fields["audit_rate"], f"{what} audit_rate"),
        )
        _require_end_to_end(scenario, what)
        return scenario

    @property
    def most_replicas(self) -> int:
        """How many replicas of a segment may have a seat, escalations included."""
        return self.replicas + ESCALATION_STEP * self.escalation

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
        if self.audit_rate < minimum.audit_rate:
            weaker.append("audit_rate")
        for name in ("sealed", "commit_reveal"):
            if getattr(minimum, name) and not getattr(self, name):
                weaker.append(name)
        # What lets more of the choice, or a verdict, rest with one party.
        for name in ("spares", "escalation"):
            if getattr(self, name) > getattr(minimum, name):
                weaker.append(name)
        if self.referee and not minimum.referee:
            weaker.append("referee")
        if self.mode is not minimum.mode and self.mode is Mode.END_TO_END:
            weaker.append("mode")
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


def _read_mode(value: object, what: str) -> Mode:
    if not isinstance(value, str) or value not in tuple(Mode):
        raise ConfigurationError(
            f"{what} mode: got {value!r:.40}, want one of {', '.join(Mode)}."
        )
    return Mode(value)


def _read_share(value: Any, what: str) -> float:
    if not is_finite_number(value) or not 0 <= value <= 1:
        raise ConfigurationError(f"{what}: got {value!r:.40}, want a share from 0 to 1")
    # Canonical JSON writes 0.0 as 0, and -0.0 too.
    return abs(float(value))


def _require_end_to_end(scenario: Scenario, what: str) -> None:
    """Refuse what can only be had where every segment is compared."""
    if scenario.mode is Mode.LOCK_STEP:
        return
    for name, off in (
        ("spares", not scenario.spares),
        ("escalation", not scenario.escalation),
        ("commit_reveal", not scenario.commit_reveal),
        ("independence", scenario.independence is Independence.NONE),
    ):
        if not off:
            raise ConfigurationError(
                f"{what} {name}: got it beside mode {scenario.mode.value!r}, want it "
                f"with mode {Mode.LOCK_STEP.value!r} only.",
                remedy=f"Leave out {name}, or the mode.",
            )


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
class Topology:
    """Which services a deployment consists of, beside its entry.

    Attributes:
        service: Name of the entry service.
        segments: Of the plan.
        replicas: Of each segment.
        referees: Whether each segment has a referee.
    """

    service: str
    segments: int
    replicas: int
    referees: bool

    def replica_names(self, segment: int) -> tuple[str, ...]:
        """Return the names of a segment's replicas."""
        return tuple(
            runner_name(self.service, segment, replica)
            for replica in range(self.replicas)
        )

    def referee_name(self, segment: int) -> str | None:
        """Return the name of a segment's referee, if it has one."""
        return referee_name(self.service, segment) if self.referees else None

    def runner_names(self, segment: int) -> tuple[str, ...]:
        """Return the names of all that run a segment: replicas, then the referee."""
        referee = self.referee_name(segment)
        return (*self.replica_names(segment), *([referee] if referee else []))

    @classmethod
    def from_configuration(cls, document: object) -> Topology:
        """Read a configuration's document, as a bundle has it.

        Raises:
            MalformedInputError: It says no topology, or one out of all proportion.
        """
        what = "configuration topology"
        table = document.get("topology") if isinstance(document, dict) else None
        service = document.get("service") if isinstance(document, dict) else None
        counts = require_fields(table, ("segments", "replicas", "referees"), what=what)
        if (
            not isinstance(service, str)
            or not 0 < len(service) <= MAX_SERVICE_CHARACTERS
        ):
            raise MalformedInputError("configuration service: want a name")
        for name, most in (("segments", 256), ("replicas", 64)):
            value = counts[name]
            if type(value) is not int or not 0 < value <= most:
                raise MalformedInputError(
                    f"{what} {name}: got {value!r:.40}, want 1 to {most}"
                )
        if not isinstance(counts["referees"], bool):
            raise MalformedInputError(f"{what} referees: want true or false")
        return cls(service=service, **counts)


def runner_name(service: str, segment: int, replica: int) -> str:
    """Return the name of a replica's service: unique in the deployment."""
    return f"{service}Segment{segment}Replica{replica}"


def referee_name(service: str, segment: int) -> str:
    """Return the name of the service of a segment's referee."""
    return f"{service}Segment{segment}Referee"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What all parties of one deployment hold alike; URLs and keys are left out.

    Attributes:
        service: Name of the entry service.
        replicas: Replicas of each segment, N: committees are drawn from them.
        segments: Segments of the plan.
        referees: Whether each segment has a referee beside its replicas.
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
    referees: bool = False
    sealed: bool = False
    signer: Digest | None = None
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_json(self.to_json()))
        for scenario in self.scenarios.by_name.values():
            self._require_enough(scenario)
            self._require_placeable(scenario)

    def _require_enough(self, scenario: Scenario) -> None:
        # A scenario never promises what this deployment cannot do.
        for wanted, why in (
            (scenario.replicas, "replicas"),
            (scenario.most_replicas, "replicas with its escalations"),
            (scenario.replicas + min(scenario.spares, 1), "replicas with a spare"),
        ):
            if wanted > self.replicas:
                raise ConfigurationError(
                    f"scenario {scenario.name!r} asks for {wanted} {why}, the service "
                    f"has {self.replicas}.",
                    remedy="Raise replicas= of the service or lower the scenario's.",
                )
        if (scenario.referee or scenario.audit_rate) and not self.referees:
            raise ConfigurationError(
                f"scenario {scenario.name!r} asks for a referee, the service has none.",
                remedy="Set referees=True of the service; audits need it too.",
            )

    @property
    def topology(self) -> Topology:
        """Which services it consists of."""
        return Topology(
            service=self.service,
            segments=self.segments,
            replicas=self.replicas,
            referees=self.referees,
        )

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
            "topology": {
                "segments": self.segments,
                "replicas": self.replicas,
                "referees": self.referees,
            },
            "policy": dict(self.policy),
            **({"model": model} if model else {}),
            **self.scenarios.to_json(),
        }
