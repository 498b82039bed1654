"""Reputations stay in bounds, and no voice of a committee outweighs the others."""

from __future__ import annotations

import random
from math import fsum

from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.consensus.quorum import Member, Vote, decide
from bentoml_secure.consensus.reputation import (
    LEAST_WEIGHT,
    MAX_SHARE,
    MOST_QUARANTINES,
    MOST_WEIGHT,
    QUARANTINED_BELOW,
    REQUIRED_TRIALS,
    Outcome,
    Status,
    after_round,
    after_trial,
    capped,
    newcomer,
)
from bentoml_secure.digest import Digest

WEIGHTS = st.floats(LEAST_WEIGHT, MOST_WEIGHT)
COMMITTEES = st.lists(WEIGHTS, min_size=1, max_size=9).map(
    lambda weights: {f"r{i}": weight for i, weight in enumerate(weights)}
)
STEPS = st.lists(st.tuples(st.booleans(), st.sampled_from(Outcome)), max_size=120)


@given(st.booleans(), STEPS)
def test_every_history_keeps_to_the_bounds(
    on_trial: bool, steps: list[tuple[bool, Outcome]]
) -> None:
    now = newcomer(on_trial=on_trial)
    for is_trial, outcome in steps:
        before, now = now, (after_trial if is_trial else after_round)(now, outcome)
        assert LEAST_WEIGHT <= now.weight <= MOST_WEIGHT
        assert 0 <= now.passed < REQUIRED_TRIALS
        assert before.quarantines <= now.quarantines <= MOST_QUARANTINES
        if now.status is Status.VOTING:
            assert now.weight >= QUARANTINED_BELOW
        if before.status is Status.EXPELLED:
            assert now == before
        if outcome in (Outcome.IN_DOUBT, Outcome.ABSENT):
            assert now == before


@given(st.lists(st.sampled_from(Outcome), max_size=60), st.randoms())
def test_between_bounds_the_order_of_rounds_is_irrelevant(
    outcomes: list[Outcome], shuffling: random.Random
) -> None:
    counted = outcomes.count(Outcome.AGREED), outcomes.count(Outcome.DISSENTED)
    # Of 60 rounds at most: 0.5 * 1.01**60 stays below the top; not so the bottom.
    if counted[1] > 7:
        return
    first = second = newcomer(on_trial=False)
    for outcome in outcomes:
        first = after_round(first, outcome)
    shuffling.shuffle(outcomes)
    for outcome in outcomes:
        second = after_round(second, outcome)
    assert abs(first.weight - second.weight) < 1e-12
    assert first.status is second.status


@given(COMMITTEES, st.randoms())
def test_the_cap_does_not_depend_on_the_order(
    weights: dict[str, float], shuffling: random.Random
) -> None:
    items = list(weights.items())
    shuffling.shuffle(items)
    assert capped(dict(items)) == capped(weights)


@given(COMMITTEES)
def test_the_cap_holds_and_only_lowers(weights: dict[str, float]) -> None:
    got = capped(weights)
    total = fsum(got.values())
    assert got.keys() == weights.keys()
    assert all(0 < got[name] <= weights[name] for name in weights)
    if len(got) >= 3:
        # The largest minority, f of 2f+1 voices.
        heaviest = sorted(got.values(), reverse=True)[: (len(got) - 1) // 2]
        assert fsum(heaviest) <= MAX_SHARE * total * (1 + 1e-12)
        assert 2 * fsum(heaviest) < total
    if len(got) == 2:
        assert 2 * max(got.values()) == total
    ranked = sorted(weights, key=lambda name: weights[name])
    assert [got[name] for name in ranked] == sorted(got.values())


@given(COMMITTEES, st.lists(st.sampled_from("ABCD"), min_size=9, max_size=9))
def test_the_cap_holds_for_voices(weights: dict[str, float], of: list[str]) -> None:
    voices = dict(zip(weights, of, strict=False))
    got = capped(weights, voices)
    heard = {
        voice: max(got[name] for name in got if voices[name] == voice)
        for voice in set(voices.values())
    }
    if len(heard) >= 3:
        assert 2 * max(heard.values()) < fsum(heard.values())
    if len(heard) == 2:
        assert len(set(heard.values())) == 1


@given(COMMITTEES.filter(lambda weights: len(weights) >= 3), st.data())
def test_all_others_carry_against_any_minority(
    weights: dict[str, float], data: st.DataObject
) -> None:
    most = (len(weights) - 1) // 2
    names = st.sampled_from(sorted(weights))
    liars = data.draw(st.sets(names, min_size=1, max_size=most))
    tally = decide(
        [Member(replica=name, weight=w) for name, w in capped(weights).items()],
        [
            Vote(replica=n, commitments=(("y", Digest(f"sha256:{int(n in liars)}")),))
            for n in weights
        ],
        [],
        quorum=len(weights) // 2 + 1,
        tolerance=0.0,
        distances=lambda *_: None,
    )
    assert tally.accepted
    assert set(tally.dissenters) == liars
