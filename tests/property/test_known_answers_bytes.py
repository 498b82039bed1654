"""Bytes of known answers: one byte string for one content, SecureError for the rest."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bentoml_secure.consensus.known_answers import (
    MAGIC,
    KnownAnswer,
    KnownAnswers,
    parse_known_answers,
)
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import MalformedInputError

PLAN = digest_json("a plan")
TENSORS = st.dictionaries(
    st.text("xyz", min_size=1, max_size=3),
    st.sampled_from(
        [np.zeros((0, 2)), np.float32(2.5), np.arange(3), np.array([True, False])]
    ).map(np.asarray),
    max_size=2,
)
ANSWERS = st.lists(
    st.lists(st.tuples(TENSORS, TENSORS), max_size=3).map(
        lambda pairs: tuple(KnownAnswer(inputs=i, outputs=o) for i, o in pairs)
    ),
    max_size=3,
).map(lambda segments: KnownAnswers(plan=PLAN, segments=tuple(segments)))


@settings(max_examples=50)
@given(ANSWERS)
def test_there_and_back(answers: KnownAnswers) -> None:
    data = answers.to_bytes()
    assert parse_known_answers(data).to_bytes() == data


@settings(max_examples=100)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused_or_read(data: bytes, marked: bool) -> None:
    data = MAGIC + data if marked else data
    try:
        answers = parse_known_answers(data)
    except MalformedInputError:
        return
    assert answers.to_bytes() == data


@settings(max_examples=100)
@given(ANSWERS, st.integers(0), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_another_content(
    answers: KnownAnswers, at: int, flip: int
) -> None:
    data = bytearray(answers.to_bytes())
    data[at % len(data)] ^= flip
    try:
        got = parse_known_answers(bytes(data))
    except MalformedInputError:
        return
    # No byte is idle: what still parses encodes to what was changed.
    assert got.to_bytes() == bytes(data) != answers.to_bytes()
