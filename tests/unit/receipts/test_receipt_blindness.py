"""Commitments in whole receipts: asked for by the scenario, judged with the rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bentoml_secure.receipts.commitments import Revealed
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import another, with_record
from tests.unit.receipts.judging import accepted, deploy, rejected

WHERE = "infer 0 segment 0 commitments"
FIRST, SECOND, THIRD = (f"DSegment0Replica{index}" for index in range(3))


@pytest.fixture(scope="module")
def committing() -> Deployment:
    return deploy(commit_reveal=True, referee=True)


@pytest.fixture(scope="module")
def draft(committing: Deployment) -> Draft:
    return build_draft(committing)


def commitments_of(draft: Draft) -> dict[str, Revealed]:
    return dict(draft.receipt.infers[0].segments[0].commitments)


def with_one(draft: Draft, name: str, revealed: Revealed) -> Draft:
    return with_record(draft, 0, commitments={**commitments_of(draft), name: revealed})


def seeing(draft: Draft, *names: str) -> Draft:
    """Return the draft with replicas that had seen an answer before."""
    revealed = {
        name: replace(made, blind=name not in names)
        for name, made in commitments_of(draft).items()
    }
    return with_record(draft, 0, commitments=revealed)


def test_every_vote_has_one(draft: Draft, committing: Deployment) -> None:
    assert commitments_of(draft).keys() == {FIRST, SECOND, THIRD}
    claims = accepted(draft, committing)
    assert claims["not_blind"] == []
    assert claims["labels"]["commitments before reveals"] == "asserted by the entry"


def test_who_was_not_blind_is_named_where_a_quorum_needs_it(
    draft: Draft, committing: Deployment
) -> None:
    assert accepted(seeing(draft, THIRD), committing)["not_blind"] == []
    claims = accepted(seeing(draft, SECOND, THIRD), committing)
    assert [entry["replica"] for entry in claims["not_blind"]] == [SECOND, THIRD]


def test_a_ruling_needs_none(committing: Deployment) -> None:
    apart = {(0, 0, 1): Behaviour.LIAR, (0, 0, 2): Behaviour.OTHER_LIAR}
    draft = build_draft(committing, behaviours=apart)
    claims = accepted(draft, committing)
    assert (len(claims["ruled"]), claims["not_blind"]) == (1, [])


def test_a_late_vote_has_none(committing: Deployment) -> None:
    draft = build_draft(committing, behaviours={(0, 0, 2): Behaviour.LATE})
    assert commitments_of(draft).keys() == {FIRST, SECOND}
    accepted(draft, committing)


def left_out(draft: Draft) -> Draft:
    rest = {n: made for n, made in commitments_of(draft).items() if n != FIRST}
    return with_record(draft, 0, commitments=rest)


def of_nobody(draft: Draft) -> Draft:
    return with_one(draft, "Nobody", commitments_of(draft)[FIRST])


def copied(draft: Draft) -> Draft:
    return with_one(draft, FIRST, commitments_of(draft)[SECOND])


def other_nonce(draft: Draft) -> Draft:
    return with_one(
        draft, FIRST, replace(commitments_of(draft)[FIRST], nonce=bytes(16))
    )


def of_another_request(draft: Draft) -> Draft:
    return with_one(draft, FIRST, commitments_of(another(draft))[FIRST])


def to_another_answer(draft: Draft) -> Draft:
    """It committed to the truth, and then lied."""
    liar = build_draft(draft.deployment, behaviours={(0, 0, 0): Behaviour.LIAR})
    return with_one(liar, FIRST, commitments_of(draft)[FIRST])


ATTACKS: list[tuple[Callable[[Draft], Draft], str]] = [
    (left_out, f"{WHERE} of"),
    (of_nobody, f"{WHERE} of"),
    (copied, f"{WHERE} {FIRST}"),
    (other_nonce, f"{WHERE} {FIRST}"),
    (of_another_request, f"{WHERE} {FIRST}"),
    (to_another_answer, f"{WHERE} {FIRST}"),
]


@pytest.mark.parametrize(
    ("attack", "finding"), ATTACKS, ids=lambda value: getattr(value, "__name__", value)
)
def test_attack_is_named(
    attack: Callable[[Draft], Draft],
    finding: str,
    draft: Draft,
    committing: Deployment,
) -> None:
    assert list(rejected(attack(draft), committing)) == [finding]


def test_a_scenario_that_asks_for_none_has_none(draft: Draft) -> None:
    deployment = deploy()
    shown = replace(deployment.scenario, commit_reveal=True)
    found = rejected(build_draft(deployment, runs_by=shown), deployment)
    assert {*found} == {f"infer 0 segment {index} commitments of" for index in (0, 1)}


def test_votes_without_commitments_where_they_are_asked_for(
    committing: Deployment,
) -> None:
    lax = replace(committing.scenario, commit_reveal=False)
    found = rejected(build_draft(committing, runs_by=lax), committing)
    assert {*found} == {f"infer 0 segment {index} commitments of" for index in (0, 1)}
