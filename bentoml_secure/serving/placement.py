"""Which replicas of a segment are asked, and which voices they have. Pure.

1. A replica may vote if the entry holds accepted evidence of it, of a kind that the
   scenario places on the segment.
2. One replica of each voice is seated before a second of any; for the rest the order
   of the candidates decides. The same candidates give the same committee.
3. Fewer voices than the quorum are refused before anyone is sent anything.
4. Seats left over go to replicas that may not vote. They are not asked, and stand as
   absent with the reason: a committee never shrinks to those that happen to be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bentoml_secure.attestation.evidence import VerifiedClaims
from bentoml_secure.consensus.quorum import Absence, Member, decide, refusal
from bentoml_secure.consensus.tally import printable
from bentoml_secure.errors import QuorumNotReached
from bentoml_secure.scenario import Independence, Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One replica of a segment, as the entry knows it now.

    Attributes:
        replica: Its name.
        claims: Of its accepted evidence; None where there is none.
        reason: Why there is none.
    """

    replica: str
    claims: VerifiedClaims | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One seat of a committee.

    Attributes:
        member: Whose seat it is, and its voice.
        out: Why this replica may not vote and is not asked; None where it is asked.
    """

    member: Member
    out: str | None


def choose(
    candidates: Sequence[Candidate],
    scenario: Scenario,
    segment: int,
    *,
    tolerance: float,
) -> tuple[Seat, ...]:
    """Seat a segment's committee; see the module's rules.

    Args:
        candidates: Every replica of the segment, at least as many as the scenario has
            seats, in the order of preference.
        scenario: Says how many, which kinds, and what is one voice.
        segment: Index of the segment.
        tolerance: Of the segment; stands in the tally of a refusal.

    Returns:
        The scenario's number of seats, in the candidates' order.

    Raises:
        QuorumNotReached: Fewer voices may vote than must agree; says which replicas
            are out, and why.
    """
    seats = [_seat(candidate, scenario, segment) for candidate in candidates]
    taken: Counter[str] = Counter()
    preference = []
    for place, seat in enumerate(seats):
        rank = taken[seat.member.voice] if seat.out is None else len(seats)
        taken[seat.member.voice] += 1
        preference.append((rank, place))
    chosen = sorted(place for _, place in sorted(preference)[: scenario.replicas])
    if count_voices(candidates, scenario, segment) < scenario.quorum:
        raise _refusal(seats, chosen, scenario, segment, tolerance)
    return tuple(seats[place] for place in chosen)


def count_voices(
    candidates: Sequence[Candidate], scenario: Scenario, segment: int
) -> int:
    """Return how many voices may vote on a segment: a quorum of them can be asked."""
    seats = [_seat(candidate, scenario, segment) for candidate in candidates]
    return len({seat.member.voice for seat in seats if seat.out is None})


def _seat(candidate: Candidate, scenario: Scenario, segment: int) -> Seat:
    claims, kinds = candidate.claims, scenario.kinds(segment)
    if claims is None:
        return Seat(member=Member(replica=candidate.replica), out=candidate.reason)
    if kinds is not None and claims.kind not in kinds:
        placed = ", ".join(kinds)
        return Seat(
            member=Member(replica=candidate.replica),
            out=f"{claims.kind} may not run segment {segment}, only {placed}",
        )
    voice = scenario.independence.voice(candidate.replica, claims)
    return Seat(member=Member(replica=candidate.replica, voice=voice), out=None)


def _refusal(
    seats: Sequence[Seat],
    chosen: Sequence[int],
    scenario: Scenario,
    segment: int,
    tolerance: float,
) -> QuorumNotReached:
    first: dict[str, str] = {}
    reasons = []
    for seat in seats:
        name, voice = seat.member.replica, seat.member.voice
        if seat.out is not None:
            reasons.append(f"{name}: {printable(seat.out)}")
        elif (other := first.setdefault(voice, name)) != name:
            reasons.append(f"{name}: {printable(voice)} is that of {other}")
    what = "replica" if scenario.independence is Independence.NONE else "voice"
    why = (
        f"nobody was asked about segment {segment}, where {len(first)} "
        f"{what}{'' if len(first) == 1 else 's'} may vote ({'; '.join(reasons)})"
    )
    # Nobody answered and only these failed; the rest stand as pending.
    tally = decide(
        [Member(replica=seats[place].member.replica) for place in chosen],
        [],
        [
            Absence(replica=seats[place].member.replica, reason=printable(out))
            for place in chosen
            if (out := seats[place].out) is not None
        ],
        quorum=scenario.quorum,
        tolerance=tolerance,
        distances={},
    )
    return refusal(tally, why)
