"""Voices: replicas that share one count once, in every step of the decision."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from bentoml_secure.consensus.collect import Answer, Terms, collect
from bentoml_secure.consensus.quorum import (
    Absence,
    Member,
    Tally,
    Vote,
    decide,
    plan_faults,
    reachable,
    recompute,
    refusal,
)
from bentoml_secure.consensus.seating import Bench
from bentoml_secure.consensus.seats import Seats
from bentoml_secure.digest import Digest, canonical_json, parse_json
from bentoml_secure.errors import ConfigurationError, QuorumNotReached

NOBODY: Mapping[str, float] = {}


def members(voices: str, weights: Mapping[str, float] = NOBODY) -> list[Member]:
    """Return r0, r1, ...; the letter at each place is its voice."""
    return [
        Member(replica=f"r{i}", voice=voice, weight=weights.get(f"r{i}", 1.0))
        for i, voice in enumerate(voices)
    ]


def vote(replica: str, content: str) -> Vote:
    return Vote(replica=replica, commitments=(("y", Digest(f"sha256:{content}")),))


def votes_of(answers: str) -> list[Vote]:
    """Return a vote per letter; "-" is pending, "!" is absent."""
    return [
        vote(f"r{i}", content) for i, content in enumerate(answers) if content > "-"
    ]


def outcome(
    voices: str,
    answers: str,
    quorum: int,
    *,
    by: Mapping[str, float] = NOBODY,
    weights: Mapping[str, float] = NOBODY,
) -> Tally:
    content = {f"r{i}": letter for i, letter in enumerate(answers)}
    known = {frozenset(pair): distance for pair, distance in by.items()}
    return decide(
        members(voices, weights),
        votes_of(answers),
        [Absence(replica=n, reason="gone") for n, c in content.items() if c == "!"],
        quorum=quorum,
        tolerance=1.0,
        distances=lambda a, b: known.get(frozenset((content[a], content[b]))),
    )


def test_a_member_has_a_voice_of_its_own_unless_told_otherwise() -> None:
    assert Member(replica="a") == Member(replica="a", voice="a")
    assert Member(replica="a", voice="b").voice == "b"


@pytest.mark.parametrize(
    ("sentence", "voices", "answers", "quorum", "clique"),
    [
        ("two votes of one voice are one", "aab", "xx-", 2, None),
        ("two votes of two voices are two", "aab", "x-x", 2, "r0 r2"),
        ("a second vote of a voice does no harm", "aab", "xxx", 2, "r0 r1 r2"),
        ("two that share a voice never outvote the third", "aab", "yyx", 2, None),
        ("three of five that share a voice are no quorum", "aaabc", "yyyxx", 3, None),
        ("one that is down of a voice is replaced", "aabbc", "!xx!x", 3, "r1 r2 r4"),
        ("a carrying clique is taken before a larger", "aaabcd", "xxx-x-", 4, None),
        (
            "a voice may be split, and counts on both sides",
            "aabc",
            "xyxx",
            3,
            "r0 r2 r3",
        ),
    ],
)
def test_decision(
    sentence: str, voices: str, answers: str, quorum: int, clique: str | None
) -> None:
    tally = outcome(voices, answers, quorum)
    assert tally.accepted is (clique is not None)
    if clique is not None:
        assert tally.clique == tuple(clique.split())


def test_dissenters_are_named_though_they_share_a_voice() -> None:
    tally = outcome("abcca", "xxxyy", 3)
    assert tally.clique == ("r0", "r1", "r2")
    assert tally.dissenters == ("r3", "r4")


def test_a_voice_weighs_what_its_heaviest_replica_does() -> None:
    seats = Seats(members("aab", {"r0": 3.0, "r1": 5.0}), 2)
    assert seats.planned == 6.0
    assert seats.weigh(["r0", "r1"]) == seats.weigh(["r1", "r0"]) == 5.0
    assert seats.weigh(["r0", "r2"]) == 4.0
    assert not seats.carries(["r0", "r1"])
    assert seats.carries(["r0", "r2"])


def test_most_of_the_weight_is_of_the_planned_voices() -> None:
    # Two voices of three, but voice c was planned with most of the weight.
    assert not outcome("abc", "xx!", 2, weights={"r2": 2.0}).accepted
    # A second replica of c does not make it heavier.
    assert outcome("abcc", "xx!x", 3, weights={"r2": 1.0}).accepted
    assert outcome("abccc", "xxx!!", 3, weights={"r2": 1.9}).accepted


def test_replicas_of_one_voice_pull_the_medoid_no_more_than_one() -> None:
    """Three that share a platform, a little off; two honest ones apart."""
    near = {"xy": 0.9}
    heads = outcome("abcde", "yyyxx", 4, by=near)
    assert heads.medoid == "r0"
    voices = outcome("aaabc", "yyyxx", 3, by=near)
    assert voices.clique == ("r0", "r1", "r2", "r3", "r4")
    assert voices.medoid == "r3"


def test_answering_in_several_groups_buys_a_voice_nothing() -> None:
    by = {"yz": 0.0, "yw": 0.0, "zw": 0.0, "xy": 0.9, "xz": 0.9, "xw": 0.9}
    assert outcome("abcde", "yzwxx", 4, by=by).medoid == "r0"
    assert outcome("aaabc", "yzwxx", 3, by=by).medoid == "r3"


def test_shares_of_a_voice_sum_to_its_weight() -> None:
    seats = Seats(members("aab", {"r0": 1.0, "r1": 3.0}), 2)
    assert seats.shares(["r0", "r1", "r2"]) == {"r0": 0.75, "r1": 2.25, "r2": 1.0}
    assert seats.shares(["r0", "r2"]) == {"r0": 1.0, "r2": 1.0}


def test_too_few_voices_can_decide_nothing() -> None:
    (fault,) = plan_faults(members("aaa"), 2, 0.0)
    assert str(fault) == "voices: got 1, want at least 2"
    with pytest.raises(ConfigurationError, match="voices: got 1, want at least 2"):
        outcome("aaa", "xxx", 2)


@pytest.mark.parametrize(
    ("voices", "answers", "quorum", "hope"),
    [
        ("aab", "xx-", 2, True),
        ("aab", "x-!", 2, False),
        ("aab", "-x!", 2, False),
        ("aabbc", "x-!x-", 3, True),
        ("aaabc", "xx-x!", 3, False),
    ],
)
def test_hope_ends_when_pending_voices_cannot_make_a_quorum(
    voices: str, answers: str, quorum: int, hope: bool
) -> None:
    assert reachable(outcome(voices, answers, quorum)) is hope


def test_hope_counts_a_voice_again_that_may_yet_answer_otherwise() -> None:
    """Voice a agrees with nobody so far; its other replica may agree with b."""
    weights = {"r0": 3.0, "r1": 3.0, "r2": 2.5, "r3": 1.0, "r4": 1.5}
    undecided = outcome("aabcd", "x-y-!", 3, weights=weights)
    assert undecided.clique == ("r0",)
    assert reachable(undecided)
    assert outcome("aabcd", "xyyy!", 3, weights=weights).accepted


def test_a_refusal_counts_voices_where_they_differ_from_replicas() -> None:
    shared = refusal(outcome("aab", "xx!", 2), "all have answered or failed")
    assert "2 of 3 replicas agree with 1 voice between them, want 2" in str(shared)
    apart = refusal(outcome("abc", "x!!", 2), "all have answered or failed")
    assert "1 of 3 replicas agree, want 2" in str(apart)


def test_voices_are_no_part_of_the_document() -> None:
    tally = outcome("aab", "xyx", 2)
    data = canonical_json(tally.to_json())
    assert b"voice" not in data
    read = Tally.from_json(parse_json(data, what="tally", max_bytes=1 << 20))
    assert [member.voice for member in read.committee] == ["r0", "r1", "r2"]
    assert read.with_voices({"r0": "a", "r1": "a", "r2": "b"}) == tally
    assert read.with_voices({}) == read


def test_a_count_of_heads_does_not_recompute_with_voices() -> None:
    """The coordinator counted replicas; who recomputes knows that two are one."""
    heads = outcome("abc", "xx-", 2)
    assert recompute(heads, votes_of("xx-")) == []
    heard = heads.with_voices({"r0": "host", "r1": "host"})
    fields = {finding.field for finding in recompute(heard, votes_of("xx-"))}
    assert fields == {"medoid", "accepted"}
    one = heads.with_voices(dict.fromkeys(("r0", "r1", "r2"), "host"))
    assert [finding.field for finding in recompute(one, votes_of("xx-"))] == ["voices"]


TERMS = Terms(size=3, quorum=2, tolerance=0.0, deadline_seconds=5, grace_seconds=1)


async def test_collecting_waits_for_another_voice() -> None:
    other = asyncio.Event()

    async def ask(replica: str) -> Answer[float]:
        if replica == "r2":
            await other.wait()
        elif replica == "r1":
            # Both replicas of one voice have answered by now; that is not enough.
            asyncio.get_running_loop().call_later(0.01, other.set)
        return Answer(vote=vote(replica, "x"), value=0.0)

    agreed = await collect(
        Bench.of(members("aab")),
        ask,
        distance=lambda a, b: None,
        terms=TERMS,
    )
    assert agreed.tally.clique == ("r0", "r1", "r2")


async def test_collecting_refuses_once_only_one_voice_is_left() -> None:
    async def ask(replica: str) -> Answer[float]:
        if replica == "r2":
            raise TimeoutError
        return Answer(vote=vote(replica, "x"), value=0.0)

    with pytest.raises(QuorumNotReached, match="2 of 3 replicas agree with 1 voice"):
        await collect(
            Bench.of(members("aab")),
            ask,
            distance=lambda a, b: None,
            terms=TERMS,
        )
