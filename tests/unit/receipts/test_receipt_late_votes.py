"""Attacks on the attachment "late-votes", each with its finding.

Every bundle is made by the real code with real keys and simulated evidence, tampered
with, and signed again by whoever could: the entry itself, unless the test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from bentoml_secure.consensus.tally import Absence
from bentoml_secure.errors import ReceiptError
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.late_votes import (
    LateRound,
    issue_late_votes,
)
from bentoml_secure.receipts.receipt import (
    RequiredAttachment,
    issue,
)
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.statements import (
    INTOTO_TYPE,
    format_time,
)
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Behaviour, Draft
from bentoml_secure.testing.tampering import (
    another,
    with_receipt,
)

Attack = Callable[[Draft], Bundle]


def findings(bundle: Bundle, deployment: Deployment, now: datetime) -> set[str]:
    with pytest.raises(ReceiptError, match=r"rejected|cannot be read") as error:
        verify_bundle(bundle, deployment.trust, now=now)
    return {finding.field for finding in error.value.findings}


def drop_late_replica(draft: Draft) -> Bundle:
    return replace(draft, late={(0, 1): draft.late[0, 1]}).bundle()


def invent_late_replica(draft: Draft) -> Bundle:
    late = draft.late[0, 1]
    absent = (*late.absent, Absence(replica="DSegment1Replica0", reason="lost"))
    return replace(
        draft, late={**draft.late, (0, 1): replace(late, absent=absent)}
    ).bundle()


def late_vote_of_another_request(draft: Draft) -> Bundle:
    other = another(draft, behaviours={(0, 0, 2): Behaviour.LATE})
    return replace(draft, late={**draft.late, (0, 0): other.late[0, 0]}).bundle()


def late_vote_for_another_infer(draft: Draft) -> Bundle:
    return replace(draft, late={**draft.late, (1, 0): draft.late[0, 0]}).bundle()


def distance_of_equal_answers(draft: Draft) -> Bundle:
    (answer,) = draft.late[0, 0].answers
    late = LateRound(answers=(replace(answer, distance=1e-9),), absent=())
    return replace(draft, late={**draft.late, (0, 0): late}).bundle()


def attachment_of_another_receipt(draft: Draft) -> Bundle:
    other = another(
        draft, behaviours={(0, 0, 2): Behaviour.LATE, (0, 1, 1): Behaviour.LOST}
    )
    return replace(draft.bundle(), attachments=other.bundle().attachments)


def attachment_by_a_runner(draft: Draft) -> Bundle:
    bundle, rogue = draft.bundle(), draft.deployment.runners[0][0]
    forged = issue_late_votes(draft.late_votes(bundle.receipt), rogue.signing)
    return replace(bundle, attachments=(forged,))


def attachment_twice(draft: Draft) -> Bundle:
    bundle = draft.bundle()
    return replace(bundle, attachments=bundle.attachments * 2)


def attachment_of_unknown_kind(draft: Draft) -> Bundle:
    bundle = draft.bundle()
    payload = bundle.attachments[0].payload.replace(b"late-votes/v1", b"excuses/v1")
    key = draft.deployment.entry.signing
    unsigned = replace(bundle.attachments[0], payload=payload)
    signature = key.sign(
        b"DSSEv1 %d %s %d %s"
        % (len(INTOTO_TYPE), INTOTO_TYPE.encode(), len(payload), payload)
    )
    return replace(bundle, attachments=(replace(unsigned, signature=signature),))


def attachment_too_late(draft: Draft) -> Bundle:
    bundle = draft.bundle()
    late = replace(
        draft.late_votes(bundle.receipt),
        issued_at=format_time(draft.deployment.now + timedelta(seconds=30)),
    )
    envelope = issue_late_votes(late, draft.deployment.entry.signing)
    return replace(bundle, attachments=(envelope,))


def receipt_without_obligation(draft: Draft) -> Bundle:
    return with_receipt(draft, attachments=()).bundle()


def deadline_that_never_comes(draft: Draft) -> Bundle:
    never = RequiredAttachment(kind="late-votes", deadline="2999-01-01T00:00:00.000Z")
    return with_receipt(draft, attachments=(never,)).bundle(attach=False)


def obligation_nobody_knows(draft: Draft) -> Bundle:
    (due,) = draft.receipt.attachments
    odd = replace(due, kind="excuses")
    return with_receipt(draft, attachments=(due, odd)).bundle()


def late_vote_nobody_signed(draft: Draft) -> Bundle:
    (answer,) = draft.late[0, 0].answers
    forged = replace(answer.statement, signature=bytes(64))
    late = LateRound(answers=(replace(answer, statement=forged),), absent=())
    return replace(draft, late={**draft.late, (0, 0): late}).bundle()


def attachment_without_a_key(draft: Draft) -> Bundle:
    bundle = draft.bundle()
    return replace(bundle, key_documents=bundle.key_documents[1:])


LATE_ATTACKS: list[tuple[Attack, str]] = [
    (
        late_vote_nobody_signed,
        "late-votes infer 0 segment 0 statement DSegment0Replica2",
    ),
    (attachment_without_a_key, "attachment 0"),
    (drop_late_replica, "late-votes infer 0 segment 0 replicas"),
    (invent_late_replica, "late-votes infer 0 segment 1 replicas"),
    (
        late_vote_of_another_request,
        "late-votes infer 0 segment 0 statement DSegment0Replica2 request_id",
    ),
    (late_vote_for_another_infer, "late-votes infer 1 segment 0 replicas"),
    (
        distance_of_equal_answers,
        "late-votes infer 0 segment 0 DSegment0Replica2 distance",
    ),
    (attachment_of_another_receipt, "attachment 0 (late-votes) subject"),
    (attachment_of_another_receipt, "attachment 0 (late-votes) receipt_id"),
    (attachment_by_a_runner, "attachment 0"),
    (attachment_twice, "attachments late-votes"),
    (attachment_of_unknown_kind, "attachment 0 (excuses)"),
    (attachment_too_late, "attachment 0 (late-votes) issued_at"),
    (receipt_without_obligation, "attachments required"),
    (deadline_that_never_comes, "attachments late-votes deadline"),
    (obligation_nobody_knows, "attachments required excuses"),
]


@pytest.mark.parametrize(
    ("attack", "finding"),
    LATE_ATTACKS,
    ids=lambda value: getattr(value, "__name__", value),
)
def test_attack_on_late_votes_is_named(
    attack: Attack,
    finding: str,
    late_draft: Draft,
    deployment: Deployment,
    now: datetime,
) -> None:
    assert finding in findings(attack(late_draft), deployment, now)


def test_obligation_without_pending_votes(
    draft: Draft, deployment: Deployment, now: datetime
) -> None:
    due = RequiredAttachment(
        kind="late-votes", deadline=format_time(deployment.now + timedelta(seconds=6))
    )
    bundle = with_receipt(draft, attachments=(due,)).bundle(attach=False)
    assert "attachments required" in findings(bundle, deployment, now)


def test_removed_attachment(
    late_draft: Draft, deployment: Deployment, now: datetime
) -> None:
    bundle = late_draft.bundle(attach=False)
    verdict = verify_bundle(bundle, deployment.trust, now=now)
    assert verdict.state == "provisional"
    assert verdict.claims["missing_attachments"] == ["late-votes"]
    after = deployment.now + timedelta(seconds=7)
    assert findings(bundle, deployment, after) == {"attachments late-votes"}


def test_receipt_that_is_issued_for_another_bundle(
    draft: Draft, deployment: Deployment, now: datetime
) -> None:
    other = another(draft)
    bundle = replace(
        draft.bundle(), receipt=issue(other.receipt, deployment.entry.signing)
    )
    assert "party D evidence" in findings(bundle, deployment, now)
