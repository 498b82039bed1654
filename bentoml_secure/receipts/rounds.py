"""Judging the rounds: what replicas signed, how it was counted, how it chains.

For every ``infer``, and every segment in the plan's order:

    1. the segments are exactly the plan's
    2. committee: as many distinct replicas as the scenario says; quorum and tolerance
       are the scenario's and the plan's; who voted or was pending is a party, whose
       key document names this segment and whose evidence is of a kind that the
       scenario places there
    3. every vote is a statement under its replica's attested key, of this request,
       infer and segment; no exchange stands twice in the receipt
    4. chain: its inputs are commitments of what the segments before it agreed on, or
       of the model's inputs; its outputs are the plan's tensors
    5. the tally is derived again from commitments and asserted distances, with the
       voices that evidence gives the replicas under the scenario; it accepted
    6. the model's outputs are what their segments agreed on
    7. independence: the agreeing replicas are a quorum of platforms, or of vendors, as
       their evidence says, where the scenario or the trust file asks for that
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bentoml_secure.attestation.evidence import AttestationResult
from bentoml_secure.consensus.quorum import Vote, recompute
from bentoml_secure.consensus.tally import Tally
from bentoml_secure.digest import Digest
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.receipts.case import Case, Report
from bentoml_secure.receipts.receipt import RUNNER, InferRecord, SegmentRecord
from bentoml_secure.scenario import Independence
from bentoml_secure.signing import Envelope
from bentoml_secure.split.plan import Segment
from bentoml_secure.statements import Statement, verify_statement
from bentoml_secure.tensors import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One segment within one ``infer``.

    Attributes:
        infer: Index of the ``infer``.
        index: Index of the segment.
        segment: The plan's entry.
        tally: From the receipt.
        inputs: What its votes must have been given, as far as the chain is known.
        agreed: What the served answer consists of; empty if that is not known.
    """

    infer: int
    index: int
    segment: Segment
    tally: Tally
    inputs: Mapping[str, Digest]
    agreed: Mapping[str, Digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A case under judgement: what the steps pass on to one another.

    Attributes:
        case: What is judged.
        results: Accepted evidence by party.
        report: Takes findings, dissenters and absentees.
        rounds: Judged so far, by (infer index, segment index).
        exchanges: Where each exchange id stood, over receipt and attachments.
    """

    case: Case
    results: Mapping[str, AttestationResult]
    report: Report
    rounds: dict[tuple[int, int], Round] = field(default_factory=dict)
    exchanges: dict[str, str] = field(default_factory=dict)


def judge_rounds(judgement: Judgement) -> None:
    """Judge every round of the receipt; see the module's steps."""
    case = judgement.case
    involved = {case.receipt.service}
    for infer in case.receipt.infers:
        _judge_infer(judgement, infer)
        for record in infer.segments:
            involved |= {member.replica for member in record.tally.committee}
    asked = {case.bundle.scenario.independence, case.trust.independence}
    for round_ in judgement.rounds.values():
        for independence in sorted(asked - {Independence.NONE}):
            _require_independent(judgement, round_, independence)
    if extra := sorted(case.parties.keys() - involved):
        judgement.report.add("parties", extra[0], "only the entry and who was asked")


def _judge_infer(judgement: Judgement, infer: InferRecord) -> None:
    plan, report = judgement.case.bundle.plan, judgement.report
    where = f"infer {infer.index}"
    report.require(f"{where} inputs", sorted(infer.inputs), _names(plan.inputs))
    report.require(f"{where} outputs", sorted(infer.outputs), _names(plan.outputs))
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
    # What is not known has its finding where nothing was agreed.
    for name in sorted(infer.outputs.keys() & known.keys()):
        report.require(f"{where} output {name}", infer.outputs[name], known[name])


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
    names = _names(segment.inputs)
    round_ = Round(
        infer=infer,
        index=index,
        segment=segment,
        tally=tally,
        inputs={name: known[name] for name in names if name in known},
        agreed={},
    )
    _judge_committee(judgement, round_, record, where)
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
    report.require(f"{where} tally accepted", tally.accepted, True)
    for name in tally.dissenters:
        report.dissent(infer, index, name, "receipt")
    for absence in tally.absent:
        report.miss(infer, index, absence.replica, absence.reason, "receipt")
    if tally.medoid is None or tally.medoid not in statements:
        report.add(f"{where} medoid", "no vote that verifies", "the answer served")
        return round_
    return replace(round_, agreed=statements[tally.medoid].outputs)


def _judge_committee(
    judgement: Judgement, round_: Round, record: SegmentRecord, where: str
) -> None:
    case, report, tally = judgement.case, judgement.report, round_.tally
    scenario = case.bundle.scenario
    report.require(f"{where} committee size", len(tally.committee), scenario.replicas)
    report.require(f"{where} tally quorum", tally.quorum, scenario.quorum)
    report.require(
        f"{where} tally tolerance", tally.tolerance, round_.segment.tolerance
    )
    asked = {*record.statements, *tally.pending}
    for member in tally.committee:
        name = member.replica
        party = case.parties.get(name)
        if party is None:
            # A replica that never showed evidence is absent, and nothing else.
            if name in asked:
                report.add(f"{where} replica {name}", "not a party", "evidence of it")
            continue
        report.require(f"party {name} role", party.role, RUNNER)
        _require_placed(judgement, name, round_.index)
        if (document := case.key_documents.get(name)) is not None:
            report.require(
                f"party {name} segment", document.segment, round_.segment.identity
            )


def verify_vote(
    judgement: Judgement, round_: Round, replica: str, envelope: Envelope, where: str
) -> Statement | None:
    """Verify one replica's statement and that it is of this round.

    Args:
        judgement: Takes the findings and the exchange id.
        round_: That the vote is counted in.
        replica: Whose vote it is said to be.
        envelope: From the receipt or an attachment.
        where: The round's name in findings.

    Returns:
        What the replica signed, if its signature holds and its outputs are the
        segment's; findings may still say that it is of another request.
    """
    case, report = judgement.case, judgement.report
    where = f"{where} statement {replica}"
    key, party = case.keys.get(replica), case.parties.get(replica)
    if key is None or party is None:
        report.add(where, "no key document of that replica", "one in the bundle")
        return None
    try:
        statement = verify_statement(envelope, key)
    except (VerificationError, MalformedInputError) as error:
        report.add(where, str(error), "a statement under the replica's key")
        return None
    receipt = case.receipt
    for name, want in (
        ("request_id", receipt.receipt_id),
        ("nonce", receipt.client_nonce),
        ("plan_digest", receipt.plan_digest),
        ("infer_index", round_.infer),
        ("segment", round_.segment.identity),
        ("key_document", party.key_document),
    ):
        report.require(f"{where} {name}", getattr(statement, name), want)
    before = judgement.exchanges.setdefault(statement.exchange_id, where)
    if before != where:
        report.add(f"{where} exchange_id", f"that of {before}", "one of its own")
    inputs, outputs = _names(round_.segment.inputs), _names(round_.segment.outputs)
    report.require(f"{where} inputs", sorted(statement.inputs), inputs)
    for name in sorted(statement.inputs.keys() & round_.inputs.keys()):
        report.require(
            f"{where} input {name}", statement.inputs[name], round_.inputs[name]
        )
    report.require(f"{where} outputs", sorted(statement.outputs), outputs)
    return statement if sorted(statement.outputs) == outputs else None


def _require_placed(judgement: Judgement, name: str, segment: int) -> None:
    kinds = judgement.case.bundle.scenario.kinds(segment)
    result = judgement.results.get(name)
    # Without a result its evidence has a finding, or nobody could judge it.
    if kinds is not None and result is not None and result.kind not in kinds:
        judgement.report.add(
            f"party {name} placement",
            result.kind,
            f"one of {', '.join(kinds)} for segment {segment}",
        )


def _voices(
    judgement: Judgement, tally: Tally, independence: Independence
) -> dict[str, str]:
    results = judgement.results
    return {
        member.replica: independence.voice(
            member.replica,
            results[member.replica].claims if member.replica in results else None,
        )
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


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return sorted(spec.name for spec in specs)
