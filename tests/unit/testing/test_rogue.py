"""The rogue host: bare HTTP that works, replicas that are honest until they are not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest

import bentoml_secure
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.serving.asgi import Receive, Scope, Send, send_json
from bentoml_secure.serving.channel import HttpChannel
from bentoml_secure.serving.exchange import Exchange, Outgoing
from bentoml_secure.session.handshake import Initiator
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Session
from bentoml_secure.split.plan import load_plan
from bentoml_secure.statements import utc_now
from bentoml_secure.testing.rogue.host import Host, load_service
from bentoml_secure.testing.rogue.wire import (
    Port,
    Reply,
    Request,
    call,
    json_reply,
    read_request,
)
from tests.harness import Project, free_port, sample

CAP_BYTES = 1 << 20
NAME = "RogueSegment0Replica1"


@pytest.fixture
def service(project: Project, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("BENTOML_SECURE_DEV_ROOT", str(project.dev_root))

    @bentoml_secure.service(
        plan=project.plan,
        replicas=3,
        scenarios=project.folder / "services" / "scenarios.toml",
        name="Rogue",
        max_message_bytes=CAP_BYTES,
    )
    class Rogue:
        @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
        async def ask(self) -> int:
            return 0

    return Rogue


@asynccontextmanager
async def hosted(service: Any, tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(service, free_port(), tmp_path / "marker")
    await host.start()
    try:
        yield host
    finally:
        await host.shut()


async def session_with(host: Host, channel: HttpChannel) -> Session:
    """Open the entry's session with the replica."""
    deployment = host.deployment
    own = deployment.identify(Role.ENTRY, deployment.name, None)
    initiator = Initiator(own.keys, max_age_seconds=300, clock=utc_now)
    offer = initiator.read_offer(
        await channel.hello(initiator.hello()),
        lambda shown: judge(shown, deployment.policy, now=utc_now()),
    )
    record = own.attest(offer.nonce, own.keys)
    return initiator.conclude(await channel.finish(initiator.finish(record)))


async def exchange_with(host: Host, project: Project) -> np.ndarray[Any, Any]:
    plan = load_plan(project.plan)
    segment = plan.segments[0]
    exchange = Exchange(
        request_id="0" * 32,
        nonce="0" * 64,
        infer_index=0,
        exchange_id=secrets.token_hex(16),
        plan_digest=plan.digest,
        segment=segment.identity,
        input_salts={spec.name: bytes(32) for spec in segment.inputs},
        output_salts={spec.name: bytes(32) for spec in segment.outputs},
    )
    channel = HttpChannel(host.url(NAME), max_message_bytes=CAP_BYTES)
    try:
        outgoing = Outgoing.of({"features": sample()})
        session = await session_with(host, channel)
        received = await channel.exchange(exchange, outgoing, segment.outputs, session)
    finally:
        await channel.close()
    (array,) = received.tensors.values()
    return array.copy()


async def control(host: Host, path: str, document: Any = None) -> Reply:
    body = json.dumps(document).encode()
    request = Request(method="POST", path=path, headers=(), body=body)
    return await host.controlled(request)


async def test_an_honest_replica_attests_and_answers(
    service: Any, project: Project, tmp_path: Path
) -> None:
    async with hosted(service, tmp_path) as host:
        channel = HttpChannel(host.url(NAME), max_message_bytes=CAP_BYTES)
        await channel.probe()
        session = await session_with(host, channel)
        await channel.close()
        assert session.peer.document.service == NAME
        once, again = [await exchange_with(host, project) for _ in range(2)]
        np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize(
    ("behaviour", "error", "reason"),
    [
        ("wrong-dtype", MalformedInputError, "got float64"),
        ("pickle", MalformedInputError, "bentoml.pickle"),
        ("closes-half-way", UnavailableError, "lost within"),
        ("dead", UnavailableError, "Connect"),
    ],
)
async def test_a_behaviour_lasts_until_it_is_switched_back(
    service: Any,
    project: Project,
    tmp_path: Path,
    behaviour: str,
    error: type[SecureError],
    reason: str,
) -> None:
    async with hosted(service, tmp_path) as host:
        wanted = {"replica": NAME, "infer": behaviour}
        assert (await control(host, "/behave", wanted)).status == 200
        with pytest.raises(error, match=reason):
            await exchange_with(host, project)
        assert (await control(host, "/behave", {"replica": NAME})).status == 200
        assert (await exchange_with(host, project)).shape == (2, 64)


@pytest.mark.parametrize(
    "wanted",
    [
        {"replica": "Nobody"},
        {"replica": NAME, "infer": "well"},
        {"replica": NAME, "attest": "well"},
        {},
    ],
)
async def test_control_refuses_what_it_does_not_know(
    service: Any, tmp_path: Path, wanted: dict[str, str]
) -> None:
    host = Host(service, free_port(), tmp_path / "marker")
    assert (await control(host, "/behave", wanted)).status == 404


async def test_control_counts_who_enters_the_trap(service: Any, tmp_path: Path) -> None:
    host = Host(service, free_port(), tmp_path / "marker")
    await control(host, "/trap/bsec/v1/infer")
    state = json.loads((await control(host, "/state")).body)
    assert state["trapped"] == 1
    assert len(state["replicas"]) == 6
    assert state["replicas"][NAME] == host.url(NAME)


@pytest.mark.parametrize("target", ["services.diagnosis", ":Diagnosis", ""])
def test_a_target_names_module_and_class(target: str) -> None:
    with pytest.raises(ConfigurationError, match="want module:Class"):
        load_service(target)


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_requests_are_read_one_after_the_other() -> None:
    one = b"POST /a?b=c HTTP/1.1\r\nContent-Length: 3\r\nX: y\r\n\r\nabc"
    reader = reader_of(one + b"GET /d HTTP/1.1\r\n\r\n")
    first = await read_request(reader)
    assert first == Request(
        method="POST",
        path="/a?b=c",
        headers=((b"content-length", b"3"), (b"x", b"y")),
        body=b"abc",
    )
    second = await read_request(reader)
    assert second == Request(method="GET", path="/d", headers=(), body=b"")
    assert await read_request(reader) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET",
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nabc",
    ],
)
async def test_what_is_no_request_ends_the_connection(data: bytes) -> None:
    assert await read_request(reader_of(data)) is None


async def test_an_app_is_called_with_the_request() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope)
        message = await receive()
        await send_json(send, 201, {"got": message["body"].decode()})

    request = Request(method="POST", path="/a?b=c", headers=(), body=b"abc")
    reply = await call(app, request)
    assert (reply.status, json.loads(reply.body)) == (201, {"got": "abc"})
    assert (seen["path"], seen["query_string"]) == ("/a", b"b=c")
    assert reply.encode().startswith(b"HTTP/1.1 201 Created\r\ncontent-type: ")


async def test_a_port_that_is_shut_drops_its_connections() -> None:
    async def serve(request: Request, writer: asyncio.StreamWriter) -> bool:
        writer.write(json_reply(request.path).encode())
        return True

    number = free_port()
    port = Port(serve, number)
    await port.open()
    await port.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    writer.write(b"GET /a HTTP/1.1\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    await port.shut()
    # Ends, whether by a reset or in order; a connection still open would time out.
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 5)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    with pytest.raises(ConnectionRefusedError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", number)
