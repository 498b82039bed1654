"""A replica cheats as its file says, really, and is honest without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest

import bentoml_secure
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.split import load_plan, load_segment
from bentoml_secure.split.alterations import ALTERATIONS
from bentoml_secure.testing.cheats import (
    ANOTHERS,
    CHEATS,
    STALE,
    CheatingReplica,
    cheat_by_file,
    noisy,
)
from tests.harness import Project, sample

distance = load_rule("within_tolerance").distance


def replica_of(project: Project, *, index: int = 0, seed: int = 1) -> CheatingReplica:
    plan = load_plan(project.plan)
    run = load_segment(project.plan, plan, index, threads=1).run_unchecked
    return CheatingReplica(project.plan, plan, index, run, seed=seed)


def feed(seed: int, count: int = 2) -> dict[str, Any]:
    return {"features": sample(count, seed=seed)}


def bits(outputs: Any) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in outputs.items()}


@pytest.mark.parametrize("cheat", CHEATS)
def test_each_cheat_is_further_off_than_the_tolerance(
    project: Project, cheat: str
) -> None:
    replica = replica_of(project)
    for seed in (1, 2):
        replica.run(feed(seed), None)
    # Of so many rows some go through whichever unit was changed.
    asked = feed(3, count=32)
    honest = replica_of(project).run(asked, None)
    made = replica.run(asked, cheat)
    tolerance = load_plan(project.plan).segments[0].tolerance
    assert {n: (a.dtype, a.shape) for n, a in made.items()} == {
        n: (a.dtype, a.shape) for n, a in honest.items()
    }
    got = distance(made, honest)
    assert got is not None
    assert got > 2 * tolerance
    # It was not its honest run that went bad.
    assert bits(replica.run(asked, None)) == bits(honest)


def test_the_cheats_are_all_that_were_asked_for() -> None:
    assert set(CHEATS) == {*ALTERATIONS, "stale", "anothers", "noise-4"}
    assert len(ALTERATIONS) == 7


def test_noise_is_exactly_as_large_as_it_says(project: Project) -> None:
    tolerance = load_plan(project.plan).segments[0].tolerance
    replica = replica_of(project)
    honest = replica.run(feed(1), None)
    for factor in (0.5, 1.5, 40.0):
        got = distance(honest, replica.run(feed(1), f"noise-{factor!r}"))
        # Both round to float32; the smaller scale of the two is taken.
        assert got == pytest.approx(factor * tolerance, rel=0.02)


def test_two_replicas_are_not_noisy_alike(project: Project) -> None:
    one = replica_of(project, seed=1).run(feed(1), "noise-4")
    other = replica_of(project, seed=2).run(feed(1), "noise-4")
    assert bits(one) != bits(other)


def test_zeros_stay_zeros() -> None:
    made = noisy(np.zeros((2, 3), np.float32), 1.0, np.random.default_rng(1))
    assert not made.any()


def test_earlier_answers_come_in_the_shape_that_is_asked_for(project: Project) -> None:
    replica = replica_of(project)
    first, second = (replica.run(feed(seed), None) for seed in (1, 2))
    stale = replica.run(feed(3, count=5), STALE)
    for name, array in stale.items():
        assert array.shape[0] == 5
        assert array[:2].tobytes() == first[name].tobytes()
    # The answer to feed(3) was made too, and is the next one's.
    anothers = replica.run(feed(4, count=5), ANOTHERS)
    third = replica_of(project).run(feed(3, count=5), None)
    assert bits(anothers) == bits(third)
    assert bits(anothers) != bits(second)


@pytest.mark.parametrize("cheat", [STALE, ANOTHERS])
def test_who_has_answered_nothing_cannot_repeat_it(
    project: Project, cheat: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"{cheat}: .* answered nothing"):
        replica_of(project).run(feed(1), cheat)


@pytest.mark.parametrize(
    "cheat", ["", "honest", "noise-", "noise-nan", "noise--1", "4"]
)
def test_an_unknown_cheat_is_refused(project: Project, cheat: str) -> None:
    with pytest.raises(ConfigurationError, match="want one of fp16, bf16"):
        replica_of(project).run(feed(1), cheat)


def test_replicas_look_at_their_own_file_each_time(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @bentoml_secure.service(
        plan=project.plan,
        replicas=3,
        scenarios=project.folder / "services" / "scenarios.toml",
        name="Cheated",
        in_process=True,
    )
    class Cheated:
        @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
        async def ask(self) -> int:
            return 0

    service: Any = Cheated
    names = ("CheatedSegment0Replica0", "CheatedSegment0Replica1")
    runners = {name: service.all_services()[name].inner for name in names}
    plan = load_plan(project.plan)
    for runner in runners.values():
        loaded = load_segment(project.plan, plan, 0, threads=1)
        monkeypatch.setattr(
            runner, "load_run", lambda self, run=loaded.run_unchecked: run
        )
    cheat_by_file(service, tmp_path)
    runs = {n: r.load_run(r.__new__(r)) for n, r in runners.items()}
    honest = bits(replica_of(project).run(feed(1), None))
    (tmp_path / "CheatedSegment0Replica1").write_text("int4\n")
    assert bits(runs["CheatedSegment0Replica0"](feed(1))) == honest
    assert bits(runs["CheatedSegment0Replica1"](feed(1))) != honest
    (tmp_path / "CheatedSegment0Replica1").unlink()
    assert bits(runs["CheatedSegment0Replica1"](feed(1))) == honest
