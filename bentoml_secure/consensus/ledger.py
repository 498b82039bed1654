"""Replicas' reputations in one SQLite file, and the dissents behind them.

Whoever serves keeps entries in memory and posts them here in batches. A batch reads,
changes and writes accounts in one transaction, so that several processes lose nothing
of each other. A reset is a row of its own: a batch drops what it holds of replicas
that were reset since the one before.

The file is its owner's: nothing in it is signed, and no receipt vouches for it. What a
reputation did to one answer stands in that answer's receipt.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from bentoml_secure.consensus.accounts import Account, Dissent, Entry
from bentoml_secure.consensus.ledger_file import open_file, transaction, unavailable
from bentoml_secure.consensus.reputation import Outcome, Reputation
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.statements import format_time

MAX_DISSENTS = 100
"""Kept of each replica, the latest."""

_INSERT_ACCOUNT = (
    "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_DISSENT = (
    "INSERT INTO dissents (replica, segment, request_id, at) VALUES (?, ?, ?, ?)"
)
_TRIM_DISSENTS = (
    "DELETE FROM dissents WHERE replica = ?1 AND number <="
    " (SELECT number FROM dissents WHERE replica = ?1"
    " ORDER BY number DESC LIMIT 1 OFFSET ?2)"
)
_SELECT_DISSENTS = (
    "SELECT replica, segment, request_id, at FROM dissents"
    " WHERE replica = ? ORDER BY number DESC"
)


class Ledger:
    """One ledger's file; several processes may share it, any thread may call.

    Args:
        path: Of the file.
        make: Make one, readable to this user only, where there is none.

    Raises:
        ConfigurationError: It cannot be opened or made, or is no ledger.
        UnavailableError: It is locked, or its disk is full.
    """

    def __init__(self, path: Path, *, make: bool = True) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection = open_file(path, make=make)
        self._version_seen: int | None = None
        try:
            with self._reading():
                resets = self._resets_since(0)
        except BaseException:
            self._connection.close()
            raise
        self._reset_seen = max(resets.values(), default=0)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise unavailable(self._path, error) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._reading(), transaction(self._connection):
            yield

    def is_changed(self) -> bool:
        """Tell whether another process wrote since this one posted.

        Raises:
            UnavailableError: The file is gone.
        """
        with self._reading():
            return self._version() != self._version_seen

    def post(
        self,
        entries: Sequence[Entry],
        *,
        roster: Mapping[str, int],
        opening: Reputation,
    ) -> dict[str, Account]:
        """Write a batch, all of it or nothing, and return every account as it is now.

        Args:
            entries: In the order in which they happened. Those of a replica that was
                reset since the last batch are dropped.
            roster: The segment of each replica that is to have an account.
            opening: What a replica without an account begins with.

        Raises:
            UnavailableError: The file is locked, full or gone.
            MalformedInputError: A row that no ledger wrote.
        """
        with self._writing():
            version, resets = self._version(), self._resets_since(self._reset_seen)
            kept = (
                []
                if None in resets
                else [entry for entry in entries if entry.replica not in resets]
            )
            before = self._accounts()
            accounts = before | _after(before, kept, roster, opening)
            changed = [a for name, a in accounts.items() if a != before.get(name)]
            self._connection.executemany(_INSERT_ACCOUNT, [a.to_row() for a in changed])
            self._keep_dissents(kept)
        # Only once it is committed: a batch that failed is posted again.
        self._version_seen = version
        self._reset_seen = max([self._reset_seen, *resets.values()])
        return accounts

    def _keep_dissents(self, entries: Sequence[Entry]) -> None:
        dissents: defaultdict[str, list[tuple[str, int, str, str]]] = defaultdict(list)
        for e in entries:
            if e.outcome is Outcome.DISSENTED:
                row = (e.replica, e.segment, e.request_id, format_time(e.at))
                dissents[e.replica].append(row)
        for replica, rows in dissents.items():
            self._connection.executemany(_INSERT_DISSENT, rows[-MAX_DISSENTS:])
            self._connection.execute(_TRIM_DISSENTS, (replica, MAX_DISSENTS))

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def _resets_since(self, number: int) -> dict[str | None, int]:
        rows = self._connection.execute(
            "SELECT replica, MAX(number) FROM resets WHERE number > ? GROUP BY replica",
            (number,),
        )
        return {replica: int(last) for replica, last in rows}

    def _accounts(self) -> dict[str, Account]:
        rows = self._connection.execute("SELECT * FROM accounts ORDER BY replica")
        accounts = map(Account.from_row, rows.fetchall())
        return {account.replica: account for account in accounts}

    def accounts(self) -> dict[str, Account]:
        """Return every account by replica.

        Raises:
            UnavailableError: The file is locked or gone.
            MalformedInputError: A row that no ledger wrote.
        """
        with self._reading():
            return self._accounts()

    def dissents(self, replica: str) -> tuple[Dissent, ...]:
        """Return a replica's dissents that are kept, the latest first.

        Resets leave them: they are what happened.

        Raises:
            UnavailableError: The file is locked or gone.
        """
        with self._reading():
            rows = self._connection.execute(_SELECT_DISSENTS, (replica,)).fetchall()
        return tuple(
            Dissent(
                replica=str(name), segment=int(segment), request_id=str(of), at=str(at)
            )
            for name, segment, of, at in rows
        )

    def reset(self, replica: str | None, *, now: datetime) -> int:
        """Forget what is held of a replica, or of all; return of how many.

        Processes that keep this ledger follow with their next batch.

        Args:
            replica: By name; None is every one.
            now: For the record.

        Raises:
            ConfigurationError: There is no account of it.
            UnavailableError: The file is locked, full or gone.
        """
        which = "" if replica is None else " WHERE replica = ?"
        with self._writing():
            gone = self._connection.execute(
                f"DELETE FROM accounts{which}",  # noqa: S608 - one of two constants
                () if replica is None else (replica,),
            ).rowcount
            if replica is not None and not gone:
                raise ConfigurationError(
                    f"replica {replica!r:.100}: the ledger {self._path} has no account"
                    " of it.",
                    remedy="`bentoml-secure reputation list` shows all of them.",
                )
            self._connection.execute(
                "INSERT INTO resets (replica, at) VALUES (?, ?)",
                (replica, format_time(now)),
            )
        return gone

    def close(self) -> None:
        """Let go of the file; every later call fails."""
        with self._lock:
            self._connection.close()


def _after(
    before: Mapping[str, Account],
    entries: Sequence[Entry],
    roster: Mapping[str, int],
    opening: Reputation,
) -> dict[str, Account]:
    """Return the accounts of the roster, and of whom the entries are of."""
    batch: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        batch[entry.replica].append(entry)
    # Who is on no roster any more is of the segment that it was asked.
    segments = {name: of[-1].segment for name, of in batch.items()} | {**roster}
    accounts = {}
    for replica, segment in segments.items():
        account = before.get(replica) or Account(
            replica=replica, segment=segment, reputation=opening
        )
        accounts[replica] = replace(account, segment=segment).after(batch[replica])
    return accounts
