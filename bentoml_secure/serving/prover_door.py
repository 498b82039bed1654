"""A prover's door: handshakes, sealed messages of the entry, metrics; nothing else.

POST /bsec/v1/session/hello, /finish   a session with the entry
POST /bsec/v1/attest                   key document and evidence over a nonce
POST /bsec/v1/proofs                   a message, sealed (prover_messages.py)
GET  /metrics
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bentoml_secure.errors import MalformedInputError, UnavailableError
from bentoml_secure.serving.asgi import (
    App,
    NotFoundError,
    Receive,
    Scope,
    Send,
    answer_listed,
    content_length,
    describe,
    header,
    read_body,
    send_json,
)
from bentoml_secure.serving.budget import ByteBudget
from bentoml_secure.serving.prover import ProverCore
from bentoml_secure.serving.prover_messages import (
    MAX_MESSAGE_BYTES,
    OPERATION,
    PROOFS_PATH,
)
from bentoml_secure.serving.runner_app import (
    BODY_SECONDS,
    HANDSHAKE,
    PREFIX,
    attestation,
    receive_nonce,
    send_metrics,
)
from bentoml_secure.serving.sealed import sealed_refusal, send_sealed
from bentoml_secure.session.bodies import (
    SEALED_TYPE,
    RequestOpener,
    Whole,
    sealed_cap,
)

T = TypeVar("T")


class ProverDoor:
    """ASGI middleware in front of a prover's BentoML app. Never raises.

    Args:
        app: What BentoML built; sees its own health paths only.
        core: Returns this process's prover, once it has started.
        body_seconds: How long a body may take to arrive, and a handshake's step.
    """

    def __init__(
        self,
        app: App,
        core: Callable[[], ProverCore],
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._core = core
        self._body_seconds = body_seconds
        self._budget = ByteBudget(2 * MAX_MESSAGE_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection's request, or hand a health check on."""
        await answer_listed(self._app, scope, receive, send, route=self._route)

    async def _route(
        self, route: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        if route == ("POST", PROOFS_PATH):
            await self._message(scope, receive, send)
        elif route in HANDSHAKE:
            step = HANDSHAKE[route]
            document = await self._in_time(step(self._core().responder, receive))
            await send_json(send, 200, document)
        elif route == ("POST", f"{PREFIX}/attest"):
            nonce = await receive_nonce(receive)
            document = await attestation(self._core().responder, nonce)
            await send_json(send, 200, document)
        elif route == ("GET", "/metrics"):
            await send_metrics(send)
        else:
            raise NotFoundError(f"{route[0]} {route[1][:100]}: no such path")

    async def _message(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        if header(headers, b"content-type") != SEALED_TYPE:
            raise MalformedInputError(f"content-type: want {SEALED_TYPE}")
        length = content_length(headers, max_bytes=sealed_cap(MAX_MESSAGE_BYTES))
        async with self._budget.hold(length):
            await self._answer(length, receive, send)

    async def _answer(self, length: int, receive: Receive, send: Send) -> None:
        core, wholes = self._core(), list[Whole]()

        def begin(message_bytes: int) -> Whole:
            """Hold the message: it is bounded by the body."""
            wholes.append(Whole(message_bytes))
            return wholes[0]

        opener = RequestOpener(core.responder, OPERATION, length, begin)
        try:
            await self._in_time(read_body(opener.feed, receive))
            answering = opener.finish()
            answer = await core.answer(wholes[0].result())
        except Exception as error:
            if opener.answering is None:
                raise
            status, document = describe(error)
            refusal = sealed_refusal(opener.answering, status, document)
            await send_sealed(send, status, refusal)
            return
        await send_sealed(send, 200, answering.seal(200, (answer,), (len(answer),)))

    async def _in_time(self, step: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._body_seconds):
                return await step
        except TimeoutError as error:
            raise UnavailableError(
                f"prover: not done within {self._body_seconds:g} s"
            ) from error
