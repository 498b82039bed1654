"""What proving a job is, to whoever schedules it: bytes in, an event or two out.

Orders, links and results are opaque here. The work opens an order with a key that the
scheduler never sees; the scheduler knows when to run it, where, and how often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bentoml_secure.proofs.jobs.job import JobKey

Told = Callable[[bytes | None], None]
"""Told the link for the segment after; None by the last segment, which has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What one attempt works on.

    Attributes:
        key: Which job.
        order: What to prove, encrypted to the prover.
        link: From the segment before, encrypted; None for the first segment.
        memory_bytes: That the attempt may take.
    """

    key: JobKey
    order: bytes
    link: bytes | None
    memory_bytes: int


class Work(Protocol):
    """Makes one proof; blocks, mostly on a child process."""

    def work(self, payload: Payload, executed: Told) -> bytes:
        """Prove what an order says.

        What it raises is kept with the job and may be read by anyone who runs the
        store: no message quotes what an order holds.

        Args:
            payload: The job.
            executed: Told once the segment's output is there, long before the proof.

        Returns:
            The result, of which nothing is secret.

        Raises:
            UnavailableError: Another attempt may do better.
            SecureError: The job fails for good.
        """
        ...


@dataclass(frozen=True, slots=True)
class Executed:
    """An attempt has the segment's output; it goes on to prove it."""

    link: bytes | None


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt has the job's result; its last event."""

    result: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt has ended without one; its last event."""

    reason: str
    retry: bool


Event = Executed | Finished | Failed


class Executor(Protocol):
    """Runs attempts, each beside the others."""

    def start(
        self, payload: Payload, tell: Callable[[Event], None]
    ) -> Callable[[], None]:
        """Begin an attempt and return at once.

        Args:
            payload: What to work on.
            tell: Told each event, from any thread; the last is a result or a failure.

        Returns:
            What ends the attempt early: it kills what the work has started, and the
            last event comes soon.
        """
        ...
