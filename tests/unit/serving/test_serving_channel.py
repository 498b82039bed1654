"""A replica over HTTP and in this process: the same bytes, checks and refusals."""

from __future__ import annotations

import asyncio
import gc
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.serving.asgi import Receive, Scope, Send
from bentoml_secure.serving.channel import Channel, HttpChannel, LocalChannel
from bentoml_secure.serving.exchange import RESPONSE_TYPE, Outgoing
from bentoml_secure.serving.http1 import ConnectionLostError
from bentoml_secure.serving.readers import (
    RequestReader,
    ResponseReader,
    TensorReader,
)
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.serving.runner_app import RunnerDoor
from bentoml_secure.session.bodies import SEALED_TYPE
from bentoml_secure.session.keys import Session
from bentoml_secure.session.responders import UnknownSessionError
from bentoml_secure.statements import parse_statement_envelope, verify_statement
from bentoml_secure.tensors import Array, commit
from tests.unit.serving.serving_parts import (
    MAX_AGE,
    Asgi,
    Ground,
    feed,
    pieces,
    scope_of,
)
from tests.unit.serving.serving_servers import (
    Handler,
    Server,
    answer,
    read_request,
    says,
    serving,
)

READERS = (TensorReader, RequestReader, ResponseReader)
ANSWER = b"content-type: " + RESPONSE_TYPE.encode()
SEALED = b"content-type: " + SEALED_TYPE.encode()


def through(door: RunnerDoor) -> Handler:
    """Return a handler that hands whole requests to a door, as uvicorn would."""

    async def handler(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            head, body = await read_request(reader)
            method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
            headers = [
                (name.lower(), value)
                for name, value in (
                    line.split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:]
                )
            ]
            caller = Asgi(pieces(body))
            await door(scope_of(method, path, headers), caller.receive, caller.send)
            lines = [b"HTTP/1.1 %d" % caller.status]
            lines += [b"%s: %s" % pair for pair in caller.sent[0]["headers"]]
            writer.write(b"\r\n".join([*lines, b"", caller.body]))
            await writer.drain()

    return handler


async def healthy(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"1"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"\n"})


@asynccontextmanager
async def over_http(
    core: RunnerCore, socket: Path | None = None
) -> AsyncIterator[tuple[HttpChannel, Server]]:
    handler = through(RunnerDoor(healthy, lambda: core))
    async with serving(handler, socket) as server:
        channel = HttpChannel(server.url, max_message_bytes=64 << 20)
        try:
            yield channel, server
        finally:
            await channel.close()


@asynccontextmanager
async def locally(
    core: RunnerCore, socket: Path | None = None
) -> AsyncIterator[tuple[LocalChannel, None]]:
    channel = LocalChannel(core)
    yield channel, None
    await channel.close()


async def ask(
    channel: Channel,
    ground: Ground,
    tensors: dict[str, Array],
    index: int = 0,
    session: Session | None = None,
) -> None:
    """One exchange, whose every part is what the segment and its keys make."""
    exchange, segment = ground.exchange(index), ground.plan.segments[index]
    if session is not None:
        exchange = ground.exchange(index, exchange_id=secrets.token_hex(16))
    received = await channel.exchange(
        exchange, Outgoing.of(tensors), segment.outputs, session
    )
    expected = ground.segments[index].run(tensors)
    for name, array in expected.items():
        np.testing.assert_array_equal(received.tensors[name], array, strict=True)
    assert received.commitments == commit(expected, exchange.output_salts)
    assert parse_statement_envelope(received.statement).payload


@pytest.mark.parametrize("way", [over_http, locally])
@pytest.mark.parametrize("batch", [1, 3, 20_000], ids=str)
async def test_an_exchange(ground: Ground, way: type, batch: int) -> None:
    async with way(ground.core(0)) as (channel, _):
        session = await ground.session(channel)
        await ask(channel, ground, {"x": feed(batch=batch)["x"]}, session=session)


