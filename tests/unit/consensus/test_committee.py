"""The draw of committees: repeatable by anybody, uniform, and weighted as it says."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.consensus import committee
from bentoml_secure.consensus.committee import (
    Candidate,
    candidate_faults,
    draw_order,
    seed,
)
from bentoml_secure.errors import ConfigurationError, MalformedInputError

VECTORS = json.loads(
    (Path(__file__).parents[3] / "docs" / "committee-vectors.json").read_text()
)
SEED = seed(b"r" * 32, b"n" * 32, b"i" * 16)


def candidates(**weights: float) -> list[Candidate]:
    return [Candidate(replica=name, weight=w) for name, w in weights.items()]


def orders(drawn: list[Candidate], count: int) -> list[tuple[str, ...]]:
    return [
        draw_order(SEED, drawn, infer_index=index // 1000, segment_index=index % 1000)
        for index in range(count)
    ]


def shares(drawn: list[Candidate], prefix: int) -> dict[tuple[str, ...], float]:
    """Return the probability of each beginning of an order, by drawing without it."""
    weights = {c.replica: c.weight for c in drawn}
    found = {}
    for names in permutations(weights, prefix):
        left, chance = sum(weights.values()), 1.0
        for name in names:
            chance *= weights[name] / left
            left -= weights[name]
        found[names] = chance
    return found


def chi_square(counts: Counter[Any], expected: dict[Any, float]) -> float:
    total = sum(counts.values())
    assert set(counts) <= set(expected)
    return sum(
        (counts[key] - total * share) ** 2 / (total * share)
        for key, share in expected.items()
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_known_answers(vector: dict[str, Any]) -> None:
    drawn = [
        Candidate(replica=entry["replica"], weight=entry["weight"])
        for entry in vector["candidates"]
    ]
    made = seed(*(bytes.fromhex(vector[name]) for name in ("r", "nonce", "request_id")))
    assert made.hex() == vector["seed"]
    order = draw_order(
        made, drawn, infer_index=vector["infer"], segment_index=vector["segment"]
    )
    assert list(order) == vector["order"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_known_answers_follow_from_the_page_alone(vector: dict[str, Any]) -> None:
    parts = [bytes.fromhex(vector[name]) for name in ("r", "nonce", "request_id")]
    label = b"bentoml-secure/committee/v1"
    made = hashlib.sha256(label + b"".join(parts)).digest()
    task = vector["infer"].to_bytes(4, "big") + vector["segment"].to_bytes(4, "big")
    keys = {}
    for entry in vector["candidates"]:
        mac = hmac.new(made, task + entry["replica"].encode(), hashlib.sha256)
        u = (2 * int.from_bytes(mac.digest()[:8], "big") + 1) / 2**65
        keys[entry["replica"]] = -math.log(u) / entry["weight"]
    assert made.hex() == vector["seed"]
    assert sorted(keys, key=lambda name: (keys[name], name)) == vector["order"]


def test_the_order_of_candidates_does_not_matter() -> None:
    drawn = candidates(a=1.0, b=2.0, c=0.5, d=1.0)
    found = {
        draw_order(SEED, order, infer_index=3, segment_index=1)
        for order in permutations(drawn)
    }
    assert len(found) == 1


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_every_part_of_the_seed_counts(changed: int) -> None:
    parts = [b"r" * 32, b"n" * 32, b"i" * 16]
    parts[changed] = b"x" + parts[changed][1:]
    assert seed(*parts) != SEED


def test_infers_and_segments_have_draws_of_their_own() -> None:
    drawn = candidates(**{f"r{index}": 1.0 for index in range(16)})
    found = {
        draw_order(SEED, drawn, infer_index=infer, segment_index=segment)
        for infer in range(3)
        for segment in range(3)
    }
    assert len(found) == 9


def test_equal_weights_draw_every_beginning_equally_often() -> None:
    drawn = candidates(a=1.0, b=1.0, c=1.0, d=1.0, e=1.0)
    counts = Counter(order[:2] for order in orders(drawn, 6000))
    # 19 degrees of freedom: 50 is exceeded once in 8,000 seeds, and this one is fixed.
    assert chi_square(counts, shares(drawn, 2)) < 50


def test_weights_draw_as_without_replacement() -> None:
    drawn = candidates(a=0.5, b=1.0, c=2.0, d=4.0)
    counts = Counter(order[:3] for order in orders(drawn, 6000))
    # 23 degrees of freedom: 55 is exceeded once in 5,000 seeds.
    assert chi_square(counts, shares(drawn, 3)) < 55
    first = Counter(order[0] for order in orders(drawn, 6000))
    assert first["d"] / 6000 == pytest.approx(4 / 7.5, abs=0.02)


def test_keys_too_close_for_floats_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The lots differ in their last bit of 65; as floats their keys are equal.
    lots = {"a": 2**64 + 3, "b": 2**64 + 5}
    monkeypatch.setattr(committee, "_lot", lambda _seed, _task, name: lots[name])
    rough = {committee._rough_key(lot, 1.0) for lot in lots.values()}
    assert len(rough) == 1
    drawn = candidates(a=1.0, b=1.0)
    assert draw_order(SEED, drawn, infer_index=0, segment_index=0) == ("b", "a")


def test_equal_lots_stand_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committee, "_lot", lambda *_: 12345)
    drawn = candidates(b=1.0, a=1.0, c=1.0)
    assert draw_order(SEED, drawn, infer_index=0, segment_index=0) == ("a", "b", "c")


@pytest.mark.parametrize("lot", [1, 2**64 - 1, 2**64 + 1, 2**65 - 1])
def test_lots_next_to_0_and_1_have_keys(lot: int) -> None:
    rough, exact = committee._rough_key(lot, 2.0), committee._exact_key(lot, 2.0)
    assert rough > 0
    assert rough == pytest.approx(float(exact), rel=1e-14)


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        ([], "candidates: got 0, want 1 to 64"),
        (candidates(**{f"r{i}": 1.0 for i in range(65)}), "got 65, want 1 to 64"),
        (candidates(a=1.0) * 2, "'a' 2 times, want each replica once"),
        (candidates(a=0.0), "weight of 'a': got 0.0, want above 0, at most 1e"),
        (candidates(a=-1.0), "weight of 'a': got -1.0"),
        (candidates(a=math.nan), "weight of 'a': got nan"),
        (candidates(a=1e6 + 1), "weight of 'a': got 1000001.0"),
        ([Candidate(replica="")], "replica: got '', want a short printable name"),
        ([Candidate(replica="a\n")], "want a short printable name"),
    ],
)
def test_unfit_candidates_are_refused(drawn: list[Candidate], said: str) -> None:
    assert candidate_faults(drawn)
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        draw_order(SEED, drawn, infer_index=0, segment_index=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seed": b"short"}, "seed: got 5 bytes, want 32"),
        ({"infer_index": -1}, "infer index: got -1"),
        ({"segment_index": 2**32}, "segment index: got 4294967296"),
    ],
)
def test_unfit_arguments_are_refused(arguments: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "seed": SEED,
        "infer_index": 0,
        "segment_index": 0,
    } | arguments
    with pytest.raises(ConfigurationError, match=said):
        draw_order(candidates=candidates(a=1.0), **given)


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ((31, 32, 16), "r: got 31 bytes, want 32"),
        ((32, 0, 16), "nonce: got 0 bytes, want 32"),
        ((32, 32, 32), "request id: got 32 bytes, want 16"),
    ],
)
def test_a_seed_has_parts_of_fixed_size(
    lengths: tuple[int, int, int], said: str
) -> None:
    with pytest.raises(MalformedInputError, match=said):
        seed(*map(bytes, lengths))
