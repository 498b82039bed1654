"""Scenarios: what one request must carry; and the configuration of a deployment.

A scenario is a TOML table with a name. The caller asks for one by name and gets that
or a refusal; its digest stands in every receipt. The configuration is what all
parties of a deployment must hold alike: its digest stands in every key document.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bentoml_secure.digest import Digest, digest_json
from bentoml_secure.errors import ConfigurationError

MAX_SCENARIO_BYTES = 64 * 1024

_BOUNDS: Mapping[str, tuple[int, int]] = {
    "replicas": (1, 64),
    "quorum": (1, 64),
    "deadline_ms": (1, 3_600_000),
    "grace_ms": (0, 60_000),
    "evidence_max_age_seconds": (1, 86_400),
}


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
        digest: By which receipts and trust files name the scenario.
    """

    name: str
    replicas: int
    quorum: int
    deadline_ms: int
    grace_ms: int
    evidence_max_age_seconds: int
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return the document whose digest receipts carry."""
        return {"name": self.name, **{field: getattr(self, field) for field in _BOUNDS}}

    @classmethod
    def from_json(cls, document: object) -> Scenario:
        """Parse a scenario's document.

        Raises:
            ConfigurationError: A field is missing, unknown or out of range.
        """
        if not isinstance(document, dict) or not isinstance(document.get("name"), str):
            raise ConfigurationError("scenario: want a table with a name")
        name = document["name"]
        fields = {key: value for key, value in document.items() if key != "name"}
        if fields.keys() != _BOUNDS.keys():
            odd = sorted(fields.keys() ^ _BOUNDS.keys())
            raise ConfigurationError(
                f"scenario {name!r:.60}: missing or unknown {', '.join(odd):.200}; "
                f"want exactly {', '.join(_BOUNDS)}."
            )
        for bound, (low, high) in _BOUNDS.items():
            value = fields[bound]
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigurationError(
                    f"scenario {name!r:.60} {bound}: want an integer"
                )
            if not low <= value <= high:
                raise ConfigurationError(
                    f"scenario {name!r:.60} {bound}: got {value}, want {low} to {high}"
                )
        if not fields["replicas"] // 2 < fields["quorum"] <= fields["replicas"]:
            raise ConfigurationError(
                f"scenario {name!r:.60} quorum: got {fields['quorum']}, want more than "
                f"half of {fields['replicas']} replicas.",
                remedy="With n = 2f+1 replicas the quorum is f+1.",
            )
        return cls(name=name, **fields)

    def weaker_than(self, minimum: Scenario) -> list[str]:
        """Return the fields in which this scenario demands less than ``minimum``."""
        more = ("replicas", "quorum")
        weaker = [f for f in more if getattr(self, f) < getattr(minimum, f)]
        if self.evidence_max_age_seconds > minimum.evidence_max_age_seconds:
            weaker.append("evidence_max_age_seconds")
        return weaker


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
        policy: The appraisal policy's document: who may be a runner.
        digest: The ``config_digest`` of key documents and trust files.
    """

    service: str
    replicas: int
    segments: int
    scenarios: Scenarios
    policy: Mapping[str, Any]
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

    def to_json(self) -> dict[str, Any]:
        """Return the document whose digest is ``config_digest``."""
        return {
            "version": 1,
            "service": self.service,
            "topology": {"segments": self.segments, "replicas": self.replicas},
            "policy": dict(self.policy),
            **self.scenarios.to_json(),
        }
