"""One sealed exchange at a runner: opened as it arrives, answered sealed.

A reveal is an exchange of its own, in the session of the one that it asks for.

Refusals are plain until the first chunk has opened, for then there is nothing to seal
them under, and sealed from there on: they may speak of what was asked.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.serving.asgi import Send, send_pieces
from bentoml_secure.serving.exchange import MAX_REVEAL_BYTES, decode_reveal
from bentoml_secure.serving.readers import RequestReader
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.session.bodies import (
    SEALED_TYPE,
    Answering,
    RequestOpener,
    SealedBody,
    Whole,
)

INFER = "infer"
"""The operation of an exchange, as sessions bind it."""

REVEAL = "reveal"
"""The operation of an exchange that asks for an answer committed to before."""


class Sealed(Protocol):
    """A sealed body that comes in, and the sealed answer to it."""

    def feed(self, data: bytes | memoryview) -> None:
        """Take in the next bytes of the body."""

    @property
    def answering(self) -> Answering | None:
        """What seals an answer, once there is anything to seal it under."""

    async def answer(self) -> SealedBody:
        """Return the answer."""


class SealedExchange:
    """Takes in a sealed exchange and makes the sealed answer.

    Args:
        core: The runner.
        length: Of the body, announced and bounded.
    """

    def __init__(self, core: RunnerCore, length: int) -> None:
        self._core = core
        self._reader: RequestReader | None = None
        self._opener = RequestOpener(core.responder, INFER, length, self._begin)

    def _begin(self, length: int) -> RequestReader:
        self._reader = RequestReader(length, self._core.admit)
        return self._reader

    def feed(self, data: bytes | memoryview) -> None:
        """Take in the next bytes of the body.

        Raises:
            SecureError: They do not open, or break a limit, the format or the plan.
        """
        self._opener.feed(data)

    @property
    def answering(self) -> Answering | None:
        """What seals an answer, once there is anything to seal it under."""
        return self._opener.answering

    async def answer(self) -> SealedBody:
        """Run the segment and return the answer.

        Raises:
            SecureError: The message ended early, or the run failed.
        """
        answering = self._opener.finish()
        if self._reader is None:
            raise MalformedInputError("exchange: the message ended early")
        exchange, tensors, commitments = self._reader.result()
        for what, got, want in (
            ("exchange_id", exchange.exchange_id, answering.exchange_id),
            ("request_id", exchange.request_id, answering.request_id),
        ):
            # A statement is about what was sealed, under the ids it was sealed with.
            if got != want.hex():
                raise MalformedInputError(
                    f"exchange {what}: got {got}, want its seal's"
                )
        session = answering.served.session
        made = await self._core.answer(
            exchange,
            tensors,
            commitments,
            lambda: self._core.require_in_force(session),
            session.secrets.session_id,
        )
        return answering.seal(200, made.pieces, made.lengths)


class SealedReveal:
    """Takes in a sealed reveal and makes the sealed answer.

    Args:
        core: The runner.
        length: Of the body, announced and bounded.
    """

    def __init__(self, core: RunnerCore, length: int) -> None:
        self._core = core
        self._message: Whole | None = None
        self._opener = RequestOpener(core.responder, REVEAL, length, self._begin)

    def _begin(self, length: int) -> Whole:
        if length > MAX_REVEAL_BYTES:
            raise MalformedInputError(
                f"reveal: got {length} bytes, want at most {MAX_REVEAL_BYTES}"
            )
        self._message = Whole(length)
        return self._message

    def feed(self, data: bytes | memoryview) -> None:
        """Take in the next bytes of the body.

        Raises:
            SecureError: They do not open, or are too many.
        """
        self._opener.feed(data)

    @property
    def answering(self) -> Answering | None:
        """What seals an answer, once there is anything to seal it under."""
        return self._opener.answering

    async def answer(self) -> SealedBody:
        """Return the answer that was committed to.

        Raises:
            SecureError: The message ended early, or no such answer is held.
        """
        answering = self._opener.finish()
        if self._message is None:
            raise MalformedInputError("reveal: the message ended early")
        made = self._core.reveal(
            decode_reveal(self._message.result()),
            owner=answering.served.session.secrets.session_id,
            request_id=answering.request_id.hex(),
        )
        return answering.seal(200, made.pieces, made.lengths)


def sealed_refusal(
    answering: Answering, status: int, document: dict[str, Any]
) -> SealedBody:
    """Return a refusal's JSON, sealed."""
    body = json.dumps(document, separators=(",", ":")).encode()
    return answering.seal(status, (body,), (len(body),))


async def send_sealed(send: Send, status: int, body: SealedBody) -> None:
    """Send a sealed body as its chunks are sealed."""
    await send_pieces(send, status, SEALED_TYPE, body.length, body.pieces)
