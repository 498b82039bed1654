"""An entry's door with an app behind it whose handler a test writes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from bentoml_secure.client.exchange import Reply
from bentoml_secure.client.hop import SealedHop
from bentoml_secure.serving.asgi import App, Message, Receive, Scope, Send
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.entry_door import EntryDoor
from bentoml_secure.serving.request import current
from bentoml_secure.session.bodies import SEALED_TYPE
from bentoml_secure.session.handshake import Initiator
from bentoml_secure.session.identity import caller_keys
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Session
from tests.unit.serving.serving_parts import (
    MAX_AGE,
    Asgi,
    Ground,
    feed,
    pieces,
    scope_of,
)

TOKEN = "t" * 32
NONCE = (b"bsec-nonce", b"ab" * 32)
SALT = (b"bsec-root-salt", b"cd" * 32)
SEALED = (b"content-type", SEALED_TYPE.encode())
ASK = b'{"features": 1}'

Handler = Callable[[Entry, bytes], Awaitable[bytes]]


async def infers(entry: Entry, request: bytes) -> bytes:
    """Do what a handler does: infer, and answer in JSON."""
    made = await entry.engine.infer(current(), feed())
    return json.dumps(made["y"].tolist()).encode()


class Behind:
    """The app that BentoML builds around a handler.

    Attributes:
        handler: The user's.
        status: Of its answer; None answers nothing.
        seen: Requests, with their bodies.
    """

    def __init__(self, handler: Handler = infers) -> None:
        self.handler = handler
        self.entry: Entry | None = None
        self.status: int | None = 200
        self.headers: list[tuple[bytes, bytes]] = [(b"content-type", b"text/json")]
        self.chunk = 7
        self.seen: list[tuple[Scope, bytes]] = []
        self.after: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            self.seen.append((scope, b""))
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.seen.append((scope, bytes(body)))
        assert self.entry is not None
        answer = await self.handler(self.entry, bytes(body))
        self.after.append(await receive())
        if self.status is None:
            return
        start = {"type": "http.response.start", "status": self.status}
        await send({**start, "headers": self.headers})
        await send({"type": "http.response.trailers"})
        for begin in range(0, len(answer), self.chunk):
            piece = memoryview(answer[begin : begin + self.chunk])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})


def door_of(
    behind: Behind, entry: Entry, *, token: str | None = TOKEN, cap: int = 1 << 20
) -> EntryDoor:
    behind.entry = entry
    return EntryDoor(behind, lambda: entry, ["/ask", "/v1/ask"], cap, lambda: token)


async def call(
    door: App,
    method: str,
    path: str,
    body: bytes = b"",
    *headers: tuple[bytes, bytes],
    query: bytes = b"",
    size: int = 1 << 20,
) -> Asgi:
    caller = Asgi(pieces(body, size))
    await door(scope_of(method, path, headers, query), caller.receive, caller.send)
    return caller


def error(caller: Asgi) -> tuple[int, str, str]:
    document = json.loads(caller.body)["error"]
    assert caller.headers[b"connection"] == b"close"
    return caller.status, document["code"], document["message"]


def stated(caller: Asgi) -> dict[bytes, bytes]:
    return {n: v for n, v in caller.headers.items() if n.startswith(b"bsec-")}


async def client_session(door: EntryDoor, ground: Ground) -> Session:
    """Open a client's session with the entry."""

    initiator = Initiator(
        caller_keys(ground.clock, timedelta(seconds=MAX_AGE)),
        max_age_seconds=MAX_AGE,
        clock=ground.clock,
    )
    said = await _post(door, "hello", initiator.hello())
    initiator.read_offer(
        said, lambda shown: judge(shown, ground.policy, now=ground.clock())
    )
    return initiator.conclude(await _post(door, "finish", initiator.finish(None)))


async def _post(door: EntryDoor, step: str, message: Any) -> Any:
    path = f"/bsec/v1/session/{step}"
    caller = await call(door, "POST", path, json.dumps(message).encode())
    assert caller.status == 200
    return json.loads(caller.body)


async def ask_sealed(
    door: EntryDoor, ground: Ground, session: Session | None = None, **headers: str
) -> tuple[Reply, Asgi]:
    """Ask sealed; return the answer that was inside, and what was around it."""
    session = session or await client_session(door, ground)
    hop = SealedHop(session, "/ask", max_body_bytes=1 << 20)
    typed = {"content-type": "application/json", **headers}
    body = hop.request(typed, ASK).body
    length = (b"content-length", str(len(body)).encode())
    caller = await call(door, "POST", "/ask", body, SEALED, length)
    around = tuple((n.decode(), v.decode()) for n, v in caller.headers.items())
    reply = Reply(status=caller.status, headers=around, body=caller.body)
    return hop.open(reply), caller
