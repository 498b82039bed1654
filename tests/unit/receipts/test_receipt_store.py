from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.receipts import store as module
from bentoml_secure.receipts.bundle import MAX_BUNDLE_ATTACHMENTS, Bundle
from bentoml_secure.receipts.keeping import DueOrder, StoredOrder
from bentoml_secure.receipts.store import SqliteReceiptStore
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Draft, build_draft


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receipts.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteReceiptStore]:
    opened = SqliteReceiptStore(path)
    yield opened
    opened.close()


def alone(bundle: Bundle) -> Bundle:
    return replace(bundle, attachments=())


def contents(bundle: Bundle) -> tuple[object, ...]:
    """Documents without their order: the receipt sorts parties by name."""
    return (
        bundle.receipt,
        bundle.attachments,
        {d.digest: d for d in bundle.key_documents},
        {r.digest: r for r in bundle.evidence},
        bundle.plan,
        bundle.scenario,
    )


def test_what_is_put_comes_back(store: SqliteReceiptStore, late_draft: Draft) -> None:
    bundle, receipt_id = late_draft.bundle(), late_draft.receipt.receipt_id
    store.put(late_draft.receipt, alone(bundle))
    assert contents(store.bundle(receipt_id)) == contents(alone(bundle))
    store.attach(receipt_id, bundle.attachments[0])
    assert contents(store.bundle(receipt_id)) == contents(bundle)


def test_it_is_there_after_a_restart(path: Path, draft: Draft) -> None:
    first = SqliteReceiptStore(path)
    first.put(draft.receipt, draft.bundle())
    first.close()
    second = SqliteReceiptStore(path)
    assert second.bundle(draft.receipt.receipt_id).receipt == draft.bundle().receipt
    second.close()


def test_shared_documents_are_kept_once(
    store: SqliteReceiptStore, path: Path, deployment: Deployment
) -> None:
    for label in ("one", "two", "three"):
        draft = build_draft(deployment, label=label)
        store.put(draft.receipt, draft.bundle())
    with sqlite3.connect(path) as other:
        (count,) = other.execute("SELECT COUNT(*) FROM documents").fetchone()
    other.close()
    # Plan, scenario, configuration, seven key documents; evidence answers a nonce of
    # each request.
    assert count == 3 + 7 + 3 * 7


def test_a_receipt_is_put_once(store: SqliteReceiptStore, draft: Draft) -> None:
    store.put(draft.receipt, draft.bundle())
    altered = replace(draft.receipt, status=500)
    bundle = replace(draft, receipt=altered).bundle()
    with pytest.raises(ConfigurationError, match="of this id exists"):
        store.put(altered, bundle)
    assert store.bundle(altered.receipt_id).receipt == draft.bundle().receipt


@pytest.mark.parametrize("table", ["receipts", "attachments", "documents"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET rowid = rowid",
        "DELETE FROM {}",
    ],
)
def test_nothing_is_changed_or_removed(
    table: str,
    statement: str,
    store: SqliteReceiptStore,
    path: Path,
    late_draft: Draft,
) -> None:
    bundle = late_draft.bundle()
    store.put(late_draft.receipt, alone(bundle))
    store.attach(late_draft.receipt.receipt_id, bundle.attachments[0])
    statement = statement.format(table)
    if table == "documents":
        statement = statement.replace("rowid = rowid", "body = x'00'")
    other = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="never changed or removed"):
        other.execute(statement)
    other.close()


def test_a_receipt_is_not_replaced_either(
    store: SqliteReceiptStore, path: Path, draft: Draft
) -> None:
    store.put(draft.receipt, draft.bundle())
    other = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="of this id exists"):
        other.execute(
            "INSERT OR REPLACE INTO receipts VALUES (?, 't', x'00', 'k', x'00')",
            (draft.receipt.receipt_id,),
        )
    other.execute(
        "INSERT OR REPLACE INTO documents SELECT digest, x'00' FROM documents"
    )
    other.commit()
    other.close()
    assert contents(store.bundle(draft.receipt.receipt_id)) == contents(draft.bundle())


