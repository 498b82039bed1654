"""Whoever is killed at whatever step: each proof is attached once, and none is lost.

A step is held where it is by stopping (SIGSTOP) whoever would take the next one. Then
the victim gets SIGKILL, all others go on, and BentoML starts the victim anew.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import psutil
import pytest

from bentoml_secure.client import Answer, SecureClient
from bentoml_secure.proofs.jobs.job import State
from tests.harness import wait_until_ready
from tests.service.deployments import eventually
from tests.service.faulting import suspended
from tests.service.proving import SECONDS, SERVICE, Proving, proving

Answers = list[Answer]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proving]:
    with proving(tmp_path_factory.mktemp("kills"), replicas=1) as running:
        yield running


def until(true: Callable[[], bool], what: str) -> None:
    eventually(true, seconds=SECONDS, what=what, every=0.01)


def child_of(running: Proving, segment: int) -> psutil.Process:
    """Return the process that a prover's attempt runs in."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = running.children(running.prover(segment))
        return bool(found)

    until(look, "a proof is being made")
    return found[0]


@contextlib.contextmanager
def stored(running: Proving, client: SecureClient, segment: int) -> Iterator[Answers]:
    """Hold an order in the entry's store: its prover takes none."""
    with suspended([running.process(running.prover(segment))]):
        answer, _ = running.ask(client)
        assert running.owed(answer.receipt_id) >= 1
        assert running.job(answer.receipt_id, segment) is None
        yield [answer]


@contextlib.contextmanager
def handed_over(
    running: Proving, client: SecureClient, segment: int
) -> Iterator[Answers]:
    """Hold an order in its prover's queue: another one is being proven."""
    first, _ = running.ask(client)
    with suspended([child_of(running, segment)]):
        second, _ = running.ask(client)
        wanted = State.WAITING if segment else State.READY
        until(
            lambda: running.is_in(wanted, second.receipt_id, segment),
            "the order is in the queue",
        )
        yield [first, second]


@contextlib.contextmanager
def executing(
    running: Proving, client: SecureClient, segment: int
) -> Iterator[Answers]:
    """Hold an attempt before the segment's output is there."""
    answer, _ = running.ask(client)
    with suspended([child_of(running, segment)]):
        job = running.job(answer.receipt_id, segment)
        assert job is not None
        assert (job.state, job.executed_at) == (State.RUNNING, None)
        yield [answer]


@contextlib.contextmanager
def executed(running: Proving, client: SecureClient, segment: int) -> Iterator[Answers]:
    """Hold an attempt whose output was handed on, and which is not proven yet."""
    answer, _ = running.ask(client)
    child = child_of(running, segment)

    def is_executed() -> bool:
        job = running.job(answer.receipt_id, segment)
        return job is not None and job.executed_at is not None

    until(is_executed, "the output is there")
    with suspended([child]):
        assert running.is_in(State.RUNNING, answer.receipt_id, segment)
        yield [answer]


@contextlib.contextmanager
def proven(running: Proving, client: SecureClient, segment: int) -> Iterator[Answers]:
    """Hold a proof at its prover: the entry does not collect."""
    answer, _ = running.ask(client)
    child_of(running, segment)
    with suspended([running.process(SERVICE)]):
        until(
            lambda: running.is_in(State.DONE, answer.receipt_id, segment),
            "the proof is there",
        )
        assert running.owed(answer.receipt_id) >= 1
        yield [answer]


@contextlib.contextmanager
def collected(
    running: Proving, client: SecureClient, segment: int
) -> Iterator[Answers]:
    """Hold a proof that is attached, and of which the prover does not know that."""
    answer, _ = running.ask(client)
    before = running.owed(answer.receipt_id)
    until(
        lambda: running.is_in(State.DONE, answer.receipt_id, segment),
        "the proof is there",
    )
    until(lambda: bool(running.children(SERVICE)), "the entry verifies it")
    with suspended([running.process(running.prover(segment))]):
        until(lambda: running.owed(answer.receipt_id) < before, "it is attached")
        assert running.is_in(State.DONE, answer.receipt_id, segment)
        yield [answer]


Holding = Callable[[Proving, SecureClient, int], AbstractContextManager[Answers]]
STEPS: Mapping[str, Holding] = {
    "stored": stored,
    "handed over": handed_over,
    "executing": executing,
    "executed": executed,
    "proven": proven,
    "collected": collected,
}
OFTEN = {
    ("stored", "entry", 0),
    ("executing", "child", 1),
    ("executed", "prover", 0),
    ("proven", "entry", 1),
}
WITHOUT_CHILD = {"stored", "proven", "collected"}
CASES = [
    pytest.param(
        *(step, victim, segment),
        marks=[] if (step, victim, segment) in OFTEN else pytest.mark.slow,
        id=f"{step}, {victim}, segment {segment}",
    )
    for step in STEPS
    for victim in ("child", "prover", "entry")
    for segment in (0, 1)
    if not (victim == "child" and step in WITHOUT_CHILD)
    # A second segment's order comes to its prover whatever the first one does.
    if not (step == "handed over" and segment == 1)
]


def victim_of(running: Proving, victim: str, segment: int) -> psutil.Process:
    if victim == "child":
        return child_of(running, segment)
    return running.process(SERVICE if victim == "entry" else running.prover(segment))


@pytest.mark.parametrize(("step", "victim", "segment"), CASES)
def test_killed(running: Proving, step: str, victim: str, segment: int) -> None:
    wait_until_ready(running.entry, SECONDS)
    with running.client("critical") as client:
        with STEPS[step](running, client, segment) as answers:
            killed = victim_of(running, victim, segment)
            killed.kill()
            until(functools.partial(has_gone, killed), "it is dead")
        for answer in answers:
            answer = running.confirmed(client, answer)
            assert answer.verdict.claims["proofs"]["verified"] == 2
            assert answer.verdict.claims["proof_opening"] == "checked"
            running.require_each_once(answer)
    assert running.owed() == 0
    for index in running.segments:
        with running.jobs(index) as store:
            assert sum(store.depth().values()) == 0


def has_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
