"""A committee's weights and voices: what a set of its replicas amounts to.

Replicas with one voice count once, with the weight of the heaviest of them in the set
that is weighed. Nothing here knows of answers; ``quorum.py`` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import fsum

from bentoml_secure.consensus.tally import Member


class Seats:
    """The planned seats of one round.

    Args:
        committee: Without faults, see ``quorum.plan_faults``.
        quorum: Voices that it takes.
    """

    def __init__(self, committee: Sequence[Member], quorum: int) -> None:
        self.members: Mapping[str, Member] = {m.replica: m for m in committee}
        self.quorum = quorum
        self.planned = self.weigh(self.members)

    def voices(self, replicas: Iterable[str]) -> list[float]:
        """Return the weight of each voice with which these replicas speak."""
        heaviest: dict[str, float] = {}
        for name in replicas:
            member = self.members[name]
            known = heaviest.get(member.voice, 0.0)
            heaviest[member.voice] = max(known, member.weight)
        return list(heaviest.values())

    def weigh(self, replicas: Iterable[str]) -> float:
        """Return the weight of these replicas together."""
        # fsum rounds once, so that no order of addition can tip the balance.
        return fsum(self.voices(replicas))

    def carries(self, replicas: Iterable[str]) -> bool:
        """Tell whether these have a quorum of voices and most of the weight."""
        voices = self.voices(replicas)
        return len(voices) >= self.quorum and 2 * fsum(voices) > self.planned

    def shares(self, replicas: Sequence[str]) -> dict[str, float]:
        """Return each replica's part of its voice's weight among these."""
        alike: dict[str, list[float]] = {}
        for name in replicas:
            member = self.members[name]
            alike.setdefault(member.voice, []).append(member.weight)
        shares = {}
        for name in replicas:
            member = self.members[name]
            weights = alike[member.voice]
            # A voice of one replica gets its weight exactly: w / w is 1.
            shares[name] = max(weights) * (member.weight / fsum(weights))
        return shares
