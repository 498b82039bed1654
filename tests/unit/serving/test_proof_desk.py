"""The entry's desk for proofs, where provers do not do as they should."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.errors import UnavailableError
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.receipts.keeping import StoredOrder
from bentoml_secure.receipts.store import SqliteReceiptStore
from bentoml_secure.serving.proof_desk import ProofDesk
from bentoml_secure.session.keys import Session
from bentoml_secure.statements import format_time, utc_now
from bentoml_secure.testing.deployment import build_deployment
from bentoml_secure.testing.receipts import build_draft
from tests.unit.serving.serving_parts import Ground


class Absent:
    """A prover that nobody reaches."""

    async def ask(
        self,
        path: str,
        operation: str,
        message: bytes,
        session: Session,
        *,
        max_bytes: int,
    ) -> bytes:
        raise AssertionError("nobody has a session with it")

    async def hello(self, message: Any) -> Any:
        raise UnavailableError("absent: nobody listens")

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteReceiptStore]:
    with closing(SqliteReceiptStore(tmp_path / "receipts.sqlite")) as store:
        yield store


def owing(store: SqliteReceiptStore, *, seconds: float) -> str:
    """Store a receipt that owes two proofs for so long; return its id."""
    draft = build_draft(build_deployment())
    deadline = format_time(utc_now() + timedelta(seconds=seconds))
    orders = [
        StoredOrder(
            key=JobKey(draft.receipt.receipt_id, 0, segment),
            deadline=deadline,
            held_until=deadline,
            priority="critical",
            body=b"sealed",
        )
        for segment in range(2)
    ]
    store.put(draft.receipt, replace(draft.bundle(), attachments=()), orders)
    return draft.receipt.receipt_id


def desk_of(ground: Ground, store: SqliteReceiptStore) -> ProofDesk:
    absent: Any = Absent()
    provers = [(ground.peer(index, 0, absent), absent) for index in range(2)]
    unused: Any = None
    return ProofDesk(provers, unused, {}, unused, store)


async def test_who_waits_for_proofs_that_come_too_late_is_told(
    ground: Ground, store: SqliteReceiptStore
) -> None:
    """None owed any more is not the same as all attached."""
    receipt_id = owing(store, seconds=0.5)
    desk, ended = desk_of(ground, store), asyncio.Queue[tuple[str, bool]]()

    async def note(receipt_id: str, proven: bool) -> None:
        ended.put_nowait((receipt_id, proven))

    await desk.start(note)
    try:
        desk.wake(2)
        async with asyncio.timeout(60):
            assert await desk.wait(receipt_id, 50) is False
            assert await ended.get() == (receipt_id, False)
        assert store.owed(receipt_id) == 0
        # Nor is who asks later told anything else.
        assert await desk.wait(receipt_id, 5) is False
    finally:
        await desk.close()


async def test_who_waits_longer_than_he_likes(
    ground: Ground, store: SqliteReceiptStore
) -> None:
    receipt_id = owing(store, seconds=600)
    desk = desk_of(ground, store)
    assert await desk.wait(receipt_id, 0.1) is False
    assert store.owed(receipt_id) == 2
    assert await desk.wait("00" * 16, 5) is True
    await desk.close()


async def test_nothing_is_promised_without_provers(
    ground: Ground, store: SqliteReceiptStore
) -> None:
    desk = desk_of(ground, store)
    assert not desk.is_ready
    with pytest.raises(UnavailableError, match="no order key yet"):
        desk.order_keys(ground.scenario)
    with pytest.raises(UnavailableError, match="not attested"):
        await desk.execute(0, (1,), (2,))
    desk.wake(10_000)
    with pytest.raises(UnavailableError, match="10000 are owed"):
        desk.order_keys(ground.scenario)
    await desk.close()