@pytest.mark.parametrize("way", [over_http, locally])
@pytest.mark.parametrize("batch", [1, 3, 20_000], ids=str)
async def test_an_unsealed_exchange(plain: Ground, way: type, batch: int) -> None:
    async with way(plain.core(0)) as (channel, _):
        await plain.session(channel)
        await ask(channel, plain, {"x": feed(batch=batch)["x"]})


@pytest.mark.parametrize("way", [over_http, locally])
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
async def test_tensors_go_with_their_exchange(
    plain: Ground, way: type, sealed: bool
) -> None:
    async with way(plain.core(0)) as (channel, _):
        session = await plain.session(channel)
        tensors = {"x": feed(batch=20_000)["x"]}
        await ask(channel, plain, tensors, session=session if sealed else None)
        # Not when the collector comes by: whatever many requests read would wait.
        gc.collect()
        gc.disable()
        try:
            # Other tests' may be held by what was raised in them.
            before = {id(reader) for reader in readers()}
            await ask(channel, plain, tensors, session=session if sealed else None)
            left = [type(reader) for reader in readers() if id(reader) not in before]
        finally:
            gc.enable()
        assert left == []


def readers() -> list[object]:
    # By type: isinstance() would touch other libraries' lazy objects.
    return [o for o in gc.get_objects() if issubclass(type(o), READERS)]


@pytest.mark.parametrize("way", [over_http, locally])
async def test_unsealed_exchanges_are_served_where_a_scenario_says_so_only(
    ground: Ground, way: type
) -> None:
    async with way(ground.core(0)) as (channel, _):
        await ground.session(channel)
        with pytest.raises(UnavailableError, match="want a sealed body"):
            await ask(channel, ground, {"x": feed()["x"]})


@pytest.mark.parametrize("way", [over_http, locally])
async def test_unsealed_exchanges_want_evidence_that_was_made_lately(
    plain: Ground, way: type
) -> None:
    async with way(plain.core(0)) as (channel, _):
        with pytest.raises(UnavailableError, match="its evidence is too old"):
            await ask(channel, plain, {"x": feed()["x"]})
        await plain.session(channel)
        await ask(channel, plain, {"x": feed()["x"]})
        plain.clock.advance(seconds=MAX_AGE + 1)
        with pytest.raises(UnavailableError, match="its evidence is too old"):
            await ask(channel, plain, {"x": feed()["x"]})


@pytest.mark.parametrize("way", [over_http, locally])
async def test_a_session_ends_with_the_evidence_under_it(
    ground: Ground, way: type
) -> None:
    async with way(ground.core(0)) as (channel, _):
        session = await ground.session(channel)
        await ask(channel, ground, {"x": feed()["x"]}, session=session)
        ground.clock.advance(seconds=MAX_AGE + 1)
        with pytest.raises(UnknownSessionError, match="it ended with the evidence"):
            await ask(channel, ground, {"x": feed()["x"]}, session=session)


