"""Each attack on a receipt, and the finding that names it.

Every bundle is made by the real code with real keys and simulated evidence, tampered
with, and signed again by whoever could: the entry itself, unless the test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import pytest

from bentoml_secure.consensus.tally import Member
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import ReceiptError
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.case import MAX_FINDINGS
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.signing import SigningKey
from bentoml_secure.statements import (
    sign_statement,
)
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import (
    another,
    restate,
    runners_of,
    segments,
    statement,
    with_receipt,
    with_segment,
    with_tally,
)

Attack = Callable[[Draft], Bundle]


def findings(bundle: Bundle, deployment: Deployment, now: datetime) -> set[str]:
    with pytest.raises(ReceiptError, match=r"rejected|cannot be read") as error:
        verify_bundle(bundle, deployment.trust, now=now)
    return {finding.field for finding in error.value.findings}


# Segments and the chain.


def drop_segment(draft: Draft) -> Bundle:
    first, _ = draft.receipt.infers[0].segments
    return segments(draft, first).bundle()


def double_segment(draft: Draft) -> Bundle:
    first, second = draft.receipt.infers[0].segments
    return segments(draft, first, first, second).bundle()


def swap_segments(draft: Draft) -> Bundle:
    first, second = draft.receipt.infers[0].segments
    return segments(draft, second, first).bundle()


def break_chain(draft: Draft) -> Bundle:
    """Segment 1 was fed something that segment 0 never agreed on."""
    x = draft.inputs["x"]
    other = build_draft(draft.deployment, inputs={"x": x * 2})
    second = other.receipt.infers[0].segments[1]
    return with_segment(draft, 1, second).bundle()


def lie_about_input(draft: Draft) -> Bundle:
    infer = draft.receipt.infers[0]
    other = another(draft).receipt.infers[0]
    infer = replace(infer, inputs=other.inputs)
    return with_receipt(draft, infers=(infer,)).bundle()


def lie_about_output(draft: Draft) -> Bundle:
    infer = draft.receipt.infers[0]
    outputs = {**infer.outputs, "y": infer.outputs["t1"]}
    return with_receipt(draft, infers=(replace(infer, outputs=outputs),)).bundle()


def hide_output(draft: Draft) -> Bundle:
    infer = draft.receipt.infers[0]
    outputs = {"y": infer.outputs["y"]}
    return with_receipt(draft, infers=(replace(infer, outputs=outputs),)).bundle()


# Statements.


def statement_of_another_request(draft: Draft) -> Bundle:
    record = draft.receipt.infers[0].segments[0]
    other = another(draft).receipt.infers[0].segments[0]
    name = "DSegment0Replica1"
    statements = {**record.statements, name: other.statements[name]}
    return with_segment(draft, 0, replace(record, statements=statements)).bundle()


def statement_of_another_infer(draft: Draft) -> Bundle:
    two = build_draft(draft.deployment, infers=2)
    first, second = two.receipt.infers
    return with_receipt(
        two, infers=(first, replace(second, segments=first.segments))
    ).bundle()


def statement_of_another_replica(draft: Draft) -> Bundle:
    record = draft.receipt.infers[0].segments[0]
    copied = record.statements["DSegment0Replica0"]
    statements = {**record.statements, "DSegment0Replica1": copied}
    return with_segment(draft, 0, replace(record, statements=statements)).bundle()


def statement_forged_by_the_entry(draft: Draft) -> Bundle:
    record = draft.receipt.infers[0].segments[0]
    name = "DSegment0Replica1"
    forged = sign_statement(draft.deployment.entry.signing, statement(draft, 0, name))
    statements = {**record.statements, name: forged}
    return with_segment(draft, 0, replace(record, statements=statements)).bundle()


def drop_statement(draft: Draft) -> Bundle:
    record = draft.receipt.infers[0].segments[0]
    statements = dict(record.statements)
    del statements["DSegment0Replica2"]
    return with_segment(draft, 0, replace(record, statements=statements)).bundle()


def exchange_twice(draft: Draft) -> Bundle:
    used = statement(draft, 0, "DSegment0Replica0").exchange_id
    return restate(draft, 1, "DSegment1Replica1", exchange_id=used).bundle()


def other_outputs(draft: Draft) -> Bundle:
    said = statement(draft, 0, "DSegment0Replica1").outputs
    return restate(draft, 0, "DSegment0Replica1", outputs={"z": said["t1"]}).bundle()


def other_inputs(draft: Draft) -> Bundle:
    """A replica says that it was given a tensor more."""
    said = statement(draft, 0, "DSegment0Replica1").inputs
    return restate(
        draft, 0, "DSegment0Replica1", inputs={**said, "z": said["x"]}
    ).bundle()


def other_plan(draft: Draft) -> Bundle:
    return restate(
        draft, 0, "DSegment0Replica1", plan_digest=digest_json("another")
    ).bundle()


def other_segment(draft: Draft) -> Bundle:
    identity = draft.deployment.plan.segments[1].identity
    return restate(draft, 0, "DSegment0Replica1", segment=identity).bundle()


def other_document(draft: Draft) -> Bundle:
    return restate(
        draft, 0, "DSegment0Replica1", key_document=digest_json("another")
    ).bundle()


# Tallies.


def edit_medoid(draft: Draft) -> Bundle:
    return with_tally(draft, 0, medoid="DSegment0Replica1").bundle()


def edit_clique(draft: Draft) -> Bundle:
    return with_tally(
        draft, 0, clique=("DSegment0Replica0", "DSegment0Replica1")
    ).bundle()


def lower_quorum(draft: Draft) -> Bundle:
    return with_tally(draft, 0, quorum=1).bundle()


def other_quorum(draft: Draft) -> Bundle:
    """All three agree, so three is consistent; it is not what the scenario says."""
    return with_tally(draft, 0, quorum=3).bundle()


def raise_tolerance(draft: Draft) -> Bundle:
    return with_tally(draft, 0, tolerance=1.0).bundle()


def not_accepted(draft: Draft) -> Bundle:
    return with_tally(draft, 0, accepted=False, medoid=None).bundle()


def hide_dissenter(draft: Draft) -> Bundle:
    liar = build_draft(draft.deployment, behaviours={(0, 0, 2): Behaviour.LIAR})
    return with_tally(liar, 0, dissenters=()).bundle()


def merge_groups(draft: Draft) -> Bundle:
    liar = build_draft(draft.deployment, behaviours={(0, 0, 2): Behaviour.LIAR})
    honest = draft.receipt.infers[0].segments[0].tally
    return with_tally(
        liar, 0, groups=honest.groups, distances=((0.0,),), clique=honest.clique
    ).bundle()


def shrink_committee(draft: Draft) -> Bundle:
    record = draft.receipt.infers[0].segments[0]
    names = ("DSegment0Replica0", "DSegment0Replica1")
    tally = replace(
        record.tally,
        committee=tuple(Member(replica=name) for name in names),
        groups=(names,),
        clique=names,
    )
    statements = {name: record.statements[name] for name in names}
    return with_segment(
        draft, 0, replace(record, tally=tally, statements=statements)
    ).bundle()


def seat_twice(draft: Draft) -> Bundle:
    tally = draft.receipt.infers[0].segments[0].tally
    committee = (*tally.committee[:2], tally.committee[0])
    return with_tally(draft, 0, committee=committee).bundle()


def runner_of_another_segment(draft: Draft) -> Bundle:
    """A runner of segment 0 sits in the committee of segment 1."""
    first, second = draft.deployment.runners
    strangers = runners_of(draft, first, (*second[:2], first[0]))
    return build_draft(strangers).bundle()


def entry_in_the_committee(draft: Draft) -> Bundle:
    first, second = draft.deployment.runners
    row = (*first[:2], draft.deployment.entry)
    return build_draft(runners_of(draft, row, second)).bundle()


ATTACKS: list[tuple[Attack, str]] = [
    (drop_segment, "infer 0 segments"),
    (double_segment, "infer 0 segments"),
    (swap_segments, "infer 0 segments"),
    (break_chain, "infer 0 segment 1 statement DSegment1Replica0 input t1"),
    (lie_about_input, "infer 0 segment 0 statement DSegment0Replica0 input x"),
    (lie_about_output, "infer 0 output y"),
    (hide_output, "infer 0 outputs"),
    (
        statement_of_another_request,
        "infer 0 segment 0 statement DSegment0Replica1 request_id",
    ),
    (
        statement_of_another_infer,
        "infer 1 segment 0 statement DSegment0Replica0 infer_index",
    ),
    (
        statement_of_another_infer,
        "infer 1 segment 0 statement DSegment0Replica0 exchange_id",
    ),
    (
        statement_of_another_replica,
        "infer 0 segment 0 statement DSegment0Replica1",
    ),
    (
        statement_forged_by_the_entry,
        "infer 0 segment 0 statement DSegment0Replica1",
    ),
    (drop_statement, "infer 0 segment 0 tally groups"),
    (
        exchange_twice,
        "infer 0 segment 1 statement DSegment1Replica1 exchange_id",
    ),
    (other_outputs, "infer 0 segment 0 statement DSegment0Replica1 outputs"),
    (other_inputs, "infer 0 segment 0 statement DSegment0Replica1 inputs"),
    (other_plan, "infer 0 segment 0 statement DSegment0Replica1 plan_digest"),
    (other_segment, "infer 0 segment 0 statement DSegment0Replica1 segment"),
    (
        other_document,
        "infer 0 segment 0 statement DSegment0Replica1 key_document",
    ),
    (edit_medoid, "infer 0 segment 0 tally medoid"),
    (edit_clique, "infer 0 segment 0 tally clique"),
    (lower_quorum, "infer 0 segment 0 tally quorum"),
    (other_quorum, "infer 0 segment 0 tally quorum"),
    (raise_tolerance, "infer 0 segment 0 tally tolerance"),
    (not_accepted, "infer 0 segment 0 tally accepted"),
    (not_accepted, "infer 0 segment 0 medoid"),
    (hide_dissenter, "infer 0 segment 0 tally dissenters"),
    (merge_groups, "infer 0 segment 0 tally groups"),
    (shrink_committee, "infer 0 segment 0 committee size"),
    (seat_twice, "infer 0 segment 0 tally committee"),
    (entry_in_the_committee, "party D role"),
    (runner_of_another_segment, "party DSegment0Replica0 segment"),
]


@pytest.mark.parametrize(
    ("attack", "finding"), ATTACKS, ids=lambda value: getattr(value, "__name__", value)
)
def test_attack_is_named(
    attack: Attack,
    finding: str,
    draft: Draft,
    deployment: Deployment,
    now: datetime,
) -> None:
    assert finding in findings(attack(draft), deployment, now)


def test_the_untampered_bundle_is_accepted(
    draft: Draft, deployment: Deployment, now: datetime
) -> None:
    assert verify_bundle(draft.bundle(), deployment.trust, now=now).state == "accepted"


def test_two_attacks_are_both_named(
    draft: Draft, deployment: Deployment, now: datetime
) -> None:
    bundle = with_tally(with_receipt(draft, receipt_id="00" * 16), 0, quorum=1).bundle(
        key=SigningKey.generate()
    )
    assert findings(bundle, deployment, now) >= {
        "receipt signature",
        "receipt_id",
        "infer 0 segment 0 tally quorum",
    }


def test_a_bundle_with_no_end_of_faults(
    draft: Draft, deployment: Deployment, now: datetime
) -> None:
    first = draft.receipt.infers[0]
    infers = tuple(replace(first, index=index) for index in range(200))
    bundle = with_receipt(draft, infers=infers).bundle()
    with pytest.raises(ReceiptError, match="rejected") as error:
        verify_bundle(bundle, deployment.trust, now=now)
    assert len(error.value.findings) == MAX_FINDINGS
