"""Attacks on chains: that they were drawn, chain, and agree at their ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.scenario import Independence, Mode
from bentoml_secure.split.plan import Plan
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import (
    another,
    chains_of,
    with_chains,
    with_receipt,
)
from tests.unit.receipts.judging import accepted, deploy, order, rejected, seat

WHERE = "infer 0 chains"
END_TO_END = Mode.END_TO_END


@pytest.fixture(scope="module")
def chained() -> Deployment:
    return deploy(replicas=5, committee=3, mode=END_TO_END)


@pytest.fixture(scope="module")
def draft(chained: Deployment) -> Draft:
    return build_draft(chained)


def chain(deployment: Deployment, index: int) -> tuple[str, str]:
    """Return the names of the so-manieth chain of an ordinary request."""
    return order(deployment, 0)[index], order(deployment, 1)[index]


def lying(deployment: Deployment, segment: int = 0, index: int = 0) -> Draft:
    """Let one replica of the so-manieth chain lie."""
    name = chain(deployment, index)[segment]
    return build_draft(
        deployment, behaviours={(0, segment, seat(name)): Behaviour.LIAR}
    )


# Honest chains.


def test_the_nth_of_each_segment_s_draw_are_a_chain(
    draft: Draft, chained: Deployment
) -> None:
    record = chains_of(draft)
    assert draft.receipt.infers[0].segments == ()
    ends = [member.replica for member in record.tally.committee]
    assert ends == [chain(chained, index)[1] for index in range(3)]
    assert [{*row} for row in record.statements] == [
        {*order(chained, index)[:3]} for index in range(2)
    ]
    claims = accepted(draft, chained)
    assert claims["dissenters"] == claims["dissenting_chains"] == []


@pytest.mark.parametrize("segment", [0, 1])
def test_a_chain_that_ends_apart_is_shown_and_nobody_accused(
    segment: int, chained: Deployment
) -> None:
    claims = accepted(lying(chained, segment), chained)
    assert claims["dissenting_chains"] == [
        {"infer": 0, "chain": list(chain(chained, 0))}
    ]
    assert claims["dissenters"] == []


def test_one_that_is_out_is_absent(chained: Deployment) -> None:
    first, last = chain(chained, 1)
    gone = {(0, 0, seat(first)): Behaviour.ABSENT}
    claims = accepted(build_draft(chained, behaviours=gone), chained)
    assert [a["replica"] for a in claims["absent"]] == [last]


def test_of_one_still_out_only_the_first_need_be_a_party(
    chained: Deployment,
) -> None:
    """It may not have come to the second; nobody asks for its evidence."""
    first, last = chain(chained, 2)
    slow = {(0, 0, seat(first)): Behaviour.LATE}
    draft = build_draft(chained, behaviours=slow)
    assert chains_of(draft).tally.pending == (last,)
    accepted(draft, chained)
    accepted(without_party(draft, last), chained)
    found = rejected(without_party(draft, first), chained)
    assert f"{WHERE} replica {first}" in found


def without_party(draft: Draft, name: str) -> Bundle:
    (gone,) = (p for p in draft.receipt.parties if p.name == name)
    kept = tuple(p for p in draft.receipt.parties if p is not gone)
    bundle = with_receipt(draft, parties=kept).bundle()
    documents = bundle.key_documents
    return replace(
        bundle,
        key_documents=tuple(d for d in documents if d.digest != gone.key_document),
        evidence=tuple(e for e in bundle.evidence if e.digest != gone.evidence),
    )


def test_where_chains_do_not_agree_segments_stand_in_their_place(
    chained: Deployment,
) -> None:
    acting = {
        (0, segment, seat(chain(chained, segment)[segment])): Behaviour.LIAR
        for segment in (0, 1)
    }
    draft = build_draft(chained, behaviours=acting)
    infer = draft.receipt.infers[0]
    assert (infer.chains, len(infer.segments)) == (None, 2)
    dissenters = accepted(draft, chained)["dissenters"]
    assert [d["segment"] for d in dissenters] == [0, 1]


@pytest.mark.parametrize("segment", [0, 1])
def test_who_ran_a_segment_is_counted_where_a_trust_file_asks(segment: int) -> None:
    """All of one segment sit on one host, and the chains are called by the others."""
    names = [f"DSegment{segment}Replica{index}" for index in range(3)]
    deployment = deploy(mode=END_TO_END, platforms=dict.fromkeys(names, "one-host"))
    draft = build_draft(deployment)
    accepted(draft, deployment)
    trust = replace(deployment.trust, independence=Independence.PLATFORM)
    assert rejected(draft, deployment, trust) == {
        f"infer 0 segment {segment} independence": (
            "1 platforms among the replicas that agree"
        )
    }


# Dishonest ones.


def swapped(draft: Draft, segment: int) -> Draft:
    """The entry hands what the first chain made to the second's replica."""
    first, second, *rest = order(draft.deployment, segment)
    acting = {(0, 0, seat(chain(draft.deployment, 0)[0])): Behaviour.LIAR}
    orders = {(0, segment): (second, first, *rest)}
    return build_draft(draft.deployment, behaviours=acting, orders=orders)


