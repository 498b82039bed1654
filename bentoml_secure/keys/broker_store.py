"""What a broker keeps: wrapped keys, revocations, the audit log. It only grows.

The file refuses changes (``broker_file``); the log's chain shows what a program did
that took the refusals out (``audit_log``). A decision and its entry are one
transaction, on disk before a key leaves.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from bentoml_secure.attestation.checks import require
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import Digest, canonical_json, parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)
from bentoml_secure.keys.audit_log import (
    BEFORE_THE_FIRST,
    AuditEntry,
    Event,
    verify_chain,
)
from bentoml_secure.keys.broker_file import (
    SCHEMA_VERSION,
    connect,
    create,
    transaction,
)
from bentoml_secure.keys.key_file import PlanKeys, parse_role
from bentoml_secure.keys.segment_key import KeyId
from bentoml_secure.keys.wrapping_key import WrappingKey
from bentoml_secure.statements import format_time

MAX_DETAILS_BYTES = 64 * 1024

_AUDIT_COLUMNS = "sequence, at, event, details, previous, digest"


class Revoked(StrEnum):
    """What a revocation is about."""

    SEGMENT = "segment"
    PLAN = "plan"
    PLATFORM = "platform"
    KEY_DOCUMENT = "key-document"
    KEY = "key"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key as it lies in the file; ``role``, where there is one, alone may have it."""

    segment: Digest
    plan: Digest
    key_id: KeyId
    wrapped: bytes
    role: Role | None


