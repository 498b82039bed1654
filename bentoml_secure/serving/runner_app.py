"""A runner's door: an explicit list of paths, and nothing else is answered.

    POST /bsec/v1/infer            one exchange (readers.py), sealed
    POST /bsec/v1/reveal           the answer of one that was committed to, sealed
    POST /bsec/v1/session/hello    messages (a) and (b) of a handshake
    POST /bsec/v1/session/finish   messages (c) and (d)
    POST /bsec/v1/attest           key document and evidence over the caller's nonce
    GET  /metrics                  Prometheus
    GET  /livez /readyz            BentoML's own

Everything else is 404 before any of BentoML's parsers sees a byte, so no pickle is
ever read, whatever the content type says.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.digest import NONCE_BYTES, parse_hex
from bentoml_secure.errors import (
    MalformedInputError,
    PolicyRejected,
    UnavailableError,
    VerificationError,
)
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
    receive_body,
    receive_json,
    send_json,
    send_pieces,
)
from bentoml_secure.serving.budget import ByteBudget
from bentoml_secure.serving.exchange import (
    COMMITTED_TYPE,
    MAX_REVEAL_BYTES,
    REQUEST_TYPE,
    RESPONSE_TYPE,
    REVEAL_TYPE,
    decode_reveal,
)
from bentoml_secure.serving.readers import RequestReader
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.serving.sealed import (
    Sealed,
    SealedExchange,
    SealedReveal,
    sealed_refusal,
    send_sealed,
)
from bentoml_secure.session.bodies import SEALED_TYPE, sealed_cap
from bentoml_secure.session.identity import Keys
from bentoml_secure.session.messages import Document
from bentoml_secure.session.responders import Responder

logger = logging.getLogger("bentoml_secure")

PREFIX = "/bsec/v1"
MAX_MESSAGE_BYTES = 256 << 20
MAX_ATTEST_BYTES = 4096
BODY_SECONDS = 30.0


class RunnerDoor:
    """ASGI middleware in front of a runner's BentoML app. Never raises.

    Args:
        app: What BentoML built; sees its own health paths only.
        core: Returns this process's runner, once it has started.
        max_message_bytes: Cap on the body of an exchange, and on the bodies of all
            exchanges at once: who comes beyond that waits.
        body_seconds: How long a body may take to arrive: until then it holds its
            share of that cap.
    """

    def __init__(
        self,
        app: App,
        core: Callable[[], RunnerCore],
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._core = core
        self._max_message_bytes = max_message_bytes
        self._body_seconds = body_seconds
        self._budget = ByteBudget(max_message_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection's request, or hand a health check on."""
        await answer_listed(self._app, scope, receive, send, route=self._route)

    async def _route(
        self, route: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        if route == ("POST", f"{PREFIX}/infer"):
            await self._infer(scope, receive, send)
        elif route == ("POST", f"{PREFIX}/reveal"):
            await self._reveal(scope, receive, send)
        elif route == ("POST", f"{PREFIX}/attest"):
            responder = self._core().responder
            nonce = await receive_nonce(receive)
            await send_json(send, 200, await attestation(responder, nonce))
        elif route in HANDSHAKE:
            step = HANDSHAKE[route]
            await send_json(send, 200, await step(self._core().responder, receive))
        elif route == ("GET", "/metrics"):
            await send_metrics(send)
        else:
            raise NotFoundError(f"{route[0]} {route[1][:100]}: no such path")

    async def _infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        content_type = header(headers, b"content-type")
        core = self._core()
        if content_type == SEALED_TYPE:
            length = content_length(
                headers, max_bytes=sealed_cap(self._max_message_bytes)
            )
            async with self._budget.hold(length):
                await self._sealed(SealedExchange(core, length), receive, send)
        elif content_type == REQUEST_TYPE:
            core.require_plain()
            length = content_length(headers, max_bytes=self._max_message_bytes)
            async with self._budget.hold(length):
                await self._exchange(core, length, receive, send)
        else:
            raise MalformedInputError(f"content-type: want {SEALED_TYPE}")

    async def _exchange(
        self, core: RunnerCore, length: int, receive: Receive, send: Send
    ) -> None:
        reader = RequestReader(length, core.admit)
        await self._read(reader.feed, receive)
        exchange, tensors, commitments = reader.result()
        answer = await core.answer(
            exchange, tensors, commitments, lambda: core.require_plain(exchange)
        )
        made = COMMITTED_TYPE if exchange.commit else RESPONSE_TYPE
        await send_pieces(send, 200, made, answer.content_length, answer.pieces)

    async def _reveal(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        content_type = header(headers, b"content-type")
        core = self._core()
        if content_type == SEALED_TYPE:
            length = content_length(headers, max_bytes=sealed_cap(MAX_REVEAL_BYTES))
            await self._sealed(SealedReveal(core, length), receive, send)
            return
        if content_type != REVEAL_TYPE:
            raise MalformedInputError(f"content-type: want {SEALED_TYPE}")
        core.require_plain()
        message = await receive_body(receive, max_bytes=MAX_REVEAL_BYTES)
        answer = core.reveal(decode_reveal(message))
        await send_pieces(
            send, 200, RESPONSE_TYPE, answer.content_length, answer.pieces
        )

    async def _sealed(self, sealed: Sealed, receive: Receive, send: Send) -> None:
        try:
            await self._read(sealed.feed, receive)
            body = await sealed.answer()
        except Exception as error:
            answering = sealed.answering
            if answering is None:
                raise
            status, document = describe(error)
            await send_sealed(send, status, sealed_refusal(answering, status, document))
            return
        await send_sealed(send, 200, body)

    async def _read(self, feed: Callable[[bytes], None], receive: Receive) -> None:
        try:
            async with asyncio.timeout(self._body_seconds):
                await read_body(feed, receive)
        except TimeoutError as error:
            raise UnavailableError(
                f"exchange: its body did not arrive within {self._body_seconds:g} s"
            ) from error


async def receive_nonce(receive: Receive) -> bytes:
    """Return the 32 bytes of an attest call.

    Raises:
        SecureError: Anything but {"nonce": 64 hex digits}.
    """
    document = await receive_json(receive, what="attest", max_bytes=MAX_ATTEST_BYTES)
    if not isinstance(document, dict) or document.keys() != {"nonce"}:
        raise MalformedInputError("attest: want exactly nonce")
    return parse_hex(document["nonce"], what="attest nonce", length=NONCE_BYTES)


async def attestation(responder: Responder, nonce: bytes) -> dict[str, Any]:
    """Return the JSON answer to an attest call: evidence without a session.

    Raises:
        SecureError: Too much evidence was asked for, or the device does not answer.
    """
    responder.quotes.take()
    keys = responder.identity.keys
    record = await asyncio.to_thread(responder.identity.attest, nonce, keys)
    return attestation_document(keys, record)


def attestation_document(keys: Keys, record: EvidenceRecord) -> dict[str, Any]:
    """Return the JSON answer to an attest call."""
    return {"key_document": keys.document.to_json(), **record.to_json()}


async def _hello(responder: Responder, receive: Receive) -> Document:
    message = await receive_json(
        receive, what="session hello", max_bytes=MAX_ATTEST_BYTES
    )
    # A device takes tens of milliseconds: not on the loop.
    return await asyncio.to_thread(responder.offer, message)


async def _finish(responder: Responder, receive: Receive) -> Document:
    message = await receive_json(
        receive, what="session finish", max_bytes=responder.max_finish_bytes
    )
    try:
        return await asyncio.to_thread(responder.accept, message)
    except PolicyRejected as rejection:
        # Whoever was refused is a stranger: the log has what would be accepted.
        logger.warning("session refused: %s", rejection)
        fields = sorted({finding.field for finding in rejection.findings})
        raise VerificationError(
            f"session finish: not acceptable in {', '.join(fields)}; the log says why"
        ) from rejection


HANDSHAKE: Mapping[tuple[str, str], Callable[[Responder, Receive], Awaitable[Document]]]
HANDSHAKE = {
    ("POST", f"{PREFIX}/session/hello"): _hello,
    ("POST", f"{PREFIX}/session/finish"): _finish,
}
"""What answers each step of a handshake, at a runner and at an entry."""


async def send_metrics(send: Send) -> None:
    """Send this host's metrics: of every worker that shares the multiprocess folder."""
    # Imported late: BentoML sets the multiprocess folder of its workers late.
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        REGISTRY,
        CollectorRegistry,
        generate_latest,
        multiprocess,
    )

    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    body = generate_latest(registry)
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", CONTENT_TYPE_LATEST.encode()),
                (b"content-length", str(len(body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