def exchanged(draft: Draft) -> Draft:
    """Two replicas are said to have worked in each other's chain."""
    liar = lying(draft.deployment)
    record = chains_of(liar)
    (a, b), (c, d) = chain(draft.deployment, 0), chain(draft.deployment, 1)
    first, last = map(dict, record.statements)
    last[b], last[d] = last[d], last[b]
    assert a != c
    return with_chains(liar, statements=(first, last))


def fed_something_else(draft: Draft) -> Draft:
    other = build_draft(draft.deployment, inputs={"x": draft.inputs["x"] * 2})
    first, _ = chains_of(draft).statements
    return with_chains(draft, statements=(first, chains_of(other).statements[1]))


def of_another_request(draft: Draft) -> Draft:
    other = chains_of(another(draft, orders=_orders(draft)))
    return with_chains(draft, statements=other.statements)


def _orders(draft: Draft) -> dict[tuple[int, int], tuple[str, ...]]:
    return {(0, index): order(draft.deployment, index) for index in (0, 1)}


def missing(draft: Draft) -> Draft:
    first, last = map(dict, chains_of(draft).statements)
    del first[chain(draft.deployment, 1)[0]]
    return with_chains(draft, statements=(first, last))


def missing_row(draft: Draft) -> Draft:
    return with_chains(draft, statements=chains_of(draft).statements[:1])


def of_one_not_drawn(draft: Draft) -> Draft:
    """Somebody else was asked as well."""
    orders = {(0, 0): order(draft.deployment)[::-1]}
    other = build_draft(draft.deployment, orders=orders)
    first, last = chains_of(draft).statements
    more = {**chains_of(other).statements[0], **first}
    return with_chains(draft, statements=(more, last))


def hide_dissenter(draft: Draft) -> Draft:
    return with_chains(lying(draft.deployment), dissenters=())


def merged(draft: Draft) -> Draft:
    honest = chains_of(draft).tally
    return with_chains(
        lying(draft.deployment),
        groups=honest.groups,
        distances=honest.distances,
        clique=honest.clique,
        dissenters=(),
    )


def nobody_served(draft: Draft) -> Draft:
    return with_chains(draft, medoid=None, accepted=False)


def beside_segments(draft: Draft) -> Draft:
    deployment = draft.deployment
    lockstep = replace(deployment.scenario, mode=Mode.LOCK_STEP)
    other = build_draft(deployment, runs_by=lockstep, label="a request")
    records = other.receipt.infers[0].segments
    infer = replace(draft.receipt.infers[0], segments=records)
    return with_receipt(draft, infers=(infer,))


def neither(draft: Draft) -> Draft:
    infer = replace(draft.receipt.infers[0], chains=None)
    return with_receipt(draft, infers=(infer,))


def more_chains(draft: Draft) -> Draft:
    more = replace(draft.deployment.scenario, replicas=5, quorum=3)
    return build_draft(draft.deployment, runs_by=more)


def fewer_chains(draft: Draft) -> Draft:
    one = replace(draft.deployment.scenario, replicas=1, quorum=1)
    return build_draft(draft.deployment, runs_by=one)


def candidate_left_out(draft: Draft) -> Draft:
    first, last = map(dict, chains_of(draft).weights)
    del first[order(draft.deployment)[4]]
    return with_chains(draft, weights=(first, last))


def weights_swapped(draft: Draft) -> Draft:
    first, last = chains_of(draft).weights
    return with_chains(draft, weights=(last, first))


def other_output(draft: Draft) -> Draft:
    infer = draft.receipt.infers[0]
    outputs = {**infer.outputs, "y": infer.outputs["t1"]}
    return with_receipt(draft, infers=(replace(infer, outputs=outputs),))


def no_input(draft: Draft) -> Draft:
    infer = replace(draft.receipt.infers[0], inputs={})
    return with_receipt(draft, infers=(infer,))


