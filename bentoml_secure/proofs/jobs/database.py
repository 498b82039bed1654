"""The database under the job store: how it opens, its one table, its transactions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from bentoml_secure.errors import (
    ConfigurationError,
    MissingDependencyError,
    UnavailableError,
)

SCHEMA_VERSION = 1
BUSY_SECONDS = 10
_SQLITE, _POSTGRESQL = "sqlite", "postgresql+psycopg"
_SCHEMA_LOCK = 0x62736563
"""Of PostgreSQL's advisory locks: held while a process looks at the schema."""

_METADATA = MetaData()
_VERSION = Table("proof_schema", _METADATA, Column("version", Integer, nullable=False))
JOBS = Table(
    "proof_jobs",
    _METADATA,
    Column("queue", String(200), primary_key=True),
    Column("receipt_id", String(32), primary_key=True),
    Column("infer", Integer, primary_key=True, autoincrement=False),
    Column("segment", Integer, primary_key=True, autoincrement=False),
    Column("rank", Integer, nullable=False),
    # Seconds since 1970.
    Column("deadline", Double, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("link_in", LargeBinary),
    Column("link_out", LargeBinary),
    Column("state", String(10), nullable=False),
    Column("owner", String(200)),
    Column("lease_until", Double),
    Column("attempt", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("result", LargeBinary),
    Column("reason", String(500), nullable=False),
    Column("submitted_at", Double, nullable=False),
    Column("claimed_at", Double),
    Column("executed_at", Double),
    Column("finished_at", Double),
    Index("proof_jobs_next", "queue", "state", "rank", "deadline", "submitted_at"),
)


class Database:
    """One database; any thread may call, several processes may share it.

    Args:
        url: Of SQLite or PostgreSQL.
        clock: Seconds since 1970, instead of the database's.

    Raises:
        ConfigurationError: Another kind of URL; it cannot be made; another schema.
        MissingDependencyError: Its driver is not installed.
        UnavailableError: It does not answer.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        parsed = _parse(url)
        self.what = f"job store {parsed.render_as_string(hide_password=True)}"
        self._shared = parsed.drivername == _POSTGRESQL
        if not self._shared:
            _make_private(str(parsed.database), self.what)
        try:
            self._engine = _connecting(parsed, shared=self._shared)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{self.what}: {error.name} is not installed.",
                remedy="pip install 'bentoml-secure[postgresql]'",
            ) from error
        try:
            with self.transaction() as connection:
                self._require_schema(connection)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Make what the block reads and writes one transaction, or none of it.

        Raises:
            IntegrityError: A row of that key exists.
            UnavailableError: The database is locked, full or gone.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            # Its own text repeats the statement with all its values.
            said = str(getattr(error, "orig", None) or type(error).__name__)
            raise UnavailableError(f"{self.what}: {said[:300]}") from None

    def now(self, connection: Connection) -> float:
        """Return the time that leases go by: one clock for all who share a database."""
        if self._clock is not None:
            return self._clock()
        if not self._shared:
            return time.time()
        clock = select(func.extract("epoch", func.clock_timestamp()))
        return float(connection.execute(clock).scalar_one())

    def _require_schema(self, connection: Connection) -> None:
        if self._shared:
            connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
        if not inspect(connection).has_table(_VERSION.name):
            _METADATA.create_all(connection)
            connection.execute(_VERSION.insert().values(version=SCHEMA_VERSION))
            return
        versions = connection.execute(select(_VERSION.c.version)).scalars().all()
        if versions != [SCHEMA_VERSION]:
            got = ", ".join(map(str, versions)) or "none"
            raise ConfigurationError(
                f"{self.what} schema: got version {got}, want {SCHEMA_VERSION}.",
                remedy="Finish its jobs with the release that wrote it, or name "
                "another database.",
            )

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            "job store: its URL does not parse.",
            remedy="sqlite:////folder/jobs.sqlite or postgresql+psycopg://host/name",
        ) from error
    named = bool(parsed.database) and parsed.database != ":memory:"
    if parsed.drivername not in (_SQLITE, _POSTGRESQL) or not named:
        raise ConfigurationError(
            f"job store: got {parsed.drivername}, want a file of {_SQLITE} or a "
            f"database of {_POSTGRESQL}.",
            remedy="sqlite:////folder/jobs.sqlite or postgresql+psycopg://host/name",
        )
    return parsed


def _make_private(path: str, what: str) -> None:
    """Make the file, readable to this user only; the files beside it follow it."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"{what}: cannot be opened: {error.strerror}.",
            remedy="Name a file in a folder of yours that can be written.",
        ) from error


def _connecting(url: URL, *, shared: bool) -> Engine:
    if shared:
        given: dict[str, Any] = {
            "connect_timeout": BUSY_SECONDS,
            "options": f"-c statement_timeout={BUSY_SECONDS * 1000}",
        }
        return create_engine(
            url, pool_pre_ping=True, pool_timeout=BUSY_SECONDS, connect_args=given
        )
    engine = create_engine(
        url, pool_timeout=BUSY_SECONDS, connect_args={"timeout": BUSY_SECONDS}
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin_at_once)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    # The driver would begin transactions of its own, and late.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_at_once(connection: Connection) -> None:
    # One that reads first and writes later is refused when another wrote between.
    connection.execute(text("BEGIN IMMEDIATE"))
