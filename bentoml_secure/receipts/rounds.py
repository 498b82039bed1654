"""Judging the rounds: what replicas signed, how it was counted, how it chains.

For every ``infer``, and every segment in the plan's order:

    1. the segments are exactly the plan's
    2. the committee is the one that was drawn                (``committees``)
    3. every vote is a statement under its replica's attested key, of this request,
       infer and segment; no exchange stands twice in the receipt
    4. chain: its inputs are commitments of what the segments before it agreed on, or
       of the model's inputs; its outputs are the plan's tensors
    5. the tally is derived again from commitments and asserted distances, with the
       voices that evidence gives the replicas under the scenario; it accepted, or the
       segment's referee ruled                                (``rulings``)
    6. the model's outputs are what their segments agreed on
    7. independence: the agreeing replicas are a quorum of platforms, or of vendors, as
       their evidence says, where the scenario or the trust file asks for that and no
       referee ruled
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bentoml_secure.consensus.quorum import Vote, recompute
from bentoml_secure.consensus.tally import Tally
from bentoml_secure.digest import Digest
from bentoml_secure.receipts.audit import audit_due
from bentoml_secure.receipts.chaining import judge_chains
from bentoml_secure.receipts.commitments import judge_commitments
from bentoml_secure.receipts.committees import judge_committee
from bentoml_secure.receipts.judgement import (
    Judgement,
    Round,
    names_of,
    verify_vote,
    voice_of,
)
from bentoml_secure.receipts.localisation import localisation_due
from bentoml_secure.receipts.receipt import InferRecord, SegmentRecord
from bentoml_secure.receipts.rulings import judge_ruling
from bentoml_secure.scenario import Independence

__all__ = ["Judgement", "Round", "judge_rounds", "verify_vote"]


def judge_rounds(judgement: Judgement) -> None:
    """Judge every round of the receipt; see the module's steps."""
    case = judgement.case
    involved = {case.receipt.service}
    for infer in case.receipt.infers:
        _judge_infer(judgement, infer)
        for record in infer.segments:
            involved |= record.weights.keys()
            if record.referee is not None:
                involved.add(record.referee.replica)
        for row in infer.chains.weights if infer.chains is not None else ():
            involved |= row.keys()
    if case.topology is not None and (
        audit_due(case.receipt, case.bundle.scenario)
        or localisation_due(case.receipt.infers, case.bundle.scenario)
    ):
        # Who recomputes after the answer is pinned before the receipt is issued.
        referees = map(case.topology.referee_name, range(case.topology.segments))
        involved |= {name for name in referees if name is not None}
    asked = {case.bundle.scenario.independence, case.trust.independence}
    # Nobody is counted where a referee's word stands in for a quorum.
    ruled = {(entry["infer"], entry["segment"]) for entry in judgement.report.ruled}
    for place in sorted(judgement.rounds.keys() - ruled):
        for independence in sorted(asked - {Independence.NONE}):
            _require_independent(judgement, judgement.rounds[place], independence)
    if extra := sorted(case.parties.keys() - involved):
        judgement.report.add("parties", extra[0], "only the entry and who was asked")


def _judge_infer(judgement: Judgement, infer: InferRecord) -> None:
    plan, report = judgement.case.bundle.plan, judgement.report
    where = f"infer {infer.index}"
    report.require(f"{where} inputs", sorted(infer.inputs), names_of(plan.inputs))
    report.require(f"{where} outputs", sorted(infer.outputs), names_of(plan.outputs))
    if infer.chains is not None:
        report.require(f"{where} segments beside chains", len(infer.segments), 0)
        known = judge_chains(judgement, infer.index, infer.inputs, infer.chains)
        _judge_outputs(judgement, infer, known)
        return
    identities = [segment.identity for segment in plan.segments]
    got = [record.segment for record in infer.segments]
    if got != identities:
        places = [
            str(identities.index(identity)) if identity in identities else "another"
            for identity in got
        ]
        report.add(
            f"{where} segments",
            ", ".join(places) or "none",
            ", ".join(map(str, range(len(identities)))),
        )
        return
    known = dict(infer.inputs)
    for index, record in enumerate(infer.segments):
        round_ = _judge_segment(judgement, infer.index, index, record, known)
        judgement.rounds[infer.index, index] = round_
        known.update(round_.agreed)
    _judge_outputs(judgement, infer, known)


def _judge_outputs(
    judgement: Judgement, infer: InferRecord, known: Mapping[str, Digest]
) -> None:
    names = names_of(judgement.case.bundle.plan.outputs)
    judgement.answers[infer.index] = {n: known[n] for n in names if n in known}
    if judgement.case.bundle.scenario.serve_proven:
        # Another answer than the agreed one: its prover says how far they are apart.
        return
    # What is not known has its finding where nothing was agreed.
    for name in sorted(infer.outputs.keys() & known.keys()):
        where = f"infer {infer.index} output {name}"
        judgement.report.require(where, infer.outputs[name], known[name])


def _judge_segment(
    judgement: Judgement,
    infer: int,
    index: int,
    record: SegmentRecord,
    known: Mapping[str, Digest],
) -> Round:
    report, tally = judgement.report, record.tally
    where = f"infer {infer} segment {index}"
    segment = judgement.case.bundle.plan.segments[index]
    names = names_of(segment.inputs)
    round_ = Round(
        infer=infer,
        index=index,
        segment=segment,
        tally=tally,
        inputs={name: known[name] for name in names if name in known},
        agreed={},
    )
    judge_committee(judgement, round_, record, where)
    statements = {}
    for name, envelope in sorted(record.statements.items()):
        statement = verify_vote(judgement, round_, name, envelope, where)
        if statement is not None:
            statements[name] = statement
    votes = [
        Vote(replica=name, commitments=tuple(sorted(statement.outputs.items())))
        for name, statement in statements.items()
    ]
    heard = tally.with_voices(
        _voices(judgement, tally, judgement.case.bundle.scenario.independence)
    )
    report.adopt(f"{where} tally", recompute(heard, votes))
    seen = judge_commitments(judgement, round_, record.commitments, statements)
    for name in seen:
        report.see(infer, index, name)
    for name in tally.dissenters:
        report.dissent(infer, index, name, "receipt")
    for absence in tally.absent:
        report.miss(infer, index, absence.replica, absence.reason, "receipt")
    if record.referee is not None:
        ruled = judge_ruling(judgement, round_, record.referee, statements, where)
        return replace(round_, agreed=ruled)
    report.require(f"{where} tally accepted", tally.accepted, True)
    if tally.medoid is None or tally.medoid not in statements:
        report.add(f"{where} medoid", "no vote that verifies", "the answer served")
        return round_
    return replace(round_, agreed=statements[tally.medoid].outputs)


def _voices(
    judgement: Judgement, tally: Tally, independence: Independence
) -> dict[str, str]:
    return {
        member.replica: voice_of(judgement, member.replica, independence)
        for member in tally.committee
    }


def _require_independent(
    judgement: Judgement, round_: Round, independence: Independence
) -> None:
    voices = _voices(judgement, round_.tally, independence)
    counted = {voices[name] for name in round_.tally.clique if name in voices}
    want = judgement.case.bundle.scenario.quorum
    if len(counted) < want:
        judgement.report.add(
            f"infer {round_.infer} segment {round_.index} independence",
            f"{len(counted)} {independence}s among the replicas that agree",
            f"at least {want}",
        )
