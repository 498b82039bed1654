"""The client of the hop, against servers that keep the rules and that do not."""

from __future__ import annotations

import asyncio
import contextlib
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeAlias, cast

import pytest

from bentoml_secure.errors import MalformedInputError, UnavailableError
from bentoml_secure.serving import http1
from bentoml_secure.serving.http1 import (
    MAX_HEAD_BYTES,
    ConnectionLostError,
    Head,
    Http1Client,
)
from tests.unit.serving.serving_servers import (
    Got,
    Handler,
    Server,
    answer,
    get,
    read_request,
    says,
    serving,
)

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


@contextlib.asynccontextmanager
async def asked(
    handler: Handler, socket: Path | None = None
) -> AsyncIterator[tuple[Http1Client, Server]]:
    async with serving(handler, socket) as server:
        client = Http1Client(server.url)
        try:
            yield client, server
        finally:
            client.close()


async def test_a_request_over_tcp_is_exactly_these_bytes() -> None:
    seen: list[bytes] = []

    async def handler(reader: Reader, writer: Writer) -> None:
        seen.extend(await read_request(reader))
        writer.write(answer(b"done", b"content-type: text/plain"))

    async with asked(handler) as (client, server):
        got = Got()
        await client.request(
            "POST",
            "/there",
            got.on_head,
            content_type="a/b",
            head=b"first",
            body=[b"second", memoryview(b"third")],
            length=16,
        )
        host = server.url.removeprefix("http://").encode()
    assert seen[0] == (
        b"POST /there HTTP/1.1\r\nhost: " + host + b"\r\ncontent-type: a/b\r\n"
        b"content-length: 16\r\n\r\n"
    )
    assert seen[1] == b"firstsecondthird"
    assert got.head == Head(200, "text/plain", 4)
    assert got.body == b"done"


async def test_a_unix_socket_with_odd_characters_in_its_path(tmp_path: Path) -> None:
    socket = tmp_path / "a b"
    async with asked(says(answer(b"here")), socket) as (client, server):
        assert (await get(client)).body == b"here"
        quoted = Http1Client(f"file://{tmp_path}/a%20b")
        assert (await get(quoted)).body == b"here"
        quoted.close()
        assert server.connections == 2


async def test_nobody_there_is_unavailable_and_names_the_address(
    tmp_path: Path,
) -> None:
    for url in ("http://127.0.0.1:1", f"file://{tmp_path}/none"):
        with pytest.raises(UnavailableError, match=f"{url}: .*Error"):
            await get(Http1Client(url))


async def test_a_host_that_does_not_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http1, "CONNECT_SECONDS", 0.05)

    async def never(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    # The kernel decides how long a SYN waits; the loop is the seam.
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    with pytest.raises(UnavailableError, match="TimeoutError"):
        await get(Http1Client("http://192.0.2.1:80"))


async def test_https_speaks_tls_or_not_at_all() -> None:
    async def plain(reader: Reader, writer: Writer) -> None:
        writer.write(answer(b"in the clear"))
        await reader.read()

    async with serving(plain) as server:
        client = Http1Client(server.url.replace("http:", "https:"))
        with pytest.raises(UnavailableError, match="SSL"):
            await get(client)


# Connections that are used again


async def test_a_connection_is_used_again() -> None:
    async with asked(says(answer(b"1"), answer(b""), answer(b"3"))) as (client, server):
        bodies = [bytes((await get(client)).body) for _ in range(3)]
        assert bodies == [b"1", b"", b"3"]
        assert server.connections == 1


async def test_requests_at_once_get_a_connection_each_and_their_own_answers() -> None:
    async def echo(reader: Reader, writer: Writer) -> None:
        while True:
            head, _ = await read_request(reader)
            await asyncio.sleep(0.01)
            writer.write(answer(head.split(b" ")[1]))

    async with asked(echo) as (client, server):
        for _ in range(3):
            got = await asyncio.gather(*(get(client, f"/{n}") for n in range(5)))
            assert [g.body for g in got] == [b"/%d" % n for n in range(5)]
        assert server.connections == 5


async def test_no_more_are_kept_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "MAX_IDLE_CONNECTIONS", 2)

    async def slowly(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(0.02)
            writer.write(answer(b""))

    async with asked(slowly) as (client, server):
        await asyncio.gather(*(get(client) for _ in range(4)))
        await asyncio.gather(*(get(client) for _ in range(4)))
        assert server.connections == 6


async def test_an_idle_connection_is_given_up_before_the_server_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asked(says(answer(b"1"), answer(b"2"))) as (client, server):
        await get(client)
        monkeypatch.setattr(http1, "IDLE_SECONDS", 0.0)
        await get(client)
        assert server.connections == 2


async def test_connection_close_is_obeyed() -> None:
    async with asked(says(answer(b"1", b"connection: close"))) as (client, server):
        await get(client)
        await get(client)
        assert server.connections == 2


async def test_an_idle_connection_that_was_closed_is_not_used() -> None:
    async def once(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer(b"1"))

    async with asked(once) as (client, server):
        await get(client)
        await asyncio.sleep(0.02)
        assert (await get(client)).body == b"1"
        assert server.connections == 2


async def test_bytes_nobody_asked_for_end_an_idle_connection() -> None:
    async def eager(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer(b"1"))
        await writer.drain()
        await asyncio.sleep(0.02)
        # An answer to a request that was not made: it must not answer the next one.
        writer.write(answer(b"forged"))
        await reader.read()

    async with asked(eager) as (client, server):
        assert (await get(client)).body == b"1"
        await asyncio.sleep(0.05)
        assert (await get(client)).body == b"1"
        assert server.connections == 2


async def test_a_closed_client_holds_no_connection() -> None:
    ended = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer(b""))
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with asked(handler) as (client, _):
        await get(client)
        client.close()
        await asyncio.wait_for(ended.wait(), 1)


