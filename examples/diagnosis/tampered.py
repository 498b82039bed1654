"""The diagnosis service with one replica that lies inside a valid environment.

Its keys are attested, it signs what it says, and what it says is one percent off.
Plan, scenarios and configuration are those of ``services/diagnosis.py``, so callers
trust both alike: only the other replicas can tell.

    bentoml serve examples.diagnosis.tampered:Diagnosis
"""

from __future__ import annotations

from bentoml_secure.testing.faults import scaled, tamper
from services.diagnosis import Diagnosis

LIAR = "DiagnosisSegment0Replica1"

tamper(Diagnosis, LIAR, scaled(1.01))

__all__ = ["LIAR", "Diagnosis"]
