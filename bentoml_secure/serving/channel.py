"""How the entry reaches one replica: over HTTP (UDS or TCP), or in this process.

Our own client, never BentoML's proxy: a proxy would unpickle what a replica answers.
Every answer is bounded before it is read; redirects, cookies, compression, proxies
and credentials of the environment take no part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from bentoml_secure.serving.runner_app import attestation_document
from bentoml_secure.tensors import Array, TensorSpec

_MAX_JSON_BYTES = 1 << 20
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
        self, exchange: Exchange, outgoing: Outgoing, specs: Sequence[TensorSpec]
    ) -> Received:
        """Send tensors, receive tensors and a statement.

        Raises:
            UnavailableError: No answer, or the replica refused.
            MalformedInputError: The answer breaks the format or the plan.
        """
        ...

    async def attest(self, nonce: bytes) -> Any:
        """Return the replica's JSON answer to a nonce of 32 bytes."""
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
        self, exchange: Exchange, outgoing: Outgoing, specs: Sequence[TensorSpec]
    ) -> Received:
        """Send tensors, receive tensors and a statement over HTTP."""
        head = exchange.encode() + outgoing.layout.header
        length = len(head) + outgoing.layout.data_bytes
        body: Iterable[bytes | memoryview] = outgoing.data()
        if length <= CHUNK_BYTES:
            head, body = b"".join([head, *body]), ()
        answer = _Answer(
            RESPONSE_TYPE,
            self._max_message_bytes,
            lambda length: ResponseReader(length, specs, exchange.output_salts),
        )
        await self._client.request(
            "POST",
            "/bsec/v1/infer",
            answer.on_head,
            content_type=REQUEST_TYPE,
            head=head,
            body=body,
            length=length,
        )
        return Received(*answer.result().result())

    async def attest(self, nonce: bytes) -> Any:
        """Ask for key document and evidence over HTTP."""
        body = json.dumps({"nonce": nonce.hex()}).encode()
        answer = _Answer("application/json", _MAX_JSON_BYTES, _Collected)
        await self._client.request(
            "POST",
            "/bsec/v1/attest",
            answer.on_head,
            content_type="application/json",
            head=body,
            length=len(body),
        )
        document = bytes(answer.result().data)
        return parse_json(document, what="attest answer", max_bytes=_MAX_JSON_BYTES)

    async def probe(self) -> None:
        """Ask BentoML's liveness path."""
        answer = _Answer("text/plain; charset=utf-8", _MAX_ERROR_BYTES, _Collected)
        await self._client.request("GET", "/livez", answer.on_head)
        answer.result()

    async def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _Reader(Protocol):
    def feed(self, data: memoryview) -> None:
        """Take in the next bytes."""


class _Collected:
    """A small body, kept whole."""

    def __init__(self, length: int) -> None:
        self.data = bytearray()
        self.length = length

    def feed(self, data: memoryview) -> None:
        """Take in the next bytes."""
        self.data += data


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
        self._refusal = _Collected(0)

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
            UnavailableError: The replica refused.
        """
        if self._reader is None:
            said = bytes(self._refusal.data)
            raise UnavailableError(f"replica refused: {self._status} {said!r:.300}")
        return self._reader


class LocalChannel:
    """A replica in this process, through the same bytes and the same checks."""

    def __init__(self, core: RunnerCore) -> None:
        self._core = core

    async def exchange(
        self, exchange: Exchange, outgoing: Outgoing, specs: Sequence[TensorSpec]
    ) -> Received:
        """Hand the bytes of an exchange to the runner and read its answer's."""
        pieces: list[bytes | memoryview] = [exchange.encode(), outgoing.layout.header]
        pieces += outgoing.data()
        request = RequestReader(sum(map(len, pieces)), self._core.admit)
        try:
            for piece in pieces:
                request.feed(piece)
            answer = await self._core.answer(*request.result())
        except SecureError as error:
            raise UnavailableError(f"replica refused: {error}") from error
        response = ResponseReader(answer.content_length, specs, exchange.output_salts)
        for piece in answer.pieces:
            response.feed(piece)
        return Received(*response.result())

    async def attest(self, nonce: bytes) -> Any:
        """Ask the runner of this process."""
        keys = self._core.identity.keys
        return attestation_document(keys, self._core.identity.attest(nonce, keys))

    async def probe(self) -> None:
        """Return: it is this process."""

    async def close(self) -> None:
        """Do nothing: there is no connection."""
