"""The service under attack: small caps, and handlers that break the rules.

Copied into the project's folder and served from there.
"""

from __future__ import annotations

import bentoml
import numpy as np

import bentoml_secure
from bentoml_secure.errors import QuorumNotReached

CAP_BYTES = 8 << 20


@bentoml_secure.service(
    plan="models/diagnosis",
    replicas=3,
    scenarios="attacked.toml",
    name="Attacked",
    max_body_bytes=CAP_BYTES,
    max_message_bytes=CAP_BYTES,
    traffic={"timeout": 30},
)
class Attacked:
    secure: bentoml_secure.Secure

    @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
    async def diagnose(self, features: list[list[float]]) -> dict[str, list[float]]:
        return await self._ask(features)

    @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
    async def swallow(self, features: list[list[float]]) -> dict[str, list[float]]:
        try:
            return await self._ask(features)
        except QuorumNotReached:
            return {"malignant": [0.0]}

    @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
    async def silent(self, features: list[list[float]]) -> dict[str, list[float]]:
        return {"malignant": [0.0 for _ in features]}

    @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
    async def boast(
        self, features: list[list[float]], ctx: bentoml.Context
    ) -> dict[str, list[float]]:
        answer = await self._ask(features)
        ctx.response.headers["Bsec-Receipt-Id"] = "0" * 32
        ctx.response.headers["Bsec-Approved-By"] = "everybody"
        return answer

    async def _ask(self, features: list[list[float]]) -> dict[str, list[float]]:
        feed = {"features": np.asarray(features, np.float32)}
        out = await self.secure.infer(feed)
        return {"malignant": out["probability"][:, 0].tolist()}
