"""Commitments in a receipt: what an honest entry shows, and what a lying one cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pytest

from bentoml_secure.consensus.commit_reveal import (
    COMMITMENT_TYPE,
    Commitment,
    Task,
    commit_answer,
    sign_commitment,
)
from bentoml_secure.digest import canonical_json, digest_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.case import Case, Report
from bentoml_secure.receipts.commitments import (
    MAX_COMMITMENTS,
    Revealed,
    commitments_from_json,
    commitments_to_json,
    judge_commitments,
)
from bentoml_secure.receipts.judgement import Judgement, Round
from bentoml_secure.receipts.receipt import parse_receipt
from bentoml_secure.signing import sign
from bentoml_secure.statements import Statement, verify_statement
from bentoml_secure.testing.deployment import Deployment, Process
from bentoml_secure.testing.receipts import Draft

NONCE = bytes(range(16))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The first round of a receipt, whose scenario has replicas commit."""

    judgement: Judgement
    round: Round
    statements: Mapping[str, Statement]
    runners: Mapping[str, Process]

    def honest(self, name: str, **changes: Any) -> Revealed:
        """Return what a replica commits to its vote with."""
        vote, runner = self.statements[name], self.runners[name]
        task = Task.of(vote)
        made = Commitment(
            task=task,
            key_document=runner.document.digest,
            commitment=commit_answer(task, name, vote.outputs, NONCE),
        )
        envelope = sign_commitment(runner.signing, replace(made, **changes))
        return Revealed(commitment=envelope, nonce=NONCE, blind=True)

    @property
    def all_honest(self) -> dict[str, Revealed]:
        return {name: self.honest(name) for name in self.statements}

    def judge(self, commitments: Mapping[str, Revealed]) -> tuple[str, ...]:
        return judge_commitments(
            self.judgement, self.round, commitments, self.statements
        )

    @property
    def found(self) -> dict[str, str]:
        return {f.field: f.got for f in self.judgement.report.findings}


WHERE = "infer 0 segment 0 commitments"


def judged(
    deployment: Deployment, draft: Draft, now: datetime, *, commits: bool = True
) -> Judged:
    bundle = draft.bundle()
    scenario = replace(bundle.scenario, commit_reveal=commits)
    bundle = replace(bundle, scenario=scenario)
    receipt = parse_receipt(bundle.receipt)
    case = Case.of(bundle, receipt, deployment.trust, at=now, now=now)
    record = receipt.infers[0].segments[0]
    return Judged(
        judgement=Judgement(case=case, results={}, report=Report()),
        round=Round(
            infer=0,
            index=0,
            segment=bundle.plan.segments[0],
            tally=record.tally,
            inputs={},
            agreed={},
        ),
        statements={
            name: verify_statement(envelope, case.keys[name])
            for name, envelope in record.statements.items()
        },
        runners={runner.name: runner for runner in deployment.runners[0]},
    )


@pytest.fixture
def round_(deployment: Deployment, draft: Draft, now: datetime) -> Judged:
    return judged(deployment, draft, now)


def test_honest_commitments_have_no_finding(round_: Judged) -> None:
    assert round_.judge(round_.all_honest) == ()
    assert round_.found == {}


def test_who_was_not_blind_is_named_where_a_quorum_needs_it(round_: Judged) -> None:
    commitments, (_, second, third) = round_.all_honest, sorted(round_.statements)
    commitments[third] = replace(commitments[third], blind=False)
    # Two of three were blind, and two are enough.
    assert round_.judge(commitments) == ()
    commitments[second] = replace(commitments[second], blind=False)
    assert round_.judge(commitments) == (second, third)
    assert round_.found == {}


def test_where_nothing_was_agreed_nobody_is_needed(round_: Judged) -> None:
    refused = replace(round_.round, tally=replace(round_.round.tally, accepted=False))
    commitments = {
        name: replace(made, blind=False) for name, made in round_.all_honest.items()
    }
    assert replace(round_, round=refused).judge(commitments) == ()


def test_a_vote_without_a_commitment_is_found(round_: Judged) -> None:
    commitments, name = round_.all_honest, min(round_.statements)
    del commitments[name]
    round_.judge(commitments)
    assert list(round_.found) == [f"{WHERE} of"]
    assert name not in round_.found[f"{WHERE} of"]


def test_a_commitment_without_a_vote_is_found(round_: Judged) -> None:
    commitments = round_.all_honest
    commitments["Nobody"] = next(iter(commitments.values()))
    round_.judge(commitments)
    assert "'Nobody'" in round_.found[f"{WHERE} of"]


