"""A runner's door as an ASGI app: its list of paths, and that it never raises."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from bentoml_secure import metrics
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import ConfigurationError, UnavailableError
from bentoml_secure.serving.asgi import Message, Receive, Scope, Send
from bentoml_secure.serving.exchange import REQUEST_TYPE, RESPONSE_TYPE, Outgoing
from bentoml_secure.serving.readers import ResponseReader
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.serving.runner_app import RunnerDoor
from tests.unit.serving.serving_parts import (
    MAX_AGE,
    Asgi,
    Ground,
    feed,
    parse_shown,
    pieces,
    scope_of,
)

TYPED = (b"content-type", REQUEST_TYPE.encode())
TOO_OLD = "runner: its evidence is too old, or there is none"
PICKLE = b"application/vnd.bentoml+pickle"


class Behind:
    """What BentoML would be: keeps the scopes that it sees."""

    def __init__(self) -> None:
        self.seen: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"behind"})


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def ground(plain: Ground) -> Ground:
    """Unsealed here, so that each byte is a test's; sealed in test_serving_sealed."""
    return plain


@pytest.fixture
def core(ground: Ground) -> RunnerCore:
    return ground.opened(ground.core(0))


@pytest.fixture
def door(behind: Behind, core: RunnerCore) -> RunnerDoor:
    return RunnerDoor(behind, lambda: core, 1 << 20)


def body_of(ground: Ground, **changes: Any) -> bytes:
    outgoing = Outgoing.of({"x": feed()["x"]})
    data = b"".join(outgoing.data())
    return ground.exchange(0, **changes).encode() + outgoing.layout.header + data


def infer(body: bytes, *headers: tuple[bytes, bytes]) -> Scope:
    length = (b"content-length", str(len(body)).encode())
    return scope_of("POST", "/bsec/v1/infer", headers or (TYPED, length))


def error(caller: Asgi) -> tuple[int, str, str]:
    document = json.loads(caller.body)["error"]
    assert caller.headers[b"connection"] == b"close"
    return caller.status, document["code"], document["message"]


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
async def test_an_exchange(door: RunnerDoor, ground: Ground, size: int) -> None:
    body = body_of(ground)
    caller = Asgi(pieces(body, size))
    await door(infer(body), caller.receive, caller.send)
    assert caller.status == 200
    assert caller.headers[b"content-type"] == RESPONSE_TYPE.encode()
    assert int(caller.headers[b"content-length"]) == len(caller.body)
    assert [m.get("more_body", False) for m in caller.sent[1:]][-1] is False
    reader = ResponseReader(
        len(caller.body),
        ground.plan.segments[0].outputs,
        ground.exchange(0).output_salts,
    )
    reader.feed(caller.body)
    np.testing.assert_array_equal(
        reader.result()[0]["h"], ground.segments[0].run({"x": feed()["x"]})["h"]
    )


async def test_a_streamed_answer_ends_with_its_last_piece(ground: Ground) -> None:
    core = ground.opened(ground.core(0))
    door = RunnerDoor(Behind(), lambda: core, 1 << 24)
    outgoing = Outgoing.of({"x": np.zeros((40_000, 4), np.float32)})
    data = b"".join(outgoing.data())
    body = ground.exchange(0).encode() + outgoing.layout.header + data
    caller = Asgi(pieces(body))
    await door(infer(body), caller.receive, caller.send)
    more = [message["more_body"] for message in caller.sent[1:]]
    assert len(more) > 3
    assert more == [True] * (len(more) - 1) + [False]
    assert int(caller.headers[b"content-length"]) == len(caller.body)


@pytest.mark.parametrize(
    ("headers", "status", "code", "why"),
    [
        ([], 400, "malformed-input", "content-type: want"),
        ([(b"content-type", PICKLE)], 400, "malformed-input", "content-type: want"),
        ([TYPED, TYPED], 400, "malformed-input", "stands 2 times"),
        ([TYPED], 400, "malformed-input", "content-length: want one"),
        ([TYPED, (b"content-length", b"x")], 400, "malformed-input", "want a number"),
        ([TYPED, (b"content-length", b"2097152")], 413, "too-large", "want at most"),
    ],
)
async def test_an_exchange_with_other_headers_is_refused_unread(
    door: RunnerDoor,
    headers: list[tuple[bytes, bytes]],
    status: int,
    code: str,
    why: str,
) -> None:
    caller = Asgi(pieces(b"unread"))
    await door(scope_of("POST", "/bsec/v1/infer", headers), caller.receive, caller.send)
    assert error(caller)[:2] == (status, code)
    assert why in error(caller)[2]
    assert len(caller.incoming) == 1


async def test_an_exchange_of_another_plan_is_refused_before_its_tensors(
    door: RunnerDoor, ground: Ground
) -> None:
    body = body_of(ground, segment=ground.plan.segments[1].identity)
    caller = Asgi(pieces(body, len(body) - 40))
    await door(infer(body), caller.receive, caller.send)
    assert error(caller)[:2] == (400, "malformed-input")
    assert len(caller.incoming) == 1


