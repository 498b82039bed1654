"""Reputations where they count: an engine, its replicas, and an entry over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bentoml_secure.consensus.known_answers import KnownAnswer, KnownAnswers
from bentoml_secure.consensus.ledger import Ledger
from bentoml_secure.consensus.reputation import REQUIRED_TRIALS, Outcome
from bentoml_secure.errors import QuorumNotReached
from bentoml_secure.serving import lockstep
from bentoml_secure.serving.engine import Engine
from bentoml_secure.serving.exchange import Exchange
from bentoml_secure.serving.runner import RunSegment
from bentoml_secure.serving.standing import Standing
from bentoml_secure.serving.trials import Examiner, Trials
from bentoml_secure.split import load_chain
from bentoml_secure.testing.faults import lying, scaled
from tests.unit.serving.serving_parts import Ground, Wrapped, feed, name_of

Runs = Mapping[tuple[int, int], RunSegment]
Open = Callable[..., Awaitable[tuple[Engine, Standing]]]

LIAR = name_of(1, 2)


@pytest.fixture
async def opened(ground: Ground, tmp_path: Path) -> AsyncIterator[Open]:
    """Open an engine with a standing of its own; all are closed."""
    engines = []

    async def opened(
        runs: Runs | None = None, *, has_trials: bool = False
    ) -> tuple[Engine, Standing]:
        base = await ground.attested(
            runs=runs or {}, wrap=lambda i, r, channel: Wrapped(channel)
        )
        names = [[peer.name for peer in replicas] for replicas in base.peers]
        standing = Standing(
            Ledger(tmp_path / "ledger"),
            names,
            has_trials=has_trials,
            flush_seconds=3600,
        )
        engine = Engine(ground.plan, base.peers, (), standing)
        engines.append(engine)
        return engine, standing

    yield opened
    for engine in engines:
        await engine.close()


@pytest.fixture
def trials(ground: Ground, skips: Path) -> Trials:
    chain = load_chain(skips / "plan", threads=1)
    runs = [chain.run_all(feed(seed)) for seed in range(REQUIRED_TRIALS)]
    segments = tuple(
        tuple(
            KnownAnswer(
                inputs={spec.name: run[spec.name] for spec in segment.inputs},
                outputs={spec.name: run[spec.name] for spec in segment.outputs},
            )
            for run in runs
        )
        for segment in ground.plan.segments
    )
    return Trials(KnownAnswers(plan=ground.plan.digest, segments=segments), ground.plan)


@pytest.fixture
def lie(ground: Ground) -> Runs:
    """Let the last replica of segment 1 answer a percent too much."""
    return {(1, 2): lying(ground.segments[1].run_unchecked, scaled(1.01))}


@asynccontextmanager
async def examined(
    ground: Ground, engine: Engine, standing: Standing, trials: Trials
) -> AsyncIterator[None]:
    examiner = Examiner(
        standing,
        trials,
        lambda name, index, inputs: engine.examine(
            ground.scenario, name, index, inputs
        ),
        distance=lambda index, a, b: engine.lockstep.distances[index](a, b),
        tolerances=[segment.tolerance for segment in ground.plan.segments],
        interval_seconds=0.001,
    )
    task = asyncio.create_task(examiner.run())
    yield
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.005)


def voters(standing: Standing, ground: Ground) -> set[str]:
    names = [name_of(i, r) for i in range(3) for r in range(ground.replicas)]
    return {name for name in names if standing.barred(name) is None}


async def test_newcomers_earn_their_votes_in_real_exchanges(
    ground: Ground, opened: Open, trials: Trials, lie: Runs, tmp_path: Path
) -> None:
    engine, standing = await opened(lie, has_trials=True)
    entry = ground.entry(engine, tmp_path / "store")
    with pytest.raises(QuorumNotReached, match="on trial: 0 of 8 trials passed"):
        await engine.infer(ground.context(), feed())
    assert not await entry.is_ready()
    async with examined(ground, engine, standing, trials):
        await until(lambda: len(voters(standing, ground)) == 8)
        await until(lambda: standing.is_quarantined(LIAR))
    assert LIAR not in voters(standing, ground)
    assert await entry.is_ready()
    context = ground.context()
    await engine.infer(context, feed())
    (absence,) = context.infers[0].segments[1].tally.absent
    assert absence.replica == LIAR
    assert absence.reason.startswith("in quarantine: reputation 0.0")
    entry.store.close()


async def test_a_trial_looks_like_any_other_exchange(
    ground: Ground, opened: Open, trials: Trials
) -> None:
    engine, standing = await opened()
    for name in (name_of(1, 0), name_of(1, 1), LIAR):
        standing.record("r", 1, {name: Outcome.AGREED})
    await engine.infer(ground.context(), feed())
    answer = trials.next(1, LIAR).answer
    await engine.examine(ground.scenario, LIAR, 1, answer.inputs)
    channel = engine.peers[1][2].channel
    assert isinstance(channel, Wrapped)
    real, trial = channel.exchanges

    def form(exchange: Exchange) -> dict[str, object]:
        """Return all that is not random, and how long what is random is."""
        return {
            "request_id": len(exchange.request_id),
            "nonce": len(exchange.nonce),
            "exchange_id": len(exchange.exchange_id),
            "infer_index": exchange.infer_index,
            "plan": exchange.plan_digest,
            "segment": exchange.segment,
            "key_document": exchange.key_document,
            "salts": sorted(exchange.input_salts) + sorted(exchange.output_salts),
        }

    assert form(trial) == form(real)
    assert trial.request_id != real.request_id
    assert trial.nonce != real.nonce


async def test_a_liar_is_quarantined_by_what_it_answers(
    ground: Ground, opened: Open, lie: Runs
) -> None:
    engine, standing = await opened(lie)
    for seed in range(1, 9):
        assert standing.barred(LIAR) is None
        context = ground.context(seed)
        await engine.infer(context, feed())
        # A quorum may have been there before the liar spoke.
        for late in context.late:
            await late.task
        dissenters = context.infers[0].segments[1].tally.dissenters
        if LIAR not in dissenters:
            standing.record("late", 1, {LIAR: Outcome.DISSENTED})
    assert standing.is_quarantined(LIAR)
    assert len(standing.dissents(LIAR)) == 8
    others = voters(standing, ground)
    assert len(others) == 8
    assert all(standing.weights(1, [name])[name] > 0.5 for name in others)


async def test_nobody_pays_where_nobody_decides(ground: Ground, opened: Open) -> None:
    honest = ground.segments[1].run_unchecked
    runs = {
        (1, 1): lying(honest, scaled(1.01)),
        (1, 2): lying(honest, scaled(1.02)),
    }
    engine, standing = await opened(runs)
    for seed in range(1, 11):
        with pytest.raises(QuorumNotReached, match="3 distinct answers"):
            await engine.infer(ground.context(seed), feed())
    names = [name_of(1, replica) for replica in range(3)]
    assert standing.weights(1, names) == dict.fromkeys(names, 0.5)
    # Segment 0 was decided.
    assert standing.weights(0, [name_of(0, 0)])[name_of(0, 0)] > 0.5


@pytest.fixture
async def farmed(opened: Open, lie: Runs) -> tuple[Engine, Standing]:
    """Let the liar have behaved for long, before it begins to lie."""
    engine, standing = await opened(lie)
    for _ in range(140):
        standing.record("earlier", 1, {LIAR: Outcome.AGREED})
    assert standing.weights(1, [LIAR]) == {LIAR: 2.0}
    return engine, standing


async def test_farmed_trust_is_outvoted(
    ground: Ground, farmed: tuple[Engine, Standing]
) -> None:
    engine, _ = farmed
    context = ground.context()
    await engine.infer(context, feed())
    tally = context.infers[0].segments[1].tally
    weights = {member.replica: member.weight for member in tally.committee}
    assert tally.clique == tuple(
        member.replica for member in tally.committee if member.replica != LIAR
    )
    assert weights[LIAR] < sum(weights.values()) / 2


async def test_without_the_cap_farmed_trust_would_stop_everything(
    ground: Ground,
    farmed: tuple[Engine, Standing],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lockstep, "weigh", lambda members: members)
    engine, standing = farmed
    with pytest.raises(QuorumNotReached, match="2 distinct answers"):
        await engine.infer(ground.context(), feed())
    # And could not even be blamed for it.
    assert standing.weights(1, [LIAR]) == {LIAR: 2.0}


async def test_an_entry_without_enough_voters_is_not_ready(
    ground: Ground, opened: Open, tmp_path: Path
) -> None:
    engine, standing = await opened()
    entry = ground.entry(engine, tmp_path / "store")
    assert await entry.is_ready()
    for replica in (0, 1):
        for _ in range(8):
            standing.record("r", 0, {name_of(0, replica): Outcome.DISSENTED})
    assert not await entry.is_ready()
    standing.reset(name_of(0, 0))
    assert await entry.is_ready()
    entry.store.close()
