"""Heads of answers: parsed to what was said, or refused with our error."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.serving.http1 import Head, parse_head

TOKENS = st.from_regex(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True)
VALUES = st.from_regex(rb"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True)
READ = (
    b"content-length",
    b"content-type",
    b"connection",
    b"transfer-encoding",
    b"content-encoding",
)


@given(
    st.integers(200, 599),
    st.integers(0, 10**17),
    VALUES,
    st.dictionaries(TOKENS.filter(lambda n: n.lower() not in READ), VALUES, max_size=4),
    st.booleans(),
)
def test_a_head_says_what_was_said(
    status: int, length: int, kind: bytes, others: dict[bytes, bytes], close: bool
) -> None:
    unique = {name.lower(): value for name, value in others.items()}
    lines = [b"HTTP/1.1 %d Some Words" % status, b"Content-Length:%d" % length]
    lines += [b"content-TYPE: " + kind]
    lines += [b"%s: %s" % pair for pair in unique.items()]
    lines += [b"Connection: CLOSE"] * close
    head, keep = parse_head(b"\r\n".join([*lines, b"", b""]))
    assert head == Head(status, kind.decode(), length)
    assert keep is not close


@given(st.binary(max_size=200))
@example(b"HTTP/1.1 200 OK\r\ncontent-length: 1")
@example(b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 5000)
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    try:
        head, _ = parse_head(data + b"\r\n\r\n")
    except MalformedInputError:
        return
    assert 200 <= head.status <= 599
    assert head.content_length >= 0
    assert data.lower().count(b"content-length") >= 1


GOOD = b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ncontent-length: 12\r\nx: y\r\n\r\n"


@given(st.integers(0, len(GOOD) - 4), st.integers(0, 5), st.binary(max_size=5))
def test_a_head_changed_anywhere_is_refused_or_still_whole(
    at: int, dropped: int, inserted: bytes
) -> None:
    body = GOOD[:-4]
    changed = body[:at] + inserted + body[at + dropped :]
    try:
        head, _ = parse_head(changed + b"\r\n\r\n")
    except MalformedInputError:
        return
    assert changed.startswith(b"HTTP/1.1 ")
    assert str(head.status).encode() in changed
