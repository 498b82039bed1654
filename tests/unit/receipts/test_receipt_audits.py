"""Attacks on the attachment "audit", each with its finding.

Every bundle is made by the real code with real keys and simulated evidence, tampered
with, and signed again by whoever could: the entry, or a referee.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from bentoml_secure.audit.recompute import Recomputation, Verdict
from bentoml_secure.audit.sampling import audited
from bentoml_secure.consensus.committee import seed
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import MalformedInputError, ReceiptError
from bentoml_secure.receipts.attachments import (
    issue_attachment,
    verify_attachment,
)
from bentoml_secure.receipts.audit import (
    AUDIT,
    Audit,
    audit_due,
    audit_seconds,
    longest_audit,
)
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.receipt import RequiredAttachment
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.scenario import referee_name, runner_name
from bentoml_secure.statements import format_time, sign_statement
from bentoml_secure.testing.audits import (
    attach_audit,
    recompute_draft,
    referee_statement,
    require_audit,
    sign_audit,
)
from bentoml_secure.testing.deployment import (
    NOW,
    SERVICE,
    Deployment,
    build_deployment,
)
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import another, invite, with_receipt, with_tally

WHERE = "audit infer 0 segment 0"
REFEREE, NEXT = referee_name(SERVICE, 0), referee_name(SERVICE, 1)
SOMEBODY = runner_name(SERVICE, 0, 0)
SAID = f"{WHERE} statement {REFEREE}"


@pytest.fixture(scope="module")
def audited_deployment() -> Deployment:
    return build_deployment(audit_rate=1.0)


@pytest.fixture(scope="module")
def draft(audited_deployment: Deployment) -> Draft:
    return require_audit(build_draft(audited_deployment))


def claims(bundle: Bundle, draft: Draft, now: datetime) -> Any:
    verdict = verify_bundle(bundle, draft.deployment.trust, now=now)
    assert verdict.state is State.ACCEPTED
    return verdict.claims


def findings(bundle: Bundle, draft: Draft, now: datetime) -> set[str]:
    with pytest.raises(ReceiptError, match=r"rejected|cannot be read") as error:
        verify_bundle(bundle, draft.deployment.trust, now=now)
    return {finding.field for finding in error.value.findings}


def with_first(draft: Draft, **changes: Any) -> Bundle:
    first, *rest = recompute_draft(draft)
    return attach_audit(draft, [replace(first, **changes), *rest])


def restated(draft: Draft, **changes: Any) -> Bundle:
    """Let the first segment's referee sign something else."""
    said = replace(referee_statement(draft, 0, 0), **changes)
    key = draft.deployment.referees[0].signing
    return with_first(draft, statement=sign_statement(key, said))


def by_somebody_who_voted(draft: Draft) -> Bundle:
    (runner,) = [p for p in draft.deployment.processes if p.name == SOMEBODY]
    said = replace(referee_statement(draft, 0, 0), key_document=runner.document.digest)
    statement = sign_statement(runner.signing, said)
    return with_first(draft, replica=SOMEBODY, statement=statement)


def by_the_next_segment_s_referee(draft: Draft) -> Bundle:
    other = draft.deployment.referees[1]
    said = replace(referee_statement(draft, 0, 0), key_document=other.document.digest)
    statement = sign_statement(other.signing, said)
    return with_first(draft, replica=other.name, statement=statement)


def under_another_key(draft: Draft) -> Bundle:
    said = referee_statement(draft, 0, 0)
    key = draft.deployment.referees[1].signing
    return with_first(draft, statement=sign_statement(key, said))


def of_another_request(draft: Draft) -> Bundle:
    other = recompute_draft(another(draft))
    return with_first(draft, statement=other[0].statement)


def the_same_statement_twice(draft: Draft) -> Bundle:
    first, second = recompute_draft(draft)
    return attach_audit(draft, [first, replace(second, statement=first.statement)])


