"""The entry's own paths: evidence, receipts, salts, and nothing else."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from bentoml_secure.receipts.opening import Opening
from bentoml_secure.receipts.receipt import parse_receipt
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.serving import entry_door
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.entry_door import EntryDoor
from tests.unit.serving.serving_doors import (
    ASK,
    SALT,
    TOKEN,
    Behind,
    call,
    door_of,
    error,
)
from tests.unit.serving.serving_parts import (
    Asgi,
    Ground,
    parse_shown,
    scope_of,
    with_late_replica,
)
from tests.unit.serving.test_serving_entry import trust


async def test_evidence_over_the_callers_nonce_goes_into_its_receipt(
    door: EntryDoor, entry: Entry
) -> None:
    nonce = b"ef" * 32
    body = json.dumps({"nonce": nonce.decode()}).encode()
    shown = await call(door, "POST", "/bsec/v1/attest", body)
    document, record = parse_shown(json.loads(shown.body))
    assert document == entry.identity.keys.document
    caller = await call(door, "POST", "/ask", ASK, (b"bsec-evidence-nonce", nonce))
    receipt_id = caller.headers[b"bsec-receipt-id"].decode()
    receipt = parse_receipt(entry.store.bundle(receipt_id).receipt)
    assert record.digest in {party.evidence for party in receipt.parties}


async def test_a_nonce_of_another_form_is_refused(door: EntryDoor) -> None:
    caller = await call(door, "POST", "/bsec/v1/attest", b'{"nonce": "ab"}')
    assert error(caller)[:2] == (400, "malformed-input")


# Receipts and salts


async def test_a_receipt_is_waited_for_as_long_as_asked(
    behind: Behind, ground: Ground, tmp_path: Path
) -> None:
    gate = threading.Event()
    entry = ground.entry(await with_late_replica(ground, gate), tmp_path / "another")
    door = door_of(behind, entry)
    caller = await call(door, "POST", "/ask", ASK)
    path = f"/bsec/v1/receipts/{caller.headers[b'bsec-receipt-id'].decode()}"
    assert json.loads((await call(door, "GET", path)).body)["attachments"] == []
    asyncio.get_running_loop().call_later(0.05, gate.set)
    whole = await call(door, "GET", path, query=b"wait=9")
    assert len(json.loads(whole.body)["attachments"]) == 1
    await entry.close()


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        (b"", 0),
        (b"wait=0", 0),
        (b"wait=2.5", 2.5),
        (b"wait=1&wait=3", 3),
        (b"wait=1e9", entry_door.MAX_WAIT_SECONDS),
        (b"wait=inf", entry_door.MAX_WAIT_SECONDS),
        (b"other=1", 0),
        (b"wait=", 0),
    ],
)
def test_how_long_a_caller_may_wait(query: bytes, seconds: float) -> None:
    assert entry_door._wait_seconds(scope_of("GET", "/", query=query)) == seconds


@pytest.mark.parametrize("query", [b"wait=-1", b"wait=nan", b"wait=x", b"wait=\xff"])
async def test_a_wait_that_is_no_time_is_refused(door: EntryDoor, query: bytes) -> None:
    path = "/bsec/v1/receipts/" + "ab" * 16
    caller = await call(door, "GET", path, query=query)
    assert error(caller)[:2] == (400, "malformed-input")
    assert "wait: want a number of seconds" in error(caller)[2]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("receipts/" + "ab" * 16, 400),
        ("receipts/zz", 400),
        ("receipts/", 400),
        ("receipts/" + "ab" * 16 + "/plan", 404),
        ("receipts/" + "ab" * 16 + "/salt/more", 404),
        ("receipts", 404),
        ("", 404),
        ("infer", 404),
        ("attest", 404),
    ],
)
async def test_paths_that_are_not_there(
    door: EntryDoor, behind: Behind, path: str, status: int
) -> None:
    caller = await call(door, "GET", f"/bsec/v1/{path}")
    assert error(caller)[0] == status
    assert behind.seen == []
    posted = await call(door, "POST", f"/bsec/v1/{path}")
    assert error(posted)[0] in (400, 404)
    assert behind.seen == []


async def test_the_salt_that_the_entry_drew_is_for_who_has_the_token(
    door: EntryDoor, ground: Ground, entry: Entry
) -> None:
    caller = await call(door, "POST", "/ask", ASK)
    receipt_id = caller.headers[b"bsec-receipt-id"].decode()
    path = f"/bsec/v1/receipts/{receipt_id}/salt"
    bearer = (b"authorization", f"Bearer {TOKEN}".encode())
    got = await call(door, "GET", path, b"", bearer)
    assert got.status == 200
    salt = bytes.fromhex(json.loads(got.body)["root_salt"])
    await entry.wait_complete(receipt_id, 5)
    verdict = verify_bundle(
        entry.store.bundle(receipt_id),
        trust(ground),
        now=ground.clock(),
        opening=Opening(salt=salt, request=ASK, response=caller.body),
    )
    assert verdict.state is State.ACCEPTED


@pytest.mark.parametrize(
    "given",
    [
        [],
        [(b"authorization", TOKEN.encode())],
        [(b"authorization", b"bearer " + TOKEN.encode())],
        [(b"authorization", b"Bearer " + TOKEN.encode()[:-1])],
        [(b"authorization", b"Bearer " + TOKEN.encode() + b"t")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic " + TOKEN.encode())],
    ],
)
async def test_nobody_else_gets_a_salt(
    door: EntryDoor, given: list[tuple[bytes, bytes]]
) -> None:
    caller = await call(door, "POST", "/ask", ASK)
    receipt_id = caller.headers[b"bsec-receipt-id"].decode()
    for path in (receipt_id, "00" * 16):
        refused = await call(door, "GET", f"/bsec/v1/receipts/{path}/salt", b"", *given)
        # The same, whether there is such a receipt or not.
        assert error(refused)[:2] == (401, "unauthorised")


async def test_a_token_that_stands_twice_is_refused(door: EntryDoor) -> None:
    bearer = (b"authorization", f"Bearer {TOKEN}".encode())
    path = "/bsec/v1/receipts/" + "00" * 16 + "/salt"
    assert error(await call(door, "GET", path, b"", bearer, bearer))[0] == 400


async def test_without_a_token_file_nobody_gets_a_salt(
    behind: Behind, entry: Entry
) -> None:
    door = door_of(behind, entry, token=None)
    path = "/bsec/v1/receipts/" + "00" * 16 + "/salt"
    for given in (b"Bearer None", b"Bearer "):
        refused = await call(door, "GET", path, b"", (b"authorization", given))
        assert error(refused)[0] == 401


async def test_a_salt_that_the_caller_drew_is_not_there(door: EntryDoor) -> None:
    caller = await call(door, "POST", "/ask", ASK, SALT)
    path = f"/bsec/v1/receipts/{caller.headers[b'bsec-receipt-id'].decode()}/salt"
    bearer = (b"authorization", f"Bearer {TOKEN}".encode())
    refused = await call(door, "GET", path, b"", bearer)
    assert error(refused)[:2] == (404, "not-found")
    assert "the caller drew it" in error(refused)[2]


async def test_lifespan_and_websockets_are_the_apps(
    door: EntryDoor, behind: Behind
) -> None:
    for kind in ("lifespan", "websocket"):
        caller = Asgi()
        await door({"type": kind}, caller.receive, caller.send)
    assert [scope["type"] for scope, _ in behind.seen] == ["lifespan", "websocket"]