def test_commitments_that_nobody_asked_for_are_found(
    deployment: Deployment, draft: Draft, now: datetime
) -> None:
    round_ = judged(deployment, draft, now, commits=False)
    assert round_.judge({}) == ()
    assert round_.found == {}
    round_.judge(round_.all_honest)
    assert list(round_.found) == [f"{WHERE} of"]


def other_nonce(round_: Judged, name: str, _: str) -> Revealed:
    return replace(round_.honest(name), nonce=bytes(16))


def copied(round_: Judged, name: str, other: str) -> Revealed:
    """Another's commitment as its own, opened as that other opened it."""
    vote = round_.statements[other]
    stolen = commit_answer(Task.of(vote), other, vote.outputs, NONCE)
    return round_.honest(name, commitment=stolen)


def copied_envelope(round_: Judged, name: str, other: str) -> Revealed:
    return round_.honest(other)


def other_answer(round_: Judged, name: str, _: str) -> Revealed:
    task = Task.of(round_.statements[name])
    return round_.honest(name, commitment=commit_answer(task, name, {}, NONCE))


def other_exchange(round_: Judged, name: str, _: str) -> Revealed:
    """Committed to in one exchange, voted with in another."""
    vote = round_.statements[name]
    task = replace(Task.of(vote), exchange_id="00" * 16)
    made = commit_answer(task, name, vote.outputs, NONCE)
    return round_.honest(name, task=task, commitment=made)


def other_request(round_: Judged, name: str, _: str) -> Revealed:
    vote = round_.statements[name]
    task = replace(Task.of(vote), request_id="00" * 16)
    made = commit_answer(task, name, vote.outputs, NONCE)
    return round_.honest(name, task=task, commitment=made)


def other_key_document(round_: Judged, name: str, _: str) -> Revealed:
    return round_.honest(name, key_document=digest_json("another"))


def other_form(round_: Judged, name: str, _: str) -> Revealed:
    signed = sign(round_.runners[name].signing, COMMITMENT_TYPE, {"version": 1})
    return replace(round_.honest(name), commitment=signed)


@pytest.mark.parametrize(
    ("forge", "got"),
    [
        (other_nonce, "opened another answer"),
        (copied, "opened another answer"),
        (copied_envelope, "key"),
        (other_answer, "opened another answer"),
        (other_exchange, "commitment exchange_id: got '0000"),
        (other_request, "commitment request_id: got '0000"),
        (other_key_document, "commitment key_document: got"),
        (other_form, "commitment: field"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_commitment_that_is_not_the_votes_is_found(
    round_: Judged, forge: Callable[[Judged, str, str], Revealed], got: str
) -> None:
    first, second, _ = sorted(round_.statements)
    commitments = round_.all_honest
    commitments[second] = forge(round_, second, first)
    round_.judge(commitments)
    assert list(round_.found) == [f"{WHERE} {second}"]
    assert got in round_.found[f"{WHERE} {second}"]


def test_they_come_back_from_json(round_: Judged) -> None:
    commitments = round_.all_honest
    document = json.loads(canonical_json(commitments_to_json(commitments)))
    assert commitments_from_json(document, what="c") == commitments


FORMS: dict[str, tuple[Any, str]] = {
    "list": ([], f"c: want an object of at most {MAX_COMMITMENTS}"),
    "many": ({str(n): {} for n in range(MAX_COMMITMENTS + 1)}, "want an object of"),
    "name": ({"": {}}, "c replica: got ''"),
    "empty": ({"R": {}}, "c 'R': field 'blind' is missing"),
    "more": (
        {"R": {"commitment": {}, "nonce": "", "blind": True, "x": 1}},
        "c 'R': unknown field 'x'",
    ),
}


@pytest.mark.parametrize(("document", "why"), FORMS.values(), ids=FORMS)
def test_any_other_form_is_refused(document: Any, why: str) -> None:
    with pytest.raises(MalformedInputError, match=why):
        commitments_from_json(document, what="c")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"blind": 1}, "blind: got 1, want true or false"),
        ({"nonce": "00"}, "nonce: got 2 hex digits, want 32"),
        ({"commitment": {}}, "commitment"),
    ],
)
def test_any_other_field_is_refused(
    round_: Judged, changes: dict[str, Any], why: str
) -> None:
    document = {**round_.honest(min(round_.statements)).to_json(), **changes}
    with pytest.raises(MalformedInputError, match=why):
        Revealed.from_json(document, what="c")
