"""Holds every reveal of a round back until enough replicas have committed.

The barrier opens, once and for all, when

    * as many distinct commitments are in as make a quorum: they can decide; or
    * nobody else can come: the others have failed; or
    * its time is over: a slow replica must not hold back those that are not.

A replica that commits later passes at once, and is not blind: it may have seen an
answer. Its vote counts all the same, for a replica that copies is one fault like any
other, and the bound on faults already has room for it; the receipt says which it was.
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
        self._outstanding = set(replicas)
        self._quorum = quorum
        self._commitments: dict[str, Digest] = {}
        self._opened = asyncio.Event()
        self._revealing = False
        self._ends = asyncio.get_running_loop().time() + wait_seconds

    async def enter(self, replica: str, commitment: Digest) -> bool:
        """Wait until answers may be shown.

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
        blind = not self._revealing
        self._commitments[replica] = commitment
        self.leave(replica)
        if not self._opened.is_set():
            try:
                async with asyncio.timeout_at(self._ends):
                    await self._opened.wait()
            except TimeoutError:
                self._opened.set()
        self._revealing = True
        return blind

    def leave(self, replica: str) -> None:
        """Say that a replica will not commit any more; good to say at any time."""
        self._outstanding.discard(replica)
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
