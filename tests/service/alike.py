"""The diagnosis service with two replicas of segment 0 that a test makes lie alike.

Copied into the project's folder and served from there, as ``staged.py`` is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bentoml_secure.tensors import Array
from bentoml_secure.testing.faults import scaled, tamper
from services import diagnosis

# A BentoML service, which the decorator's type does not say.
Diagnosis: Any = diagnosis.Diagnosis
SWITCH = Path(__file__).parent / "switches" / "lie-alike"
LIE = scaled(1.5)


def lie(outputs: dict[str, Array]) -> dict[str, Array]:
    """Return a cheaper model's outputs while the switch is on."""
    return LIE(outputs) if SWITCH.exists() else outputs


for replica in (1, 2):
    tamper(Diagnosis, f"DiagnosisSegment0Replica{replica}", lie)
