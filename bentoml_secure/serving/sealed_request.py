"""One sealed request to the entry: opened whole, answered sealed.

The path says which API, in the clear, and the seal binds it. Headers outside the seal
are the network's: of what the handler and the entry read, only those inside count. A
query would be outside as well, and is refused.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.serving.asgi import (
    HandlerError,
    Scope,
    Send,
    describe,
    send_pieces,
)
from bentoml_secure.session.bodies import (
    SEALED_TYPE,
    Answering,
    RequestOpener,
    Whole,
)
from bentoml_secure.session.http import (
    MAX_HEAD_BYTES,
    Inner,
    inner_headers,
)
from bentoml_secure.session.keys import Session
from bentoml_secure.session.responders import Responder

_LENGTH_BYTES = 4
logger = logging.getLogger("bentoml_secure")


@dataclass(frozen=True, slots=True)
class Opened:
    """What was inside: the scope as if it had come in the clear, and the body."""

    scope: Scope
    body: bytes


class SealedRequest:
    """A sealed request, and the way to answer it.

    Args:
        responder: The entry's sessions.
        scope: ASGI's, of the request around.
        body: As it came.
        max_bytes: Cap on the body inside.
    """

    def __init__(
        self, responder: Responder, scope: Scope, body: bytes, *, max_bytes: int
    ) -> None:
        self._scope = scope
        self._body = body
        self._max_bytes = max_bytes
        self._whole: Whole | None = None
        self._opener = RequestOpener(
            responder, f"POST {scope['path']}", len(body), self._begin
        )

    def _begin(self, length: int) -> Whole:
        most = self._max_bytes + MAX_HEAD_BYTES + _LENGTH_BYTES
        if length > most:
            raise MalformedInputError(
                f"sealed request: announces {length} bytes, want at most {most}"
            )
        self._whole = Whole(length)
        return self._whole

    def open(self) -> Opened:
        """Return what was inside.

        Raises:
            SecureError: It does not open, was sent before, or breaks a limit.
        """
        if self._scope.get("query_string"):
            # The handler would read it, and whoever stands between can write it.
            raise MalformedInputError("sealed request: got a query outside the seal")
        self._opener.feed(self._body)
        self._opener.finish()
        if self._whole is None:
            raise MalformedInputError("sealed request: it ended early")
        inner = Inner.decode(self._whole.result(), is_answer=False)
        if len(inner.body) > self._max_bytes:
            raise MalformedInputError(
                f"sealed request: want a body of at most {self._max_bytes} bytes"
            )
        host = [pair for pair in self._scope["headers"] if pair[0].lower() == b"host"]
        headers = [(n.encode("ascii"), v.encode()) for n, v in inner.headers.items()]
        length = (b"content-length", str(len(inner.body)).encode())
        return Opened({**self._scope, "headers": [*host, *headers, length]}, inner.body)

    @property
    def answering(self) -> Answering | None:
        """What seals an answer, once there is anything to seal it under."""
        return self._opener.answering

    @property
    def session(self) -> Session | None:
        """That it came by, once it was opened."""
        answering = self._opener.answering
        return None if answering is None else answering.served.session

    async def answer(
        self, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        """Send an answer, sealed.

        Raises:
            MalformedInputError: Nothing was opened.
        """
        answering = self._opener.answering
        if answering is None:
            raise MalformedInputError("sealed request: nothing was opened")
        status = status or 500
        try:
            headers_inside = inner_headers(headers)
            message = b"".join(
                Inner(headers=headers_inside, body=body, status=status).encode()
            )
        except MalformedInputError as error:
            # The handler's own: told sealed, as everything is from here on.
            logger.warning("%s answered with %s", self._scope["path"], error)
            status, message = 500, _refusal("its headers cannot be sealed; see the log")
        sealed = answering.seal(status, (message,), (len(message),))
        await send_pieces(send, status, SEALED_TYPE, sealed.length, sealed.pieces)


def _refusal(message: str) -> bytes:
    status, document = describe(HandlerError(f"the handler's answer: {message}"))
    body = json.dumps(document, separators=(",", ":")).encode()
    typed = {"content-type": "application/json"}
    return b"".join(Inner(headers=typed, body=body, status=status).encode())
