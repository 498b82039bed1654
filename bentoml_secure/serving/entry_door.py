"""The entry's door: records secured requests, serves receipts and evidence.

    POST <any API of the service>     recorded; the answer carries a receipt. Sealed
                                      (sealed_request.py) or as it is
    POST /bsec/v1/session/hello       messages (a) and (b) of a handshake
    POST /bsec/v1/session/finish      messages (c) and (d)
    POST /bsec/v1/attest              key document and evidence over the caller's nonce
    GET  /bsec/v1/receipts/{id}       the bundle; ?wait=SECONDS for what is still due,
                                      with &proofs=1 for its proofs as well
    GET  /bsec/v1/receipts/{id}/salt  the root salt the entry drew (bearer token)
    POST /bsec/v1/receipts/{id}/challenge
                                      an auditor's signed wish to have it proven
    GET  /bsec/v1/epochs              signed roots that auditors' nonces are taken for
    POST /bsec/v1/epochs              an auditor's signed nonce over one of them

A recorded request goes: bounded body in, handler, bounded body held back, receipt
signed and stored, headers and body out. Any failed ``infer`` fails the request, even
if the handler went on; a handler that made none is an error. Never raises.
"""

from __future__ import annotations

import asyncio
import hmac
import math
from collections.abc import Callable, Collection, Mapping
from urllib.parse import parse_qs

from bentoml_secure import metrics
from bentoml_secure.digest import REQUEST_ID_BYTES, canonical_json, parse_hex
from bentoml_secure.errors import MalformedInputError, UnavailableError
from bentoml_secure.receipts.epoch_root import (
    MAX_DOCUMENT_BYTES,
    parse_epoch_envelope,
)
from bentoml_secure.serving.asgi import (
    App,
    HandlerError,
    Message,
    NotFoundError,
    Receive,
    Scope,
    Send,
    UnauthorisedError,
    bounded_length,
    describe,
    header,
    receive_body,
    receive_json,
    refuse_pickle,
    send_json,
)
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.request import (
    SCENARIO,
    RequestContext,
    draw_context,
    enter,
)
from bentoml_secure.serving.runner_app import (
    HANDSHAKE,
    PREFIX,
    attestation_document,
    receive_nonce,
)
from bentoml_secure.serving.sealed_request import SealedRequest
from bentoml_secure.session.bodies import SEALED_TYPE, sealed_cap
from bentoml_secure.session.keys import Session

RECEIPTS = f"{PREFIX}/receipts/"
EPOCHS = f"{PREFIX}/epochs"
NEXT_DRAW = b"bsec-next-draw"
MAX_WAIT_SECONDS = 30.0


