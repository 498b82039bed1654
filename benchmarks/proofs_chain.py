"""Proofs of a whole request, segment after segment, each in processes of its own."""

from __future__ import annotations

import json
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.proofs_job import LIMITS
from benchmarks.proofs_models import Built
from bentoml_secure.proofs.backends.ezkl import Ezkl
from bentoml_secure.proofs.boundary import activations_of
from bentoml_secure.proofs.folder import ProofFolder
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.proofs.proof import BoundaryValues, SegmentProof
from bentoml_secure.split import load_plan
from bentoml_secure.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What proving one segment took, medians over the repetitions.

    Attributes:
        cpu_seconds: User and system.
        wall_seconds: On one thread.
        peak_bytes: Resident.
        proof: The last one made.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    proof: SegmentProof


def draw_salts(manifest: Manifest) -> list[BoundaryValues]:
    """Return a salt for each boundary."""
    count = len(manifest.segments) + 1
    return [manifest.salt.expand(secrets.token_bytes(32)) for _ in range(count)]


def prove_chain(
    built: Built, inputs: dict[str, Array], repetitions: int = 1
) -> list[Cost]:
    """Prove all segments of one request, each in a process of its own.

    Args:
        built: The set-up.
        inputs: Of the model, one request.
        repetitions: Proofs of each segment.
    """
    manifest = built.made.manifest
    salts = draw_salts(manifest)
    form = manifest.segments[0].inputs
    boundary = [*activations_of(inputs, form, manifest.scale), *salts[0]]
    costs = []
    for index in range(len(manifest.segments)):
        job = {
            "plan": str(built.plan),
            "proofs": str(built.proofs),
            "index": index,
            "boundary": boundary,
            "salt": salts[index + 1],
            "repetitions": repetitions,
        }
        told = call("benchmarks.proofs_job", job)
        boundary = told["executed"]
        costs.append(
            Cost(
                cpu_seconds=statistics.median(told["cpu_seconds"]),
                wall_seconds=statistics.median(told["wall_seconds"]),
                peak_bytes=told["peak_bytes"],
                proof=SegmentProof.from_json(told["proof"]),
            )
        )
    return costs


def medians(rounds: Sequence[Sequence[Cost]]) -> list[Cost]:
    """Return what each segment took, over rounds that something else ran between."""
    return [
        Cost(
            cpu_seconds=statistics.median(cost.cpu_seconds for cost in costs),
            wall_seconds=statistics.median(cost.wall_seconds for cost in costs),
            peak_bytes=max(cost.peak_bytes for cost in costs),
            proof=costs[-1].proof,
        )
        for costs in zip(*rounds, strict=True)
    ]


def verify_chain(
    built: Built, proofs: Sequence[SegmentProof], repetitions: int = 5
) -> float:
    """Return the seconds that verifying all proofs of a request takes, the median."""
    folder = ProofFolder.read(built.proofs, load_plan(built.plan))
    keys = folder.verification_keys().keys
    pairs = list(zip(proofs, keys, strict=True))
    took = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        Ezkl().verify(pairs, folder.manifest.srs.verifier, LIMITS)
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def call(module: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run a module in a process of its own on a JSON task; return what it prints.

    Raises:
        RuntimeError: It failed, with the end of what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(task, default=_plain),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module}: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _plain(value: object) -> int:
    if isinstance(value, np.integer):
        return int(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