@pytest.mark.parametrize("way", [over_http, locally])
async def test_evidence_that_ages_out_while_the_segment_runs(
    ground: Ground, way: type
) -> None:
    def slow(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        ground.clock.advance(seconds=MAX_AGE + 1)
        return ground.segments[0].run_unchecked(tensors)

    async with way(ground.core(0, run=slow)) as (channel, _):
        session = await ground.session(channel)
        with pytest.raises(UnavailableError, match="aged out meanwhile"):
            await ask(channel, ground, {"x": feed()["x"]}, session=session)


@pytest.mark.parametrize("way", [over_http, locally])
async def test_an_exchange_is_answered_once(ground: Ground, way: type) -> None:
    outgoing = Outgoing.of({"x": feed()["x"]})
    outputs, exchange = ground.plan.segments[0].outputs, ground.exchange(0)
    async with way(ground.core(0)) as (channel, _):
        session = await ground.session(channel)
        await channel.exchange(exchange, outgoing, outputs, session)
        with pytest.raises(UnavailableError, match="was used before"):
            await channel.exchange(exchange, outgoing, outputs, session)


@pytest.mark.parametrize("way", [over_http, locally])
async def test_a_runner_that_was_restarted_has_no_session(
    ground: Ground, way: type
) -> None:
    async with way(ground.core(0)) as (channel, _):
        session = await ground.session(channel)
    async with way(ground.core(0)) as (channel, _):
        with pytest.raises(UnknownSessionError, match="none is held here"):
            await ask(channel, ground, {"x": feed()["x"]}, session=session)


async def test_exchanges_over_a_unix_socket_share_a_connection(
    ground: Ground, tmp_path: Path
) -> None:
    core = ground.core(0)
    async with over_http(core, tmp_path / "socket") as (channel, server):
        session = await ground.session(channel)
        for _ in range(3):
            await ask(channel, ground, {"x": feed()["x"]}, session=session)
        await channel.probe()
        assert server.connections == 1


@pytest.mark.parametrize("way", [over_http, locally])
async def test_the_statement_is_the_runners(ground: Ground, way: type) -> None:
    core, exchange = ground.core(0), ground.exchange(0)
    tensors = {"x": feed()["x"]}
    async with way(core) as (channel, _):
        received = await channel.exchange(
            exchange,
            Outgoing.of(tensors),
            ground.plan.segments[0].outputs,
            await ground.session(channel),
        )
    statement = verify_statement(
        parse_statement_envelope(received.statement), core.identity.keys.signing.public
    )
    assert statement.exchange_id == exchange.exchange_id
    assert statement.inputs == commit(tensors, exchange.input_salts)
    assert statement.outputs == received.commitments


@pytest.mark.parametrize("way", [over_http, locally])
async def test_a_session_shows_the_runners_keys(ground: Ground, way: type) -> None:
    core = ground.core(0)
    async with way(core) as (channel, _):
        session = await ground.session(channel)
        await channel.probe()
    assert session.peer.document == core.identity.keys.document
    held = core.responder.find(session.secrets.session_id).session
    assert held.peer.document == ground.own.keys.document


@pytest.mark.parametrize("way", [over_http, locally])
async def test_what_the_runner_refuses_is_unavailable_with_its_reason(
    ground: Ground, way: type
) -> None:
    outputs = ground.plan.segments[0].outputs
    outgoing = Outgoing.of({"x": feed()["x"]})
    core = ground.core(0)
    async with way(core) as (channel, _):
        session = await ground.session(channel)
        for exchange, why in (
            (ground.exchange(1, exchange_id="41" * 16), "exchange segment"),
            (
                ground.exchange(0, exchange_id="42" * 16, input_salts={}),
                "input_salts",
            ),
        ):
            with pytest.raises(UnavailableError, match=f"replica refused.*{why}"):
                await channel.exchange(exchange, outgoing, outputs, session)
        nonfinite = Outgoing.of({"x": np.full((1, 4), np.nan, np.float32)})
        with pytest.raises(UnavailableError, match=r"replica refused.*NaN or infinity"):
            await channel.exchange(ground.exchange(0), nonfinite, outputs, session)


@pytest.mark.parametrize("way", [over_http, locally])
async def test_outputs_are_held_against_the_plan_here(
    ground: Ground, way: type
) -> None:
    core = ground.core(0)
    wanted = ground.plan.segments[1].outputs
    salts = {"h": bytes(32)}
    async with way(core) as (channel, _):
        with pytest.raises(MalformedInputError, match=r"tensors: got \['h'\]"):
            await channel.exchange(
                ground.exchange(0, output_salts=salts),
                Outgoing.of({"x": feed()["x"]}),
                wanted,
                await ground.session(channel),
            )


@pytest.mark.parametrize(
    ("said", "kind", "why"),
    [
        (answer(b"{}", b"content-type: a/b"), MalformedInputError, "got 'a/b'"),
        (
            answer(b"", b"content-type: application/vnd.bentoml+pickle"),
            MalformedInputError,
            "pickle",
        ),
        (answer(b"no", status=b"503 No"), UnavailableError, "refused: 503 b'no'"),
        (answer(bytes(9000), status=b"500 No"), MalformedInputError, "at most 8192"),
        (answer(b"", status=b"307 Go"), UnavailableError, "refused: 307"),
        (
            answer(bytes(101), ANSWER),
            MalformedInputError,
            "got 101, want at most 100",
        ),
        (answer(bytes(3), ANSWER), MalformedInputError, "ended early"),
    ],
)
async def test_answers_that_are_none(
    ground: Ground, said: bytes, kind: type[Exception], why: str
) -> None:
    async with serving(says(said)) as server:
        channel = HttpChannel(server.url, max_message_bytes=100)
        with pytest.raises(kind, match=why):
            await ask(channel, ground, {"x": feed()["x"]})
        await channel.close()


@pytest.mark.parametrize(
    ("said", "kind", "why"),
    [
        (answer(b"", ANSWER), MalformedInputError, "want application/vnd"),
        (answer(b"no", status=b"503 No"), UnavailableError, "refused: 503 b'no'"),
        (answer(bytes(9000), status=b"500 No"), MalformedInputError, "content-type"),
        (answer(bytes(3), SEALED), MalformedInputError, "ended early"),
        (answer(bytes(24), SEALED), MalformedInputError, "ended early"),
        (answer(bytes(16) + b"\xff" * 9, SEALED), MalformedInputError, "announces"),
        (answer(bytes(30), SEALED), MalformedInputError, "sealed chunk"),
        (
            answer(bytes(27) + b"\x20" + bytes(32), SEALED),
            VerificationError,
            "chunk 0 is not authentic",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n" + SEALED + b"\r\n\r\n",
            MalformedInputError,
            "at most",
        ),
    ],
)
async def test_sealed_answers_that_are_none(
    ground: Ground, said: bytes, kind: type[Exception], why: str
) -> None:
    session = await ground.session(LocalChannel(ground.core(0)))
    async with serving(says(said)) as server:
        channel = HttpChannel(server.url, max_message_bytes=100)
        with pytest.raises(kind, match=why):
            await ask(channel, ground, {"x": feed()["x"]}, session=session)
        await channel.close()


async def test_handshakes_that_are_no_json_or_too_long() -> None:
    typed = b"content-type: application/json"
    long = b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n" + typed + b"\r\n\r\n"
    for said, why in ((answer(b"{", typed), "handshake is not"), (long, "at most")):
        async with serving(says(said)) as server:
            channel = HttpChannel(server.url, max_message_bytes=100)
            with pytest.raises(MalformedInputError, match=why):
                await channel.hello({})
            await channel.close()


async def test_a_handshake_travels_as_json() -> None:
    seen: list[bytes] = []

    async def handler(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        seen.extend(await read_request(reader))
        writer.write(answer(b"[]", b"content-type: application/json"))

    async with serving(handler) as server:
        channel = HttpChannel(server.url, max_message_bytes=100)
        assert await channel.finish({"nonce": "ab"}) == []
        await channel.close()
    assert seen[0].startswith(b"POST /bsec/v1/session/finish HTTP/1.1\r\n")
    assert json.loads(seen[1]) == {"nonce": "ab"}


async def test_a_replica_that_is_not_there(ground: Ground, tmp_path: Path) -> None:
    channel = HttpChannel(f"file://{tmp_path}/none", max_message_bytes=100)
    with pytest.raises(UnavailableError, match="none: FileNotFoundError"):
        await channel.probe()
    with pytest.raises(ConfigurationError, match="replica URL"):
        HttpChannel("unix:/socket", max_message_bytes=100)


async def test_a_replica_that_hangs_up(ground: Ground) -> None:
    async def handler(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await read_request(reader)

    async with serving(handler) as server:
        channel = HttpChannel(server.url, max_message_bytes=100)
        with pytest.raises(ConnectionLostError, match="before an answer"):
            await ask(channel, ground, {"x": feed()["x"]})
