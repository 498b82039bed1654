"""Standing between two processes: what goes by is kept, and may be changed.

``Wire`` sees bytes of TCP, ``HttpProxy`` sees HTTP: as a forward proxy that a client is
told of, or as what stands before a service and ends TLS or not.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import urlsplit

WINDOW_BYTES = 16
_LEAST_DISTINCT = 6
"""Of a window's bytes: fewer are padding and zeros, which are everywhere."""

_TIMEOUT_SECONDS = 60.0


def _spelled(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    # Base64 spells bytes by where they stand modulo 3.
    for skipped in range(3):
        yield base64.b64encode(secret[skipped:])


def _windows(data: bytes) -> Iterator[bytes]:
    for at in range(len(data) - WINDOW_BYTES + 1):
        yield data[at : at + WINDOW_BYTES]


class Secrets:
    """What must not be seen: any 16 bytes of it, as they are or as hex or base64.

    Args:
        named: By a name that says what it is.
    """

    def __init__(self, named: Mapping[str, bytes]) -> None:
        self._named: dict[bytes, str] = {}
        for name, secret in named.items():
            windows = [
                window
                for spelled in _spelled(secret)
                for window in _windows(spelled)
                if len(set(window)) >= _LEAST_DISTINCT
            ]
            assert windows, f"{name}: nothing in it could be told from padding"
            self._named.update(dict.fromkeys(windows, name))

    def found_in(self, streams: Iterable[bytes]) -> set[str]:
        """Return the names of what shows anywhere."""
        named = self._named
        return {
            named[window]
            for stream in streams
            for window in _windows(stream)
            if window in named
        }


class Wire:
    """Hands the bytes of TCP connections on, and keeps them.

    Args:
        port: Of this host, where they go.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._streams: list[bytearray] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def streams(self) -> list[bytes]:
        """Return what went by: one stream for each direction of each connection."""
        return [bytes(stream) for stream in self._streams]

    def forget(self) -> None:
        """Keep only what comes from now on."""
        for stream in self._streams:
            stream.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._open):
            # Wakes whoever reads from it; closing alone does not.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    stream = bytearray()
                    self._streams.append(stream)
                    threading.Thread(
                        target=_hand_on, args=(source, sink, stream), daemon=True
                    ).start()


def _hand_on(source: socket.socket, sink: socket.socket, stream: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            stream += data
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """One HTTP request and its reply, as a proxy sees them in the clear.

    Attributes:
        path: Of the request, without scheme and host.
        asked: The request's body.
        status: Of the reply.
        headers: Of the reply.
        body: Of the reply.
    """

    path: str
    asked: bytes
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def as_page(self, status: int, page: bytes) -> Passed:
        """Return the reply of a proxy that answers itself, in HTML."""
        typed = (("content-type", "text/html"),)
        return replace(self, status=status, headers=typed, body=page)


@dataclass(kw_only=True)
class HttpProxy:
    """An HTTP proxy, forward or in front of a service.

    Attributes:
        upstream: URL of the service that it stands before; requests that name their
            host themselves go there.
        change: Makes the reply that is handed on of the one that came.
        change_request: Makes the body that is handed on, by path, of the one that came.
        passed: Requests and replies as they came.
        tunnels: Hosts that CONNECT named.
    """

    upstream: str | None = None
    change: Callable[[Passed], Passed] = field(default=lambda passed: passed)
    change_request: Callable[[str, bytes], bytes] = field(
        default=lambda path, body: body
    )
    passed: list[Passed] = field(default_factory=list)
    tunnels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def paths(self) -> list[str]:
        """Of the requests that went by."""
        return [each.path for each in self.passed]

    def streams(self) -> list[bytes]:
        """Return the bodies that went by."""
        return [body for each in self.passed for body in (each.asked, each.body)]

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: HttpProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._pass()

    def do_POST(self) -> None:
        self._pass()

    def do_CONNECT(self) -> None:
        self.owner.tunnels.append(self.path)
        host, _, port = self.path.rpartition(":")
        self.close_connection = True
        with socket.create_connection((host, int(port))) as far:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(
                target=_hand_on, args=(far, self.connection, bytearray()), daemon=True
            )
            back.start()
            _hand_on(self.connection, far, bytearray())
            back.join()

    def _pass(self) -> None:
        parts = urlsplit(self.path if "://" in self.path else self._before(self.path))
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        asked = self.rfile.read(int(self.headers.get("content-length", 0)))
        connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS
        )
        hop = {"connection", "proxy-connection", "keep-alive"}
        with contextlib.closing(connection):
            headers = {n: v for n, v in self.headers.items() if n.lower() not in hop}
            sent = self.owner.change_request(path, asked)
            connection.request(self.command, path, sent, headers)
            reply = connection.getresponse()
            came = Passed(
                path=path,
                asked=asked,
                status=reply.status,
                headers=tuple(reply.getheaders()),
                body=reply.read(),
            )
        self.owner.passed.append(came)
        said = self.owner.change(came)
        self.send_response(said.status)
        for name, value in said.headers:
            if name.lower() not in {"content-length", "transfer-encoding", *hop}:
                self.send_header(name, value)
        self.send_header("content-length", str(len(said.body)))
        self.end_headers()
        self.wfile.write(said.body)

    def _before(self, path: str) -> str:
        assert self.owner.upstream is not None, "a forward proxy was asked directly"
        return f"{self.owner.upstream}{path}"
