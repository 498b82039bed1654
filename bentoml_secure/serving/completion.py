"""What follows a receipt, each signed as an attachment: late votes, an audit."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from bentoml_secure import metrics
from bentoml_secure.audit.recompute import Recomputation, Served, Verdict, recompute
from bentoml_secure.audit.sampling import audited
from bentoml_secure.consensus.asks import Answer
from bentoml_secure.consensus.reputation import Outcome
from bentoml_secure.digest import Digest
from bentoml_secure.errors import UnavailableError
from bentoml_secure.receipts.audit import AUDIT, Audit, audit_seconds, issue_audit
from bentoml_secure.receipts.epoch import EPOCH, epoch_due, longest_epoch
from bentoml_secure.receipts.late_votes import (
    LATE_VOTES,
    LateAnswer,
    LateRound,
    LateVotes,
    issue_late_votes,
)
from bentoml_secure.receipts.localisation import (
    LOCALISATION,
    Localisation,
    issue_localisation,
    localisation_due,
    recomputed_segments,
)
from bentoml_secure.receipts.proofs import PROOF
from bentoml_secure.receipts.receipt import RequiredAttachment
from bentoml_secure.scenario import Proving
from bentoml_secure.serving.asking import Made
from bentoml_secure.serving.endtoend import Doubted
from bentoml_secure.serving.engine import Engine
from bentoml_secure.serving.lockstep import Distance, Kept, PendingVotes
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.signing import Envelope, SigningKey
from bentoml_secure.statements import format_time

_AUDITED: Mapping[Verdict, metrics.Result] = {
    Verdict.AGREES: "pass",
    Verdict.DIFFERS: "fail",
    Verdict.ABSENT: "error",
}

# How long after the grace the attachment must be there; a verifier's clock may differ.
DEADLINE_MARGIN = timedelta(seconds=30)


def required_attachments(
    context: RequestContext, segments: int, issued_at: datetime
) -> tuple[RequiredAttachment, ...]:
    """Return what must follow a receipt.

    Votes still out; an audit that was drawn; proofs; whose fault dissenting chains are.

    Args:
        context: Of the request.
        segments: Of the plan.
        issued_at: When the receipt is signed.
    """
    scenario = context.scenario
    grace = timedelta(milliseconds=scenario.grace_ms)
    due = []
    if context.late:
        due.append((LATE_VOTES, grace))
    if audited(context.seed, scenario.audit_rate):
        seconds = audit_seconds(scenario, len(context.infers) * segments)
        due.append((AUDIT, grace + timedelta(seconds=seconds)))
    if scenario.proof is Proving.EVERY:
        seconds = scenario.proof_deadline_seconds
        due.append((PROOF, timedelta(seconds=seconds) - DEADLINE_MARGIN))
    if epoch_due(scenario):
        due.append((EPOCH, longest_epoch(scenario) - DEADLINE_MARGIN))
    if localisation_due(context.infers, scenario):
        seconds = audit_seconds(scenario, recomputed_segments(context.infers))
        due.append((LOCALISATION, grace + timedelta(seconds=seconds)))
    return tuple(
        RequiredAttachment(
            kind=kind, deadline=format_time(issued_at + after + DEADLINE_MARGIN)
        )
        for kind, after in due
    )


async def audit(
    context: RequestContext,
    receipt_digest: Digest,
    engine: Engine,
    key: SigningKey,
    clock: Callable[[], datetime],
) -> Envelope:
    """Have the referees recompute an answered request and sign what came of it.

    Args:
        context: Of the request, with what it kept.
        receipt_digest: Of its receipt.
        engine: That served it.
        key: That signed the receipt.
        clock: For the time of issue.
    """
    by_infer = {kept.infer_index: kept for kept in context.kept}

    async def ask(served: Served) -> Answer[Made]:
        """Ask the referee, unless the answer is its own."""
        if (served.infer, served.segment) in ruled:
            raise UnavailableError("it decided this segment itself")
        return await _ask_referee(context, engine, by_infer[served.infer], served)

    ruled = {
        (infer.index, segment)
        for infer in context.infers
        for segment, record in enumerate(infer.segments)
        if record.referee is not None
    }
    rounds = len(context.infers) * len(engine.plan.segments)
    in_order = sorted(context.kept, key=lambda kept: kept.infer_index)
    recomputed = await recompute(
        (served for kept in in_order for served in _served(engine, kept)),
        ask,
        deadline_seconds=audit_seconds(context.scenario, rounds),
    )
    for made in recomputed:
        metrics.count_verification("audit", str(made.segment), _AUDITED[made.verdict])
    return issue_audit(
        Audit(
            receipt_id=context.request_id.hex(),
            receipt_digest=receipt_digest,
            issued_at=format_time(clock()),
            recomputed=recomputed,
        ),
        key,
    )


async def _ask_referee(
    context: RequestContext, engine: Engine, kept: Kept, served: Served
) -> Answer[Made]:
    """Have a segment's referee make an answer again, of the inputs that were kept."""
    if served.auditor not in context.pinned:
        # Else its statement would be of somebody whom the receipt does not know.
        raise UnavailableError("not attested when the receipt was issued")
    if kept.values is None:
        raise UnavailableError("too many requests wait for their recomputation")
    asking = engine.lockstep.asking(
        context, served.infer, served.segment, kept.values, kept.salts
    )
    return await asking.ask(engine.referees[served.segment])