class EntryDoor:
    """ASGI middleware in front of the user's BentoML app.

    Args:
        app: What BentoML built from the user's class.
        entry: Returns this process's entry, once it has started.
        apis: Paths of the user's APIs; exactly these are recorded.
        max_body_bytes: Cap on a request's and on a response's body.
        salt_token: Bearer token that may read root salts, or None: nobody may.
    """

    def __init__(
        self,
        app: App,
        entry: Callable[[], Entry],
        apis: Collection[str],
        max_body_bytes: int,
        salt_token: Callable[[], str | None],
    ) -> None:
        self._app = app
        self._entry = entry
        self._apis = frozenset(apis)
        self._max_body_bytes = max_body_bytes
        self._salt_token = salt_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def tracked(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            refuse_pickle(scope["headers"])
            await self._route(scope, receive, tracked)
        except Exception as error:  # noqa: BLE001 - the door must not raise
            status, document = describe(error)
            if not started:
                await send_json(send, status, document, {"connection": "close"})

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if path in self._apis and method == "POST":
            await self._call(scope, receive, send)
        elif path == f"{PREFIX}/attest" and method == "POST":
            entry = self._entry()
            nonce = await receive_nonce(receive)
            entry.responder.quotes.take()
            keys, record = await entry.evidence.attest(nonce, entry.clock())
            await send_json(send, 200, attestation_document(keys, record))
        elif (method, path) in HANDSHAKE:
            step = HANDSHAKE[method, path]
            await send_json(send, 200, await step(self._entry().responder, receive))
        elif path == EPOCHS and method in ("GET", "POST"):
            await self._epochs(method, receive, send)
        elif path.startswith(RECEIPTS) and method == "POST":
            await self._challenge(path.removeprefix(RECEIPTS), receive, send)
        elif path.startswith(RECEIPTS) and method == "GET":
            await self._receipt(scope, path.removeprefix(RECEIPTS), send)
        elif path.startswith(f"{PREFIX}/"):
            raise NotFoundError(f"{method} {path[:100]}: no such path")
        else:
            await self._app(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        announced = header(scope["headers"], b"content-length")
        if header(scope["headers"], b"content-type") == SEALED_TYPE:
            if announced is not None:
                bounded_length(announced, max_bytes=sealed_cap(self._max_body_bytes))
            await self._call_sealed(scope, receive, send)
            return
        if announced is not None:
            bounded_length(announced, max_bytes=self._max_body_bytes)
        request = await receive_body(receive, max_bytes=self._max_body_bytes)
        held = _HeldResponse(self._max_body_bytes)
        await self._record(scope, receive, request, None, held)
        await held.release(send)

    async def _call_sealed(self, scope: Scope, receive: Receive, send: Send) -> None:
        responder, most = self._entry().responder, self._max_body_bytes
        body = await receive_body(receive, max_bytes=sealed_cap(most))
        request = SealedRequest(responder, scope, body, max_bytes=most)
        held = _HeldResponse(most)
        try:
            opened = request.open()
            session = request.session
            await self._record(opened.scope, receive, opened.body, session, held)
        except Exception as error:
            if request.answering is None:
                raise
            # What is wrong with a sealed request is for its caller only.
            status, document = describe(error)
            held = _HeldResponse(most)
            await send_json(held.send, status, document)
        await request.answer(
            send, held.status, [*held.headers, *self._next_draw(request)], held.body
        )

    def _next_draw(self, request: SealedRequest) -> list[tuple[bytes, bytes]]:
        session = request.session
        signed = None if session is None else self._entry().draws.give(session)
        if signed is None:
            return []
        return [(NEXT_DRAW, canonical_json(signed.to_json()))]

    async def _record(
        self,
        scope: Scope,
        receive: Receive,
        request: bytes,
        session: Session | None,
        held: _HeldResponse,
    ) -> None:
        entry = self._entry()
        headers = scope["headers"]
        refuse_pickle(headers)
        scenario = entry.configuration.scenarios.select(header(headers, SCENARIO))
        context = draw_context(
            headers, scope["path"], scenario, entry.clock(), session, entry.draws
        )
        enter(context)
        try:
            await self._app(scope, _replay(request, receive), held.send)
            if context.failure is not None:
                raise context.failure
            if held.status >= 400 or held.status == 0:
                await context.abandon()
                held.state({})
                return
            _require_ended(context)
            with metrics.overhead("receipt"):
                receipt = await entry.issue(context, held.status, request, held.body)
        except BaseException:
            await context.abandon()
            raise
        if scenario.proof_wait:
            await _require_proven(entry, context)
        stated = {
            "bsec-receipt-id": context.request_id.hex(),
            "bsec-receipt-digest": receipt.payload_digest,
            "bsec-scenario": scenario.digest,
        }
        if entry.is_simulated(context):
            stated["bsec-simulated"] = "true"
        held.state(stated)

    async def _receipt(self, scope: Scope, rest: str, send: Send) -> None:
        receipt_id, _, leaf = rest.partition("/")
        parse_hex(receipt_id, what="receipt id", length=REQUEST_ID_BYTES)
        entry = self._entry()
        if leaf == "salt":
            self._authorise(scope)
            salt = entry.salts.get(receipt_id)
            if salt is None:
                raise NotFoundError("salt: the caller drew it, or it is too old")
            await send_json(send, 200, {"root_salt": salt.hex()})
            return
        if leaf:
            raise NotFoundError(f"receipt: no such path {leaf!r:.60}")
        proofs = _last(scope, "proofs", "0") == "1"
        await entry.wait_complete(receipt_id, _wait_seconds(scope), proofs=proofs)
        bundle = await asyncio.to_thread(entry.store.bundle, receipt_id)
        await send_json(send, 200, bundle.to_json())

    async def _challenge(self, rest: str, receive: Receive, send: Send) -> None:
        receipt_id, _, leaf = rest.partition("/")
        challenges = self._entry().challenges
        if leaf != "challenge" or challenges is None:
            raise NotFoundError(f"receipt: no such path {leaf!r:.60}")
        parse_hex(receipt_id, what="receipt id", length=REQUEST_ID_BYTES)
        said = await receive_json(
            receive, what="challenge", max_bytes=MAX_DOCUMENT_BYTES
        )
        envelope = parse_epoch_envelope(said, what="challenge")
        due = await challenges.challenge_again(receipt_id, envelope)
        await send_json(send, 200, {"due": due})

    async def _epochs(self, method: str, receive: Receive, send: Send) -> None:
        challenges = self._entry().challenges
        if challenges is None:
            raise NotFoundError("epochs: this deployment proves nothing")
        if method == "GET":
            roots = [root.to_json() for root in challenges.roots()]
            await send_json(send, 200, {"roots": roots})
            return
        said = await receive_json(
            receive, what="epoch nonce", max_bytes=MAX_DOCUMENT_BYTES
        )
        challenges.take_nonce(parse_epoch_envelope(said, what="epoch nonce"))
        await send_json(send, 200, {})

    def _authorise(self, scope: Scope) -> None:
        token = self._salt_token()
        given = header(scope["headers"], b"authorization") or ""
        if token is None or not hmac.compare_digest(
            given.encode(), f"Bearer {token}".encode()
        ):
            raise UnauthorisedError("salt: want the bearer token of this deployment")


async def _require_proven(entry: Entry, context: RequestContext) -> None:
    """Hold an answer back until its proofs are attached, as its scenario says."""
    seconds = context.scenario.proof_deadline_seconds
    if not await entry.wait_proven(context.request_id.hex(), seconds):
        raise UnavailableError(
            f"{context.api}: not proven within {seconds} s.",
            remedy="Ask again; the prover's log says why.",
        )


def _require_ended(context: RequestContext) -> None:
    if not context.next_index:
        raise HandlerError(
            f"{context.api} answered without an infer: nothing to sign.",
            remedy="Call self.secure.infer, or serve it from another service.",
        )
    if len(context.infers) != context.next_index:
        raise HandlerError(
            f"{context.api} answered with {context.next_index} infers begun and "
            f"{len(context.infers)} ended: a receipt would not hold them all.",
            remedy="Await every infer; after one that was cancelled, raise.",
        )


def _last(scope: Scope, name: str, default: str) -> str:
    query: str = scope["query_string"].decode("latin-1")
    return parse_qs(query).get(name, [default])[-1]


def _wait_seconds(scope: Scope) -> float:
    try:
        seconds = float(_last(scope, "wait", "0"))
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise MalformedInputError("wait: want a number of seconds from 0")
    return min(seconds, MAX_WAIT_SECONDS)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive that hands out a body already read, then goes on as before."""
    pending = [body]

    async def replayed() -> Message:
        if pending:
            whole = pending.pop()
            return {"type": "http.request", "body": whole, "more_body": False}
        return await receive()

    return replayed


class _HeldResponse:
    """Holds a response back until its receipt is signed."""

    def __init__(self, max_bytes: int) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._held = 0
        self._max_bytes = max_bytes

    async def send(self, message: Message) -> None:
        """Take in a message of the app behind."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            piece = bytes(message.get("body", b""))
            self._held += len(piece)
            if self._held > self._max_bytes:
                raise HandlerError(
                    f"answer: over {self._max_bytes} bytes.",
                    remedy="Raise max_body_bytes of the service.",
                )
            self._pieces.append(piece)

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self._pieces)

    def state(self, stated: Mapping[str, str]) -> None:
        """Set what the entry states about the response; the handler may not."""
        self.headers = [
            (name, value)
            for name, value in self.headers
            if not name.lower().startswith(b"bsec-")
        ]
        self.headers += [(n.encode(), v.encode()) for n, v in stated.items()]

    async def release(self, send: Send) -> None:
        """Send the response on."""
        start = {"type": "http.response.start", "status": self.status or 500}
        await send({**start, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})
