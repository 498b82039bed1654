"""The decision: which replicas agree, and whose answer is served. Pure.

1. Votes with identical commitments form one group.
2. Two groups agree if their distance is known and within the tolerance. Tolerance is
   not transitive, so agreement of many is a *clique*: every pair within tolerance.
   Beyond MAX_GROUPS distinct answers no distance is asked for and only identical ones
   agree: enumeration stays bounded, and liars cannot buy a refusal by lying each
   differently while a quorum answers identically.
3. Replicas with one *voice* count once: with the weight of the heaviest of them. By
   default each has its own; a scenario may give one to all on a platform, or to all
   of a vendor, so that what breaks together does not outvote anybody.
4. A clique carries if it has at least ``quorum`` voices and more than half of the
   *planned* weight, so that absence never turns a minority into a majority.
5. The clique taken: one that carries, then the heaviest, the largest, the first in
   committee order. Accepted if it carries.
6. The medoid is served: a group that carries by itself, else the group with the least
   weighted distance to the rest of the clique, else the first in committee order; of
   that group, the first replica. A voice that answers in several groups of the clique
   shares its weight among them. Nothing the coordinator asserts about distances can
   move an answer that a quorum gave identically.

The order of votes never matters. A distance of 0 between different groups is allowed:
a rule may see no difference where the bytes differ (0.0 and -0.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import combinations, pairwise
from math import fsum

from bentoml_secure.consensus.seats import Seats
from bentoml_secure.consensus.tally import (
    MAX_COMMITTEE,
    Absence,
    Matrix,
    Member,
    Tally,
    Vote,
    is_replica_name,
    printable,
)
from bentoml_secure.digest import is_finite_number
from bentoml_secure.errors import (
    ConfigurationError,
    Finding,
    MalformedInputError,
    QuorumNotReached,
)

__all__ = [
    "Absence",
    "Distances",
    "Member",
    "Tally",
    "Vote",
    "decide",
    "plan_faults",
    "reachable",
    "recompute",
    "refusal",
    "vote_faults",
]

MAX_GROUPS = 9
"""Cliques among u groups are enumerated: at most 2**u - 1."""

MAX_WEIGHT = 1e6
MAX_TOLERANCE = 1e6

Distances = Mapping[tuple[str, str], float | None] | Callable[[str, str], float | None]
"""Distance of two groups' first members, the earlier in committee order first."""


def decide(
    committee: Sequence[Member],
    votes: Sequence[Vote],
    absent: Sequence[Absence],
    *,
    quorum: int,
    tolerance: float,
    distances: Distances,
) -> Tally:
    """Decide one round. See the module's rules.

    Args:
        committee: Every replica that was asked, in the order that breaks ties.
        votes: What came so far, in any order, at most one of a replica.
        absent: Who failed; replicas in neither list are pending.
        quorum: More than half of the committee's count.
        tolerance: In the unit of ``distances``.
        distances: Asked only where there are two to MAX_GROUPS groups.

    Raises:
        ConfigurationError: Committee, quorum or tolerance out of range, or a distance
            that is missing, negative or not finite.
        MalformedInputError: A vote or absence that does not fit the committee.
    """
    if faults := plan_faults(committee, quorum, tolerance):
        raise ConfigurationError("; ".join(map(str, faults)))
    if faults := _seat_faults(committee, votes, absent):
        raise MalformedInputError("; ".join(map(str, faults)))
    groups = _group(committee, votes)
    matrix = _measure(groups, distances)
    if faults := _matrix_faults(matrix, len(groups)):
        raise ConfigurationError(
            "; ".join(map(str, faults)), remedy="Mend the rule that measured it."
        )
    return _conclude(tuple(committee), quorum, tolerance, groups, matrix, absent)


def recompute(tally: Tally, votes: Sequence[Vote]) -> list[Finding]:
    """Derive a tally again from what it asserts and from the votes; list differences.

    What it asserts - committee, weights, quorum, tolerance, distances, reasons - must
    be possible, and stays an assertion: compare the first four with the plan, the
    scenario and the draw.

    Args:
        tally: From a receipt, perhaps forged; where voices count, with those of the
            replicas' verified evidence (``Tally.with_voices``).
        votes: Every vote there was at the decision, each from a verified statement.

    Returns:
        Nothing if the tally is what ``decide`` returns for these votes.
    """
    unfit = plan_faults(tally.committee, tally.quorum, tally.tolerance)
    unfit += _seat_faults(tally.committee, votes, tally.absent)
    if unfit:
        return unfit
    groups = _group(tally.committee, votes)
    differences = [] if groups == tally.groups else [_unlike("groups", tally, groups)]
    differences += _matrix_faults(tally.distances, len(groups))
    if differences:
        return differences
    again = _conclude(
        tally.committee,
        tally.quorum,
        tally.tolerance,
        groups,
        tally.distances,
        tally.absent,
    )
    return [
        _unlike(field.name, tally, getattr(again, field.name))
        for field in fields(Tally)
        if getattr(tally, field.name) != getattr(again, field.name)
    ]


