"""What an offline verifier finds in a tally that is not what the votes make it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.consensus.quorum import (
    Absence,
    Member,
    Tally,
    Vote,
    decide,
    recompute,
)
from bentoml_secure.digest import Digest

COMMITTEE = tuple(Member(replica=name) for name in "abcde")
DISTANCES = {("a", "b"): 0.25, ("a", "c"): 9.0, ("b", "c"): 9.0}


def vote(replica: str, content: str) -> Vote:
    return Vote(replica=replica, commitments=(("y", Digest(f"sha256:{content}")),))


VOTES = [vote("a", "x"), vote("b", "y"), vote("d", "y"), vote("c", "z")]
ABSENT = [Absence(replica="e", reason="timed out")]


def honest() -> Tally:
    return decide(
        COMMITTEE, VOTES, ABSENT, quorum=3, tolerance=1.0, distances=DISTANCES
    )


def test_an_honest_tally_has_no_findings() -> None:
    assert honest().groups == (("a",), ("b", "d"), ("c",))
    assert honest().medoid == "b"
    assert recompute(honest(), VOTES) == []
    assert recompute(honest(), VOTES[::-1]) == []


def test_a_refusal_recomputes_too() -> None:
    tally = decide(
        COMMITTEE, VOTES[:2], [], quorum=3, tolerance=1.0, distances=DISTANCES
    )
    assert not tally.accepted
    assert recompute(tally, VOTES[:2]) == []


def swapped(row: int, column: int, value: float | None) -> dict[str, Any]:
    matrix = [list(line) for line in honest().distances]
    matrix[row][column] = value
    return {"distances": tuple(map(tuple, matrix))}


def both(row: int, column: int, value: float | None) -> dict[str, Any]:
    matrix = [list(line) for line in honest().distances]
    matrix[row][column] = matrix[column][row] = value
    return {"distances": tuple(map(tuple, matrix))}


@pytest.mark.parametrize(
    ("edit", "fields"),
    [
        ({"clique": ("a", "b", "c", "d")}, {"clique"}),
        ({"clique": ("b", "a", "d")}, {"clique"}),
        ({"clique": ()}, {"clique"}),
        ({"medoid": "a"}, {"medoid"}),
        ({"medoid": "d"}, {"medoid"}),
        ({"medoid": "c"}, {"medoid"}),
        ({"medoid": None}, {"medoid"}),
        ({"accepted": False}, {"accepted"}),
        ({"dissenters": ()}, {"dissenters"}),
        ({"dissenters": ("a", "c")}, {"dissenters"}),
        ({"pending": ("e",)}, {"pending"}),
        ({"absent": ()}, {"pending"}),
        ({"absent": (*ABSENT, *ABSENT)}, {"committee"}),
        ({"absent": (Absence(replica="a", reason="gone"),)}, {"replica"}),
        ({"groups": (("a", "b", "d"), ("c",))}, {"groups"}),
        ({"groups": (("a",), ("b",), ("c",), ("d",))}, {"groups"}),
        ({"groups": (("b", "d"), ("a",), ("c",))}, {"groups"}),
        ({"groups": ()}, {"groups"}),
        ({"quorum": 2}, {"quorum"}),
        ({"quorum": 0}, {"quorum"}),
        ({"quorum": 6}, {"quorum"}),
        ({"quorum": 4}, {"accepted", "medoid", "dissenters"}),
        ({"tolerance": 0.1}, {"accepted", "medoid", "dissenters", "clique"}),
        ({"tolerance": 10.0}, {"clique", "dissenters"}),
        ({"tolerance": float("nan")}, {"tolerance"}),
        ({"committee": COMMITTEE[:4]}, {"committee"}),
        ({"committee": COMMITTEE[::-1]}, {"groups"}),
        (
            {"committee": (*COMMITTEE[:4], Member(replica="e", weight=3.0))},
            {"accepted", "medoid", "dissenters"},
        ),
        (swapped(0, 1, 0.5), {"distances 1,0"}),
        (swapped(1, 0, None), {"distances 1,0"}),
        (swapped(1, 1, 0.1), {"distances 1,1"}),
        (swapped(2, 2, None), {"distances 2,2"}),
        (both(0, 1, float("nan")), {"distances 0,1"}),
        (both(0, 1, float("inf")), {"distances 0,1"}),
        (both(0, 1, -0.25), {"distances 0,1"}),
        (both(0, 1, None), {"accepted", "medoid", "dissenters", "clique"}),
        ({"distances": honest().distances[:2]}, {"distances"}),
        ({"distances": tuple(r[:2] for r in honest().distances)}, {"distances"}),
        ({"distances": ()}, {"distances"}),
    ],
)
def test_an_edit_is_found(edit: dict[str, Any], fields: set[str]) -> None:
    assert {f.field for f in recompute(replace(honest(), **edit), VOTES)} == fields


@pytest.mark.parametrize(
    ("votes", "field"),
    [
        (VOTES[:3], "groups"),
        ([*VOTES[:3], vote("c", "y")], "groups"),
        ([*VOTES[:3], vote("b", "y")], "replica"),
        ([*VOTES, vote("e", "y")], "committee"),
        ([*VOTES[:3], vote("stranger", "z")], "replica"),
        ([*VOTES[:3], Vote(replica="c", commitments=())], "vote of 'c'"),
    ],
)
def test_other_votes_do_not_make_this_tally(votes: list[Vote], field: str) -> None:
    assert field in {finding.field for finding in recompute(honest(), votes)}


def test_every_difference_is_listed() -> None:
    forged = replace(honest(), medoid="c", dissenters=(), clique=("c",))
    assert {finding.field for finding in recompute(forged, VOTES)} == {
        "medoid",
        "dissenters",
        "clique",
    }


def test_distances_beyond_the_cap_of_groups_are_found() -> None:
    committee = [Member(replica=f"r{seat}") for seat in range(10)]
    votes = [vote(member.replica, member.replica) for member in committee]
    tally = decide(committee, votes, [], quorum=6, tolerance=1.0, distances={})
    assert recompute(tally, votes) == []
    close = tuple(
        tuple(0.0 if row == column else 0.5 for column in range(10))
        for row in range(10)
    )
    findings = recompute(replace(tally, distances=close), votes)
    assert findings[0].want == "none among more than 9 groups"


def test_an_asserted_distance_that_changes_nothing_stays_an_assertion() -> None:
    assert recompute(replace(honest(), **both(0, 2, 8.0)), VOTES) == []


def test_no_asserted_distance_moves_an_identical_quorum() -> None:
    votes = [vote("a", "lie"), *(vote(name, "x") for name in "bcd")]
    for distance in (None, 0.0, 0.5, 2.0):
        tally = decide(
            COMMITTEE,
            votes,
            [],
            quorum=3,
            tolerance=1,
            distances={("a", "b"): distance},
        )
        assert tally.medoid == "b"
