"""Reputations: what answers cost and earn, quarantine and the way back, the cap."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bentoml_secure.consensus.quorum import Absence, Member, Tally, Vote, decide
from bentoml_secure.consensus.reputation import (
    LEAST_WEIGHT,
    MAX_SHARE,
    MOST_QUARANTINES,
    MOST_WEIGHT,
    NEWCOMER_WEIGHT,
    PENALTY,
    QUARANTINED_BELOW,
    READMITTED,
    REQUIRED_TRIALS,
    REWARD,
    Outcome,
    Reputation,
    Status,
    after_round,
    after_trial,
    capped,
    newcomer,
    outcomes_of,
)
from bentoml_secure.digest import Digest

QUARANTINED = Reputation(weight=0.08, status=Status.QUARANTINED, quarantines=1)


def after_rounds(before: Reputation, *outcomes: Outcome) -> Reputation:
    for outcome in outcomes:
        before = after_round(before, outcome)
    return before


def after_trials(before: Reputation, *outcomes: Outcome) -> Reputation:
    for outcome in outcomes:
        before = after_trial(before, outcome)
    return before


def test_the_factors_are_those_that_are_documented() -> None:
    one = Reputation(weight=1.0)
    assert after_round(one, Outcome.AGREED).weight == 1.01
    assert after_round(one, Outcome.DISSENTED).weight == 0.8
    assert newcomer(on_trial=False) == Reputation(weight=0.5, status=Status.VOTING)
    assert newcomer(on_trial=True) == Reputation(weight=0.5, status=Status.ON_TRIAL)


def test_honesty_breaks_even_at_95_7_percent() -> None:
    def drift(honest: float) -> float:
        """Return the expected logarithm of one round's factor."""
        return honest * math.log(REWARD) + (1 - honest) * math.log(PENALTY)

    even = -math.log(PENALTY) / (math.log(REWARD) - math.log(PENALTY))
    assert even == pytest.approx(0.957, abs=5e-4)
    assert drift(even) == pytest.approx(0.0, abs=1e-12)
    assert drift(0.95) < 0 < drift(0.96)


def test_one_dissent_costs_23_agreements() -> None:
    fallen = after_round(Reputation(weight=1.0), Outcome.DISSENTED)
    assert after_rounds(fallen, *[Outcome.AGREED] * 22).weight < 1.0
    assert after_rounds(fallen, *[Outcome.AGREED] * 23).weight > 1.0


@pytest.mark.parametrize("outcome", [Outcome.IN_DOUBT, Outcome.ABSENT])
@pytest.mark.parametrize("status", Status)
def test_doubt_and_absence_cost_nobody(outcome: Outcome, status: Status) -> None:
    before = Reputation(weight=0.3, status=status, passed=3, quarantines=1)
    assert after_round(before, outcome) == before
    assert after_trial(before, outcome) == before


def test_eight_dissents_of_a_newcomer_are_a_quarantine() -> None:
    seven = after_rounds(newcomer(on_trial=False), *[Outcome.DISSENTED] * 7)
    assert seven.status is Status.VOTING
    eight = after_round(seven, Outcome.DISSENTED)
    assert eight.weight < QUARANTINED_BELOW <= seven.weight
    assert (eight.status, eight.quarantines) == (Status.QUARANTINED, 1)


def test_fourteen_dissents_undo_the_best_reputation() -> None:
    best = Reputation(weight=MOST_WEIGHT)
    assert after_rounds(best, *[Outcome.DISSENTED] * 13).status is Status.VOTING
    assert after_rounds(best, *[Outcome.DISSENTED] * 14).status is Status.QUARANTINED


@pytest.mark.parametrize("outcome", Outcome)
def test_rounds_change_nothing_of_who_is_out(outcome: Outcome) -> None:
    """What was under way at the quarantine neither helps nor expels."""
    assert after_round(QUARANTINED, outcome) == QUARANTINED
    expelled = replace(QUARANTINED, status=Status.EXPELLED)
    assert after_round(expelled, outcome) == expelled


def test_trials_passed_in_a_row_readmit() -> None:
    almost = after_trials(QUARANTINED, *[Outcome.AGREED] * (REQUIRED_TRIALS - 1))
    assert almost == replace(QUARANTINED, passed=REQUIRED_TRIALS - 1)
    back = after_trial(almost, Outcome.AGREED)
    assert back == Reputation(
        weight=READMITTED, status=Status.VOTING, passed=0, quarantines=1
    )
    # An absence in between is no failure.
    patient = after_trials(almost, Outcome.ABSENT, Outcome.AGREED)
    assert patient.status is Status.VOTING


