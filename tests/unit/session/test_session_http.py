"""HTTP messages inside sealed bodies: strict heads, exact bodies."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.session.http import (
    _NOT_INSIDE,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    Inner,
    inner_headers,
)


def encoded(head: Any, body: bytes = b"") -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack(">I", len(text)) + text + body


@pytest.mark.parametrize("body", [b"", b"x", bytes(99)])
@pytest.mark.parametrize("status", [None, 200, 599])
@pytest.mark.parametrize(
    "headers", [{}, {"a": ""}, {"content-type": "a/b; c=d", "x": "y"}]
)
def test_messages_read_back(
    headers: dict[str, str], status: int | None, body: bytes
) -> None:
    inner = Inner(headers=headers, body=body, status=status)
    message = b"".join(inner.encode())
    assert Inner.decode(message, is_answer=status is not None) == inner


def test_the_form_is_that_of_the_document() -> None:
    inner = Inner(headers={"b": "2", "a": "1"}, body=b"body", status=200)
    text = b'{"headers":{"a":"1","b":"2"},"status":200}'
    assert b"".join(inner.encode()) == struct.pack(">I", len(text)) + text + b"body"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "ended early"),
        (b"\0\0\0", "ended early"),
        (b"\0\0\0\1", "announces a head of 1 bytes"),
        (b"\xff\xff\xff\xff{}", "announces a head of 4294967295"),
        (struct.pack(">I", MAX_HEAD_BYTES + 1) + bytes(1 << 17), "announces a head"),
        (encoded(b"{"), "not valid JSON"),
        (encoded([]), "want an object"),
        (encoded({}), "is missing"),
        (encoded({"headers": {}, "status": 200}), "unknown field"),
        (encoded({"headers": []}), "want an object of at most"),
        (encoded({"headers": None}), "want an object of at most"),
        (encoded(b'{"headers":{"a":"1","a":"2"}}'), "twice"),
        (encoded({"headers": {str(n): "" for n in range(MAX_HEADERS + 1)}}), "at most"),
    ],
)
def test_what_is_no_request_is_refused(message: bytes, says: str) -> None:
    with pytest.raises(MalformedInputError, match=says):
        Inner.decode(message, is_answer=False)


@pytest.mark.parametrize("status", [None, True, 200.0, "200", 199, 600, -1])
def test_what_is_no_status_is_refused(status: object) -> None:
    with pytest.raises(MalformedInputError, match="status: got"):
        Inner.decode(encoded({"headers": {}, "status": status}), is_answer=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "x"),
        ("A", "x"),
        ("a b", "x"),
        ("a:b", "x"),
        ("a\r\n", "x"),
        ("ä", "x"),
        ("a" * 129, "x"),
        ("a", " x"),
        ("a", "x "),
        ("a", "x\r\nb: c"),
        ("a", "x\0"),
        ("a", "ä"),
        ("a", 1),
        ("a", None),
        *((name, "x") for name in sorted(_NOT_INSIDE)),
    ],
)
def test_headers_that_may_not_stand_inside(name: str, value: Any) -> None:
    with pytest.raises(MalformedInputError, match=r"header .* is none that may stand"):
        Inner.decode(encoded({"headers": {name: value}}), is_answer=False)
    with pytest.raises(MalformedInputError, match=r"header .* is none that may stand"):
        Inner(headers={name: value}, body=b"").encode()


def test_headers_of_the_connection_stay_outside() -> None:
    pairs = [(b"Content-Type", b" a/b "), (b"Content-Length", b"3"), (b"Host", b"h")]
    assert inner_headers(pairs) == {"content-type": "a/b"}


def test_a_header_that_may_stand_twice_is_joined() -> None:
    assert inner_headers([(b"Vary", b"a"), (b"vary", b"b")]) == {"vary": "a, b"}


@pytest.mark.parametrize("name", [b"bsec-nonce", b"Bsec-Receipt-Id", b"Set-Cookie"])
def test_a_header_that_means_one_thing_stands_once(name: bytes) -> None:
    with pytest.raises(MalformedInputError, match="stands more than once"):
        inner_headers([(name, b"a"), (name, b"b")])
