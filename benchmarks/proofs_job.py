"""One segment's proofs, as provers make them, and what they take.

``python -m benchmarks.proofs_job`` reads a JSON job from standard input and prints its
cost. Start of the child, witness, proof and its verification are all counted.

It imports little: a child's peak is at least what its parent held when it started.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from benchmarks.proofs_raw import cpu_seconds
from bentoml_secure.proofs.backends.ezkl import Ezkl
from bentoml_secure.proofs.folder import ProofFolder
from bentoml_secure.proofs.proof import BoundaryValues, Limits
from bentoml_secure.split import load_plan

LIMITS = Limits(memory_bytes=16 << 30, seconds=3600)
"""One thread, as a farm proves with: jobs run beside one another."""

_CHILDREN = resource.RUSAGE_CHILDREN


def main() -> None:
    """Do the job that is on standard input."""
    job = json.load(sys.stdin)
    folder = ProofFolder.read(Path(job["proofs"]), load_plan(Path(job["plan"])))
    key = folder.proving_key(job["index"])
    cpu, wall = [], []
    made: list[BoundaryValues] = []
    for _ in range(job["repetitions"]):
        before, begun = cpu_seconds(_CHILDREN), time.perf_counter()
        proof = Ezkl().prove(
            key, tuple(job["boundary"]), tuple(job["salt"]), LIMITS, made.append
        )
        wall.append(time.perf_counter() - begun)
        cpu.append(cpu_seconds(_CHILDREN) - before)
    told = {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "peak_bytes": resource.getrusage(_CHILDREN).ru_maxrss << 10,
        "executed": made[-1],
        "proof": proof.to_json(),
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
