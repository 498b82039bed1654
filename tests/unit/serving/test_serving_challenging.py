"""Epochs of a running entry: what one failure costs the receipts beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from bentoml_secure.errors import UnavailableError
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.receipts.attachments import read_attachment
from bentoml_secure.receipts.epoch import EPOCH, EpochRecord
from bentoml_secure.receipts.keeping import StoredOrder
from bentoml_secure.receipts.store import SqliteReceiptStore
from bentoml_secure.scenario import Proving
from bentoml_secure.serving import challenging
from bentoml_secure.serving.challenging import Challenges
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import format_time
from bentoml_secure.testing.deployment import NOW, Deployment, build_deployment
from bentoml_secure.testing.receipts import Draft, build_draft


class Unsteady(SqliteReceiptStore):
    """A store that does not answer as often as it is told."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.silent = dict[str, int]()

    def attach(self, receipt_id: str, attachment: Envelope) -> None:
        """Refuse now and then."""
        if self.silent.get(receipt_id, 0):
            self.silent[receipt_id] -= 1
            raise UnavailableError("the file is locked")
        super().attach(receipt_id, attachment)


@dataclass
class Running:
    """Challenges over a store, and the time that they go by."""

    deployment: Deployment
    store: Unsteady
    now: timedelta = timedelta(0)
    due: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.challenges = Challenges(
            self.store,
            auditors=frozenset(),
            nonce_seconds=1,
            challenged=self.due.append,
            clock=lambda: NOW + self.now,
        )
        self.scenario = replace(
            self.deployment.scenario,
            proof=Proving.CHALLENGE,
            challenge_rate=1.0,
            epoch_seconds=60,
        )

    def serve(self, label: str, *, stored: bool = True) -> Draft:
        """Take a receipt into the open epoch, an order of it held."""
        draft = build_draft(self.deployment, label=label)
        joined = self.challenges.join(self.scenario, self.deployment.entry.keys)
        if stored:
            order = StoredOrder(
                key=JobKey(draft.receipt.receipt_id, 0, 0),
                deadline=None,
                held_until=format_time(NOW + timedelta(days=2)),
                priority="audit",
                body=b"sealed",
            )
            bundle = replace(draft.bundle(), attachments=())
            self.store.put(draft.receipt, bundle, (order,))
        digest = draft.bundle().receipt.payload_digest
        self.challenges.add(joined, digest, draft.receipt.receipt_id)
        return draft

    def records(self, draft: Draft) -> list[EpochRecord]:
        """Return what the store has attached to a receipt."""
        attached = self.store.bundle(draft.receipt.receipt_id).attachments
        said = [read_attachment(envelope) for envelope in attached]
        assert {each.kind for each in said} <= {EPOCH}
        return [EpochRecord.from_attachment(each) for each in said]

    async def until_attached(self, *drafts: Draft) -> None:
        """Let the epoch end, and wait until each has what it needs."""
        self.now += timedelta(seconds=61)
        async with asyncio.timeout(10):
            while not all(map(self.records, drafts)):  # noqa: ASYNC110 - nobody sets an event
                await asyncio.sleep(0.01)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(challenging, "_TURN_SECONDS", 0.01)
    store = Unsteady(tmp_path / "receipts.sqlite")
    yield Running(build_deployment(), store)
    store.close()


@pytest.fixture
async def task(running: Running) -> asyncio.Task[None]:
    return asyncio.create_task(running.challenges.run())


async def test_a_store_that_is_silent_for_a_while_costs_no_receipt_its_epoch(
    running: Running, task: asyncio.Task[None]
) -> None:
    drafts = [running.serve(label) for label in ("one", "two", "three")]
    running.store.silent = {drafts[1].receipt.receipt_id: 3}
    await running.until_attached(*drafts)
    for index, draft in enumerate(drafts):
        # Once, however often it was tried: a second one would reject the receipt.
        (record,) = running.records(draft)
        assert (record.index, record.challenged) == (index, True)
    assert running.store.count_orders() == 3
    # Told after it is attached.
    async with asyncio.timeout(10):
        while sum(running.due) < 3:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.01)
    assert sum(running.due) == 3
    task.cancel()


async def test_a_receipt_that_cannot_be_kept_costs_the_others_nothing(
    running: Running, task: asyncio.Task[None], caplog: pytest.LogCaptureFixture
) -> None:
    first = running.serve("one")
    lost = running.serve("lost", stored=False)
    last = running.serve("three")
    await running.until_attached(first, last)
    # In order of arrival, so it was tried before the last one.
    assert f"receipt {lost.receipt.receipt_id}: its epoch" in caplog.text
    assert running.store.count_orders() == 2
    task.cancel()


async def test_no_nonce_is_taken_once_receipts_show_the_secret(
    running: Running, task: asyncio.Task[None]
) -> None:
    drafts = [running.serve(label) for label in ("one", "two")]
    running.store.silent = {drafts[1].receipt.receipt_id: 1 << 30}
    await running.until_attached(drafts[0])
    assert running.challenges.roots() == []
    running.store.silent.clear()
    await running.until_attached(drafts[1])
    task.cancel()


async def test_a_turn_that_fails_does_not_end_the_others(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(now: str, *, most: int) -> int:
        raise RuntimeError("no such thing was foreseen")

    monkeypatch.setattr(running.store, "drop_held", broken)
    task = asyncio.create_task(running.challenges.run())
    draft = running.serve("one")
    await running.until_attached(draft)
    assert "no such thing was foreseen" in caplog.text
    task.cancel()


async def test_a_challenge_without_orders_is_told(
    running: Running, task: asyncio.Task[None], caplog: pytest.LogCaptureFixture
) -> None:
    draft = running.serve("one")
    running.store.drop_orders([draft.receipt.receipt_id])
    await running.until_attached(draft)
    assert "challenged, and no orders are held" in caplog.text
    task.cancel()