async def test_a_body_that_ends_early_or_goes_on(
    door: RunnerDoor, ground: Ground
) -> None:
    body = body_of(ground)
    for changed, why in (
        (body[:-1], "ended early"),
        (body + b"!", "after the tensors"),
    ):
        caller = Asgi(pieces(changed))
        await door(infer(body), caller.receive, caller.send)
        assert error(caller)[0] == 400
        assert why in error(caller)[2]


async def test_a_caller_who_went_away_holds_nothing(
    door: RunnerDoor, ground: Ground
) -> None:
    body = body_of(ground)
    gone = Asgi(pieces(body, 10)[:3])
    await door(infer(body), gone.receive, gone.send)
    assert error(gone)[:2] == (400, "disconnected")
    # Its bytes are given back.
    caller = Asgi(pieces(body))
    await door(infer(body), caller.receive, caller.send)
    assert caller.status == 200


async def test_exchanges_beyond_the_bytes_of_one_wait_unread(
    core: RunnerCore, behind: Behind, ground: Ground
) -> None:
    body = body_of(ground)
    door = RunnerDoor(behind, lambda: core, len(body))
    go = asyncio.Event()
    slow, waiting = Asgi(pieces(body, len(body) // 2)), Asgi(pieces(body))

    async def receive() -> Message:
        if slow.incoming[0]["body"] != body[: len(body) // 2]:
            await go.wait()
        return await slow.receive()

    first = asyncio.create_task(door(infer(body), receive, slow.send))
    await asyncio.sleep(0)
    second = asyncio.create_task(door(infer(body), waiting.receive, waiting.send))
    await asyncio.sleep(0.02)
    assert len(waiting.incoming) == 1
    go.set()
    await asyncio.gather(first, second)
    assert (slow.status, waiting.status) == (200, 200)


async def test_evidence_over_the_callers_nonce(
    door: RunnerDoor, core: RunnerCore
) -> None:
    caller = Asgi(pieces(json.dumps({"nonce": "ab" * 32}).encode(), 7))
    await door(scope_of("POST", "/bsec/v1/attest"), caller.receive, caller.send)
    assert caller.status == 200
    document, record = parse_shown(json.loads(caller.body))
    assert document == core.identity.keys.document
    assert record.evidence.kind == "simulated"


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"", 400, "attest is not valid JSON"),
        (b"[]", 400, "want exactly nonce"),
        (b"{}", 400, "want exactly nonce"),
        (b'{"nonce": 1}', 400, "attest nonce: got 1"),
        (b'{"nonce": "ab"}', 400, "got 2 hex digits, want 64"),
        (b'{"nonce": "' + b"ab" * 32 + b'", "more": 1}', 400, "want exactly nonce"),
        (bytes(5000), 413, "want at most 4096"),
    ],
)
async def test_anything_but_a_nonce_is_refused(
    door: RunnerDoor, body: bytes, status: int, why: str
) -> None:
    caller = Asgi(pieces(body))
    await door(scope_of("POST", "/bsec/v1/attest"), caller.receive, caller.send)
    assert error(caller)[0] == status
    assert why in error(caller)[2]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
async def test_health_is_bentomls_own(
    door: RunnerDoor, behind: Behind, method: str, path: str
) -> None:
    caller = Asgi(pieces(b""))
    await door(scope_of(method, path), caller.receive, caller.send)
    assert caller.body == b"behind"
    assert behind.seen[0]["path"] == path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/livez"),
        ("DELETE", "/readyz"),
        ("GET", "/bsec/v1/infer"),
        ("GET", "/bsec/v1/attest"),
        ("GET", "/bsec/v1/reveal"),
        ("POST", "/metrics"),
        ("GET", "/"),
        ("GET", "/schema.json"),
        ("GET", "/docs.json"),
        ("POST", "/bsec_check"),
        ("POST", "/bsec/v1/infer/"),
        ("POST", "//bsec/v1/infer"),
        ("POST", "/livez/../run"),
        ("POST", "/" + "a" * 10_000),
    ],
)
async def test_nothing_else_is_there_and_nothing_behind_sees_it(
    door: RunnerDoor, behind: Behind, method: str, path: str
) -> None:
    caller = Asgi(pieces(b"\x80\x05."))
    scope = scope_of(method, path, [(b"content-type", PICKLE)])
    await door(scope, caller.receive, caller.send)
    assert error(caller)[:2] == (404, "not-found")
    assert len(error(caller)[2]) < 200
    assert behind.seen == []


async def test_metrics_of_this_process(door: RunnerDoor) -> None:
    metrics.count_dissent("door", "test")
    caller = Asgi(pieces(b""))
    await door(scope_of("GET", "/metrics"), caller.receive, caller.send)
    assert caller.status == 200
    assert caller.headers[b"content-type"].startswith(b"text/plain")
    assert int(caller.headers[b"content-length"]) == len(caller.body)
    line = b'bentoml_secure_replica_dissent_total{replica="test",segment="door"} '
    assert line in caller.body
    assert REGISTRY.get_sample_value(
        "bentoml_secure_replica_dissent_total", {"replica": "test", "segment": "door"}
    )