def test_a_wrong_trial_breaks_the_row_and_costs() -> None:
    almost = replace(QUARANTINED, passed=REQUIRED_TRIALS - 1)
    failed = after_trial(almost, Outcome.DISSENTED)
    assert failed == replace(QUARANTINED, weight=0.08 * PENALTY)
    assert after_trial(failed, Outcome.AGREED).status is Status.QUARANTINED


def test_a_newcomer_votes_once_it_passed_and_earns_no_weight_by_it() -> None:
    before = newcomer(on_trial=True)
    passed = after_trials(before, *[Outcome.AGREED] * REQUIRED_TRIALS)
    assert passed == Reputation(weight=NEWCOMER_WEIGHT, status=Status.VOTING)


def test_a_newcomer_that_fails_eight_trials_is_quarantined() -> None:
    failed = after_trials(newcomer(on_trial=True), *[Outcome.DISSENTED] * 8)
    assert failed.status is Status.QUARANTINED
    assert failed.quarantines == 1


@pytest.mark.parametrize("status", [Status.VOTING, Status.EXPELLED])
@pytest.mark.parametrize("outcome", Outcome)
def test_trials_are_nothing_to_who_is_not_on_trial(
    status: Status, outcome: Outcome
) -> None:
    before = Reputation(weight=0.3, status=status)
    assert after_trial(before, outcome) == before


def test_the_third_quarantine_is_for_good() -> None:
    reputation, rounds = newcomer(on_trial=False), 0
    for _ in range(MOST_QUARANTINES - 1):
        while reputation.status is Status.VOTING:
            reputation = after_round(reputation, Outcome.DISSENTED)
            rounds += 1
        assert reputation.status is Status.QUARANTINED
        reputation = after_trials(reputation, *[Outcome.AGREED] * REQUIRED_TRIALS)
    # Eight from 0.5, then four from 0.2.
    assert rounds == 8 + 4
    expelled = after_rounds(reputation, *[Outcome.DISSENTED] * 4)
    assert expelled.status is Status.EXPELLED
    assert after_trials(expelled, *[Outcome.AGREED] * 50) == expelled


def test_failing_every_trial_is_for_good_too() -> None:
    reputation, trials = QUARANTINED, 0
    while reputation.status is Status.QUARANTINED:
        reputation = after_trial(reputation, Outcome.DISSENTED)
        trials += 1
    assert reputation == replace(
        QUARANTINED, weight=LEAST_WEIGHT, status=Status.EXPELLED
    )
    assert trials == 10


# --- what a round says ------------------------------------------------------


def tally_of(answers: str, *, quorum: int = 2) -> Tally:
    """Return the tally of r0, r1, ...: "!" is absent, "-" pending, else an answer."""
    committee = [Member(replica=f"r{i}") for i in range(len(answers))]
    votes = [
        Vote(replica=f"r{i}", commitments=(("y", Digest(f"sha256:{letter}")),))
        for i, letter in enumerate(answers)
        if letter not in "!-"
    ]
    absent = [
        Absence(replica=f"r{i}", reason="gone")
        for i, letter in enumerate(answers)
        if letter == "!"
    ]
    return decide(
        committee, votes, absent, quorum=quorum, tolerance=0.0, distances=lambda *_: 1.0
    )


def test_a_quorum_says_who_agreed_and_who_dissented() -> None:
    assert outcomes_of(tally_of("aba")) == {
        "r0": Outcome.AGREED,
        "r1": Outcome.DISSENTED,
        "r2": Outcome.AGREED,
    }


def test_absent_are_absent_and_pending_are_judged_later() -> None:
    assert outcomes_of(tally_of("aaa!-", quorum=3)) == {
        "r0": Outcome.AGREED,
        "r1": Outcome.AGREED,
        "r2": Outcome.AGREED,
        "r3": Outcome.ABSENT,
    }


def test_a_dissent_in_doubt_costs_nobody() -> None:
    outcomes = outcomes_of(tally_of("abc"))
    assert set(outcomes.values()) == {Outcome.IN_DOUBT}
    before = newcomer(on_trial=False)
    assert {after_round(before, outcome) for outcome in outcomes.values()} == {before}


