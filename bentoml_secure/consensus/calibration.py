"""From distances of honest runs and of cheats to a tolerance, or a refusal.

    tolerance = margin x the largest distance of any two honest runs of one input

What is promised of it is promised of the largest distance, without any assumption
about how distances are distributed: of ``n`` inputs drawn alike none lay further apart,
so with 95 % confidence another one does with a probability of at most
``1 - 0.05 ** (1 / n)`` (Clopper and Pearson's upper bound for none of ``n``; for a
threshold that is the sample's own maximum, Wilks' bound, which is the same). Pairs of
one input are not independent, so inputs are counted and never pairs. The margin is on
top of that, and no number stands for it.

A cheat is measured where it has an effect: an answer with the very bits of the honest
one is a right answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from bentoml_secure.errors import ConfigurationError, Finding, PolicyRejected
from bentoml_secure.tensors import Array, as_bytes, canonical

CONFIDENCE = 0.95
MARGIN = 8.0

Answer = Mapping[str, Array]
Distance = Callable[[Answer, Answer], float | None]


def false_alarm_bound(inputs: int, *, confidence: float = CONFIDENCE) -> float:
    """Return how likely, at most, a further input exceeds the largest of ``inputs``.

    Args:
        inputs: How many were seen, drawn independently and alike.
        confidence: With which the bound holds.
    """
    return float(1 - (1 - confidence) ** (1 / inputs))


def committee_bound(pair: float, members: int) -> float:
    """Return the same for a committee: that any of its pairs exceeds.

    Exact for pairs that exceed independently. A committee whose runtimes were all
    measured together needs none of it: the bound of an input covers all its pairs.

    Args:
        pair: The probability for one pair.
        members: How many answer.
    """
    return float(1 - (1 - pair) ** (members * (members - 1) // 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far honest runs lie apart.

    Attributes:
        per_input: Largest distance of any two runs, for each input.
        pairs: How many pairs were compared.
        farthest: The two runs of the largest distance.
    """

    per_input: tuple[float, ...]
    pairs: int
    farthest: tuple[str, str]

    @property
    def largest(self) -> float:
        """Of all inputs."""
        return max(self.per_input)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cheat:
    """How far one altered segment lies from the honest runs.

    Attributes:
        name: Of the alteration.
        distances: To the nearest honest run, for each input whose answer it changes;
            infinite where the rule cannot compare them.
        unchanged: How many inputs it answers with the honest bits.
        not_applicable: Why there is no such alteration of this segment, or "".
    """

    name: str
    distances: tuple[float, ...] = ()
    unchanged: int = 0
    not_applicable: str = ""

    @property
    def smallest(self) -> float | None:
        """Over the inputs; None where it has no effect on any."""
        return min(self.distances, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A tolerance with what speaks for it.

    Attributes:
        tolerance: In the rule's unit.
        margin: How many times the largest honest distance it is.
        false_alarm: See ``false_alarm_bound``, of the largest honest distance.
        nearest: The cheat that comes closest, of those at a finite distance.
    """

    tolerance: float
    margin: float
    spread: Spread
    cheats: tuple[Cheat, ...]
    false_alarm: float
    nearest: Cheat | None

    @property
    def passing(self) -> tuple[Cheat, ...]:
        """The cheats that the tolerance does not tell from honest runs."""
        return tuple(c for c in self.cheats if _smallest(c) <= self.tolerance)


def honest_spread(
    answers: Mapping[str, Sequence[Answer]], distance: Distance
) -> Spread:
    """Compare every run with every other one, input by input.

    Args:
        answers: Of each run, by its name: one for each input, in the same order. What
            only some runs give is compared among those.
        distance: Of the rule.

    Raises:
        ConfigurationError: Fewer than two runs, or no inputs.
        PolicyRejected: Two honest answers that the rule cannot compare.
    """
    counts = {len(rows) for rows in answers.values()}
    if len(answers) < 2 or len(counts) != 1 or counts == {0}:
        raise ConfigurationError(
            f"honest runs: got {len(answers)} with {sorted(counts)} answers, "
            "want at least 2 with as many answers each"
        )
    names = list(answers)
    farthest, largest = (names[0], names[1]), -1.0
    per_input = []
    for row in range(counts.pop()):
        unlike = _unlike({name: answers[name][row] for name in names})
        here = 0.0
        for left, right in combinations(unlike, 2):
            found = _between(unlike[left], unlike[right], distance)
            if found is None:
                raise PolicyRejected(
                    f"honest runs {left} and {right} cannot be compared: another rule, "
                    "or fewer runtimes, must be named",
                    [Finding(f"input {row}", "not comparable", "a distance")],
                )
            here = max(here, found)
            if found > largest:
                farthest, largest = (left, right), found
        per_input.append(here)
    return Spread(
        per_input=tuple(per_input),
        pairs=len(per_input) * len(names) * (len(names) - 1) // 2,
        farthest=farthest,
    )


def _unlike(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """Return one run of each kind of answer: the same bits are at distance 0."""
    found: dict[tuple[object, ...], str] = {}
    for name, answer in answers.items():
        found.setdefault(_bits(answer), name)
    return {name: answers[name] for name in found.values()}


def _bits(answer: Answer) -> tuple[object, ...]:
    return tuple(
        (name, array.dtype.name, array.shape, bytes(as_bytes(canonical(array))))
        for name, array in sorted(answer.items())
    )


def _between(left: Answer, right: Answer, distance: Distance) -> float | None:
    common = left.keys() & right.keys()
    if not common:
        return 0.0
    return distance(
        {name: left[name] for name in sorted(common)},
        {name: right[name] for name in sorted(common)},
    )


def cheat_spread(
    name: str,
    altered: Sequence[Answer],
    answers: Mapping[str, Sequence[Answer]],
    reference: str,
    distance: Distance,
) -> Cheat:
    """Compare an altered segment's answers with every honest run's.

    Args:
        name: Of the alteration.
        altered: Its answers, one for each input.
        answers: Those of the honest runs, as for ``honest_spread``.
        reference: The honest run that the altered one is like in all else.
        distance: Of the rule.
    """
    distances, unchanged = [], 0
    for row, answer in enumerate(altered):
        if _bits(answer) == _bits(answers[reference][row]):
            unchanged += 1
            continue
        honest = _unlike({run: rows[row] for run, rows in answers.items()})
        found = [_between(answer, other, distance) for other in honest.values()]
        distances.append(min(math.inf if one is None else one for one in found))
    return Cheat(name=name, distances=tuple(distances), unchanged=unchanged)


def calibrate(
    spread: Spread, cheats: Sequence[Cheat], *, margin: float = MARGIN
) -> Calibrated:
    """Return the tolerance that honest runs ask for, and how near cheats come to it.

    Args:
        spread: Of the honest runs.
        cheats: All that were tried, those without effect included.
        margin: At least 1.

    Raises:
        ConfigurationError: A margin below 1.
    """
    if not math.isfinite(margin) or margin < 1:
        raise ConfigurationError(f"margin: got {margin}, want a number from 1")
    measured = [cheat for cheat in cheats if math.isfinite(_smallest(cheat))]
    return Calibrated(
        tolerance=margin * spread.largest,
        margin=margin,
        spread=spread,
        cheats=tuple(cheats),
        false_alarm=false_alarm_bound(len(spread.per_input)),
        nearest=min(measured, key=_smallest, default=None),
    )


def require_apart(found: Mapping[str, Calibrated]) -> None:
    """Refuse tolerances that a cheat would pass.

    Args:
        found: By the segment's name.

    Raises:
        PolicyRejected: The smallest distance of a cheat is at or under the tolerance;
            ``findings`` has every such cheat.
    """
    findings, causes = [], []
    for what, calibrated in found.items():
        passing = calibrated.passing
        want = f"over {calibrated.tolerance:.3g}"
        findings += [
            Finding(f"{what} {cheat.name}", f"distance {_smallest(cheat):.3g}", want)
            for cheat in passing
        ]
        if passing:
            left, right = calibrated.spread.farthest
            causes.append(
                f"{what} wants {calibrated.margin:g} times the "
                f"{calibrated.spread.largest:.3g} between honest {left} and {right}"
            )
    if findings:
        raise PolicyRejected(
            f"cheats would pass: {'; '.join(causes)}. Permit fewer runtimes, lower the "
            "margin, or name another rule",
            findings,
        )


def _smallest(cheat: Cheat) -> float:
    return math.inf if cheat.smallest is None else cheat.smallest
