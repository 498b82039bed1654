"""A deployment within one process, asked through Starlette's test client.

Run by ``test_in_process.py`` in a process of its own: BentoML and Prometheus each keep
state that a process has once.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
from starlette.testclient import TestClient

import bentoml_secure
from bentoml_secure import SecureClient


@bentoml_secure.service(
    plan="models/diagnosis",
    replicas=3,
    scenarios="services/scenarios.toml",
    name="Diagnosis",
    in_process=True,
)
class Diagnosis:
    secure: bentoml_secure.Secure

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML's
    def diagnose(self, features: list[list[float]]) -> dict[str, list[float]]:
        feed = {"features": np.asarray(features, np.float32)}
        out = self.secure.infer_sync(feed)
        return {"malignant": out["probability"][:, 0].tolist()}


class InProcess(httpx.BaseTransport):
    """Carries the secure client's requests to the test client."""

    def __init__(self, client: TestClient) -> None:
        self._client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._client.request(
            request.method,
            request.url.raw_path.decode(),
            headers=dict(request.headers),
            content=request.read(),
        )
        return httpx.Response(
            answer.status_code,
            headers=list(answer.headers.multi_items()),
            stream=httpx.ByteStream(answer.content),
        )


def until_ready(app: TestClient) -> int:
    """Ask for readiness until it is there: sessions with six replicas take a moment."""
    for _ in range(100):
        status = app.get("/readyz").status_code
        if status == 200:
            break
        time.sleep(0.05)
    return status


def main(trust: Path, features: list[list[float]]) -> None:
    """Print the answer and the verdict on its receipt, and /metrics."""
    # A BentoML service, which the decorator's type does not say.
    bento: Any = Diagnosis
    with (
        TestClient(bento.to_asgi()) as app,
        SecureClient("http://in-process", trust, transport=InProcess(app)) as client,
    ):
        ready = until_ready(app)
        answer = client.call("diagnose", {"features": features})
        document = {
            "ready": ready,
            "value": answer.value,
            "verdict": answer.verdict.to_json(),
            "metrics": app.get("/metrics").text,
        }
    print(json.dumps(document))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
