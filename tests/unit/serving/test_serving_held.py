"""What a runner holds between commitment and reveal: bounded, once, to one session."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from bentoml_secure.errors import UnavailableError, VerificationError
from bentoml_secure.scenario import Scenarios
from bentoml_secure.serving.exchange import Opening, Outgoing
from bentoml_secure.serving.held import (
    HELD_GRACE_SECONDS,
    PLAIN,
    Held,
    HeldAnswers,
    held_for,
)
from tests.unit.serving.serving_parts import Ground, scenario

A, B = b"A" * 16, b"B" * 16


def held(ground: Ground, number: int = 0, floats: int = 4) -> Held:
    outgoing = Outgoing.of({"h": np.zeros((floats,), np.float32)})
    identity = ground.own
    return Held(
        exchange=ground.exchange(exchange_id=f"{number:032x}"),
        outgoing=outgoing,
        opening=Opening(nonce=bytes(16), statement={}),
        keys=lambda: identity.keys,
    )


async def test_an_answer_is_taken_once(ground: Ground) -> None:
    answers, one = HeldAnswers(seconds=30), held(ground)
    answers.hold(A, one)
    assert answers.take(A, one.exchange.exchange_id) is one
    with pytest.raises(VerificationError, match="revealed before, or past its time"):
        answers.take(A, one.exchange.exchange_id)


@pytest.mark.parametrize("owner", [B, PLAIN])
async def test_nobody_else_takes_it(ground: Ground, owner: bytes) -> None:
    answers, one = HeldAnswers(seconds=30), held(ground)
    answers.hold(A, one)
    with pytest.raises(VerificationError, match="no answer is held for this session"):
        answers.take(owner, one.exchange.exchange_id)
    # Nor does trying lose it for its owner.
    assert answers.take(A, one.exchange.exchange_id) is one


async def test_two_sessions_may_use_one_id(ground: Ground) -> None:
    answers, one, other = HeldAnswers(seconds=30), held(ground), held(ground)
    answers.hold(A, one)
    answers.hold(B, other)
    assert answers.take(B, other.exchange.exchange_id) is other
    assert answers.take(A, one.exchange.exchange_id) is one


async def test_one_session_may_not_use_it_twice(ground: Ground) -> None:
    answers, one = HeldAnswers(seconds=30), held(ground)
    answers.hold(A, one)
    with pytest.raises(VerificationError, match="this exchange id is held already"):
        answers.hold(A, held(ground))
    assert answers.take(A, one.exchange.exchange_id) is one


async def test_its_time_ends_without_anybody_asking(ground: Ground) -> None:
    answers = HeldAnswers(seconds=0.01, max_count=1)
    answers.hold(A, held(ground))
    await asyncio.sleep(0.05)
    answers.require_room()
    with pytest.raises(VerificationError, match="past its time"):
        answers.take(A, held(ground).exchange.exchange_id)


async def test_over_the_count_the_next_is_refused(ground: Ground) -> None:
    answers = HeldAnswers(seconds=30, max_count=2)
    for number in range(2):
        answers.require_room()
        answers.hold(A, held(ground, number))
    with pytest.raises(UnavailableError, match=r"2 answers wait .* want fewer than 2"):
        answers.require_room()
    with pytest.raises(UnavailableError, match="2 answers wait"):
        answers.hold(B, held(ground, 2))
    answers.take(A, held(ground, 1).exchange.exchange_id)
    answers.hold(B, held(ground, 2))


async def test_over_the_bytes_the_next_is_refused(ground: Ground) -> None:
    size = held(ground).outgoing.total_bytes
    answers = HeldAnswers(seconds=30, max_bytes=2 * size)
    answers.hold(A, held(ground, 0))
    with pytest.raises(UnavailableError, match=f"would be over {2 * size}"):
        answers.hold(A, held(ground, 1, floats=1000))
    answers.hold(A, held(ground, 1))
    with pytest.raises(UnavailableError, match=f"{2 * size} bytes wait"):
        answers.hold(A, held(ground, 2))
    # What goes frees its bytes.
    answers.take(A, held(ground, 0).exchange.exchange_id)
    answers.hold(A, held(ground, 2))


def test_room_is_made_where_a_scenario_asks_for_it() -> None:
    plain = scenario(name="plain", deadline_ms=60_000)
    one = scenario(name="one", deadline_ms=2000, commit_reveal=True)
    other = scenario(name="other", deadline_ms=4000, commit_reveal=True)
    nobody = Scenarios(minimum="plain", by_name={"plain": plain})
    assert held_for(nobody) is None
    both = {s.name: s for s in (plain, one, other)}
    made = held_for(Scenarios(minimum="plain", by_name=both))
    assert made is not None
    assert made._seconds == 4 + HELD_GRACE_SECONDS
