"""Verifiable split inference for BentoML.

    service             class decorator: BentoML services whose answers carry receipts
    Secure              type of ``self.secure`` in such a class
    SecureClient        calls such a service and verifies what comes back
    AsyncSecureClient   the same, for asyncio
    split               cut ONNX and torch models into segments
    receipts            receipts, bundles, offline verification
    errors              the one error tree

    @bentoml_secure.service(plan="models/diagnosis", replicas=3,
                            scenarios="scenarios.toml", name="Diagnosis")
    class Diagnosis:
        secure: bentoml_secure.Secure

        @bentoml.api
        async def diagnose(self, features: list[list[float]]) -> dict:
            feed = {"features": np.asarray(features, np.float32)}
            out = await self.secure.infer(feed)
            return {"malignant": out["probability"][:, 0].tolist()}

Names are loaded on first use: a client never imports bentoml, a service never httpx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bentoml_secure.client import AsyncSecureClient, SecureClient
    from bentoml_secure.serving.service import Secure, service

__all__ = ["AsyncSecureClient", "Secure", "SecureClient", "__version__", "service"]

__version__ = "0.1.0"

_HOMES = {
    "AsyncSecureClient": "bentoml_secure.client",
    "Secure": "bentoml_secure.serving.service",
    "SecureClient": "bentoml_secure.client",
    "service": "bentoml_secure.serving.service",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
