"""How the entry reaches one replica: over HTTP (UDS or TCP), or in this process.

Our own client, never BentoML's proxy: a proxy would unpickle what a replica answers.
Every answer is bounded before it is read; redirects, cookies, compression, proxies
and credentials of the environment take no part.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from bentoml_secure.digest import Digest, parse_json
from bentoml_secure.errors import SecureError, UnavailableError
from bentoml_secure.serving.answers import Answer
from bentoml_secure.serving.exchange import Exchange, Outgoing
from bentoml_secure.serving.http1 import Http1Client
from bentoml_secure.serving.incoming import (
    MAX_ERROR_BYTES,
    Expected,
    PlainAnswer,
    SealedAnswer,
)
from bentoml_secure.serving.messages import (
    EXPECTED_COMMITMENT,
    Message,
    expected_response,
    parse_commitment,
)
from bentoml_secure.serving.readers import RequestReader
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.serving.runner_app import PREFIX
from bentoml_secure.serving.sealed import (
    REVEAL,
    Sealed,
    SealedExchange,
    SealedReveal,
)
from bentoml_secure.session.bodies import SEALED_TYPE, Feed, SealedCall, Whole
from bentoml_secure.session.keys import Session
from bentoml_secure.session.messages import MAX_MESSAGE_BYTES as _MAX_JSON_BYTES
from bentoml_secure.session.messages import Document
from bentoml_secure.session.responders import UnknownSessionError
from bentoml_secure.tensors import Array, TensorSpec

_R = TypeVar("_R", bound=Feed)


@dataclass(frozen=True, slots=True)
class Received:
    """What came back from one exchange; nothing of it is verified yet.

    Attributes:
        tensors: By name; names, dtypes and shapes are the plan's.
        commitments: Made here, while the bytes arrived.
        statement: The runner's envelope, parsed JSON; from a reveal, the opening with
            the envelope in it.
    """

    tensors: Mapping[str, Array]
    commitments: Mapping[str, Digest]
    statement: Any


class Channel(Protocol):
    """One replica, as the entry reaches it."""

    async def exchange(
        self,
        exchange: Exchange,
        outgoing: Outgoing,
        specs: Sequence[TensorSpec],
        session: Session | None,
    ) -> Received:
        """Send tensors, receive tensors and a statement.

        Args:
            exchange: What is asked.
            outgoing: Its inputs.
            specs: Of its outputs.
            session: Seals both; None sends them as they are.

        Raises:
            UnknownSessionError: The replica does not hold the session (any more).
            UnavailableError: No answer, or the replica refused.
            MalformedInputError: The answer breaks the format or the plan.
            VerificationError: The answer does not open.
        """
        ...

    async def commit(
        self, exchange: Exchange, outgoing: Outgoing, session: Session | None
    ) -> Any:
        """Send tensors, receive a commitment to what was made of them, parsed JSON.

        Args:
            exchange: What is asked; ``commit`` is set in it.
            outgoing: Its inputs.
            session: Seals both; None sends them as they are.

        Raises:
            SecureError: As ``exchange``.
        """
        ...

    async def reveal(
        self,
        exchange: Exchange,
        specs: Sequence[TensorSpec],
        session: Session | None,
    ) -> Received:
        """Receive the answer of an exchange that was committed to: once only.

        Args:
            exchange: That ``commit`` was called with.
            specs: Of its outputs.
            session: That ``commit`` was called with.

        Raises:
            SecureError: As ``exchange``.
        """
        ...

    async def hello(self, message: Document) -> Any:
        """Return the replica's answer to message (a) of a handshake, parsed JSON."""
        ...

    async def finish(self, message: Document) -> Any:
        """Return the replica's answer to message (c) of a handshake, parsed JSON."""
        ...

    async def probe(self) -> None:
        """Return if the replica answers at all.

        Raises:
            UnavailableError: It does not.
        """
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...


