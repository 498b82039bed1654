"""Heads of answers, and addresses, as the client of the hop takes them or not."""

from __future__ import annotations

import pytest

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.serving.http1 import Head, Http1Client, parse_head


def test_a_head_says_status_type_length_and_whether_the_connection_goes_on() -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nCONTENT-LENGTH:\t7 \r\n\r\n"
    assert parse_head(said) == (Head(200, "a/b", 7), True)
    closing = b"HTTP/1.1 503\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n"
    assert parse_head(closing) == (Head(503, "", 0), False)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0", "want HTTP/1.1"),
        (b"HTTP/2 200\r\ncontent-length: 0", "want HTTP/1.1"),
        (b"HTTP/1.1\r\ncontent-length: 0", "want HTTP/1.1"),
        (b"HTTP/1.1 20\r\ncontent-length: 0", "want HTTP/1.1"),
        (b"HTTP/1.1 2000 OK\r\ncontent-length: 0", "want HTTP/1.1"),
        (b"HTTP/1.1 +20 OK\r\ncontent-length: 0", "want HTTP/1.1"),
        (b"HTTP/1.1 " + b"2" * 5000 + b"\r\ncontent-length: 0", "want HTTP/1.1"),
        (b"HTTP/1.1 100 Continue\r\ncontent-length: 0", "want HTTP/1.1"),
        (b"HTTP/1.1 600 No\r\ncontent-length: 0", "want HTTP/1.1"),
        (b"", "want HTTP/1.1"),
        (b"HTTP/1.1 200 OK", "content-length: got b''"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1", "content-length: got b'-1'"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1,1", "content-length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: " + b"1" * 19, "content-length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: \xb2", "content-length"),
        (b"HTTP/1.1 200 OK\r\nno colon", "bad or repeated"),
        (b"HTTP/1.1 200 OK\r\n: nameless", "bad or repeated"),
        (b"HTTP/1.1 200 OK\r\ncontent-length : 0", "bad or repeated"),
        (b"HTTP/1.1 200 OK\r\nx: 1\r\n folded: 2", "bad or repeated"),
        (b"HTTP/1.1 200 OK\r\nx: 1\r\nX: 1\r\ncontent-length: 0", "repeated header"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2",
            "repeated header",
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", "transfer-encoding is not"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-encoding: gzip",
            "content-encoding is not",
        ),
    ],
)
def test_a_head_that_two_readers_could_read_differently_is_refused(
    head: bytes, why: str
) -> None:
    with pytest.raises(MalformedInputError, match=why):
        parse_head(head + b"\r\n\r\n")


# Addresses


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "host:3000",
        "",
        "http://",
        "http://:80",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://[::1",
        "http://user:secret@host",
        "http://host/prefix",
        "http://host?a=b",
        "http://host#a",
        "http://h\u00f6st",
        "http://h\udc80st",
        "file://host/socket",
        "file:relative",
        "file://",
    ],
)
def test_an_address_that_could_never_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="replica URL: got"):
        Http1Client(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://host",
        "http://host:3000/",
        "https://host",
        "http://[::1]:80",
        "file:///a",
    ],
)
def test_addresses_as_bentoml_and_operators_write_them(url: str) -> None:
    Http1Client(url)
