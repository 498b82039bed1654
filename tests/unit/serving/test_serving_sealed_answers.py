"""What an entry seals: any answer of a handler's, and errors once there is a seal."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.client.exchange import Reply
from bentoml_secure.client.hop import SealedHop
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.entry_door import EntryDoor
from bentoml_secure.session.bodies import SEALED_TYPE
from bentoml_secure.session.handshake import Initiator
from bentoml_secure.session.identity import caller_keys
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Session
from tests.unit.serving.serving_doors import ASK, Behind, call
from tests.unit.serving.serving_parts import MAX_AGE, Asgi, Ground

SEALED = (b"content-type", SEALED_TYPE.encode())


async def opened(door: EntryDoor, ground: Ground) -> Session:
    """Open a client's session with the entry."""

    initiator = Initiator(
        caller_keys(ground.clock, timedelta(seconds=MAX_AGE)),
        max_age_seconds=MAX_AGE,
        clock=ground.clock,
    )
    said = await post(door, "hello", initiator.hello())
    initiator.read_offer(
        said, lambda shown: judge(shown, ground.policy, now=ground.clock())
    )
    return initiator.conclude(await post(door, "finish", initiator.finish(None)))


async def post(door: EntryDoor, step: str, message: Any) -> Any:
    path = f"/bsec/v1/session/{step}"
    caller = await call(door, "POST", path, json.dumps(message).encode())
    assert caller.status == 200
    return json.loads(caller.body)


async def ask(door: EntryDoor, ground: Ground, **headers: str) -> tuple[Reply, Asgi]:
    """Ask sealed; return the answer that was inside, and what was around it."""
    hop = SealedHop(await opened(door, ground), "/ask", max_body_bytes=1 << 20)
    typed = {"content-type": "application/json", **headers}
    body = hop.request(typed, ASK).body
    length = (b"content-length", str(len(body)).encode())
    caller = await call(door, "POST", "/ask", body, SEALED, length)
    around = tuple((n.decode(), v.decode()) for n, v in caller.headers.items())
    reply = Reply(status=caller.status, headers=around, body=caller.body)
    return hop.open(reply), caller


async def test_an_answer_with_its_receipt(
    door: EntryDoor, entry: Entry, ground: Ground
) -> None:
    reply, caller = await ask(door, ground)
    assert reply.status == 200
    receipt_id = reply.header("bsec-receipt-id")
    assert receipt_id is not None
    assert entry.store.bundle(receipt_id).receipt.payload
    # Nothing of it stands outside.
    assert set(caller.headers) == {b"content-type", b"content-length"}


async def test_what_the_entry_refuses_is_told_sealed(
    door: EntryDoor, ground: Ground
) -> None:
    reply, caller = await ask(door, ground, **{"bsec-nonce": "00"})
    assert (reply.status, caller.status) == (400, 400)
    assert b"got 2 hex digits, want 64" in reply.body
    assert caller.headers[b"content-type"] == SEALED_TYPE.encode()


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-name", "\N{BUG}".encode())],
        [(b"x name", b"1")],
        [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")],
        [(b"content-encoding", b"gzip")],
    ],
)
async def test_headers_that_cannot_be_sealed_are_the_handlers_error(
    door: EntryDoor,
    behind: Behind,
    ground: Ground,
    headers: list[tuple[bytes, bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    behind.headers = [*behind.headers, *headers]
    reply, caller = await ask(door, ground)
    assert (reply.status, caller.status) == (500, 500)
    assert json.loads(reply.body)["error"]["code"] == "handler"
    assert "/ask answered with" in caplog.text


async def test_headers_that_may_stand_twice_are_joined(
    door: EntryDoor, behind: Behind, ground: Ground
) -> None:
    behind.headers = [*behind.headers, (b"vary", b"a"), (b"Vary", b"b")]
    reply, _ = await ask(door, ground)
    assert (reply.status, reply.header("vary")) == (200, "a, b")
