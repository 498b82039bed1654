"""Attacks on a referee's ruling: whose word it is, over what, and when it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.audit.recompute import Verdict
from bentoml_secure.consensus.tally import Absence
from bentoml_secure.receipts.records import RefereeRecord, SegmentRecord
from bentoml_secure.scenario import Independence, referee_name, runner_name
from bentoml_secure.statements import Statement, sign_statement, verify_statement
from bentoml_secure.testing.audits import attach_audit, recompute_draft, require_audit
from bentoml_secure.testing.deployment import SERVICE, Deployment, Process
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import (
    another,
    invite,
    statement,
    with_receipt,
    with_record,
    with_tally,
)
from tests.unit.receipts.judging import accepted, deploy, rejected

WHERE = "infer 0 segment 0"
REFEREE, NEXT = referee_name(SERVICE, 0), referee_name(SERVICE, 1)
HONEST, LIAR, OTHER = (runner_name(SERVICE, 0, index) for index in range(3))
SAID = f"{WHERE} referee statement {REFEREE}"

# Nobody agrees with anybody.
APART = {(0, 0, 1): Behaviour.LIAR, (0, 0, 2): Behaviour.OTHER_LIAR}


@pytest.fixture(scope="module")
def refereed() -> Deployment:
    return deploy(referee=True)


@pytest.fixture(scope="module")
def draft(refereed: Deployment) -> Draft:
    return build_draft(refereed, behaviours=APART)


def record_of(draft: Draft) -> SegmentRecord:
    return draft.receipt.infers[0].segments[0]


def ruling_of(draft: Draft) -> RefereeRecord:
    ruling = record_of(draft).referee
    assert ruling is not None
    return ruling


def ruled(draft: Draft, **changes: Any) -> Draft:
    return with_record(draft, 0, referee=replace(ruling_of(draft), **changes))


def said_by(draft: Draft, process: Process, **changes: Any) -> Draft:
    """Let a process rule, with the referee's answer or another."""
    key = draft.deployment.referees[0].signing.public
    said = verify_statement(ruling_of(draft).statement, key)
    said = replace(said, key_document=process.document.digest, **changes)
    envelope = sign_statement(process.signing, said)
    return ruled(draft, replica=process.name, statement=envelope)


def restated(draft: Draft, **changes: Any) -> Draft:
    """Let the referee sign something else."""
    return said_by(draft, draft.deployment.referees[0], **changes)


# Honest rulings.


def test_a_ruling_names_who_was_wrong(draft: Draft, refereed: Deployment) -> None:
    claims = accepted(draft, refereed)
    assert claims["ruled"] == [{"infer": 0, "segment": 0, "referee": REFEREE}]
    assert {(d["replica"], d["where"]) for d in claims["dissenters"]} == {
        (LIAR, "referee"),
        (OTHER, "referee"),
    }
    parties = {party["name"] for party in claims["parties"]}
    assert REFEREE in parties
    assert NEXT not in parties


def test_one_within_the_tolerance_is_upheld(refereed: Deployment) -> None:
    near = APART | {(0, 0, 0): Behaviour.NEAR}
    claims = accepted(build_draft(refereed, behaviours=near), refereed)
    assert HONEST not in {d["replica"] for d in claims["dissenters"]}


def test_votes_that_come_after_it_are_held_against_it(refereed: Deployment) -> None:
    acting = {(0, 0, 1): Behaviour.LIAR, (0, 0, 2): Behaviour.LATE_LIAR}
    claims = accepted(build_draft(refereed, behaviours=acting), refereed)
    assert {(d["replica"], d["where"]) for d in claims["dissenters"]} == {
        (LIAR, "referee"),
        (OTHER, "late-votes"),
    }


def test_where_nobody_answered_a_referee_decides(refereed: Deployment) -> None:
    nobody = {(0, 0, index): Behaviour.ABSENT for index in range(3)}
    draft = build_draft(refereed, behaviours=nobody)
    assert ruling_of(draft).distances == {}
    assert len(accepted(draft, refereed)["absent"]) == 3


