"""What breaks together counts once: no platform outvotes the others, however large."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from bentoml_secure.consensus.quorum import (
    Member,
    Tally,
    Vote,
    decide,
    reachable,
    recompute,
)
from bentoml_secure.digest import Digest

TOLERANCE = 1.0
DISTANCE = st.none() | st.sampled_from([0.0, 0.5, 1.0, 1.5])


def vote(replica: str, content: int) -> Vote:
    return Vote(replica=replica, commitments=(("y", Digest(f"sha256:{content}")),))


@st.composite
def committees(draw: st.DrawFn) -> tuple[Member, ...]:
    """Replicas r0, r1, ... on a few platforms, enough of them for a quorum."""
    size = draw(st.integers(1, 9))
    platforms = draw(
        st.lists(st.sampled_from("ABCDEFGHI"[:size]), min_size=size, max_size=size)
    )
    weights = draw(
        st.lists(st.sampled_from([1.0, 1.0, 0.5, 2.5]), min_size=size, max_size=size)
    )
    return tuple(
        Member(replica=f"r{i}", voice=platform, weight=weight)
        for i, (platform, weight) in enumerate(zip(platforms, weights, strict=True))
    )


@st.composite
def rounds(draw: st.DrawFn) -> tuple[tuple[Member, ...], int, dict[str, int], Any]:
    """A committee, its quorum, what some of it answered, and how far apart."""
    committee = draw(committees())
    quorum = len(committee) // 2 + 1
    assume(len({member.voice for member in committee}) >= quorum)
    contents = {
        member.replica: draw(st.integers(0, 3))
        for member in committee
        if draw(st.booleans()) or draw(st.booleans())
    }
    apart = {frozenset(pair): draw(DISTANCE) for pair in combinations(range(4), 2)}
    return committee, quorum, contents, apart


def tally_of(
    committee: tuple[Member, ...],
    quorum: int,
    contents: Mapping[str, int],
    apart: Mapping[frozenset[int], float | None],
    votes: list[Vote] | None = None,
) -> Tally:
    return decide(
        committee,
        [vote(*item) for item in contents.items()] if votes is None else votes,
        [],
        quorum=quorum,
        tolerance=TOLERANCE,
        distances=lambda a, b: apart[frozenset((contents[a], contents[b]))],
    )


@given(rounds(), st.randoms(use_true_random=False))
def test_the_order_of_votes_is_irrelevant(scene: Any, random: Any) -> None:
    committee, quorum, contents, apart = scene
    shuffled = [vote(*item) for item in contents.items()]
    random.shuffle(shuffled)
    other = tally_of(committee, quorum, contents, apart, votes=shuffled)
    assert other == tally_of(*scene)


@given(rounds())
def test_accepted_means_a_quorum_of_voices(scene: Any) -> None:
    committee, quorum, contents, _ = scene
    tally = tally_of(*scene)
    voice = {member.replica: member.voice for member in committee}
    if tally.accepted:
        assert len({voice[name] for name in tally.clique}) >= quorum
    votes = [vote(*item) for item in contents.items()]
    assert recompute(tally, votes) == []


@given(rounds())
def test_refused_means_that_no_agreeing_set_has_the_voices(scene: Any) -> None:
    """Every set of voters, tried one by one, against what was decided."""
    committee, quorum, contents, apart = scene
    assume(not tally_of(*scene).accepted)
    members = {member.replica: member for member in committee}
    planned = heaviest(list(members.values()))
    for count in range(quorum, len(contents) + 1):
        for chosen in combinations(contents, count):
            pairs = [
                apart[frozenset((contents[a], contents[b]))]
                for a, b in combinations(chosen, 2)
                if contents[a] != contents[b]
            ]
            agree = all(d is not None and d <= TOLERANCE for d in pairs)
            voices = heaviest([members[name] for name in chosen])
            most = sum(voices.values()) > sum(planned.values()) / 2 + 1e-9
            assert not (agree and most and len(voices) >= quorum)


def heaviest(members: list[Member]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for member in members:
        weights[member.voice] = max(weights.get(member.voice, 0.0), member.weight)
    return weights


@given(st.integers(1, 4), st.data())
def test_f_liars_on_one_platform_never_outvote(f: int, data: st.DataObject) -> None:
    """Of 2f+1 replicas f+1 sit on one broken platform, and say what they like."""
    seats = data.draw(st.permutations(range(2 * f + 1)))
    honest = {f"r{seat}": f"host {seat}" for seat in seats[:f]}
    broken = {f"r{seat}": "broken" for seat in seats[f:]}
    voices = honest | broken
    committee = tuple(
        Member(replica=f"r{seat}", voice=voices[f"r{seat}"])
        for seat in range(2 * f + 1)
    )
    lies = data.draw(st.booleans())
    contents = {
        name: 0 if name in honest else 1 if lies else data.draw(st.integers(0, 3))
        for name in voices
    }
    apart = {frozenset(pair): data.draw(DISTANCE) for pair in combinations(range(4), 2)}
    come = data.draw(st.sets(st.sampled_from(sorted(contents))))
    for answered in (contents, {name: contents[name] for name in come}):
        tally = tally_of(committee, f + 1, answered, apart)
        # f+1 voices of which at most one is broken: f honest ones agree with it.
        assert not tally.accepted or set(tally.clique) >= set(honest)
    # Heads alone would have let them win.
    heads = tuple(Member(replica=member.replica) for member in committee)
    together = tally_of(heads, f + 1, {name: 1 for name in broken}, apart)
    assert together.accepted


@given(rounds(), st.data())
def test_hope_is_never_given_up_too_early(scene: Any, data: st.DataObject) -> None:
    committee, quorum, contents, apart = scene
    tally = tally_of(*scene)
    assume(not tally.accepted and tally.pending and tally.groups)
    joined = data.draw(st.sampled_from(sorted(set(contents.values()))))
    filled = contents | dict.fromkeys(tally.pending, joined)
    if tally_of(committee, quorum, filled, apart).accepted:
        assert reachable(tally)


@given(rounds())
def test_voices_of_their_own_change_nothing(scene: Any) -> None:
    committee, quorum, contents, apart = scene
    plain = tuple(Member(replica=m.replica, weight=m.weight) for m in committee)
    named = tuple(
        Member(replica=m.replica, weight=m.weight, voice=f"host {m.replica}")
        for m in committee
    )
    left = tally_of(plain, quorum, contents, apart)
    right = tally_of(named, quorum, contents, apart)
    assert left.to_json() == right.to_json()


@given(rounds())
def test_counting_voices_accepts_nothing_that_heads_refuse(scene: Any) -> None:
    committee, quorum, contents, apart = scene
    even = tuple(Member(replica=m.replica, voice=m.voice) for m in committee)
    heads = tuple(Member(replica=m.replica) for m in committee)
    if tally_of(even, quorum, contents, apart).accepted:
        assert tally_of(heads, quorum, contents, apart).accepted
