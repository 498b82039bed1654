"""What a replica's past answers count for: its weight, its vote, its way back. Pure.

1. An answer inside the agreed clique multiplies a replica's weight by 1.01, one outside
   it by 0.8; the weight stays between 0.01 and 2, and begins at 0.5. Who is honest in
   fewer than 95.7 % of its answers sinks.
2. A round that nobody decided costs nobody: without a quorum, and without a referee,
   a dissent is in doubt. Absence costs nothing either: a slow replica is not a liar.
3. Below 0.1, after eight dissents from 0.5, a replica is *quarantined*: it has no vote,
   and votes that it gave before change nothing any more.
4. Whoever has no vote answers *trials*, inputs whose outputs are known. REQUIRED_TRIALS
   right answers in a row readmit it at READMITTED. A wrong one costs as a dissent does.
   A right one earns no weight: trials cannot be farmed.
5. The third quarantine, or the least weight in one, is for good: only a reset ends it.
6. No minority of a committee has half of its weight (``capped``), however much it
   earned: all the others together always outweigh it, so f of 2f+1 carry no vote and
   prevent none.

Source: the factors are those that Nesa publishes for its miners; clamp and cap are not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import fsum, inf

from bentoml_secure.consensus.tally import Tally

PENALTY = 0.8
REWARD = 1.01
LEAST_WEIGHT = 0.01
MOST_WEIGHT = 2.0
NEWCOMER_WEIGHT = 0.5
QUARANTINED_BELOW = 0.1
READMITTED = 0.2
"""Weight after a quarantine: four dissents lead back into it."""

REQUIRED_TRIALS = 8
MOST_QUARANTINES = 3
"""The one that is for good."""

MAX_SHARE = 0.49
"""Of a committee's weight, for its largest minority. Below a half by more than
rounding. Minorities of 25 voices and more are close to half themselves; theirs lies
midway between."""


class Outcome(StrEnum):
    """What one round, or one trial, says of one replica."""

    AGREED = "agreed"
    DISSENTED = "dissented"
    IN_DOUBT = "in-doubt"
    ABSENT = "absent"


class Status(StrEnum):
    """What a replica may do."""

    ON_TRIAL = "on-trial"
    VOTING = "voting"
    QUARANTINED = "quarantined"
    EXPELLED = "expelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reputation:
    """What is held of one replica.

    Attributes:
        weight: Of its vote, LEAST_WEIGHT to MOST_WEIGHT.
        status: Whether it has one.
        passed: Trials passed in a row.
        quarantines: How often it was quarantined.
    """

    weight: float = NEWCOMER_WEIGHT
    status: Status = Status.VOTING
    passed: int = 0
    quarantines: int = 0


def newcomer(*, on_trial: bool) -> Reputation:
    """Return what a replica begins with that was never seen.

    Args:
        on_trial: There are trials, and it has no vote before it passed them.
    """
    return Reputation(status=Status.ON_TRIAL if on_trial else Status.VOTING)


def after_round(before: Reputation, outcome: Outcome) -> Reputation:
    """Return what a replica's part in one round leaves it with.

    A replica that is quarantined keeps what it has: rounds that were under way when it
    was quarantined neither help it nor lead to its expulsion.
    """
    if before.status in (Status.QUARANTINED, Status.EXPELLED):
        return before
    match outcome:
        case Outcome.AGREED:
            weight = min(before.weight * REWARD, MOST_WEIGHT)
            # The usual case at the top makes no object.
            return before if weight == before.weight else replace(before, weight=weight)
        case Outcome.DISSENTED:
            return _lowered(before)
        case _:
            return before


def after_trial(before: Reputation, outcome: Outcome) -> Reputation:
    """Return what one trial leaves a replica with; none that votes is on trial."""
    if before.status in (Status.VOTING, Status.EXPELLED):
        return before
    match outcome:
        case Outcome.AGREED:
            return _passed(before)
        case Outcome.DISSENTED:
            return _lowered(before)
        case _:
            return before


def _passed(before: Reputation) -> Reputation:
    if before.passed + 1 < REQUIRED_TRIALS:
        return replace(before, passed=before.passed + 1)
    returns = before.status is Status.QUARANTINED
    weight = READMITTED if returns else before.weight
    return replace(before, status=Status.VOTING, weight=weight, passed=0)


def _lowered(before: Reputation) -> Reputation:
    weight = max(before.weight * PENALTY, LEAST_WEIGHT)
    after = replace(before, weight=weight, passed=0)
    if before.status is Status.QUARANTINED:
        if weight <= LEAST_WEIGHT:
            return replace(after, status=Status.EXPELLED)
        return after
    if weight >= QUARANTINED_BELOW:
        return after
    count = before.quarantines + 1
    status = Status.EXPELLED if count >= MOST_QUARANTINES else Status.QUARANTINED
    return replace(after, status=status, quarantines=count)


def outcomes_of(
    tally: Tally, *, upheld: Collection[str] | None = None
) -> dict[str, Outcome]:
    """Return what a round says of each replica that it is done with.

    Replicas still pending are left out: what they answer later is judged later.

    Args:
        tally: Of the round.
        upheld: Where no quorum decided and a referee did, the replicas that it agrees
            with; None where there was no referee.
    """
    right = set(tally.clique) if tally.accepted else upheld
    outcomes = {absence.replica: Outcome.ABSENT for absence in tally.absent}
    for name in (name for group in tally.groups for name in group):
        if right is None:
            outcomes[name] = Outcome.IN_DOUBT
        else:
            outcomes[name] = Outcome.AGREED if name in right else Outcome.DISSENTED
    return outcomes


def capped(
    weights: Mapping[str, float], voices: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Return a committee's weights, the heaviest lowered until no share is too large.

    The heaviest f of n voices, f being the most that are fewer than half, keep no more
    than MAX_SHARE of the weight together: they can neither carry a vote nor prevent
    one against all the others. Of two voices both get the lesser weight: each
    has exactly half, and neither carries without the other. One voice alone is all
    there is, and keeps its weight.

    Args:
        weights: Of the members by name, each above 0.
        voices: Members of one voice weigh as the heaviest of them; a member left out
            has its own.
    """
    of = voices or {}
    heaviest: dict[str, float] = {}
    for name, weight in weights.items():
        voice = of.get(name, name)
        heaviest[voice] = max(heaviest.get(voice, 0.0), weight)
    most = _most(sorted(heaviest.values(), reverse=True))
    return {name: min(weight, most) for name, weight in weights.items()}


def _most(weights: list[float]) -> float:
    """Return the largest weight that a voice may have, of weights from the largest."""
    count = len(weights)
    if count < 3:
        return weights[-1] if count == 2 else inf
    faults = (count - 1) // 2
    # Of very many equal ones almost half are as many as may fail.
    share = max(MAX_SHARE, (2 * faults + count) / (4 * count))
    if fsum(weights[:faults]) <= share * fsum(weights):
        return inf
    for lowered in range(1, count):
        # So many lowered to one weight: the heaviest have exactly their share.
        rest = fsum(weights[lowered:])
        if lowered < faults:
            heavy = fsum(weights[lowered:faults])
            most = (share * rest - heavy) / (lowered * (1 - share))
        else:
            most = share * rest / (faults - share * lowered)
        if weights[lowered] <= most:
            return most
    return weights[-1]
