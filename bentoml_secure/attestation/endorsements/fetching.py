"""The network as endorsements need it: one GET, bounded in time and size."""

from __future__ import annotations

import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

from bentoml_secure.attestation.evidence import MAX_ENDORSEMENT_BYTES
from bentoml_secure.errors import ConfigurationError, UnavailableError

OK = 200
NOT_FOUND = 404
_TOO_MANY_REQUESTS = 429
_CHUNK_BYTES = 64 * 1024
_SHOWN_CHARACTERS = 200
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer of a service; nothing in it is trusted.

    Attributes:
        status: HTTP status code.
        headers: By name in lower case.
        body: At most ``MAX_ENDORSEMENT_BYTES``.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class NotFoundError(UnavailableError):
    """The service answers and does not have it."""


Fetch = Callable[[str], Response]
"""From an address to the answer, whatever its status; ``UnavailableError`` if none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """Something fetched, as a file to keep.

    Attributes:
        name: Of the file: ``collateral.json``.
        data: What a verifier takes as an endorsement.
    """

    name: str
    data: bytes


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect as it is: an address says who is asked."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpsFetch:
    """Fetches over https; over http from this machine only.

    Proxies and certificate authorities are those of the environment
    (``HTTPS_PROXY``, ``SSL_CERT_FILE``).

    Attributes:
        timeout_seconds: For one answer as a whole.
        max_bytes: Longer answers are refused before they are read to their end.
    """

    timeout_seconds: float = 30.0
    max_bytes: int = MAX_ENDORSEMENT_BYTES

    def __call__(self, url: str) -> Response:
        """Return the answer to a GET.

        Raises:
            ConfigurationError: Not an address that may be asked.
            UnavailableError: No answer, not in time, or too long.
        """
        _require_address(url)
        deadline = time.monotonic() + self.timeout_seconds
        opener = urllib.request.build_opener(_NoRedirects)
        request = urllib.request.Request(  # noqa: S310 - see _require_address
            url, headers={"User-Agent": "bentoml-secure", "Connection": "close"}
        )
        try:
            try:
                answer = opener.open(request, timeout=self.timeout_seconds)
            except urllib.error.HTTPError as error:
                # An answer all the same.
                answer = error
            with answer:
                return Response(
                    status=answer.status or 0,
                    headers={k.lower(): v for k, v in answer.headers.items()},
                    body=self._read(answer, url, deadline),
                )
        except (OSError, HTTPException) as error:
            raise UnavailableError(
                f"{url}: no answer: {error}",
                remedy="Check the address and the network, or try again later.",
            ) from error

    def _read(self, answer: Any, url: str, deadline: float) -> bytes:
        body = bytearray()
        while chunk := answer.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > self.max_bytes:
                raise UnavailableError(
                    f"{url}: the answer is longer than {self.max_bytes} bytes"
                )
            # The timeout of the socket begins anew with each piece.
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{url}: the answer took longer than {self.timeout_seconds:g} s"
                )
        return bytes(body)


def _require_address(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{url!r:.200} is no address: {error}.") from error
    local = parts.scheme == "http" and host in _LOOPBACK
    if not host or not (parts.scheme == "https" or local):
        raise ConfigurationError(
            f"{url!r:.200}: want https, or http to this machine.",
        )


def require_ok(response: Response, url: str) -> Response:
    """Return an answer with status 200.

    Raises:
        UnavailableError: Any other.
    """
    if response.status == OK:
        return response
    said = response.body[:_SHOWN_CHARACTERS].decode("utf-8", "replace").strip()
    message = f"{url}: status {response.status}{f': {said}' if said else ''}"
    if response.status == NOT_FOUND:
        raise NotFoundError(
            message,
            remedy="The service does not know this platform, or has no such path.",
        )
    remedy = ""
    if response.status == _TOO_MANY_REQUESTS:
        after = response.headers.get("retry-after", "some time")
        remedy = f"It is asked too often; try again after {after:.40} (seconds)."
    raise UnavailableError(message, remedy=remedy)
