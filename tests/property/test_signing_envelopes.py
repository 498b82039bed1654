"""Envelopes and statements: read back, or refused with our error, and never forged."""

from __future__ import annotations

import base64
import copy
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.digest import Digest, Scheme, digest_json
from bentoml_secure.errors import SecureError
from bentoml_secure.signing import (
    SigningKey,
    decode_base64,
    parse_envelope,
    sign,
    verify,
)
from bentoml_secure.statements import (
    Statement,
    format_time,
    intoto_statement,
    parse_intoto,
    parse_statement_envelope,
    parse_time,
    sign_statement,
    verify_statement,
)

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(b"k" * 32))
TYPE = "application/vnd.test+json"
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT
JSON: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda node: st.lists(node, max_size=4) | st.dictionaries(TEXT, node, max_size=4),
    max_leaves=12,
)


def hexes(length: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=length, max_size=length).map(bytes.hex)


COMMITMENTS = st.dictionaries(
    TEXT, hexes(32).map(lambda h: Digest(f"{Scheme.BLAKE3.tensor}:{h}")), max_size=3
)
DIGESTS = TEXT.map(digest_json)
TIMES = st.datetimes().map(lambda t: f"{t.isoformat(timespec='milliseconds')}Z")
STATEMENTS = st.builds(
    Statement,
    request_id=hexes(16),
    nonce=hexes(32),
    plan_digest=DIGESTS,
    infer_index=st.integers(0, 2**53 - 1),
    exchange_id=hexes(16),
    segment=DIGESTS,
    key_document=DIGESTS,
    inputs=COMMITMENTS,
    outputs=COMMITMENTS,
    started_at=TIMES,
    ended_at=TIMES,
)


@given(JSON)
def test_what_was_signed_comes_back(document: object) -> None:
    envelope = parse_envelope(sign(KEY, TYPE, document).to_json(), what="it")
    assert verify(envelope, KEY.public, payload_type=TYPE) == document


@given(STATEMENTS)
def test_a_statement_comes_back(statement: Statement) -> None:
    envelope = parse_statement_envelope(sign_statement(KEY, statement).to_json())
    assert verify_statement(envelope, KEY.public) == statement


@given(st.data())
def test_a_changed_envelope_verifies_nothing(data: st.DataObject) -> None:
    document = sign(KEY, TYPE, {"a": 1}).to_json()
    changed = copy.deepcopy(document)
    holder: Any = data.draw(st.sampled_from([changed, changed["signatures"][0]]))
    field = data.draw(st.sampled_from(sorted(holder)))
    value = holder[field]
    at = data.draw(st.integers(0, len(value) - 1)) if isinstance(value, str) else 0
    holder[field] = data.draw(
        JSON | st.just(value[:at] + "A" + value[at + 1 :] if at else "A")
    )
    if changed == document:
        return
    with pytest.raises(SecureError, match=r"it|signature|payloadType|keyid"):
        verify(parse_envelope(changed, what="it"), KEY.public, payload_type=TYPE)


@given(JSON)
def test_any_document_is_refused_as_an_envelope(document: object) -> None:
    with pytest.raises(SecureError, match="it: want exactly"):
        parse_envelope(document, what="it")


@given(STATEMENTS, st.data())
def test_a_statement_with_anything_in_a_field_reads_back_or_is_refused(
    statement: Statement, data: st.DataObject
) -> None:
    document = statement.to_json()
    field = data.draw(st.sampled_from(sorted(document)))
    document[field] = data.draw(JSON)
    try:
        again = Statement.from_json(document)
    except SecureError:
        return
    assert again.to_json() == document


@given(st.text(max_size=12) | st.binary(max_size=20).map(lambda b: b.hex()))
def test_base64_has_one_spelling(text: str) -> None:
    try:
        data = decode_base64(text, what="it", max_bytes=8)
    except SecureError:
        return
    assert base64.b64encode(data).decode() == text
    assert len(data) <= 9


@given(st.datetimes(timezones=st.timezones()))
def test_times_read_back_to_the_millisecond(moment: Any) -> None:
    try:
        text = format_time(moment)
    except OverflowError:
        return  # Beyond year 1 or 9999 in UTC.
    assert len(text) == 24
    again = parse_time(text, what="it")
    assert 0 <= (moment - again).total_seconds() < 0.001
    assert format_time(again) == text


@given(st.text(max_size=30))
def test_any_text_is_a_time_of_one_spelling_or_refused(text: str) -> None:
    try:
        assert format_time(parse_time(text, what="it")) == text
    except SecureError:
        return


@given(st.dictionaries(TEXT, DIGESTS, max_size=4), st.dictionaries(TEXT, JSON))
def test_an_in_toto_statement_comes_back(
    subjects: dict[str, Digest], predicate: dict[str, Any]
) -> None:
    document = intoto_statement(list(subjects.items()), "https://a/v1", predicate)
    got = parse_intoto(document, predicate_type="https://a/v1", what="it")
    assert got == (subjects, predicate)


@given(JSON, st.sampled_from(["_type", "subject", "predicateType", "predicate"]))
def test_an_in_toto_statement_with_anything_in_a_field(
    value: object, field: str
) -> None:
    document = intoto_statement([("a", digest_json(1))], "https://a/v1", {})
    document[field] = value
    try:
        subjects, predicate = parse_intoto(
            document, predicate_type="https://a/v1", what="it"
        )
    except SecureError:
        return
    again = intoto_statement(list(subjects.items()), "https://a/v1", predicate)
    assert again == document
