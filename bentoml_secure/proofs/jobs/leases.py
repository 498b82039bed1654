"""Who works on a job: leases, and what their holders report.

A worker claims what is most urgent: critical before audit, then the earlier deadline,
then the older. ``attempt`` numbers the leases of a job, and every report names its
own: a worker that was thought dead and comes back reports to nobody. ``tries`` counts
the leases that ended badly; those that were given back do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, or_, select, update

from bentoml_secure.proofs.jobs.database import JOBS, Database
from bentoml_secure.proofs.jobs.job import (
    MAX_LINK_BYTES,
    MAX_REASON,
    MAX_RESULT_BYTES,
    UNFINISHED,
    Claim,
    JobKey,
    State,
    Swept,
    require_size,
)

MAX_ATTEMPTS = 3
RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0


def is_queue(queue: str) -> ColumnElement[bool]:
    """Return what picks a queue's rows."""
    return JOBS.c.queue == queue


def is_job(queue: str, key: JobKey) -> ColumnElement[bool]:
    """Return what picks a job's row."""
    return and_(
        is_queue(queue),
        JOBS.c.receipt_id == key.receipt_id,
        JOBS.c.infer == key.infer,
        JOBS.c.segment == key.segment,
    )


class Leases:
    """The leases of one queue's jobs.

    All methods raise:
        UnavailableError: The database does not answer.
    """

    def __init__(self, database: Database, queue: str, *, max_attempts: int) -> None:
        self._database = database
        self._queue = queue
        self._max_attempts = max_attempts

    def claim(
        self, owner: str, *, seconds: float, free_bytes: int, total_bytes: int
    ) -> Claim | None:
        """Lease the most urgent job, if its turn has come and it fits.

        Args:
            owner: Who will work on it.
            seconds: How long the lease lasts without renewal.
            free_bytes: What memory the owner has left. The most urgent job waits for
                enough of it; none is let past, or large jobs would never be done.
            total_bytes: What the owner has when idle; larger jobs are others'.
        """
        with self._database.transaction() as connection:
            now = self._database.now(connection)
            chosen = (
                select(JOBS)
                .where(self._is_claimable(now), JOBS.c.memory_bytes <= total_bytes)
                .order_by(
                    *(JOBS.c.rank, JOBS.c.deadline, JOBS.c.submitted_at),
                    *(JOBS.c.receipt_id, JOBS.c.infer, JOBS.c.segment),
                )
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            row = connection.execute(chosen).first()
            if row is None or row.memory_bytes > free_bytes:
                return None
            claim = Claim(
                key=JobKey(row.receipt_id, row.infer, row.segment),
                attempt=row.attempt + 1,
                order=row.body,
                link=row.link_in,
                memory_bytes=row.memory_bytes,
                deadline=datetime.fromtimestamp(row.deadline, UTC),
            )
            leased = update(JOBS).where(is_job(self._queue, claim.key))
            connection.execute(
                leased.values(
                    state=State.RUNNING,
                    owner=owner,
                    lease_until=now + seconds,
                    attempt=claim.attempt,
                    tries=row.tries + 1,
                    claimed_at=now,
                    executed_at=None,
                )
            )
            return claim

    def _is_claimable(self, now: float) -> ColumnElement[bool]:
        ready = and_(JOBS.c.state == State.READY, JOBS.c.not_before <= now)
        return and_(
            is_queue(self._queue),
            JOBS.c.deadline > now,
            JOBS.c.tries < self._max_attempts,
            or_(ready, _is_lapsed(now)),
        )

    def renew(self, held: Mapping[JobKey, int], *, seconds: float) -> set[JobKey]:
        """Renew leases, and return those that still are the holder's.

        Args:
            held: Attempt numbers by job.
            seconds: How long they last from now.
        """
        kept = set()
        with self._database.transaction() as connection:
            until = self._database.now(connection) + seconds
            # In one order: two that renew at once would else wait for each other.
            for key in sorted(held):
                renewed = update(JOBS).where(self._is_held(key, held[key]))
                if connection.execute(renewed.values(lease_until=until)).rowcount:
                    kept.add(key)
        return kept

    def executed(self, key: JobKey, attempt: int, link: bytes | None) -> bool:
        """Note that an attempt has the segment's output, and keep the link it made.

        Args:
            key: Of the job.
            attempt: Its lease.
            link: For the segment after, encrypted; of several attempts the first stays.

        Returns:
            Whether the attempt holds the job.

        Raises:
            MalformedInputError: The link is empty or too long.
        """
        if link is not None:
            require_size(link, MAX_LINK_BYTES, what=f"job {key} link")
        with self._database.transaction() as connection:
            held = self._is_held(key, attempt)
            noted = update(JOBS).where(held)
            now = self._database.now(connection)
            if not connection.execute(noted.values(executed_at=now)).rowcount:
                return False
            first = and_(held, JOBS.c.link_out.is_(None))
            connection.execute(update(JOBS).where(first).values(link_out=link))
            return True

    def finish(self, key: JobKey, attempt: int, result: bytes) -> bool:
        """Keep a job's one result.

        Returns:
            Whether it was taken: not if the attempt does not hold the job.

        Raises:
            MalformedInputError: The result is empty or too long.
        """
        require_size(result, MAX_RESULT_BYTES, what=f"job {key} result")
        with self._database.transaction() as connection:
            now = self._database.now(connection)
            return self._end(
                connection,
                self._is_held(key, attempt),
                state=State.DONE,
                result=result,
                reason="",
                finished_at=now,
            )

    def fail(self, key: JobKey, attempt: int, reason: str, *, retry: bool) -> bool:
        """End an attempt: for good, or until it is tried again a little later.

        Args:
            key: Of the job.
            attempt: Its lease.
            reason: Why; it lies in the database as it is.
            retry: Whether another attempt may do better.

        Returns:
            Whether the job has failed for good: the attempt held it, and it is not to
            be tried again or has been tried too often.
        """
        held = self._is_held(key, attempt)
        with self._database.transaction() as connection:
            row = connection.execute(
                select(JOBS.c.tries).where(held).with_for_update()
            ).first()
            if row is None:
                return False
            now = self._database.now(connection)
            reason = reason[:MAX_REASON]
            if retry and row.tries < self._max_attempts:
                wait = min(RETRY_SECONDS * 2.0 ** (row.tries - 1), MAX_RETRY_SECONDS)
                self._end(
                    connection,
                    held,
                    state=State.READY,
                    reason=reason,
                    not_before=now + wait,
                )
                return False
            return self._end(
                connection, held, state=State.FAILED, reason=reason, finished_at=now
            )

    def release(self, key: JobKey, attempt: int) -> bool:
        """Give a job back, undone; the attempt does not count."""
        with self._database.transaction() as connection:
            return self._end(
                connection,
                self._is_held(key, attempt),
                state=State.READY,
                tries=JOBS.c.tries - 1,
            )

    def release_dead(self, is_dead: Callable[[str], bool]) -> int:
        """End the leases of owners that are known to be dead; their attempts count.

        Args:
            is_dead: Told an owner; whether it is known to have ended.

        Returns:
            How many leases.
        """
        running = and_(is_queue(self._queue), JOBS.c.state == State.RUNNING)
        with self._database.transaction() as connection:
            now = self._database.now(connection)
            owners = select(JOBS.c.owner).where(running).distinct()
            dead = [o for o in connection.execute(owners).scalars() if is_dead(o)]
            ended = update(JOBS).where(running, JOBS.c.owner.in_(dead))
            return connection.execute(ended.values(lease_until=now)).rowcount

    def sweep(self) -> Swept:
        """Fail the jobs whose deadline has passed, and those that were lost too often.

        A worker whose job is late loses its lease.
        """
        with self._database.transaction() as connection:
            now = self._database.now(connection)
            unfinished = and_(is_queue(self._queue), JOBS.c.state.in_(UNFINISHED))
            late = and_(unfinished, JOBS.c.deadline <= now)
            lost = and_(
                is_queue(self._queue),
                _is_lapsed(now),
                JOBS.c.tries >= self._max_attempts,
            )
            return Swept(
                late=self._fail_all(connection, late, now, "its deadline has passed"),
                exhausted=self._fail_all(
                    connection, lost, now, "its workers ended without a word"
                ),
            )

    def _fail_all(
        self,
        connection: Connection,
        which: ColumnElement[bool],
        now: float,
        reason: str,
    ) -> tuple[JobKey, ...]:
        failed = (
            update(JOBS)
            .where(which)
            .values(
                state=State.FAILED,
                reason=reason,
                finished_at=now,
                owner=None,
                lease_until=None,
            )
            .returning(JOBS.c.receipt_id, JOBS.c.infer, JOBS.c.segment)
        )
        return tuple(JobKey(*row) for row in connection.execute(failed).all())

    def _is_held(self, key: JobKey, attempt: int) -> ColumnElement[bool]:
        return and_(
            is_job(self._queue, key),
            JOBS.c.state == State.RUNNING,
            JOBS.c.attempt == attempt,
        )

    @staticmethod
    def _end(connection: Connection, which: ColumnElement[bool], **values: Any) -> bool:
        ended = update(JOBS).where(which)
        ended = ended.values(owner=None, lease_until=None, **values)
        return connection.execute(ended).rowcount == 1


def _is_lapsed(now: float) -> ColumnElement[bool]:
    return and_(JOBS.c.state == State.RUNNING, JOBS.c.lease_until <= now)