def reachable(tally: Tally) -> bool:
    """Tell whether votes still pending could make a quorum, at the very best."""
    seats = Seats(tally.committee, tally.quorum)
    voters = [name for group in tally.groups for name in group]
    # At most: a voice that both agrees and is pending is weighed twice.
    best = fsum([*seats.voices(tally.clique), *seats.voices(tally.pending)])
    return (
        len(seats.voices([*voters, *tally.pending])) >= tally.quorum
        and 2 * best > seats.planned
    )


def refusal(tally: Tally, why: str) -> QuorumNotReached:
    """Return the error that refuses an answer, with the tally in it.

    Args:
        tally: Not accepted.
        why: What ended the round.
    """
    voices = len(Seats(tally.committee, tally.quorum).voices(tally.clique))
    once = ","
    if voices < len(tally.clique):
        once = f" with {voices} voice{'' if voices == 1 else 's'} between them,"
    message = (
        f"no quorum, {why}: {len(tally.clique)} of {len(tally.committee)} replicas "
        f"agree{once} want {tally.quorum} and most of the weight ({len(tally.groups)} "
        f"distinct answers, {len(tally.absent)} failed, {len(tally.pending)} pending)."
    )
    if len(tally.groups) > MAX_GROUPS:
        message += f" Beyond {MAX_GROUPS} distinct answers only identical ones agree."
    return QuorumNotReached(message, tally.to_json())


def plan_faults(
    committee: Sequence[Member], quorum: int, tolerance: float
) -> list[Finding]:
    """Return why a committee can decide nothing under these terms, if it cannot."""
    count = len(committee)
    if not 0 < count <= MAX_COMMITTEE:
        return [
            Finding("committee", f"{count} members", f"1 to {MAX_COMMITTEE} members")
        ]
    faults = []
    for member in committee:
        if not is_replica_name(member.replica):
            faults.append(
                Finding("replica", repr(member.replica)[:60], "a short printable name")
            )
        if not (is_finite_number(member.weight) and 0 < member.weight <= MAX_WEIGHT):
            faults.append(
                Finding(
                    f"weight of {member.replica!r}",
                    str(member.weight),
                    f"above 0, at most {MAX_WEIGHT:g}",
                )
            )
    if len({member.replica for member in committee}) != count:
        faults.append(Finding("committee", "a replica twice", "each replica once"))
    if not count < 2 * quorum <= 2 * count:
        want = f"more than half of {count}, at most all"
        faults.append(Finding("quorum", str(quorum), want))
    elif (voices := len({member.voice for member in committee})) < quorum:
        faults.append(Finding("voices", str(voices), f"at least {quorum}"))
    if not (is_finite_number(tolerance) and 0 <= tolerance <= MAX_TOLERANCE):
        faults.append(
            Finding("tolerance", str(tolerance), f"from 0 to {MAX_TOLERANCE:g}")
        )
    return faults


def vote_faults(vote: Vote) -> list[Finding]:
    """Return what is wrong with one vote's form, if anything."""
    names = [name for name, _ in vote.commitments]
    if names and all(a < b for a, b in pairwise(names)):
        return []
    return [
        Finding(
            f"vote of {vote.replica!r}",
            f"commitments to {names!r:.100}",
            "one or more, sorted by name, each name once",
        )
    ]


def _seat_faults(
    committee: Sequence[Member], votes: Sequence[Vote], absent: Sequence[Absence]
) -> list[Finding]:
    if len(votes) + len(absent) > len(committee):
        got = f"{len(votes)} votes and {len(absent)} absences"
        return [Finding("committee", got, f"at most {len(committee)}")]
    faults = []
    seats = {member.replica for member in committee}
    for name in [v.replica for v in votes] + [a.replica for a in absent]:
        if name not in seats:
            want = "a seat in the committee, and one vote or absence of each"
            faults.append(Finding("replica", repr(name)[:60], want))
        seats.discard(name)
    for vote in votes:
        faults += vote_faults(vote)
    for absence in absent:
        if printable(absence.reason) != absence.reason:
            got = repr(absence.reason)[:60]
            faults.append(Finding("reason of absence", got, "one short printable line"))
    return faults


def _group(
    committee: Sequence[Member], votes: Sequence[Vote]
) -> tuple[tuple[str, ...], ...]:
    commitments = {vote.replica: vote.commitments for vote in votes}
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for member in committee:
        if member.replica in commitments:
            groups.setdefault(commitments[member.replica], []).append(member.replica)
    return tuple(map(tuple, groups.values()))


