"""Whatever a broker answers, a runner gets no key of it and raises our errors only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuzz.broker_answers import one, seeds


def test_answers_of_every_kind() -> None:
    for seed in seeds():
        one(seed)


@given(st.binary(max_size=200))
def test_arbitrary_answers(data: bytes) -> None:
    one(data)
