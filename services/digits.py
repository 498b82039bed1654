"""Handwritten digits, proven: three segments, three replicas and a prover each.

``python -m examples.digits.prepare`` trains the network, splits it and makes what
proves it. Answers under the scenario `proven` are provisional until each segment's
proof is attached to the receipt.
"""

from __future__ import annotations

import bentoml
import numpy as np

import bentoml_secure

BRIGHTEST = 16.0
"""Pixels are 0 to 16 in the data set, 0 to 1 in the network."""


@bentoml_secure.service(
    plan="models/digits",
    proofs="models/digits-proofs",
    replicas=3,
    scenarios="services/digits.toml",
    name="Digits",
    traffic={"timeout": 30},
)
class Digits:
    """Reads a handwritten digit of 8x8 pixels."""

    secure: bentoml_secure.Secure

    @bentoml.api
    async def read(self, image: list[list[float]]) -> dict[str, list[float]]:
        """Return the logits of the ten digits.

        Args:
            image: [8, 8], pixels of 0 to 16. One image: a proof is of one shape.
        """
        pixels = np.asarray(image, np.float32) / np.float32(BRIGHTEST)
        out = await self.secure.infer({"image": pixels.reshape(1, 1, 8, 8)})
        return {"logits": out["logits"][0].tolist()}
