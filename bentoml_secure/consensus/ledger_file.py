"""The SQLite file under a ledger of reputations: its tables, and how it opens."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bentoml_secure.consensus.accounts import COLUMNS
from bentoml_secure.errors import ConfigurationError, UnavailableError

SCHEMA_VERSION = 1
APPLICATION_ID = 0x42534C31
"""In the file's header: other stores of SQLite have version 1 too."""

BUSY_TIMEOUT_SECONDS = 5.0

_TURN_SECONDS = 0.01
_SCHEMA = (
    f"CREATE TABLE accounts ({COLUMNS}) WITHOUT ROWID",
    "CREATE TABLE dissents (number INTEGER PRIMARY KEY AUTOINCREMENT,"
    " replica TEXT NOT NULL, segment INTEGER NOT NULL, request_id TEXT NOT NULL,"
    " at TEXT NOT NULL)",
    "CREATE INDEX dissents_of ON dissents (replica, number)",
    # Of every replica where it names none.
    "CREATE TABLE resets (number INTEGER PRIMARY KEY AUTOINCREMENT, replica TEXT,"
    " at TEXT NOT NULL)",
)


def open_file(path: Path, *, make: bool) -> sqlite3.Connection:
    """Open a ledger's file.

    Args:
        path: Of the file.
        make: Make one, readable to this user only, where there is none.

    Raises:
        ConfigurationError: It cannot be opened or made, or is no ledger.
        UnavailableError: It is locked, or its disk is full.
    """
    if not make and not path.is_file():
        raise ConfigurationError(
            f"reputation ledger {path}: is not there.",
            remedy="The entry makes one when it starts; name the one that it keeps.",
        )
    try:
        # Made by us first, so that nobody else may read it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(
            path,
            timeout=BUSY_TIMEOUT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    except (OSError, sqlite3.Error) as error:
        raise ConfigurationError(
            f"reputation ledger {path}: {error}.",
            remedy="Name a file in a folder that exists and can be written.",
        ) from error
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    try:
        # Before anything is written: this may be somebody else's file.
        _require_ledger(connection, path)
        _write_ahead(connection)
        # A crash of the process loses nothing that was posted; a power cut may lose
        # the last posts, never the file.
        connection.execute("PRAGMA synchronous=NORMAL")
        with transaction(connection):
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    except sqlite3.OperationalError as error:
        raise unavailable(path, error) from error
    except sqlite3.DatabaseError as error:
        raise _not_a_ledger(path, str(error)) from error


def _require_ledger(connection: sqlite3.Connection, path: Path) -> None:
    # One statement, one state: another process may be making the file right now.
    tables, application, version = connection.execute(
        "SELECT (SELECT COUNT(*) FROM sqlite_master), application_id, user_version"
        " FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if not (tables or application or version):
        return
    if application != APPLICATION_ID:
        raise _not_a_ledger(path, "it is a database of another kind")
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            f"reputation ledger {path} schema: got version {version},"
            f" want {SCHEMA_VERSION}.",
            remedy="Open it with the release that wrote it, or name another file.",
        )


def _not_a_ledger(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"reputation ledger {path}: {why}.",
        remedy="Name another file; this one is not a ledger.",
    )


def _write_ahead(connection: sqlite3.Connection) -> None:
    # Who changes the journal's mode does not wait for others, whatever the timeout
    # says: processes that open one new file at once have to take turns.
    ends = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > ends:
                raise
            time.sleep(_TURN_SECONDS)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make what happens in the block one transaction, alone, or none of it.

    Raises:
        sqlite3.Error: The file is locked, full or gone.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def unavailable(path: Path, error: sqlite3.Error) -> UnavailableError:
    """Return the error that says that the file does not answer."""
    return UnavailableError(
        f"reputation ledger {path}: {error}.",
        remedy="See who else holds the file, and whether the disk is full.",
    )
