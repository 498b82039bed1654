"""What a plan says of how a segment's tolerance was found; see docs/calibration.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.split.plan_fields import amount, fields, items, text

MAX_RUNTIMES = 64
MAX_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestCheat:
    """The listed cheat whose answers came closest to an honest one.

    Attributes:
        name: Of the alteration.
        distance: The smallest that it was seen at, in the rule's unit.
    """

    name: str
    distance: float

    def __post_init__(self) -> None:
        _require_words(self.name, "nearest cheat")
        amount(self.distance, "nearest cheat distance")

    def to_json(self) -> dict[str, Any]:
        """Return ``nearest_cheat`` of plan.json."""
        return {"name": self.name, "distance": self.distance}


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """How a segment's tolerance was found.

    Attributes:
        inputs: How many inputs the honest runs were compared on.
        pairs: How many pairs of honest runs; more than one come from one input.
        largest: Largest distance of such a pair, in the rule's unit.
        margin: How many times the largest the tolerance is.
        false_alarm: Upper bound at 95 % for the probability that, on an input drawn
            like these, some pair of the measured runtimes lies further apart than
            ``largest``.
        runtimes: Honest runs that were compared: runtime, version, threads, batches.
        nearest_cheat: None where no listed cheat has an effect on the segment.
    """

    inputs: int
    pairs: int
    largest: float
    margin: float
    false_alarm: float
    runtimes: tuple[str, ...]
    nearest_cheat: NearestCheat | None = None

    def __post_init__(self) -> None:
        for what, count in (("inputs", self.inputs), ("pairs", self.pairs)):
            if type(count) is not int or count < 1:
                raise MalformedInputError(
                    f"calibration {what}: got {count!r:.40}, want a number from 1"
                )
        amount(self.largest, "calibration largest")
        amount(self.margin, "calibration margin")
        if amount(self.false_alarm, "calibration false_alarm") > 1:
            raise MalformedInputError(
                f"calibration false_alarm: got {self.false_alarm!r:.40}, want 0 to 1"
            )
        if not 2 <= len(self.runtimes) <= MAX_RUNTIMES:
            raise MalformedInputError(
                f"calibration runtimes: got {len(self.runtimes)}, "
                f"want 2 to {MAX_RUNTIMES}"
            )
        for one in self.runtimes:
            _require_words(one, "calibration runtime")
        if len(set(self.runtimes)) != len(self.runtimes):
            raise MalformedInputError("calibration runtimes: one stands there twice")

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Parse ``calibration`` of a segment.

        Raises:
            MalformedInputError: Not one.
        """
        what = "calibration"
        wanted = {"inputs", "pairs", "largest", "margin", "false_alarm", "runtimes"}
        entry = fields(value, wanted, what, optional=["nearest_cheat"])
        cheat = None
        if "nearest_cheat" in entry:
            got = fields(entry["nearest_cheat"], {"name", "distance"}, "nearest cheat")
            cheat = NearestCheat(
                name=text(got["name"], "nearest cheat"), distance=got["distance"]
            )
        runtimes = items(entry["runtimes"], f"{what} runtimes", MAX_RUNTIMES)
        return cls(
            **{name: entry[name] for name in wanted - {"runtimes"}},
            runtimes=tuple(text(one, f"{what} runtime") for one in runtimes),
            nearest_cheat=cheat,
        )

    def to_json(self) -> dict[str, Any]:
        """Return ``calibration`` of a segment."""
        entry: dict[str, Any] = {
            "inputs": self.inputs,
            "pairs": self.pairs,
            "largest": self.largest,
            "margin": self.margin,
            "false_alarm": self.false_alarm,
            "runtimes": list(self.runtimes),
        }
        if self.nearest_cheat is not None:
            entry["nearest_cheat"] = self.nearest_cheat.to_json()
        return entry


def _require_words(value: str, what: str) -> None:
    if not 0 < len(value) <= MAX_CHARACTERS or not value.isprintable():
        raise MalformedInputError(
            f"{what}: got {value!r:.60}, want 1 to {MAX_CHARACTERS} characters"
        )
