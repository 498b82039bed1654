"""``prove jobs``: how far proofs are, and which nobody needs any more."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from bentoml_secure.cli.outcome import own_files, plain

if TYPE_CHECKING:
    from bentoml_secure.proofs.jobs.overview import Queued

_REASON = "cancelled by its operator"


@click.command()
@click.argument("url", metavar="URL")
@click.option("--all", "finished", is_flag=True, help="Those too that have ended.")
@click.option("--cancel", metavar="RECEIPT_ID", help="Cancel what this receipt owes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def jobs(url: str, finished: bool, cancel: str | None, as_json: bool) -> None:
    """List the proofs that a job database holds, with how far each is.

    URL is what BENTOML_SECURE_PROOF_JOBS names: sqlite:////FILE, or
    postgresql+psycopg://... Whoever can read it sees no witness: what is to be proven
    is sealed to provers. A receipt whose proof is cancelled fails at its deadline.
    """
    from bentoml_secure.proofs.jobs.overview import cancel_receipt, list_jobs

    with own_files("job database"):
        if cancel is not None:
            found = cancel_receipt(url, cancel, _REASON)
        else:
            found = list_jobs(url, finished=finished)
    if as_json:
        key = "jobs" if cancel is None else "cancelled"
        click.echo(json.dumps({key: [_document(job) for job in found]}))
        return
    for job in found:
        click.echo(_line(job, cancelled=cancel is not None))
    click.echo(f"{len(found)} {'jobs' if cancel is None else 'cancelled'}")


def _document(job: Queued) -> dict[str, Any]:
    status = job.status
    return {
        "queue": job.queue,
        "receipt_id": status.key.receipt_id,
        "infer": status.key.infer,
        "segment": status.key.segment,
        "state": status.state.value,
        "phase": status.phase,
        "priority": status.priority.value,
        "attempt": status.attempt,
        "seconds": round(_seconds(job), 1),
        "reason": status.reason,
    }


def _seconds(job: Queued) -> float:
    status = job.status
    ends = status.finished_at or datetime.now(UTC)
    return (ends - status.submitted_at).total_seconds()


def _line(job: Queued, *, cancelled: bool) -> str:
    status = job.status
    said = "cancelled" if cancelled else status.phase
    reason = f": {plain(status.reason)}" if status.reason and not cancelled else ""
    return (
        f"{status.key}  {said}  attempt {status.attempt}  {status.priority}  "
        f"{_seconds(job):.0f} s  {plain(job.queue.split()[0])}{reason}"
    )