# Answers that end the connection


@pytest.mark.parametrize("at_once", [True, False], ids=["whole", "byte by byte"])
async def test_an_answer_in_pieces_of_any_size(at_once: bool) -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            whole = answer(b"x" * 40, b"content-type: a/b")
            if at_once:
                writer.write(whole)
            else:
                for index in range(len(whole)):
                    writer.write(whole[index : index + 1])
                    await writer.drain()
                    await asyncio.sleep(0)

    async with asked(handler) as (client, server):
        for _ in range(2):
            got = await get(client)
            assert got.head == Head(200, "a/b", 40)
            assert got.body == b"x" * 40
        assert server.connections == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer(b"12345") + b"6", "longer than its content-length"),
        (answer(b"") + answer(b""), "longer than its content-length"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * MAX_HEAD_BYTES, "head is over 16384 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nx: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
            "head is over 16384 bytes",
        ),
        (b"HTTP/1.1 102 Processing\r\n\r\n", "want HTTP/1.1"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "want HTTP/1.1"),
    ],
    ids=["extra byte", "second answer", "endless", "large", "informational", "ssh"],
)
async def test_an_answer_that_breaks_a_rule_ends_the_connection(
    said: bytes, why: str
) -> None:
    async with asked(says(said, said)) as (client, server):
        for count in (1, 2):
            with pytest.raises(MalformedInputError, match=why):
                await get(client)
            assert server.connections == count


async def test_a_head_just_within_the_bound_is_read() -> None:
    bare = answer(b"ok", b"x: ")
    padding = b"a" * (MAX_HEAD_BYTES - len(bare) + 2)
    async with asked(says(answer(b"ok", b"x: " + padding))) as (client, _):
        assert (await get(client)).body == b"ok"


async def test_a_refusal_by_the_caller_ends_the_connection() -> None:
    def refuse(head: Head) -> Callable[[memoryview], None]:
        raise MalformedInputError(f"refused {head.content_length}")

    async with asked(says(answer(b"12"), answer(b"12"))) as (client, server):
        with pytest.raises(MalformedInputError, match="refused 2"):
            await client.request("GET", "/", refuse)
        await get(client)
        assert server.connections == 2


async def test_nothing_is_kept_for_an_announced_length() -> None:
    """Who reads the body decides what is kept; the client allocates nothing."""

    def refuse(head: Head) -> Callable[[memoryview], None]:
        assert head.content_length == 1 << 40
        raise MalformedInputError("too long")

    said = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\nxx" % (1 << 40)
    async with asked(says(said)) as (client, _):
        tracemalloc.start()
        with pytest.raises(MalformedInputError, match="too long"):
            await client.request("GET", "/", refuse)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


async def hang_up(reader: Reader, writer: Writer) -> None:
    await read_request(reader)


async def test_lost_before_a_byte_of_the_answer_may_be_tried_again() -> None:
    async with asked(hang_up) as (client, _):
        with pytest.raises(ConnectionLostError, match="lost before an answer"):
            await get(client)


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 200 OK\r\n", answer(b"12345")[:-1]])
async def test_lost_within_the_answer_is_another_matter(said: bytes) -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(said)

    async with asked(handler) as (client, _):
        with pytest.raises(UnavailableError, match="lost within") as caught:
            await get(client)
        assert not isinstance(caught.value, ConnectionLostError)


