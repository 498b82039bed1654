"""Tumour diagnosis with zero-knowledge proofs: the same model, plan and replicas.

Beside its three replicas each segment has a prover. A critical request is proven, a
general one if it is challenged after its epoch was committed to (proven.toml). The
proof set-up comes from ``bentoml-secure prove setup``; ``make demo`` makes one.
"""

from __future__ import annotations

import bentoml
import numpy as np

import bentoml_secure


@bentoml_secure.service(
    plan="models/diagnosis",
    proofs="models/diagnosis-proofs",
    replicas=3,
    scenarios="services/proven.toml",
    name="Diagnosis",
    traffic={"timeout": 30},
)
class Diagnosis:
    """Tells malignant from benign by 30 measurements of cell nuclei."""

    secure: bentoml_secure.Secure

    @bentoml.api
    async def diagnose(self, features: list[list[float]]) -> dict[str, list[float]]:
        """Return the probability of malignancy of one sample.

        Args:
            features: [1, 30], in the units of the data set: a proof is of one sample.
        """
        feed = {"features": np.asarray(features, np.float32)}
        out = await self.secure.infer(feed)
        return {"malignant": out["probability"][:, 0].tolist()}
