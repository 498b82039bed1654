"""What runners sign, and in-toto statements: read strictly, compared field by field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from bentoml_secure.digest import Digest, Scheme, digest_bytes, digest_json
from bentoml_secure.errors import (
    MalformedInputError,
    StatementError,
    VerificationError,
)
from bentoml_secure.signing import SigningKey, sign
from bentoml_secure.statements import (
    INTOTO_STATEMENT,
    STATEMENT_TYPE,
    Statement,
    format_time,
    intoto_statement,
    parse_commitments,
    parse_intoto,
    parse_statement_envelope,
    parse_time,
    require_statement,
    sign_statement,
    verify_statement,
)

COMMITMENT = Digest(f"{Scheme.HMAC_SHA256.tensor}:{'0' * 64}")
SAID = Statement(
    request_id="11" * 16,
    nonce="22" * 32,
    plan_digest=digest_json("plan"),
    infer_index=0,
    exchange_id="33" * 16,
    segment=digest_json("segment"),
    key_document=digest_json("key document"),
    inputs={"x": COMMITMENT},
    outputs={"y": COMMITMENT, "ä": COMMITMENT},
    started_at="2026-06-01T12:00:00.000Z",
    ended_at="2026-06-01T12:00:00.001Z",
)
KEY = SigningKey.generate()


def test_a_statement_comes_back_as_it_was_signed() -> None:
    envelope = sign_statement(KEY, SAID)
    assert parse_statement_envelope(envelope.to_json()) == envelope
    assert verify_statement(envelope, KEY.public) == SAID
    assert envelope.payload_type == STATEMENT_TYPE


def test_a_statement_of_another_key_or_type_is_refused() -> None:
    with pytest.raises(VerificationError, match="keyid"):
        verify_statement(sign_statement(SigningKey.generate(), SAID), KEY.public)
    with pytest.raises(VerificationError, match="payloadType"):
        verify_statement(sign(KEY, "another", SAID.to_json()), KEY.public)


@pytest.mark.parametrize("field", SAID.to_json())
def test_no_field_may_be_missing(field: str) -> None:
    document = SAID.to_json()
    del document[field]
    with pytest.raises(MalformedInputError, match="statement: want exactly"):
        Statement.from_json(document)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"more": 1}, "want exactly"),
        ({"version": 2}, "version: want 1"),
        ({"version": True}, "version: want 1"),
        ({"infer_index": -1}, "infer_index: want an integer from 0"),
        ({"infer_index": False}, "infer_index: want an integer from 0"),
        ({"infer_index": 0.0}, "infer_index: want an integer from 0"),
        ({"infer_index": "0"}, "infer_index: want an integer from 0"),
        ({"started_at": 0}, "started_at: got 0"),
        ({"ended_at": "2026-06-01"}, "ended_at: got"),
        ({"request_id": "11" * 32}, "request_id: got 64"),
        ({"nonce": "22" * 16}, "nonce: got 32"),
        ({"exchange_id": None}, "exchange_id: got None"),
        ({"plan_digest": digest_bytes(b"")}, "plan_digest: .*want sha256-jcs-v1"),
        ({"segment": COMMITMENT}, "segment: .*want sha256-jcs-v1"),
        ({"key_document": ""}, "key_document: got ''"),
        ({"inputs": None}, "inputs: want an object"),
        ({"outputs": {"y": digest_bytes(b"")}}, "outputs 'y': .*want hmac-sha256"),
    ],
)
def test_a_statement_of_another_form_is_refused(
    changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(MalformedInputError, match=f"statement.*{why}"):
        Statement.from_json({**SAID.to_json(), **changes})


@pytest.mark.parametrize("document", [None, [], "statement", 1])
def test_what_is_no_object(document: object) -> None:
    with pytest.raises(MalformedInputError, match="statement: want exactly"):
        Statement.from_json(document)


def test_commitments_are_bounded_and_sorted() -> None:
    parsed = parse_commitments({"b": COMMITMENT, "a": COMMITMENT}, what="it")
    assert list(parsed) == ["a", "b"]
    many = {str(n): COMMITMENT for n in range(257)}
    with pytest.raises(MalformedInputError, match="it: want an object of at most 256"):
        parse_commitments(many, what="it")


def test_the_first_field_that_differs_is_told() -> None:
    require_statement(SAID, {"request_id": SAID.request_id, "inputs": SAID.inputs})
    with pytest.raises(
        StatementError, match=r"statement nonce: got '22.*, want 'other"
    ):
        require_statement(SAID, {"request_id": SAID.request_id, "nonce": "other"})
    with pytest.raises(StatementError, match=r"statement outputs: got .*'y'"):
        require_statement(SAID, {"outputs": {}})


# Times


def test_times_are_utc_with_milliseconds_and_of_one_length() -> None:
    east = timezone(timedelta(hours=2))
    moment = datetime(2026, 6, 1, 14, 0, 0, 1999, tzinfo=east)
    assert format_time(moment) == "2026-06-01T12:00:00.001Z"
    assert format_time(datetime(9, 1, 1, tzinfo=UTC)) == "0009-01-01T00:00:00.000Z"
    assert parse_time("2026-06-01T12:00:00.001Z", what="it") == datetime(
        2026, 6, 1, 12, 0, 0, 1000, tzinfo=UTC
    )


@pytest.mark.parametrize(
    "text",
    [
        None,
        0,
        "",
        "2026-06-01T12:00:00Z",
        "2026-06-01T12:00:00.001+00:00",
        "2026-06-01 12:00:00.001Z",
        "2026-06-01T12:00:00.001z",
        "2026-06-01T12:00:00.001Z\n",
        "2026-13-01T12:00:00.001Z",
        "2026-02-30T12:00:00.001Z",
        "2026-06-01T24:00:00.001Z",
        "2026-06-01T12:00:60.001Z",
        "0000-06-01T12:00:00.001Z",
        "\u0662\u0660\u0662\u0666-06-01T12:00:00.001Z",
    ],
)
def test_any_other_spelling_is_refused(text: object) -> None:
    with pytest.raises(MalformedInputError, match="it: "):
        parse_time(text, what="it")


# in-toto

SUBJECTS = [("request", digest_bytes(b"a")), ("response", COMMITMENT)]
WHOLE = intoto_statement(SUBJECTS, "https://a/v1", {"version": 1})


def parse(document: object) -> Any:
    return parse_intoto(document, predicate_type="https://a/v1", what="it")


def test_an_in_toto_statement_comes_back() -> None:
    assert WHOLE["_type"] == INTOTO_STATEMENT
    assert WHOLE["subject"][1] == {
        "name": "response",
        "digest": {Scheme.HMAC_SHA256.tensor: "0" * 64},
    }
    assert parse(WHOLE) == (dict(SUBJECTS), {"version": 1})
    assert parse({**WHOLE, "subject": []}) == ({}, {"version": 1})


def subject(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "a", "digest": {"sha256": "0" * 64}, **changes}]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"more": 1}, "want exactly"),
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "_type: got"),
        ({"predicateType": "https://b/v1"}, "predicateType: got"),
        ({"predicateType": None}, "predicateType: got None"),
        ({"subject": {}}, "subject: want a list"),
        ({"subject": [None]}, "subject: want name and digest"),
        ({"subject": subject(uri="")}, "subject: want name and digest"),
        ({"subject": subject() * 2}, "subject 'a': stands twice"),
        ({"subject": subject(name=1)}, "subject 1: stands twice"),
        ({"subject": subject(digest=None)}, "subject 'a': want one digest"),
        ({"subject": subject(digest={})}, "subject 'a': want one digest"),
        (
            {"subject": subject(digest={"sha256": "0" * 64, "sha512": "0" * 128})},
            "want one digest",
        ),
        ({"subject": subject(digest={"sha256": "0"})}, "want <algorithm>:<hex>"),
        ({"subject": subject(digest={"a:b": "0" * 64})}, "want <algorithm>:<hex>"),
        # A number of 64 digits would read as the same text.
        ({"subject": subject(digest={"sha256": int("1" * 64)})}, "want hex"),
        ({"predicate": []}, "predicate: want an object"),
    ],
)
def test_what_is_no_in_toto_statement(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(MalformedInputError, match=f"it.*{why}"):
        parse({**WHOLE, **changes})


@pytest.mark.parametrize("document", [None, [], {}, {"_type": INTOTO_STATEMENT}])
def test_what_lacks_a_field(document: object) -> None:
    with pytest.raises(MalformedInputError, match="it: want exactly"):
        parse(document)
