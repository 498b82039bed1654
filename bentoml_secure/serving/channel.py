"""How the entry reaches one replica: over HTTP (UDS or TCP), or in this process.

Our own client, never BentoML's proxy: a proxy would unpickle what a replica answers.
Every answer is bounded before it is read; redirects, cookies, compression, proxies
and credentials of the environment take no part.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

from bentoml_secure.digest import Digest, parse_json
from bentoml_secure.errors import (
    MalformedInputError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.serving.exchange import (
    CHUNK_BYTES,
    REQUEST_TYPE,
    RESPONSE_TYPE,
    Exchange,
    Outgoing,
)
from bentoml_secure.serving.http1 import Head, Http1Client
from bentoml_secure.serving.readers import RequestReader, ResponseReader
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.serving.runner_app import PREFIX
from bentoml_secure.serving.sealed import INFER, SealedExchange
from bentoml_secure.session.bodies import (
    SEALED_TYPE,
    AnswerOpener,
    Feed,
    SealedCall,
    Whole,
    sealed_cap,
)
from bentoml_secure.session.keys import Session
from bentoml_secure.session.messages import MAX_MESSAGE_BYTES as _MAX_JSON_BYTES
from bentoml_secure.session.messages import Document
from bentoml_secure.session.responders import UNKNOWN_SESSION, UnknownSessionError
from bentoml_secure.tensors import Array, TensorSpec

_MAX_ERROR_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Received:
    """What came back from one exchange; nothing of it is verified yet.

    Attributes:
        tensors: By name; names, dtypes and shapes are the plan's.
        commitments: Made here, while the bytes arrived.
        statement: The runner's envelope, parsed JSON.
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
        head = exchange.encode() + outgoing.layout.header
        lengths = (len(head), *outgoing.data_lengths())
        pieces: Iterator[bytes | memoryview] = chain((head,), outgoing.data())
        if sum(lengths) <= CHUNK_BYTES:
            head = b"".join(pieces)
            lengths, pieces = (len(head),), iter((head,))
        if session is None:
            return await self._plain(exchange, pieces, lengths, specs)
        return await self._sealed(exchange, pieces, lengths, specs, session)

    async def _plain(
        self,
        exchange: Exchange,
        pieces: Iterator[bytes | memoryview],
        lengths: Sequence[int],
        specs: Sequence[TensorSpec],
    ) -> Received:
        answer = _Answer(
            RESPONSE_TYPE,
            self._max_message_bytes,
            lambda length: ResponseReader(length, specs, exchange.output_salts),
        )
        await self._client.request(
            "POST",
            f"{PREFIX}/infer",
            answer.on_head,
            content_type=REQUEST_TYPE,
            head=bytes(next(pieces)),
            body=pieces,
            length=sum(lengths),
        )
        return Received(*answer.result().result())

    async def _sealed(
        self,
        exchange: Exchange,
        pieces: Iterator[bytes | memoryview],
        lengths: Sequence[int],
        specs: Sequence[TensorSpec],
        session: Session,
    ) -> Received:
        call = _sealed_call(exchange, session)
        body = call.seal(pieces, lengths)
        answer = SealedAnswer(
            call,
            self._max_message_bytes,
            lambda length: ResponseReader(length, specs, exchange.output_salts),
        )
        await self._client.request(
            "POST",
            f"{PREFIX}/infer",
            answer.on_head,
            content_type=SEALED_TYPE,
            head=next(body.pieces),
            body=body.pieces,
            length=body.length,
        )
        return Received(*answer.result().result())

    async def hello(self, message: Document) -> Any:
        """Post message (a)."""
        return await self._post(f"{PREFIX}/session/hello", message)

    async def finish(self, message: Document) -> Any:
        """Post message (c)."""
        return await self._post(f"{PREFIX}/session/finish", message)

    async def _post(self, path: str, message: Document) -> Any:
        body = json.dumps(message).encode()
        answer = _Answer("application/json", _MAX_JSON_BYTES, Whole)
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
        answer = _Answer("text/plain; charset=utf-8", _MAX_ERROR_BYTES, Whole)
        await self._client.request("GET", "/livez", answer.on_head)
        answer.result()

    async def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _sealed_call(exchange: Exchange, session: Session) -> SealedCall:
    # Under the ids that the exchange names inside: the runner compares them.
    return SealedCall(
        session=session,
        operation=INFER,
        exchange_id=bytes.fromhex(exchange.exchange_id),
        request_id=bytes.fromhex(exchange.request_id),
    )


class _Reader(Protocol):
    def feed(self, data: memoryview) -> None:
        """Take in the next bytes."""


_R = TypeVar("_R", bound=_Reader)


