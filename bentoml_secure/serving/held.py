"""Answers that a runner has committed to, held until they are asked to be revealed.

Bounded in number, bytes and time, for whoever asks may never come back: over a bound
the next one is refused, and nothing that is held makes room. An answer goes out once,
to the session that asked for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from bentoml_secure.errors import UnavailableError, VerificationError
from bentoml_secure.scenario import Scenarios
from bentoml_secure.serving.exchange import Exchange, Opening, Outgoing
from bentoml_secure.session.identity import Keys

MAX_HELD = 256
MAX_HELD_BYTES = 256 << 20
HELD_GRACE_SECONDS = 2.0
"""Beyond the longest deadline: a reveal that was late is late anyway."""

PLAIN = b""
"""Stands for the session of exchanges that have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One answer, ready to be revealed.

    Attributes:
        exchange: That it answers.
        outgoing: The output tensors.
        opening: Opens the commitment; signed statement included.
        keys: Returns what signed, or refuses: evidence may have aged out meanwhile.
    """

    exchange: Exchange
    outgoing: Outgoing
    opening: Opening
    keys: Callable[[], Keys]


class HeldAnswers:
    """What one runner holds; used from its event loop only.

    Args:
        seconds: How long an answer is held.
        max_count: Answers at once.
        max_bytes: Of their tensors, all together.
    """

    def __init__(
        self,
        *,
        seconds: float,
        max_count: int = MAX_HELD,
        max_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._seconds = seconds
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._bytes = 0
        self._held: dict[tuple[bytes, str], tuple[Held, asyncio.TimerHandle]] = {}

    def require_room(self, count: int = 0) -> None:
        """Refuse what could not be held: best before it is made.

        Args:
            count: Bytes of its tensors, as far as they are known.

        Raises:
            UnavailableError: Over a bound.
        """
        if len(self._held) >= self._max_count:
            raise UnavailableError(
                f"commit: {len(self._held)} answers wait to be revealed, "
                f"want fewer than {self._max_count}"
            )
        if self._bytes + count > self._max_bytes:
            raise UnavailableError(
                f"commit: {self._bytes} bytes wait to be revealed, {count} more would "
                f"be over {self._max_bytes}"
            )

    def hold(self, owner: bytes, held: Held) -> None:
        """Hold an answer until it is revealed or its time is over.

        Args:
            owner: Id of the session that asked for it, or ``PLAIN``.
            held: The answer.

        Raises:
            UnavailableError: Over a bound.
            VerificationError: One is held under that exchange id.
        """
        key = owner, held.exchange.exchange_id
        if key in self._held:
            raise VerificationError("commit: this exchange id is held already")
        self.require_room(held.outgoing.total_bytes)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._seconds, self._drop, key)
        self._held[key] = held, timer
        self._bytes += held.outgoing.total_bytes

    def take(self, owner: bytes, exchange_id: str) -> Held:
        """Return an answer, which is then held no longer.

        Args:
            owner: Id of the session that asks, or ``PLAIN``.
            exchange_id: Of the exchange that committed to it, hex.

        Raises:
            VerificationError: None is held for that session under that id.
        """
        found = self._drop((owner, exchange_id))
        if found is None:
            raise VerificationError(
                "reveal: no answer is held for this session under this exchange id: "
                "never committed to, revealed before, or past its time"
            )
        return found

    def _drop(self, key: tuple[bytes, str]) -> Held | None:
        entry = self._held.pop(key, None)
        if entry is None:
            return None
        held, timer = entry
        timer.cancel()
        self._bytes -= held.outgoing.total_bytes
        return held


def held_for(scenarios: Scenarios) -> HeldAnswers | None:
    """Return room for the answers of a deployment; None where nobody commits."""
    deadlines = [s.deadline_ms for s in scenarios.by_name.values() if s.commit_reveal]
    if not deadlines:
        return None
    return HeldAnswers(seconds=max(deadlines) / 1000 + HELD_GRACE_SECONDS)