@pytest.mark.parametrize("trusting", [True, False])
def test_voices_are_not_counted_where_a_referee_decides(trusting: bool) -> None:
    """A quorum of platforms that agree is what there was not."""
    deployment = deploy(referee=True, independence=Independence.PLATFORM)
    draft = build_draft(deployment, behaviours=APART)
    trust = replace(
        deployment.trust,
        referee=trusting,
        independence=Independence.PLATFORM,
    )
    if trusting:
        assert len(accepted(draft, deployment, trust)["ruled"]) == 1
    else:
        assert f"{WHERE} trust file referee" in rejected(draft, deployment, trust)


def test_a_distance_beyond_equal_commitments_is_the_entry_s_word(
    draft: Draft, refereed: Deployment
) -> None:
    distances = {**ruling_of(draft).distances, LIAR: 0.0}
    claims = accepted(ruled(draft, distances=distances), refereed)
    assert {d["replica"] for d in claims["dissenters"]} == {OTHER}
    assert claims["labels"]["distances"] == "asserted by the entry"


def test_a_round_that_its_referee_decided_is_not_audited() -> None:
    """It cannot bear itself out: it stands in the audit as absent."""
    deployment = deploy(referee=True, audit_rate=1.0)
    draft = require_audit(build_draft(deployment, behaviours=APART))
    first, second = recompute_draft(draft, {(0, 0): Behaviour.ABSENT})
    claims = accepted(attach_audit(draft, [first, second]), deployment)
    assert [a["verdict"] for a in claims["audited"]] == ["absent", "agrees"]
    agreeing = replace(
        first,
        verdict=Verdict.AGREES,
        statement=ruling_of(restated(draft, exchange_id="00" * 16)).statement,
        distance=0.0,
        reason=None,
    )
    forged = attach_audit(draft, [agreeing, second])
    assert "audit infer 0 segment 0 replica" in rejected(forged, deployment)


# Dishonest ones.


def another_segment_s(draft: Draft) -> Draft:
    other = draft.deployment.referees[1]
    return invite(said_by(draft, other), other)


def a_replica(draft: Draft) -> Draft:
    """One that voted decides as well."""
    return said_by(draft, draft.deployment.runners[0][0])


def the_entry(draft: Draft) -> Draft:
    return said_by(draft, draft.deployment.entry)


def over_a_quorum(draft: Draft) -> Draft:
    """A quorum agreed; the entry likes the referee's answer better."""
    agreed = build_draft(draft.deployment)
    first = record_of(agreed).tally.groups[0][0]
    ruling = replace(ruling_of(draft), distances={first: 0.0})
    forged = with_record(agreed, 0, referee=ruling)
    return invite(forged, draft.deployment.referees[0])


def hidden(draft: Draft) -> Draft:
    return with_record(draft, 0, referee=None)


def passed_off_as_a_quorum(draft: Draft) -> Draft:
    return with_tally(
        with_record(draft, 0, referee=None), 0, accepted=True, medoid=HONEST
    )


def another_answer_served(draft: Draft) -> Draft:
    """Segment 1 was given what a liar made, and not what the referee did."""
    outputs = statement(draft, 0, LIAR).outputs
    return restated(draft, outputs=outputs)


def under_another_key(draft: Draft) -> Draft:
    key = draft.deployment.referees[1].signing
    public = draft.deployment.referees[0].signing.public
    said = verify_statement(ruling_of(draft).statement, public)
    return ruled(draft, statement=sign_statement(key, said))


def of_another_request(draft: Draft) -> Draft:
    other = another(draft, behaviours=APART)
    return ruled(draft, statement=ruling_of(other).statement)


def over_other_inputs(draft: Draft) -> Draft:
    said = statement(draft, 0, LIAR)
    return restated(draft, inputs={"x": said.outputs["t1"]})


def exchange_of_a_vote(draft: Draft) -> Draft:
    return restated(draft, exchange_id=statement(draft, 0, LIAR).exchange_id)


def no_party(draft: Draft) -> Draft:
    parties = tuple(p for p in draft.receipt.parties if p.name != REFEREE)
    return with_receipt(draft, parties=parties)


def measured(**distances: float | None) -> Callable[[Draft], Draft]:
    """Another distance of somebody, or of nobody."""

    def attack(draft: Draft) -> Draft:
        return ruled(draft, distances={**ruling_of(draft).distances, **distances})

    return attack


def one_not_measured(draft: Draft) -> Draft:
    distances: Mapping[str, float | None] = {
        name: apart
        for name, apart in ruling_of(draft).distances.items()
        if name != LIAR
    }
    return ruled(draft, distances=distances)


