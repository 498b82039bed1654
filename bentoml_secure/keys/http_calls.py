"""One HTTP call: bounded in bytes and time, nothing followed, nothing kept.

For the few calls of a process's start. No proxies, redirects, credentials of the
environment, or connections that outlive the call.
"""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)

TIMEOUT_SECONDS = 30.0
MAX_ANSWER_BYTES = 1 << 20
_PIECE_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is asked.

    Attributes:
        method: Such as GET.
        url: Absolute, see ``parse_url``.
        headers: Besides host and content-length.
        body: Sent as it is.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back.

    Attributes:
        status: Of HTTP.
        headers: (lower-case name, value), in order.
        body: Whole.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


Send = Callable[[Call], Answer]
"""Makes one call. Raises UnavailableError where there is no answer."""


def parse_url(url: str, *, what: str, plain: bool = False) -> SplitResult:
    """Return the parts of a server's address.

    Args:
        url: One's own setting: https, or http on this machine's loopback.
        what: Names it in the error.
        plain: Let http be used with any host: what is said is sealed by itself.

    Raises:
        ConfigurationError: Anything else.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{what} {url!r:.200}: {error}.") from error
    if not host or parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(f"{what} {url!r:.200}: want https://HOST[:PORT].")
    is_http = parts.scheme == "http" and (plain or _is_loopback(host))
    if parts.scheme != "https" and not is_http:
        raise ConfigurationError(
            f"{what} {url!r:.200}: want https.",
            remedy="Plain http is for an address of this machine's loopback.",
        )
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_send(
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    tls: ssl.SSLContext | None = None,
    max_answer_bytes: int = MAX_ANSWER_BYTES,
    plain: bool = False,
) -> Send:
    """Return a ``Send`` over the network.

    Args:
        timeout_seconds: For the whole of a call.
        tls: Certificates to trust; the system's where left out.
        max_answer_bytes: Cap on the body of an answer.
        plain: As in ``parse_url``.
    """

    def send(call: Call) -> Answer:
        """Make one call; see ``Send``."""
        parts = parse_url(call.url, what="address", plain=plain)
        return _send(call, parts, timeout_seconds, tls, max_answer_bytes)

    return send


def _send(
    call: Call,
    parts: SplitResult,
    timeout_seconds: float,
    tls: ssl.SSLContext | None,
    max_answer_bytes: int,
) -> Answer:
    deadline = time.monotonic() + timeout_seconds
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPSConnection(
            host,
            port,
            timeout=timeout_seconds,
            context=tls or ssl.create_default_context(),
        )
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    )
    try:
        connection.request(call.method, parts.path, call.body, dict(call.headers))
        response = connection.getresponse()
        body = _read(response, deadline, call.url, max_answer_bytes)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise UnavailableError(f"{call.url}: no answer: {reason:.200}") from error
    finally:
        connection.close()
    headers = tuple((name.lower(), value) for name, value in response.getheaders())
    return Answer(status=response.status, headers=headers, body=body)


def _read(
    response: http.client.HTTPResponse, deadline: float, url: str, max_bytes: int
) -> bytes:
    body = bytearray()
    # Not read(): a server that sends a byte a minute would never time out.
    while piece := response.read1(_PIECE_BYTES):
        body += piece
        if len(body) > max_bytes:
            raise MalformedInputError(
                f"{url}: answers with more than {max_bytes} bytes"
            )
        if time.monotonic() > deadline:
            raise UnavailableError(f"{url}: the answer takes too long")
    if response.length:
        raise http.client.IncompleteRead(bytes(body), response.length)
    return bytes(body)
