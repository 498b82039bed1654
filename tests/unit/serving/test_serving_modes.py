"""Referees, audits, chains: whole requests whose receipts say who was at fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentoml_secure.errors import (
    MalformedInputError,
    QuorumNotReached,
    ReceiptError,
)
from bentoml_secure.receipts.draw import Draw
from bentoml_secure.receipts.verify import State, Verdict, verify_bundle
from bentoml_secure.scenario import Mode
from bentoml_secure.serving import entry
from bentoml_secure.serving.engine import Engine
from bentoml_secure.serving.runner import RunSegment
from bentoml_secure.testing.faults import lying, scaled
from tests.unit.serving.serving_parts import (
    REFEREE,
    Ground,
    feed,
    make_ground,
    name_of,
)
from tests.unit.serving.test_serving_entry import trust

Runs = Mapping[tuple[int, int], RunSegment]


def lies(ground: Ground, *places: tuple[int, int]) -> Runs:
    """Return runs in which each of these (segment, replica) lies in its own way."""
    return {
        (index, replica): lying(
            ground.segments[index].run_unchecked, scaled(2.0 + number)
        )
        for number, (index, replica) in enumerate(places)
    }


async def served(
    ground: Ground, tmp_path: Path, runs: Runs | None = None, **demands: Any
) -> tuple[Verdict, dict[str, np.ndarray]]:
    """Serve one request to its last attachment, and judge its receipt."""
    engine = await ground.attested(runs=runs or {})
    made = ground.entry(engine, tmp_path / "store")
    context = ground.context()
    outputs = await engine.infer(context, feed())
    await made.issue(context, 200, b"asked", b"answered")
    receipt_id = context.request_id.hex()
    await made.wait_complete(receipt_id, 20)
    bundle = made.store.bundle(receipt_id)
    await made.close()
    accepting = replace(trust(ground), **{"referee": True, **demands})
    return verify_bundle(bundle, accepting, now=ground.clock()), outputs


async def honest(ground: Ground) -> dict[str, np.ndarray]:
    engine = await ground.attested()
    context = ground.context()
    outputs = await engine.infer(context, feed())
    await context.abandon()
    await engine.close()
    return outputs


def require_same(got: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


class TestReferee:
    async def test_its_answer_is_served_and_the_liars_are_named(
        self, skips: Path, tmp_path: Path
    ) -> None:
        ground = make_ground(skips / "plan", referee=True)
        runs = lies(ground, (1, 0), (1, 1))
        verdict, outputs = await served(ground, tmp_path, runs)
        require_same(outputs, await honest(ground))
        assert verdict.state is State.ACCEPTED
        assert verdict.claims["ruled"] == [
            {"infer": 0, "segment": 1, "referee": name_of(1, REFEREE)}
        ]
        named = {(d["segment"], d["replica"]) for d in verdict.claims["dissenters"]}
        assert named == {(1, name_of(1, 0)), (1, name_of(1, 1))}

    async def test_a_caller_may_refuse_its_word(
        self, skips: Path, tmp_path: Path
    ) -> None:
        ground = make_ground(skips / "plan", referee=True)
        runs = lies(ground, (1, 0), (1, 1))
        with pytest.raises(ReceiptError, match="trust file referee"):
            await served(ground, tmp_path, runs, referee=False)

    async def test_without_one_the_request_is_refused(self, skips: Path) -> None:
        ground = make_ground(skips / "plan")
        engine = await ground.attested(runs=lies(ground, (1, 0), (1, 1)))
        with pytest.raises(QuorumNotReached, match="all have answered"):
            await engine.infer(ground.context(), feed())
        await engine.close()

    async def test_nobody_asks_it_where_a_quorum_agrees(
        self, skips: Path, tmp_path: Path
    ) -> None:
        ground = make_ground(skips / "plan", referee=True)
        verdict, _ = await served(ground, tmp_path, lies(ground, (1, 0)), referee=False)
        assert verdict.claims["ruled"] == []


class TestAudit:
    async def test_an_honest_answer_is_recomputed(
        self, skips: Path, tmp_path: Path
    ) -> None:
        ground = make_ground(skips / "plan", audit_rate=1.0)
        verdict, _ = await served(ground, tmp_path)
        assert verdict.state is State.ACCEPTED
        assert verdict.claims["missing_attachments"] == []

    async def test_colluders_win_the_vote_and_lose_the_receipt(
        self, skips: Path, tmp_path: Path
    ) -> None:
        """Two of three alike are a quorum: f + 1 liars are more than it stands."""
        both = scaled(2.0)
        for rate in (0.0, 1.0):
            ground = make_ground(skips / "plan", audit_rate=rate)
            run = lying(ground.segments[1].run_unchecked, both)
            runs = {(1, 0): run, (1, 1): run}
            folder = tmp_path / str(rate)
            folder.mkdir()
            if rate:
                with pytest.raises(ReceiptError, match="segment 1 answer"):
                    await served(ground, folder, runs)
            else:
                verdict, outputs = await served(ground, folder, runs)
                assert verdict.state is State.ACCEPTED
                assert not np.array_equal(outputs["t"], (await honest(ground))["t"])

    async def test_a_referee_that_decided_does_not_audit_itself(
        self, skips: Path, tmp_path: Path
    ) -> None:
        ground = make_ground(skips / "plan", audit_rate=1.0, referee=True)
        verdict, _ = await served(ground, tmp_path, lies(ground, (1, 0), (1, 1)))
        absent = [a for a in verdict.claims["absent"] if a["where"] == "audit"]
        assert [(a["segment"], a["reason"]) for a in absent] == [
            (1, "UnavailableError: it decided this segment itself")
        ]


class TestEndToEnd:
    async def test_chains_agree_at_their_ends(
        self, skips: Path, tmp_path: Path
    ) -> None:
        ground = make_ground(skips / "plan", mode=Mode.END_TO_END)
        verdict, outputs = await served(ground, tmp_path)
        require_same(outputs, await honest(make_ground(skips / "plan")))
        assert verdict.state is State.ACCEPTED
        assert verdict.claims["dissenting_chains"] == []

    @pytest.mark.parametrize("segment", [0, 1, 2])
    @pytest.mark.parametrize("replica", [0, 1, 2])
    async def test_a_liar_is_named_wherever_it_is(
        self, skips: Path, tmp_path: Path, segment: int, replica: int
    ) -> None:
        ground = make_ground(skips / "plan", mode=Mode.END_TO_END, referee=True)
        verdict, outputs = await served(
            ground, tmp_path, lies(ground, (segment, replica))
        )
        require_same(outputs, await honest(make_ground(skips / "plan")))
        (chain,) = verdict.claims["dissenting_chains"]
        assert chain["chain"][segment] == name_of(segment, replica)
        assert [
            (d["segment"], d["replica"], d["where"])
            for d in verdict.claims["dissenters"]
        ] == [(segment, name_of(segment, replica), "localisation")]

    async def test_without_referees_nobody_is_named(
        self, skips: Path, tmp_path: Path
    ) -> None:
        ground = make_ground(skips / "plan", mode=Mode.END_TO_END)
        verdict, _ = await served(ground, tmp_path, lies(ground, (0, 1)))
        assert verdict.claims["dissenters"] == []
        assert len(verdict.claims["dissenting_chains"]) == 1

    async def test_where_no_chains_agree_lock_step_is_next(
        self, skips: Path, tmp_path: Path
    ) -> None:
        """A liar in every segment, each in a chain of its own: f = 1 everywhere."""
        ground = make_ground(skips / "plan", mode=Mode.END_TO_END)
        expected = await honest(make_ground(skips / "plan"))
        runs = lies(ground, *await _one_of_each_chain(ground))
        verdict, outputs = await served(ground, tmp_path, runs)
        require_same(outputs, expected)
        named = {(d["segment"], d["replica"]) for d in verdict.claims["dissenters"]}
        late = {(d["segment"], d["replica"]) for d in verdict.claims["absent"]}
        assert len(named | late) == 3

    async def test_tensors_that_wait_for_referees_are_bounded(
        self, skips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(entry, "MAX_KEPT_BYTES", 10)
        ground = make_ground(
            skips / "plan", mode=Mode.END_TO_END, referee=True, audit_rate=1.0
        )
        verdict, _ = await served(ground, tmp_path, lies(ground, (1, 0)))
        assert verdict.state is State.ACCEPTED
        reasons = {(a["where"], a["reason"]) for a in verdict.claims["absent"]}
        why = "UnavailableError: too many requests wait for their recomputation"
        assert reasons == {("audit", why), ("localisation", why)}
        assert verdict.claims["dissenters"] == []

    async def test_a_lone_chain_that_fails_is_absent(
        self, skips: Path, tmp_path: Path
    ) -> None:
        ground = make_ground(skips / "plan", mode=Mode.END_TO_END)

        def fails(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
            raise MalformedInputError("cannot")

        verdict, _ = await served(ground, tmp_path, {(1, 2): fails})
        assert verdict.state is State.ACCEPTED
        for absence in verdict.claims["absent"]:
            assert f"{name_of(1, 2)}: " in absence["reason"]


async def _one_of_each_chain(ground: Ground) -> list[tuple[int, int]]:
    """Return the replica of segment 0 of one chain, of 1 of another, 2 of the third."""
    engine = await ground.attested()
    context = ground.context()
    await engine.infer(context, feed())
    await engine.close()
    chains = context.infers[0].chains
    assert chains is not None
    names = drawn(engine, ground, context.draw)
    return [
        (index, int(names[index][chain][-1])) for index, chain in enumerate((0, 1, 2))
    ]


def drawn(engine: Engine, ground: Ground, draw: Draw) -> list[list[str]]:
    """Return the replicas of each segment in the drawn order."""
    from bentoml_secure.consensus.committee import Candidate, draw_order

    context = ground.context(draw=draw)
    return [
        list(
            draw_order(
                context.seed,
                [Candidate(replica=peer.name) for peer in row],
                infer_index=0,
                segment_index=index,
            )
        )
        for index, row in enumerate(engine.peers)
    ]
