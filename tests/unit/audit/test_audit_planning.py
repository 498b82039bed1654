"""Every figure of a forecast against trials with dice, seeds fixed.

Shares of trials are compared within four standard deviations, means within five per
cent where nothing else is said.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import sqrt
from random import Random
from typing import Any

import pytest

from bentoml_secure.audit.planning import (
    Forecast,
    Terms,
    cheats_until,
    deterring_rate,
    false_alarm,
    forecast,
    lone_cheater_seen,
)
from bentoml_secure.errors import ConfigurationError

TRIALS = 20_000
TERMS = Terms(
    replicas=7,
    committee=3,
    quorum=2,
    colluders=3,
    audit_rate=0.2,
    sensitivity=0.9,
    stake=20.0,
    gain=1.0,
    requests=10,
)


@pytest.fixture
def dice() -> Random:
    return Random(20260601)


def near(chance: float, trials: int = TRIALS) -> Any:
    spread = 4 * sqrt(max(chance * (1 - chance), 1e-4) / trials)
    return pytest.approx(chance, abs=spread)


def caught(dice: Random, terms: Terms) -> bool:
    return dice.random() < terms.audit_rate and dice.random() < terms.sensitivity


def captured(dice: Random, terms: Terms) -> bool:
    asked = dice.sample(range(terms.replicas), terms.committee)
    return sum(replica < terms.colluders for replica in asked) >= terms.quorum


def test_a_lone_cheater_is_seen(dice: Random) -> None:
    # Replica 0 is seated and cheats; the others of the colluders cover for it.
    seen = sum(any(r >= 3 for r in dice.sample(range(1, 7), 2)) for _ in range(TRIALS))
    chance = lone_cheater_seen(replicas=7, colluders=3, committee=3)
    assert chance is not None
    assert seen / TRIALS == near(chance)
    assert lone_cheater_seen(replicas=7, colluders=0, committee=3) is None
    assert lone_cheater_seen(replicas=7, colluders=2, committee=3) == 1.0
    assert lone_cheater_seen(replicas=3, colluders=3, committee=3) == 0.0


def test_detection_after_cheats_and_after_requests(dice: Random) -> None:
    after_cheats = after_requests = 0
    for _ in range(TRIALS // 4):
        trials = range(TERMS.requests)
        after_cheats += any(caught(dice, TERMS) for _ in trials)
        after_requests += any(
            captured(dice, TERMS) and caught(dice, TERMS) for _ in trials
        )
    expected = forecast(TERMS)
    trials_ = TRIALS // 4
    assert after_cheats / trials_ == near(expected.caught_after_cheats, trials_)
    assert after_requests / trials_ == near(expected.caught_after_requests, trials_)


def test_cheats_until_one_is_caught(dice: Random) -> None:
    lengths = []
    for _ in range(TRIALS // 4):
        length = 1
        while not caught(dice, TERMS):
            length += 1
        lengths.append(length)
    expected = forecast(TERMS)
    assert sum(lengths) / len(lengths) == pytest.approx(
        expected.mean_cheats_until_caught, rel=0.05
    )
    enough = expected.cheats_until_confident
    assert enough is not None
    within = [sum(n <= most for n in lengths) / len(lengths) for most in (enough, 5)]
    assert within[0] == near(1 - (1 - 0.18) ** enough, len(lengths))
    assert within[0] >= 0.98 > within[1]


def test_what_a_cheat_brings(dice: Random) -> None:
    brought = [
        -TERMS.stake if caught(dice, TERMS) else TERMS.gain for _ in range(TRIALS)
    ]
    # The standard deviation of one is about 8.
    expected = forecast(TERMS).margin_per_cheat
    assert sum(brought) / TRIALS == pytest.approx(expected, abs=4 * 8.1 / sqrt(TRIALS))


@pytest.mark.parametrize("sensitivity", [1.0, 0.5])
def test_cheating_pays_below_the_deterring_rate_only(
    dice: Random, sensitivity: float
) -> None:
    rate = deterring_rate(gain=1.0, stake=4.0, sensitivity=sensitivity)
    assert rate is not None

    def brought(audit_rate: float) -> float:
        terms = replace(TERMS, audit_rate=audit_rate, sensitivity=sensitivity)
        return sum(-4.0 if caught(dice, terms) else 1.0 for _ in range(TRIALS))

    assert brought(rate * 0.8) > 0 > brought(rate * 1.2)
    balanced = replace(
        TERMS, audit_rate=rate, sensitivity=sensitivity, stake=4.0, gain=1.0
    )
    assert forecast(balanced).margin_per_cheat == pytest.approx(0.0, abs=1e-12)


def test_no_rate_deters_without_a_stake_to_lose() -> None:
    assert deterring_rate(gain=1.0, stake=20.0, sensitivity=1.0) == pytest.approx(
        0.0476, abs=1e-4
    )
    assert deterring_rate(gain=1.0, stake=0.0, sensitivity=1.0) == 1.0
    assert deterring_rate(gain=1.0, stake=0.0, sensitivity=0.9) is None
    assert deterring_rate(gain=1.0, stake=9.0, sensitivity=0.0) is None
    assert deterring_rate(gain=0.0, stake=0.0, sensitivity=0.0) == 0.0


def test_runs_of_a_request(dice: Random) -> None:
    runs = sum(
        TERMS.committee + (dice.random() < TERMS.audit_rate) for _ in range(TRIALS)
    )
    expected = forecast(TERMS).runs_per_request
    assert runs / TRIALS == pytest.approx(expected, abs=4 * 0.4 / sqrt(TRIALS))


def test_false_alarms(dice: Random) -> None:
    alarms = sum(
        any(dice.random() < 0.02 for _ in combinations(range(5), 2))
        for _ in range(TRIALS)
    )
    assert alarms / TRIALS == near(false_alarm(committee=5, pair_excess=0.02))
    assert false_alarm(committee=1, pair_excess=0.5) == 0.0
    assert false_alarm(committee=5, pair_excess=1e-9) == pytest.approx(1e-8)


def test_an_entry_that_colludes_picks_what_is_not_audited(dice: Random) -> None:
    terms = replace(TERMS, aborts=2, rounds=2, spares=1)

    def wins() -> bool:
        def round_() -> bool:
            order = dice.sample(range(7), 4)
            return sum(replica < 3 for replica in order) >= 2

        return any(
            any([round_(), round_()]) and dice.random() >= terms.audit_rate
            for _ in range(terms.aborts + 1)
        )

    trials = 5000
    won = sum(wins() for _ in range(trials)) / trials
    expected = forecast(terms)
    assert won == near(expected.unaudited_by_entry, trials)
    assert expected.unaudited_by_entry < expected.capture_by_entry


def test_known_figures() -> None:
    plain = replace(TERMS, replicas=20, colluders=5, audit_rate=0.05, sensitivity=1.0)
    made = forecast(replace(plain, requests=50, rounds=1))
    assert made.capture_per_round == pytest.approx(0.1404, abs=1e-4)
    assert made.capture_per_request == pytest.approx(made.capture_per_round)
    assert made.capture_by_entry == pytest.approx(made.capture_per_round)
    assert made.caught_after_cheats == pytest.approx(0.923, abs=1e-3)
    # From 1 - 0.95^n >= 0.99; and the same for the other rates of the table.
    for rate, count in ((0.01, 459), (0.05, 90), (0.1, 44), (0.2, 21), (0.5, 7)):
        assert cheats_until(rate, 0.99) == count
    assert cheats_until(1.0, 0.99) == 1
    assert cheats_until(0.0, 0.99) is None


def test_challenges_catch_and_are_evaded_as_often_as_the_dice_say(
    dice: Random,
) -> None:
    """By honest entries, and by those that arrange epochs with an auditor beside."""
    terms = replace(
        TERMS, challenge_rate=0.15, auditors=1, tries=3, requests=4, proof_cost=100.0
    )
    trials = TRIALS // 2
    caught = evaded = proven = 0

    def draw() -> bool:
        """Tell whether one draw challenges any of the cheats."""
        return any([dice.random() < 0.15 for _ in range(terms.requests)])

    for _ in range(trials):
        caught += draw() or draw()
        suits = any([not draw() for _ in range(terms.tries)])
        evaded += suits and not draw()
        proven += dice.random() < 0.15 or dice.random() < 0.15
    expected = forecast(terms)
    assert caught / trials == near(expected.challenged_after_cheats, trials)
    assert evaded / trials == near(expected.evaded_by_entry, trials)
    assert proven / trials == near(expected.runs_of_proofs / 100, trials)


def test_checks_cost_less_than_runs() -> None:
    made = forecast(replace(TERMS, check_cost=0.25))
    assert made.runs_with_checks == pytest.approx(3 + 0.2 * 0.25)
    assert made.check_passes == 1 / (2**61 - 1)


def test_an_auditor_is_worth_more_than_any_number_of_tries() -> None:
    terms = replace(TERMS, challenge_rate=0.1, requests=50, tries=10**9)
    alone, beside = (forecast(replace(terms, auditors=n)) for n in (0, 1))
    assert alone.evaded_by_entry == pytest.approx(1.0)
    assert beside.evaded_by_entry == pytest.approx(0.9**50)


def test_nobody_audits_and_nobody_colludes() -> None:
    made = forecast(replace(TERMS, audit_rate=0.0, colluders=0))
    assert made == Forecast(
        capture_per_round=0.0,
        capture_per_request=0.0,
        capture_by_entry=0.0,
        unaudited_by_entry=0.0,
        lone_cheater_seen=None,
        caught_after_cheats=0.0,
        caught_after_requests=0.0,
        mean_cheats_until_caught=None,
        cheats_until_confident=None,
        deterring_rate=made.deterring_rate,
        margin_per_cheat=1.0,
        runs_per_request=3.0,
        false_alarm=0.0,
        check_passes=2**-61,
        runs_with_checks=3.0,
        challenged_after_cheats=0.0,
        evaded_by_entry=1.0,
        runs_of_proofs=0.0,
    )
    assert made.to_json()["mean_cheats_until_caught"] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audit_rate": 1.1}, "audit rate: got 1.1, want 0 to 1"),
        ({"audit_rate": float("nan")}, "audit rate: got nan"),
        ({"sensitivity": -0.1}, "sensitivity: got -0.1, want 0 to 1"),
        ({"pair_excess": 2.0}, "pair excess: got 2.0, want 0 to 1"),
        ({"stake": -1.0}, "stake: got -1.0"),
        ({"gain": float("inf")}, "gain: got inf"),
        ({"requests": 0}, "requests: got 0, want 1"),
        ({"aborts": -1}, "aborts: got -1"),
        ({"rounds": 0}, "rounds: got 0, want 1"),
        ({"colluders": 9}, "colluders: got 9, want 0 to 7"),
        ({"spares": 9}, "spares: got 9, want 0 to 4"),
    ],
)
def test_terms_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        replace(TERMS, **changes)
