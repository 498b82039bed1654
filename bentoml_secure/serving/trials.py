"""Trials: replicas without a vote are asked what the answer is known to.

A newcomer, where there are known answers, and a replica in quarantine get inputs of
their segment in exchanges like any other, one after the other, at moments that chance
shifts. REQUIRED_TRIALS right answers in a row give a vote
(``consensus/reputation.py``).

What a trial shows is that a replica *can* answer rightly: that it has the model, the
right one, whole. It shows no good will. A replica without a vote that sees one exchange
every few seconds may guess that it is on trial, and one that keeps what it is asked
knows an input when it comes again; each replica therefore gets every input once, in an
order of its own, before it gets one twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

from bentoml_secure.consensus.known_answers import (
    MAX_BYTES,
    KnownAnswer,
    KnownAnswers,
    parse_known_answers,
)
from bentoml_secure.consensus.reputation import REQUIRED_TRIALS, Outcome
from bentoml_secure.errors import ConfigurationError, MalformedInputError, SecureError
from bentoml_secure.serving.standing import Standing
from bentoml_secure.split.plan import Plan
from bentoml_secure.tensors import Array, require

logger = logging.getLogger("bentoml_secure")

INTERVAL_SECONDS = 3.0
"""Between two trials of one replica, on average."""

DEADLINE_SECONDS = 30.0
MAX_AT_ONCE = 4

Tensors = Mapping[str, Array]
Ask = Callable[[str, int, Tensors], Awaitable[Tensors]]
"""Ask a replica, of a segment, for its outputs of these inputs: in an exchange that
looks like any other, under a request id and a nonce of its own. What it returns is
verified; whatever is wrong with an answer is raised."""

Distance = Callable[[int, Tensors, Tensors], float | None]
"""Of a segment's known outputs and those that came, by the segment's rule."""

_random = SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One known answer, and what it is called in the history of dissents."""

    name: str
    answer: KnownAnswer


class Trials:
    """The known answers of one plan, dealt to replicas.

    Args:
        answers: Of the plan's owner.
        plan: That is served.

    Raises:
        ConfigurationError: They are of another plan, too few for a segment, or not
            what its segments read and make.
    """

    def __init__(self, answers: KnownAnswers, plan: Plan) -> None:
        if answers.plan != plan.digest:
            raise ConfigurationError(
                f"trials: got known answers of plan {answers.plan}, this is"
                f" {plan.digest}.",
                remedy="Make them anew: `bentoml-secure trials make`.",
            )
        _require_answers(answers, plan)
        self._answers = answers
        self._decks: dict[tuple[int, str], list[int]] = {}

    @classmethod
    def read(cls, path: Path, plan: Plan) -> Trials:
        """Read a file that ``bentoml-secure trials make`` wrote.

        Raises:
            ConfigurationError: It cannot be read, or is not one for this plan.
        """
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
            return cls(parse_known_answers(data), plan)
        except OSError as error:
            raise ConfigurationError(
                f"trials {path}: cannot be read: {error.strerror}."
            ) from error
        except MalformedInputError as error:
            raise ConfigurationError(f"trials {path}: {error}") from error

    def next(self, segment: int, replica: str) -> Trial:
        """Return a trial that this replica did not have yet, as long as there is one.

        Args:
            segment: Index of the segment.
            replica: Who is to be asked.
        """
        deck = self._decks.setdefault((segment, replica), [])
        if not deck:
            deck += range(len(self._answers.segments[segment]))
            _random.shuffle(deck)
        number = deck.pop()
        answer = self._answers.segments[segment][number]
        return Trial(name=f"trial {number}", answer=answer)


def _require_answers(answers: KnownAnswers, plan: Plan) -> None:
    if len(answers.segments) != len(plan.segments):
        raise ConfigurationError(
            f"trials: got known answers of {len(answers.segments)} segments, the plan"
            f" has {len(plan.segments)}."
        )
    for index, segment in enumerate(plan.segments):
        of = answers.segments[index]
        if len(of) < REQUIRED_TRIALS:
            raise ConfigurationError(
                f"trials of segment {index}: got {len(of)}, want {REQUIRED_TRIALS} or"
                " more: who has to pass so many must not meet one twice.",
                remedy="Raise --inputs of `bentoml-secure trials make`.",
            )
        for number, answer in enumerate(of):
            try:
                require(answer.inputs, segment.inputs)
                require(answer.outputs, segment.outputs)
            except MalformedInputError as error:
                raise ConfigurationError(
                    f"trials of segment {index}: number {number}: {error}"
                ) from error


class Examiner:
    """Puts to trial whoever waits for a vote, until it is cancelled.

    Args:
        standing: Says who waits, and takes in what came of it.
        trials: What is asked.
        ask: Brings one replica's verified outputs, or raises.
        distance: Between known outputs and those. Called in a thread.
        tolerances: Of each segment, in the unit of its distance.
        interval_seconds: Between two trials of one replica, on average.
        deadline_seconds: For one answer.
    """

    def __init__(
        self,
        standing: Standing,
        trials: Trials,
        ask: Ask,
        *,
        distance: Distance,
        tolerances: Sequence[float],
        interval_seconds: float = INTERVAL_SECONDS,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._standing = standing
        self._trials = trials
        self._ask = ask
        self._distance = distance
        self._tolerances = tuple(tolerances)
        self._interval_seconds = interval_seconds
        self._deadline_seconds = deadline_seconds
        self._room = asyncio.Semaphore(MAX_AT_ONCE)

    async def run(self) -> None:
        """Go on until cancelled; trials under way are cancelled too."""
        while True:
            # Never on the beat: who counts seconds must not know a trial by them.
            await asyncio.sleep(self._interval_seconds * _random.uniform(0.5, 1.5))
            async with asyncio.TaskGroup() as group:
                for segment, replica in self._standing.on_trial():
                    group.create_task(self._examine(segment, replica))

    async def _examine(self, segment: int, replica: str) -> None:
        trial = self._trials.next(segment, replica)
        async with self._room:
            outcome = await self._outcome(segment, replica, trial)
        if outcome is Outcome.DISSENTED:
            logger.warning("%s: a wrong answer to %s", replica, trial.name)
        self._standing.record_trial(trial.name, segment, replica, outcome)

    async def _outcome(self, segment: int, replica: str, trial: Trial) -> Outcome:
        known = trial.answer
        try:
            async with asyncio.timeout(self._deadline_seconds):
                got = await self._ask(replica, segment, known.inputs)
            apart = await asyncio.to_thread(self._distance, segment, known.outputs, got)
        except (SecureError, OSError) as error:
            # Timeouts among them. It cost nobody a vote in a round either.
            logger.info("%s: no answer to %s: %s", replica, trial.name, error)
            return Outcome.ABSENT
        except Exception:
            logger.exception("%s: %s failed unexpectedly", replica, trial.name)
            return Outcome.ABSENT
        agrees = apart is not None and apart <= self._tolerances[segment]
        return Outcome.AGREED if agrees else Outcome.DISSENTED