class HttpChannel:
    """A replica at a URL: ``http://host:port`` or ``file:///path/of.sock`` (UDS).

    Args:
        url: As BentoML or the operator gives it.
        max_message_bytes: Cap on an answer.
    """

    def __init__(self, url: str, *, max_message_bytes: int) -> None:
        self._client = Http1Client(url)
        self._max_message_bytes = max_message_bytes

    async def exchange(
        self,
        exchange: Exchange,
        outgoing: Outgoing,
        specs: Sequence[TensorSpec],
        session: Session | None,
    ) -> Received:
        """Send tensors, receive tensors and a statement over HTTP."""
        expected = expected_response(exchange, specs, self._max_message_bytes)
        message = Message.infer(exchange, outgoing)
        reader = await self._send(exchange, message, expected, session)
        return Received(*reader.result())

    async def commit(
        self, exchange: Exchange, outgoing: Outgoing, session: Session | None
    ) -> Any:
        """Send tensors, receive a commitment over HTTP."""
        message = Message.infer(exchange, outgoing)
        said = await self._send(exchange, message, EXPECTED_COMMITMENT, session)
        return parse_commitment(said)

    async def reveal(
        self,
        exchange: Exchange,
        specs: Sequence[TensorSpec],
        session: Session | None,
    ) -> Received:
        """Receive over HTTP what was committed to."""
        expected = expected_response(exchange, specs, self._max_message_bytes)
        message = Message.reveal(exchange)
        reader = await self._send(exchange, message, expected, session)
        return Received(*reader.result())

    async def _send(
        self,
        exchange: Exchange,
        message: Message,
        expected: Expected[_R],
        session: Session | None,
    ) -> _R:
        if session is not None:
            return await self._send_sealed(exchange, message, expected, session)
        answer = PlainAnswer(expected)
        await self._client.request(
            "POST",
            message.path,
            answer.on_head,
            content_type=message.content_type,
            head=bytes(next(message.pieces)),
            body=message.pieces,
            length=sum(message.lengths),
        )
        return answer.result()

    async def _send_sealed(
        self,
        exchange: Exchange,
        message: Message,
        expected: Expected[_R],
        session: Session,
    ) -> _R:
        call = message.call(exchange, session)
        body = call.seal(message.pieces, message.lengths)
        answer = SealedAnswer(call, expected)
        await self._client.request(
            "POST",
            message.path,
            answer.on_head,
            content_type=SEALED_TYPE,
            head=next(body.views),
            body=body.views,
            length=body.length,
        )
        return answer.result()

    async def ask(
        self,
        path: str,
        operation: str,
        message: bytes,
        session: Session,
        *,
        max_bytes: int,
    ) -> bytes:
        """Send one message sealed, and return the answer, opened.

        Args:
            path: Of the other end's door.
            operation: As sessions bind it.
            message: To be sealed.
            session: Seals both.
            max_bytes: Cap on the answer.

        Raises:
            UnknownSessionError: The other end does not hold the session (any more).
            UnavailableError: No answer, or a refusal.
            MalformedInputError: The answer is too long or ends early.
            VerificationError: It does not open.
        """
        call = SealedCall.begin(session, operation)
        body = call.seal((message,), (len(message),))
        answer = SealedAnswer(call, Expected(SEALED_TYPE, max_bytes, Whole))
        await self._client.request(
            "POST",
            path,
            answer.on_head,
            content_type=SEALED_TYPE,
            head=next(body.views),
            body=body.views,
            length=body.length,
        )
        return answer.result().result()

    async def hello(self, message: Document) -> Any:
        """Post message (a)."""
        return await self._post(f"{PREFIX}/session/hello", message)

    async def finish(self, message: Document) -> Any:
        """Post message (c)."""
        return await self._post(f"{PREFIX}/session/finish", message)

    async def _post(self, path: str, message: Document) -> Any:
        body = json.dumps(message).encode()
        answer = PlainAnswer(Expected("application/json", _MAX_JSON_BYTES, Whole))
        await self._client.request(
            "POST",
            path,
            answer.on_head,
            content_type="application/json",
            head=body,
            length=len(body),
        )
        document = answer.result().result()
        return parse_json(document, what="handshake", max_bytes=_MAX_JSON_BYTES)

    async def probe(self) -> None:
        """Ask BentoML's liveness path."""
        typed = "text/plain; charset=utf-8"
        answer = PlainAnswer(Expected(typed, MAX_ERROR_BYTES, Whole))
        await self._client.request("GET", "/livez", answer.on_head)
        answer.result()

    async def close(self) -> None:
        """Close the connections."""
        self._client.close()