def _served(engine: Engine, kept: Kept) -> Iterator[Served]:
    # Of what was not kept nothing is compared: nobody is asked about it.
    tensors = {} if kept.values is None else kept.values.tensors
    commitments = {} if kept.values is None else kept.values.commitments
    for index, segment in enumerate(engine.plan.segments):
        made = [spec.name for spec in segment.outputs]
        yield Served(
            infer=kept.infer_index,
            segment=index,
            auditor=engine.referees[index].name,
            inputs={s.name: tensors[s.name] for s in segment.inputs if tensors},
            outputs={name: tensors[name] for name in made if tensors},
            commitments={name: commitments[name] for name in made if commitments},
            tolerance=segment.tolerance,
            distance=engine.lockstep.distances[index],
        )


async def localise(
    context: RequestContext,
    receipt_digest: Digest,
    engine: Engine,
    key: SigningKey,
    clock: Callable[[], datetime],
) -> Envelope:
    """Have the referees recompute dissenting chains, and sign who was at fault.

    Args:
        context: Of the request, with its dissenting chains.
        receipt_digest: Of its receipt.
        engine: That served it.
        key: That signed the receipt.
        clock: For the time of issue.
    """
    seconds = audit_seconds(context.scenario, recomputed_segments(context.infers))
    chains = {}
    for doubted in context.doubted:
        place = doubted.infer_index, doubted.chain[-1]
        chains[place] = await recompute(
            _served(engine, doubted),
            functools.partial(_ask_referee, context, engine, doubted),
            deadline_seconds=seconds / len(context.doubted),
        )
        _name_faults(context, engine, doubted, chains[place])
    return issue_localisation(
        Localisation(
            receipt_id=context.request_id.hex(),
            receipt_digest=receipt_digest,
            issued_at=format_time(clock()),
            chains=chains,
        ),
        key,
    )


def _name_faults(
    context: RequestContext,
    engine: Engine,
    doubted: Doubted,
    recomputed: Sequence[Recomputation],
) -> None:
    for replica, made in zip(doubted.chain, recomputed, strict=True):
        if made.verdict is Verdict.DIFFERS:
            metrics.count_dissent(str(made.segment), replica)
            engine.standing.record(
                context.request_id.hex(),
                made.segment,
                {replica: Outcome.DISSENTED},
            )


async def late_votes(
    context: RequestContext,
    receipt_digest: Digest,
    engine: Engine,
    key: SigningKey,
    clock: Callable[[], datetime],
) -> Envelope:
    """Wait for the votes still out and sign what became of them.

    Args:
        context: Of the request.
        receipt_digest: Of its receipt.
        engine: That served it.
        key: That signed the receipt.
        clock: For the time of issue.
    """
    rounds = {}
    for pending in context.late:
        distance = engine.lockstep.distances[pending.segment_index]
        late, outcomes = await _round(pending, distance)
        rounds[pending.infer_index, pending.segment_index] = late
        engine.standing.record(
            context.request_id.hex(), pending.segment_index, outcomes
        )
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
