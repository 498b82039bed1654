"""Two services whose replicas a test makes fail, each by making a file.

``Faulted`` has two segments of three replicas, ``Refereed`` one segment of five and a
referee. Copied into a project's folder and served from there.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

import bentoml_secure
from bentoml_secure.tensors import Array
from bentoml_secure.testing.faults import Transform, scaled, tamper

SWITCHES = Path(__file__).parent / "switches"
SLOW_SECONDS = 1.0


class _Diagnosing:
    secure: bentoml_secure.Secure

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML's
    async def diagnose(self, features: list[list[float]]) -> dict[str, list[float]]:
        feed = {"features": np.asarray(features, np.float32)}
        out = await self.secure.infer(feed)
        return {"malignant": out["probability"][:, 0].tolist()}


@bentoml_secure.service(
    plan="models/diagnosis",
    replicas=3,
    scenarios="faulted.toml",
    name="Faulted",
    traffic={"timeout": 60},
)
class Faulted(_Diagnosing):
    """Two segments, three replicas of each."""


@bentoml_secure.service(
    plan="models/whole",
    replicas=5,
    referees=True,
    scenarios="refereed.toml",
    name="Refereed",
    traffic={"timeout": 60},
)
class Refereed(_Diagnosing):
    """One segment, five replicas, a referee."""


def faulty(replica: str, number: int) -> Transform:
    """Return what a replica does to its outputs, by the switches that are on."""
    own, alike = scaled(1.1 + number), scaled(1.5)
    chance = random.Random(number)

    def apply(outputs: dict[str, Array]) -> dict[str, Array]:
        def is_on(fault: str) -> bool:
            return (SWITCHES / f"{fault}-{replica}").exists()

        if is_on("flaky") and chance.random() < 0.5:
            raise RuntimeError("half of the time it fails")
        if is_on("slow"):
            time.sleep(SLOW_SECONDS)
        if is_on("collude"):
            return alike(outputs)
        return own(outputs) if is_on("lie") else outputs

    return apply


for _service in (Faulted, Refereed):
    # BentoML services, which the decorator's type does not say.
    _served: Any = _service
    _names = sorted(name for name in _served.all_services() if name != _served.name)
    for _number, _name in enumerate(_names):
        tamper(_served, _name, faulty(_name, _number))
