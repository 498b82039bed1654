"""Attacks on who was asked: committees that were not drawn, seats that are not theirs.

A dishonest entry runs the request for real, with real replicas, and signs whatever it
likes. The honest version of each receipt is accepted first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bentoml_secure.consensus.tally import Absence
from bentoml_secure.receipts.records import SegmentRecord
from bentoml_secure.scenario import Independence
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import (
    with_party,
    with_receipt,
    with_record,
    with_tally,
)
from tests.unit.receipts.judging import accepted, deploy, order, rejected, seat

WHERE = "infer 0 segment 0"
OTHERS = "DSegment1Replica0"
ABSENT, LIAR = Behaviour.ABSENT, Behaviour.LIAR


@pytest.fixture(scope="module")
def drawing() -> Deployment:
    """Three of five, one of whom may be skipped; two more where they do not agree."""
    return deploy(replicas=5, committee=3, spares=1, escalation=1)


def behaving(deployment: Deployment, *behaviours: Behaviour) -> Draft:
    """Let the first drawn of segment 0 behave so."""
    acting = {
        (0, 0, seat(name)): behaviour
        for name, behaviour in zip(order(deployment), behaviours, strict=False)
    }
    return build_draft(deployment, behaviours=acting)


def record_of(draft: Draft) -> SegmentRecord:
    return draft.receipt.infers[0].segments[0]


def seats_of(draft: Draft) -> list[str]:
    return [member.replica for member in record_of(draft).tally.committee]


# Honest committees.


def test_the_first_of_the_draw_are_asked(drawing: Deployment) -> None:
    draft = build_draft(drawing)
    assert seats_of(draft) == list(order(drawing)[:3])
    assert accepted(draft, drawing)["skipped"] == []


def test_a_spare_takes_the_seat_of_one_that_is_out(drawing: Deployment) -> None:
    draft, (first, *rest) = behaving(drawing, ABSENT), order(drawing)
    assert seats_of(draft) == rest[:3]
    (skipped,) = accepted(draft, drawing)["skipped"]
    assert skipped == {
        "infer": 0,
        "segment": 0,
        "replica": first,
        "reason": "connection refused",
    }


def test_beyond_the_spares_one_that_is_out_has_its_seat(drawing: Deployment) -> None:
    draft = behaving(drawing, ABSENT, ABSENT)
    claims = accepted(draft, drawing)
    assert [s["replica"] for s in claims["skipped"]] == [order(drawing)[0]]
    assert [a["replica"] for a in claims["absent"]] == [order(drawing)[1]]


def test_two_more_are_asked_where_three_do_not_agree(drawing: Deployment) -> None:
    draft = behaving(drawing, LIAR, Behaviour.OTHER_LIAR)
    tally = record_of(draft).tally
    assert (len(tally.committee), tally.quorum) == (5, 3)
    claims = accepted(draft, drawing)
    assert {d["replica"] for d in claims["dissenters"]} == {*order(drawing)[:2]}


def test_weights_and_reasons_are_the_entry_s_word(drawing: Deployment) -> None:
    labels = accepted(build_draft(drawing), drawing)["labels"]
    for claim in ("weights", "reasons of skips and absences"):
        assert labels[claim] == "asserted by the entry"


def test_the_heaviest_never_weighs_half(drawing: Deployment) -> None:
    weights = dict.fromkeys(order(drawing), 0.1) | {order(drawing)[0]: 2.0}
    draft = build_draft(drawing, weights=weights)
    tally = record_of(draft).tally
    heaviest = max(member.weight for member in tally.committee)
    assert heaviest < sum(member.weight for member in tally.committee) / 2
    accepted(draft, drawing)


def test_one_that_was_asked_and_got_no_seat(drawing: Deployment) -> None:
    spare = order(drawing)[3]
    accepted(with_record(build_draft(drawing), 0, unused=(spare,)), drawing)


def test_a_voice_sits_once_while_others_have_none() -> None:
    names = [f"DSegment0Replica{index}" for index in range(5)]
    deployment = deploy(
        replicas=5,
        committee=3,
        independence=Independence.PLATFORM,
        platforms=dict.fromkeys(names[:3], "one-host"),
    )
    draft = build_draft(deployment)
    assert len({deployment.voice(name) for name in seats_of(draft)}) == 3
    accepted(draft, deployment)
    forged = build_draft(deployment, heads_counted=True)
    assert seats_of(forged) != seats_of(draft)
    assert f"{WHERE} committee" in rejected(forged, deployment)


# Dishonest ones.


def chosen(deployment: Deployment) -> Draft:
    *first, fourth, fifth = order(deployment)
    return build_draft(deployment, orders={(0, 0): (fourth, fifth, *first)})


def another_order(deployment: Deployment) -> Draft:
    first, second, *rest = order(deployment)
    return build_draft(deployment, orders={(0, 0): (second, first, *rest)})


def draw_of_another_request(deployment: Deployment) -> Draft:
    other = order(deployment, label="another")
    assert other[:3] != order(deployment)[:3]
    return build_draft(deployment, orders={(0, 0): other})


def draw_of_another_segment(deployment: Deployment) -> Draft:
    other = [seat(name) for name in order(deployment, 1)]
    assert other[:3] != [seat(name) for name in order(deployment)[:3]]
    names = tuple(f"DSegment0Replica{index}" for index in other)
    return build_draft(deployment, orders={(0, 0): names})


def candidate_left_out(deployment: Deployment) -> Draft:
    draft = build_draft(deployment)
    weights = dict(record_of(draft).weights)
    del weights[order(deployment)[4]]
    return with_record(draft, 0, weights=weights)


def candidate_added(deployment: Deployment) -> Draft:
    draft = build_draft(deployment)
    return with_record(draft, 0, weights={**record_of(draft).weights, OTHERS: 1.0})


def no_candidates(deployment: Deployment) -> Draft:
    return with_record(build_draft(deployment), 0, weights={})


def weighed_after_the_draw(deployment: Deployment) -> Draft:
    """Weights that would have drawn others."""
    draft = build_draft(deployment)
    weights = dict(record_of(draft).weights)
    weights[order(deployment)[4]], weights[order(deployment)[0]] = 2.0, 0.01
    return with_record(draft, 0, weights=weights)


def skip_too_many(deployment: Deployment) -> Draft:
    more = replace(deployment.scenario, spares=2)
    acting = {(0, 0, seat(name)): ABSENT for name in order(deployment)[:2]}
    return build_draft(deployment, behaviours=acting, runs_by=more)


def skip_after_the_last_seat(deployment: Deployment) -> Draft:
    gone = Absence(replica=order(deployment)[4], reason="slow")
    return with_record(build_draft(deployment), 0, skips=(gone,))


def skip_without_a_reason(deployment: Deployment) -> Draft:
    gone = Absence(replica=order(deployment)[0], reason="")
    return with_record(behaving(deployment, ABSENT), 0, skips=(gone,))


def skip_who_has_a_seat(deployment: Deployment) -> Draft:
    gone = Absence(replica=order(deployment)[1], reason="slow")
    return with_record(build_draft(deployment), 0, skips=(gone,))


def skip_who_is_no_candidate(deployment: Deployment) -> Draft:
    gone = Absence(replica=OTHERS, reason="slow")
    return with_record(build_draft(deployment), 0, skips=(gone,))


def skip_twice(deployment: Deployment) -> Draft:
    draft = behaving(deployment, ABSENT)
    return with_record(draft, 0, skips=record_of(draft).skips * 2)


def hide_skip(deployment: Deployment) -> Draft:
    return with_record(behaving(deployment, ABSENT), 0, skips=())


def uncapped(deployment: Deployment) -> Draft:
    """The heaviest keeps all of its weight, and outvotes the others."""
    weights = dict.fromkeys(order(deployment), 0.1) | {order(deployment)[0]: 2.0}
    draft = build_draft(deployment, weights=weights)
    committee = tuple(
        replace(member, weight=weights[member.replica])
        for member in record_of(draft).tally.committee
    )
    return with_tally(draft, 0, committee=committee)


def larger_committee(deployment: Deployment) -> Draft:
    return build_draft(
        deployment, runs_by=replace(deployment.scenario, replicas=4, quorum=3)
    )


def smaller_committee(deployment: Deployment) -> Draft:
    return build_draft(
        deployment, runs_by=replace(deployment.scenario, replicas=1, quorum=1)
    )


def quorum_not_raised(deployment: Deployment) -> Draft:
    draft = behaving(deployment, LIAR, Behaviour.OTHER_LIAR)
    return with_tally(draft, 0, quorum=2)


def unused_has_a_seat(deployment: Deployment) -> Draft:
    return with_record(build_draft(deployment), 0, unused=order(deployment)[:1])


def unused_twice(deployment: Deployment) -> Draft:
    spare = order(deployment)[3]
    return with_record(build_draft(deployment), 0, unused=(spare, spare))


def unused_of_another_segment(deployment: Deployment) -> Draft:
    return with_record(build_draft(deployment), 0, unused=(OTHERS,))


def voter_is_no_party(deployment: Deployment) -> Draft:
    draft, voter = build_draft(deployment), order(deployment)[0]
    parties = tuple(p for p in draft.receipt.parties if p.name != voter)
    return with_receipt(draft, parties=parties)


Attack = Callable[[Deployment], Draft]
ATTACKS: list[tuple[Attack, str]] = [
    (chosen, f"{WHERE} committee"),
    (another_order, f"{WHERE} committee"),
    (draw_of_another_request, f"{WHERE} committee"),
    (draw_of_another_segment, f"{WHERE} committee"),
    (candidate_left_out, f"{WHERE} candidates"),
    (candidate_added, f"{WHERE} candidates"),
    (no_candidates, f"{WHERE} candidates"),
    (weighed_after_the_draw, f"{WHERE} committee"),
    (skip_too_many, f"{WHERE} skips"),
    (skip_too_many, f"{WHERE} committee"),
    (skip_after_the_last_seat, f"{WHERE} skips"),
    (skip_without_a_reason, "receipt"),
    (skip_who_has_a_seat, f"{WHERE} committee"),
    (skip_who_is_no_candidate, f"{WHERE} skips"),
    (skip_twice, f"{WHERE} skips"),
    (hide_skip, f"{WHERE} committee"),
    (larger_committee, f"{WHERE} committee size"),
    (larger_committee, f"{WHERE} tally quorum"),
    (smaller_committee, f"{WHERE} committee size"),
    (quorum_not_raised, f"{WHERE} tally quorum"),
    (unused_has_a_seat, f"{WHERE} unused"),
    (unused_twice, f"{WHERE} unused"),
    (unused_of_another_segment, f"{WHERE} unused"),
    (unused_of_another_segment, f"party {OTHERS} segment"),
]


@pytest.mark.parametrize(
    ("attack", "finding"), ATTACKS, ids=lambda value: getattr(value, "__name__", value)
)
def test_attack_is_named(attack: Attack, finding: str, drawing: Deployment) -> None:
    assert finding in rejected(attack(drawing), drawing)


def test_a_weight_that_is_not_capped_is_named(drawing: Deployment) -> None:
    heaviest = order(drawing)[0]
    found = rejected(uncapped(drawing), drawing)
    assert found[f"{WHERE} weight of {heaviest}"] == "2.0"


def test_a_voter_is_a_party(drawing: Deployment) -> None:
    voter = order(drawing)[0]
    found = rejected(voter_is_no_party(drawing), drawing)
    assert found[f"{WHERE} replica {voter}"] == "not a party"


@pytest.mark.parametrize("wrong", [2.5, 0.005, 0.0, -1.0, 5e-324, 1e9, 1.7e308])
@pytest.mark.parametrize("everybody", [True, False])
def test_a_weight_that_no_reputation_comes_to(
    wrong: float, everybody: bool, drawing: Deployment
) -> None:
    draft = build_draft(drawing)
    names = list(record_of(draft).weights)
    odd = names if everybody else names[:1]
    weights = {**record_of(draft).weights, **dict.fromkeys(odd, wrong)}
    found = rejected(with_record(draft, 0, weights=weights), drawing)
    assert f"{WHERE} weight of {names[0]}" in found


def test_weights_are_as_far_apart_as_the_trust_file_says(drawing: Deployment) -> None:
    weights = {order(drawing)[0]: 2.0, order(drawing)[4]: 0.5}
    draft = build_draft(drawing, weights=weights)
    for ratio in (200.0, 4.0):
        trust = replace(drawing.trust, weight_ratio=ratio)
        accepted(draft, drawing, trust)
    for ratio in (3.9, 1.0):
        trust = replace(drawing.trust, weight_ratio=ratio)
        found = rejected(draft, drawing, trust)
        assert found == {f"{WHERE} weights": "from 0.5 to 2"}
    equals = replace(drawing.trust, weight_ratio=1.0)
    accepted(build_draft(drawing), drawing, equals)


def test_an_escalation_that_the_scenario_does_not_have() -> None:
    deployment = deploy(replicas=5, committee=3)
    more = replace(deployment.scenario, escalation=1)
    acting = {
        (0, 0, seat(order(deployment)[0])): LIAR,
        (0, 0, seat(order(deployment)[1])): Behaviour.OTHER_LIAR,
    }
    draft = build_draft(deployment, behaviours=acting, runs_by=more)
    found = rejected(draft, deployment)
    assert found[f"{WHERE} committee size"] == "5"


def test_an_entry_s_own_voice_has_no_seat(drawing: Deployment) -> None:
    """Whoever has a role of its own is no runner, whatever the candidates say."""
    first = order(drawing)[0]
    found = rejected(with_party(build_draft(drawing), first, role="entry"), drawing)
    assert f"party {first} role" in found
