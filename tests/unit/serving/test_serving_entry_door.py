"""The entry's door as an ASGI app: what is recorded, refused, held back and told."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.opening import Opening
from bentoml_secure.receipts.receipt import parse_receipt
from bentoml_secure.receipts.store import SqliteReceiptStore
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.serving.asgi import Message
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.entry_door import EntryDoor
from bentoml_secure.serving.request import RequestContext, current
from tests.unit.serving.serving_doors import (
    ASK,
    NONCE,
    SALT,
    Behind,
    call,
    door_of,
    error,
    infers,
    stated,
)
from tests.unit.serving.serving_parts import (
    Asgi,
    Ground,
    feed,
    pieces,
    scope_of,
    with_late_replica,
)
from tests.unit.serving.test_serving_entry import trust


async def test_an_answer_carries_a_receipt_that_verifies(
    door: EntryDoor, behind: Behind, entry: Entry, ground: Ground
) -> None:
    caller = await call(door, "POST", "/ask", ASK, NONCE, SALT, size=4)
    assert caller.status == 200
    receipt_id = caller.headers[b"bsec-receipt-id"].decode()
    assert stated(caller) == {
        b"bsec-receipt-id": receipt_id.encode(),
        b"bsec-receipt-digest": caller.headers[b"bsec-receipt-digest"],
        b"bsec-scenario": ground.scenario.digest.encode(),
        b"bsec-simulated": b"true",
    }
    assert caller.headers[b"content-type"] == b"text/json"
    assert behind.seen[0][1] == ASK
    # After the body comes what the caller does next, here: it goes.
    assert behind.after == [{"type": "http.disconnect"}]

    got = await call(door, "GET", f"/bsec/v1/receipts/{receipt_id}", query=b"wait=5")
    assert got.status == 200
    bundle = parse_bundle(got.body)
    digest = caller.headers[b"bsec-receipt-digest"].decode()
    assert bundle.receipt.payload_digest == digest
    verdict = verify_bundle(
        bundle,
        trust(ground),
        now=ground.clock(),
        opening=Opening(salt=b"\xcd" * 32, request=ASK, response=caller.body),
    )
    assert verdict.state is State.ACCEPTED
    receipt = parse_receipt(bundle.receipt)
    assert (receipt.api, receipt.client_nonce) == ("/ask", "ab" * 32)


async def test_every_path_of_an_api_is_recorded_and_no_other(
    door: EntryDoor, behind: Behind
) -> None:
    assert stated(await call(door, "POST", "/v1/ask"))
    behind.handler = nothing
    for method, path in (("GET", "/ask"), ("POST", "/other"), ("POST", "/ask/")):
        caller = await call(door, method, path)
        assert (caller.status, stated(caller)) == (200, {})


async def nothing(entry: Entry, request: bytes) -> bytes:
    return b"{}"


async def test_the_scenario_is_the_one_asked_for_or_the_minimum(
    door: EntryDoor, ground: Ground
) -> None:
    for headers in ([], [(b"Bsec-Scenario", b"general")]):
        caller = await call(door, "POST", "/ask", ASK, *headers)
        assert caller.headers[b"bsec-scenario"] == ground.scenario.digest.encode()
    refused = await call(door, "POST", "/ask", ASK, (b"bsec-scenario", b"critical"))
    assert error(refused)[:2] == (400, "configuration")
    assert "want one of general" in error(refused)[2]


@pytest.mark.parametrize(
    "name", [b"bsec-nonce", b"bsec-root-salt", b"bsec-evidence-nonce"]
)
async def test_headers_of_another_form_are_refused_before_the_handler(
    door: EntryDoor, behind: Behind, name: bytes
) -> None:
    for headers in ([(name, b"zz" * 32)], [(name, b"ab" * 32)] * 2):
        caller = await call(door, "POST", "/ask", ASK, *headers)
        assert error(caller)[:2] == (400, "malformed-input")
    assert behind.seen == []


async def test_pickle_reaches_nothing_behind(door: EntryDoor, behind: Behind) -> None:
    pickle = (b"Content-Type", b"application/vnd.BentoML+Pickle")
    for path in ("/ask", "/other", "/bsec/v1/attest"):
        caller = await call(door, "POST", path, b"\x80\x05.", pickle)
        assert error(caller)[:2] == (400, "malformed-input")
    assert behind.seen == []


async def test_bodies_are_bounded_in_both_directions(
    behind: Behind, entry: Entry
) -> None:
    door = door_of(behind, entry, cap=100)
    announced = await call(door, "POST", "/ask", ASK, (b"content-length", b"101"))
    assert error(announced)[:2] == (413, "too-large")
    lied = await call(door, "POST", "/ask", bytes(101), (b"content-length", b"1"))
    assert error(lied)[:2] == (413, "too-large")
    assert behind.seen == []

    async def verbose(entry: Entry, request: bytes) -> bytes:
        await infers(entry, request)
        return bytes(101)

    behind.handler = verbose
    caller = await call(door, "POST", "/ask", ASK)
    assert error(caller)[:2] == (500, "handler")
    assert "over 100 bytes. Raise max_body_bytes" in error(caller)[2]

    async def just(entry: Entry, request: bytes) -> bytes:
        await infers(entry, request)
        return bytes(100)

    behind.handler = just
    assert (await call(door, "POST", "/ask", bytes(100))).status == 200


async def test_a_caller_who_goes_while_sending(door: EntryDoor, behind: Behind) -> None:
    caller = Asgi(pieces(ASK, 4)[:2])
    await door(scope_of("POST", "/ask"), caller.receive, caller.send)
    assert error(caller)[:2] == (400, "disconnected")
    assert behind.seen == []


async def test_nothing_leaves_before_the_receipt_is_stored(
    door: EntryDoor, entry: Entry
) -> None:
    entry.store.close()
    caller = await call(door, "POST", "/ask", ASK)
    assert error(caller)[:2] == (503, "unavailable")
    assert stated(caller) == {}


async def test_the_handler_cannot_speak_in_the_entrys_name(
    door: EntryDoor, behind: Behind
) -> None:
    behind.headers += [
        (b"Bsec-Receipt-Id", b"forged"),
        (b"bsec-simulated", b"false"),
        (b"BSEC-OTHER", b"forged"),
        (b"x-own", b"kept"),
    ]
    caller = await call(door, "POST", "/ask", ASK)
    assert caller.headers[b"x-own"] == b"kept"
    names = [name.lower() for name, _ in caller.sent[0]["headers"]]
    assert len(names) == len(set(names))
    assert b"bsec-other" not in names
    assert b"forged" not in dict(caller.sent[0]["headers"]).values()
    # Nor where there is no receipt.
    behind.status = 404
    refused = await call(door, "POST", "/ask", ASK)
    assert (refused.status, stated(refused)) == (404, {})


async def test_what_is_not_simulated_is_not_called_so(
    behind: Behind, ground: Ground, tmp_path: Path
) -> None:
    class Hardware(Entry):
        def is_simulated(self, context: RequestContext) -> bool:
            return False

    engine, store = await ground.attested(), SqliteReceiptStore(tmp_path / "another")
    entry = Hardware(
        ground.configuration,
        ground.own,
        engine,
        store,
        max_age_seconds=300,
        keep_salts=False,
        clock=ground.clock,
    )
    caller = await call(door_of(behind, entry), "POST", "/ask", ASK)
    assert caller.status == 200
    assert b"bsec-simulated" not in caller.headers
    await entry.close()


async def test_a_handlers_own_error_goes_out_without_a_receipt(
    door: EntryDoor, behind: Behind, entry: Entry
) -> None:
    behind.status = 422
    caller = await call(door, "POST", "/ask", ASK)
    assert (caller.status, stated(caller)) == (422, {})
    assert json.loads(caller.body)
    behind.status = None
    silent = await call(door, "POST", "/ask", ASK)
    assert (silent.status, silent.body, stated(silent)) == (500, b"", {})


async def test_a_handler_without_infer_is_an_error(
    door: EntryDoor, behind: Behind
) -> None:
    behind.handler = nothing
    caller = await call(door, "POST", "/ask", ASK)
    assert error(caller)[:2] == (500, "handler")
    assert "/ask answered without an infer" in error(caller)[2]


async def test_a_failed_infer_fails_the_request_though_the_handler_went_on(
    door: EntryDoor, behind: Behind
) -> None:
    async def swallows(entry: Entry, request: bytes) -> bytes:
        with pytest.raises(SecureError, match="'x' dtype"):
            await entry.engine.infer(current(), {**feed(), "x": np.zeros((2, 4))})
        return await infers(entry, request)

    behind.handler = swallows
    caller = await call(door, "POST", "/ask", ASK)
    assert error(caller)[:2] == (400, "malformed-input")
    assert "'x' dtype" in error(caller)[2]


async def test_no_quorum_is_told_with_its_tally(
    behind: Behind, ground: Ground, tmp_path: Path
) -> None:
    entry = ground.entry(ground.engine(), tmp_path / "another")
    caller = await call(door_of(behind, entry), "POST", "/ask", ASK)
    assert error(caller)[:2] == (503, "quorum-not-reached")
    assert len(json.loads(caller.body)["error"]["tally"]["absent"]) == 3
    await entry.close()


@pytest.mark.parametrize("ended", [0, 1])
async def test_an_infer_that_did_not_end_fails_the_request(
    door: EntryDoor, behind: Behind, ended: int
) -> None:
    """A receipt could not hold it: infers stand there in order, without a gap."""
    tasks: list[asyncio.Task[Any]] = []

    async def forgets(entry: Entry, request: bytes) -> bytes:
        context = current()
        task = asyncio.create_task(entry.engine.infer(context, feed()))
        tasks.append(task)
        await asyncio.sleep(0)
        if ended:
            task.cancel()
            await asyncio.wait([task])
        return await infers(entry, request)

    behind.handler = forgets
    caller = await call(door, "POST", "/ask", ASK)
    if tasks[0].done() and not tasks[0].cancelled():
        # It ended before the second one did: nothing is amiss.
        assert caller.status == 200
        return
    assert error(caller)[:2] == (500, "handler")
    assert "2 infers begun and 1 ended" in error(caller)[2]
    tasks[0].cancel()
    await asyncio.wait(tasks)


async def test_an_infer_that_timed_out_in_the_handler_fails_the_request(
    behind: Behind, ground: Ground, tmp_path: Path
) -> None:
    gate = threading.Event()
    engine = await with_late_replica(ground, gate)
    entry = ground.entry(engine, tmp_path / "another")

    async def impatient(entry: Entry, request: bytes) -> bytes:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await entry.engine.infer(current(), feed())
        return await infers(entry, request)

    behind.handler = impatient
    caller = await call(door_of(behind, entry), "POST", "/ask", ASK)
    assert error(caller)[:2] == (500, "handler")
    assert "2 infers begun and 1 ended" in error(caller)[2]
    gate.set()
    await entry.close()


async def test_an_error_of_the_handler_cancels_what_runs_and_is_not_told(
    behind: Behind, ground: Ground, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    engine = await with_late_replica(ground, gate)
    entry = ground.entry(engine, tmp_path / "another")
    contexts: list[Any] = []

    async def breaks(entry: Entry, request: bytes) -> bytes:
        await infers(entry, request)
        contexts.append(current())
        asyncio.get_running_loop().call_later(0.02, gate.set)
        raise ZeroDivisionError("secret")

    behind.handler = breaks
    caller = await call(door_of(behind, entry), "POST", "/ask", ASK)
    assert error(caller)[:2] == (500, "internal")
    assert b"secret" not in caller.body
    assert "secret" in caplog.text
    assert [pending.task.cancelled() for pending in contexts[0].late[:1]] == [True]
    await entry.close()


async def test_an_error_once_the_answer_has_begun_says_nothing_more(
    door: EntryDoor,
) -> None:
    caller = Asgi(pieces(ASK))

    async def send(message: Message) -> None:
        await caller.send(message)
        if message["type"] == "http.response.body":
            raise OSError("broken pipe")

    await door(scope_of("POST", "/ask"), caller.receive, send)
    assert len(caller.sent) == 2


async def test_requests_at_once_have_a_receipt_each(door: EntryDoor) -> None:
    callers = await asyncio.gather(*(call(door, "POST", "/ask", ASK) for _ in range(6)))
    assert len({c.headers[b"bsec-receipt-id"] for c in callers}) == 6
    assert len({c.body for c in callers}) == 1
