"""The job store: what comes in, and what came of it; who works on it is ``leases``.

    submit -> waiting -> put_link -> ready -> claim -> running -> finish -> done
                                       ^                 |
                                       +-- lease ends, --+--> failed, cancelled
                                           fail, release

``queue`` keeps apart what shares a database: the provers of one segment of one
deployment have one queue, and prove nothing of another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    delete,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError

from bentoml_secure.errors import ConfigurationError, UnavailableError
from bentoml_secure.proofs.jobs.database import JOBS, Database
from bentoml_secure.proofs.jobs.job import (
    MAX_LINK_BYTES,
    MAX_REASON,
    UNFINISHED,
    Job,
    JobKey,
    JobStatus,
    Priority,
    State,
    require_size,
)
from bentoml_secure.proofs.jobs.leases import MAX_ATTEMPTS, Leases, is_job, is_queue

MAX_QUEUE = 10_000
MAX_QUEUE_NAME = 200
RANKS = {Priority.CRITICAL: 0, Priority.AUDIT: 1}
_PRIORITIES = {rank: priority for priority, rank in RANKS.items()}
_KEYS_AT_ONCE = 200
_KEY = (JOBS.c.receipt_id, JOBS.c.infer, JOBS.c.segment)


class JobStore:
    """The jobs of one queue; any thread may call, several processes may share it.

    Args:
        url: ``sqlite:////folder/jobs.sqlite``, of one host, or
            ``postgresql+psycopg://...``, of several.
        queue: What this queue is of, such as a digest of deployment and segment.
        max_queue: Unfinished jobs that it takes.
        max_attempts: Leases of a job that may end badly.
        clock: Seconds since 1970, instead of the database's clock.

    Raises:
        ConfigurationError: Another kind of database, or another schema.
        MissingDependencyError: The database's driver is not installed.
        UnavailableError: It does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        queue: str,
        max_queue: int = MAX_QUEUE,
        max_attempts: int = MAX_ATTEMPTS,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if not 0 < len(queue) <= MAX_QUEUE_NAME or min(max_queue, max_attempts) < 1:
            raise ConfigurationError(
                f"job store: got queue {queue!r:.60} of {max_queue} jobs, "
                f"{max_attempts} attempts; want a name, and at least one of each."
            )
        self._database = Database(url, clock=clock)
        self._queue = queue
        self._max_queue = max_queue
        self.leases = Leases(self._database, queue, max_attempts=max_attempts)

    def submit(self, job: Job) -> bool:
        """Take in a job; one that is there already stays as it is.

        Args:
            job: What to prove. All but a first segment waits for its link.

        Returns:
            Whether it is new.

        Raises:
            ConfigurationError: The same key has another order.
            UnavailableError: The queue is full, or the database does not answer.
        """
        try:
            with self._database.transaction() as connection:
                if self._is_there(connection, job):
                    return False
                self._require_room(connection)
                connection.execute(JOBS.insert().values(self._row(connection, job)))
                return True
        except IntegrityError:
            # Another process took it in between.
            with self._database.transaction() as connection:
                return not self._is_there(connection, job)

    def _is_there(self, connection: Connection, job: Job) -> bool:
        of_job = is_job(self._queue, job.key)
        found = connection.execute(select(JOBS.c.body).where(of_job)).scalar()
        if found is None:
            return False
        if found != job.order:
            raise ConfigurationError(f"job {job.key}: it has another order already.")
        return True

    def _require_room(self, connection: Connection) -> None:
        unfinished = and_(is_queue(self._queue), JOBS.c.state.in_(UNFINISHED))
        count = select(func.count()).select_from(JOBS).where(unfinished)
        if connection.execute(count).scalar_one() >= self._max_queue:
            raise UnavailableError(
                f"proofs: {self._max_queue} jobs are waiting already.",
                remedy="Try again later, or add provers.",
            )

    def _row(self, connection: Connection, job: Job) -> dict[str, Any]:
        waits = job.key.segment > 0
        return {
            "queue": self._queue,
            "receipt_id": job.key.receipt_id,
            "infer": job.key.infer,
            "segment": job.key.segment,
            "rank": RANKS[job.priority],
            "deadline": job.deadline.timestamp(),
            "memory_bytes": job.memory_bytes,
            "body": job.order,
            "state": State.WAITING if waits else State.READY,
            "attempt": 0,
            "tries": 0,
            "not_before": 0.0,
            "reason": "",
            "submitted_at": self._database.now(connection),
        }

    def put_link(self, key: JobKey, link: bytes) -> bool:
        """Give a job what the segment before handed on; the first link stays.

        Args:
            key: Of a job that is there.
            link: Encrypted to the prover.

        Returns:
            Whether it was taken: not if the job had one, or is finished.

        Raises:
            ConfigurationError: It is a first segment's, which takes none.
            MalformedInputError: It is empty or too long.
            UnavailableError: No such job yet, or the database does not answer.
        """
        require_size(link, MAX_LINK_BYTES, what=f"job {key} link")
        if key.segment == 0:
            raise ConfigurationError(f"job {key}: a first segment takes no link.")
        of_job = is_job(self._queue, key)
        waiting = and_(of_job, JOBS.c.state == State.WAITING)
        with self._database.transaction() as connection:
            put = update(JOBS).where(waiting).values(link_in=link, state=State.READY)
            if connection.execute(put).rowcount:
                return True
            if connection.execute(select(JOBS.c.state).where(of_job)).first() is None:
                raise UnavailableError(
                    f"job {key}: is not here.", remedy="Submit its order first."
                )
            return False

    def cancel(self, key: JobKey, reason: str) -> bool:
        """End a job that nobody needs any more; its worker hears at its next renewal.

        Returns:
            Whether it was unfinished.

        Raises:
            UnavailableError: The database does not answer.
        """
        unfinished = and_(is_job(self._queue, key), JOBS.c.state.in_(UNFINISHED))
        with self._database.transaction() as connection:
            ended = update(JOBS).where(unfinished)
            ended = ended.values(
                state=State.CANCELLED,
                reason=reason[:MAX_REASON],
                finished_at=self._database.now(connection),
                owner=None,
                lease_until=None,
            )
            return connection.execute(ended).rowcount == 1

    def status(self, keys: Sequence[JobKey]) -> dict[JobKey, JobStatus]:
        """Return where jobs stand; those that are not here are left out.

        Raises:
            UnavailableError: The database does not answer.
        """
        columns = STATUS_COLUMNS[len(_KEY) :]
        return {_key(row): read_status(row) for row in self._rows(keys, *columns)}

    def links(self, keys: Sequence[JobKey]) -> dict[JobKey, bytes]:
        """Return the links that jobs have made for the segments after them.

        Raises:
            UnavailableError: The database does not answer.
        """
        rows = self._rows(keys, JOBS.c.link_out)
        return {_key(row): row.link_out for row in rows if row.link_out is not None}

    def results(self, keys: Sequence[JobKey]) -> dict[JobKey, bytes]:
        """Return the results of jobs that are done.

        Raises:
            UnavailableError: The database does not answer.
        """
        rows = self._rows(keys, JOBS.c.result)
        return {_key(row): row.result for row in rows if row.result is not None}

    def _rows(
        self, keys: Sequence[JobKey], *columns: ColumnElement[Any]
    ) -> Iterator[Row[Any]]:
        for some in _in_parts(keys):
            wanted = and_(is_queue(self._queue), _among(some))
            with self._database.transaction() as connection:
                rows = connection.execute(select(*_KEY, *columns).where(wanted)).all()
            yield from rows

    def forget(self, keys: Sequence[JobKey]) -> int:
        """Remove finished jobs, once their results are kept elsewhere.

        Returns:
            How many; unfinished ones stay.

        Raises:
            UnavailableError: The database does not answer.
        """
        finished = and_(is_queue(self._queue), JOBS.c.state.not_in(UNFINISHED))
        gone = 0
        for some in _in_parts(keys):
            with self._database.transaction() as connection:
                removal = delete(JOBS).where(and_(finished, _among(some)))
                gone += connection.execute(removal).rowcount
        return gone

    def prune(self, seconds: float) -> int:
        """Remove jobs that finished longer ago, collected or not; return how many.

        Raises:
            UnavailableError: The database does not answer.
        """
        with self._database.transaction() as connection:
            before = self._database.now(connection) - seconds
            old = and_(is_queue(self._queue), JOBS.c.finished_at < before)
            return connection.execute(delete(JOBS).where(old)).rowcount

    def depth(self) -> dict[Priority, int]:
        """Return how many unfinished jobs there are of each priority.

        Raises:
            UnavailableError: The database does not answer.
        """
        unfinished = and_(is_queue(self._queue), JOBS.c.state.in_(UNFINISHED))
        counts = [
            func.sum(case((JOBS.c.rank == rank, 1), else_=0)) for rank in _PRIORITIES
        ]
        with self._database.transaction() as connection:
            row = connection.execute(select(*counts).where(unfinished)).one()
        pairs = zip(_PRIORITIES.values(), row, strict=True)
        return {priority: count or 0 for priority, count in pairs}

    def close(self) -> None:
        """Let go of the database; every later call fails."""
        self._database.close()


