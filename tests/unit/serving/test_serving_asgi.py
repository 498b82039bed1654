"""Headers that two readers could read differently, bounded bodies, errors in JSON."""

from __future__ import annotations

import json
import logging

import pytest

from bentoml_secure.errors import (
    AttestationError,
    ConfigurationError,
    Finding,
    MalformedInputError,
    PolicyRejected,
    QuorumNotReached,
    SecureError,
    UnavailableError,
)
from bentoml_secure.serving.asgi import (
    DisconnectedError,
    HandlerError,
    NotFoundError,
    RequestTooLargeError,
    UnauthorisedError,
    bounded_length,
    content_length,
    describe,
    header,
    receive_body,
    receive_json,
    refuse_pickle,
    send_json,
)
from tests.unit.serving.serving_parts import Asgi, pieces


def test_a_header_is_found_in_any_case_or_absent() -> None:
    headers = [(b"X-Other", b"1"), (b"Bsec-Nonce", b"ab")]
    assert header(headers, b"bsec-nonce") == "ab"
    assert header(headers, b"bsec-scenario") is None


def test_a_header_that_stands_twice_or_is_not_ascii_is_refused() -> None:
    with pytest.raises(MalformedInputError, match="header a: stands 2 times"):
        header([(b"a", b"1"), (b"A", b"1")], b"a")
    with pytest.raises(MalformedInputError, match="header a: not ASCII"):
        header([(b"a", b"\xe4")], b"a")


def test_content_lengths() -> None:
    assert content_length([(b"content-length", b"10")], max_bytes=10) == 10
    with pytest.raises(MalformedInputError, match="content-length: want one"):
        content_length([], max_bytes=10)
    with pytest.raises(RequestTooLargeError, match="got 11, want at most 10"):
        content_length([(b"content-length", b"11")], max_bytes=10)


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1.0", " 1", "\u0661", "\u00b2", "0x1"]
)
def test_what_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(MalformedInputError, match="want a number of bytes"):
        bounded_length(text, max_bytes=10)


def test_thousands_of_digits_are_too_large_not_an_error() -> None:
    with pytest.raises(RequestTooLargeError, match="want at most 10 bytes"):
        bounded_length("0" * 5000, max_bytes=10)


@pytest.mark.parametrize(
    "kind",
    [b"application/vnd.bentoml+pickle", b"APPLICATION/X-PICKLE", b"text/pickle; a=b"],
)
def test_pickle_is_refused_in_any_case(kind: bytes) -> None:
    with pytest.raises(MalformedInputError, match="pickle is never read here"):
        refuse_pickle([(b"content-type", kind)])
    with pytest.raises(MalformedInputError, match="stands 2 times"):
        refuse_pickle([(b"content-type", b"a/b"), (b"Content-Type", kind)])


def test_other_types_are_not() -> None:
    refuse_pickle([(b"content-type", b"application/json")])
    refuse_pickle([])


async def test_a_body_in_pieces_is_put_together() -> None:
    for size in (1, 3, 10, 100):
        caller = Asgi(pieces(b"0123456789", size))
        assert await receive_body(caller.receive, max_bytes=10) == b"0123456789"
    silent = Asgi([{"type": "http.request"}])
    assert await receive_body(silent.receive, max_bytes=10) == b""


async def test_a_body_over_the_cap_is_not_read_to_its_end() -> None:
    caller = Asgi(pieces(bytes(100), 10))
    with pytest.raises(RequestTooLargeError, match="body: want at most 15 bytes"):
        await receive_body(caller.receive, max_bytes=15)
    assert len(caller.incoming) == 8


async def test_a_caller_who_went_away() -> None:
    caller = Asgi(pieces(bytes(30), 10)[:2])
    with pytest.raises(DisconnectedError, match="disconnected"):
        await receive_body(caller.receive, max_bytes=100)


async def test_json_is_read_strictly() -> None:
    caller = Asgi(pieces(b'{"a": 1}', 3))
    assert await receive_json(caller.receive, what="it", max_bytes=100) == {"a": 1}
    twice = Asgi(pieces(b'{"a": 1, "a": 2}'))
    with pytest.raises(MalformedInputError, match="it is not valid JSON"):
        await receive_json(twice.receive, what="it", max_bytes=100)


async def test_json_is_sent_with_its_length_and_further_headers() -> None:
    caller = Asgi()
    await send_json(caller.send, 418, {"ä": "\ud800"}, {"connection": "close"})
    assert caller.status == 418
    assert caller.headers == {
        b"content-type": b"application/json",
        b"content-length": str(len(caller.body)).encode(),
        b"connection": b"close",
    }
    assert json.loads(caller.body) == {"ä": "\ud800"}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestTooLargeError("m"), 413, "too-large"),
        (NotFoundError("m"), 404, "not-found"),
        (UnauthorisedError("m"), 401, "unauthorised"),
        (HandlerError("m"), 500, "handler"),
        (MalformedInputError("m"), 400, "malformed-input"),
        (ConfigurationError("m"), 400, "configuration"),
        (QuorumNotReached("m", {"a": 1}), 503, "quorum-not-reached"),
        (UnavailableError("m"), 503, "unavailable"),
        (PolicyRejected("m", [Finding("f", "g", "w")]), 502, "policy-rejected"),
        (AttestationError("m"), 502, "verification"),
    ],
)
def test_each_error_has_a_status_and_a_code(
    error: SecureError, status: int, code: str
) -> None:
    got, document = describe(error)
    assert (got, document["error"]["code"]) == (status, code)
    assert document["error"]["message"] == str(error)
    assert ("tally" in document["error"]) is isinstance(error, QuorumNotReached)


def test_an_error_that_is_not_ours_is_logged_and_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "bentoml_secure"):
        status, document = describe(KeyError("secret weights"))
    assert status == 500
    assert document["error"]["code"] == "internal"
    assert "secret" not in json.dumps(document)
    assert "secret weights" in caplog.text
