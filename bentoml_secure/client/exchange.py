"""One HTTP request and its reply, without the network; and what a refusal means."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    QuorumNotReached,
    SecureError,
    UnavailableError,
)

MAX_REFUSAL_BYTES = 4 << 20
"""A refusal holds a tally of at most 64 replicas."""

MAX_MESSAGE_CHARACTERS = 1000
NO_QUORUM = "quorum-not-reached"
_TOO_MANY = 429

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request that a flow wants sent.

    Attributes:
        method: "GET" or "POST".
        path: Below the service's URL, query included.
        headers: Beside those of the client.
        body: Exact bytes.
        max_bytes: A longer reply is cut off and refused.
        extra_seconds: How much longer than other requests this one may take.
        is_judged: The reply takes long to judge: proofs take tenths of a second.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    max_bytes: int
    extra_seconds: float = 0.0
    is_judged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back: nothing in it is trusted.

    Attributes:
        status: HTTP status.
        headers: In the order in which they came.
        body: Exact bytes, within the exchange's cap.
    """

    status: int
    headers: Pairs
    body: bytes = field(repr=False)

    def header(self, name: str) -> str | None:
        """Return a header's only value, or None where it is absent.

        Raises:
            MalformedInputError: It stands more than once: two readers could see two
                values.
        """
        values = [value for key, value in self.headers if key.lower() == name]
        if len(values) > 1:
            raise MalformedInputError(f"header {name}: stands {len(values)} times")
        return values[0] if values else None


def require_plain(status: int, headers: Pairs) -> None:
    """Refuse a reply whose body is not the bytes that the entry committed to.

    Raises:
        MalformedInputError: A redirect, or a content encoding.
    """
    if 300 <= status < 400:
        raise MalformedInputError(
            f"reply: got status {status}, want an answer; redirects are not followed",
            remedy="Give the client the URL of the service itself.",
        )
    for name, value in headers:
        if name.lower() == "content-encoding" and value.lower() != "identity":
            raise MalformedInputError(
                f"reply: got content-encoding {value!r:.60}, want identity",
                remedy="Switch compression off between the client and the service.",
            )


class Collector:
    """Gathers a reply's body, up to a cap."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._body = bytearray()

    def add(self, chunk: bytes) -> None:
        """Take in the next bytes.

        Raises:
            MalformedInputError: They exceed the cap.
        """
        if len(self._body) + len(chunk) > self._max_bytes:
            raise MalformedInputError(
                f"reply: got more than {self._max_bytes} bytes, want at most that"
            )
        self._body += chunk

    def body(self) -> bytes:
        """Return all of them."""
        return bytes(self._body)


def require_success(reply: Reply, path: str) -> None:
    """Refuse a reply that reports an error, as the error that it reports.

    Raises:
        QuorumNotReached: The replicas did not agree; with the tally.
        ConfigurationError: The service refuses the request as it is (4xx but 429).
        UnavailableError: Any other status but 2xx.
    """
    if not 200 <= reply.status < 300:
        raise _refusal(reply, path)


def post_json(
    path: str, document: Any, *, max_bytes: int
) -> Generator[Exchange, Reply, Any]:
    """Post a JSON document and return the one that comes back.

    Args:
        path: Below the service's URL.
        document: JSON-able.
        max_bytes: Of the reply.

    Raises:
        SecureError: What the reply says, or that it does not parse.
    """
    reply = yield Exchange(
        method="POST",
        path=path,
        headers={"content-type": "application/json"},
        body=canonical_json(document),
        max_bytes=max_bytes,
    )
    require_success(reply, path)
    return parse_json(reply.body, what=path, max_bytes=max_bytes)


def _refusal(reply: Reply, path: str) -> SecureError:
    code, message, tally = _described(reply)
    said = f"{path}: status {reply.status}, {code}: {message}"
    # The words of a refusal are not signed: whoever stands between may refuse as well.
    if reply.status == 503 and code == NO_QUORUM and tally is not None:
        return QuorumNotReached(said, tally)
    if reply.status == _TOO_MANY:
        return UnavailableError(said, remedy="Try again in a second.")
    if 400 <= reply.status < 500:
        return ConfigurationError(said)
    return UnavailableError(said)


def _described(reply: Reply) -> tuple[str, str, Mapping[str, Any] | None]:
    try:
        document = parse_json(reply.body, what="error", max_bytes=MAX_REFUSAL_BYTES)
    except MalformedInputError:
        document = None
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        # The user's handler or a proxy in between, in a form of its own.
        text = error if isinstance(error, str) else reply.body[:200].decode("latin-1")
        return "error", _shown(text), None
    code, message, tally = (error.get(key) for key in ("code", "message", "tally"))
    return _shown(code), _shown(message), tally if isinstance(tally, dict) else None


def _shown(text: object) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in str(text))
    return printable[:MAX_MESSAGE_CHARACTERS]
