"""Who is seated: places, voices, and a refusal that says who is out and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation.evidence import VerifiedClaims
from bentoml_secure.consensus.seating import Bench
from bentoml_secure.consensus.tally import Tally
from bentoml_secure.digest import Digest
from bentoml_secure.errors import QuorumNotReached
from bentoml_secure.receipts.draw import Draw
from bentoml_secure.scenario import Independence, Scenario
from bentoml_secure.serving.engine import Engine
from bentoml_secure.serving.peers import ready
from bentoml_secure.serving.placement import (
    Candidate,
    count_voices,
    seat_candidates,
)
from tests.unit.serving.serving_parts import (
    Ground,
    Wrapped,
    feed,
    make_ground,
    name_of,
    scenario,
)

PLATFORM, VENDOR = Independence.PLATFORM, Independence.VENDOR


def candidate(name: str, where: str = "", reason: str = "") -> Candidate:
    """Return a replica; ``where`` is ``kind/platform/vendor``, or empty for none."""
    if not where:
        return Candidate(replica=name, reason=reason or "not attested: no answer")
    kind, platform_id, vendor = (where + "//").split("/")[:3]
    claims = VerifiedClaims(
        kind=kind,
        report_data=bytes(64),
        claims={},
        platform_id=platform_id,
        vendor=vendor,
        root=Digest("sha256:00"),
        issued_at=None,
        expires_at=None,
        simulated=False,
    )
    return Candidate(replica=name, claims=claims)


def candidates(*places: str) -> list[Candidate]:
    return [candidate(f"r{i}", where) for i, where in enumerate(places)]


def chosen(places: list[str], segment: int = 0, **changes: Any) -> Bench:
    terms = scenario(**changes)
    return seat_candidates(candidates(*places), terms, segment, tolerance=0.0)


def names(bench: Bench, size: int = 3) -> list[str]:
    return list(bench.seat(size, {}).seats)


def refused(places: list[str], segment: int = 0, **changes: Any) -> QuorumNotReached:
    with pytest.raises(QuorumNotReached, match="no quorum, nobody was asked") as error:
        chosen(places, segment, **changes)
    return error.value


def test_the_first_of_the_order_are_seated() -> None:
    bench = chosen(["tdx/a"] * 5)
    assert names(bench) == ["r0", "r1", "r2"]
    assert bench.out == {}
    assert [bench.members[name].voice for name in names(bench)] == ["r0", "r1", "r2"]


def test_a_spare_takes_the_seat_of_one_that_is_not_attested() -> None:
    places = ["tdx/a", "", "tdx/a", "tdx/a"]
    bench = chosen(places, spares=1)
    assert names(bench) == ["r0", "r2", "r3"]
    (skip,) = bench.skips(bench.seat(3, {}), {})
    assert (skip.replica, skip.reason) == ("r1", "not attested: no answer")
    # Without one it keeps its seat: nobody else is chosen for being there.
    assert names(chosen(places)) == ["r0", "r1", "r2"]


def test_seats_left_over_stand_with_the_reason() -> None:
    bench = chosen(["tdx/a", "", "tdx/a"], spares=2)
    assert names(bench) == ["r0", "r1", "r2"]
    assert bench.out == {"r1": "not attested: no answer"}
    assert bench.members["r1"].voice == "r1"


@pytest.mark.parametrize(
    ("independence", "places", "seated"),
    [
        (PLATFORM, ["tdx/a", "tdx/a", "tdx/a", "tdx/b"], "r0 r1 r3"),
        (PLATFORM, ["tdx/a", "tdx/a", "tdx/b", "tdx/b", "tdx/c"], "r0 r2 r4"),
        (PLATFORM, ["tdx/a", "tdx/a", "", "tdx/b"], "r0 r2 r3"),
        (VENDOR, ["tdx/a/I", "tdx/b/I", "sev-snp/c/A", "cca/d/R"], "r0 r2 r3"),
        (VENDOR, ["tdx/a/I", "tdx/b/I", "sev-snp/c/A"], "r0 r1 r2"),
    ],
)
def test_another_voice_is_seated_before_a_second_of_one(
    independence: Independence, places: list[str], seated: str
) -> None:
    bench = chosen(places, independence=independence)
    assert names(bench) == seated.split()
    assert len({bench.members[name].voice for name in names(bench)}) >= 2


def test_second_replicas_fill_what_is_left_in_the_drawn_order() -> None:
    places = ["tdx/a", "tdx/a", "tdx/a", "tdx/b", "tdx/b", "tdx/c"]
    bench = chosen(places, independence=PLATFORM, replicas=5, quorum=3)
    assert names(bench, 5) == ["r0", "r1", "r2", "r3", "r5"]


def test_only_kinds_in_their_place_may_vote() -> None:
    places = ["tdx/a", "sev-snp/b", "nitro/c", "tdx/d", "sev-snp/e"]
    terms = {"placement": {"0": ("tdx", "sev-snp"), "*": ("nitro", "sev-snp")}}
    assert names(chosen(places, 0, spares=2, **terms)) == ["r0", "r1", "r3"]
    assert names(chosen(places, 1, spares=2, **terms)) == ["r1", "r2", "r4"]


def test_a_kind_out_of_its_place_is_not_asked_though_there_is_a_seat() -> None:
    bench = chosen(["tdx/a", "nitro/b", "tdx/c"], placement={"0": ("tdx",)})
    assert names(bench) == ["r0", "r1", "r2"]
    assert bench.out == {"r1": "nitro may not run segment 0, only tdx"}


def test_three_replicas_on_one_platform_are_refused_with_the_reason() -> None:
    refusal = refused(["tdx/host", "tdx/host", "tdx/host"], independence=PLATFORM)
    assert refusal.args[0] == (
        "no quorum, nobody was asked about segment 0, where 1 voice may vote (r1: "
        "platform host is that of r0; r2: platform host is that of r0): 0 of 3 "
        "replicas agree, want 2 and most of the weight (0 distinct answers, 0 failed, "
        "3 pending)."
    )
    tally = Tally.from_json(refusal.tally)
    assert tally.pending == ("r0", "r1", "r2")
    assert not tally.accepted


def test_a_refusal_names_each_that_is_out_with_its_own_reason() -> None:
    places = ["tdx/a", "", "nitro/b", "tdx/a"]
    placed = {"*": ("sev-snp", "tdx")}
    refusal = refused(places, 1, independence=PLATFORM, placement=placed, spares=1)
    assert (
        "about segment 1, where 1 voice may vote (r1: not attested: no answer; r2: "
        "nitro may not run segment 1, only sev-snp, tdx; r3: platform a is that of r0)"
    ) in str(refusal)
    tally = Tally.from_json(refusal.tally)
    # r1 is skipped; r2 has its seat, and stands there as absent.
    assert {a.replica: a.reason for a in tally.absent} == {
        "r2": "nitro may not run segment 1, only sev-snp, tdx"
    }


def test_a_refusal_counts_replicas_where_each_is_a_voice() -> None:
    assert "where 0 replicas may vote" in str(refused(["", "", ""]))
    assert "where 1 replica may vote" in str(refused(["tdx/a", "", ""]))


def test_what_a_replica_said_of_itself_stays_on_one_line() -> None:
    shown = [candidate("r0", reason="bad\nnews" + "x" * 500), candidate("r1", "tdx/a")]
    with pytest.raises(QuorumNotReached, match=r"r0: bad\?newsx") as error:
        seat_candidates([*shown, candidate("r2")], scenario(), 0, tolerance=0.0)
    assert "\n" not in str(error.value)
    Tally.from_json(error.value.tally)


def test_voices_are_counted_over_all_candidates() -> None:
    four = candidates("tdx/a", "tdx/a", "nitro/b", "")
    count = {
        independence: count_voices(four, scenario(independence=independence), 0)
        for independence in Independence
    }
    assert count == {Independence.NONE: 3, PLATFORM: 2, VENDOR: 1}
    placed = scenario(independence=PLATFORM, placement={"0": ("tdx",)})
    assert count_voices(four, placed, 0) == 1
    assert count_voices(four, placed, 1) == 2


# In the engine, over real replicas in one process.


class Counted(Wrapped):
    """A replica that says how often it was sent tensors."""

    asked = 0

    async def exchange(self, *args: Any) -> Any:
        self.asked += 1
        return await super().exchange(*args)


async def engine_on(
    ground: Ground,
    platforms: Mapping[tuple[int, int], str],
    channels: dict[tuple[int, int], Counted],
) -> Engine:
    """Return an attested engine whose replicas sit on these platforms."""

    def wrap(index: int, replica: int, channel: Any) -> Counted:
        channels[index, replica] = Counted(channel)
        return channels[index, replica]

    engine = await ground.attested(wrap=wrap)
    for (index, replica), platform in platforms.items():
        move(engine, index, replica, platform_id=platform)
    return engine


def move(engine: Engine, index: int, replica: int, **changes: Any) -> None:
    """Make the entry hold evidence of another machine or kind."""
    peer = engine.peers[index][replica]
    held = peer._attested
    assert held is not None
    claims = replace(held.result.claims, **changes)
    peer._attested = replace(held, result=replace(held.result, claims=claims))


def hosts(*names: str) -> dict[tuple[int, int], str]:
    return {
        (index, replica): name
        for index in range(3)
        for replica, name in enumerate(names)
    }


@pytest.fixture
def critical(skips: Path) -> Ground:
    return make_ground(skips / "plan", independence=PLATFORM)


async def test_two_platforms_of_three_replicas_answer(critical: Ground) -> None:
    channels: dict[tuple[int, int], Counted] = {}
    engine = await engine_on(critical, hosts("a", "b", "b"), channels)
    context = critical.context()
    await engine.infer(context, feed())
    for record in context.infers[0].segments:
        voices = sorted(member.voice for member in record.tally.committee)
        assert voices == ["platform a", "platform b", "platform b"]
        assert {n[-1] for n in record.tally.clique} >= {"0"}
    await context.abandon()
    await engine.close()


async def test_one_platform_is_refused_before_anything_is_sent(
    critical: Ground,
) -> None:
    channels: dict[tuple[int, int], Counted] = {}
    engine = await engine_on(critical, hosts("a", "a", "a"), channels)
    context = critical.context()
    with pytest.raises(QuorumNotReached, match="nobody was asked about segment 0"):
        await engine.infer(context, feed())
    assert [channel.asked for channel in channels.values()] == [0] * 9
    assert context.pinned == {}
    assert isinstance(context.failure, QuorumNotReached)
    await engine.close()


async def test_a_replica_out_of_its_place_gets_nothing(skips: Path) -> None:
    ground = make_ground(
        skips / "plan", placement={"0": ("tdx",), "*": ("simulated", "tdx")}
    )
    ground.scenario = scenario()  # what the deployment's configuration is made of
    placed = scenario(placement={"0": ("tdx",)})
    channels: dict[tuple[int, int], Counted] = {}
    engine = await engine_on(ground, {}, channels)
    move(engine, 0, 0, kind="tdx")
    move(engine, 0, 2, kind="tdx")
    context = ground.context(scenario=placed)
    await engine.infer(context, feed())
    assert channels[0, 1].asked == 0
    assert name_of(0, 1) not in context.pinned
    (record, *_) = context.infers[0].segments
    (missing,) = record.tally.absent
    assert missing.replica == name_of(0, 1)
    assert missing.reason == "simulated may not run segment 0, only tdx"
    await context.abandon()
    await engine.close()


async def test_a_spare_replica_takes_the_place_of_one_that_is_gone(
    skips: Path,
) -> None:
    ground = make_ground(skips / "plan", replicas=1, quorum=1, spares=1)
    engine = await ground.attested()
    engine.peers[1][0]._give_up("restarted")
    skipped = 0
    for label in range(20):
        context = ground.context(draw=Draw.of(bytes([label]) * 32))
        await engine.infer(context, feed())
        record = context.infers[0].segments[1]
        assert name_of(1, 0) not in context.pinned
        skipped += [s.replica for s in record.skips] == [name_of(1, 0)]
    # Where it is drawn first.
    assert 0 < skipped < 20
    await engine.close()


async def test_the_voice_of_a_request_is_that_of_the_evidence_in_its_receipt(
    critical: Ground,
) -> None:
    """A replica that moves between two calls keeps what it showed this request."""
    engine = await engine_on(critical, hosts("a", "b", "c"), {})
    context = critical.context()
    await engine.infer(context, feed())
    pinned = dict(context.pinned)
    move(engine, 0, 1, platform_id="a")
    engine.peers[0][2]._give_up("restarted")
    await engine.infer(context, feed())
    assert context.pinned == pinned
    committee = context.infers[1].segments[0].tally.committee
    assert {member.voice for member in committee} == {
        "platform a",
        "platform b",
        "platform c",
    }
    await context.abandon()
    await engine.close()


async def test_evidence_older_than_the_scenario_allows_seats_nobody(
    skips: Path,
) -> None:
    ground = make_ground(skips / "plan", evidence_max_age_seconds=10)
    engine = await ground.attested()
    ground.clock.advance(seconds=9.5)
    with pytest.raises(QuorumNotReached, match="evidence is 10 s old") as error:
        await engine.infer(ground.context(), feed())
    assert len(Tally.from_json(error.value.tally).absent) == 3
    await engine.close()


async def test_readiness_counts_voices_and_places(ground: Ground) -> None:
    engine = await ground.attested()
    # All evidence here names one platform.
    assert await ready(engine.peers, scenario())
    assert not await ready(engine.peers, scenario(independence=PLATFORM))
    for index in range(3):
        move(engine, index, 1, platform_id="another")
    assert await ready(engine.peers, scenario(independence=PLATFORM))
    assert await ready(engine.peers, placing({"1": ("simulated",)}))
    assert not await ready(engine.peers, placing({"1": ("tdx",)}))
    await engine.close()


def placing(placement: dict[str, tuple[str, ...]]) -> Scenario:
    return scenario(placement=placement)