def test_a_document_that_the_receipt_names_is_missing(
    store: SqliteReceiptStore, draft: Draft
) -> None:
    bundle = replace(draft.bundle(), evidence=())
    with pytest.raises(ConfigurationError, match="lacks sha256-jcs-v1:"):
        store.put(draft.receipt, bundle)
    with pytest.raises(ConfigurationError, match="holds none"):
        store.bundle(draft.receipt.receipt_id)


def test_attachments_come_later(store: SqliteReceiptStore, late_draft: Draft) -> None:
    with pytest.raises(ConfigurationError, match="takes no attachments"):
        store.put(late_draft.receipt, late_draft.bundle())


def test_attachment_to_nothing(store: SqliteReceiptStore, late_draft: Draft) -> None:
    attachment = late_draft.bundle().attachments[0]
    with pytest.raises(ConfigurationError, match="FOREIGN KEY"):
        store.attach("00" * 16, attachment)


def test_attachments_are_bounded(store: SqliteReceiptStore, late_draft: Draft) -> None:
    bundle, receipt_id = late_draft.bundle(), late_draft.receipt.receipt_id
    store.put(late_draft.receipt, alone(bundle))
    for _ in range(MAX_BUNDLE_ATTACHMENTS):
        store.attach(receipt_id, bundle.attachments[0])
    with pytest.raises(ConfigurationError, match="too many attachments"):
        store.attach(receipt_id, bundle.attachments[0])


@pytest.mark.parametrize("receipt_id", ["", "00" * 15, "../../etc/passwd", "GG" * 16])
def test_an_id_that_is_none(store: SqliteReceiptStore, receipt_id: str) -> None:
    with pytest.raises(ConfigurationError, match="receipt id"):
        store.bundle(receipt_id)


def test_an_unknown_id(store: SqliteReceiptStore) -> None:
    with pytest.raises(ConfigurationError, match="holds none of that id"):
        store.bundle("00" * 16)


