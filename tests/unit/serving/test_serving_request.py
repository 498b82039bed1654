"""What a request gathers: drawn or given nonces and salts, pinned evidence."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from bentoml_secure.digest import derive_salt
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)
from bentoml_secure.receipts.receipt import CALLER, ENTRY, derive_request_id
from bentoml_secure.serving.channel import LocalChannel
from bentoml_secure.serving.request import current, draw_context, enter
from bentoml_secure.testing.deployment import NOW
from tests.unit.serving.serving_parts import Ground, scenario

HEX = b"ab" * 32


def test_what_the_caller_sends_is_used_and_attributed() -> None:
    headers = [
        (b"Bsec-Nonce", HEX),
        (b"bsec-root-salt", b"cd" * 32),
        (b"bsec-evidence-nonce", b"ef" * 32),
    ]
    context = draw_context(headers, "/ask", scenario(), NOW)
    assert (context.nonce, context.nonce_drawn_by) == (b"\xab" * 32, CALLER)
    assert (context.root_salt, context.salt_drawn_by) == (b"\xcd" * 32, CALLER)
    assert context.evidence_nonce == b"\xef" * 32
    assert (context.api, context.started_at) == ("/ask", NOW)


def test_what_it_does_not_send_is_drawn_anew() -> None:
    first, second = (draw_context([], "/ask", scenario(), NOW) for _ in range(2))
    assert first.nonce_drawn_by == first.salt_drawn_by == ENTRY
    assert first.evidence_nonce is None
    drawn = {first.nonce, second.nonce, first.root_salt, second.root_salt}
    drawn |= {bytes.fromhex(context.draw.r) for context in (first, second)}
    assert len(drawn) == 6
    assert {len(value) for value in drawn} == {32}
    assert first.draw.asserted
    assert first.request_id != second.request_id
    assert first.request_id == derive_request_id(
        bytes.fromhex(first.draw.r), first.nonce
    )


@pytest.mark.parametrize(
    "name", [b"bsec-nonce", b"bsec-root-salt", b"bsec-evidence-nonce"]
)
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "got 0 hex digits, want 64"),
        (HEX[:-1], "got 63 hex digits"),
        (HEX + b"0", "got 65 hex digits"),
        (HEX.upper(), "lower-case hex"),
        (b"0x" + HEX[2:], "lower-case hex"),
        (b"\xe4" * 64, "not ASCII"),
    ],
)
def test_headers_of_another_form_are_refused(
    name: bytes, value: bytes, why: str
) -> None:
    with pytest.raises(MalformedInputError, match=f"header {name.decode()}: .*{why}"):
        draw_context([(name, value)], "/ask", scenario(), NOW)


def test_a_header_that_stands_twice_is_refused() -> None:
    with pytest.raises(MalformedInputError, match="bsec-nonce: stands 2 times"):
        draw_context([(b"bsec-nonce", HEX)] * 2, "/ask", scenario(), NOW)


def test_salts_are_derived_from_the_root_salt(ground: Ground) -> None:
    context = ground.context()
    assert context.salt(2, "tensor", "x") == derive_salt(
        context.root_salt,
        request_id=context.request_id,
        infer_index=2,
        purpose="tensor",
        name="x",
    )
    assert context.salt(2, "tensor", "x") != context.salt(3, "tensor", "x")


async def test_evidence_is_pinned_for_the_whole_request(ground: Ground) -> None:
    peer = ground.peer(0, 0, LocalChannel(ground.core(0)))
    context = ground.context()
    with pytest.raises(UnavailableError, match="not attested yet"):
        context.pin(peer)
    await peer.attest()
    first = context.pin(peer)
    await peer.attest()
    assert context.pin(peer) is first
    assert ground.context().pin(peer) is not first


def test_outside_a_request_there_is_no_context() -> None:
    with pytest.raises(
        ConfigurationError, match=r"outside a secured request\. Call it"
    ):
        contextvars.Context().run(current)


async def test_a_context_is_that_of_its_task_and_of_what_it_starts(
    ground: Ground,
) -> None:
    async def request(seed: int) -> bool:
        own = ground.context(seed)
        enter(own)
        await asyncio.sleep(0)
        begun = await asyncio.create_task(inner())
        return begun is own and current() is own

    async def inner() -> object:
        await asyncio.sleep(0)
        return current()

    assert await asyncio.gather(*(request(seed) for seed in range(1, 6))) == [True] * 5
