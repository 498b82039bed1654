"""Judging chains: that they were drawn, chain, and agree at their ends.

For every ``infer`` that was served so:

    1. the scenario's mode allows it; each segment's candidates are the configuration's,
       and the committee is the chains that the draws make
    2. along each chain that voted, statements chain from the model's inputs on, each a
       vote of its segment by the replica that the draw put there
    3. the tally is derived again from the outputs of the chains; it accepted, and the
       tolerance is that of all segments together
    4. the model's outputs are those of the agreed chain

Which replica of a dissenting chain is at fault does not follow from it: every segment
after the first fault was given what is wrong. See ``localisation.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bentoml_secure.consensus.committee import Candidate, candidate_faults
from bentoml_secure.consensus.quorum import Vote, recompute
from bentoml_secure.consensus.tally import Tally
from bentoml_secure.digest import Digest
from bentoml_secure.receipts.chains import (
    ChainsRecord,
    chain_tolerance,
    draw_chains,
    weigh_chains,
)
from bentoml_secure.receipts.committees import draw_seed, judge_place, judge_weights
from bentoml_secure.receipts.judgement import Judgement, Round, names_of, verify_vote
from bentoml_secure.scenario import Mode
from bentoml_secure.statements import Statement


def judge_chains(
    judgement: Judgement, infer: int, inputs: Mapping[str, Digest], record: ChainsRecord
) -> Mapping[str, Digest]:
    """Judge one ``infer`` that was served by chains; see the module's steps.

    Args:
        judgement: Takes the findings, and a round per segment of the agreed chain.
        infer: Index of the ``infer``.
        inputs: Of the model: commitments by name.
        record: From the receipt.

    Returns:
        The commitments of everything that the agreed chain made; empty if there is
        none that holds.
    """
    where, report = f"infer {infer} chains", judgement.report
    mode = judgement.case.bundle.scenario.mode
    report.require(f"{where} scenario mode", mode.value, Mode.END_TO_END.value)
    chains = _judge_draw(judgement, infer, record, where)
    if chains is None:
        return {}
    voters = {name for group in record.tally.groups for name in group}
    known, votes = {}, []
    outputs = names_of(judgement.case.bundle.plan.outputs)
    for chain in chains:
        for index, name in enumerate(chain):
            round_ = _round(judgement, infer, index, record.tally, inputs)
            # One that is still out may not have come further than its first replica.
            begun = chain[-1] in record.tally.pending and index == 0
            asked = chain[-1] in voters or begun
            judge_place(judgement, round_, name, where, asked=asked)
        if chain[-1] in voters:
            made = _follow(judgement, infer, chain, inputs, record)
            if made is not None:
                known[chain[-1]] = made
                # One may be an input that the receipt leaves out: that is a finding.
                said = tuple((n, made[n]) for n in outputs if n in made)
                votes.append(Vote(replica=chain[-1], commitments=said))
    _judge_statements(judgement, chains, voters, record, where)
    _judge_tally(judgement, infer, record, votes, chains, where)
    agreed = known.get(record.tally.medoid or "")
    if agreed is None:
        report.add(f"{where} medoid", "no chain that verifies", "the answer served")
        return {}
    for index in range(len(judgement.case.bundle.plan.segments)):
        replicas = {chain[-1]: chain[index] for chain in chains}
        tally = _of_replicas(record.tally, replicas)
        round_ = _round(judgement, infer, index, tally, agreed)
        judgement.rounds[infer, index] = round_
    return agreed


def _of_replicas(tally: Tally, replicas: Mapping[str, str]) -> Tally:
    """Return the tally with a segment's replicas in place of their chains' names.

    Whose evidence counts as a voice is that of who ran the segment.
    """
    members = [replace(m, replica=replicas[m.replica]) for m in tally.committee]
    agree = tuple(replicas[name] for name in tally.clique if name in replicas)
    return replace(tally, committee=tuple(members), clique=agree)


def _judge_draw(
    judgement: Judgement, infer: int, record: ChainsRecord, where: str
) -> list[tuple[str, ...]] | None:
    case, report, topology = judgement.case, judgement.report, judgement.case.topology
    if topology is None:
        return None
    names = [sorted(topology.replica_names(i)) for i in range(topology.segments)]
    got = [sorted(row) for row in record.weights]
    lengths = {len(names), len(record.statements), len(case.bundle.plan.segments)}
    if got != names or len(lengths) > 1:
        report.add(f"{where} candidates", got, "the replicas of every segment")
        return None
    for index, row in enumerate(record.weights):
        drawn = [Candidate(replica=name, weight=weight) for name, weight in row.items()]
        faults = candidate_faults(drawn)
        report.adopt(where, faults)
        judge_weights(judgement, row, f"{where} segment {index}")
        if faults:
            return None
    chains = draw_chains(
        draw_seed(case.receipt),
        record.weights,
        infer_index=infer,
        size=case.bundle.scenario.replicas,
    )
    members = [member.replica for member in record.tally.committee]
    want = [chain[-1] for chain in chains]
    report.require(f"{where} committee", ", ".join(members), ", ".join(want))
    return chains if members == want else None


def _round(
    judgement: Judgement,
    infer: int,
    index: int,
    tally: Tally,
    known: Mapping[str, Digest],
) -> Round:
    segment = judgement.case.bundle.plan.segments[index]
    inputs, outputs = names_of(segment.inputs), names_of(segment.outputs)
    # Votes after the decision are not collected here, and an audit has the segment's
    # own tolerance: it compares what was made of the same inputs.
    counted = replace(tally, pending=(), tolerance=segment.tolerance)
    return Round(
        infer=infer,
        index=index,
        segment=segment,
        tally=counted,
        inputs={name: known[name] for name in inputs if name in known},
        agreed={name: known[name] for name in outputs if name in known},
    )


def _follow(
    judgement: Judgement,
    infer: int,
    chain: Sequence[str],
    inputs: Mapping[str, Digest],
    record: ChainsRecord,
) -> dict[str, Digest] | None:
    """Return the commitments of all that a chain made, if its statements hold."""
    known = dict(inputs)
    for index, name in enumerate(chain):
        where = f"infer {infer} segment {index}"
        round_ = _round(judgement, infer, index, record.tally, known)
        envelope = record.statements[index].get(name)
        statement: Statement | None = None
        if envelope is None:
            judgement.report.add(f"{where} statement {name}", "none", "one of a voter")
        else:
            statement = verify_vote(judgement, round_, name, envelope, where)
        if statement is None:
            return None
        judgement.statements[infer, index, name] = statement
        known.update(statement.outputs)
    return known


def _judge_statements(
    judgement: Judgement,
    chains: Sequence[Sequence[str]],
    voters: set[str],
    record: ChainsRecord,
    where: str,
) -> None:
    for index, row in enumerate(record.statements):
        want = sorted(chain[index] for chain in chains if chain[-1] in voters)
        judgement.report.require(
            f"{where} segment {index} statements of", sorted(row), want
        )


def _judge_tally(
    judgement: Judgement,
    infer: int,
    record: ChainsRecord,
    votes: Sequence[Vote],
    chains: Sequence[Sequence[str]],
    where: str,
) -> None:
    report, tally, bundle = judgement.report, record.tally, judgement.case.bundle
    report.require(f"{where} tally quorum", tally.quorum, bundle.scenario.quorum)
    tolerance = chain_tolerance(bundle.plan)
    report.require(f"{where} tally tolerance", tally.tolerance, tolerance)
    weights = weigh_chains(chains, record.weights)
    got = {member.replica: member.weight for member in tally.committee}
    report.require(f"{where} weights", got, weights)
    report.adopt(f"{where} tally", recompute(tally, votes))
    report.require(f"{where} tally accepted", tally.accepted, True)
    by_name = {chain[-1]: chain for chain in chains}
    for name in tally.dissenters:
        if name in by_name:
            report.doubt(infer, by_name[name])
    last = len(bundle.plan.segments) - 1
    for absence in tally.absent:
        report.miss(infer, last, absence.replica, absence.reason, "receipt")
