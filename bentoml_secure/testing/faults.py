"""Replicas that lie from inside: what an attested process does when it is broken.

A replica made to lie here loads the real segment, has real keys and evidence, and
signs what it sends; only its outputs are not the segment's. No check of signatures,
evidence or formats can notice: only the other replicas, or a proof, can.

    # tampered.py, served as `bentoml serve tampered:Diagnosis`
    from services.diagnosis import Diagnosis

    tamper(Diagnosis, "DiagnosisSegment0Replica1", scaled(1.01))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.serving.runner import RunSegment
from bentoml_secure.tensors import Array

Transform = Callable[[dict[str, Array]], dict[str, Array]]
"""From a segment's outputs by name to what the replica says they are."""


def tamper(service: Any, replica: str, transform: Transform) -> None:
    """Make one replica of a deployment lie in every process that imports this.

    Args:
        service: What ``bentoml_secure.service`` made of the class.
        replica: Name of the replica's service.
        transform: Applied to the outputs of each of its runs.

    Raises:
        ConfigurationError: The service has no such replica.
    """
    names = sorted(name for name in service.all_services() if name != service.name)
    if replica not in names:
        raise ConfigurationError(
            f"replica: got {replica!r:.100}, want one of {', '.join(names):.300}"
        )
    runner = service.all_services()[replica].inner
    load_run = runner.load_run

    def load_lying_run(self: Any) -> RunSegment:
        return lying(load_run(self), transform)

    runner.load_run = load_lying_run


def lying(run: RunSegment, transform: Transform) -> RunSegment:
    """Return a run whose outputs go through ``transform``."""

    def run_and_lie(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        return transform(dict(run(tensors)))

    return run_and_lie


def scaled(factor: float) -> Transform:
    """Return a transform that multiplies floating-point outputs: a cheaper model."""

    def transform(outputs: dict[str, Array]) -> dict[str, Array]:
        return {
            name: (array * factor).astype(array.dtype) if _is_float(array) else array
            for name, array in outputs.items()
        }

    return transform


def noisy(seed: int, size: float) -> Transform:
    """Return a transform that adds noise of this standard deviation to floats.

    Two replicas with different seeds do not agree with one another either.
    """
    rng = np.random.default_rng(seed)

    def transform(outputs: dict[str, Array]) -> dict[str, Array]:
        return {
            name: (array + rng.normal(0, size, array.shape)).astype(array.dtype)
            if _is_float(array)
            else array
            for name, array in outputs.items()
        }

    return transform


def constant(value: float) -> Transform:
    """Return a transform that answers the same value everywhere: no model at all."""

    def transform(outputs: dict[str, Array]) -> dict[str, Array]:
        return {name: np.full_like(array, value) for name, array in outputs.items()}

    return transform


def delayed(seconds: float) -> Transform:
    """Return a transform that answers honestly, but late."""

    def transform(outputs: dict[str, Array]) -> dict[str, Array]:
        time.sleep(seconds)
        return outputs

    return transform


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f"
