"""What a prover tells of its queue, and how much of it at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import Digest
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.proofs.jobs.job import Job, JobKey, Priority
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.serving import prover as module
from bentoml_secure.serving.prover import ProverCore
from bentoml_secure.serving.prover_messages import (
    JobReport,
    keys_message,
    order_key_message,
    parse_reports,
)
from bentoml_secure.statements import utc_now
from tests.unit.serving.serving_parts import Ground

MANIFEST = Digest("sha256-jcs-v1:" + "0" * 64)
KEYS = [JobKey(f"{number:032x}", 0, 0) for number in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with closing(JobStore(f"sqlite:///{tmp_path}/jobs.sqlite", queue="q")) as store:
        yield store


@pytest.fixture
def core(ground: Ground, store: JobStore) -> ProverCore:
    identity = ground.identity(
        Role.PROVER, "DiagnosisProver0", ground.plan.segments[0].identity
    )
    return ProverCore(
        0,
        MANIFEST,
        "ab",
        identity,
        ground.responder(identity),
        store,
        memory_bytes=1,
        execute=lambda boundary, salt: (*boundary, *salt),
    )


def done(store: JobStore, key: JobKey, *, size: int) -> None:
    job = Job(
        key=key,
        order=b"order",
        priority=Priority.CRITICAL,
        deadline=utc_now() + timedelta(minutes=5),
        memory_bytes=1,
    )
    assert store.submit(job)
    claim = store.leases.claim("owner", seconds=60, free_bytes=9, total_bytes=9)
    assert claim is not None
    assert store.leases.executed(claim.key, claim.attempt, bytes(size))
    result = json.dumps({"payload": "p" * size}).encode()
    assert store.leases.finish(claim.key, claim.attempt, result)


async def collected(core: ProverCore) -> list[JobReport]:
    answer = await core.answer(keys_message("collect", KEYS))
    return list(parse_reports(answer))


async def test_what_is_large_is_collected_bit_by_bit(
    core: ProverCore, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that was away finds more than one message would hold."""
    monkeypatch.setattr(module, "_MOST_COLLECTED_BYTES", 5000)
    for key in KEYS:
        done(store, key, size=1200)
    left = list(KEYS)
    while left:
        reports = await collected(core)
        assert {report.state for report in reports} <= {"done", "missing"}
        whole = [report for report in reports if report.attachment is not None]
        assert 0 < len(whole) <= 2
        for report in reports:
            # A proof without its link would be settled, and the link lost.
            assert (report.attachment is None) is (report.link is None)
        for report in whole:
            await core.answer(keys_message("forget", [report.key]))
            left.remove(report.key)


async def test_one_that_is_larger_than_that_is_collected_alone(
    core: ProverCore, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_COLLECTED_BYTES", 100)
    for key in KEYS[:2]:
        done(store, key, size=1200)
    reports = await collected(core)
    assert [report.attachment is not None for report in reports] == [
        *(True, False, False, False)
    ]
    assert reports[1].state == "done"
    assert reports[2].state == "missing"


async def test_it_says_what_orders_are_sealed_to(core: ProverCore) -> None:
    answer: Any = json.loads(await core.answer(order_key_message()))
    assert answer == {"order_key": "ab", "manifest": MANIFEST}


async def test_it_executes_without_a_proof(core: ProverCore) -> None:
    asked = json.dumps({"ask": "execute", "boundary": [1, 2], "salt": [3]}).encode()
    assert json.loads(await core.answer(asked)) == {"boundary": [1, 2, 3]}


async def test_no_proof_is_signed_as_another_ones(core: ProverCore) -> None:
    with pytest.raises(MalformedInputError, match="proven"):
        core.sign(KEYS[0], b"{}")