Attack = Callable[[Draft], Draft]
ATTACKS: list[tuple[Attack, str]] = [
    (exchanged, "infer 0 segment 1 statement {1.0}"),
    (exchanged, "infer 0 segment 1 statement {1.1}"),
    (fed_something_else, "infer 0 segment 1 statement {1.0} input t1"),
    (of_another_request, "infer 0 segment 0 statement {0.0} request_id"),
    (missing, "infer 0 segment 0 statement {0.1}"),
    (missing, f"{WHERE} segment 0 statements of"),
    (missing_row, f"{WHERE} candidates"),
    (of_one_not_drawn, f"{WHERE} segment 0 statements of"),
    (hide_dissenter, f"{WHERE} tally dissenters"),
    (merged, f"{WHERE} tally groups"),
    (nobody_served, f"{WHERE} tally accepted"),
    (nobody_served, f"{WHERE} medoid"),
    (beside_segments, "infer 0 segments beside chains"),
    (neither, "infer 0 segments"),
    (more_chains, f"{WHERE} committee"),
    (fewer_chains, f"{WHERE} committee"),
    (candidate_left_out, f"{WHERE} candidates"),
    (weights_swapped, f"{WHERE} candidates"),
    (other_output, "infer 0 output y"),
    (no_input, "infer 0 inputs"),
    (lambda d: with_chains(d, quorum=3), f"{WHERE} tally quorum"),
    (lambda d: with_chains(d, tolerance=2e-5), f"{WHERE} tally tolerance"),
    (lambda d: with_chains(d, tolerance=1.0), f"{WHERE} tally tolerance"),
    (lambda d: with_chains(d, distances=((1.0,),)), f"{WHERE} tally distances 0,0"),
]


@pytest.mark.parametrize(
    ("attack", "finding"), ATTACKS, ids=lambda value: getattr(value, "__name__", value)
)
def test_attack_is_named(
    attack: Attack, finding: str, draft: Draft, chained: Deployment
) -> None:
    for index in range(3):
        for segment, name in enumerate(chain(chained, index)):
            finding = finding.replace(f"{{{segment}.{index}}}", name)
    assert finding in rejected(attack(draft), chained)


@pytest.mark.parametrize("segment", [0, 1])
def test_a_chain_whose_replica_belongs_to_another(
    segment: int, draft: Draft, chained: Deployment
) -> None:
    found = rejected(swapped(draft, segment), chained)
    named = f"{WHERE} committee"
    if segment == 0:
        named = f"infer 0 segment 1 statement {chain(chained, 0)[1]} input t1"
    assert named in found


def test_a_scenario_in_lock_step_has_no_chains() -> None:
    deployment = deploy(replicas=5, committee=3)
    ends = replace(deployment.scenario, mode=END_TO_END)
    draft = build_draft(deployment, runs_by=ends)
    assert rejected(draft, deployment) == {f"{WHERE} scenario mode": "lock-step"}


@pytest.mark.parametrize("wrong", [2.5, 0.0, -1.0, 5e-324, 1.7e308])
def test_a_weight_that_no_reputation_comes_to(
    wrong: float, draft: Draft, chained: Deployment
) -> None:
    first, last = chains_of(draft).weights
    weights = (dict.fromkeys(first, wrong), last)
    found = rejected(with_chains(draft, weights=weights), chained)
    assert f"{WHERE} segment 0 weight of {min(first)}" in found


def test_a_chain_weighs_as_its_least_replica(chained: Deployment) -> None:
    light = chain(chained, 0)[0]
    draft = build_draft(chained, weights={light: 0.9})
    tally = chains_of(draft).tally
    (member,) = (m for m in tally.committee if m.replica == chain(chained, 0)[1])
    assert member.weight == 0.9
    accepted(draft, chained)
    committee = tuple(replace(m, weight=1.0) for m in tally.committee)
    found = rejected(with_chains(draft, committee=committee), chained)
    assert f"{WHERE} weights" in found


@pytest.mark.parametrize("segments", [1, 3])
def test_a_configuration_of_another_plan(
    segments: int, draft: Draft, chained: Deployment
) -> None:
    """As many rows as it says, and not as many as the plan has."""
    configuration = replace(chained.configuration, segments=segments)
    forged = replace(draft, deployment=replace(chained, configuration=configuration))
    record = chains_of(draft)
    rows = (*record.weights, dict.fromkeys(_third(), 1.0))[:segments]
    statements = (*record.statements, {})[:segments]
    forged = with_chains(forged, weights=rows, statements=statements)
    forged = with_receipt(forged, config_digest=configuration.digest)
    found = rejected(forged, chained)
    assert found["configuration segments"] == str(segments)
    assert f"{WHERE} candidates" in found


def _third() -> list[str]:
    return [f"DSegment2Replica{index}" for index in range(5)]


def test_an_input_that_is_passed_through_and_left_out() -> None:
    """An output of the plan that no segment makes, and that the receipt hides."""
    deployment = deploy(mode=END_TO_END)
    plan = deployment.plan
    through: Plan = replace(plan, outputs=(*plan.outputs, plan.inputs[0]))
    deployment = replace(deployment, plan=through)
    draft = build_draft(deployment)
    infer = replace(draft.receipt.infers[0], inputs={})
    found = rejected(with_receipt(draft, infers=(infer,)), deployment)
    assert "infer 0 inputs" in found
