"""How likely a committee falls to colluders, whatever the entry does to help. Pure.

The draw is fixed by what the entry committed to and by the caller's nonce, but an
entry that colludes can still choose among what it is dealt:

    skips        the replicas drawn first may be out, so up to ``spares`` of them may
                 be passed over; it passes over honest ones
    escalation   after a round without a quorum two more are asked and one more must
                 agree; it says that honest ones did not answer
    aborts       it knows the draw once it has the nonce; it refuses or stays silent,
                 and a caller who tries again draws anew

The first two are exact here for colluders and honest replicas of one weight each, the
third where every attempt draws independently, as fresh nonces and commitments do.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import expm1, log1p

from bentoml_secure.consensus.committee import MAX_CANDIDATES
from bentoml_secure.consensus.quorum import MAX_WEIGHT
from bentoml_secure.digest import is_finite_number
from bentoml_secure.errors import ConfigurationError

ESCALATION_SEATS = 2
"""Replicas that one escalation asks beyond those before; one more must agree."""


def capture(
    *,
    replicas: int,
    colluders: int,
    committee: int,
    quorum: int,
    spares: int = 0,
    escalation: int = 0,
    colluder_weight: float = 1.0,
) -> float:
    """Return the probability that colluders have a quorum of one drawn committee.

    With no spares, no escalation and equal weights it is hypergeometric: the sum over
    i from ``quorum`` of C(M, i) C(N-M, k-i) / C(N, k). In general colluders win if for
    some e from 0 to ``escalation`` at least ``quorum + e`` of them are among the first
    ``committee + 2e + spares`` of the order.

    Args:
        replicas: N, candidates of the draw.
        colluders: M of them, who answer alike and wrongly.
        committee: k, seats.
        quorum: Votes that must agree.
        spares: How many may be passed over.
        escalation: How often two more are asked.
        colluder_weight: A colluder's weight in the draw, where an honest one's is 1.

    Raises:
        ConfigurationError: A count that cannot be, or contradicts another.
    """
    require_draw(
        replicas=replicas,
        colluders=colluders,
        committee=committee,
        quorum=quorum,
        spares=spares,
        escalation=escalation,
        colluder_weight=colluder_weight,
    )
    decisive = {
        committee + ESCALATION_SEATS * e + spares: quorum + e
        for e in range(escalation + 1)
    }
    captured = 0.0
    # By how many colluders stand among those drawn so far, none of these decisive.
    open_ = {0: 1.0}
    for drawn in range(max(decisive)):
        open_ = _draw_one(open_, drawn, replicas, colluders, colluder_weight)
        if (enough := decisive.get(drawn + 1)) is not None:
            captured += sum(p for seen, p in open_.items() if seen >= enough)
            open_ = {seen: p for seen, p in open_.items() if seen < enough}
    return min(1.0, captured)


def _draw_one(
    seen_so_far: Mapping[int, float],
    drawn: int,
    replicas: int,
    colluders: int,
    colluder_weight: float,
) -> dict[int, float]:
    following: dict[int, float] = {}
    for seen, chance in seen_so_far.items():
        dark = (colluders - seen) * colluder_weight
        light = replicas - colluders - (drawn - seen)
        for now, weight in ((seen + 1, dark), (seen, light)):
            if weight:
                share = chance * weight / (dark + light)
                following[now] = following.get(now, 0.0) + share
    return following


def at_least_once(chance: float, times: float) -> float:
    """Return the probability that something of that chance happens in that many tries.

    1 - (1 - chance)^times, without losing small chances to rounding. ``times`` need not
    be whole.
    """
    if chance >= 1.0:
        return 1.0 if times > 0 else 0.0
    return -expm1(times * log1p(-chance))


def captured_with_aborts(chance: float, *, rounds: int, aborts: int) -> float:
    """Return the probability that an entry gets colluders a quorum in some round.

    Args:
        chance: Of one draw, see ``capture``.
        rounds: Draws of a request: segments times infers; one captured is enough.
        aborts: How many requests it may give up before its callers look elsewhere.
    """
    return at_least_once(chance, rounds * (aborts + 1))


def require_draw(
    *,
    replicas: int,
    colluders: int,
    committee: int,
    quorum: int,
    spares: int,
    escalation: int,
    colluder_weight: float,
) -> None:
    """Refuse counts that no deployment can have.

    Raises:
        ConfigurationError: The first that cannot be, or contradicts another.
    """
    for what, got, low, high in (
        ("replicas", replicas, 1, MAX_CANDIDATES),
        ("colluders", colluders, 0, replicas),
        ("committee", committee, 1, replicas),
        ("quorum", quorum, committee // 2 + 1, committee),
        ("spares", spares, 0, replicas - committee),
        (
            "escalation",
            escalation,
            0,
            (replicas - committee - spares) // ESCALATION_SEATS,
        ),
    ):
        if not low <= got <= high:
            raise ConfigurationError(f"{what}: got {got}, want {low} to {high}")
    if not (is_finite_number(colluder_weight) and 0 < colluder_weight <= MAX_WEIGHT):
        raise ConfigurationError(
            f"colluder weight: got {colluder_weight}, want above 0, at most "
            f"{MAX_WEIGHT:g}"
        )
