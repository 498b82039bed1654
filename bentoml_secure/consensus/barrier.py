"""Holds every reveal of a round back until enough replicas have committed.

The barrier opens, once and for all, when

    * as many distinct commitments are in as make a quorum: they can decide; or
    * nobody else can come: the others have failed; or
    * its time is over: a slow replica must not hold back those that are not.

A replica that commits later is not blind: it may have seen an answer. It reveals once
those that are blind have done so, or after as long again as the commitments took. So
a copy is not the second vote where two replicas computed; who was a moment late loses
nothing, for a quorum is on its way without it; and who commits and never reveals
costs the others no more than that time.

Its vote counts all the same, for a replica that copies is one fault like any other,
and the bound on faults already has room for it; the receipt says which it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from bentoml_secure.digest import Digest
from bentoml_secure.errors import ConfigurationError, VerificationError


class Barrier:
    """The moment of one round at which answers begin to be shown.

    Made in a running event loop; its time runs from then.

    Args:
        replicas: Names of all that may be asked in the round, spares included.
        quorum: How many distinct commitments open it.
        wait_seconds: After which it opens in any case.

    Raises:
        ConfigurationError: Quorum or time out of range.
    """

    def __init__(
        self, replicas: Collection[str], *, quorum: int, wait_seconds: float
    ) -> None:
        if quorum < 1:
            raise ConfigurationError(f"barrier quorum: got {quorum}, want 1 or more")
        if not wait_seconds >= 0:
            raise ConfigurationError(
                f"barrier: got {wait_seconds} seconds, want 0 or more"
            )
        self._quorum = quorum
        self._outstanding = set(replicas)
        self._commitments: dict[str, Digest] = {}
        # Blind, and with an answer that is not there yet.
        self._revealing: set[str] = set()
        self._opened, self._settled = asyncio.Event(), asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._made = self._clock()
        self._ends = self._made + wait_seconds
        self._begun: float | None = None

    async def enter(self, replica: str, commitment: Digest) -> bool:
        """Wait until a replica's answer may be shown.

        Args:
            replica: Who committed.
            commitment: To its answer; verified to be the replica's own words.

        Returns:
            Whether it committed blindly: before any reveal of this round began.

        Raises:
            VerificationError: It committed before in this round.
        """
        if replica in self._commitments:
            raise VerificationError(
                f"commitment of {replica:.100}: a second one in this round"
            )
        self._commitments[replica] = commitment
        self._outstanding.discard(replica)
        if self._begun is not None:
            took = self._begun - self._made
            await _wait(self._settled, until=self._begun + took)
            return False
        self._revealing.add(replica)
        self._open_where_due()
        await _wait(self._opened, until=self._ends)
        # Whoever's time was over opens it for everybody.
        self._opened.set()
        if self._begun is None:
            self._begun = self._clock()
        return True

    def leave(self, replica: str) -> None:
        """Say that nothing more comes of a replica: it answered, or it will not.

        Good to say at any time, also of one that never entered.
        """
        self._outstanding.discard(replica)
        self._revealing.discard(replica)
        self._open_where_due()
        if self._begun is not None and not self._revealing:
            self._settled.set()

    def _open_where_due(self) -> None:
        # One that stands twice was copied: it is one commitment still.
        distinct = len(set(self._commitments.values()))
        if distinct >= self._quorum or not self._outstanding:
            self._opened.set()

    def twins(self, replica: str) -> tuple[str, ...]:
        """Return who else sent the commitment that a replica sent, by name."""
        own = self._commitments.get(replica)
        return tuple(
            name
            for name, commitment in sorted(self._commitments.items())
            if commitment == own and name != replica
        )


async def _wait(event: asyncio.Event, *, until: float) -> None:
    if event.is_set():
        return
    try:
        async with asyncio.timeout_at(until):
            await event.wait()
    except TimeoutError:
        return
