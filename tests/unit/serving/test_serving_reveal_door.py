"""A runner's door for reveals: types, lengths, and what it says of refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bentoml_secure.serving.exchange import (
    COMMITTED_TYPE,
    MAX_REVEAL_BYTES,
    REQUEST_TYPE,
    RESPONSE_TYPE,
    REVEAL_TYPE,
    Opening,
    Outgoing,
    encode_reveal,
)
from bentoml_secure.serving.readers import ResponseReader
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.serving.runner_app import RunnerDoor
from bentoml_secure.session.bodies import SEALED_TYPE
from tests.unit.serving.serving_doors import Behind
from tests.unit.serving.serving_parts import (
    Asgi,
    Ground,
    feed,
    make_ground,
    pieces,
    scope_of,
)

ID = "33" * 16
Headers = list[tuple[bytes, bytes]]


@pytest.fixture
def ground(skips: Path) -> Ground:
    """Unsealed, so that each byte is a test's; sealed in test_serving_commitments."""
    return make_ground(skips / "plan", commit_reveal=True, sealed=False)


@pytest.fixture
def core(ground: Ground) -> RunnerCore:
    return ground.opened(ground.core(0))


@pytest.fixture
def door(core: RunnerCore) -> RunnerDoor:
    return RunnerDoor(Behind(), lambda: core, 1 << 20)


async def post(
    door: RunnerDoor, path: str, content_type: str, body: bytes, size: int = 1 << 20
) -> Asgi:
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    caller = Asgi(pieces(body, size))
    scope = scope_of("POST", f"/bsec/v1/{path}", headers)
    await door(scope, caller.receive, caller.send)
    return caller


async def committed(door: RunnerDoor, ground: Ground) -> Asgi:
    outgoing = Outgoing.of({"x": feed()["x"]})
    exchange = ground.exchange(0, exchange_id=ID, commit=True)
    body = exchange.encode() + outgoing.layout.header + b"".join(outgoing.data())
    return await post(door, "infer", REQUEST_TYPE, body)


def error(caller: Asgi) -> tuple[int, str]:
    return caller.status, json.loads(caller.body)["error"]["message"]


@pytest.mark.parametrize("size", [1, 1 << 20])
async def test_a_commitment_and_its_reveal(
    door: RunnerDoor, ground: Ground, size: int
) -> None:
    first = await committed(door, ground)
    assert (first.status, first.headers[b"content-type"]) == (
        200,
        COMMITTED_TYPE.encode(),
    )
    # A commitment gives away nothing but itself.
    assert json.loads(first.body).keys() == {"payload", "payloadType", "signatures"}
    second = await post(door, "reveal", REVEAL_TYPE, encode_reveal(ID), size)
    assert second.status == 200
    assert second.headers[b"content-type"] == RESPONSE_TYPE.encode()
    reader = ResponseReader(
        len(second.body),
        ground.plan.segments[0].outputs,
        ground.exchange(0).output_salts,
    )
    reader.feed(second.body)
    tensors, _, said = reader.result()
    assert tensors["h"].shape == (2, 4)
    assert len(Opening.from_json(said).nonce) == 16


async def test_a_second_reveal_is_refused(door: RunnerDoor, ground: Ground) -> None:
    await committed(door, ground)
    await post(door, "reveal", REVEAL_TYPE, encode_reveal(ID))
    again = await post(door, "reveal", REVEAL_TYPE, encode_reveal(ID))
    status, why = error(again)
    assert status == 502
    assert "revealed before" in why


@pytest.mark.parametrize("content_type", ["", REQUEST_TYPE, "application/json"])
async def test_another_type_is_refused(
    door: RunnerDoor, ground: Ground, content_type: str
) -> None:
    await committed(door, ground)
    refused = await post(door, "reveal", content_type, encode_reveal(ID))
    assert error(refused) == (400, f"content-type: want {SEALED_TYPE}")
    assert (await post(door, "reveal", REVEAL_TYPE, encode_reveal(ID))).status == 200


async def test_a_long_one_is_refused(door: RunnerDoor) -> None:
    body = bytes(MAX_REVEAL_BYTES + 1)
    status, why = error(await post(door, "reveal", REVEAL_TYPE, body))
    assert (status, why) == (413, "body: want at most 256 bytes")
    sealed = await post(door, "reveal", SEALED_TYPE, bytes(1 << 16))
    assert error(sealed)[0] == 413


async def test_unsealed_reveals_are_served_where_a_scenario_says_so_only(
    skips: Path,
) -> None:
    ground = make_ground(skips / "plan", commit_reveal=True)
    core = ground.opened(ground.core(0))
    door = RunnerDoor(Behind(), lambda: core, 1 << 20)
    status, why = error(await post(door, "reveal", REVEAL_TYPE, encode_reveal(ID)))
    assert status == 400
    assert "want a sealed body" in why