def test_a_referee_decides_where_no_quorum_did() -> None:
    assert outcomes_of(tally_of("ab!"), upheld={"r1"}) == {
        "r0": Outcome.DISSENTED,
        "r1": Outcome.AGREED,
        "r2": Outcome.ABSENT,
    }
    # It finds nobody right: that is a finding.
    assert set(outcomes_of(tally_of("abc"), upheld=()).values()) == {Outcome.DISSENTED}


def test_a_referee_does_not_overrule_a_quorum() -> None:
    assert outcomes_of(tally_of("aab"), upheld={"r2"}) == outcomes_of(tally_of("aab"))


# --- the cap ----------------------------------------------------------------


def share(weights: dict[str, float], name: str) -> float:
    return weights[name] / math.fsum(weights.values())


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # Nobody is too heavy.
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
        ([2.0, 1.5, 1.0], [2.0, 1.5, 1.0]),
        # One is: 0.49 of the whole is left to it.
        ([2.0, 0.5, 0.5], [0.49 / 0.51, 0.5, 0.5]),
        # Two are, beside a light third.
        ([2.0, 2.0, 0.01], [0.245, 0.245, 0.01]),
        ([2.0, 0.9, 0.01], [0.245, 0.245, 0.01]),
        # Two of five are, together: they keep 0.49 of the whole.
        ([2.0, 2.0, 0.5, 0.5, 0.5], [1.5 * 0.245 / 0.51] * 2 + [0.5] * 3),
        ([2.0, 0.55, 0.5, 0.5, 0.5], [(2.05 * 0.49 - 0.55) / 0.51, 0.55] + [0.5] * 3),
        # Of two both get the lesser; one keeps its own.
        ([2.0, 0.5], [0.5, 0.5]),
        ([2.0], [2.0]),
        ([], []),
    ],
)
def test_the_cap_lowers_the_heaviest(
    weights: list[float], expected: list[float]
) -> None:
    names = [f"r{i}" for i in range(len(weights))]
    got = capped(dict(zip(names, weights, strict=True)))
    assert got == pytest.approx(dict(zip(names, expected, strict=True)))


def test_the_cap_counts_a_voice_once() -> None:
    weights = {"a": 2.0, "b": 2.0, "c": 0.5, "d": 0.5}
    assert capped(weights) == weights
    got = capped(weights, {"a": "host", "b": "host"})
    assert got == pytest.approx(
        {"a": 0.49 / 0.51, "b": 0.49 / 0.51, "c": 0.5, "d": 0.5}
    )
    assert max(got["a"], got["b"]) < got["c"] + got["d"]


def carried(weights: dict[str, float], answers: str) -> Tally:
    committee = [Member(replica=name, weight=w) for name, w in weights.items()]
    votes = [
        Vote(replica=name, commitments=(("y", Digest(f"sha256:{letter}")),))
        for name, letter in zip(weights, answers, strict=True)
    ]
    quorum = len(committee) // 2 + 1
    return decide(
        committee, votes, [], quorum=quorum, tolerance=0.0, distances=lambda *_: 1.0
    )


def farmed() -> dict[str, float]:
    """One replica that answered honestly for long, beside two that are new."""
    old = after_rounds(newcomer(on_trial=False), *[Outcome.AGREED] * 140)
    assert old.weight == MOST_WEIGHT
    return {"farmer": old.weight, "new-1": NEWCOMER_WEIGHT, "new-2": NEWCOMER_WEIGHT}


def test_without_the_cap_farmed_trust_overrules_everybody_else() -> None:
    """The attack: alone against all others it takes the vote from them."""
    weights = farmed()
    assert share(weights, "farmer") > 0.5
    tally = carried(weights, "baa")
    assert not tally.accepted
    assert tally.clique == ("farmer",)
    # And nobody would ever hold it against the liar.
    assert outcomes_of(tally)["farmer"] is Outcome.IN_DOUBT


def test_with_the_cap_farmed_trust_is_outvoted_and_named() -> None:
    weights = capped(farmed())
    assert share(weights, "farmer") == pytest.approx(MAX_SHARE)
    tally = carried(weights, "baa")
    assert tally.accepted
    assert tally.dissenters == ("farmer",)
    assert outcomes_of(tally)["farmer"] is Outcome.DISSENTED
