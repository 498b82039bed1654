"""How long honest answers take lately: when to ask a spare beside who is slow."""

from __future__ import annotations

from collections import deque

_KEPT = 256
_FEWEST = 20
"""Below that a quantile says nothing yet, and nobody is hedged."""

_EVERY = 16
"""Sorting for each answer would cost more than it tells."""


class Latencies:
    """The latest answers' times of one segment, over all its replicas."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_KEPT)
        self._p95: float | None = None
        self._since = 0

    def add(self, seconds: float) -> None:
        """Take in the time of one answer."""
        self._seconds.append(seconds)
        self._since += 1
        due = self._since >= _EVERY or self._p95 is None
        if due and len(self._seconds) >= _FEWEST:
            ordered = sorted(self._seconds)
            self._p95 = ordered[len(ordered) * 95 // 100]
            self._since = 0

    @property
    def p95(self) -> float | None:
        """Seconds within which 95 of 100 answers came; None before there are enough."""
        return self._p95
