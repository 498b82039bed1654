"""One replica a segment, sealed or not as the caller asks. Served from a project."""

from __future__ import annotations

import bentoml
import numpy as np

import bentoml_secure


@bentoml_secure.service(
    plan="models/diagnosis",
    replicas=1,
    scenarios="wired.toml",
    name="Wired",
)
class Wired:
    secure: bentoml_secure.Secure

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML's
    async def diagnose(self, features: list[list[float]]) -> dict[str, list[float]]:
        feed = {"features": np.asarray(features, np.float32)}
        out = await self.secure.infer(feed)
        return {"malignant": out["probability"][:, 0].tolist()}
