"""Who sits on a committee: seats are taken in the drawn order. Pure.

1. Seats go down the order. A replica whose voice already has a seat is passed over;
   it gets one of those that are left when everybody else has been considered.
2. A replica that is out - not attested, failed, too slow - is *skipped*, as long as
   there are spares: as many may be skipped as the scenario has of them. Beyond that it
   keeps its seat and its voice, and stands there as absent: a committee never shrinks
   to those that happen to be there, and who draws it cannot choose it by leaving
   others out.
3. Where too few are left to fill the seats, those skipped first get theirs back.

The same order, voices and replicas out give the same seats, so that who verifies a
receipt takes the seats again (``receipts/committees.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from bentoml_secure.consensus.tally import Absence, Member, printable

ESCALATION_STEP = 2
"""Seats more in each escalation: one more may lie, so one more has to agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seating:
    """Who has a seat, and who was skipped for another; both in the drawn order."""

    seats: tuple[str, ...]
    skips: tuple[str, ...]


def take_seats(
    order: Sequence[str],
    size: int,
    *,
    voice: Callable[[str], str],
    out: Collection[str],
    spares: int,
) -> Seating:
    """Seat a committee; see the module's rules.

    Args:
        order: Every candidate, as drawn.
        size: Seats; fewer are taken where there are fewer candidates.
        voice: Of a candidate, its own where it showed no evidence. Asked in the drawn
            order, and only of those who come up.
        out: Who is to be skipped, as far as that goes.
        spares: How many may be skipped.
    """
    taken: set[str] = set()
    seated: list[str] = []
    passed: list[str] = []
    skipped: list[str] = []
    for name in order:
        if len(seated) == size:
            break
        if name in out and len(skipped) < spares:
            skipped.append(name)
        elif (spoken := voice(name)) in taken:
            passed.append(name)
        else:
            seated.append(name)
            taken.add(spoken)
    seated += passed[: size - len(seated)]
    if back := skipped[: size - len(seated)]:
        # With seats of their own they may fill them before the others are reached.
        return take_seats(order, size, voice=voice, out={*out} - {*back}, spares=spares)
    place = {name: place for place, name in enumerate(order)}
    return Seating(
        seats=tuple(sorted(seated, key=place.__getitem__)), skips=tuple(skipped)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Every replica that could be asked in one round.

    Attributes:
        order: As drawn.
        members: By replica: its weight and its voice.
        out: Why a replica may not be asked at all.
        spares: How many may be skipped.
    """

    order: tuple[str, ...]
    members: Mapping[str, Member]
    out: Mapping[str, str]
    spares: int = 0

    @classmethod
    def of(cls, committee: Sequence[Member]) -> Bench:
        """Return the bench of a committee that is given, in its own order."""
        return cls(
            order=tuple(member.replica for member in committee),
            members={member.replica: member for member in committee},
            out={},
        )

    def seat(self, size: int, gone: Mapping[str, str]) -> Seating:
        """Seat a committee without those who are out, or gone since.

        Args:
            size: Seats.
            gone: Who failed or was too slow, and why.
        """
        return take_seats(
            self.order,
            size,
            voice=lambda name: self.members[name].voice,
            out={*self.out, *gone},
            spares=self.spares,
        )

    def skips(self, seating: Seating, gone: Mapping[str, str]) -> tuple[Absence, ...]:
        """Return who was skipped, and why."""
        reasons = {**gone, **self.out}
        return tuple(
            Absence(replica=name, reason=printable(reasons[name]))
            for name in seating.skips
        )
