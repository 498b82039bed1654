"""A small network in service, every segment with three replicas and a prover.

Copied into a project's folder and served from there.
"""

from __future__ import annotations

import bentoml
import numpy as np

import bentoml_secure


@bentoml_secure.service(
    plan="models/network",
    replicas=3,
    scenarios="proven.toml",
    name="Proven",
    proofs="models/proofs",
    traffic={"timeout": 300},
)
class Proven:
    """Two segments, or as many as the plan in the folder has."""

    secure: bentoml_secure.Secure

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML's
    async def score(self, measurements: list[list[float]]) -> dict[str, object]:
        feed = {"measurements": np.asarray(measurements, np.float32)}
        out = await self.secure.infer(feed)
        return {"scores": out["scores"].tolist()}
