"""The runs behind docs/consensus.md: one replica of twelve cheats; or none does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cheats_asking import Asked, Questioner
from benchmarks.cheats_stage import Seat, Stage
from bentoml_secure.testing.cheats import NOISE

Say = Callable[[str], None]

BLOCK = 72
"""Requests between which reputations are forgotten: six of each seat."""

NOISE_STEPS = 8
NOISE_RANGE = (0.5, 1.9)
NOISE_REQUESTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CheatRun:
    """What became of one cheat.

    Attributes:
        cheat: Its name.
        requests: Asked while some replica did it, each seat in turn.
        detected: With any dissenter in the receipt.
        named: With exactly the cheat as dissenter, of its segment.
        silent: In which the cheat gave no answer in time, and so none to be named for.
        wrong: Answers further from the whole model's than the last segment's tolerance.
        refused: Without an answer.
    """

    cheat: str
    requests: int
    detected: int
    named: int
    silent: int
    wrong: int
    refused: int

    def to_json(self) -> dict[str, Any]:
        """Return it as the command prints it."""
        return asdict(self)


def run_cheat(
    stage: Stage, questioner: Questioner, cheat: str, requests: int
) -> CheatRun:
    """Ask while one replica cheats, another one in each request.

    Args:
        stage: What is served.
        questioner: Asks it.
        cheat: A name of ``testing.cheats``.
        requests: How many count; each replica cheats once before, to have loaded what
            it cheats with.
    """
    stage.forget()
    for seat in stage.seats[:requests]:
        with stage.cheating(seat, cheat):
            questioner.ask()
    tolerance = stage.plan.segments[-1].tolerance
    detected = named = silent = wrong = refused = 0
    for number in range(requests):
        if number % BLOCK == BLOCK - 1:
            stage.forget()
        seat = stage.seats[number % len(stage.seats)]
        with stage.cheating(seat, cheat):
            asked = questioner.ask()
        detected += bool(asked.named)
        named += is_named(asked, seat)
        silent += seat.name in asked.absent
        wrong += _is_wrong(asked, tolerance)
        refused += asked.refused
    return CheatRun(
        cheat=cheat,
        requests=requests,
        detected=detected,
        named=named,
        silent=silent,
        wrong=wrong,
        refused=refused,
    )


def is_named(asked: Asked, seat: Seat) -> bool:
    """Tell whether a receipt names exactly this replica."""
    return asked.named == {(seat.segment, seat.name)}


def _is_wrong(asked: Asked, tolerance: float) -> bool:
    # Shapes that differ, or a value that is none, are wrong too.
    return not asked.refused and (asked.distance is None or asked.distance > tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class HonestRun:
    """What honest replicas on mixed runtimes were accused of.

    Attributes:
        runtimes: Of the three replicas of every segment.
        requests: Asked.
        accusations: Replicas named as dissenters, over all requests.
        absences: Replicas that gave no answer in time, over all requests.
        wrong: As ``CheatRun``.
        refused: As ``CheatRun``.
        largest: Distance of an answer from the whole model's.
    """

    runtimes: tuple[str, ...]
    requests: int
    accusations: int
    absences: int
    wrong: int
    refused: int
    largest: float

    def to_json(self) -> dict[str, Any]:
        """Return it as the command prints it."""
        return {**asdict(self), "runtimes": list(self.runtimes)}


def run_honest(
    stage: Stage,
    questioner: Questioner,
    runtimes: tuple[str, ...],
    requests: int,
    say: Say,
) -> HonestRun:
    """Ask while nobody cheats.

    Args:
        stage: What is served.
        questioner: Asks it.
        runtimes: For the record.
        requests: How many.
        say: Told how far it is.
    """
    tolerance = stage.plan.segments[-1].tolerance
    accusations = absences = wrong = refused = 0
    largest = 0.0
    for number in range(requests):
        asked = questioner.ask()
        accusations += len(asked.named)
        absences += len(asked.absent)
        wrong += _is_wrong(asked, tolerance)
        refused += asked.refused
        largest = max(largest, asked.distance or 0.0)
        if number % 500 == 499:
            say(f"honest: {number + 1}/{requests}, {accusations} accusations")
    return HonestRun(
        runtimes=runtimes,
        requests=requests,
        accusations=accusations,
        absences=absences,
        wrong=wrong,
        refused=refused,
        largest=largest,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseRun:
    """The least noise in one segment that is caught, in tolerances.

    Attributes:
        segment: Which.
        caught: Least size that was named in every request.
        missed: Largest size that was not.
        served: Largest distance of an answer from the whole model's while it was not.
    """

    segment: int
    caught: float
    missed: float
    served: float

    def to_json(self) -> dict[str, Any]:
        """Return it as the command prints it."""
        return asdict(self)


def find_noise(stage: Stage, questioner: Questioner, segment: int) -> NoiseRun:
    """Halve the range between noise that is named and noise that is not.

    Args:
        stage: What is served.
        questioner: Asks it.
        segment: Where the noise is.
    """
    seat = Seat(segment=segment, replica=1)
    missed, caught = NOISE_RANGE
    served = 0.0
    for _ in range(NOISE_STEPS):
        stage.forget()
        size = (missed * caught) ** 0.5
        with stage.cheating(seat, f"{NOISE}{size!r}"):
            answers = [questioner.ask() for _ in range(NOISE_REQUESTS)]
        if all(is_named(one, seat) for one in answers):
            caught = size
        else:
            missed = size
            served = max(served, *(one.distance or 0.0 for one in answers))
    return NoiseRun(segment=segment, caught=caught, missed=missed, served=served)