class LocalChannel:
    """A replica in this process, through the same bytes and the same checks."""

    def __init__(self, core: RunnerCore) -> None:
        self._core = core

    async def exchange(
        self,
        exchange: Exchange,
        outgoing: Outgoing,
        specs: Sequence[TensorSpec],
        session: Session | None,
    ) -> Received:
        """Hand the bytes of an exchange to the runner and read its answer's."""
        read = expected_response(exchange, specs, 0).read
        message = Message.infer(exchange, outgoing)
        if session is None:
            return Received(*(await self._plain(message, read)).result())
        reader = await self._sealed(exchange, message, read, session)
        return Received(*reader.result())

    async def commit(
        self, exchange: Exchange, outgoing: Outgoing, session: Session | None
    ) -> Any:
        """Hand the bytes of an exchange to the runner and read its commitment."""
        message = Message.infer(exchange, outgoing)
        if session is None:
            return parse_commitment(await self._plain(message, Whole))
        return parse_commitment(await self._sealed(exchange, message, Whole, session))

    async def reveal(
        self,
        exchange: Exchange,
        specs: Sequence[TensorSpec],
        session: Session | None,
    ) -> Received:
        """Ask the runner for what it committed to."""
        read = expected_response(exchange, specs, 0).read
        if session is not None:
            message = Message.reveal(exchange)
            reader = await self._sealed(exchange, message, read, session)
            return Received(*reader.result())
        try:
            self._core.require_plain()
            answer = self._core.reveal(exchange.exchange_id)
        except SecureError as error:
            raise UnavailableError(f"replica refused: {error}") from error
        return Received(*_fed(answer, read).result())

    async def _sealed(
        self,
        exchange: Exchange,
        message: Message,
        read: Callable[[int], _R],
        session: Session,
    ) -> _R:
        call = message.call(exchange, session)
        body = call.seal(message.pieces, message.lengths)
        taken: type[SealedExchange | SealedReveal] = (
            SealedReveal if message.operation == REVEAL else SealedExchange
        )
        request: Sealed = taken(self._core, body.length)
        try:
            for piece in body.views:
                request.feed(piece)
            answer = await request.answer()
        except UnknownSessionError:
            raise
        except SecureError as error:
            raise UnavailableError(f"replica refused: {error}") from error
        readers: list[_R] = []

        def begin(length: int) -> _R:
            """Read what is inside as over HTTP."""
            readers.append(read(length))
            return readers[0]

        opener = call.open(200, answer.length, begin)
        for sealed in answer.views:
            opener.feed(sealed)
        opener.finish()
        return readers[0]

    async def _plain(self, message: Message, read: Callable[[int], _R]) -> _R:
        request = RequestReader(sum(message.lengths), self._core.admit)
        try:
            self._core.require_plain()
            for piece in message.pieces:
                request.feed(piece)
            exchange, tensors, commitments = request.result()
            answer = await self._core.answer(
                exchange,
                tensors,
                commitments,
                lambda: self._core.require_plain(exchange),
            )
        except SecureError as error:
            raise UnavailableError(f"replica refused: {error}") from error
        return _fed(answer, read)

    async def hello(self, message: Document) -> Any:
        """Ask the runner of this process."""
        return await asyncio.to_thread(self._core.responder.offer, message)

    async def finish(self, message: Document) -> Any:
        """Ask the runner of this process."""
        return await asyncio.to_thread(self._core.responder.accept, message)

    async def probe(self) -> None:
        """Return: it is this process."""

    async def close(self) -> None:
        """Do nothing: there is no connection."""


def _fed(answer: Answer, read: Callable[[int], _R]) -> _R:
    reader = read(answer.content_length)
    for piece in answer.pieces:
        reader.feed(memoryview(piece))
    return reader
