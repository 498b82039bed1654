"""One HTTP call over real sockets: bounds, deadlines, TLS."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)
from bentoml_secure.keys.http_calls import (
    MAX_ANSWER_BYTES,
    Call,
    make_send,
    parse_url,
)
from tests.unit.keys.trustee_server import serving

OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def answering(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Accept one connection, read what comes, answer any bytes at all."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(65536)
            try:
                answer(peer)
            except OSError:
                return  # The client hung up: what some tests are about.

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join()
        listener.close()


def get(url: str, timeout_seconds: float = 5.0) -> bytes:
    send = make_send(timeout_seconds=timeout_seconds)
    return send(Call(method="GET", url=f"{url}/path")).body


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        OK + b"\r\nhello",
    ],
)
def test_a_body_is_read_whole(answer: bytes) -> None:
    with answering(lambda peer: peer.sendall(answer)) as url:
        assert get(url) == b"hello"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "no answer"),
        (b"nonsense\r\n\r\n", "no answer: nonsense"),
        (OK + b"Content-Length: 50\r\n\r\nhello", "no answer"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "no answer"),
        (OK + b"X: " + b"a" * 70000 + b"\r\n\r\n", "no answer"),
    ],
)
def test_answers_that_break_off_or_are_none(answer: bytes, said: str) -> None:
    with (
        answering(lambda peer: peer.sendall(answer)) as url,
        pytest.raises(UnavailableError, match=said),
    ):
        get(url)


def test_an_answer_without_end() -> None:
    def flood(peer: socket.socket) -> None:
        peer.sendall(OK + b"\r\n")
        for _ in range(10 * MAX_ANSWER_BYTES // 65536):
            peer.sendall(bytes(65536))

    with (
        answering(flood) as url,
        pytest.raises(MalformedInputError, match="more than 1048576 bytes"),
    ):
        get(url)


def test_an_answer_that_drips() -> None:
    def drip(peer: socket.socket) -> None:
        peer.sendall(OK + b"\r\n")
        for _ in range(200):
            peer.sendall(b".")
            threading.Event().wait(0.02)

    with answering(drip) as url, pytest.raises(UnavailableError, match="too long"):
        get(url, timeout_seconds=0.3)


def test_a_server_that_says_nothing() -> None:
    with (
        answering(lambda peer: peer.recv(1)) as url,
        pytest.raises(UnavailableError, match="timed out"),
    ):
        get(url, timeout_seconds=0.1)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "kbs.example",
        "ftp://kbs.example",
        "file:///etc/passwd",
        "http://kbs.example",
        "http://127.0.0.1.example",
        "https://user:secret@kbs.example",
        "https://kbs.example?x=1",
        "https://kbs.example#x",
        "https://kbs.example:port",
        "https://[::1",
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="broker"):
        parse_url(url, what="broker")


@pytest.mark.parametrize(
    "url",
    [
        "https://kbs.example",
        "https://kbs.example:8443/base",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        "http://localhost:8080",
    ],
)
def test_addresses_that_are_good(url: str) -> None:
    assert parse_url(url, what="broker").hostname


def test_what_is_sealed_by_itself_may_go_over_plain_http_anywhere() -> None:
    for url in ("http://kbs.example:3000", "https://kbs.example"):
        assert parse_url(url, what="broker", plain=True).hostname == "kbs.example"
    for url in ("ftp://kbs.example", "http://user@kbs.example", "kbs.example"):
        with pytest.raises(ConfigurationError, match="broker"):
            parse_url(url, what="broker", plain=True)


def test_the_cap_on_an_answer_is_the_callers() -> None:
    with (
        answering(lambda peer: peer.sendall(OK + b"\r\n" + bytes(11))) as url,
        pytest.raises(MalformedInputError, match="more than 10 bytes"),
    ):
        make_send(max_answer_bytes=10)(Call(method="GET", url=url))


def make_tls(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return a server's context for 127.0.0.1, and the certificate to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a broker")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    pem, chain = folder / "key.pem", folder / "certificate.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, pem)
    return context, chain


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_tls_is_verified(tmp_path: Path) -> None:
    context, chain = make_tls(tmp_path)
    call_path = "/path"
    with serving(Hello, context) as url:
        call = Call(method="GET", url=f"{url}{call_path}")
        trusting = ssl.create_default_context(cafile=str(chain))
        assert make_send(tls=trusting)(call).body == b"hello"
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            make_send()(call)
        other = Call(method="GET", url=url.replace("127.0.0.1", "localhost"))
        with pytest.raises(UnavailableError, match="Hostname mismatch"):
            make_send(tls=trusting)(other)