def exchange_of_a_vote(draft: Draft) -> Bundle:
    tally = draft.receipt.infers[0].segments[0].tally
    record = draft.receipt.infers[0].segments[0].statements[str(tally.medoid)]
    voted = json.loads(record.payload)
    return restated(draft, exchange_id=voted["exchange_id"])


def other_inputs(draft: Draft) -> Bundle:
    said = referee_statement(draft, 0, 0)
    (outputs,) = said.outputs.values()
    return restated(draft, inputs=dict.fromkeys(said.inputs, outputs))


def near(draft: Draft, **changes: Any) -> Bundle:
    first, *rest = recompute_draft(draft, {(0, 0): Behaviour.NEAR})
    return attach_audit(draft, [replace(first, **changes), *rest])


def of_another_receipt(draft: Draft) -> Bundle:
    other = require_audit(another(draft))
    recomputed = recompute_draft(draft)
    audit = sign_audit(draft, other.bundle().receipt, recomputed)
    return replace(draft.bundle(), attachments=(audit,))


def by_a_referee(draft: Draft) -> Bundle:
    bundle, key = draft.bundle(), draft.deployment.referees[0].signing
    audit = sign_audit(draft, bundle.receipt, recompute_draft(draft), key)
    return replace(bundle, attachments=(audit,))


def twice(draft: Draft) -> Bundle:
    bundle = attach_audit(draft, recompute_draft(draft))
    return replace(bundle, attachments=bundle.attachments * 2)


def without_the_referee_s_key(draft: Draft) -> Bundle:
    bundle = attach_audit(draft, recompute_draft(draft))
    wanted = draft.deployment.referees[0].document.digest
    documents = tuple(d for d in bundle.key_documents if d.digest != wanted)
    return replace(bundle, key_documents=documents)


def referee_is_no_party(draft: Draft) -> Bundle:
    recomputed = recompute_draft(draft)
    name = draft.deployment.referees[0].name
    parties = tuple(p for p in draft.receipt.parties if p.name != name)
    return attach_audit(with_receipt(draft, parties=parties), recomputed)


def deadline_that_never_comes(draft: Draft) -> Bundle:
    never = RequiredAttachment(kind=AUDIT, deadline="2999-01-01T00:00:00.000Z")
    changed = with_receipt(draft, attachments=(never,))
    return attach_audit(changed, recompute_draft(changed))


def too_late(draft: Draft) -> Bundle:
    soon = RequiredAttachment(
        kind=AUDIT, deadline=format_time(draft.deployment.now + timedelta(seconds=2))
    )
    changed = with_receipt(draft, attachments=(soon,))
    return attach_audit(changed, recompute_draft(changed))


def not_required(draft: Draft) -> Bundle:
    changed = with_receipt(draft, attachments=())
    return attach_audit(changed, recompute_draft(changed))


def of_a_round_that_agreed_on_nothing(draft: Draft) -> Bundle:
    recomputed = recompute_draft(draft)
    return attach_audit(with_tally(draft, 0, accepted=False), recomputed)


def liar(draft: Draft, **changes: Any) -> Bundle:
    first, *rest = recompute_draft(draft, {(0, 0): Behaviour.LIAR})
    return attach_audit(draft, [replace(first, **changes), *rest])


