"""Commitments: read back, or refused with our error; opened by one answer alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.consensus.barrier import Barrier
from bentoml_secure.consensus.commit_reveal import (
    Commitment,
    Task,
    commit_answer,
    require_opening,
)
from bentoml_secure.digest import Digest, Scheme, digest_json
from bentoml_secure.errors import SecureError, VerificationError
from bentoml_secure.serving.exchange import Opening, decode_reveal, encode_reveal

TEXT = st.text(max_size=8)


def hexes(length: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=length, max_size=length).map(bytes.hex)


DIGESTS = st.integers(0, 3).map(digest_json)
OUTPUTS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=4),
    hexes(32).map(lambda h: Digest(f"{Scheme.BLAKE3.tensor}:{h}")),
    max_size=3,
)
NONCES = st.binary(min_size=16, max_size=16)
TASKS = st.builds(
    Task,
    request_id=hexes(16),
    nonce=hexes(32),
    plan_digest=DIGESTS,
    infer_index=st.integers(0, 2**53 - 1),
    exchange_id=hexes(16),
    segment=DIGESTS,
)


class Given(NamedTuple):
    """What a commitment is made of."""

    task: Task
    replica: str
    outputs: dict[str, Digest]
    nonce: bytes


ANSWERS = st.builds(Given, TASKS, TEXT, OUTPUTS, NONCES)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda node: st.lists(node, max_size=3) | st.dictionaries(TEXT, node, max_size=3),
    max_leaves=6,
)


def committed(answer: Given) -> Commitment:
    return Commitment(
        task=answer.task,
        key_document=digest_json("keys"),
        commitment=commit_answer(*answer),
    )


@given(ANSWERS)
def test_a_commitment_reads_back_and_opens(
    answer: Given,
) -> None:
    made = committed(answer)
    again = Commitment.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    require_opening(again, answer.replica, answer.outputs, answer.nonce)


@given(ANSWERS, ANSWERS, st.sampled_from(Given._fields))
def test_another_answer_does_not_open_it(
    answer: Given,
    other: Given,
    part: str,
) -> None:
    mixed = answer._replace(**{part: getattr(other, part)})
    if mixed == answer:
        return
    made = replace(committed(answer), task=mixed.task)
    with pytest.raises(VerificationError, match="opened another answer"):
        require_opening(made, mixed.replica, mixed.outputs, mixed.nonce)


@given(st.sampled_from(["version", "commitment", *Task.__slots__, "more"]), JSON)
def test_anything_in_a_field_is_refused_or_reads_back(field: str, value: Any) -> None:
    task = Task(
        request_id="11" * 16,
        nonce="22" * 32,
        plan_digest=digest_json(1),
        infer_index=0,
        exchange_id="33" * 16,
        segment=digest_json(2),
    )
    document = {**committed(Given(task, "R", {}, bytes(16))).to_json(), field: value}
    try:
        made = Commitment.from_json(document)
    except SecureError:
        return
    assert made.to_json() == document


@given(JSON | st.dictionaries(st.sampled_from(["nonce", "statement"]), JSON))
def test_any_opening_is_refused_or_reads_back(document: Any) -> None:
    try:
        opening = Opening.from_json(document)
    except SecureError:
        return
    assert json.loads(opening.encode()) == document


@given(hexes(16))
def test_a_reveal_reads_back(exchange_id: str) -> None:
    assert decode_reveal(encode_reveal(exchange_id)) == exchange_id


@given(st.binary(max_size=300))
def test_any_bytes_are_no_reveal(data: bytes) -> None:
    try:
        exchange_id = decode_reveal(data)
    except SecureError:
        return
    assert exchange_id.encode() in data


@given(
    st.permutations("abcde"),
    st.integers(1, 5),
    st.sets(st.sampled_from("abcde"), max_size=5),
)
def test_a_barrier_lets_everybody_through_and_the_first_of_them_blind(
    order: list[str], quorum: int, failing: set[str]
) -> None:
    """Whoever fails, whoever comes first: nobody waits until the deadline."""

    async def entered(barrier: Barrier, name: str, commitment: Digest) -> bool:
        try:
            return await barrier.enter(name, commitment)
        finally:
            barrier.leave(name)

    async def round_() -> list[bool]:
        barrier = Barrier("abcde", quorum=quorum, wait_seconds=60)
        tasks = []
        for name in order:
            if name in failing:
                barrier.leave(name)
            else:
                commitment = Digest(f"sha256-answer-v1:{name}")
                tasks.append(asyncio.create_task(entered(barrier, name, commitment)))
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            return list(await asyncio.gather(*tasks))

    blind = asyncio.run(round_())
    counted = sum(blind)
    assert counted >= min(quorum, len(blind))
    # Whoever came after the first who was not blind was not blind either.
    assert blind == [True] * counted + [False] * (len(blind) - counted)
