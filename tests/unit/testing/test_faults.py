"""A tampered replica lies, its neighbours do not."""

from __future__ import annotations

import time
from typing import Any

import bentoml
import numpy as np
import pytest

import bentoml_secure
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.testing.faults import (
    Transform,
    constant,
    delayed,
    noisy,
    scaled,
    tamper,
)
from tests.harness import FEATURES, Project, sample


def make_service(project: Project) -> Any:
    @bentoml_secure.service(
        plan=project.plan,
        replicas=3,
        scenarios=project.folder / "services" / "scenarios.toml",
        name="Faulty",
        in_process=True,
    )
    class Faulty:
        @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
        async def ask(self) -> int:
            return 0

    return Faulty


def run_of(service: Any, replica: str) -> Any:
    runner = service.all_services()[replica].inner
    return runner.load_run(runner.__new__(runner))


def test_only_the_tampered_replica_lies(project: Project) -> None:
    service = make_service(project)
    tamper(service, "FaultySegment0Replica1", scaled(1.5))
    feed = {"features": sample()}
    honest = run_of(service, "FaultySegment0Replica0")(feed)
    again = run_of(service, "FaultySegment0Replica2")(feed)
    lie = run_of(service, "FaultySegment0Replica1")(feed)
    assert honest.keys() == again.keys() == lie.keys()
    for name, array in honest.items():
        np.testing.assert_array_equal(array, again[name])
        np.testing.assert_allclose(lie[name], array * 1.5, rtol=1e-6)


def test_an_unknown_replica_is_refused(project: Project) -> None:
    service = make_service(project)
    for name in ("Faulty", "FaultySegment7Replica0"):
        with pytest.raises(ConfigurationError, match="FaultySegment1Replica2"):
            tamper(service, name, scaled(2))


FLOATS = np.linspace(-1, 1, FEATURES, dtype=np.float32)
WHOLE = np.arange(4, dtype=np.int64)


def test_scaled_keeps_dtypes_and_integers() -> None:
    made = scaled(2)({"a": FLOATS, "b": WHOLE})
    np.testing.assert_array_equal(made["a"], FLOATS * 2)
    assert made["a"].dtype == np.float32
    np.testing.assert_array_equal(made["b"], WHOLE)


def test_noise_differs_by_seed_and_run() -> None:
    first, second = noisy(1, 0.1), noisy(2, 0.1)
    made = [first({"a": FLOATS})["a"], first({"a": FLOATS})["a"]]
    made.append(second({"a": FLOATS})["a"])
    for index, one in enumerate(made):
        assert one.dtype == np.float32
        for other in made[index + 1 :]:
            assert not np.array_equal(one, other)
    np.testing.assert_array_equal(noisy(1, 0.1)({"b": WHOLE})["b"], WHOLE)


def test_constant_fills_any_dtype() -> None:
    made = constant(3)({"a": FLOATS, "b": WHOLE})
    assert set(made["a"]) == {np.float32(3)}
    assert set(made["b"]) == {3}


def test_delayed_is_late_and_honest() -> None:
    transform: Transform = delayed(0.05)
    started = time.perf_counter()
    assert transform({"a": FLOATS})["a"] is FLOATS
    assert time.perf_counter() - started >= 0.05
