"""Tolerances from distances: what is refused, and what the bound is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from bentoml_secure.consensus.calibration import (
    Answer,
    Cheat,
    Spread,
    calibrate,
    cheat_spread,
    committee_bound,
    false_alarm_bound,
    honest_spread,
    require_apart,
)
from bentoml_secure.consensus.rules.exact import Exact
from bentoml_secure.consensus.rules.within_tolerance import WithinTolerance
from bentoml_secure.errors import ConfigurationError, PolicyRejected
from bentoml_secure.tensors import Array

DISTANCE = WithinTolerance().distance
FAR, NEAR = "a listed cheat", "another"


def rows(*values: float) -> list[Answer]:
    """Answers whose distance to 1.0 is, within rounding, what is added to it."""
    return [{"y": np.array([value, value], np.float64)} for value in values]


def spread(*largest: float) -> Spread:
    return Spread(per_input=largest, pairs=3 * len(largest), farthest=("a", "b"))


def test_the_largest_distance_of_any_pair_is_found() -> None:
    found = honest_spread(
        {
            "a": rows(1, 1, 1),
            "b": rows(1, 1.001, 1),
            "c": rows(1, 1, 1.002),
            "d": rows(1, 0.999, 1),
        },
        DISTANCE,
    )
    assert found.per_input[0] == 0
    assert found.per_input[1] == pytest.approx(0.002, rel=1e-2)
    assert found.largest == pytest.approx(0.002, rel=1e-2)
    assert found.pairs == 3 * 6
    assert found.farthest in {("b", "d"), ("a", "c")}


def test_runs_that_are_bit_equal_are_at_no_distance() -> None:
    assert honest_spread({"a": rows(1), "b": rows(1)}, DISTANCE).largest == 0


def test_what_only_some_runs_give_is_compared_among_those() -> None:
    more: list[Answer] = [{**row, "z": np.array([5.0])} for row in rows(1, 1)]
    odd: list[Answer] = [{**row, "z": np.array([6.0])} for row in rows(1, 1)]
    assert honest_spread({"a": more, "b": rows(1, 1)}, DISTANCE).largest == 0
    found = honest_spread({"a": more, "b": rows(1, 1), "c": odd}, DISTANCE)
    assert found.largest == pytest.approx(0.2)
    nothing: list[Answer] = [{}, {}]
    assert honest_spread({"a": nothing, "b": rows(1, 2)}, DISTANCE).largest == 0


@pytest.mark.parametrize(
    "answers",
    [{}, {"a": rows(1)}, {"a": rows(1), "b": rows(1, 2)}, {"a": [], "b": []}],
)
def test_fewer_than_two_runs_or_unequal_ones(
    answers: dict[str, list[Answer]],
) -> None:
    with pytest.raises(ConfigurationError, match="want at least 2 with as many"):
        honest_spread(answers, DISTANCE)


def test_honest_runs_that_the_rule_cannot_compare() -> None:
    with pytest.raises(PolicyRejected, match="honest runs a and b cannot be") as caught:
        honest_spread({"a": rows(1, 1), "b": rows(1, 2)}, Exact().distance)
    assert caught.value.findings[0].field == "input 1"


def test_a_cheat_is_as_far_as_its_nearest_honest_run() -> None:
    answers = {"a": rows(1, 1, 1), "b": rows(1.001, 1, 1)}
    found = cheat_spread(FAR, rows(1.002, 1, math.nan), answers, "a", DISTANCE)
    assert found.distances[0] == pytest.approx(0.001, rel=1e-2)
    assert found.distances[1:] == (math.inf,)
    assert found.unchanged == 1
    assert found.smallest == found.distances[0]


def test_a_cheat_without_effect_has_no_distance() -> None:
    answers = {"a": rows(1, 2), "b": rows(1.001, 2)}
    found = cheat_spread(FAR, rows(1, 2), answers, "a", DISTANCE)
    assert (found.smallest, found.unchanged) == (None, 2)
    assert calibrate(spread(0.1), [found]).nearest is None


def test_a_tolerance_is_the_margin_times_the_largest() -> None:
    cheats = [
        Cheat(name=FAR, distances=(0.9, 0.5)),
        Cheat(name=NEAR, distances=(math.inf, 0.3)),
        Cheat(name="incomparable", distances=(math.inf,)),
        Cheat(name="none", not_applicable="no layer"),
    ]
    found = calibrate(spread(1e-3, 2e-2), cheats, margin=10)
    assert found.tolerance == pytest.approx(0.2)
    assert found.nearest == cheats[1]
    assert found.false_alarm == false_alarm_bound(2)
    assert found.passing == ()
    require_apart({"segment": found})


@pytest.mark.parametrize("distance", [0.16, 0.1, 1e-9])
def test_a_cheat_at_or_under_the_tolerance_is_refused_by_name(distance: float) -> None:
    cheats = [
        Cheat(name=NEAR, distances=(0.9, distance)),
        Cheat(name="far", distances=(0.17,)),
    ]
    fine = calibrate(spread(0.0), cheats)
    found = calibrate(spread(0.01, 0.02), cheats)
    with pytest.raises(
        PolicyRejected, match=r"8 times the 0\.02 between honest a and b"
    ):
        require_apart({"s0": fine, "s1": found})
    with pytest.raises(PolicyRejected, match="lower the margin") as caught:
        require_apart({"s0": fine, "s1": found, "s2": found})
    assert [finding.field for finding in caught.value.findings] == [
        f"s1 {NEAR}",
        f"s2 {NEAR}",
    ]
    assert caught.value.findings[0].got == f"distance {distance:.3g}"
    assert caught.value.findings[0].want == "over 0.16"


@pytest.mark.parametrize("margin", [0.99, 0, -1, math.nan, math.inf])
def test_a_margin_below_one_is_refused(margin: float) -> None:
    with pytest.raises(ConfigurationError, match="want a number from 1"):
        calibrate(spread(0.1), [], margin=margin)


@pytest.mark.parametrize(
    ("inputs", "bound"), [(1, 0.95), (64, 0.045731), (1000, 0.0029912)]
)
def test_the_bound_is_clopper_and_pearsons_for_none(inputs: int, bound: float) -> None:
    assert false_alarm_bound(inputs) == pytest.approx(bound, rel=1e-4)


def heavy(random: np.random.Generator, shape: tuple[int, int]) -> Array:
    return random.pareto(0.7, shape)


def narrow(random: np.random.Generator, shape: tuple[int, int]) -> Array:
    return random.uniform(0, 1, shape)


@pytest.mark.parametrize("draw", [heavy, narrow])
@pytest.mark.parametrize("inputs", [64, 300])
def test_the_bound_holds_in_95_of_100_calibrations(draw: object, inputs: int) -> None:
    # Whatever the distribution: how often does a further input exceed the largest?
    assert callable(draw)
    random = np.random.default_rng(inputs)
    calibrations, further = 2000, 20_000
    largest = draw(random, (calibrations, inputs)).max(axis=1)
    population = np.sort(draw(random, (1, further))[0])
    exceeding = 1 - np.searchsorted(population, largest, side="right") / further
    held = np.mean(exceeding <= false_alarm_bound(inputs))
    # Three standard deviations of 2000 draws around 0.95.
    assert abs(held - 0.95) < 3 * math.sqrt(0.95 * 0.05 / calibrations) + 0.005


@pytest.mark.parametrize(("pair", "members"), [(0.05, 3), (0.01, 5), (0.2, 7)])
def test_a_committees_bound_is_what_independent_pairs_do(
    pair: float, members: int
) -> None:
    random = np.random.default_rng(members)
    pairs = members * (members - 1) // 2
    seen = np.mean((random.random((40_000, pairs)) < pair).any(axis=1))
    assert seen == pytest.approx(committee_bound(pair, members), abs=0.01)


@pytest.mark.parametrize("members", [0, 1])
def test_a_committee_without_pairs_has_no_false_alarm(members: int) -> None:
    assert committee_bound(0.5, members) == 0


def test_more_inputs_make_a_smaller_bound() -> None:
    bounds: Sequence[float] = [false_alarm_bound(n) for n in (64, 128, 256, 1024)]
    assert list(bounds) == sorted(bounds, reverse=True)