Attack = Callable[[Draft], Bundle]
HASH = digest_json("another")
ATTACKS: list[tuple[str, Attack, str]] = [
    (
        "a segment left out",
        lambda d: attach_audit(d, recompute_draft(d)[1:]),
        "audit segments",
    ),
    ("nothing recomputed", lambda d: attach_audit(d, []), "audit segments"),
    (
        "a segment nobody ran",
        lambda d: attach_audit(
            d, [*recompute_draft(d), replace(recompute_draft(d)[0], infer=1)]
        ),
        "audit segments",
    ),
    ("somebody who voted", by_somebody_who_voted, f"{WHERE} replica"),
    ("another's referee", by_the_next_segment_s_referee, f"{WHERE} replica"),
    (
        "another's referee is of another segment",
        by_the_next_segment_s_referee,
        f"party {NEXT} segment",
    ),
    (
        "somebody else absent",
        lambda d: with_first(
            d,
            replica=SOMEBODY,
            verdict=Verdict.ABSENT,
            statement=None,
            distance=None,
            reason="lost",
        ),
        f"{WHERE} replica",
    ),
    ("the referee's own", of_a_round_that_agreed_on_nothing, f"{WHERE} replica"),
    ("another key", under_another_key, SAID),
    (
        "a signature of zeros",
        lambda d: with_first(d, statement=replace(_statement(d), signature=bytes(64))),
        SAID,
    ),
    ("no key", without_the_referee_s_key, SAID),
    ("no party", referee_is_no_party, f"{WHERE} replica {REFEREE}"),
    ("another request", of_another_request, f"{SAID} request_id"),
    ("request_id", lambda d: restated(d, request_id="00" * 16), f"{SAID} request_id"),
    ("nonce", lambda d: restated(d, nonce="00" * 32), f"{SAID} nonce"),
    ("plan", lambda d: restated(d, plan_digest=HASH), f"{SAID} plan_digest"),
    ("infer", lambda d: restated(d, infer_index=1), f"{SAID} infer_index"),
    ("segment", lambda d: restated(d, segment=HASH), f"{SAID} segment"),
    ("document", lambda d: restated(d, key_document=HASH), f"{SAID} key_document"),
    ("inputs", other_inputs, f"{SAID} input x"),
    ("no inputs", lambda d: restated(d, inputs={}), f"{SAID} inputs"),
    ("no outputs", lambda d: restated(d, outputs={}), f"{SAID} outputs"),
    ("exchange of a vote", exchange_of_a_vote, f"{SAID} exchange_id"),
    (
        "one statement for two segments",
        the_same_statement_twice,
        f"audit infer 0 segment 1 statement {NEXT}",
    ),
    (
        "a distance between equals",
        lambda d: with_first(d, distance=1e-9),
        f"{WHERE} distance",
    ),
    (
        "no distance between equals",
        lambda d: with_first(d, distance=None),
        f"{WHERE} distance",
    ),
    (
        "equals that differ",
        lambda d: with_first(d, verdict=Verdict.DIFFERS),
        f"{WHERE} verdict",
    ),
    (
        "a difference that agrees",
        lambda d: liar(d, verdict=Verdict.AGREES),
        f"{WHERE} verdict",
    ),
    (
        "near ones that differ",
        lambda d: near(d, verdict=Verdict.DIFFERS),
        f"{WHERE} verdict",
    ),
    ("near ones too far", lambda d: near(d, distance=3e-5), f"{WHERE} answer"),
    ("near ones beyond compare", lambda d: near(d, distance=None), f"{WHERE} answer"),
    ("another answer", liar, f"{WHERE} answer"),
    ("another receipt", of_another_receipt, "attachment 0 (audit) subject"),
    ("a referee's signature", by_a_referee, "attachment 0"),
    ("twice", twice, "attachments audit"),
    ("not required", not_required, "attachments required"),
    ("too late", too_late, "attachment 0 (audit) issued_at"),
    ("deadline", deadline_that_never_comes, "attachments audit deadline"),
]


def _statement(draft: Draft) -> Any:
    return recompute_draft(draft)[0].statement


@pytest.mark.parametrize(
    ("attack", "finding"),
    [pytest.param(attack, finding, id=name) for name, attack, finding in ATTACKS],
)
def test_attack_on_an_audit_is_named(
    attack: Attack, finding: str, draft: Draft, now: datetime
) -> None:
    assert finding in findings(attack(draft), draft, now)


def test_an_honest_audit_is_accepted(draft: Draft, now: datetime) -> None:
    bundle = attach_audit(draft, recompute_draft(draft))
    made = claims(bundle, draft, now)
    assert (made["dissenters"], made["absent"]) == ([], [])


def test_a_near_answer_agrees(draft: Draft, now: datetime) -> None:
    recomputed = recompute_draft(draft, {(0, 1): Behaviour.NEAR})
    claims(attach_audit(draft, recomputed), draft, now)