def hide_absence(draft: Draft) -> Draft:
    """Whoever lied is said not to have answered; the statement is still there."""
    gone = (Absence(replica=LIAR, reason="slow"),)
    return with_tally(draft, 0, absent=gone)


Attack = Callable[[Draft], Draft]
ATTACKS: list[tuple[str, Attack, str]] = [
    ("another segment's referee", another_segment_s, f"{WHERE} referee"),
    ("of another segment", another_segment_s, f"party {NEXT} segment"),
    ("a replica", a_replica, f"{WHERE} referee"),
    ("the entry", the_entry, f"{WHERE} referee"),
    ("the entry is no runner", the_entry, f"party {SERVICE} role"),
    ("over a quorum", over_a_quorum, f"{WHERE} tally accepted"),
    ("hidden", hidden, f"{WHERE} tally accepted"),
    ("hidden, nobody served", hidden, f"{WHERE} medoid"),
    ("passed off", passed_off_as_a_quorum, f"{WHERE} tally accepted"),
    (
        "another answer served",
        another_answer_served,
        f"infer 0 segment 1 statement {runner_name(SERVICE, 1, 0)} input t1",
    ),
    ("another key", under_another_key, SAID),
    ("another request", of_another_request, f"{SAID} request_id"),
    ("other inputs", over_other_inputs, f"{SAID} input x"),
    ("no inputs", lambda d: restated(d, inputs={}), f"{SAID} inputs"),
    ("no outputs", lambda d: restated(d, outputs={}), f"{SAID} outputs"),
    ("another infer", lambda d: restated(d, infer_index=1), f"{SAID} infer_index"),
    ("exchange of a vote", exchange_of_a_vote, f"{SAID} exchange_id"),
    ("no party", no_party, f"{WHERE} replica {REFEREE}"),
    (
        "below 0",
        measured(**{LIAR: -1.0}),
        f"{WHERE} referee distance of {LIAR}",
    ),
    (
        "between equals",
        measured(**{HONEST: 1e-9}),
        f"{WHERE} referee distance of {HONEST}",
    ),
    (
        "beyond compare with itself",
        measured(**{HONEST: None}),
        f"{WHERE} referee distance of {HONEST}",
    ),
    ("of nobody", measured(Nobody=0.0), f"{WHERE} referee distances"),
    ("not measured", one_not_measured, f"{WHERE} referee distances"),
    ("absence of a voter", hide_absence, f"{WHERE} tally committee"),
]


@pytest.mark.parametrize(
    ("attack", "finding"), [case[1:] for case in ATTACKS], ids=[c[0] for c in ATTACKS]
)
def test_attack_is_named(
    attack: Attack, finding: str, draft: Draft, refereed: Deployment
) -> None:
    assert finding in rejected(attack(draft), refereed)


def test_a_scenario_without_a_referee_has_no_rulings() -> None:
    deployment = deploy(referee=False)
    referee = replace(deployment.scenario, referee=True)
    draft = build_draft(deployment, behaviours=APART, runs_by=referee)
    assert rejected(draft, deployment) == {f"{WHERE} scenario referee": "False"}


def test_a_deployment_without_referees_has_no_rulings(draft: Draft) -> None:
    """The configuration says that there are none; the entry has one all the same."""
    deployment = draft.deployment
    alone = replace(deployment.configuration, referees=False, scenarios=_without())
    forged = replace(draft, deployment=replace(deployment, configuration=alone))
    forged = with_receipt(forged, config_digest=alone.digest)
    found = rejected(forged, deployment)
    assert found[f"{WHERE} referee"] == REFEREE
    assert "config_digest" in found


def _without() -> Any:
    return deploy(referee=False).configuration.scenarios


def test_a_trust_file_that_takes_no_referee_s_word(
    draft: Draft, refereed: Deployment
) -> None:
    trust = replace(refereed.trust, referee=False)
    assert rejected(draft, refereed, trust) == {f"{WHERE} trust file referee": "False"}


def test_what_a_referee_signed_is_a_vote_of_the_round(draft: Draft) -> None:
    key = draft.deployment.referees[0].signing.public
    said = verify_statement(ruling_of(draft).statement, key)
    assert isinstance(said, Statement)
    assert said.inputs == statement(draft, 0, HONEST).inputs
    assert said.outputs == statement(draft, 0, HONEST).outputs
