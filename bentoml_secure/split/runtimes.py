"""What segments may run on: a plan's own runtime, and others that it permits.

Honest replicas on different runtimes answer with other last bits. A plan's tolerances
hold for the runtimes that were calibrated, so it names them, and a runner on any other
does not start.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split.plan_fields import fields, items, text, version_range

ONNX_RUNTIME = "onnxruntime"
TORCH = "torch"
MAX_PERMITTED = 32


class GraphLevel(StrEnum):
    """How far ONNX Runtime may rewrite a graph before it runs."""

    NONE = "DISABLE_ALL"
    BASIC = "BASIC"
    EXTENDED = "EXTENDED"


GRAPH_LEVEL = GraphLevel.EXTENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeChoice:
    """What one runner runs its segment on.

    Attributes:
        name: ``onnxruntime`` or ``torch``.
        graph_level: Of ONNX Runtime; None for torch.
    """

    name: str = ONNX_RUNTIME
    graph_level: GraphLevel | None = GRAPH_LEVEL

    @classmethod
    def parse(cls, words: str) -> Self:
        """Parse ``torch``, ``onnxruntime``, or ``onnxruntime:`` and a graph level.

        Raises:
            ConfigurationError: Anything else.
        """
        name, colon, level = words.partition(":")
        if words == TORCH:
            return cls(name=TORCH, graph_level=None)
        if name == ONNX_RUNTIME and (not colon or level in list(GraphLevel)):
            return cls(graph_level=GraphLevel(level) if colon else GRAPH_LEVEL)
        levels = ", ".join(f"{ONNX_RUNTIME}:{one}" for one in GraphLevel)
        raise ConfigurationError(
            f"runtime: got {words!r:.60}, want one of {TORCH}, {ONNX_RUNTIME}, {levels}"
        )

    def __str__(self) -> str:
        return f"{self.name}:{self.graph_level}" if self.graph_level else self.name


DEFAULT = RuntimeChoice()
"""What a plan's segments are compared with the whole on; always permitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PermittedRuntime:
    """One more runtime that replicas may be on.

    Attributes:
        name: ``onnxruntime`` or ``torch``.
        version: Range of its versions, as in PEP 440.
        graph_level: Of ONNX Runtime, EXTENDED unless said; None for torch.
    """

    name: str
    version: str
    graph_level: GraphLevel | None

    def __post_init__(self) -> None:
        if self.name not in (ONNX_RUNTIME, TORCH):
            raise MalformedInputError(
                f"permitted runtime: got {self.name!r:.60}, "
                f"want {ONNX_RUNTIME} or {TORCH}"
            )
        if (self.graph_level is None) != (self.name == TORCH):
            raise MalformedInputError(
                f"permitted {self.name}: want a graph_level with {ONNX_RUNTIME}, "
                f"and none with {TORCH}"
            )
        _ = self.allowed

    @property
    def allowed(self) -> SpecifierSet:
        """The range of versions."""
        return version_range(self.version, f"permitted {self.name} version")

    @property
    def choice(self) -> RuntimeChoice:
        """What a runner is told to be on it."""
        return RuntimeChoice(name=self.name, graph_level=self.graph_level)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Parse an entry of ``permitted``.

        Raises:
            MalformedInputError: Not one.
        """
        entry = fields(
            value,
            {"name", "version"},
            "permitted runtime",
            optional=["graph_level"],
        )
        name = text(entry["name"], "permitted runtime name")
        level = entry.get("graph_level", None if name == TORCH else GRAPH_LEVEL)
        if level is not None and level not in list(GraphLevel):
            raise MalformedInputError(
                f"permitted {name:.60} graph_level: got {level!r:.60}, "
                f"want one of {', '.join(GraphLevel)}"
            )
        return cls(
            name=name,
            version=text(entry["version"], "permitted runtime version"),
            graph_level=None if level is None else GraphLevel(level),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the entry of ``permitted``."""
        entry = {"name": self.name, "version": self.version}
        if self.graph_level not in (None, GRAPH_LEVEL):
            entry["graph_level"] = str(self.graph_level)
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the plan was made for: versions of ONNX Runtime, graph optimisation.

    Attributes:
        name: ``onnxruntime``.
        version: Range of its versions, as in PEP 440.
        graph_level: EXTENDED: what the segments were compared with the whole at.
        permitted: Runtimes that replicas may be on as well.
    """

    name: str = ONNX_RUNTIME
    version: str
    graph_level: str = GRAPH_LEVEL.value
    permitted: tuple[PermittedRuntime, ...] = ()

    def __post_init__(self) -> None:
        if self.name != ONNX_RUNTIME:
            raise MalformedInputError(
                f"runtime name: got {self.name!r:.60}, want {ONNX_RUNTIME!r}"
            )
        if self.graph_level != GRAPH_LEVEL:
            raise MalformedInputError(
                f"runtime graph_level: got {self.graph_level!r:.60}, "
                f"want {GRAPH_LEVEL.value!r}"
            )
        _ = self.allowed
        if len(set(self.permitted)) != len(self.permitted):
            raise MalformedInputError("permitted runtimes: one stands there twice")
        if len(self.permitted) > MAX_PERMITTED:
            raise MalformedInputError(
                f"permitted runtimes: got {len(self.permitted)}, "
                f"want at most {MAX_PERMITTED}"
            )

    @property
    def allowed(self) -> SpecifierSet:
        """The range of versions."""
        return version_range(self.version, "runtime version")

    def ranges(self, choice: RuntimeChoice) -> tuple[str, ...]:
        """Return the ranges of versions that a choice may have; none if not permitted.

        Args:
            choice: What a runner is told to run its segment on.
        """
        own = (self.version,) if choice == DEFAULT else ()
        return own + tuple(
            one.version for one in self.permitted if one.choice == choice
        )

    def permits(self, choice: RuntimeChoice, installed: Version) -> bool:
        """Return whether a runner may be on this choice, at the installed version."""
        ranges = [version_range(one, "runtime version") for one in self.ranges(choice)]
        return any(installed in one for one in ranges)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Parse ``runtime`` of plan.json.

        Raises:
            MalformedInputError: Not one.
        """
        entry = fields(
            value,
            {"name", "version", "graph_level"},
            "runtime",
            optional=["permitted"],
        )
        permitted = items(entry.get("permitted", []), "permitted", MAX_PERMITTED)
        return cls(
            name=text(entry["name"], "runtime name"),
            version=text(entry["version"], "runtime version"),
            graph_level=text(entry["graph_level"], "runtime graph_level"),
            permitted=tuple(map(PermittedRuntime.from_json, permitted)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return ``runtime`` of plan.json."""
        entry: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "graph_level": self.graph_level,
        }
        if self.permitted:
            entry["permitted"] = [one.to_json() for one in self.permitted]
        return entry
