"""One segment, three replicas, and faults that a test switches on by making a file.

Copied into a project's folder and served from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

import bentoml_secure
from bentoml_secure.attestation.evidence import Endorsements, Evidence
from bentoml_secure.attestation.roles import Attester
from bentoml_secure.errors import UnavailableError
from bentoml_secure.serving import deployment as room
from bentoml_secure.tensors import Array
from bentoml_secure.testing.faults import delayed, tamper

SWITCHES = Path(__file__).parent / "switches"
LONG_SECONDS = 6.5
"""Longer than evidence is accepted for."""


def is_on(name: str) -> bool:
    return (SWITCHES / name).exists()


class Unplugged:
    """A device that does not answer while its switch is on."""

    def __init__(self, attester: Attester, switch: str) -> None:
        self._attester = attester
        self._switch = switch

    @property
    def kind(self) -> str:
        return self._attester.kind

    @property
    def endorsements(self) -> Endorsements:
        return self._attester.endorsements

    def attest(self, report_data: bytes) -> Evidence:
        if is_on(self._switch):
            raise UnavailableError("the device does not answer")
        return self._attester.attest(report_data)


# An attester that a test can unplug, in place of what every process opens.
ROOM: Any = room
_open_attester = ROOM.open_attester


def open_unplugged(
    kind: str, environ: Mapping[str, str], *, clock: Callable[[], datetime]
) -> Attester:
    attester: Attester = _open_attester(kind, environ, clock=clock)
    return Unplugged(attester, f"device-{environ['BENTOML_SECURE_SERVICE']}")


ROOM.open_attester = open_unplugged


@bentoml_secure.service(
    plan="models/whole",
    replicas=3,
    scenarios="rotated.toml",
    name="Rotated",
    traffic={"timeout": 60},
)
class Rotated:
    secure: bentoml_secure.Secure

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML's
    async def diagnose(self, features: list[list[float]]) -> dict[str, list[float]]:
        return await self._ask(features)

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML's
    async def dawdle(self, features: list[list[float]]) -> dict[str, list[float]]:
        """Answer once the evidence under the answer is too old."""
        answer = await self._ask(features)
        await asyncio.sleep(LONG_SECONDS)
        return answer

    async def _ask(self, features: list[list[float]]) -> dict[str, list[float]]:
        feed = {"features": np.asarray(features, np.float32)}
        out = await self.secure.infer(feed)
        return {"malignant": out["probability"][:, 0].tolist()}


def slow(outputs: dict[str, Array]) -> dict[str, Array]:
    return delayed(LONG_SECONDS)(outputs) if is_on("slow") else outputs


# A BentoML service, which the decorator's type does not say.
served: Any = Rotated
for replica in range(3):
    tamper(served, f"RotatedSegment0Replica{replica}", slow)