def _measure(groups: Sequence[Sequence[str]], distances: Distances) -> Matrix:
    matrix: list[list[float | None]] = [
        [0.0 if row == column else None for column in range(len(groups))]
        for row in range(len(groups))
    ]
    if len(groups) <= MAX_GROUPS:
        for row, column in combinations(range(len(groups)), 2):
            pair = groups[row][0], groups[column][0]
            if not isinstance(distances, Mapping):
                distance = distances(*pair)
            elif pair in distances:
                distance = distances[pair]
            else:
                raise ConfigurationError(f"distance of {pair[0]} and {pair[1]}: none")
            matrix[row][column] = matrix[column][row] = distance
    return tuple(map(tuple, matrix))


def _matrix_faults(matrix: Matrix, count: int) -> list[Finding]:
    if len(matrix) != count or any(len(row) != count for row in matrix):
        got = f"rows of {sorted({len(row) for row in matrix})}, {len(matrix)} of them"
        return [Finding("distances", got, f"{count} rows of {count}")]
    faults = []
    for row, column in combinations(range(count), 2):
        distance = matrix[row][column]
        known = is_finite_number(distance) and count <= MAX_GROUPS
        if distance is not None and not (known and distance >= 0):
            want = "a finite number from 0, or none"
            if count > MAX_GROUPS:
                want = f"none among more than {MAX_GROUPS} groups"
            faults.append(Finding(f"distances {row},{column}", str(distance), want))
        elif matrix[column][row] != distance:
            got = str(matrix[column][row])
            faults.append(Finding(f"distances {column},{row}", got, str(distance)))
    for row in range(count):
        if matrix[row][row] != 0:
            faults.append(Finding(f"distances {row},{row}", str(matrix[row][row]), "0"))
    return faults


def _conclude(
    committee: tuple[Member, ...],
    quorum: int,
    tolerance: float,
    groups: tuple[tuple[str, ...], ...],
    matrix: Matrix,
    absent: Sequence[Absence],
) -> Tally:
    seats = Seats(committee, quorum)
    failed = {absence.replica: absence for absence in absent}
    chosen = _clique(seats, tolerance, groups, matrix)
    agreed = {name for group in chosen for name in groups[group]}
    voted = {name for group in groups for name in group}
    names = seats.members
    accepted = seats.carries(agreed)
    return Tally(
        committee=committee,
        quorum=quorum,
        tolerance=tolerance,
        groups=groups,
        distances=matrix,
        clique=tuple(name for name in names if name in agreed),
        medoid=_medoid(seats, groups, matrix, chosen) if accepted else None,
        accepted=accepted,
        dissenters=tuple(n for n in names if accepted and n in voted - agreed),
        absent=tuple(failed[name] for name in names if name in failed),
        pending=tuple(n for n in names if n not in voted and n not in failed),
    )


def _clique(
    seats: Seats, tolerance: float, groups: Sequence[Sequence[str]], matrix: Matrix
) -> tuple[int, ...]:
    place = {name: place for place, name in enumerate(seats.members)}

    def rank(clique: tuple[int, ...]) -> tuple[bool, float, int, list[int]]:
        names = [name for group in clique for name in groups[group]]
        return (
            seats.carries(names),
            seats.weigh(names),
            len(names),
            # Of equally many seats the smaller ones, lowest seat first.
            sorted((-place[name] for name in names), reverse=True),
        )

    agree = [
        [distance is not None and distance <= tolerance for distance in row]
        for row in matrix
    ]
    return max(_cliques(agree), key=rank, default=())


def _cliques(
    agree: Sequence[Sequence[bool]], clique: tuple[int, ...] = ()
) -> Iterator[tuple[int, ...]]:
    for group in range(clique[-1] + 1 if clique else 0, len(agree)):
        if all(agree[group][member] for member in clique):
            larger = (*clique, group)
            yield larger
            yield from _cliques(agree, larger)


def _medoid(
    seats: Seats,
    groups: Sequence[Sequence[str]],
    matrix: Matrix,
    clique: Sequence[int],
) -> str:
    for group in clique:
        if seats.carries(groups[group]):
            return groups[group][0]
    share = seats.shares([name for group in clique for name in groups[group]])
    heavy = {group: fsum(share[name] for name in groups[group]) for group in clique}

    def cost(group: int) -> float:
        # Within a clique no distance is None.
        return fsum(heavy[other] * (matrix[group][other] or 0.0) for other in clique)

    return groups[min(clique, key=cost)][0]


def _unlike(field: str, tally: Tally, want: object) -> Finding:
    return Finding(field, repr(getattr(tally, field))[:200], repr(want)[:200])