async def test_metrics_of_all_workers_of_a_host(
    door: RunnerDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics.count_dissent("door", "another")
    caller = Asgi(pieces(b""))
    await door(scope_of("GET", "/metrics"), caller.receive, caller.send)
    # Read from the folder, in which no worker has written: not this process's own.
    assert (caller.status, caller.body) == (200, b"")


async def test_a_lifespan_goes_on_and_a_websocket_does_not(
    door: RunnerDoor, behind: Behind
) -> None:
    caller = Asgi()
    await door({"type": "lifespan"}, caller.receive, caller.send)
    assert behind.seen == [{"type": "lifespan"}]
    await door({"type": "websocket", "path": "/"}, caller.receive, caller.send)
    assert caller.sent == [{"type": "websocket.close", "code": 1008}]
    assert len(behind.seen) == 1


async def test_before_the_runner_has_started() -> None:
    def core() -> RunnerCore:
        raise ConfigurationError("R has not started in this process")

    door = RunnerDoor(Behind(), core)
    for path, headers in (("infer", [TYPED]), ("attest", [])):
        caller = Asgi(pieces(b""))
        scope = scope_of("POST", f"/bsec/v1/{path}", headers)
        await door(scope, caller.receive, caller.send)
        assert error(caller)[0] == 400
        assert "has not started" in error(caller)[2]


async def test_an_error_of_the_segment_itself_is_not_told(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    def run(tensors: Any) -> Any:
        raise RuntimeError("weights at 0x7f")

    core = ground.opened(ground.core(0, run=run))
    door, body = RunnerDoor(Behind(), lambda: core), body_of(ground)
    caller = Asgi(pieces(body))
    await door(infer(body), caller.receive, caller.send)
    assert error(caller)[:2] == (500, "internal")
    assert "0x7f" not in error(caller)[2]
    assert "0x7f" in caplog.text


async def test_an_error_after_the_start_of_an_answer_says_nothing_more(
    door: RunnerDoor, ground: Ground
) -> None:
    body = body_of(ground)
    caller = Asgi(pieces(body))

    async def send(message: Message) -> None:
        await caller.send(message)
        if message["type"] == "http.response.body":
            raise OSError("broken pipe")

    await door(infer(body), caller.receive, send)
    assert [message["type"] for message in caller.sent] == [
        "http.response.start",
        "http.response.body",
    ]


async def test_a_body_that_does_not_come_gives_its_share_back(
    behind: Behind, core: RunnerCore, ground: Ground
) -> None:
    body = body_of(ground)
    door = RunnerDoor(behind, lambda: core, len(body), body_seconds=0.05)
    silent, served = Asgi(), Asgi(pieces(body))

    async def nothing_more() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    await door(infer(body), nothing_more, silent.send)
    status, code, message = error(silent)
    assert (status, code) == (503, "unavailable")
    assert "did not arrive within 0.05 s" in message
    await door(infer(body), served.receive, served.send)
    assert served.status == 200


async def test_without_a_session_in_force_nothing_is_served(
    behind: Behind, ground: Ground
) -> None:
    core = ground.core(0)
    # Evidence that anybody may ask for shows no entry whose the keys are.
    core.identity.attest(bytes(32), core.identity.keys)
    door = RunnerDoor(behind, lambda: core, 1 << 20)
    body = body_of(ground)

    async def refusal() -> tuple[int, str, str]:
        caller = Asgi(pieces(body))
        await door(infer(body), caller.receive, caller.send)
        return error(caller)

    assert await refusal() == (503, "unavailable", TOO_OLD)
    ground.opened(core)
    caller = Asgi(pieces(body))
    await door(infer(body), caller.receive, caller.send)
    assert caller.status == 200
    ground.clock.advance(seconds=MAX_AGE)
    assert await refusal() == (503, "unavailable", TOO_OLD)


async def test_plain_answers_are_signed_with_the_keys_that_the_entry_saw(
    ground: Ground,
) -> None:
    core = ground.opened(ground.core(0))
    seen = core.require_plain()
    ground.clock.advance(seconds=MAX_AGE - 1)
    core.identity._renew_at = ground.clock() - timedelta(seconds=1)
    assert core.identity.keys.digest != seen.digest
    assert core.require_plain().digest == seen.digest
    ground.opened(core)
    assert core.require_plain().digest == core.identity.keys.digest
    # Who asked before that knows the old ones, for as long as their evidence is good.
    known = ground.exchange(0, key_document=seen.digest)
    assert core.require_plain(known).digest == seen.digest
    ground.clock.advance(seconds=1)
    with pytest.raises(UnavailableError, match="its evidence is too old"):
        core.require_plain(known)
    other = ground.exchange(0, key_document=digest_json("another"))
    with pytest.raises(UnavailableError, match="its evidence is too old"):
        core.require_plain(other)
