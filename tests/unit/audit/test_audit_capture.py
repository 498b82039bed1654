"""Capture of committees: the formula against real draws and a scheming entry."""

from __future__ import annotations

import hashlib
from itertools import combinations
from math import comb, sqrt
from typing import Any

import pytest

from bentoml_secure.audit.capture import at_least_once, capture, captured_with_aborts
from bentoml_secure.consensus.committee import Candidate, draw_order
from bentoml_secure.errors import ConfigurationError

DRAWS = 3000


def tolerance(chance: float, draws: int = DRAWS) -> float:
    """Four standard deviations of a share of ``draws``, seeds being fixed."""
    return 4 * sqrt(max(chance * (1 - chance), 1e-4) / draws)


def drawn(replicas: int, colluders: int, weight: float, index: int) -> tuple[bool, ...]:
    """Return a real draw's order: True is a colluder."""
    candidates = [
        Candidate(replica=f"r{i}", weight=weight if i < colluders else 1.0)
        for i in range(replicas)
    ]
    seed = hashlib.sha256(f"draw {index}".encode()).digest()
    order = draw_order(seed, candidates, infer_index=0, segment_index=0)
    return tuple(int(name[1:]) < colluders for name in order)


def wins(
    order: tuple[bool, ...], committee: int, quorum: int, spares: int, escalation: int
) -> bool:
    """Try every way of passing over, at every stage, that the rules allow."""
    names = [f"{place}{'c' if dark else 'h'}" for place, dark in enumerate(order)]
    for stage in range(escalation + 1):
        seats = committee + 2 * stage
        for count in range(spares + 1):
            for skipped in combinations(names[: seats + count], count):
                asked = [name for name in names if name not in skipped][:seats]
                if sum(name[-1] == "c" for name in asked) >= quorum + stage:
                    return True
    return False


@pytest.mark.parametrize(
    "counts", [(20, 5, 3, 2), (30, 9, 9, 5), (7, 3, 3, 2), (5, 5, 5, 3), (4, 0, 1, 1)]
)
def test_a_plain_draw_is_hypergeometric(counts: tuple[int, int, int, int]) -> None:
    n, m, k, q = counts
    exact = sum(comb(m, i) * comb(n - m, k - i) for i in range(q, k + 1)) / comb(n, k)
    got = capture(replicas=n, colluders=m, committee=k, quorum=q)
    assert got == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "m", "k", "q", "spares", "escalation", "weight"),
    [
        (8, 3, 3, 2, 0, 0, 1.0),
        (8, 3, 3, 2, 1, 0, 1.0),
        (8, 3, 3, 2, 2, 0, 1.0),
        (9, 4, 3, 2, 0, 2, 1.0),
        (9, 4, 3, 2, 1, 1, 1.0),
        (8, 3, 3, 3, 1, 1, 1.0),
        (8, 2, 3, 2, 1, 0, 4.0),
        (8, 3, 3, 2, 0, 1, 0.25),
    ],
)
def test_a_scheming_entry_wins_as_often_as_computed(
    n: int, m: int, k: int, q: int, spares: int, escalation: int, weight: float
) -> None:
    chance = capture(
        replicas=n,
        colluders=m,
        committee=k,
        quorum=q,
        spares=spares,
        escalation=escalation,
        colluder_weight=weight,
    )
    won = sum(
        wins(drawn(n, m, weight, index), k, q, spares, escalation)
        for index in range(DRAWS)
    )
    assert won / DRAWS == pytest.approx(chance, abs=tolerance(chance))


@pytest.mark.parametrize("aborts", [0, 1, 4])
def test_aborts_are_further_draws(aborts: int) -> None:
    chance = capture(replicas=8, colluders=2, committee=3, quorum=2)
    expected = captured_with_aborts(chance, rounds=2, aborts=aborts)
    each, requests = 2 * (aborts + 1), 400
    won = sum(
        any(
            wins(drawn(8, 2, 1.0, request * each + draw), 3, 2, 0, 0)
            for draw in range(each)
        )
        for request in range(requests)
    )
    assert won / requests == pytest.approx(expected, abs=tolerance(expected, requests))


def test_small_chances_are_not_lost() -> None:
    assert at_least_once(1e-18, 1000) == pytest.approx(1e-15, rel=1e-9)
    assert at_least_once(0.0, 5) == 0.0
    assert at_least_once(1.0, 5) == 1.0
    assert at_least_once(1.0, 0) == 0.0
    assert at_least_once(0.3, 1) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"replicas": 0}, "replicas: got 0, want 1 to 64"),
        ({"replicas": 65}, "replicas: got 65, want 1 to 64"),
        ({"colluders": 8}, "colluders: got 8, want 0 to 7"),
        ({"colluders": -1}, "colluders: got -1, want 0 to 7"),
        ({"committee": 8}, "committee: got 8, want 1 to 7"),
        ({"quorum": 1}, "quorum: got 1, want 2 to 3"),
        ({"quorum": 4}, "quorum: got 4, want 2 to 3"),
        ({"spares": 5}, "spares: got 5, want 0 to 4"),
        ({"escalation": 3}, "escalation: got 3, want 0 to 2"),
        ({"spares": 3, "escalation": 1}, "escalation: got 1, want 0 to 0"),
        ({"colluder_weight": 0.0}, "colluder weight: got 0.0, want above 0"),
        ({"colluder_weight": float("nan")}, "colluder weight: got nan"),
    ],
)
def test_counts_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    counts: dict[str, Any] = {
        "replicas": 7,
        "colluders": 2,
        "committee": 3,
        "quorum": 2,
        **changes,
    }
    with pytest.raises(ConfigurationError, match=said):
        capture(**counts)