async def test_lost_between_connecting_and_asking() -> None:
    async with asked(says(answer(b""))) as (client, _):
        connection = await client._connect()
        connection.abort()
        with pytest.raises(ConnectionLostError, match="before the request"):
            await connection.roundtrip(b"", (), Got().on_head)


# Large bodies


def chunks(count: int, sent: list[int]) -> Iterator[bytes]:
    for _ in range(count):
        sent.append(1 << 18)
        yield bytes(1 << 18)


async def test_a_large_body_waits_for_who_reads_it() -> None:
    go = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        await go.wait()
        _, body = await read_request(reader)
        writer.write(answer(b"%d" % len(body)))

    sent: list[int] = []
    async with asked(handler) as (client, _):
        got = Got()
        task = asyncio.create_task(
            client.request(
                "POST", "/", got.on_head, body=chunks(64, sent), length=16 << 20
            )
        )
        await asyncio.sleep(0.1)
        # What the kernel's buffers take, and our own: not the body.
        assert sum(sent) < 14 << 20
        go.set()
        await asyncio.wait_for(task, 10)
    assert got.body == b"%d" % (16 << 20)


async def test_a_piece_has_gone_out_when_the_next_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[asyncio.Transport] = []
    connect = http1._Connection.connection_made

    def note(self: http1._Connection, transport: asyncio.BaseTransport) -> None:
        made.append(cast(asyncio.Transport, transport))
        connect(self, transport)

    monkeypatch.setattr(http1._Connection, "connection_made", note)
    seen: list[bytes] = []

    async def handler(reader: Reader, writer: Writer) -> None:
        await asyncio.sleep(0.05)
        seen.append((await read_request(reader))[1])
        writer.write(answer(b""))

    unsent: list[int] = []

    def pieces() -> Iterator[memoryview]:
        buffer = bytearray(1 << 20)
        for letter in b"abcd":
            buffer[:] = bytes([letter]) * len(buffer)
            yield memoryview(buffer)
            unsent.append(made[0].get_write_buffer_size())

    async with asked(handler, tmp_path / "s") as (client, _):
        await client.request("POST", "/", Got().on_head, body=pieces(), length=4 << 20)
    assert unsent == [0] * 4
    assert seen == [b"".join(bytes([letter]) * (1 << 20) for letter in b"abcd")]


async def test_an_early_refusal_stops_the_body_and_is_heard() -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"too large", status=b"413 Content Too Large"))
        await writer.drain()
        # Goes on reading, as a server does that means its answer to arrive.
        await reader.read()

    sent: list[int] = []
    async with asked(handler) as (client, server):
        got = Got()
        await client.request(
            "POST", "/", got.on_head, body=chunks(256, sent), length=64 << 20
        )
        assert got.head == Head(413, "", 9)
        assert got.body == b"too large"
        assert sum(sent) < 64 << 20
        # The rest of the body never went out: nothing else may.
        with contextlib.suppress(UnavailableError):
            await get(client)
        assert server.connections == 2


async def test_a_server_that_goes_while_the_body_is_sent() -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async with asked(handler) as (client, _):
        with pytest.raises(ConnectionLostError, match="lost before an answer"):
            await client.request(
                "POST", "/", Got().on_head, body=chunks(64, []), length=16 << 20
            )


async def test_a_cancelled_request_drops_its_connection() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        begun.set()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        ended.set()

    async with asked(handler) as (client, server):
        task = asyncio.create_task(get(client))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 1)
        # Its answer must not become that of another request.
        begun.clear()
        other = asyncio.create_task(get(client))
        await begun.wait()
        assert server.connections == 2
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other


async def test_a_body_that_cannot_be_read_drops_its_connection() -> None:
    def broken() -> Iterator[bytes]:
        yield b"1"
        raise MalformedInputError("the body broke")

    async with asked(says(answer(b""))) as (client, server):
        with pytest.raises(MalformedInputError, match="the body broke"):
            await client.request("POST", "/", Got().on_head, body=broken(), length=2)
        await get(client)
        assert server.connections == 2


async def test_a_small_request_takes_no_time_of_its_own() -> None:
    """No Nagle delay, no thread, no sleep: 200 round trips in well under a second."""

    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            writer.write(answer(b"pong"))

    async with asked(handler) as (client, _):
        started = time.perf_counter()
        for _ in range(200):
            await get(client)
        assert time.perf_counter() - started < 4.0


async def test_a_connection_that_was_never_made() -> None:
    connection = http1._Connection()
    connection.abort()
    with pytest.raises(ConnectionLostError, match="before the request"):
        await connection.roundtrip(b"", (), Got().on_head)
