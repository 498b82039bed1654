"""The little of ASGI that runner and entry share: headers, JSON in, JSON out.

Nothing here raises into BentoML's middleware: an exception there makes the caller
wait for the service's timeout.
"""

from __future__ import annotations

import json
import logging
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Any

from bentoml_secure.digest import parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
    QuorumNotReached,
    SecureError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.session.responders import (
    UNKNOWN_SESSION,
    RateLimitedError,
    UnknownSessionError,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

Route = Callable[[tuple[str, str], Scope, Receive, Send], Awaitable[None]]
"""Answers a request by its method and path, or raises."""

Describe = Callable[[BaseException], tuple[int, dict[str, Any]]]

BENTOML_PATHS = frozenset({"/livez", "/readyz", "/healthz"})

logger = logging.getLogger("bentoml_secure")


class DisconnectedError(SecureError):
    """The caller went away before its message was complete."""


class RequestTooLargeError(MalformedInputError):
    """A body over the cap."""


class NotFoundError(SecureError):
    """No such path, or no such receipt."""


class UnauthorisedError(SecureError):
    """A path that wants a token the caller did not show."""


class HandlerError(SecureError):
    """The service's own handler broke a rule of secured APIs."""


def header(headers: Headers, name: bytes) -> str | None:
    """Return the only value of a header, or None where it is absent.

    Raises:
        MalformedInputError: It stands more than once, or is not ASCII: two readers
            could see two values.
    """
    values = [value for key, value in headers if key.lower() == name]
    if len(values) > 1:
        raise MalformedInputError(f"header {name.decode()}: stands {len(values)} times")
    if not values:
        return None
    try:
        return values[0].decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedInputError(f"header {name.decode()}: not ASCII") from error


def content_length(headers: Headers, *, max_bytes: int) -> int:
    """Return the announced length of a body.

    Raises:
        MalformedInputError: Absent or no number.
        RequestTooLargeError: Over the cap.
    """
    text = header(headers, b"content-length")
    if text is None:
        raise MalformedInputError("content-length: want one")
    return bounded_length(text, max_bytes=max_bytes)


def bounded_length(text: str, *, max_bytes: int) -> int:
    """Return the number of bytes that a content-length spells.

    Raises:
        MalformedInputError: No number.
        RequestTooLargeError: Over the cap.
    """
    if not (text.isascii() and text.isdecimal()):
        raise MalformedInputError("content-length: want a number of bytes")
    if len(text) > 18 or int(text) > max_bytes:
        raise RequestTooLargeError(
            f"content-length: got {text:.30}, want at most {max_bytes} bytes"
        )
    return int(text)


def refuse_pickle(headers: Headers) -> None:
    """Refuse any body that a reader could take for a pickle.

    Raises:
        MalformedInputError: More than one content type (two readers could see two),
            or one that names pickle in any case.
    """
    content_type = header(headers, b"content-type")
    if content_type is not None and "pickle" in content_type.lower():
        raise MalformedInputError(
            f"content-type: got {content_type!r:.100}; pickle is never read here"
        )


async def receive_body(receive: Receive, *, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        RequestTooLargeError: Over the cap.
        DisconnectedError: The caller went away.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError("the caller disconnected")
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise RequestTooLargeError(f"body: want at most {max_bytes} bytes")
        if not message.get("more_body"):
            return bytes(body)


async def read_body(feed: Callable[[bytes], None], receive: Receive) -> None:
    """Hand a body on as it arrives.

    Raises:
        DisconnectedError: The caller went away.
        SecureError: From ``feed``.
    """
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError("the caller disconnected")
        feed(message.get("body", b""))
        if not message.get("more_body"):
            return


async def receive_json(receive: Receive, *, what: str, max_bytes: int) -> Any:
    """Return the JSON document of a body.

    Raises:
        SecureError: As ``receive_body``, or not JSON.
    """
    body = await receive_body(receive, max_bytes=max_bytes)
    return parse_json(body, what=what, max_bytes=max_bytes)


async def send_json(
    send: Send, status: int, document: Any, headers: Mapping[str, str] | None = None
) -> None:
    """Send a JSON response."""
    body = json.dumps(document, separators=(",", ":")).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *((k.encode(), v.encode()) for k, v in (headers or {}).items()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_pieces(
    send: Send,
    status: int,
    content_type: str,
    length: int,
    pieces: Iterable[bytes | memoryview],
) -> None:
    """Send a body of known length as its pieces are made."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type.encode()),
                (b"content-length", str(length).encode()),
            ],
        }
    )
    sent = 0
    for piece in pieces:
        sent += len(piece)
        more = sent < length
        await send({"type": "http.response.body", "body": piece, "more_body": more})


_STATUS_CODES: Sequence[tuple[type[SecureError], int, str]] = (
    # Answered though nobody listens: BentoML's timer ends with the first byte sent,
    # and until then holds the request, and a shutdown, for the service's timeout.
    (DisconnectedError, 400, "disconnected"),
    (RequestTooLargeError, 413, "too-large"),
    (NotFoundError, 404, "not-found"),
    (UnauthorisedError, 401, "unauthorised"),
    (UnknownSessionError, 401, UNKNOWN_SESSION),
    (RateLimitedError, 429, "rate-limited"),
    (HandlerError, 500, "handler"),
    (MalformedInputError, 400, "malformed-input"),
    (ConfigurationError, 400, "configuration"),
    (QuorumNotReached, 503, "quorum-not-reached"),
    (UnavailableError, 503, "unavailable"),
    (PolicyRejected, 502, "policy-rejected"),
    (VerificationError, 502, "verification"),
)


def describe(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Return the status and JSON document that tell a caller of an error.

    Errors that are not ours are logged and told apart only as ``internal``.
    """
    for kind, status, code in _STATUS_CODES:
        if isinstance(error, kind):
            described: dict[str, Any] = {"code": code, "message": str(error)}
            if isinstance(error, QuorumNotReached):
                described["tally"] = error.tally
            return status, {"error": described}
    logger.error("unexpected error", exc_info=error)
    message = "An unexpected error has occurred; the service's log has it."
    return 500, {"error": {"code": "internal", "message": message}}


async def answer_listed(
    app: App,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    route: Route,
    describe_error: Describe = describe,
) -> None:
    """Answer one connection's request by an explicit list of paths. Never raises.

    Args:
        app: What BentoML built; sees its own health paths only.
        scope: ASGI's.
        receive: ASGI's.
        send: ASGI's.
        route: Answers everything else, or raises.
        describe_error: Says what a caller is told of an error.
    """
    if scope["type"] == "lifespan":
        await app(scope, receive, send)
        return
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    asked = (scope["method"], scope["path"])
    if asked[0] in ("GET", "HEAD") and asked[1] in BENTOML_PATHS:
        await app(scope, receive, send)
        return
    started = False

    async def tracked(message: Any) -> None:
        """Note that the answer has begun."""
        nonlocal started
        started = True
        await send(message)

    try:
        await route(asked, scope, receive, tracked)
    except Exception as error:  # noqa: BLE001 - a door must not raise
        status, document = describe_error(error)
        if not started:
            # The rest of the body was not read: the connection cannot go on.
            await send_json(send, status, document, {"connection": "close"})
