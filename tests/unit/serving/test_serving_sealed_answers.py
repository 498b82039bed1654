"""What an entry seals: any answer of a handler's, and errors once there is a seal."""

from __future__ import annotations

import json

import pytest

from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.entry_door import EntryDoor
from bentoml_secure.session.bodies import SEALED_TYPE
from tests.unit.serving.serving_doors import Behind, ask_sealed
from tests.unit.serving.serving_parts import Ground


async def test_an_answer_with_its_receipt(
    door: EntryDoor, entry: Entry, ground: Ground
) -> None:
    reply, caller = await ask_sealed(door, ground)
    assert reply.status == 200
    receipt_id = reply.header("bsec-receipt-id")
    assert receipt_id is not None
    assert entry.store.bundle(receipt_id).receipt.payload
    # Nothing of it stands outside.
    assert set(caller.headers) == {b"content-type", b"content-length"}


async def test_what_the_entry_refuses_is_told_sealed(
    door: EntryDoor, ground: Ground
) -> None:
    reply, caller = await ask_sealed(door, ground, None, **{"bsec-nonce": "00"})
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
    reply, caller = await ask_sealed(door, ground)
    assert (reply.status, caller.status) == (500, 500)
    assert json.loads(reply.body)["error"]["code"] == "handler"
    assert "/ask answered with" in caplog.text


async def test_headers_that_may_stand_twice_are_joined(
    door: EntryDoor, behind: Behind, ground: Ground
) -> None:
    behind.headers = [*behind.headers, (b"vary", b"a"), (b"Vary", b"b")]
    reply, _ = await ask_sealed(door, ground)
    assert (reply.status, reply.header("vary")) == (200, "a, b")
