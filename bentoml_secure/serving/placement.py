"""Which replicas of a segment may be asked, and which voices they have. Pure.

1. A replica may vote if the entry holds accepted evidence of it, of a kind that the
   scenario places on the segment, and it is not in quarantine.
   Its evidence is its voice, and what it showed once in a request it speaks with to
   the end of it, also where it may not vote any more: its receipt has one evidence of
   each.
2. The committee is taken from the drawn order (``consensus/seating.py``): who may not
   vote is skipped while the scenario has spares, and stands as absent beyond that.
3. Fewer voices than the quorum are refused before anyone is sent anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bentoml_secure.attestation.evidence import VerifiedClaims
from bentoml_secure.consensus.asks import absence
from bentoml_secure.consensus.quorum import Member, decide, refusal
from bentoml_secure.consensus.seating import Bench
from bentoml_secure.consensus.tally import printable
from bentoml_secure.errors import QuorumNotReached
from bentoml_secure.scenario import Independence, Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One replica of a segment, as the entry knows it now.

    Attributes:
        replica: Its name.
        weight: Of its vote, and of its lot.
        claims: Of its accepted evidence; None where it showed none in this request.
        reason: Why it may not vote; empty where its claims alone say that.
    """

    replica: str
    weight: float = 1.0
    claims: VerifiedClaims | None = None
    reason: str = ""


def seat_candidates(
    candidates: Sequence[Candidate],
    scenario: Scenario,
    segment: int,
    *,
    tolerance: float,
) -> Bench:
    """Return the bench of a segment; see the module's rules.

    Args:
        candidates: Every replica of the segment, at least as many as the scenario has
            seats, in the drawn order.
        scenario: Says how many, which kinds, and what is one voice.
        segment: Index of the segment.
        tolerance: Of the segment; stands in the tally of a refusal.

    Raises:
        QuorumNotReached: Fewer voices may vote than must agree; says which replicas
            are out, and why.
    """
    out = {
        candidate.replica: printable(reason)
        for candidate in candidates
        if (reason := _out(candidate, scenario, segment)) is not None
    }
    bench = Bench(
        order=tuple(candidate.replica for candidate in candidates),
        members={
            candidate.replica: _member(candidate, scenario, segment)
            for candidate in candidates
        },
        out=out,
        spares=scenario.spares,
    )
    if _count(bench, scenario.most_replicas) < scenario.quorum:
        raise _refusal(bench, scenario, segment, tolerance)
    return bench


def count_voices(
    candidates: Sequence[Candidate], scenario: Scenario, segment: int
) -> int:
    """Return how many voices may vote on a segment: a quorum of them can be asked."""
    return len(
        {
            _member(candidate, scenario, segment).voice
            for candidate in candidates
            if _out(candidate, scenario, segment) is None
        }
    )


def misplaced(claims: VerifiedClaims, scenario: Scenario, segment: int) -> str | None:
    """Return why who shows these claims may not run a segment; None where it may."""
    kinds = scenario.kinds(segment)
    if kinds is None or claims.kind in kinds:
        return None
    return f"{claims.kind} may not run segment {segment}, only {', '.join(kinds)}"


def _out(candidate: Candidate, scenario: Scenario, segment: int) -> str | None:
    if candidate.claims is None or candidate.reason:
        return candidate.reason
    return misplaced(candidate.claims, scenario, segment)


def _member(candidate: Candidate, scenario: Scenario, segment: int) -> Member:
    name, claims = candidate.replica, candidate.claims
    if claims is not None and misplaced(claims, scenario, segment) is not None:
        # It is sent nothing, so that no receipt has evidence of it.
        claims = None
    voice = scenario.independence.voice(name, claims)
    return Member(replica=name, weight=candidate.weight, voice=voice)


def _count(bench: Bench, size: int) -> int:
    seats = bench.seat(size, {}).seats
    return len({bench.members[n].voice for n in seats if n not in bench.out})


def _refusal(
    bench: Bench, scenario: Scenario, segment: int, tolerance: float
) -> QuorumNotReached:
    first: dict[str, str] = {}
    reasons = []
    for name in bench.order:
        voice = bench.members[name].voice
        if name in bench.out:
            reasons.append(f"{name}: {bench.out[name]}")
        elif (other := first.setdefault(voice, name)) != name:
            reasons.append(f"{name}: {printable(voice)} is that of {other}")
    what = "replica" if scenario.independence is Independence.NONE else "voice"
    why = (
        f"nobody was asked about segment {segment}, where {len(first)} "
        f"{what}{'' if len(first) == 1 else 's'} may vote ({'; '.join(reasons)})"
    )
    if len(first) >= scenario.quorum:
        why += f"; of these {_count(bench, scenario.most_replicas)} were drawn"
    seats = bench.seat(scenario.replicas, {}).seats
    # Nobody answered and only these failed; the rest stand as pending.
    tally = decide(
        [Member(replica=name) for name in seats],
        [],
        [absence(name, bench.out[name]) for name in seats if name in bench.out],
        quorum=scenario.quorum,
        tolerance=tolerance,
        distances={},
    )
    return refusal(tally, why)
