"""The diagnosis service with options that the environment varies.

Copied into the project's folder; what a test does to it must keep it from starting.
"""

from __future__ import annotations

import json
import os
from typing import Any

import bentoml
import numpy as np

import bentoml_secure

OPTIONS: dict[str, Any] = {
    "plan": "models/diagnosis",
    "replicas": 3,
    "scenarios": "services/scenarios.toml",
    "name": "Diagnosis",
    **json.loads(os.environ.get("VARIED", "{}")),
}


@bentoml_secure.service(**OPTIONS)
class Diagnosis:
    secure: bentoml_secure.Secure

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML's
    async def diagnose(self, features: list[list[float]]) -> dict[str, list[float]]:
        feed = {"features": np.asarray(features, np.float32)}
        out = await self.secure.infer(feed)
        return {"malignant": out["probability"][:, 0].tolist()}
