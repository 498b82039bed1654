"""The diagnosis service with faults that a test switches on, by making a file.

Copied into the project's folder and served from there. The faults are in the runners'
processes, behind real keys and evidence.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bentoml_secure.serving.runner import RunSegment
from bentoml_secure.tensors import Array
from bentoml_secure.testing.faults import Transform, scaled, tamper
from services import diagnosis

# A BentoML service, which the decorator's type does not say.
Diagnosis: Any = diagnosis.Diagnosis
SWITCHES = Path(__file__).parent / "switches"


def switched(name: str, transform: Transform) -> Transform:
    """Return a transform that is applied while its switch is on."""

    def apply(outputs: dict[str, Array]) -> dict[str, Array]:
        return transform(outputs) if (SWITCHES / name).exists() else outputs

    return apply


def hang_at_start(replica: str, name: str) -> None:
    """Keep a replica in its constructor while its switch is on."""
    runner = Diagnosis.all_services()[replica].inner
    load_run = runner.load_run

    def load_late(self: object) -> RunSegment:
        while (SWITCHES / name).exists():
            time.sleep(0.1)
        run: RunSegment = load_run(self)
        return run

    runner.load_run = load_late


# Two liars of one segment who do not agree with one another either.
tamper(Diagnosis, "DiagnosisSegment0Replica1", switched("lie-1", scaled(1.5)))
tamper(Diagnosis, "DiagnosisSegment0Replica2", switched("lie-2", scaled(2.5)))
hang_at_start("DiagnosisSegment0Replica1", "hang")
