"""What committees and audits are worth, computed before anybody pays for them. Pure.

Colluders are replicas that answer alike and wrongly. They win a request if a drawn
committee seats a quorum of them (``capture``); an audit has referees recompute a share
of the answers, or check it as Freivalds did; a challenge has a share proven. Whoever is
caught loses a stake.

Nothing here knows how likely replicas are to collude: who plans says how many do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, comb, log1p

from bentoml_secure.audit.capture import (
    at_least_once,
    capture,
    captured_with_aborts,
    require_draw,
)
from bentoml_secure.audit.freivalds import ERROR_BOUND
from bentoml_secure.digest import is_finite_number
from bentoml_secure.errors import ConfigurationError

CONFIDENCE = 0.99
"""Of ``Forecast.cheats_until_confident``."""

MAX_REQUESTS = 10**12
MAX_MONEY = 1e15
MAX_ABORTS = 10**6
MAX_ROUNDS = 64 * 256
MAX_AUDITORS = 16
MAX_TRIES = 10**18

_FRACTIONS = ("audit_rate", "sensitivity", "pair_excess", "challenge_rate")
_AMOUNTS = ("stake", "gain", "check_cost", "proof_cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is planned, and against whom.

    Attributes:
        replicas: N, of each segment.
        committee: k of them are drawn.
        quorum: Votes that must agree; more than half of ``committee``.
        colluders: M of the replicas.
        audit_rate: Share of the requests that is recomputed, 0 to 1.
        sensitivity: Probability that a recomputation shows a wrong answer, 0 to 1.
        stake: What a colluder loses that is caught; in the unit of ``gain``.
        gain: What it has of one wrong answer that is served.
        requests: n, for which detection is asked.
        aborts: Requests that a colluding entry gives up to be dealt a better draw.
        spares: Replicas that may be passed over in a draw.
        escalation: How often two more replicas may be asked.
        rounds: Draws of one request: segments, times infers.
        colluder_weight: A colluder's weight in the draw, where an honest one's is 1.
        pair_excess: Probability that two honest answers lie beyond the tolerance.
        check_cost: Of a Freivalds check of all segments, in runs of the model.
        challenge_rate: Share of an epoch that each draw has proven, 0 to 1.
        auditors: Who draw beside the entry.
        tries: Arrangements of an epoch that a colluding entry can go through.
        proof_cost: Of proving one request, in runs of the model.
    """

    replicas: int
    committee: int
    quorum: int
    colluders: int
    audit_rate: float
    sensitivity: float = 1.0
    stake: float = 0.0
    gain: float = 1.0
    requests: int = 1
    aborts: int = 0
    spares: int = 0
    escalation: int = 0
    rounds: int = 1
    colluder_weight: float = 1.0
    pair_excess: float = 0.0
    check_cost: float = 0.0
    challenge_rate: float = 0.0
    auditors: int = 0
    tries: int = 1
    proof_cost: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Return the terms by name."""
        return asdict(self)

    def __post_init__(self) -> None:
        require_draw(
            replicas=self.replicas,
            colluders=self.colluders,
            committee=self.committee,
            quorum=self.quorum,
            spares=self.spares,
            escalation=self.escalation,
            colluder_weight=self.colluder_weight,
        )
        limits: Mapping[str, tuple[float, float]] = {
            **{name: (0.0, 1.0) for name in _FRACTIONS},
            **{name: (0.0, MAX_MONEY) for name in _AMOUNTS},
            "requests": (1, MAX_REQUESTS),
            "aborts": (0, MAX_ABORTS),
            "rounds": (1, MAX_ROUNDS),
            "auditors": (0, MAX_AUDITORS),
            "tries": (1, MAX_TRIES),
        }
        for name, (low, high) in limits.items():
            got = getattr(self, name)
            if not (is_finite_number(got) and low <= got <= high):
                raise ConfigurationError(
                    f"{name.replace('_', ' ')}: got {got}, want {low:g} to {high:g}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What terms come to. Probabilities are from 0 to 1; None: never.

    Attributes:
        capture_per_round: Colluders have a quorum of one drawn committee.
        capture_per_request: Of some committee of a request.
        capture_by_entry: The same with an entry that helps them: it passes over honest
            replicas, escalates and aborts as far as the terms let it.
        unaudited_by_entry: The same, and the request is one that no audit is drawn
            for: the entry can tell as soon as it has the caller's nonce.
        lone_cheater_seen: A cheater that is seated meets somebody who answers
            otherwise: not all other seats are colluders'.
        caught_after_cheats: An audit shows one of ``requests`` wrong answers.
        caught_after_requests: An audit shows a wrong answer among ``requests``
            requests, where colluders cheat whenever they can and the entry is honest.
        mean_cheats_until_caught: Wrong answers until the first that an audit shows.
        cheats_until_confident: So many wrong answers are caught with ``CONFIDENCE``.
        deterring_rate: Audit rate from which on cheating loses money; None: at no rate.
        margin_per_cheat: What one wrong answer brings on average, stake lost included.
        runs_per_request: Runs of the model that one request costs on average.
        false_alarm: Some two of an honest committee lie beyond the tolerance.
        check_passes: One Freivalds check passes a wrong product.
        runs_with_checks: Like ``runs_per_request``, with checks in place of runs.
        challenged_after_cheats: One of ``requests`` wrong answers must be proven,
            where the entry is honest.
        evaded_by_entry: None of ``requests`` wrong answers of one epoch must be, where
            the entry arranges the epoch as the terms let it.
        runs_of_proofs: Runs of the model that proving costs a request on average.
    """

    capture_per_round: float
    capture_per_request: float
    capture_by_entry: float
    unaudited_by_entry: float
    lone_cheater_seen: float | None
    caught_after_cheats: float
    caught_after_requests: float
    mean_cheats_until_caught: float | None
    cheats_until_confident: int | None
    deterring_rate: float | None
    margin_per_cheat: float
    runs_per_request: float
    false_alarm: float
    check_passes: float
    runs_with_checks: float
    challenged_after_cheats: float
    evaded_by_entry: float
    runs_of_proofs: float

    def to_json(self) -> dict[str, float | None]:
        """Return the figures by name."""
        return asdict(self)