STATUS_COLUMNS: tuple[ColumnElement[Any], ...] = (
    *_KEY,
    JOBS.c.state,
    JOBS.c.rank,
    JOBS.c.attempt,
    JOBS.c.reason,
    JOBS.c.link_out.is_not(None).label("linked"),
    JOBS.c.submitted_at,
    JOBS.c.claimed_at,
    JOBS.c.executed_at,
    JOBS.c.finished_at,
)


def _in_parts(keys: Sequence[JobKey]) -> Iterator[Sequence[JobKey]]:
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        yield keys[start : start + _KEYS_AT_ONCE]


def _among(keys: Sequence[JobKey]) -> ColumnElement[bool]:
    named = [(key.receipt_id, key.infer, key.segment) for key in keys]
    return tuple_(*_KEY).in_(named)


def _key(row: Row[Any]) -> JobKey:
    return JobKey(row.receipt_id, row.infer, row.segment)


def read_status(row: Row[Any]) -> JobStatus:
    """Return where the job in a row of ``STATUS_COLUMNS`` stands."""
    return JobStatus(
        key=_key(row),
        state=State(row.state),
        priority=_PRIORITIES[row.rank],
        attempt=row.attempt,
        reason=row.reason,
        linked=bool(row.linked),
        submitted_at=datetime.fromtimestamp(row.submitted_at, UTC),
        claimed_at=_moment(row.claimed_at),
        executed_at=_moment(row.executed_at),
        finished_at=_moment(row.finished_at),
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
