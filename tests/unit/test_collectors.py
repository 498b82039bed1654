"""Metrics: made on first use, once in a process, counted once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from bentoml_secure import metrics
from bentoml_secure.errors import (
    Finding,
    MalformedInputError,
    PolicyRejected,
    StatementError,
    UnavailableError,
)

PREFIX = "bentoml_secure"


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"{PREFIX}_{name}", labels) or 0.0


def test_importing_makes_no_collector() -> None:
    """BentoML sets the multiprocess folder late; a collector made before misses it."""
    program = (
        "import bentoml_secure.metrics\n"
        "from prometheus_client import REGISTRY\n"
        "names = [m.name for m in REGISTRY.collect()]\n"
        f"assert not [n for n in names if n.startswith({PREFIX!r})], names\n"
        "bentoml_secure.metrics.count_dissent('0', 'R')\n"
        "names = [m.name for m in REGISTRY.collect()]\n"
        f"assert [n for n in names if n.startswith({PREFIX!r})] == "
        f"['{PREFIX}_replica_dissent'], names\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, "pass"),
        (StatementError("no"), "fail"),
        (PolicyRejected("no", [Finding("a", "b", "c")]), "fail"),
        (MalformedInputError("no"), "fail"),
        (UnavailableError("no"), "error"),
        (ValueError("no"), "error"),
        (KeyboardInterrupt("no"), "error"),
    ],
)
def test_a_verification_is_counted_once_and_its_error_passes_on(
    error: BaseException | None, result: str
) -> None:
    def counts() -> dict[str, float]:
        labels = {"mechanism": "statement", "segment": "metrics"}
        return {
            outcome: value("verifications_total", **labels, result=outcome)
            for outcome in ("pass", "fail", "error")
        } | {"seconds": value("verification_seconds_count", **labels)}

    before = counts()
    if error is None:
        with metrics.verification("statement", "metrics"):
            pass
    else:
        with (
            pytest.raises(type(error), match="no"),
            metrics.verification("statement", "metrics"),
        ):
            raise error
    changed = {name: n - before[name] for name, n in counts().items()}
    assert changed == {"pass": 0, "fail": 0, "error": 0, result: 1, "seconds": 1}


def count_one(count: Callable[[], None], name: str, **labels: str) -> None:
    before = value(name, **labels)
    count()
    count()
    assert value(name, **labels) == before + 2


def test_counters_and_their_labels() -> None:
    count_one(
        lambda: metrics.count_verification("proof", "1", "fail"),
        "verifications_total",
        mechanism="proof",
        segment="1",
        result="fail",
    )
    count_one(
        lambda: metrics.count_dissent("1", "R"),
        "replica_dissent_total",
        segment="1",
        replica="R",
    )
    count_one(
        lambda: metrics.count_quorum("1", "refused"),
        "quorum_total",
        segment="1",
        outcome="refused",
    )
    count_one(
        lambda: metrics.count_receipt("general", "issued"),
        "receipts_total",
        scenario="general",
        state="issued",
    )


def test_attested_goes_up_and_down() -> None:
    labels = {"segment": "1", "replica": "R", "kind": "simulated"}
    metrics.set_attested("1", "R", "simulated", True)
    assert value("attested", **labels) == 1
    metrics.set_attested("1", "R", "simulated", False)
    assert REGISTRY.get_sample_value(f"{PREFIX}_attested", labels) == 0


def test_proofs_that_are_owed_and_made() -> None:
    metrics.set_proof_queue_depth(3)
    assert value("proof_queue_depth") == 3
    labels = {"segment": "metrics", "phase": "prove"}
    before = value("proof_seconds_count", **labels)
    metrics.observe_proof("metrics", "prove", 2.5)
    assert value("proof_seconds_count", **labels) == before + 1
    metrics.set_proof_queue_depth(0)


def test_overhead_is_observed_though_the_block_fails() -> None:
    name, label = "request_overhead_seconds_count", {"mechanism": "session"}
    before = value(name, **label)
    with metrics.overhead("session"):
        pass
    with pytest.raises(ValueError, match="inside"), metrics.overhead("session"):
        raise ValueError("inside")
    assert value(name, **label) == before + 2


def test_gauges_of_ended_processes_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {
        f"gauge_livemin_{ended.pid}.db": False,
        f"gauge_livemin_{os.getpid()}.db": True,
        "gauge_livemin_1.db": True,  # runs, and may be another user's
        f"counter_{ended.pid}.db": True,
        f"gauge_all_{ended.pid}.db": True,
        "gauge_livemin_x.db": True,
    }
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics.forget_ended_processes()
    assert len(list(tmp_path.iterdir())) == len(names)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics.forget_ended_processes()
    assert {p.name for p in tmp_path.iterdir()} == {
        n for n, kept in names.items() if kept
    }
