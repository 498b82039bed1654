"""The diagnosis service on sealed and signed weights, as docs/sealed-models.md has it.

Copied over ``services/diagnosis.py`` of a project.
"""

from __future__ import annotations

import bentoml
import numpy as np

import bentoml_secure


@bentoml_secure.service(
    plan="models/diagnosis",
    signer="owner.pub",
    replicas=3,
    scenarios="services/scenarios.toml",
    name="Diagnosis",
)
class Diagnosis:
    secure: bentoml_secure.Secure

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML's
    async def diagnose(self, features: list[list[float]]) -> dict[str, list[float]]:
        feed = {"features": np.asarray(features, np.float32)}
        out = await self.secure.infer(feed)
        return {"malignant": out["probability"][:, 0].tolist()}
