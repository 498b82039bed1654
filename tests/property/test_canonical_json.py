"""Canonical JSON: byte for byte what the reference implementation writes."""

from __future__ import annotations

import json

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from bentoml_secure.digest import canonical_json, digest_json, parse_json
from bentoml_secure.errors import MalformedInputError, SecureError

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(codec="utf-8"))
)
KEYS = st.text(st.characters(codec="utf-8"), max_size=8)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda node: st.lists(node, max_size=5) | st.dictionaries(KEYS, node, max_size=5),
    max_leaves=30,
)


@given(DOCUMENTS)
@example({"b": [2e-05, 1.0, -0.0, 1e21, 5e-324], "a": {"é": 1, "z": 0.1}})
@example({"\U0001f600": 1, "\ufb33": 2})
@example('\x00\x1f\x7f\u2028\\"/')
def test_it_is_what_the_reference_writes(document: object) -> None:
    assert canonical_json(document) == rfc8785.dumps(document)  # type: ignore[arg-type]


@given(DOCUMENTS)
def test_it_reads_back_to_the_same_document_and_digest(document: object) -> None:
    again = parse_json(canonical_json(document), what="it", max_bytes=1 << 20)
    assert digest_json(again) == digest_json(document)
    assert json.loads(canonical_json(document)) == document


@pytest.mark.parametrize(
    "document",
    [float("nan"), [float("inf")], {"a": 2**53}, {1: "key"}, "\ud800", {"a": object()}],
    ids=["NaN", "infinity", "integer", "key", "surrogate", "object"],
)
def test_what_has_no_canonical_form_is_refused(document: object) -> None:
    with pytest.raises(MalformedInputError, match="canonical JSON"):
        canonical_json(document)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused_with_our_error(data: bytes) -> None:
    try:
        document = parse_json(data, what="it", max_bytes=100)
    except SecureError:
        return
    assert len(data) <= 100
    assert json.loads(data) == document


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":1,"a":2}', "stands twice"),
        ("NaN", "NaN is not JSON"),
        ("[" * 70 + "]" * 70, "nested deeper"),
        ("1" * 200, "at most 100"),
        ("{", "not valid JSON"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(
    text: str, reason: str
) -> None:
    with pytest.raises(MalformedInputError, match=reason):
        parse_json(text.encode(), what="it", max_bytes=200 if "[" in text else 100)
