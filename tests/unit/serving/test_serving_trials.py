"""Trials: known answers dealt to replicas, and who gets a vote by them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from bentoml_secure.consensus.known_answers import KnownAnswer, KnownAnswers
from bentoml_secure.consensus.ledger import Ledger
from bentoml_secure.consensus.reputation import REQUIRED_TRIALS, Outcome
from bentoml_secure.consensus.rules.within_tolerance import WithinTolerance
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.serving import trials as module
from bentoml_secure.serving.standing import Standing
from bentoml_secure.serving.trials import Ask, Examiner, Trials
from bentoml_secure.split import Plan, load_chain
from bentoml_secure.split.runtime import Chain
from bentoml_secure.tensors import Array
from tests.unit.serving.serving_parts import feed

Tensors = Mapping[str, Array]

COUNT = 10


@pytest.fixture(scope="module")
def chain(skips: Path) -> Chain:
    return load_chain(skips / "plan", threads=1)


@pytest.fixture(scope="module")
def answers(chain: Chain) -> KnownAnswers:
    runs = [chain.run_all(feed(seed, batch=1)) for seed in range(COUNT)]
    return KnownAnswers(
        plan=chain.plan.digest,
        segments=tuple(
            tuple(
                KnownAnswer(
                    inputs={spec.name: run[spec.name] for spec in segment.inputs},
                    outputs={spec.name: run[spec.name] for spec in segment.outputs},
                )
                for run in runs
            )
            for segment in chain.plan.segments
        ),
    )


@pytest.fixture
def plan(chain: Chain) -> Plan:
    return chain.plan


@pytest.fixture
def trials(answers: KnownAnswers, plan: Plan) -> Trials:
    return Trials(answers, plan)


# --- what is dealt ----------------------------------------------------------


def test_every_answer_comes_once_before_any_comes_twice(trials: Trials) -> None:
    first = [trials.next(0, "a").name for _ in range(COUNT)]
    second = [trials.next(0, "a").name for _ in range(COUNT)]
    assert set(first) == set(second) == {f"trial {i}" for i in range(COUNT)}
    others = {
        tuple(trials.next(0, name).name for _ in range(COUNT)) for name in "bcdef"
    }
    assert len(others) > 1


def test_inputs_and_outputs_belong_together(trials: Trials, chain: Chain) -> None:
    for segment in range(3):
        answer = trials.next(segment, "a").answer
        made = chain.segments[segment].run(answer.inputs)
        for name, array in answer.outputs.items():
            np.testing.assert_array_equal(made[name], array)


def test_a_file_is_read(answers: KnownAnswers, plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "trials"
    path.write_bytes(answers.to_bytes())
    answer = Trials.read(path, plan).next(2, "a").answer
    assert answer.inputs.keys() == {"t", "x", "mask"}


def test_a_file_that_is_none(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "trials"
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        Trials.read(path, plan)
    path.write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match=r"trials /.*BSKNOWN1"):
        Trials.read(path, plan)


def test_answers_of_another_plan(answers: KnownAnswers, plan: Plan) -> None:
    other = replace(answers, plan=digest_json("another"))
    with pytest.raises(ConfigurationError, match="got known answers of plan"):
        Trials(other, plan)


def test_answers_of_too_few_segments(answers: KnownAnswers, plan: Plan) -> None:
    with pytest.raises(ConfigurationError, match="of 2 segments, the plan has 3"):
        Trials(replace(answers, segments=answers.segments[:2]), plan)


def test_too_few_answers(answers: KnownAnswers, plan: Plan) -> None:
    few = answers.segments[1][: REQUIRED_TRIALS - 1]
    segments = (answers.segments[0], few, answers.segments[2])
    with pytest.raises(ConfigurationError, match="segment 1: got 7, want 8 or more"):
        Trials(replace(answers, segments=segments), plan)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_tensors_that_the_segment_does_not_have(
    answers: KnownAnswers, plan: Plan, side: str
) -> None:
    wrong = {"x": np.zeros((1, 4), np.float64)}
    changed = {"inputs": wrong} if side == "inputs" else {"outputs": wrong}
    bad = replace(answers.segments[0][3], **changed)
    first = (*answers.segments[0][:3], bad, *answers.segments[0][4:])
    with pytest.raises(ConfigurationError, match="segment 0: number 3: tensor"):
        Trials(replace(answers, segments=(first, *answers.segments[1:])), plan)


# --- who is examined --------------------------------------------------------

REPLICAS = (("a0", "a1"), ("b0",), ("c0",))


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Standing]:
    ledger = Ledger(tmp_path / "reputation.sqlite")
    made = Standing(ledger, REPLICAS, has_trials=True, flush_seconds=3600)
    yield made
    made.close()


@dataclass
class Asked:
    """Replicas that answer honestly, but for those that are told otherwise."""

    chain: Chain
    by: dict[str, Callable[[Tensors], Awaitable[Tensors]]] = field(default_factory=dict)
    count: Counter[str] = field(default_factory=Counter)

    async def __call__(self, replica: str, segment: int, inputs: Tensors) -> Tensors:
        self.count[replica] += 1
        honest = self.chain.segments[segment].run(inputs)
        return await self.by[replica](honest) if replica in self.by else honest


@pytest.fixture
def asked(chain: Chain) -> Asked:
    return Asked(chain)


def distance(segment: int, known: Tensors, got: Tensors) -> float | None:
    return WithinTolerance().distance(known, got)


def examiner(
    standing: Standing, trials: Trials, ask: Ask, *, deadline_seconds: float = 5.0
) -> Examiner:
    return Examiner(
        standing,
        trials,
        ask,
        distance=distance,
        tolerances=(2e-5, 2e-5, 2e-5),
        interval_seconds=0.001,
        deadline_seconds=deadline_seconds,
    )


async def run_until(examiner: Examiner, is_so: Callable[[], bool]) -> None:
    task = asyncio.create_task(examiner.run())
    try:
        async with asyncio.timeout(30):
            while not is_so():
                assert not task.done()
                await asyncio.sleep(0.005)
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()


def votes(standing: Standing, *replicas: str) -> bool:
    return all(standing.barred(name) is None for name in replicas)


def counted(segment: str, outcome: str) -> float:
    labels = {"segment": segment, "outcome": outcome}
    return REGISTRY.get_sample_value("bentoml_secure_trials_total", labels) or 0.0


async def test_honest_newcomers_get_a_vote_and_no_trials_after(
    standing: Standing, trials: Trials, asked: Asked
) -> None:
    before = counted("1", "agreed")
    everyone = [name for names in REPLICAS for name in names]
    assert not votes(standing, *everyone)
    await run_until(
        examiner(standing, trials, asked), lambda: votes(standing, *everyone)
    )
    assert asked.count == dict.fromkeys(everyone, REQUIRED_TRIALS)
    assert counted("1", "agreed") == before + REQUIRED_TRIALS
    assert standing.weights(0, ["a0"]) == {"a0": 0.5}


async def test_a_liar_gets_none_and_is_expelled_in_the_end(
    standing: Standing,
    trials: Trials,
    asked: Asked,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def cheaper(honest: Tensors) -> Tensors:
        return {
            name: array.astype(np.float16).astype(array.dtype)
            for name, array in honest.items()
        }

    asked.by["a1"] = cheaper
    await run_until(
        examiner(standing, trials, asked),
        lambda: standing.barred("a1") == "expelled: quarantined for good",
    )
    assert not votes(standing, "a1")
    assert votes(standing, "a0")
    # Eight to the quarantine, ten from there to the bottom.
    assert asked.count["a1"] == 18
    assert standing.dissents("a1")[0].request_id.startswith("trial ")
    assert any("a1: a wrong answer to trial" in m for m in caplog.messages)


async def test_a_quarantined_replica_comes_back_by_trials(
    tmp_path: Path, trials: Trials, asked: Asked
) -> None:
    standing = Standing(Ledger(tmp_path / "led"), REPLICAS, flush_seconds=3600)
    for i in range(8):
        standing.record(f"r{i}", 1, {"b0": Outcome.DISSENTED})
    standing = reopened(standing, tmp_path / "led")
    assert standing.is_quarantined("b0")
    await run_until(examiner(standing, trials, asked), lambda: votes(standing, "b0"))
    # Nobody else was asked anything.
    assert asked.count == {"b0": REQUIRED_TRIALS}
    assert standing.weights(1, ["b0"]) == {"b0": 0.2}
    standing.close()


def reopened(standing: Standing, path: Path) -> Standing:
    standing.close()
    return Standing(Ledger(path), REPLICAS, has_trials=True, flush_seconds=3600)


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("not attested"),
        VerificationError("not its key"),
        ConnectionResetError("gone"),
        KeyError("a fault of ours"),
    ],
)
async def test_no_answer_passes_nothing_and_costs_nothing(
    standing: Standing,
    trials: Trials,
    asked: Asked,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)

    async def fail(honest: Tensors) -> Tensors:
        raise error

    asked.by["a1"] = fail
    await run_until(
        examiner(standing, trials, asked), lambda: asked.count["a1"] > REQUIRED_TRIALS
    )
    assert standing.barred("a1") == "on trial: 0 of 8 trials passed"
    assert standing.weights(0, ["a1"]) == {"a1": 0.5}
    assert standing.dissents("a1") == ()
    # Only what should not happen is an error.
    assert bool(caplog.records) is isinstance(error, KeyError)


async def test_who_hangs_holds_up_nobody(
    standing: Standing, trials: Trials, asked: Asked
) -> None:
    async def hang(honest: Tensors) -> Tensors:
        await asyncio.Event().wait()
        return honest

    asked.by["a1"] = hang
    await run_until(
        examiner(standing, trials, asked, deadline_seconds=0.01),
        lambda: votes(standing, "a0", "b0", "c0"),
    )
    assert not votes(standing, "a1")
    assert standing.weights(0, ["a1"]) == {"a1": 0.5}


async def test_incomparable_answers_are_wrong(
    standing: Standing, trials: Trials, asked: Asked
) -> None:
    async def other(honest: Tensors) -> Tensors:
        return {"other": np.zeros(3)}

    asked.by["c0"] = other
    await run_until(
        examiner(standing, trials, asked), lambda: standing.is_quarantined("c0")
    )
    assert len(standing.dissents("c0")) >= 8


async def test_asks_are_few_at_once(
    standing: Standing, trials: Trials, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_AT_ONCE", 2)
    under_way, most = 0, 0

    async def slow(honest: Tensors) -> Tensors:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.005)
        under_way -= 1
        return honest

    everyone = [name for names in REPLICAS for name in names]
    asked.by = dict.fromkeys(everyone, slow)
    await run_until(
        examiner(standing, trials, asked), lambda: votes(standing, *everyone)
    )
    assert most == 2


async def test_cancelling_ends_what_is_under_way(
    standing: Standing, trials: Trials
) -> None:
    begun, ended = asyncio.Event(), []

    async def hang(replica: str, segment: int, inputs: Tensors) -> Tensors:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(replica)
        return inputs

    task = asyncio.create_task(examiner(standing, trials, hang).run())
    await asyncio.wait_for(begun.wait(), 10)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert sorted(ended) == ["a0", "a1", "b0", "c0"]
    # What was cancelled is no outcome.
    assert standing.barred("a0") == "on trial: 0 of 8 trials passed"
