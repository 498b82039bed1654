"""Intel's and AMD's services on this machine: what they answer, in their formats."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

from bentoml_secure.attestation.endorsements.fetching import Response

INTEL = "/{tee}/certification/v4"
TCB_CHAIN = "TCB-Info-Issuer-Chain"
IDENTITY_CHAIN = "SGX-Enclave-Identity-Issuer-Chain"
CRL_CHAIN = "SGX-PCK-CRL-Issuer-Chain"


class Service:
    """A server of fixed answers; ``asked`` lists the paths that it was asked for."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answers: dict[str, Response] = {}
        self.asked: list[str] = []
        self.seconds_between_bytes = 0.0


@contextmanager
def serve() -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.asked.append(self.path)
            answer = service.answers.get(self.path, Response(status=404))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if not service.seconds_between_bytes:
                self.wfile.write(answer.body)
                return
            for byte in answer.body:
                self.wfile.write(bytes([byte]))
                time.sleep(service.seconds_between_bytes)

        def log_message(self, format: str, *args: object) -> None:
            return

        def handle(self) -> None:
            # A client that refuses to read on hangs up.
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service = Service(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(body: bytes, **headers: str) -> Response:
    return Response(
        status=200,
        headers={name.replace("_", "-"): text for name, text in headers.items()},
        body=body,
    )


def intel_answers(
    collateral: Mapping[str, Any], *, tee: str, fmspc: str, ca: str
) -> dict[str, Response]:
    """Return what a caching service answers that has this collateral."""
    base, sgx = INTEL.format(tee=tee), INTEL.format(tee="sgx")

    def signed(name: str, field: str) -> bytes:
        signature = collateral[f"{field}_signature"]
        return f'{{"{name}":{collateral[field]},"signature":"{signature}"}}'.encode()

    def chain(header: str, field: str) -> dict[str, str]:
        return {header: quote(collateral[field])}

    return {
        f"{base}/tcb?fmspc={fmspc}": Response(
            status=200,
            headers=chain(TCB_CHAIN, "tcb_info_issuer_chain"),
            body=signed("tcbInfo", "tcb_info"),
        ),
        f"{base}/qe/identity": Response(
            status=200,
            headers=chain(IDENTITY_CHAIN, "qe_identity_issuer_chain"),
            body=signed("enclaveIdentity", "qe_identity"),
        ),
        f"{sgx}/pckcrl?ca={ca}&encoding=der": Response(
            status=200,
            headers=chain(CRL_CHAIN, "pck_crl_issuer_chain"),
            body=bytes.fromhex(collateral["pck_crl"]),
        ),
        # A caching service writes this one in hex.
        f"{sgx}/rootcacrl": answer(collateral["root_ca_crl"].encode()),
    }
