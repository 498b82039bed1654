"""plan.json."""

from __future__ import annotations

from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import SecureError
from bentoml_secure.split.plan import parse_plan
from bentoml_secure.testing.deployment import make_plan
from fuzz._same import require_same


def seeds() -> list[bytes]:
    """Return plans of one and of three segments, and one that was calibrated."""
    documents = [make_plan(segments).to_json() for segments in (1, 3, 1)]
    documents[-1]["runtime"]["permitted"] = [
        {"name": "torch", "version": ">=2.13,<2.14"},
        {"name": "onnxruntime", "version": ">=1.23,<1.24", "graph_level": "BASIC"},
    ]
    documents[-1]["segments"][0] |= {
        "rule": "exact",
        "calibration": {
            "inputs": 64,
            "pairs": 64,
            "largest": 2.5e-06,
            "margin": 8.0,
            "false_alarm": 0.0457,
            "runtimes": ["onnxruntime 1.32.0", "torch 2.13.0"],
            "nearest_cheat": {"name": "fp16", "distance": 0.00039},
        },
    }
    return [canonical_json(document) for document in documents]


def one(data: bytes) -> None:
    """Read bytes as a plan."""
    try:
        plan = parse_plan(data)
    except SecureError:
        return
    again = parse_plan(canonical_json(plan.to_json()))
    require_same((again, again.digest), (plan, plan.digest))
