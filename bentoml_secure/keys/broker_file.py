"""The SQLite file under a broker's store: its tables, what it refuses, how it opens.

Triggers in the file itself refuse UPDATE, DELETE and replacing INSERTs on every
table, so that no program that merely opens it rewrites history.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bentoml_secure.errors import ConfigurationError

SCHEMA_VERSION = 2
BUSY_TIMEOUT_SECONDS = 5.0

_TABLES = ("facts", "keys", "revocations", "exchanges", "audit")
_SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # A segment has a key for each time that it was sealed, in whatever plan. Without a
    # role, the policy says who may have it.
    "CREATE TABLE keys (segment TEXT NOT NULL, plan TEXT NOT NULL,"
    " key_id TEXT NOT NULL, wrapped BLOB NOT NULL, role TEXT,"
    " PRIMARY KEY (segment, key_id))",
    "CREATE TABLE revocations (kind TEXT NOT NULL, value TEXT NOT NULL,"
    " PRIMARY KEY (kind, value))",
    "CREATE TABLE exchanges (exchange_id TEXT PRIMARY KEY)",
    "CREATE TABLE audit (sequence INTEGER PRIMARY KEY, at TEXT NOT NULL,"
    " event TEXT NOT NULL, details BLOB NOT NULL, previous TEXT NOT NULL,"
    " digest TEXT NOT NULL)",
    # INSERT OR REPLACE deletes without firing the triggers against DELETE.
    *(
        f"CREATE TRIGGER {table}_once BEFORE INSERT ON {table} WHEN EXISTS"  # noqa: S608
        f" (SELECT 1 FROM {table} WHERE {match}) BEGIN"
        f" SELECT RAISE(ABORT, '{table}: it exists'); END"
        for table, match in (
            ("facts", "name = NEW.name"),
            ("keys", "segment = NEW.segment AND key_id = NEW.key_id"),
            ("revocations", "kind = NEW.kind AND value = NEW.value"),
            ("exchanges", "exchange_id = NEW.exchange_id"),
            ("audit", "sequence = NEW.sequence"),
        )
    ),
    *(
        f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table} BEGIN"
        f" SELECT RAISE(ABORT, '{table}: nothing is changed or removed'); END"
        for table in _TABLES
        for verb in ("UPDATE", "DELETE")
    ),
)


def create(path: Path, *, wrapping_key: str) -> None:
    """Make a new file, readable to this user only.

    Args:
        path: Must not exist.
        wrapping_key: Id of the key that its keys will be wrapped under.

    Raises:
        ConfigurationError: It exists, or cannot be made.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise ConfigurationError(
            f"broker store {path}: cannot be made: {error.strerror}.",
            remedy="Name a new file in a folder that can be written.",
        ) from error
    connection = connect(path)
    try:
        with transaction(connection):
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(
                "INSERT INTO facts VALUES ('wrapping_key', ?)", (wrapping_key,)
            )
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    except sqlite3.Error as error:
        raise ConfigurationError(f"broker store {path}: {error}.") from error
    finally:
        connection.close()


def connect(path: Path) -> sqlite3.Connection:
    """Open the file; one that is not there is made, empty.

    Raises:
        ConfigurationError: It cannot be opened, or is no SQLite file.
    """
    try:
        connection = sqlite3.connect(
            path,
            timeout=BUSY_TIMEOUT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.Error as error:
        raise ConfigurationError(f"broker store {path}: {error}.") from error
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        # A release is on disk before the key leaves, whatever happens to the power.
        connection.execute("PRAGMA synchronous=FULL")
    except sqlite3.Error as error:
        connection.close()
        raise ConfigurationError(
            f"broker store {path}: {error}.", remedy="This is no broker's file."
        ) from error
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make what happens in the block one transaction, or none of it.

    Raises:
        sqlite3.Error: The file is locked, full or gone, or refuses a change.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