def test_only_its_owner_reads_the_file(store: SqliteReceiptStore, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        SqliteReceiptStore(tmp_path / "nowhere" / "receipts.sqlite")


def test_a_file_that_is_something_else(path: Path) -> None:
    path.write_bytes(b"these are not the receipts you are looking for" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        SqliteReceiptStore(path)


def test_a_file_of_another_release(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version=7")
    other.close()
    with pytest.raises(ConfigurationError, match="version 7"):
        SqliteReceiptStore(path)


def test_after_close_every_call_fails(path: Path, draft: Draft) -> None:
    store = SqliteReceiptStore(path)
    store.close()
    with pytest.raises(UnavailableError, match="closed"):
        store.put(draft.receipt, draft.bundle())
    with pytest.raises(UnavailableError, match="closed"):
        store.bundle(draft.receipt.receipt_id)


def test_a_locked_file(
    path: Path, draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_SECONDS", 0.05)
    store = SqliteReceiptStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="locked"):
        store.put(draft.receipt, draft.bundle())
    other.execute("ROLLBACK")
    other.close()
    store.put(draft.receipt, draft.bundle())
    store.close()


def test_a_file_that_somebody_rewrote(path: Path, draft: Draft) -> None:
    store = SqliteReceiptStore(path)
    store.put(draft.receipt, draft.bundle())
    other = sqlite3.connect(path)
    other.execute("DROP TRIGGER receipts_no_UPDATE")
    other.execute("UPDATE receipts SET payload = 'text'")
    other.commit()
    with pytest.raises(MalformedInputError, match="another type"):
        store.bundle(draft.receipt.receipt_id)
    other.execute("UPDATE receipts SET payload = x'7b7d'")
    other.commit()
    other.close()
    with pytest.raises(MalformedInputError, match="receipt"):
        store.bundle(draft.receipt.receipt_id)
    store.close()


def test_a_document_that_somebody_removed(path: Path, draft: Draft) -> None:
    store = SqliteReceiptStore(path)
    store.put(draft.receipt, draft.bundle())
    other = sqlite3.connect(path)
    other.execute("DROP TRIGGER documents_no_DELETE")
    other.execute("DELETE FROM documents")
    other.commit()
    other.close()
    with pytest.raises(UnavailableError, match="is missing"):
        store.bundle(draft.receipt.receipt_id)
    store.close()


def test_threads_share_a_store(
    store: SqliteReceiptStore, deployment: Deployment
) -> None:
    drafts = [build_draft(deployment, label=f"request {n}") for n in range(8)]
    failures: list[BaseException] = []

    def put(draft: Draft) -> None:
        try:
            store.put(draft.receipt, draft.bundle())
            assert store.bundle(draft.receipt.receipt_id).receipt.payload
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=put, args=(draft,)) for draft in drafts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for draft in drafts:
        store.bundle(draft.receipt.receipt_id)


_WRITER = """
import sys
from pathlib import Path
from bentoml_secure.receipts.store import SqliteReceiptStore
from bentoml_secure.testing.deployment import build_deployment
from bentoml_secure.testing.receipts import build_draft

deployment = build_deployment()
store = SqliteReceiptStore(Path(sys.argv[1]))
for number in range(20):
    draft = build_draft(deployment, label=f"{sys.argv[2]} {number}")
    store.put(draft.receipt, draft.bundle())
store.close()
"""


def test_processes_share_a_file(path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(path), name])
        for name in ("one", "two")
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    other = sqlite3.connect(path)
    (count,) = other.execute("SELECT COUNT(*) FROM receipts").fetchone()
    other.close()
    assert count == 40


def test_a_long_life(
    store: SqliteReceiptStore, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store remembers of its own file is bounded, and only a hint."""
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    drafts = [build_draft(deployment, label=f"day {n}") for n in range(3)]
    for draft in drafts:
        store.put(draft.receipt, draft.bundle())
    for draft in drafts:
        found = store.bundle(draft.receipt.receipt_id)
        assert contents(found) == contents(draft.bundle())


def order(receipt_id: str, segment: int, deadline: str | None) -> StoredOrder:
    return StoredOrder(
        key=JobKey(receipt_id, 0, segment),
        deadline=deadline,
        held_until=LATER,
        priority="critical",
        body=b"sealed",
    )


SOON, LATER = "2026-11-23T12:00:00.000Z", "2026-11-23T13:00:00.000Z"


def test_orders_are_kept_with_their_receipt_and_settled_once(
    path: Path, late_draft: Draft
) -> None:
    receipt = late_draft.receipt
    name = receipt.receipt_id
    due = (order(name, 1, LATER), order(name, 0, SOON))
    with closing(SqliteReceiptStore(path)) as store:
        store.put(receipt, alone(late_draft.bundle()), due)
    # Another process, after the first one was killed.
    with closing(SqliteReceiptStore(path)) as store:
        for each in due:
            found = DueOrder(each.key, each.deadline or "", each.priority)
            assert store.due_orders(each.key.segment, most=10) == [found]
            assert store.order_body(each.key) == each.body
        assert store.late_receipts(SOON, most=10) == []
        assert store.late_receipts(LATER, most=10) == [name]
        assert store.count_orders() == store.owed(name) == 2
        proof = late_draft.bundle().receipt
        assert store.has(due[0].key)
        assert store.settle(due[0].key, proof) == 1
        assert store.settle(due[0].key, proof) is None
        assert [store.has(each.key) for each in due] == [False, True]
        assert store.bundle(name).attachments == (proof,)
        assert store.order_body(due[0].key) is None
        assert store.drop_orders([name, "00" * 16]) == [due[1].key]
        assert store.due_orders(0, most=10) == store.due_orders(1, most=10) == []
        assert store.settle(due[1].key, proof) is None


def test_held_orders_become_due_by_a_challenge(path: Path, late_draft: Draft) -> None:
    receipt = late_draft.receipt
    with closing(SqliteReceiptStore(path)) as store:
        held = order(receipt.receipt_id, 0, None)
        store.put(receipt, alone(late_draft.bundle()), (held,))
        assert store.due_orders(0, most=10) == []
        assert store.count_orders() == 0
        assert store.make_due(receipt.receipt_id, SOON) == 1
        assert store.make_due(receipt.receipt_id, LATER) == 0
        assert store.due_orders(0, most=10) == [DueOrder(held.key, SOON, "critical")]
        assert store.order_body(held.key) == held.body


def test_held_orders_are_dropped_in_time(path: Path, late_draft: Draft) -> None:
    receipt = late_draft.receipt
    orders = (
        order(receipt.receipt_id, 0, None),
        order(receipt.receipt_id, 1, SOON),
    )
    with closing(SqliteReceiptStore(path)) as store:
        store.put(receipt, alone(late_draft.bundle()), orders)
        assert store.drop_held(LATER, most=1) == 0
        # What is due is not held.
        assert store.drop_held(LATER.replace("13:", "14:"), most=1) == 1
        assert [store.has(each.key) for each in orders] == [False, True]


def test_of_too_many_held_orders_the_oldest_go(path: Path, late_draft: Draft) -> None:
    name = late_draft.receipt.receipt_id
    orders = [
        replace(order(name, segment, None), held_until=until)
        for segment, until in enumerate((LATER, SOON, LATER))
    ]
    with closing(SqliteReceiptStore(path)) as store:
        store.put(late_draft.receipt, alone(late_draft.bundle()), orders)
        assert store.drop_held(SOON, most=3) == 0
        assert store.drop_held(SOON, most=2) == 1
        assert [store.has(each.key) for each in orders] == [True, False, True]


def test_critical_orders_come_before_earlier_ones_of_audits(
    path: Path, late_draft: Draft
) -> None:
    first = order(late_draft.receipt.receipt_id, 0, SOON)
    orders = (
        replace(first, priority="audit"),
        replace(first, key=replace(first.key, infer=1), deadline=LATER),
        replace(first, key=replace(first.key, infer=2)),
    )
    with closing(SqliteReceiptStore(path)) as store:
        store.put(late_draft.receipt, alone(late_draft.bundle()), orders)
        found = [due.key.infer for due in store.due_orders(0, most=10)]
        assert found == [2, 1, 0]
        assert [due.key.infer for due in store.due_orders(0, most=1)] == [2]


def test_a_full_disk_loses_nothing_that_was_there(
    path: Path, late_draft: Draft
) -> None:
    name = late_draft.receipt.receipt_id
    with closing(SqliteReceiptStore(path)) as store:
        store.put(late_draft.receipt, alone(late_draft.bundle()), [])
        pages = store._rows("PRAGMA page_count")[0][0]
        store._rows(f"PRAGMA max_page_count={pages}")
        large = replace(late_draft.bundle().receipt, payload=bytes(1 << 20))
        with pytest.raises(UnavailableError, match="full"):
            store.attach(name, large)
        store._rows("PRAGMA max_page_count=1000000")
        store.attach(name, late_draft.bundle().receipt)
        assert len(store.bundle(name).attachments) == 1


def test_a_receipt_that_is_refused_leaves_no_orders(
    path: Path, late_draft: Draft
) -> None:
    receipt = late_draft.receipt
    bundle = alone(late_draft.bundle())
    with closing(SqliteReceiptStore(path)) as store:
        store.put(receipt, bundle)
        with pytest.raises(ConfigurationError, match="a receipt of this id exists"):
            store.put(receipt, bundle, (order(receipt.receipt_id, 0, SOON),))
        assert store.count_orders() == 0
