"""The bytes that a runner has in hand: bounded, in turn, and always given back."""

from __future__ import annotations

import asyncio

import pytest

from bentoml_secure.serving.budget import ByteBudget


async def hold(
    budget: ByteBudget, count: int, name: str, log: list[str], until: asyncio.Event
) -> None:
    async with budget.hold(count):
        log.append(name)
        await until.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_asks_for_more_than_is_free_waits_in_turn() -> None:
    budget, log = ByteBudget(10), list[str]()
    ends = [asyncio.Event() for _ in range(4)]
    tasks = [
        asyncio.create_task(hold(budget, count, name, log, end))
        for (count, name), end in zip(
            [(6, "a"), (3, "b"), (8, "c"), (1, "d")], ends, strict=True
        )
    ]
    await settle()
    assert log == ["a", "b"]
    ends[1].set()
    await settle()
    # One byte would fit, but it is not its turn: the large one would starve.
    assert log == ["a", "b"]
    ends[0].set()
    await settle()
    assert log == ["a", "b", "c", "d"]
    ends[2].set()
    ends[3].set()
    await asyncio.gather(*tasks)


async def test_bytes_come_back_whatever_happened() -> None:
    budget = ByteBudget(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="inside"):
            async with budget.hold(10):
                raise ValueError("inside")


async def test_who_stops_waiting_is_passed_over() -> None:
    budget, log = ByteBudget(10), list[str]()
    first, rest = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(hold(budget, 10, "first", log, first))]
    tasks += [asyncio.create_task(hold(budget, 5, name, log, rest)) for name in "abc"]
    await settle()
    tasks[1].cancel()
    tasks[2].cancel()
    first.set()
    await settle()
    assert log == ["first", "c"]
    rest.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in done[1:3]] == [asyncio.CancelledError] * 2
    async with asyncio.timeout(1), budget.hold(10):
        pass


async def test_who_is_cancelled_just_as_its_turn_comes_hands_it_back() -> None:
    budget, log = ByteBudget(10), list[str]()
    rest = asyncio.Event()
    async with budget.hold(10):
        waiting = asyncio.create_task(hold(budget, 10, "waiting", log, rest))
        behind = asyncio.create_task(hold(budget, 10, "behind", log, rest))
        await settle()
    # Its turn was given away just now; its next step would take it.
    waiting.cancel()
    await settle()
    assert log == ["behind"]
    rest.set()
    await asyncio.wait_for(behind, 1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(1), budget.hold(10):
        pass
