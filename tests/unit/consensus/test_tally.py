from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bentoml_secure.consensus.tally import Absence, Member, Tally, printable
from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import MalformedInputError

TALLY = Tally(
    committee=(
        Member(replica="a"),
        Member(replica="b", weight=0.5),
        Member(replica="c"),
    ),
    quorum=2,
    tolerance=2e-5,
    groups=(("a",), ("b",)),
    distances=((0.0, None), (None, 0.0)),
    clique=("a",),
    medoid=None,
    accepted=False,
    dissenters=(),
    absent=(Absence(replica="c", reason="timed out"),),
    pending=(),
)


def test_json_is_what_a_receipt_holds() -> None:
    assert TALLY.to_json() == {
        "committee": [
            {"replica": "a", "weight": 1.0},
            {"replica": "b", "weight": 0.5},
            {"replica": "c", "weight": 1.0},
        ],
        "quorum": 2,
        "tolerance": 2e-5,
        "groups": [["a"], ["b"]],
        "distances": [[0.0, None], [None, 0.0]],
        "clique": ["a"],
        "medoid": None,
        "accepted": False,
        "dissenters": [],
        "absent": [{"replica": "c", "reason": "timed out"}],
        "pending": [],
    }


def test_canonical_json_and_back() -> None:
    again = Tally.from_json(json.loads(canonical_json(TALLY.to_json())))
    assert again == TALLY
    # JCS writes 1.0 as 1; it must come back as the number it was.
    assert isinstance(again.committee[0].weight, float)


@pytest.mark.parametrize("field", sorted(TALLY.to_json()))
def test_every_field_is_wanted(field: str) -> None:
    document = TALLY.to_json()
    del document[field]
    with pytest.raises(MalformedInputError, match=r"tally: got .* want the fields"):
        Tally.from_json(document)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["extra"], 1, "want the fields"),
        (["accepted"], 1, "accepted: want true or false"),
        (["accepted"], None, "accepted: want true or false"),
        (["quorum"], 2.0, "quorum: got 2.0, want a count"),
        (["quorum"], True, "quorum: got True, want a count"),
        (["quorum"], 0, "quorum: got 0, want 1 to 64"),
        (["quorum"], 10**30, "quorum: got 1000"),
        (["tolerance"], "2e-5", "tolerance: got '2e-5', want a finite number"),
        (["tolerance"], float("nan"), "tolerance: got nan"),
        (["tolerance"], 10**400, "tolerance: got 1000"),
        (["committee"], {}, "committee: want a list"),
        (["committee"], [TALLY.to_json()["committee"][0]] * 65, "at most 64"),
        (["committee", 0], "a", "committee: got .* want the fields replica, weight"),
        (["committee", 0, "seat"], 1, "want the fields replica, weight"),
        (["committee", 0, "weight"], False, "weight: got False"),
        (["committee", 0, "replica"], "", "replica: got '', want a name"),
        (["committee", 0, "replica"], "\ud800", "want a name"),
        (["groups"], "ab", "groups: want a list"),
        (["groups", 0], "a", "groups: want a list"),
        (["groups", 0, 0], 1, "groups: got 1, want a name"),
        (["distances", 0], 0.0, "distances: want a list"),
        (["distances", 0, 1], "far", "distances: got 'far'"),
        (["distances", 0, 1], float("inf"), "distances: got inf"),
        (["clique", 0], None, "clique: got None"),
        (["medoid"], 0, "medoid: got 0, want a name"),
        (["dissenters"], None, "dissenters: want a list"),
        (["absent", 0, "reason"], "x" * 201, "absent reason: got 'xxx"),
        (["absent", 0, "reason"], "two\nlines", "one printable line"),
        (["absent", 0, "reason"], 7, "absent reason: got 7"),
        (["pending"], ["x" * 257], "pending: got 'xxx"),
    ],
)
def test_what_cannot_be_a_tally_is_malformed(
    path: list[str | int], value: object, match: str
) -> None:
    document: Any = copy.deepcopy(TALLY.to_json())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(MalformedInputError, match=match):
        Tally.from_json(document)


@pytest.mark.parametrize("document", [None, [], "tally", 1])
def test_only_an_object_is_a_tally(document: object) -> None:
    with pytest.raises(MalformedInputError, match="receipt tally: got"):
        Tally.from_json(document, what="receipt tally")


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("connection refused", "connection refused"),
        ("a\nforged log line\x1b[0m", "a?forged log line?[0m"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("", "no reason given"),
        ("x" * 500, "x" * 200),
    ],
)
def test_reasons_become_one_bounded_printable_line(reason: str, line: str) -> None:
    assert printable(reason) == line
    assert printable(line) == line
