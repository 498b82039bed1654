"""The draw: floats never change the order that exact arithmetic gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.consensus.committee import (
    Candidate,
    _exact_key,
    _lot,
    draw_order,
)

SEEDS = st.binary(min_size=32, max_size=32)
NAMES = st.text("abcd_0123", min_size=1, max_size=6)
WEIGHTS = st.sampled_from([1.0, 2.0, 0.5]) | st.floats(
    0, 1e6, exclude_min=True, allow_subnormal=True
)
WEIGHED = st.dictionaries(NAMES, WEIGHTS, min_size=1, max_size=8)


def candidates(weighed: dict[str, float]) -> list[Candidate]:
    return [Candidate(replica=name, weight=w) for name, w in weighed.items()]


@given(SEEDS, WEIGHED, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_the_order_is_that_of_exact_keys(
    seed: bytes, weighed: dict[str, float], infer: int, segment: int
) -> None:
    task = infer.to_bytes(4, "big") + segment.to_bytes(4, "big")
    exact = {n: _exact_key(_lot(seed, task, n), w) for n, w in weighed.items()}
    order = draw_order(
        seed, candidates(weighed), infer_index=infer, segment_index=segment
    )
    assert list(order) == sorted(exact, key=lambda name: (exact[name], name))


@given(SEEDS, WEIGHED, st.data())
def test_who_leaves_does_not_move_the_others(
    seed: bytes, weighed: dict[str, float], data: st.DataObject
) -> None:
    order = draw_order(seed, candidates(weighed), infer_index=0, segment_index=0)
    gone = data.draw(st.sampled_from(order))
    rest = [c for c in candidates(weighed) if c.replica != gone]
    if rest:
        left = draw_order(seed, rest, infer_index=0, segment_index=0)
        assert left == tuple(name for name in order if name != gone)
