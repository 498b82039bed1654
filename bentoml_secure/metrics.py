"""Prometheus collectors, made on first use.

Made lazily because BentoML sets the multiprocess folder of its workers late, and
because a collector may exist once only in a process. The verification rate is
``pass`` over all results of ``verifications_total``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

from bentoml_secure.errors import (
    MalformedInputError,
    PolicyRejected,
    VerificationError,
)

Mechanism = Literal[
    "attestation",
    "session",
    "statement",
    "commitment",
    "consensus",
    "proof",
    "receipt",
    "audit",
]
Result = Literal["pass", "fail", "error"]
ReceiptState = Literal["issued", "completed", "failed"]

_SECONDS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
_PROOF_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


@cache
def _verifications() -> Counter:
    return Counter(
        "bentoml_secure_verifications_total",
        "Verifications by outcome: pass, fail (not authentic or not accepted), error.",
        ["mechanism", "segment", "result"],
    )


@cache
def _verification_seconds() -> Histogram:
    return Histogram(
        "bentoml_secure_verification_seconds",
        "Time one verification took.",
        ["mechanism", "segment"],
        buckets=_SECONDS,
    )


@cache
def _attested() -> Gauge:
    return Gauge(
        "bentoml_secure_attested",
        "1 while the entry holds accepted evidence of the replica; kind names it.",
        ["segment", "replica", "kind"],
        multiprocess_mode="livemin",
    )


@cache
def _dissent() -> Counter:
    return Counter(
        "bentoml_secure_replica_dissent_total",
        "Answers of a replica that lay outside the agreed clique.",
        ["segment", "replica"],
    )


@cache
def _quorum() -> Counter:
    return Counter(
        "bentoml_secure_quorum_total",
        "Decisions per segment: agreed, ruled by a referee, or refused.",
        ["segment", "outcome"],
    )


@cache
def _reputation() -> Gauge:
    return Gauge(
        "bentoml_secure_reputation",
        "Weight of the replica's vote by its past answers, 0.01 to 2.",
        ["segment", "replica"],
        multiprocess_mode="livemin",
    )


@cache
def _quarantined() -> Gauge:
    return Gauge(
        "bentoml_secure_quarantined",
        "1 while the replica has no vote because of its past answers.",
        ["segment", "replica"],
        multiprocess_mode="livemax",
    )


@cache
def _trials() -> Counter:
    return Counter(
        "bentoml_secure_trials_total",
        "Known answers asked of replicas without a vote: agreed, dissented, absent.",
        ["segment", "outcome"],
    )


@cache
def _receipts() -> Counter:
    return Counter(
        "bentoml_secure_receipts_total",
        "Receipts by state: issued, completed (required attachments are there), "
        "failed (they will not be).",
        ["scenario", "state"],
    )


@cache
def _proof_queue() -> Gauge:
    return Gauge(
        "bentoml_secure_proof_queue_depth",
        "Proofs that are asked for and neither made nor given up.",
        multiprocess_mode="livesum",
    )


@cache
def _proof_seconds() -> Histogram:
    return Histogram(
        "bentoml_secure_proof_seconds",
        "Time of a segment's proof by phase: execute (until its output is there), "
        "prove (until the proof is, verified).",
        ["segment", "phase"],
        buckets=_PROOF_SECONDS,
    )


@cache
def _overhead() -> Histogram:
    return Histogram(
        "bentoml_secure_request_overhead_seconds",
        "Time a request spends in a mechanism rather than in the model.",
        ["mechanism"],
        buckets=_SECONDS,
    )


# Looking a child up by its labels costs more than counting: kept once found.
@cache
def _verified(mechanism: Mechanism, segment: str, result: Result) -> Counter:
    return _verifications().labels(mechanism, segment, result)


@cache
def _timed(mechanism: Mechanism, segment: str) -> Histogram:
    return _verification_seconds().labels(mechanism, segment)


def count_verification(mechanism: Mechanism, segment: str, result: Result) -> None:
    """Count one verification."""
    _verified(mechanism, segment, result).inc()


@contextmanager
def verification(mechanism: Mechanism, segment: str) -> Iterator[None]:
    """Time and count what the block verifies; errors pass on.

    What is not authentic or not accepted counts as ``fail``, anything else raised as
    ``error``.
    """
    started = time.perf_counter()
    result: Result = "error"
    try:
        yield
        result = "pass"
    except (VerificationError, PolicyRejected, MalformedInputError):
        result = "fail"
        raise
    finally:
        _timed(mechanism, segment).observe(time.perf_counter() - started)
        count_verification(mechanism, segment, result)


def set_attested(segment: str, replica: str, kind: str, attested: bool) -> None:
    """Say whether the entry holds accepted evidence of a replica."""
    _attested().labels(segment, replica, kind).set(1 if attested else 0)


def count_dissent(segment: str, replica: str) -> None:
    """Count one answer outside the agreed clique."""
    _dissent().labels(segment, replica).inc()


def count_quorum(segment: str, outcome: Literal["agreed", "ruled", "refused"]) -> None:
    """Count one decision: of a quorum, of a referee, or none."""
    _quorum().labels(segment, outcome).inc()


def set_reputation(
    segment: str, replica: str, weight: float, *, quarantined: bool
) -> None:
    """Say what a replica's past answers count for."""
    _reputation().labels(segment, replica).set(weight)
    _quarantined().labels(segment, replica).set(1 if quarantined else 0)


def count_trial(segment: str, outcome: str) -> None:
    """Count one trial."""
    _trials().labels(segment, outcome).inc()


def count_receipt(scenario: str, state: ReceiptState) -> None:
    """Count one receipt entering a state."""
    _receipts().labels(scenario, state).inc()


def set_proof_queue_depth(jobs: int) -> None:
    """Say how many proofs are owed."""
    _proof_queue().set(jobs)


def observe_proof(
    segment: str, phase: Literal["execute", "prove"], seconds: float
) -> None:
    """Observe the time of one phase of one proof."""
    _proof_seconds().labels(segment, phase).observe(seconds)


@contextmanager
def overhead(mechanism: Mechanism) -> Iterator[None]:
    """Observe the time of the block as a mechanism's share of a request."""
    started = time.perf_counter()
    try:
        yield
    finally:
        _overhead().labels(mechanism).observe(time.perf_counter() - started)


def forget_ended_processes() -> None:
    """Remove the gauges that killed processes left behind.

    A killed entry's last word would stand beside its successor's for ever; what it
    counted stays, and goes on to count.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return
    for path in Path(folder).glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdecimal() and not _runs(int(pid)):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
