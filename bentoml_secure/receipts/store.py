"""Where receipts are kept: SQLite in one file, nothing ever changed or removed.

Documents that many receipts share (key documents, evidence, plan, scenario) are kept
once, by digest. Triggers in the file itself refuse UPDATE, DELETE and replacing
INSERTs on every table, so that no program that merely opens it rewrites history. Who
owns the file can still drop the triggers: what makes a receipt unchangeable is its
signature, and what makes it undeniable is the copy that the caller holds.

Old receipts go with their file: begin a new file per month and archive the old one.

Beside them lie the orders of proofs that receipts still owe, each sealed to its prover.
They are the only thing here that is ever removed: with the proof that settles one, in
the same transaction, so that every proof is attached once, whenever a process dies.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.attestation.key_document import KeyDocument
from bentoml_secure.digest import (
    REQUEST_ID_BYTES,
    Digest,
    canonical_json,
    digest_json,
    parse_hex,
    parse_json,
)
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.receipts.bundle import (
    MAX_BUNDLE_BYTES,
    Bundle,
    configuration_from_json,
    scenario_from_json,
)
from bentoml_secure.receipts.keeping import DueOrder, StoredOrder
from bentoml_secure.receipts.receipt import Receipt, parse_receipt
from bentoml_secure.receipts.store_schema import (
    COUNT_ORDER,
    COUNT_ORDERS,
    COUNT_OWED,
    DELETE_ORDER,
    DROP_HELD,
    DROP_ORDERS,
    INSERT_ATTACHMENT,
    INSERT_ORDER,
    INSERT_RECEIPT,
    MAKE_DUE,
    SCHEMA_VERSION,
    SELECT_ATTACHMENTS,
    SELECT_DUE,
    SELECT_LATE,
    SELECT_ORDER,
    SELECT_RECEIPT,
    envelope_row,
    read_due,
    read_envelope,
    schema,
    split_statements,
)
from bentoml_secure.signing import Envelope
from bentoml_secure.split.plan import parse_plan

_TURN_SECONDS = 0.01
BUSY_TIMEOUT_SECONDS = 5.0
MAX_REMEMBERED = 65_536
"""Digests known to be in the file, so that most calls write one row only."""


class SqliteReceiptStore:
    """Receipts in one SQLite file; several processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._remembered: set[Digest] = set()
        try:
            # Made by us first, so that nobody else may read it.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(
                path,
                timeout=BUSY_TIMEOUT_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"receipt store {path}: {error}.",
                remedy="Name a file in a folder that exists and can be written.",
            ) from error
        try:
            self._open()
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        try:
            self._write_ahead()
            for pragma in (
                # A crash of the process loses nothing; a power cut may lose the last
                # receipts, never the file.
                "synchronous=NORMAL",
                "foreign_keys=ON",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            with self._transaction():
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    self._create()
        except sqlite3.OperationalError as error:
            raise UnavailableError(
                f"receipt store {self._path}: {error}.",
                remedy="See who else holds the file, and whether the disk is full.",
            ) from error
        except sqlite3.DatabaseError as error:
            raise ConfigurationError(
                f"receipt store {self._path}: {error}.",
                remedy="Name another file; this one is not a receipt store.",
            ) from error
        if version not in (0, SCHEMA_VERSION):
            raise ConfigurationError(
                f"receipt store {self._path} schema: got version {version}, "
                f"want {SCHEMA_VERSION}.",
                remedy="Open it with the release that wrote it, or name another file.",
            )

    def _write_ahead(self) -> None:
        # Who changes the journal's mode does not wait for others, whatever the timeout
        # says: processes that open one new file at once have to take turns.
        ends = time.monotonic() + BUSY_TIMEOUT_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > ends:
                    raise
                time.sleep(_TURN_SECONDS)

    def _create(self) -> None:
        for statement in split_statements(schema()):
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # Some failures have ended it already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def put(
        self, receipt: Receipt, bundle: Bundle, orders: Sequence[StoredOrder] = ()
    ) -> None:
        """Keep a new receipt, the documents that it names, and orders of its proofs.

        Args:
            receipt: What ``bundle.receipt`` signs.
            bundle: Its attachments must be empty: they come through ``attach``.
            orders: Of the proofs that it owes, or may come to owe.

        Raises:
            ConfigurationError: A receipt of this id exists; a document is missing.
            UnavailableError: The file is locked, full or gone.
        """
        if bundle.attachments:
            raise ConfigurationError("receipt store: put() takes no attachments")
        with self._lock:
            named = _named_by(receipt)
            if (manifest := _manifest(bundle.configuration)) is not None:
                named.add(manifest)
            new = self._documents(bundle, named - self._remembered)
            with self._writing(f"receipt {receipt.receipt_id}"):
                for digest, body in new:
                    self._connection.execute(
                        "INSERT INTO documents VALUES (?, ?)", (digest, body)
                    )
                self._connection.execute(
                    INSERT_RECEIPT, (receipt.receipt_id, *envelope_row(bundle.receipt))
                )
                for order in orders:
                    self._connection.execute(
                        INSERT_ORDER,
                        (
                            *astuple(order.key),
                            order.deadline,
                            order.held_until,
                            order.priority,
                            order.body,
                        ),
                    )
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered |= named

    @staticmethod
    def _documents(bundle: Bundle, wanted: set[Digest]) -> list[tuple[Digest, bytes]]:
        if not wanted:
            return []
        parts: list[Any] = [bundle.plan, bundle.scenario]
        parts += [*bundle.key_documents, *bundle.evidence]
        documents: dict[Digest, Any] = {part.digest: part.to_json() for part in parts}
        documents[digest_json(bundle.configuration)] = bundle.configuration
        if (manifest := _manifest(bundle.configuration)) is not None:
            # By the name in the configuration: the manifest pins the rest.
            documents[manifest] = bundle.verification_keys
        if missing := wanted - documents.keys():
            raise ConfigurationError(
                f"receipt store: the bundle lacks {min(missing)}, which the receipt "
                "names"
            )
        return [(d, canonical_json(documents[d])) for d in sorted(wanted)]

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            with self._transaction():
                yield
        except sqlite3.IntegrityError as error:
            raise ConfigurationError(f"{what}: {error}") from error
        except sqlite3.Error as error:
            raise UnavailableError(f"receipt store {self._path}: {error}") from error

    def attach(self, receipt_id: str, attachment: Envelope) -> None:
        """Keep what came later to a receipt.

        Raises:
            ConfigurationError: No such receipt, or it has too many attachments.
            UnavailableError: The file is locked, full or gone.
        """
        with self._lock, self._writing(f"attachment of receipt {receipt_id!r:.60}"):
            self._connection.execute(
                INSERT_ATTACHMENT, (receipt_id, *envelope_row(attachment))
            )

    def due_orders(self, segment: int, *, most: int) -> list[DueOrder]:
        """Return a segment's orders that are due.

        Critical ones first, and of those the earliest deadline.

        Raises:
            UnavailableError: The file is locked or gone.
            MalformedInputError: What is stored does not parse.
        """
        return [read_due(row) for row in self._rows(SELECT_DUE, segment, most)]

    def order_body(self, order: JobKey) -> bytes | None:
        """Return an order, sealed to its prover; None where it is kept no more.

        Raises:
            UnavailableError: The file is locked or gone.
            MalformedInputError: What is stored does not parse.
        """
        rows = self._rows(SELECT_ORDER, *astuple(order))
        if not rows:
            return None
        (body,) = rows[0]
        if not isinstance(body, bytes):
            raise MalformedInputError("stored order: its body is of another type")
        return body

    def late_receipts(self, now: str, *, most: int) -> list[str]:
        """Return ids of receipts with an order that is past its deadline.

        Args:
            now: The time, as receipts write it.
            most: How many are returned.

        Raises:
            UnavailableError: The file is locked or gone.
        """
        return [str(receipt_id) for (receipt_id,) in self._rows(SELECT_LATE, now, most)]

    def count_orders(self) -> int:
        """Return how many orders are due.

        Raises:
            UnavailableError: The file is locked or gone.
        """
        count = self._rows(COUNT_ORDERS)[0][0]
        return count if isinstance(count, int) else 0

    def owed(self, receipt_id: str) -> int:
        """Return how many proofs of a receipt are due.

        Raises:
            UnavailableError: The file is locked or gone.
        """
        count = self._rows(COUNT_OWED, receipt_id)[0][0]
        return count if isinstance(count, int) else 0

    def has(self, order: JobKey) -> bool:
        """Tell whether an order is kept: neither settled nor given up.

        Raises:
            UnavailableError: The file is locked or gone.
        """
        return self._rows(COUNT_ORDER, *astuple(order))[0][0] == 1

    def make_due(self, receipt_id: str, deadline: str) -> int:
        """Make the orders due that were held for a challenge; return how many.

        Args:
            receipt_id: Of the receipt that was challenged.
            deadline: Of its proofs.

        Raises:
            UnavailableError: The file is locked, full or gone.
        """
        with self._lock, self._writing(f"orders of receipt {receipt_id!r:.60}"):
            made = self._connection.execute(MAKE_DUE, (deadline, receipt_id))
            return made.rowcount

    def settle(self, order: JobKey, attachment: Envelope) -> int | None:
        """Keep the proof that settles an order, and remove the order.

        Returns:
            How many proofs the receipt owes after it: of those who settle at once, one
            is told 0. None where there was no such order: then nothing is kept.

        Raises:
            ConfigurationError: The receipt has too many attachments.
            UnavailableError: The file is locked, full or gone.
        """
        with self._lock, self._writing(f"proof of receipt {order.receipt_id!r:.60}"):
            removed = self._connection.execute(DELETE_ORDER, astuple(order)).rowcount
            if not removed:
                return None
            self._connection.execute(
                INSERT_ATTACHMENT, (order.receipt_id, *envelope_row(attachment))
            )
            left = self._connection.execute(COUNT_OWED, (order.receipt_id,)).fetchone()
            return int(left[0])

    def drop_held(self, now: str, *, most: int) -> int:
        """Remove orders that were held long enough; return how many.

        Args:
            now: The time, as receipts write it.
            most: That stay, those that are held longest.

        Raises:
            UnavailableError: The file is locked, full or gone.
        """
        with self._lock, self._writing("held orders"):
            return self._connection.execute(DROP_HELD, (now, most)).rowcount

    def drop_orders(self, receipt_ids: Sequence[str]) -> list[JobKey]:
        """Remove orders that will not be settled any more; return which.

        Raises:
            UnavailableError: The file is locked, full or gone.
        """
        with self._lock, self._writing("orders"):
            return [
                JobKey(*row)
                for receipt_id in receipt_ids
                for row in self._connection.execute(DROP_ORDERS, (receipt_id,))
            ]

    def bundle(self, receipt_id: str) -> Bundle:
        """Return a receipt with its attachments and documents.

        Args:
            receipt_id: 32 hex digits, from outside.

        Raises:
            ConfigurationError: No such receipt.
            UnavailableError: The file is locked or gone, or lacks a document.
            MalformedInputError: What is stored does not parse.
        """
        try:
            parse_hex(receipt_id, what="receipt id", length=REQUEST_ID_BYTES)
        except MalformedInputError as error:
            raise ConfigurationError(str(error)) from error
        # Nothing ever changes, so several reads show one state, and parsing need not
        # hold up the writers.
        rows = self._rows(SELECT_RECEIPT, receipt_id)
        if not rows:
            raise ConfigurationError(
                f"receipt {receipt_id}: this store holds none of that id"
            )
        envelope = read_envelope(rows[0])
        receipt = parse_receipt(envelope)
        configuration = configuration_from_json(self._document(receipt.config_digest))
        manifest = _manifest(configuration)
        return Bundle(
            receipt=envelope,
            attachments=tuple(
                map(read_envelope, self._rows(SELECT_ATTACHMENTS, receipt_id))
            ),
            key_documents=tuple(
                KeyDocument.from_json(self._document(digest))
                for digest in _unique(p.key_document for p in receipt.parties)
            ),
            evidence=tuple(
                EvidenceRecord.from_json(self._document(digest))
                for digest in _unique(p.evidence for p in receipt.parties)
            ),
            plan=parse_plan(self._body(receipt.plan_digest)),
            scenario=scenario_from_json(self._document(receipt.scenario_digest)),
            configuration=configuration,
            verification_keys=None if manifest is None else self._document(manifest),
        )

    def _rows(self, statement: str, *values: str | int) -> list[tuple[object, ...]]:
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise UnavailableError(f"receipt store {self._path}: {error}") from error

    def _body(self, digest: Digest) -> bytes:
        rows = self._rows("SELECT body FROM documents WHERE digest = ?", digest)
        body = rows[0][0] if rows else None
        if not isinstance(body, bytes):
            raise UnavailableError(f"receipt store {self._path}: {digest} is missing")
        return body

    def _document(self, digest: Digest) -> Any:
        return parse_json(
            self._body(digest), what="stored document", max_bytes=MAX_BUNDLE_BYTES
        )

    def close(self) -> None:
        """Let go of the file; every later call fails."""
        with self._lock:
            self._connection.close()


def _named_by(receipt: Receipt) -> set[Digest]:
    named = {receipt.plan_digest, receipt.scenario_digest, receipt.config_digest}
    for party in receipt.parties:
        named |= {party.key_document, party.evidence}
    return named


def _manifest(configuration: Mapping[str, Any]) -> Digest | None:
    """Return which proof set-up a deployment has, if it has one."""
    proofs = configuration.get("proofs")
    return None if proofs is None else proofs["manifest"]


def _unique(digests: Iterator[Digest]) -> list[Digest]:
    return list(dict.fromkeys(digests))
