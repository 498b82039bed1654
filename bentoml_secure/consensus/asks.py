"""Asks under way: one task per replica, none of which outlives its round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from bentoml_secure.consensus.quorum import vote_faults
from bentoml_secure.consensus.tally import Absence, Vote, printable
from bentoml_secure.errors import SecureError

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """One replica's answer: its vote, and what the caller wants kept with it."""

    vote: Vote
    value: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Late(Generic[T]):
    """What became of the replicas that were pending at the decision.

    Attributes:
        answers: By replica.
        absent: The rest: failed, or cancelled when the grace ended.
    """

    answers: Mapping[str, Answer[T]]
    absent: tuple[Absence, ...]


Ask = Callable[[str], Awaitable[Answer[T]]]
"""Brings the answer of the replica of that name, or raises."""

_Task = asyncio.Task[Answer[T] | Absence]


class Asks(Generic[T]):
    """The asks of one round that are under way.

    Args:
        ask: Brings one replica's answer. What it raises makes that replica absent.
    """

    def __init__(self, ask: Ask[T]) -> None:
        self._ask = ask
        self._tasks: dict[str, _Task[T]] = {}

    @property
    def running(self) -> frozenset[str]:
        """Who is being asked."""
        return frozenset(self._tasks)

    def start(self, replica: str) -> None:
        """Begin to ask one replica."""
        self._tasks[replica] = asyncio.create_task(attempt(self._ask, replica))

    async def next(self, seconds: float) -> list[tuple[str, Answer[T] | Absence]]:
        """Return what came in, as soon as anything did or the time is over."""
        if not self._tasks:
            return []
        done, _ = await asyncio.wait(
            self._tasks.values(),
            timeout=max(0.0, seconds),
            return_when=asyncio.FIRST_COMPLETED,
        )
        ended = [name for name, task in self._tasks.items() if task in done]
        return [(name, self._tasks.pop(name).result()) for name in ended]

    async def cancel(self, replicas: Iterable[str]) -> None:
        """Cancel these asks and wait until they have ended."""
        await _end([self._tasks.pop(r) for r in list(replicas) if r in self._tasks])

    def hand_over(self, grace_seconds: float) -> asyncio.Task[Late[T]] | None:
        """Return what still runs as one task that ends with the grace."""
        tasks, self._tasks = self._tasks, {}
        if not tasks:
            return None
        late = asyncio.create_task(_collect_late(tasks, grace_seconds))
        # A task cancelled before its first step never gets to its own cleanup.
        late.add_done_callback(lambda _: [task.cancel() for task in tasks.values()])
        return late


async def attempt(ask: Ask[T], replica: str) -> Answer[T] | Absence:
    """Return the answer, or why there is none; nothing but cancellation is raised."""
    try:
        answer = await ask(replica)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return absence(replica, "the ask was cancelled")
    except TimeoutError:
        return absence(replica, "timed out")
    except SecureError as error:
        # Without its remedy: that is for the operator, not for a receipt.
        return absence(replica, f"{type(error).__name__}: {error.args[0]}")
    except OSError as error:
        return absence(replica, f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 - one replica's failure is survivable
        _LOG.exception("asking %s failed unexpectedly", replica)
        return absence(replica, f"failed unexpectedly: {type(error).__name__}")
    if answer.vote.replica != replica:
        return absence(replica, f"answered as {answer.vote.replica!r}")
    if faults := vote_faults(answer.vote):
        return absence(replica, str(faults[0]))
    return answer


def absence(replica: str, reason: str) -> Absence:
    """Return an absence with a reason that is fit for a receipt."""
    return Absence(replica=replica, reason=printable(reason))


async def _collect_late(tasks: Mapping[str, _Task[T]], grace_seconds: float) -> Late[T]:
    try:
        await asyncio.wait(tasks.values(), timeout=grace_seconds)
    finally:
        await _end(tasks.values())
    answers: dict[str, Answer[T]] = {}
    absent = []
    for replica, task in tasks.items():
        if task.cancelled():
            reason = f"no answer within {grace_seconds:g} s of the decision"
            absent.append(absence(replica, reason))
        elif isinstance(outcome := task.result(), Absence):
            absent.append(outcome)
        else:
            answers[replica] = outcome
    return Late(answers=answers, absent=tuple(absent))


async def _end(tasks: Iterable[_Task[T]]) -> None:
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)
