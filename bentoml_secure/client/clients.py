"""The two clients: they carry a flow's exchanges over httpx, and nothing else."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack, cast

import httpx

from bentoml_secure.attestation.endorsement_folder import EndorsementFolder
from bentoml_secure.client.answer import Answer
from bentoml_secure.client.entry import AttestedEntry
from bentoml_secure.client.exchange import (
    Collector,
    Exchange,
    Reply,
    require_plain,
)
from bentoml_secure.client.flow import Caller, Flow
from bentoml_secure.digest import Digest
from bentoml_secure.errors import (
    ConfigurationError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.receipts.trust import MAX_TRUST_BYTES, Trust, parse_trust
from bentoml_secure.statements import utc_now

T = TypeVar("T")

DEFAULT_TIMEOUT_SECONDS = 60.0
DEFAULT_WAIT_SECONDS = 5.0
DEFAULT_MAX_BODY_BYTES = 64 << 20


class Settings(TypedDict, total=False):
    """Arguments of both clients; see ``SecureClient``."""

    scenario: str | None
    headers: Mapping[str, str]
    pin: Digest | None
    endorsements: str | os.PathLike[str] | None
    proxy: str | None
    verify: ssl.SSLContext | bool
    timeout: float
    wait_seconds: float
    max_body_bytes: int
    clock: Callable[[], datetime]
    random_bytes: Callable[[int], bytes]


class _Base:
    """What both clients are made with; see ``SecureClient``."""

    def __init__(
        self,
        url: str,
        trust: Trust | str | os.PathLike[str],
        settings: Settings,
    ) -> None:
        self._timeout_seconds = settings.get("timeout", DEFAULT_TIMEOUT_SECONDS)
        self._http_settings: dict[str, Any] = {
            "base_url": _base_url(url),
            "headers": _own_headers(settings.get("headers", {})),
            "follow_redirects": False,
            "proxy": settings.get("proxy"),
            "verify": settings.get("verify", True),
        }
        folder = settings.get("endorsements")
        own = None if folder is None else EndorsementFolder(Path(folder).resolve())
        self._caller = Caller(
            trust if isinstance(trust, Trust) else _read_trust(Path(trust)),
            scenario=settings.get("scenario"),
            wait_seconds=settings.get("wait_seconds", DEFAULT_WAIT_SECONDS),
            max_body_bytes=settings.get("max_body_bytes", DEFAULT_MAX_BODY_BYTES),
            clock=settings.get("clock", utc_now),
            random_bytes=settings.get("random_bytes", secrets.token_bytes),
            pin=settings.get("pin"),
            endorsements=lambda: own.endorsements if own else (),
        )

    def _arguments(self, exchange: Exchange) -> dict[str, Any]:
        return {
            "method": exchange.method,
            "url": exchange.path,
            "headers": exchange.headers,
            "content": exchange.body,
            "timeout": self._timeout_seconds + exchange.extra_seconds,
        }


def _base_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigurationError(f"url {url!r:.100}: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigurationError(f"url: got {url!r:.100}, want http:// or https://")
    return parsed


def _own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    if reserved := [
        name for name in headers if name.lower().startswith(("bsec-", "accept-enc"))
    ]:
        raise ConfigurationError(f"headers: {reserved[0]!r:.60} is the protocol's own")
    # Commitments are over the body as the entry made it, not as a proxy packed it.
    return {**headers, "accept-encoding": "identity"}


def _read_trust(path: Path) -> Trust:
    try:
        with path.open("rb") as stream:
            return parse_trust(stream.read(MAX_TRUST_BYTES + 1))
    except OSError as error:
        raise ConfigurationError(
            f"trust file {path}: cannot be read: {error.strerror}",
            remedy="`bentoml-secure trust` writes one.",
        ) from error


@contextmanager
def _transport_errors(exchange: Exchange) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise UnavailableError(
            f"{exchange.method} {exchange.path}: no reply in time"
        ) from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise UnavailableError(
            f"{exchange.method} {exchange.path}: {str(error) or type(error).__name__}"
        ) from error


class SecureClient(_Base):
    """Calls a secured service; what a call returns has been verified.

    Args:
        url: Of the entry service, ``http(s)://host[:port][/prefix]``.
        trust: What the caller accepts, or the path of a trust file.
        scenario: Asked for by name; None asks for the service's minimum.
        headers: Sent with every request, such as an ingress's authorization.
        pin: Digest of the only key document accepted, as ``attest().document.digest``
            tells it: then new keys of the entry are refused, instead of followed by
            evidence anew.
        endorsements: Folder of vendors' certificates and collateral, for evidence that
            comes without; read again when a file changes.
        proxy: URL of an HTTP proxy; by default that of the environment, if any. It sees
            ciphertext only.
        verify: How TLS is verified, as httpx takes it: an SSL context with another
            authority, or False, for what matters is sealed inside.
        timeout: Seconds for each step of a request: connect, send, each read.
        wait_seconds: How long the entry may wait for what a receipt still requires;
            it waits no longer than its own limit. Then the answer is provisional.
        max_body_bytes: Cap on a response's body.
        clock: The time, with a time zone.
        random_bytes: Draws nonces and salts; the system's by default.
        transport: httpx transport; None uses the network.

    Raises:
        ConfigurationError: No such URL, header or trust file; endorsements that cannot
            be read.
    """

    def __init__(
        self,
        url: str,
        trust: Trust | str | os.PathLike[str],
        *,
        transport: httpx.BaseTransport | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(url, trust, settings)
        self._http = httpx.Client(transport=transport, **self._http_settings)

    def call(self, api: str, payload: Any) -> Answer:
        """Ask with JSON and return the verified answer.

        Args:
            api: Name or path of the API method.
            payload: JSON-able; by name, each argument of the method.

        Raises:
            SecureError: See ``Caller.call_raw``. MalformedInputError: The answer is
                not JSON.
        """
        return self._run(self._caller.call(api, payload))

    def call_raw(self, api: str, body: bytes, content_type: str) -> Answer:
        """Ask with bytes and return the verified answer, its value as bytes.

        Raises:
            SecureError: See ``Caller.call_raw``.
        """
        return self._run(self._caller.call_raw(api, body, content_type))

    def confirm(self, answer: Answer) -> Answer:
        """Judge a provisional answer again, with what has come since.

        Raises:
            SecureError: See ``Caller.confirm``.
        """
        return self._run(self._caller.confirm(answer))

    def attest(self) -> AttestedEntry:
        """Verify the entry's evidence without asking anything.

        Raises:
            SecureError: See ``attest_flow``.
        """
        return self._run(self._caller.attest())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        try:
            exchange = next(flow)
            while True:
                try:
                    reply = self._send(exchange)
                except SecureError as error:
                    # The flow says how far it came.
                    exchange = flow.throw(error)
                else:
                    exchange = flow.send(reply)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            flow.close()

    def _send(self, exchange: Exchange) -> Reply:
        collector = Collector(exchange.max_bytes)
        with (
            _transport_errors(exchange),
            self._http.stream(**self._arguments(exchange)) as response,
        ):
            headers = response.headers.multi_items()
            require_plain(response.status_code, headers)
            for chunk in response.iter_raw():
                collector.add(chunk)
        return Reply(
            status=response.status_code, headers=headers, body=collector.body()
        )


class AsyncSecureClient(_Base):
    """``SecureClient`` for asyncio: the same arguments, the same flow, awaited.

    Args:
        url: As ``SecureClient``.
        trust: As ``SecureClient``.
        transport: httpx transport; None uses the network.
        settings: As ``SecureClient``.
    """

    def __init__(
        self,
        url: str,
        trust: Trust | str | os.PathLike[str],
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(url, trust, settings)
        self._http = httpx.AsyncClient(transport=transport, **self._http_settings)

    async def call(self, api: str, payload: Any) -> Answer:
        """As ``SecureClient.call``."""
        return await self._run(self._caller.call(api, payload))

    async def call_raw(self, api: str, body: bytes, content_type: str) -> Answer:
        """As ``SecureClient.call_raw``."""
        return await self._run(self._caller.call_raw(api, body, content_type))

    async def confirm(self, answer: Answer) -> Answer:
        """As ``SecureClient.confirm``."""
        return await self._run(self._caller.confirm(answer))

    async def attest(self) -> AttestedEntry:
        """As ``SecureClient.attest``."""
        return await self._run(self._caller.attest())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, flow: Flow[T]) -> T:
        try:
            exchange = next(flow)
            while True:
                try:
                    reply = await self._send(exchange)
                except SecureError as error:
                    # The flow says how far it came.
                    exchange = flow.throw(error)
                else:
                    if exchange.is_judged:
                        # Not on the loop; and what ends a generator is no result of a
                        # thread.
                        advance = functools.partial(_advance, flow, reply)
                        exchange = await asyncio.to_thread(advance)
                    else:
                        exchange = flow.send(reply)
        except StopIteration as stop:
            value: T = stop.value
            return value
        except _Ended as ended:
            return cast(T, ended.value)
        finally:
            flow.close()

    async def _send(self, exchange: Exchange) -> Reply:
        collector = Collector(exchange.max_bytes)
        with _transport_errors(exchange):
            async with self._http.stream(**self._arguments(exchange)) as response:
                headers = response.headers.multi_items()
                require_plain(response.status_code, headers)
                async for chunk in response.aiter_raw():
                    collector.add(chunk)
        return Reply(
            status=response.status_code, headers=headers, body=collector.body()
        )


class _Ended(Exception):  # noqa: N818 - an outcome, not a failure
    """A flow has come to its result."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


def _advance(flow: Flow[Any], reply: Reply) -> Exchange:
    try:
        return flow.send(reply)
    except StopIteration as stop:
        raise _Ended(stop.value) from None