class BrokerStore:
    """One broker's file; several processes may share it, any thread may call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        if not path.is_file():
            raise ConfigurationError(
                f"broker store {path}: is not there.",
                remedy="`bentoml-secure broker init` makes one.",
            )
        self._connection = connect(path)
        try:
            version = self._rows("PRAGMA user_version")[0][0]
            if version != SCHEMA_VERSION:
                raise ConfigurationError(
                    f"broker store {path} schema: got version {version},"
                    f" want {SCHEMA_VERSION}.",
                    remedy="Open it with the release that wrote it.",
                )
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def create(cls, path: Path, wrapping: WrappingKey, *, now: datetime) -> BrokerStore:
        """Make a new file, readable to this user only.

        Args:
            path: Must not exist.
            wrapping: What keys will be wrapped under.
            now: For the log's first entry.

        Raises:
            ConfigurationError: It exists, or cannot be made.
        """
        create(path, wrapping_key=wrapping.key_id)
        store = cls(path)
        with store.writing():
            details = {"wrapping_key": wrapping.key_id}
            store.append(Event.CREATED, details, now=now)
        return store

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make what is read and written within one transaction, alone.

        Raises:
            UnavailableError: The file is locked, full or gone.
            ConfigurationError: Something exists already.
        """
        with self._lock:
            try:
                with transaction(self._connection):
                    yield
            except sqlite3.IntegrityError as error:
                raise ConfigurationError(
                    f"broker store {self._path}: {error}."
                ) from error
            except sqlite3.Error as error:
                raise self._unavailable(error) from error

    def require_wrapping(self, wrapping: WrappingKey) -> None:
        """Refuse a wrapping key that is not this file's.

        Raises:
            ConfigurationError: It is another's.
        """
        rows = self._rows("SELECT value FROM facts WHERE name = 'wrapping_key'")
        want = rows[0][0] if rows else None
        if want != wrapping.key_id:
            raise ConfigurationError(
                f"wrapping key: got {wrapping.key_id}, broker store {self._path}"
                f" was made with {want}."
            )

    def add_keys(self, keys: PlanKeys, wrapping: WrappingKey, *, now: datetime) -> None:
        """Take in the keys of a sealed plan; all of them, or none.

        Raises:
            ConfigurationError: Another wrapping key; one of the keys is there already.
            UnavailableError: The file is locked, full or gone.
        """
        self.require_wrapping(wrapping)
        with self.writing():
            for segment, key in keys.keys:
                wrapped = wrapping.wrap(
                    key, segment=segment, plan=keys.plan, role=keys.role
                )
                role = keys.role.value if keys.role else None
                self._connection.execute(
                    "INSERT INTO keys VALUES (?, ?, ?, ?, ?)",
                    (segment, keys.plan, key.key_id, wrapped, role),
                )
                details = {"segment": segment, "plan": keys.plan, "key_id": key.key_id}
                details |= {"role": role} if role else {}
                self.append(Event.KEY_ADDED, details, now=now)

    def key(self, segment: Digest, key_id: KeyId) -> StoredKey | None:
        """Return one key of a segment, wrapped, if it is there."""
        columns = "segment, plan, key_id, wrapped, role"
        rows = self._rows(
            f"SELECT {columns} FROM keys WHERE segment = ? AND key_id = ?",  # noqa: S608
            segment,
            key_id,
        )
        if not rows:
            return None
        got_segment, plan, got_key_id, wrapped, role = rows[0]
        if not isinstance(wrapped, bytes):
            raise MalformedInputError("stored key: a column is of another type")
        return StoredKey(
            segment=Digest(str(got_segment)),
            plan=Digest(str(plan)),
            key_id=KeyId(str(got_key_id)),
            wrapped=wrapped,
            role=parse_role(role, what="stored key"),
        )

    def revoke(self, kind: Revoked, value: str, *, reason: str, now: datetime) -> None:
        """Release nothing to, or of, this any more; it cannot be undone.

        Raises:
            ConfigurationError: It is revoked already.
            UnavailableError: The file is locked, full or gone.
        """
        with self.writing():
            self._connection.execute(
                "INSERT INTO revocations VALUES (?, ?)", (kind.value, value)
            )
            details = {"kind": kind.value, "value": value, "reason": reason}
            self.append(Event.REVOKED, details, now=now)

    def is_revoked(self, kind: Revoked, value: str) -> bool:
        """Tell whether this is revoked."""
        return bool(
            self._rows(
                "SELECT 1 FROM revocations WHERE kind = ? AND value = ?",
                kind.value,
                value,
            )
        )

    def is_spent(self, exchange_id: str) -> bool:
        """Tell whether an exchange was answered with a key, in whatever process."""
        found = self._rows("SELECT 1 FROM exchanges WHERE exchange_id = ?", exchange_id)
        return bool(found)

    def spend(self, exchange_id: str) -> None:
        """Let no further exchange of this id be answered; within ``writing``."""
        self._connection.execute("INSERT INTO exchanges VALUES (?)", (exchange_id,))

    def append(
        self, event: Event, details: Mapping[str, Any], *, now: datetime
    ) -> AuditEntry:
        """Add an entry to the log; within ``writing``.

        Args:
            event: What happened.
            details: JSON-able, no secrets.
            now: The broker's clock.

        Returns:
            The entry; it holds once ``writing`` ends.
        """
        rows = self._rows(
            "SELECT sequence, digest FROM audit ORDER BY sequence DESC LIMIT 1"
        )
        sequence, previous = rows[0] if rows else (0, BEFORE_THE_FIRST)
        entry = AuditEntry(
            sequence=int(str(sequence)) + 1,
            at=format_time(now),
            event=event,
            details=details,
            previous=Digest(str(previous)),
        )
        self._connection.execute(
            f"INSERT INTO audit ({_AUDIT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
            (
                entry.sequence,
                entry.at,
                entry.event.value,
                canonical_json(dict(details)),
                entry.previous,
                entry.digest,
            ),
        )
        return entry

    def audit(self, *, head: Digest | None = None) -> list[AuditEntry]:
        """Return the whole log, its chain verified.

        Args:
            head: A digest noted earlier; the chain must hold it.

        Raises:
            CheckFailedError: An entry is missing, edited or out of order; or the head
                is not there.
            MalformedInputError: A row that no broker wrote.
            UnavailableError: The file is locked or gone.
        """
        rows = self._rows(
            f"SELECT {_AUDIT_COLUMNS} FROM audit ORDER BY sequence"  # noqa: S608
        )
        entries = [(_entry(row), str(row[5])) for row in rows]
        require("log", bool(entries), got="no entry", want="the one of its making")
        verify_chain(entries, head=head)
        return [entry for entry, _ in entries]

    def close(self) -> None:
        """Let go of the file; every later call fails."""
        with self._lock:
            self._connection.close()

    def _rows(self, statement: str, *values: str) -> list[tuple[object, ...]]:
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: sqlite3.Error) -> UnavailableError:
        return UnavailableError(f"broker store {self._path}: {error}")


def _entry(row: tuple[object, ...]) -> AuditEntry:
    # SQLite keeps values of any type in any column, and others may hold the file.
    sequence, at, event, details, previous, _ = row
    if (
        not isinstance(sequence, int)
        or not isinstance(at, str)
        or not isinstance(event, str)
        or event not in tuple(Event)
        or not isinstance(details, bytes)
        or not isinstance(previous, str)
    ):
        raise MalformedInputError("audit log: a column is of another type")
    document = parse_json(
        details, what="audit log details", max_bytes=MAX_DETAILS_BYTES
    )
    if not isinstance(document, dict):
        raise MalformedInputError("audit log details: want an object")
    return AuditEntry(
        sequence=sequence,
        at=at,
        event=Event(event),
        details=document,
        previous=Digest(previous),
    )
