"""What the receipts' file looks like: tables, triggers, statements, rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.receipts.bundle import MAX_BUNDLE_ATTACHMENTS
from bentoml_secure.receipts.keeping import DueOrder
from bentoml_secure.signing import Envelope

SCHEMA_VERSION = 3

_TABLES = """
CREATE TABLE documents (digest TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE receipts (
    receipt_id TEXT PRIMARY KEY, payload_type TEXT NOT NULL, payload BLOB NOT NULL,
    key_id TEXT NOT NULL, signature BLOB NOT NULL
);
CREATE TABLE attachments (
    receipt_id TEXT NOT NULL REFERENCES receipts, payload_type TEXT NOT NULL,
    payload BLOB NOT NULL, key_id TEXT NOT NULL, signature BLOB NOT NULL
);
CREATE INDEX attachments_of ON attachments (receipt_id);
CREATE TABLE orders (
    receipt_id TEXT NOT NULL REFERENCES receipts, infer INTEGER NOT NULL,
    segment INTEGER NOT NULL, deadline TEXT, held_until TEXT NOT NULL,
    priority TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (receipt_id, infer, segment)
);
CREATE INDEX orders_due ON orders (deadline);
CREATE INDEX orders_held ON orders (held_until);
CREATE TRIGGER documents_once BEFORE INSERT ON documents
    WHEN EXISTS (SELECT 1 FROM documents WHERE digest = NEW.digest)
    BEGIN SELECT RAISE(IGNORE); END;
CREATE TRIGGER receipts_once BEFORE INSERT ON receipts
    WHEN EXISTS (SELECT 1 FROM receipts WHERE receipt_id = NEW.receipt_id)
    BEGIN SELECT RAISE(ABORT, 'a receipt of this id exists'); END;
CREATE TRIGGER attachments_bounded BEFORE INSERT ON attachments
    WHEN (SELECT COUNT(*) FROM attachments WHERE receipt_id = NEW.receipt_id) >= {most}
    BEGIN SELECT RAISE(ABORT, 'too many attachments'); END;
"""

_IMMUTABLE = """
CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table}
    BEGIN SELECT RAISE(ABORT, 'receipts are never changed or removed'); END;
"""


def schema() -> str:
    """Return the script that makes a new file."""
    script = _TABLES.format(most=MAX_BUNDLE_ATTACHMENTS)
    for table in ("documents", "receipts", "attachments"):
        for verb in ("UPDATE", "DELETE"):
            script += _IMMUTABLE.format(table=table, verb=verb)
    return script


INSERT_RECEIPT = "INSERT INTO receipts VALUES (?, ?, ?, ?, ?)"
INSERT_ATTACHMENT = "INSERT INTO attachments VALUES (?, ?, ?, ?, ?)"
INSERT_ORDER = "INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?)"
SELECT_DUE = (
    "SELECT receipt_id, infer, segment, deadline, priority FROM orders "
    "WHERE segment = ? AND deadline IS NOT NULL "
    "ORDER BY priority <> 'critical', deadline, receipt_id, infer LIMIT ?"
)
SELECT_ORDER = (
    "SELECT body FROM orders WHERE receipt_id = ? AND infer = ? AND segment = ?"
)
SELECT_LATE = (
    "SELECT receipt_id FROM orders WHERE deadline < ? "
    "GROUP BY receipt_id ORDER BY MIN(deadline) LIMIT ?"
)
COUNT_ORDERS = "SELECT COUNT(*) FROM orders WHERE deadline IS NOT NULL"
COUNT_OWED = "SELECT COUNT(*) FROM orders WHERE receipt_id = ? AND deadline IS NOT NULL"
COUNT_ORDER = (
    "SELECT COUNT(*) FROM orders WHERE receipt_id = ? AND infer = ? AND segment = ?"
)
MAKE_DUE = "UPDATE orders SET deadline = ? WHERE receipt_id = ? AND deadline IS NULL"
DELETE_ORDER = "DELETE FROM orders WHERE receipt_id = ? AND infer = ? AND segment = ?"
DROP_HELD = (
    "DELETE FROM orders WHERE deadline IS NULL AND (held_until < ? OR rowid IN ("
    "SELECT rowid FROM orders WHERE deadline IS NULL "
    "ORDER BY held_until DESC LIMIT -1 OFFSET ?))"
)
DROP_ORDERS = (
    "DELETE FROM orders WHERE receipt_id = ? RETURNING receipt_id, infer, segment"
)
SELECT_RECEIPT = (
    "SELECT payload_type, payload, key_id, signature FROM receipts WHERE receipt_id = ?"
)
SELECT_ATTACHMENTS = (
    "SELECT payload_type, payload, key_id, signature FROM attachments "
    "WHERE receipt_id = ? ORDER BY rowid"
)


def envelope_row(envelope: Envelope) -> tuple[str, bytes, str, bytes]:
    """Return an envelope's columns."""
    return (
        envelope.payload_type,
        envelope.payload,
        envelope.key_id,
        envelope.signature,
    )


def read_due(row: tuple[object, ...]) -> DueOrder:
    """Return what a row says of an order that is due.

    Raises:
        MalformedInputError: A column is of another type.
    """
    receipt_id, infer, segment, deadline, priority = row
    if not (
        isinstance(receipt_id, str)
        and isinstance(infer, int)
        and isinstance(segment, int)
        and isinstance(deadline, str)
        and isinstance(priority, str)
    ):
        raise MalformedInputError("stored order: a column is of another type")
    return DueOrder(JobKey(receipt_id, infer, segment), deadline, priority)


def read_envelope(row: tuple[object, ...]) -> Envelope:
    """Return the envelope in a row.

    Raises:
        MalformedInputError: A column is of another type.
    """
    # SQLite keeps values of any type in any column, and others may hold the file.
    payload_type, payload, key_id, signature = row
    if not (
        isinstance(payload_type, str)
        and isinstance(payload, bytes)
        and isinstance(key_id, str)
        and isinstance(signature, bytes)
    ):
        raise MalformedInputError("stored envelope: a column is of another type")
    return Envelope(payload_type, payload, key_id, signature)


def split_statements(script: str) -> Iterator[str]:
    """Split a script: ``executescript`` would commit the transaction around it."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
