"""Every queue of a job database at once: what is there, and what nobody needs.

For whoever operates it. Nothing secret is shown: orders and links stay sealed.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from bentoml_secure.proofs.jobs.database import JOBS, Database
from bentoml_secure.proofs.jobs.job import UNFINISHED, JobStatus
from bentoml_secure.proofs.jobs.store import STATUS_COLUMNS, JobStore, read_status

MAX_SHOWN = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A job, and whose it is.

    Attributes:
        queue: Of one prover's jobs.
        status: Where it stands.
    """

    queue: str
    status: JobStatus


def list_jobs(url: str, *, finished: bool = False) -> list[Queued]:
    """Return the jobs of all queues, the first submitted first, up to ``MAX_SHOWN``.

    Args:
        url: Of the database.
        finished: Whether to return those too that are done, failed or cancelled.

    Raises:
        ConfigurationError: Another kind of database, or another schema.
        MissingDependencyError: The database's driver is not installed.
        UnavailableError: It does not answer.
    """
    database = Database(url)
    try:
        wanted = select(JOBS.c.queue, *STATUS_COLUMNS).order_by(JOBS.c.submitted_at)
        if not finished:
            wanted = wanted.where(JOBS.c.state.in_(UNFINISHED))
        with database.transaction() as connection:
            rows = connection.execute(wanted.limit(MAX_SHOWN)).all()
    finally:
        database.close()
    return [Queued(queue=row.queue, status=read_status(row)) for row in rows]


def cancel_receipt(url: str, receipt_id: str, reason: str) -> list[Queued]:
    """Cancel the unfinished jobs of a receipt, in all queues; return which.

    A worker that is at one of them hears of it when it renews its lease.

    Args:
        url: Of the database.
        receipt_id: 32 hex digits.
        reason: Kept with them.

    Raises:
        SecureError: As ``list_jobs``.
    """
    cancelled = []
    for job in list_jobs(url):
        if job.status.key.receipt_id != receipt_id:
            continue
        store = JobStore(url, queue=job.queue)
        try:
            if store.cancel(job.status.key, reason):
                cancelled.append(job)
        finally:
            store.close()
    return cancelled
