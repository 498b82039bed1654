"""``prove jobs``: what a job database holds, and cancelling what nobody needs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bentoml_secure.cli import main
from bentoml_secure.proofs.jobs.job import Job, JobKey, Priority, State
from bentoml_secure.proofs.jobs.store import JobStore

ONE, OTHER = "11" * 16, "22" * 16


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return a database with three jobs, one of them running and one done."""
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    for segment in range(2):
        store = JobStore(url, queue=f"FlowersProver{segment} manifest")
        for receipt in (ONE, OTHER)[: 2 - segment]:
            store.submit(
                Job(
                    key=JobKey(receipt, 0, segment),
                    order=b"sealed",
                    priority=Priority.CRITICAL,
                    deadline=datetime.now(UTC) + timedelta(hours=1),
                    memory_bytes=1 << 20,
                )
            )
        store.close()
    first = JobStore(url, queue="FlowersProver0 manifest")
    claim = first.leases.claim(
        "somebody", seconds=60, free_bytes=1 << 30, total_bytes=1 << 30
    )
    assert claim is not None
    first.close()
    return url


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["prove", "jobs", *words])


def jobs(result: Result, key: str = "jobs") -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)[key]
    return found


def test_every_queue_is_listed(url: str) -> None:
    found = {(j["receipt_id"], j["segment"]): j for j in jobs(run(url, "--json"))}
    assert {place: j["phase"] for place, j in found.items()} == {
        (ONE, 0): "execute",
        (OTHER, 0): "ready",
        (ONE, 1): "waiting",
    }
    text = run(url).stdout
    assert f"{ONE}/0/0  execute  attempt 1  critical" in text
    assert text.endswith("3 jobs\n")
    assert "sealed" not in text


def test_what_a_receipt_owes_is_cancelled(url: str) -> None:
    cancelled = jobs(run(url, "--cancel", ONE, "--json"), "cancelled")
    assert [(j["receipt_id"], j["segment"]) for j in cancelled] == [(ONE, 0), (ONE, 1)]
    assert [j["receipt_id"] for j in jobs(run(url, "--json"))] == [OTHER]
    ended = [j for j in jobs(run(url, "--all", "--json")) if j["receipt_id"] == ONE]
    assert {j["state"] for j in ended} == {State.CANCELLED}
    assert {j["reason"] for j in ended} == {"cancelled by its operator"}
    assert run(url, "--cancel", ONE).stdout == "0 cancelled\n"


def test_a_url_that_is_none_is_refused() -> None:
    result = run("mysql://somewhere")
    assert result.exit_code == 2
    assert "sqlite" in result.output
