"""What follows a receipt: votes that came late, signed as an attachment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from bentoml_secure import metrics
from bentoml_secure.consensus.reputation import Outcome
from bentoml_secure.digest import Digest
from bentoml_secure.receipts.late_votes import (
    LATE_VOTES,
    LateAnswer,
    LateRound,
    LateVotes,
    issue_late_votes,
)
from bentoml_secure.receipts.receipt import RequiredAttachment
from bentoml_secure.serving.asking import Made
from bentoml_secure.serving.lockstep import PendingVotes
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.signing import Envelope, SigningKey
from bentoml_secure.statements import format_time
from bentoml_secure.tensors import Array

Distance = Callable[[Mapping[str, Array], Mapping[str, Array]], float | None]
Record = Callable[[str, int, Mapping[str, Outcome]], None]

# How long after the grace the attachment must be there; a verifier's clock may differ.
DEADLINE_MARGIN = timedelta(seconds=30)


def required_attachments(
    context: RequestContext, issued_at: datetime
) -> tuple[RequiredAttachment, ...]:
    """Return what must follow a receipt: late votes, if any are still out."""
    if not context.late:
        return ()
    grace = timedelta(milliseconds=context.scenario.grace_ms)
    deadline = format_time(issued_at + grace + DEADLINE_MARGIN)
    return (RequiredAttachment(kind=LATE_VOTES, deadline=deadline),)


async def late_votes(
    context: RequestContext,
    receipt_digest: Digest,
    distances: Sequence[Distance],
    record: Record,
    key: SigningKey,
    clock: Callable[[], datetime],
) -> Envelope:
    """Wait for the votes still out and sign what became of them.

    Args:
        context: Of the request.
        receipt_digest: Of its receipt.
        distances: Of two answers, by segment.
        record: Takes what each late vote says of its replica.
        key: That signed the receipt.
        clock: For the time of issue.
    """
    rounds = {}
    for pending in context.late:
        late, outcomes = await _round(pending, distances[pending.segment_index])
        rounds[pending.infer_index, pending.segment_index] = late
        record(context.request_id.hex(), pending.segment_index, outcomes)
    votes = LateVotes(
        receipt_id=context.request_id.hex(),
        receipt_digest=receipt_digest,
        issued_at=format_time(clock()),
        rounds=rounds,
    )
    return issue_late_votes(votes, key)


async def _round(
    pending: PendingVotes, distance: Distance
) -> tuple[LateRound, dict[str, Outcome]]:
    late = await pending.task
    answers = []
    outcomes = {absence.replica: Outcome.ABSENT for absence in late.absent}
    for replica, answer in sorted(late.answers.items()):
        apart = await _apart(pending.agreed, answer.value, distance)
        outcomes[replica] = Outcome.AGREED
        if apart is None or apart > pending.tolerance:
            outcomes[replica] = Outcome.DISSENTED
            metrics.count_dissent(str(pending.segment_index), replica)
        answers.append(
            LateAnswer(replica=replica, statement=answer.value.envelope, distance=apart)
        )
    absent = tuple(sorted(late.absent, key=lambda absence: absence.replica))
    return LateRound(answers=tuple(answers), absent=absent), outcomes


async def _apart(agreed: Made, late: Made, distance: Distance) -> float | None:
    if late.commitments == agreed.commitments:
        return 0.0
    return await asyncio.to_thread(distance, agreed.tensors, late.tensors)
