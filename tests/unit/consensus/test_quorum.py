"""The decision, as a table: a sentence, the votes, the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import pytest

from bentoml_secure.consensus.quorum import (
    Absence,
    Member,
    Tally,
    Vote,
    decide,
    reachable,
    refusal,
    vote_faults,
)
from bentoml_secure.digest import Digest
from bentoml_secure.errors import ConfigurationError, MalformedInputError


def members(names: str, weights: Mapping[str, float] | None = None) -> list[Member]:
    return [Member(replica=n, weight=(weights or {}).get(n, 1.0)) for n in names]


def vote(replica: str, content: str) -> Vote:
    return Vote(replica=replica, commitments=(("y", Digest(f"sha256:{content}")),))


@dataclass(frozen=True, kw_only=True)
class Case:
    """``answers``: one letter of content per seat; "-" is pending, "!" is absent.

    ``near`` names the pairs of contents whose distance is 1, the tolerance; ``by``
    overrides single distances. All other contents are not comparable.
    """

    sentence: str
    committee: str
    answers: str
    quorum: int
    near: str = ""
    by: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    accepted: bool
    clique: str
    medoid: str | None = None
    dissenters: str = ""


CASES = [
    Case(
        sentence="three identical answers are a group, and the first seat serves",
        committee="abc",
        answers="xxx",
        quorum=2,
        accepted=True,
        clique="abc",
        medoid="a",
    ),
    Case(
        sentence="two identical answers outvote one that cannot be compared",
        committee="abc",
        answers="zxx",
        quorum=2,
        accepted=True,
        clique="bc",
        medoid="b",
        dissenters="a",
    ),
    Case(
        sentence="two identical answers suffice while the third is pending",
        committee="abc",
        answers="-xx",
        quorum=2,
        accepted=True,
        clique="bc",
        medoid="b",
    ),
    Case(
        sentence="one answer and two failures are no quorum",
        committee="abc",
        answers="x!!",
        quorum=2,
        accepted=False,
        clique="a",
    ),
    Case(
        sentence="three different answers: nothing agreed, nobody dissents",
        committee="abc",
        answers="xyz",
        quorum=2,
        accepted=False,
        clique="a",
    ),
    Case(
        sentence="no answer at all is no quorum",
        committee="abc",
        answers="-!-",
        quorum=2,
        accepted=False,
        clique="",
    ),
    Case(
        sentence="two answers at exactly the tolerance agree",
        committee="abc",
        answers="xyz",
        quorum=2,
        near="yz",
        accepted=True,
        clique="bc",
        medoid="b",
        dissenters="a",
    ),
    Case(
        sentence="two answers just beyond the tolerance do not",
        committee="abc",
        answers="xyz",
        quorum=2,
        by={"yz": 1.0000000000000002},
        accepted=False,
        clique="a",
    ),
    Case(
        sentence="a drifting chain is not a clique: the end that is far dissents",
        committee="abc",
        answers="xyz",
        quorum=2,
        near="xy yz",
        by={"xz": 2.0},
        accepted=True,
        clique="ab",
        medoid="a",
        dissenters="c",
    ),
    Case(
        sentence="a chain never makes a quorum of three out of two pairs",
        committee="abcde",
        answers="xyz!!",
        quorum=3,
        near="xy yz",
        accepted=False,
        clique="ab",
    ),
    Case(
        sentence="the answer in the middle is the medoid",
        committee="abc",
        answers="xyz",
        quorum=2,
        by={"xy": 0.5, "yz": 0.5, "xz": 1.0},
        accepted=True,
        clique="abc",
        medoid="b",
    ),
    Case(
        sentence="the heavier group pulls the medoid to itself",
        committee="abcde",
        answers="xyyzz",
        quorum=5,
        by={"xy": 0.2, "xz": 0.2, "yz": 0.4},
        weights={"d": 2.0, "e": 2.0},
        accepted=True,
        clique="abcde",
        medoid="d",
    ),
    Case(
        sentence="a quorum of identical answers serves, whatever distances are said",
        committee="abc",
        answers="zxx",
        quorum=2,
        by={"zx": 0.0},
        accepted=True,
        clique="abc",
        medoid="b",
    ),
    Case(
        sentence="distance 0 between different bytes is allowed; the first seat serves",
        committee="abc",
        answers="xy!",
        quorum=2,
        by={"xy": 0.0},
        accepted=True,
        clique="ab",
        medoid="a",
    ),
    Case(
        sentence="of two equal cliques the one with the earlier seats is taken",
        committee="abcd",
        answers="xyyx",
        quorum=3,
        accepted=False,
        clique="ad",
    ),
    Case(
        sentence="of two equally heavy cliques the larger is taken",
        committee="abcde",
        answers="xyy!!",
        quorum=3,
        weights={"a": 2.0},
        accepted=False,
        clique="bc",
    ),
    Case(
        sentence="a quorum by count with half of the planned weight is not enough",
        committee="abc",
        answers="xxy",
        quorum=2,
        weights={"c": 2.0},
        accepted=False,
        clique="ab",
    ),
    Case(
        sentence="weight alone, without the count, is not enough",
        committee="abc",
        answers="xyz",
        quorum=2,
        weights={"a": 5.0},
        accepted=False,
        clique="a",
    ),
    Case(
        sentence="absent weight still counts as planned",
        committee="abc",
        answers="xx!",
        quorum=2,
        weights={"c": 3.0},
        accepted=False,
        clique="ab",
    ),
    Case(
        sentence="a clique that carries is taken before a heavier one that does not",
        committee="abcde",
        answers="pqrs!",
        quorum=3,
        near="pq pr ps rs",
        weights={"a": 10.0, "b": 5.0},
        accepted=True,
        clique="acd",
        medoid="a",
        dissenters="b",
    ),
    Case(
        sentence="a committee of one accepts its only answer",
        committee="a",
        answers="x",
        quorum=1,
        accepted=True,
        clique="a",
        medoid="a",
    ),
    Case(
        sentence="an even committee needs more than half",
        committee="abcd",
        answers="xxx!",
        quorum=3,
        accepted=True,
        clique="abc",
        medoid="a",
    ),
    Case(
        sentence="the limit: f+1 replicas that collude outvote the honest rest",
        committee="abcde",
        answers="xxzzz",
        quorum=3,
        accepted=True,
        clique="cde",
        medoid="c",
        dissenters="ab",
    ),
]


def outcome(case: Case) -> Tally:
    content = dict(zip(case.committee, case.answers, strict=True))
    known = {frozenset(pair): 1.0 for pair in case.near.split()}
    known |= {frozenset(pair): distance for pair, distance in case.by.items()}
    return decide(
        members(case.committee, case.weights),
        [vote(n, c) for n, c in content.items() if c not in "-!"],
        [Absence(replica=n, reason="gone") for n, c in content.items() if c == "!"],
        quorum=case.quorum,
        tolerance=1.0,
        distances=lambda a, b: known.get(frozenset((content[a], content[b]))),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_decision(case: Case) -> None:
    tally = outcome(case)
    assert tally.accepted is case.accepted
    assert tally.clique == tuple(case.clique)
    assert tally.medoid == case.medoid
    assert tally.dissenters == tuple(case.dissenters)
    pairs = list(zip(case.committee, case.answers, strict=True))
    assert tally.pending == tuple(n for n, c in pairs if c == "-")
    assert tuple(a.replica for a in tally.absent) == tuple(
        n for n, c in pairs if c == "!"
    )


def test_groups_and_distances_stand_in_committee_order() -> None:
    tally = decide(
        members("abcd"),
        [vote("d", "y"), vote("c", "x"), vote("b", "y")],
        [],
        quorum=3,
        tolerance=1.0,
        distances={("b", "c"): 0.5},
    )
    assert tally.groups == (("b", "d"), ("c",))
    assert tally.distances == ((0.0, 0.5), (0.5, 0.0))
    assert tally.medoid == "b"


def test_no_distance_is_asked_for_identical_answers() -> None:
    def never(a: str, b: str) -> float:
        raise AssertionError((a, b))

    votes = [vote(name, "x") for name in "abc"]
    kept = decide(members("abc"), votes, [], quorum=2, tolerance=0, distances=never)
    assert kept.distances == ((0.0,),)


def crowd(identical: int, liars: int) -> tuple[list[Member], list[Vote]]:
    committee = [Member(replica=f"r{seat}") for seat in range(identical + liars)]
    votes = [
        vote(member.replica, "x" if seat < identical else f"lie{seat}")
        for seat, member in enumerate(committee)
    ]
    return committee, votes


def test_nine_different_answers_are_compared_ten_are_not() -> None:
    committee, votes = crowd(0, 9)
    terms = {"quorum": 5, "tolerance": 1.0}
    nine = decide(committee, votes, [], **terms, distances=lambda a, b: 1.0)  # type: ignore[arg-type]
    assert nine.accepted
    assert len(nine.clique) == 9

    def never(a: str, b: str) -> float:
        raise AssertionError((a, b))

    committee, votes = crowd(0, 10)
    ten = decide(committee, votes, [], quorum=6, tolerance=1.0, distances=never)
    assert not ten.accepted
    assert ten.distances[0] == (0.0, *[None] * 9)
    assert "Beyond 9 distinct answers" in str(refusal(ten, "all have answered"))


def test_many_different_lies_do_not_refuse_an_identical_quorum() -> None:
    committee, votes = crowd(33, 31)
    tally = decide(committee, votes, [], quorum=33, tolerance=1.0, distances={})
    assert tally.accepted
    assert len(tally.clique) == 33
    assert len(tally.dissenters) == 31


@pytest.mark.parametrize(
    ("answers", "quorum", "weights", "hope"),
    [
        ("---", 2, {}, True),
        ("x!-", 2, {}, True),
        ("xy-", 2, {}, True),
        ("!!-", 2, {}, False),
        ("x!-", 3, {}, False),
        ("xyz--", 3, {}, True),
        ("wxyz-", 3, {}, False),
        ("xy-", 2, {"a": 3.0, "b": 3.0, "c": 0.5}, True),
        ("yx-", 2, {"a": 1.0, "b": 1.0, "c": 0.1}, True),
        ("-!-", 2, {"b": 2.0}, False),
    ],
)
def test_hope_ends_when_pending_votes_cannot_make_a_quorum(
    answers: str, quorum: int, weights: dict[str, float], hope: bool
) -> None:
    case = Case(
        sentence="",
        committee="abcde"[: len(answers)],
        answers=answers,
        quorum=quorum,
        weights=weights,
        accepted=False,
        clique="",
    )
    assert reachable(outcome(case)) is hope


def test_refusal_carries_the_tally_and_says_why() -> None:
    tally = outcome(CASES[4])
    error = refusal(tally, "all have answered or failed")
    assert error.tally == tally.to_json()
    assert str(error).startswith(
        "no quorum, all have answered or failed: 1 of 3 replicas agree, want 2 and "
        "most of the weight (3 distinct answers, 0 failed, 0 pending)."
    )


@pytest.mark.parametrize(
    ("committee", "quorum", "tolerance", "match"),
    [
        ([], 1, 0.0, "committee: got 0 members, want 1 to 64"),
        ([Member(replica=str(i)) for i in range(65)], 33, 0.0, "got 65 members"),
        (members("aab"), 2, 0.0, "a replica twice"),
        (members("abc"), 1, 0.0, "quorum: got 1, want more than half of 3"),
        (members("abcd"), 2, 0.0, "quorum: got 2, want more than half of 4"),
        (members("abc"), 4, 0.0, "quorum: got 4"),
        (members("abc"), 2, -1e-9, "tolerance: got -1e-09"),
        (members("abc"), 2, float("nan"), "tolerance: got nan"),
        (members("abc"), 2, float("inf"), "tolerance: got inf"),
        (members("abc", {"b": 0.0}), 2, 0.0, "weight of 'b': got 0.0"),
        (members("abc", {"b": -1.0}), 2, 0.0, "weight of 'b': got -1.0"),
        (members("abc", {"b": float("nan")}), 2, 0.0, "weight of 'b': got nan"),
        (members("abc", {"b": 1e300}), 2, 0.0, "weight of 'b': got 1e\\+300"),
        ([Member(replica="")], 1, 0.0, "a short printable name"),
        ([Member(replica="a\nb")], 1, 0.0, "a short printable name"),
        ([Member(replica="x" * 257)], 1, 0.0, "a short printable name"),
    ],
)
def test_a_plan_that_cannot_decide_is_refused(
    committee: list[Member], quorum: int, tolerance: float, match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        decide(committee, [], [], quorum=quorum, tolerance=tolerance, distances={})


@pytest.mark.parametrize(
    ("votes", "absent", "match"),
    [
        ([vote("z", "x")], [], "replica: got 'z', want a seat"),
        ([vote("a", "x"), vote("a", "x")], [], "replica: got 'a', want a seat"),
        (
            [vote("a", "x")],
            [Absence(replica="a", reason="gone")],
            "replica: got 'a', want a seat",
        ),
        ([], [Absence(replica="z", reason="gone")], "replica: got 'z'"),
        ([vote("a", str(i)) for i in range(4)], [], "4 votes and 0 absences"),
        ([Vote(replica="a", commitments=())], [], "vote of 'a': got commitments to"),
        ([], [Absence(replica="a", reason="two\nlines")], "reason of absence"),
        ([], [Absence(replica="a", reason="x" * 201)], "reason of absence"),
        ([], [Absence(replica="a", reason="")], "reason of absence"),
    ],
)
def test_votes_are_counted_before_anything_is_compared(
    votes: list[Vote], absent: list[Absence], match: str
) -> None:
    with pytest.raises(MalformedInputError, match=match):
        decide(members("abc"), votes, absent, quorum=2, tolerance=0.0, distances={})


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"], []])
def test_commitments_are_sorted_and_unique(names: list[str]) -> None:
    commitments = tuple((name, Digest("sha256:00")) for name in names)
    assert len(vote_faults(Vote(replica="r", commitments=commitments))) == 1


@pytest.mark.parametrize("distance", [-1.0, float("nan"), float("inf")])
def test_a_rule_that_measures_nonsense_is_refused(distance: float) -> None:
    votes = [vote("a", "x"), vote("b", "y")]
    for first, second in combinations("ab", 2):
        with pytest.raises(ConfigurationError, match="want a finite number from 0"):
            decide(
                members("abc"),
                votes,
                [],
                quorum=2,
                tolerance=1.0,
                distances={(first, second): distance},
            )


def test_a_distance_left_out_is_refused() -> None:
    votes = [vote("a", "x"), vote("b", "y")]
    with pytest.raises(ConfigurationError, match="distance of a and b: none"):
        decide(members("abc"), votes, [], quorum=2, tolerance=1.0, distances={})