class _Answer(Generic[_R]):
    """Bounds an answer by its head, and tells a refusal from what was asked."""

    def __init__(
        self, content_type: str, max_bytes: int, make: Callable[[int], _R]
    ) -> None:
        self._content_type = content_type
        self._max_bytes = max_bytes
        self._make = make
        self._status = 0
        self._reader: _R | None = None
        self._refusal = Whole(0)

    def on_head(self, head: Head) -> Callable[[memoryview], None]:
        """Return what takes in the body.

        Raises:
            MalformedInputError: Another type, or over the cap.
        """
        self._status = head.status
        limit = self._max_bytes if head.status == 200 else _MAX_ERROR_BYTES
        if head.content_length > limit:
            raise MalformedInputError(
                f"answer content-length: got {head.content_length}, want at most "
                f"{limit} bytes"
            )
        if head.status != 200:
            return self._refusal.feed
        if head.content_type != self._content_type:
            raise MalformedInputError(
                f"answer content-type: got {head.content_type!r:.100}, "
                f"want {self._content_type}"
            )
        self._reader = self._make(head.content_length)
        return self._reader.feed

    def result(self) -> _R:
        """Return the reader that took in the body.

        Raises:
            UnknownSessionError: The replica does not hold the session.
            UnavailableError: The replica refused.
        """
        if self._reader is None:
            raise _refusal(self._status, self._refusal.result())
        return self._reader


def _refusal(status: int, said: bytes) -> SecureError:
    message = f"replica refused: {status} {said!r:.300}"
    if status == 401 and f'"code":"{UNKNOWN_SESSION}"'.encode() in said:
        return UnknownSessionError(message)
    return UnavailableError(message)


class SealedAnswer:
    """Bounds the answer to a sealed exchange by its head, and opens it.

    Args:
        call: That it answers.
        max_bytes: Cap on the message in it.
        make: From the message's length to its reader.
    """

    def __init__(
        self, call: SealedCall, max_bytes: int, make: Callable[[int], ResponseReader]
    ) -> None:
        self._call = call
        self._max_bytes = max_bytes
        self._make = make
        self._status = 0
        self._refusal = Whole(0)
        self._opener: AnswerOpener | None = None
        self._reader: ResponseReader | None = None

    def on_head(self, head: Head) -> Callable[[memoryview], None]:
        """Return what takes in the body.

        Raises:
            MalformedInputError: Another type, or over the cap.
        """
        self._status = head.status
        limit = self._max_bytes if head.status == 200 else _MAX_ERROR_BYTES
        if head.content_length > sealed_cap(limit):
            raise MalformedInputError(
                f"answer content-length: got {head.content_length}, want at most "
                f"{sealed_cap(limit)} bytes"
            )
        if head.content_type == SEALED_TYPE:
            opener = self._call.open(head.status, head.content_length, self._begin)
            self._opener = opener
            return opener.feed
        # Whoever stands between may refuse in the clear; nobody answers so.
        if head.status == 200 or head.content_length > _MAX_ERROR_BYTES:
            raise MalformedInputError(
                f"answer content-type: got {head.content_type!r:.100}, "
                f"want {SEALED_TYPE}"
            )
        return self._refusal.feed

    def _begin(self, length: int) -> Feed:
        if self._status != 200:
            return self._refusal
        self._reader = self._make(length)
        return self._reader

    def result(self) -> ResponseReader:
        """Return the reader that took in the message.

        Raises:
            UnknownSessionError: The replica does not hold the session.
            UnavailableError: The replica refused.
            MalformedInputError: The message ended early.
        """
        if self._opener is not None:
            self._opener.finish()
        if self._reader is None:
            raise _refusal(self._status, self._refusal.result())
        return self._reader


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
        head = exchange.encode() + outgoing.layout.header
        pieces: Iterator[bytes | memoryview] = chain((head,), outgoing.data())
        lengths = (len(head), *outgoing.data_lengths())
        make = partial(ResponseReader, specs=specs, salts=exchange.output_salts)
        if session is None:
            return Received(*(await self._plain(pieces, sum(lengths), make)).result())
        call = _sealed_call(exchange, session)
        body = call.seal(pieces, lengths)
        request = SealedExchange(self._core, body.length)
        try:
            for piece in body.pieces:
                request.feed(piece)
            answer = await request.answer()
        except UnknownSessionError:
            raise
        except SecureError as error:
            raise UnavailableError(f"replica refused: {error}") from error
        readers: list[ResponseReader] = []

        def begin(length: int) -> ResponseReader:
            """Read what is inside as over HTTP."""
            readers.append(make(length))
            return readers[0]

        opener = call.open(200, answer.length, begin)
        for sealed in answer.pieces:
            opener.feed(sealed)
        opener.finish()
        return Received(*readers[0].result())

    async def _plain(
        self,
        pieces: Iterator[bytes | memoryview],
        length: int,
        make: Callable[[int], ResponseReader],
    ) -> ResponseReader:
        request = RequestReader(length, self._core.admit)
        try:
            self._core.require_plain()
            for piece in pieces:
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
        response = make(answer.content_length)
        for piece in answer.pieces:
            response.feed(piece)
        return response

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
