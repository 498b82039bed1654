"""Tumour diagnosis, verifiable: two segments, three replicas each.

The model is trained on the Wisconsin diagnostic data by ``examples/diagnosis/train.py``
and cut by ``bentoml-secure split``; ``make demo`` does both, seals what came of it and
serves this file.
"""

from __future__ import annotations

import bentoml
import numpy as np

import bentoml_secure


@bentoml_secure.service(
    plan="models/diagnosis",
    replicas=3,
    scenarios="services/scenarios.toml",
    name="Diagnosis",
    traffic={"timeout": 30},
)
class Diagnosis:
    """Tells malignant from benign by 30 measurements of cell nuclei."""

    secure: bentoml_secure.Secure

    @bentoml.api
    async def diagnose(self, features: list[list[float]]) -> dict[str, list[float]]:
        """Return the probability of malignancy of each sample.

        Args:
            features: [samples, 30], in the units of the data set.
        """
        feed = {"features": np.asarray(features, np.float32)}
        out = await self.secure.infer(feed)
        return {"malignant": out["probability"][:, 0].tolist()}
