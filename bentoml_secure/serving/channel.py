"""How the entry reaches one replica: over HTTP (UDS or TCP), or in this process.

Our own client, never BentoML's proxy: a proxy would unpickle what a replica answers.
Every answer is bounded before it is read; redirects, cookies, compression, proxies
and credentials of the environment take no part.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import aiohttp

from bentoml_secure.digest import Digest, parse_json
from bentoml_secure.errors import (
    ConfigurationError,
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
from bentoml_secure.serving.readers import RequestReader, ResponseReader
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.serving.runner_app import attestation_document
from bentoml_secure.tensors import Array, TensorSpec

# uvicorn closes an idle connection after 5 s, and a reused one then fails a POST.
_IDLE_SECONDS = 4.0
_MAX_JSON_BYTES = 1 << 20
_MAX_ERROR_BYTES = 8192


class ConnectionLostError(UnavailableError):
    """The connection ended before a byte of the answer: another attempt is safe."""


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
        self._url = url
        self._max_message_bytes = max_message_bytes
        self._session: aiohttp.ClientSession | None = None
        self._base = "http://runner" if url.startswith("file://") else url.rstrip("/")
        if not url.startswith(("file://", "http://", "https://")):
            raise ConfigurationError(
                f"replica URL: got {url!r:.100}, want http or file"
            )

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            parts = urlsplit(self._url)
            connector: aiohttp.BaseConnector = (
                aiohttp.UnixConnector(
                    unquote(parts.path), keepalive_timeout=_IDLE_SECONDS, limit=0
                )
                if parts.scheme == "file"
                else aiohttp.TCPConnector(keepalive_timeout=_IDLE_SECONDS, limit=0)
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                # Deadlines are the scenario's; each call below bounds its own time.
                timeout=aiohttp.ClientTimeout(total=None),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
                read_bufsize=CHUNK_BYTES,
            )
        return self._session

    async def exchange(
        self, exchange: Exchange, outgoing: Outgoing, specs: Sequence[TensorSpec]
    ) -> Received:
        """Send tensors, receive tensors and a statement over HTTP."""
        head = exchange.encode() + outgoing.layout.header
        length = len(head) + outgoing.layout.data_bytes
        whole = length <= CHUNK_BYTES
        body = b"".join([head, *outgoing.data()]) if whole else _stream(head, outgoing)
        headers = {"Content-Type": REQUEST_TYPE, "Content-Length": str(length)}
        try:
            async with self._client().post(
                f"{self._base}/bsec/v1/infer",
                data=body,
                headers=headers,
                allow_redirects=False,
            ) as response:
                await _require_ok(response, RESPONSE_TYPE)
                announced = self._announced(response)
                reader = ResponseReader(announced, specs, exchange.output_salts)
                async for piece in response.content.iter_any():
                    reader.feed(piece)
                return Received(*reader.result())
        except (aiohttp.ServerDisconnectedError, ConnectionResetError) as error:
            raise ConnectionLostError(f"{self._url}: connection lost") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UnavailableError(f"{self._url}: {_short(error)}") from error

    def _announced(self, response: aiohttp.ClientResponse) -> int:
        # An answer without a length has no end that could be checked in time.
        if response.content_length is None:
            raise MalformedInputError("answer: has no content-length")
        if response.content_length > self._max_message_bytes:
            raise MalformedInputError(
                f"answer content-length: got {response.content_length}, want at most "
                f"{self._max_message_bytes} bytes"
            )
        return response.content_length

    async def attest(self, nonce: bytes) -> Any:
        """Ask for key document and evidence over HTTP."""
        try:
            async with self._client().post(
                f"{self._base}/bsec/v1/attest",
                data=json.dumps({"nonce": nonce.hex()}).encode(),
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as response:
                await _require_ok(response, "application/json")
                body = await _read_at_most(response, _MAX_JSON_BYTES)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UnavailableError(f"{self._url}: {_short(error)}") from error
        return parse_json(body, what="attest answer", max_bytes=_MAX_JSON_BYTES)

    async def probe(self) -> None:
        """Ask BentoML's liveness path."""
        try:
            async with self._client().get(
                f"{self._base}/livez", allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise UnavailableError(f"{self._url}: livez says {response.status}")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UnavailableError(f"{self._url}: {_short(error)}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _stream(head: bytes, outgoing: Outgoing) -> AsyncIterator[bytes | memoryview]:
    yield head
    for piece in outgoing.data():
        yield piece


async def _require_ok(response: aiohttp.ClientResponse, content_type: str) -> None:
    got = response.headers.getall("Content-Type", [])
    if response.status == 200 and got == [content_type]:
        return
    if response.status == 200:
        raise MalformedInputError(
            f"answer content-type: got {got!r:.100}, want {content_type}"
        )
    body = await _read_at_most(response, _MAX_ERROR_BYTES)
    raise UnavailableError(f"replica refused with {response.status}: {body!r:.300}")


async def _read_at_most(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > max_bytes:
            raise MalformedInputError(f"answer: over {max_bytes} bytes")
    return bytes(body)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


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
        for piece in pieces:
            request.feed(piece)
        try:
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
