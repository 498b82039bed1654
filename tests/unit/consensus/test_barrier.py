"""The barrier: when reveals begin, and who committed blindly."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from bentoml_secure.consensus.barrier import Barrier
from bentoml_secure.digest import Digest
from bentoml_secure.errors import ConfigurationError, VerificationError

LONG = 30.0


def commitment(name: str) -> Digest:
    return Digest(f"sha256-answer-v1:{name}")


def entering(barrier: Barrier, name: str, of: str | None = None) -> asyncio.Task[bool]:
    return asyncio.create_task(barrier.enter(name, commitment(of or name)))


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_nobody_reveals_before_a_quorum_has_committed() -> None:
    barrier = Barrier("abc", quorum=2, wait_seconds=LONG)
    first = entering(barrier, "a")
    await settle()
    assert not first.done()
    assert await barrier.enter("b", commitment("b")) is True
    assert await first is True


async def test_who_commits_later_is_not_blind_and_reveals_last() -> None:
    barrier = Barrier("abc", quorum=2, wait_seconds=LONG)
    first = entering(barrier, "a")
    # The longer commitments take, the longer those that were blind may take.
    await asyncio.sleep(0.2)
    await barrier.enter("b", commitment("b"))
    late = entering(barrier, "c")
    await settle()
    assert await first is True
    barrier.leave("a")
    await settle()
    assert not late.done()
    barrier.leave("b")
    assert await late is False


async def test_who_was_blind_and_never_reveals_costs_as_long_again() -> None:
    barrier = Barrier("abc", quorum=1, wait_seconds=LONG)
    await asyncio.sleep(0.1)
    started = time.monotonic()
    assert await barrier.enter("a", commitment("a")) is True
    assert await barrier.enter("b", commitment("b")) is False
    assert 0.05 <= time.monotonic() - started < 5


async def test_where_all_have_revealed_nobody_waits() -> None:
    barrier = Barrier("ab", quorum=1, wait_seconds=LONG)
    await barrier.enter("a", commitment("a"))
    barrier.leave("a")
    async with asyncio.timeout(1):
        assert await barrier.enter("b", commitment("b")) is False


async def test_a_copied_commitment_is_one_commitment() -> None:
    """A copy opens nothing sooner, and says whose it is."""
    barrier = Barrier("abc", quorum=2, wait_seconds=LONG)
    first, copy = entering(barrier, "a"), entering(barrier, "b", of="a")
    await settle()
    assert (first.done(), copy.done()) == (False, False)
    assert (barrier.twins("a"), barrier.twins("b")) == (("b",), ("a",))
    assert await barrier.enter("c", commitment("c")) is True
    assert (await first, await copy) == (True, True)
    assert barrier.twins("c") == ()


async def test_it_opens_when_its_time_is_over() -> None:
    barrier = Barrier("abc", quorum=3, wait_seconds=0.05)
    started = time.monotonic()
    assert await barrier.enter("a", commitment("a")) is True
    assert 0.04 <= time.monotonic() - started < 5
    assert await barrier.enter("b", commitment("b")) is False


async def test_its_time_runs_from_its_making() -> None:
    barrier = Barrier("ab", quorum=2, wait_seconds=0)
    await settle()
    # Nothing was shown so far: the first one cannot have seen anything.
    assert await barrier.enter("a", commitment("a")) is True
    assert await barrier.enter("b", commitment("b")) is False


async def test_it_opens_when_nobody_else_can_come() -> None:
    barrier = Barrier("abc", quorum=3, wait_seconds=LONG)
    first = entering(barrier, "a")
    barrier.leave("b")
    await settle()
    assert not first.done()
    barrier.leave("c")
    assert await first is True


async def test_a_spare_that_may_still_come_is_waited_for() -> None:
    barrier = Barrier(["a", "b", "spare"], quorum=2, wait_seconds=LONG)
    first = entering(barrier, "a")
    barrier.leave("b")
    await settle()
    assert not first.done()
    assert await barrier.enter("spare", commitment("spare")) is True
    assert await first is True


async def test_leaving_opens_nothing_while_others_may_come() -> None:
    barrier = Barrier("ab", quorum=2, wait_seconds=LONG)
    first = entering(barrier, "a")
    await settle()
    barrier.leave("a")
    barrier.leave("nobody")
    await settle()
    assert not first.done()
    assert await barrier.enter("b", commitment("b")) is True
    assert await first is True


async def test_all_leave_and_another_comes() -> None:
    barrier = Barrier("a", quorum=1, wait_seconds=LONG)
    barrier.leave("a")
    assert await barrier.enter("b", commitment("b")) is True
    assert await barrier.enter("c", commitment("c")) is False


async def test_a_replica_commits_once() -> None:
    barrier = Barrier("ab", quorum=1, wait_seconds=LONG)
    await barrier.enter("a", commitment("a"))
    with pytest.raises(VerificationError, match="commitment of a: a second one"):
        await barrier.enter("a", commitment("other"))


async def test_one_that_is_cancelled_holds_nobody_back() -> None:
    barrier = Barrier("abc", quorum=2, wait_seconds=LONG)
    first, second = entering(barrier, "a"), None
    await settle()
    first.cancel()
    second = entering(barrier, "b")
    assert await second is True


@pytest.mark.parametrize(
    ("quorum", "seconds", "why"),
    [
        (0, 1.0, "quorum: got 0, want 1 or more"),
        (1, -1.0, "got -1.0 seconds"),
        (1, math.nan, "got nan seconds"),
    ],
)
async def test_out_of_range(quorum: int, seconds: float, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Barrier("a", quorum=quorum, wait_seconds=seconds)
