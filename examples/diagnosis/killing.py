"""Killing a replica's process on the way, and what becomes of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from examples.diagnosis.commands import say
from examples.diagnosis.processes import Served
from examples.diagnosis.report import Run


@dataclass(slots=True, kw_only=True)
class Killer:
    """Kills one replica's process once, and watches what becomes of it.

    Attributes:
        victim: Name of the replica's service.
        before: Number of the request before which it is killed.
        watch: Seconds, from any start.
    """

    victim: str
    before: int
    watch: Callable[[], float] = time.monotonic
    _killed_pid: int | None = field(default=None, init=False)
    _killed_at: float = field(default=0.0, init=False)
    _gone_seconds: float = field(default=0.0, init=False)
    _back_before: int | None = field(default=None, init=False)

    def act(self, served: Served, number: int) -> None:
        """Kill before the chosen request; before later ones look who is there."""
        if number < self.before or self._back_before is not None:
            return
        process = served.worker(self.victim)
        if self._killed_pid is None:
            if process is None:
                raise RuntimeError(f"{self.victim} does not run")
            process.send_signal(signal.SIGKILL)
            self._killed_pid, self._killed_at = process.pid, self.watch()
            say(f"killed {self.victim}, process {process.pid}")
        elif process is not None and process.pid != self._killed_pid:
            self._gone_seconds = self.watch() - self._killed_at
            self._back_before = number

    def story(self, run: Run) -> str:
        """Return what happened in a sentence or two."""
        told = f"{self.victim} was killed before request {self.before + 1}"
        if self._back_before is None:
            return f"{told} and was not started again before the end."
        missed = [
            n for n, asked in enumerate(run.asked) if self.victim in asked.absent()
        ]
        told += (
            f"; the supervisor had started another process {self._gone_seconds:.1f} s"
            f" later.\nIts vote was missing from {len(missed)} receipts"
        )
        last = max(missed, default=self.before)
        if last + 1 == len(run.asked):
            return f"{told}, to the end."
        return f"{told}; from request {last + 2} on it was attested anew and voted."
