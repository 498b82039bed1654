"""The configuration of a deployment: what all of its parties must hold alike.

Its digest stands in every key document, and callers list it in their trust files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bentoml_secure.digest import Digest, digest_json, require_fields
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.scenario.demands import Proving
from bentoml_secure.scenario.reading import OTHERS
from bentoml_secure.scenario.scenarios import Scenario, Scenarios

MAX_SERVICE_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Which services a deployment consists of, beside its entry.

    Attributes:
        service: Name of the entry service.
        segments: Of the plan.
        replicas: Of each segment.
        referees: Whether each segment has a referee.
        provers: Whether each segment has a prover.
    """

    service: str
    segments: int
    replicas: int
    referees: bool
    provers: bool = False

    def replica_names(self, segment: int) -> tuple[str, ...]:
        """Return the names of a segment's replicas."""
        return tuple(
            runner_name(self.service, segment, replica)
            for replica in range(self.replicas)
        )

    def referee_name(self, segment: int) -> str | None:
        """Return the name of a segment's referee, if it has one."""
        return referee_name(self.service, segment) if self.referees else None

    def prover_name(self, segment: int) -> str | None:
        """Return the name of a segment's prover, if it has one."""
        return prover_name(self.service, segment) if self.provers else None

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
        said = document if isinstance(document, dict) else {}
        table, service = said.get("topology"), said.get("service")
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
        return cls(service=service, provers=said.get("proofs") is not None, **counts)


def runner_name(service: str, segment: int, replica: int) -> str:
    """Return the name of a replica's service: unique in the deployment."""
    return f"{service}Segment{segment}Replica{replica}"


def referee_name(service: str, segment: int) -> str:
    """Return the name of the service of a segment's referee."""
    return f"{service}Segment{segment}Referee"


def prover_name(service: str, segment: int) -> str:
    """Return the name of the service of a segment's prover."""
    return f"{service}Prover{segment}"


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
        proofs: Digest of the manifest of the proof set-up; None where nothing is
            proven.
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
    proofs: Digest | None = None
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
        if scenario.proof is not Proving.NONE and self.proofs is None:
            raise ConfigurationError(
                f"scenario {scenario.name!r} asks for proofs, the service has no "
                "proof set-up.",
                remedy="Make one with `bentoml-secure prove setup` and name it with "
                "proofs= of the service.",
            )

    @property
    def topology(self) -> Topology:
        """Which services it consists of."""
        return Topology(
            service=self.service,
            segments=self.segments,
            replicas=self.replicas,
            referees=self.referees,
            provers=self.proofs is not None,
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
        proofs = {} if self.proofs is None else {"proofs": {"manifest": self.proofs}}
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
            **proofs,
            **self.scenarios.to_json(),
        }
