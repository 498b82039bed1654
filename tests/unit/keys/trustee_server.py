"""A key broker as Trustee's protocol document describes it, over real HTTP.

Nothing here is the client's: runtime data is hashed from ``json.dumps``, and answers
are encrypted with the primitives of RFC 7518 in the order in which Trustee does it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

PROTOCOL_VERSION = "0.4.0"
RESOURCE = "default/key/segment-0"


def unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def padded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def compact_json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def report_data(nonce: str, tee_pubkey: dict[str, str], additional: str) -> bytes:
    runtime_data = {
        "tee-pubkey": tee_pubkey,
        "nonce": nonce,
        "additional-evidence": additional,
    }
    return hashlib.sha384(compact_json(runtime_data)).digest() + bytes(16)


def encrypt_to(
    tee_pubkey: dict[str, str], secret: bytes, **header_fields: object
) -> dict[str, str]:
    """Return the flattened JWE: ECDH-ES+A256KW on P-256, A256GCM."""
    assert tee_pubkey["kty"] == "EC"
    assert tee_pubkey["crv"] == "P-256"
    assert tee_pubkey["alg"] == "ECDH-ES+A256KW"
    public = ec.EllipticCurvePublicNumbers(
        int.from_bytes(padded(tee_pubkey["x"]), "big"),
        int.from_bytes(padded(tee_pubkey["y"]), "big"),
        ec.SECP256R1(),
    ).public_key()
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    shared = ephemeral.exchange(ec.ECDH(), public)
    algorithm = b"ECDH-ES+A256KW"
    other = len(algorithm).to_bytes(4, "big") + algorithm + bytes(8)
    wrapping = ConcatKDFHash(SHA256(), 32, other + (256).to_bytes(4, "big"))
    cek = secrets.token_bytes(32)
    numbers = ephemeral.public_key().public_numbers()
    header = {
        "alg": "ECDH-ES+A256KW",
        "enc": "A256GCM",
        # Trustee's order; not sorted, not what the client's library would write.
        "epk": {
            "crv": "P-256",
            "kty": "EC",
            "x": unpadded(numbers.x.to_bytes(32, "big")),
            "y": unpadded(numbers.y.to_bytes(32, "big")),
        },
        **header_fields,
    }
    # Blanks: the header is authenticated as it was sent, not as it would be rewritten.
    protected = unpadded(json.dumps(header).encode())
    iv = secrets.token_bytes(12)
    sealed = AESGCM(cek).encrypt(iv, secret, protected.encode())
    return {
        "protected": protected,
        "encrypted_key": unpadded(aes_key_wrap(wrapping.derive(shared), cek)),
        "iv": unpadded(iv),
        "ciphertext": unpadded(sealed[:-16]),
        "tag": unpadded(sealed[-16:]),
    }


@dataclass
class Session:
    nonce: str
    tee: str
    tee_pubkey: dict[str, str] | None = None


@dataclass
class Kbs:
    """State of the broker, and knobs that make it misbehave.

    Attributes:
        resources: Secrets by path.
        denied: Paths that the resource policy refuses.
        edit: Changes an answer on its way: (path, status, document) to the same.
        headers: More headers, by path.
        seen: (method, path, headers) of each call.
    """

    resources: dict[str, bytes] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    edit: Callable[[str, int, Any], tuple[int, Any]] = lambda _, status, body: (
        status,
        body,
    )
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)

    def auth(self, request: Any) -> tuple[int, Any, str | None]:
        if request.keys() != {"version", "tee", "extra-params"}:
            return 401, _error("malformed Request"), None
        if request["version"] != PROTOCOL_VERSION:
            return 401, _error("KBS Client Protocol Version Mismatch"), None
        session_id = secrets.token_hex(16)
        nonce = base64.b64encode(secrets.token_bytes(32)).decode()
        self.sessions[session_id] = Session(nonce, request["tee"])
        return 200, {"nonce": nonce, "extra-params": ""}, session_id

    def attest(
        self, attestation: Any, session_id: str | None
    ) -> tuple[int, Any, str | None]:
        session = self.sessions.get(session_id or "")
        if session is None:
            return 401, _error("cookie not found"), None
        runtime, evidence = attestation["runtime-data"], attestation["tee-evidence"]
        if runtime["nonce"] != session.nonce:
            return 401, _error("another nonce"), None
        want = report_data(
            session.nonce, runtime["tee-pubkey"], evidence["additional_evidence"]
        )
        # The quote of these tests is the report data alone.
        quote = base64.b64decode(evidence["primary_evidence"]["quote"])
        if quote != want:
            return 401, _error("report data does not match"), None
        session.tee_pubkey = runtime["tee-pubkey"]
        return 200, {"token": "header.claims.signature"}, session_id

    def resource(self, path: str, session_id: str | None) -> tuple[int, Any]:
        session = self.sessions.get(session_id or "")
        if session is None or session.tee_pubkey is None:
            return 401, _error("The session is not authorized")
        if path in self.denied:
            return 403, _error("Access denied by policy")
        if path not in self.resources:
            return 404, _error(f"resource {path} not found")
        return 200, encrypt_to(session.tee_pubkey, self.resources[path])


def _error(detail: str) -> dict[str, str]:
    kind = "https://github.com/confidential-containers/kbs/errors/Error"
    return {"type": kind, "detail": detail}


def handler_of(kbs: Kbs) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._note()
            path = self.path.removeprefix("/kbs/v0/resource/")
            self._answer(*kbs.resource(path, self._session()))

        def do_POST(self) -> None:
            self._note()
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            if self.path == "/kbs/v0/auth":
                self._answer(*kbs.auth(body))
            elif self.path == "/kbs/v0/attest":
                self._answer(*kbs.attest(body, self._session()))
            else:
                self._answer(404, _error("no such path"))

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def _note(self) -> None:
            kbs.seen.append((self.command, self.path, dict(self.headers)))

        def _session(self) -> str | None:
            name, _, value = self.headers.get("Cookie", "").partition("=")
            return value if name == "kbs-session-id" else None

        def _answer(
            self, status: int, document: Any, session_id: str | None = None
        ) -> None:
            status, document = kbs.edit(self.path, status, document)
            raw = isinstance(document, bytes)
            body = document if raw else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if session_id is not None:
                cookie = f"kbs-session-id={session_id}; Expires=Thu, 01 Jan 2099"
                self.send_header("Set-Cookie", cookie)
            for name, value in kbs.headers.get(self.path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve on a free port of the loopback; yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    # A client that hangs up is part of some tests.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    scheme = "http" if tls is None else "https"
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