def test_another_answer_rejects_the_receipt_and_nothing_else_does(
    draft: Draft, now: datetime
) -> None:
    assert findings(liar(draft), draft, now) == {f"{WHERE} answer"}


def test_a_configuration_of_another_deployment_has_its_own_finding(
    draft: Draft, now: datetime
) -> None:
    bundle = attach_audit(draft, recompute_draft(draft))
    other = {**bundle.configuration, "service": "Another"}
    found = findings(replace(bundle, configuration=other), draft, now)
    assert "config_digest" in found
    assert f"{WHERE} replica" not in found


def test_what_could_not_be_recomputed_is_reported(draft: Draft, now: datetime) -> None:
    recomputed = recompute_draft(draft, {(0, 0): Behaviour.ABSENT})
    assert claims(attach_audit(draft, recomputed), draft, now)["absent"] == [
        {
            "infer": 0,
            "segment": 0,
            "replica": REFEREE,
            "reason": "connection refused",
            "where": "audit",
        }
    ]


def test_a_referee_without_evidence_may_be_absent_only(
    draft: Draft, now: datetime
) -> None:
    name = draft.deployment.referees[0].name
    parties = tuple(p for p in draft.receipt.parties if p.name != name)
    changed = with_receipt(draft, parties=parties)
    recomputed = recompute_draft(changed, {(0, 0): Behaviour.ABSENT})
    bundle = attach_audit(changed, recomputed)
    bundle = replace(
        bundle,
        key_documents=tuple(d for d in bundle.key_documents if d.service != name),
        evidence=tuple(
            record
            for record, process in zip(
                bundle.evidence, draft.deployment.processes, strict=True
            )
            if process.name != name
        ),
    )
    assert len(claims(bundle, draft, now)["absent"]) == 1


def test_an_audit_goes_with_late_votes(
    audited_deployment: Deployment, now: datetime
) -> None:
    late = require_audit(
        build_draft(audited_deployment, behaviours={(0, 0, 2): Behaviour.LATE})
    )
    bundle = attach_audit(late, recompute_draft(late))
    assert len(bundle.attachments) == 2
    claims(bundle, late, now)


def test_every_infer_is_audited(audited_deployment: Deployment, now: datetime) -> None:
    made = require_audit(build_draft(audited_deployment, infers=2))
    recomputed = recompute_draft(made)
    assert len(recomputed) == 4
    claims(attach_audit(made, recomputed), made, now)
    assert "audit segments" in findings(attach_audit(made, recomputed[:3]), made, now)


def test_an_audit_that_is_due_is_waited_for(draft: Draft, now: datetime) -> None:
    verdict = verify_bundle(draft.bundle(), draft.deployment.trust, now=now)
    assert verdict.state is State.PROVISIONAL
    assert verdict.claims["missing_attachments"] == [AUDIT]
    after = NOW + timedelta(seconds=10)
    assert findings(draft.bundle(), draft, after) == {"attachments audit"}


def test_no_receipt_requires_an_audit_that_is_not_drawn(now: datetime) -> None:
    quiet = build_draft(build_deployment())
    changed = require_audit(quiet)
    assert "attachments required" in findings(changed.bundle(), changed, now)


def test_referees_are_parties_of_audited_requests_only(now: datetime) -> None:
    made = build_draft(build_deployment(audit_rate=0.0))
    claims(made.bundle(), made, now)
    invited = invite(made, *made.deployment.referees)
    assert findings(invited.bundle(), invited, now) == {"parties"}


def test_which_receipts_are_due(draft: Draft) -> None:
    receipt = draft.receipt
    drawn = seed(
        bytes.fromhex(receipt.draw.r),
        bytes.fromhex(receipt.client_nonce),
        bytes.fromhex(receipt.receipt_id),
    )
    scenario = draft.deployment.scenario
    for rate in (0.0, 0.2, 0.5, 0.8, 1.0):
        due = audit_due(receipt, replace(scenario, audit_rate=rate))
        assert due is audited(drawn, rate)