def forecast(terms: Terms) -> Forecast:
    """Return what terms come to."""
    honest_entry = _capture(terms)
    helped = _capture(terms, spares=terms.spares, escalation=terms.escalation)
    per_request = at_least_once(honest_entry, terms.rounds)
    shown = terms.audit_rate * terms.sensitivity
    challenged = at_least_once(terms.challenge_rate, terms.auditors + 1)
    unseen = (1.0 - terms.challenge_rate) ** (terms.requests * terms.auditors)
    return Forecast(
        capture_per_round=honest_entry,
        capture_per_request=per_request,
        capture_by_entry=captured_with_aborts(
            helped, rounds=terms.rounds, aborts=terms.aborts
        ),
        unaudited_by_entry=at_least_once(
            at_least_once(helped, terms.rounds) * (1.0 - terms.audit_rate),
            terms.aborts + 1,
        ),
        lone_cheater_seen=lone_cheater_seen(
            replicas=terms.replicas,
            colluders=terms.colluders,
            committee=terms.committee,
        ),
        caught_after_cheats=at_least_once(shown, terms.requests),
        caught_after_requests=at_least_once(per_request * shown, terms.requests),
        mean_cheats_until_caught=1.0 / shown if shown else None,
        cheats_until_confident=cheats_until(shown, CONFIDENCE),
        deterring_rate=deterring_rate(
            gain=terms.gain, stake=terms.stake, sensitivity=terms.sensitivity
        ),
        margin_per_cheat=terms.gain * (1.0 - shown) - terms.stake * shown,
        runs_per_request=terms.committee + terms.audit_rate,
        false_alarm=false_alarm(
            committee=terms.committee, pair_excess=terms.pair_excess
        ),
        check_passes=ERROR_BOUND,
        runs_with_checks=terms.committee + terms.audit_rate * terms.check_cost,
        challenged_after_cheats=at_least_once(challenged, terms.requests),
        evaded_by_entry=unseen
        * evasion(rate=terms.challenge_rate, cheats=terms.requests, tries=terms.tries),
        runs_of_proofs=challenged * terms.proof_cost,
    )


def _capture(terms: Terms, *, spares: int = 0, escalation: int = 0) -> float:
    return capture(
        replicas=terms.replicas,
        colluders=terms.colluders,
        committee=terms.committee,
        quorum=terms.quorum,
        spares=spares,
        escalation=escalation,
        colluder_weight=terms.colluder_weight,
    )


def lone_cheater_seen(*, replicas: int, colluders: int, committee: int) -> float | None:
    """Return the probability that a seated cheater meets an honest answer.

    1 - C(M-1, k-1) / C(N-1, k-1): it does not only where colluders have all the other
    seats. Weights are equal. None without colluders: there is no cheater.
    """
    if colluders == 0:
        return None
    others = committee - 1
    return 1.0 - comb(colluders - 1, others) / comb(replicas - 1, others)


def cheats_until(shown: float, confidence: float) -> int | None:
    """Return how many cheats it takes until one is caught with that confidence.

    Args:
        shown: Probability that one is caught, 0 to 1.
        confidence: Above 0, below 1.

    Returns:
        The least whole n with 1 - (1 - shown)^n >= confidence; None if none has.
    """
    if shown <= 0.0:
        return None
    if shown >= 1.0:
        return 1
    return max(1, ceil(log1p(-confidence) / log1p(-shown)))


def deterring_rate(*, gain: float, stake: float, sensitivity: float) -> float | None:
    """Return the audit rate at which cheating brings nothing on average.

    g / (q (g + S)): a cheat that is not shown brings g, one that is costs S and brings
    nothing. Above that rate it loses money.

    Returns:
        None where even an audit of every request leaves a profit.
    """
    if gain <= 0.0:
        return 0.0
    if sensitivity <= 0.0:
        return None
    rate = gain / (sensitivity * (gain + stake))
    return rate if rate <= 1.0 else None


def false_alarm(*, committee: int, pair_excess: float) -> float:
    """Return the probability that honest replicas seem to differ.

    1 - (1 - a)^(k (k-1) / 2): over all pairs, as if they were independent. Whatever
    they are, a k (k-1) / 2 bounds it.
    """
    return at_least_once(pair_excess, committee * (committee - 1) / 2)


def evasion(*, rate: float, cheats: int, tries: int) -> float:
    """Return how likely an entry finds an epoch in which no cheat is challenged.

    1 - (1 - (1 - q)^m)^T, at most T (1 - q)^m: it knows the epoch's secret, so each
    arrangement of leaves of its own is one more try at the draw that needs no auditor.
    Against that of an auditor it has one try: (1 - q)^m.

    Args:
        rate: Share that a draw challenges, q.
        cheats: Wrong answers in the epoch, m.
        tries: Arrangements that it can hash before the epoch must close, T.
    """
    return at_least_once((1.0 - rate) ** cheats, tries)
