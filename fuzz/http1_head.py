"""Heads of HTTP/1.1 answers."""

from __future__ import annotations

from bentoml_secure.errors import SecureError
from bentoml_secure.serving.http1 import parse_head
from fuzz._same import require_same


def seeds() -> list[bytes]:
    """Return heads as servers send them."""
    plain = b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ncontent-length: 12\r\n\r\n"
    closing = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    return [plain, closing, chunked]


def one(data: bytes) -> None:
    """Read bytes as a head; its blank line is found before."""
    try:
        head, _ = parse_head(data[:-4] + b"\r\n\r\n")
    except SecureError:
        return
    require_same(200 <= head.status <= 599 and head.content_length >= 0, True)
