"""Chains of a request in memory: run through all segments, compared at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bentoml_secure.audit.recompute import Recomputation, Verdict
from bentoml_secure.consensus.quorum import decide
from bentoml_secure.consensus.tally import Absence, Member, Vote
from bentoml_secure.receipts.chains import (
    ChainsRecord,
    chain_tolerance,
    weigh_chains,
)
from bentoml_secure.signing import Envelope
from bentoml_secure.tensors import Array
from bentoml_secure.testing.request import (
    NO_ANSWER,
    VOTING,
    Behaviour,
    Request,
    apart,
    compute,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RanChain:
    """One chain.

    Attributes:
        replicas: One of each segment.
        known: Every tensor that it read or made, by name.
        statements: One of each replica.
        out: What kept it from answering in time; None if nothing did.
    """

    replicas: tuple[str, ...]
    known: Mapping[str, Array]
    statements: tuple[Envelope, ...]
    out: Behaviour | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RanChains:
    """All chains of one ``infer``.

    Attributes:
        record: As it stands in the receipt.
        known: Every tensor of the agreed chain, by name.
        faults: What referees make of each dissenting chain, by its name.
    """

    record: ChainsRecord
    known: Mapping[str, Array]
    faults: Mapping[str, tuple[Recomputation, ...]]


def run_chains(
    request: Request, infer: int, inputs: Mapping[str, Array]
) -> RanChains | None:
    """Run the chains that are drawn; None where no quorum of them agrees."""
    plan, scenario = request.deployment.plan, request.scenario
    weights = tuple(request.weights_of(index) for index in range(len(plan.segments)))
    orders = [request.order(infer, index) for index in range(len(plan.segments))]
    drawn = list(zip(*orders, strict=True))[: scenario.replicas]
    ran = {names[-1]: _run_chain(request, infer, names, inputs) for names in drawn}
    shares = weigh_chains(drawn, weights)
    ends = {name: _ends(request, chain) for name, chain in ran.items()}
    voters = [name for name, chain in ran.items() if chain.out is None]
    tally = decide(
        [Member(replica=name, weight=shares[name]) for name in ran],
        [
            Vote(
                replica=name,
                commitments=tuple(sorted(request.commit(infer, ends[name]).items())),
            )
            for name in voters
        ],
        [
            Absence(replica=name, reason=NO_ANSWER)
            for name, chain in ran.items()
            if chain.out is Behaviour.ABSENT
        ],
        quorum=scenario.quorum,
        tolerance=chain_tolerance(plan),
        distances=lambda a, b: apart(ends[a], ends[b]),
    )
    if tally.medoid is None:
        return None
    return RanChains(
        record=ChainsRecord(
            weights=weights,
            tally=tally,
            statements=tuple(
                {ran[n].replicas[index]: ran[n].statements[index] for n in voters}
                for index in range(len(plan.segments))
            ),
        ),
        known=ran[tally.medoid].known,
        faults={n: _localise(request, infer, ran[n]) for n in tally.dissenters},
    )


def _ends(request: Request, chain: RanChain) -> dict[str, Array]:
    outputs = request.deployment.plan.outputs
    return {spec.name: chain.known[spec.name] for spec in outputs}


def _run_chain(
    request: Request, infer: int, names: Sequence[str], inputs: Mapping[str, Array]
) -> RanChain:
    known, statements, out = dict(inputs), [], None
    for index, (name, segment) in enumerate(
        zip(names, request.deployment.plan.segments, strict=True)
    ):
        behaviour = request.acting(infer, index)[name]
        if behaviour not in VOTING:
            out = behaviour
        (runner,) = (r for r in request.deployment.runners[index] if r.name == name)
        given = {spec.name: known[spec.name] for spec in segment.inputs}
        made = {spec.name: compute(given, behaviour) for spec in segment.outputs}
        statements.append(request.state(runner, (infer, index), given, made))
        known |= made
    return RanChain(
        replicas=tuple(names), known=known, statements=tuple(statements), out=out
    )


def _localise(
    request: Request, infer: int, chain: RanChain
) -> tuple[Recomputation, ...]:
    if not request.deployment.referees:
        return ()
    return tuple(
        _recompute(request, infer, index, chain) for index in range(len(chain.replicas))
    )


def _recompute(
    request: Request, infer: int, index: int, chain: RanChain
) -> Recomputation:
    referee = request.deployment.referees[index]
    segment = request.deployment.plan.segments[index]
    behaviour = request.referees.get((infer, index), Behaviour.HONEST)
    if behaviour not in VOTING:
        return Recomputation(
            infer=infer,
            segment=index,
            replica=referee.name,
            verdict=Verdict.ABSENT,
            reason=NO_ANSWER,
        )
    given = {spec.name: chain.known[spec.name] for spec in segment.inputs}
    said = {spec.name: chain.known[spec.name] for spec in segment.outputs}
    made = {spec.name: compute(given, behaviour) for spec in segment.outputs}
    distance = apart(said, made)
    agrees = distance is not None and distance <= segment.tolerance
    on = f" for {chain.replicas[-1]}"
    return Recomputation(
        infer=infer,
        segment=index,
        replica=referee.name,
        verdict=Verdict.AGREES if agrees else Verdict.DIFFERS,
        statement=request.state(referee, (infer, index), given, made, on=on),
        distance=distance,
    )