def test_an_audit_may_take_as_long_as_its_segments(draft: Draft) -> None:
    scenario = draft.deployment.scenario
    assert audit_seconds(scenario, 4) == 20.0
    assert longest_audit(scenario, 4) == timedelta(seconds=80, milliseconds=200)
    assert audit_seconds(scenario, 10**6) == 3600


def content(draft: Draft) -> Any:
    bundle = attach_audit(draft, recompute_draft(draft, {(0, 1): Behaviour.ABSENT}))
    key = draft.deployment.entry.signing.public
    return verify_attachment(bundle.attachments[-1], key)


def test_an_audit_reads_back(draft: Draft) -> None:
    attachment = content(draft)
    audit = Audit.from_attachment(attachment)
    assert audit.recomputed == recompute_draft(draft, {(0, 1): Behaviour.ABSENT})
    assert audit.to_json() == attachment.content["infers"]


def _edit(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for step in path[:-1]:
        document = document[step]
    if value is ...:
        del document[path[-1]]
    else:
        document[path[-1]] = value


FIRST = ("infers", 0, "segments", 0)
LAST = ("infers", 0, "segments", 1)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("infers",), {}, "audit infers: want a list"),
        (("more",), 1, "audit: unknown field 'more'"),
        (("infers", 0, "index"), -1, "audit index: got -1"),
        (("infers", 0, "index"), True, "audit index: got True"),
        (("infers", 0, "segments"), [], "want each infer and segment once"),
        (("infers", 0, "segments"), None, "audit infer 0: want a list"),
        (("infers", 0, "more"), 1, "unknown field 'more'"),
        ((*FIRST, "index"), 1, "want each infer and segment once"),
        ((*FIRST, "index"), 2, "want each infer and segment once"),
        ((*FIRST, "index"), "0", "segment index: got '0'"),
        ((*FIRST, "replica"), "", "replica: got ''"),
        ((*FIRST, "replica"), "a\n", "replica: got 'a"),
        ((*FIRST, "verdict"), "fine", "verdict: got 'fine', want one of agrees"),
        ((*FIRST, "verdict"), ..., "field 'verdict' is missing"),
        ((*FIRST, "verdict"), "absent", "reason: got None"),
        ((*FIRST, "statement"), None, "statement"),
        ((*FIRST, "statement"), {}, "statement"),
        ((*FIRST, "distance"), -1, "distance: got -1, want a number from 0"),
        ((*FIRST, "distance"), "0", "distance: got '0'"),
        ((*FIRST, "distance"), True, "distance: got True"),
        ((*FIRST, "distance"), 10**400, "distance: got 1000"),
        ((*FIRST, "reason"), "why", "reason: want null beside an answer"),
        ((*LAST, "verdict"), "agrees", "reason: want null beside an answer"),
        ((*LAST, "reason"), None, "reason: got None"),
        ((*LAST, "reason"), "x" * 201, "reason: got 201 characters"),
        ((*LAST, "distance"), 0, "want no statement and no distance"),
        ((*LAST, "statement"), {}, "want no statement and no distance"),
    ],
)
def test_audits_of_another_form_are_refused(
    draft: Draft, path: tuple[Any, ...], value: Any, said: str
) -> None:
    attachment = content(draft)
    document = json.loads(json.dumps(attachment.content))
    _edit(document, path, value)
    with pytest.raises(MalformedInputError, match=said):
        Audit.from_attachment(replace(attachment, content=document))


def test_a_malformed_audit_rejects_the_receipt(draft: Draft, now: datetime) -> None:
    bundle = draft.bundle()
    attachment = replace(content(draft), content={"infers": "none"})
    key = draft.deployment.entry.signing
    odd = replace(bundle, attachments=(issue_attachment(attachment, key),))
    assert "attachment 0 (audit)" in findings(odd, draft, now)


def test_recomputations_may_come_in_any_order(draft: Draft, now: datetime) -> None:
    recomputed: list[Recomputation] = list(reversed(recompute_draft(draft)))
    claims(attach_audit(draft, recomputed), draft, now)
