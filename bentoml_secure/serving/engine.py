"""Runs a plan over its replicas, segment by segment, and records how they agreed.

For each segment, in the plan's order:

    1. a committee is chosen (``placement.py``), and the evidence of who may vote on it
       pinned: it is what the receipt shows of the voices that were counted
    2. every replica that may vote is sent the agreed inputs (encoded once)
    3. an answer counts as a vote if its tensors are what the plan promises and its
       statement, under the attested key, says exactly this exchange
    4. a quorum of votes decides; the medoid's tensors go on to the next segment
    5. votes that come later are collected for the scenario's grace and attached
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bentoml_secure import metrics
from bentoml_secure.consensus.collect import Late, Round, collect
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.digest import Digest
from bentoml_secure.errors import (
    ConfigurationError,
    QuorumNotReached,
    SecureError,
    UnavailableError,
)
from bentoml_secure.receipts.receipt import (
    MAX_INFERS,
    InferRecord,
    SegmentRecord,
)
from bentoml_secure.serving.asking import Asking, Made
from bentoml_secure.serving.exchange import Outgoing
from bentoml_secure.serving.peers import Attested, Peer
from bentoml_secure.serving.placement import Candidate, Seat, choose
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.split.plan import Plan
from bentoml_secure.tensors import (
    Array,
    commit,
    require,
    with_sizes,
)

RULE = "within_tolerance"


@dataclass(frozen=True, slots=True)
class PendingVotes:
    """Votes of one segment still being collected after the decision."""

    infer_index: int
    segment_index: int
    tolerance: float
    agreed: Made
    task: asyncio.Task[Late[Made]]


@dataclass(frozen=True, slots=True)
class _Values:
    """Tensors that the chain has so far, and the commitment of each."""

    tensors: dict[str, Array]
    commitments: dict[str, Digest]


class Engine:
    """Runs the plan of one deployment.

    Args:
        plan: The split plan.
        peers: The replicas of each segment, in the plan's order.
    """

    def __init__(self, plan: Plan, peers: Sequence[Sequence[Peer]]) -> None:
        self.plan = plan
        self.peers = peers
        self.distance = load_rule(RULE).distance
        made = {spec.name for segment in plan.segments for spec in segment.outputs}
        self._names = made | {spec.name for spec in plan.inputs}

    async def infer(
        self, context: RequestContext, feed: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Run the whole plan on named inputs and return its named outputs.

        Args:
            context: The request's; gets the record of this call.
            feed: Exactly the plan's inputs.

        Raises:
            MalformedInputError: Inputs that are not the plan's.
            QuorumNotReached: A segment's replicas did not agree in time.
            ConfigurationError: More calls than one receipt holds.
        """
        index = context.next_index
        context.next_index += 1
        try:
            if index >= MAX_INFERS:
                raise ConfigurationError(
                    f"infer: got call {index + 1} of one request, want at most "
                    f"{MAX_INFERS}."
                )
            return await self._infer(context, index, feed)
        except SecureError as error:
            context.failure = context.failure or error
            raise

    async def _infer(
        self, context: RequestContext, index: int, feed: Mapping[str, Array]
    ) -> dict[str, Array]:
        tensors = {name: np.asarray(array) for name, array in feed.items()}
        require(tensors, self.plan.inputs)
        salts = {name: context.salt(index, "tensor", name) for name in self._names}
        inputs = commit(tensors, {name: salts[name] for name in tensors})
        values = _Values(tensors, dict(inputs))
        records = []
        for segment_index in range(len(self.plan.segments)):
            records.append(
                await self._segment(context, index, segment_index, values, salts)
            )
        outputs = [spec.name for spec in self.plan.outputs]
        context.infers.append(
            InferRecord(
                index=index,
                inputs=inputs,
                outputs={name: values.commitments[name] for name in outputs},
                segments=tuple(records),
            )
        )
        return {name: values.tensors[name] for name in outputs}

    async def _segment(
        self,
        context: RequestContext,
        infer_index: int,
        segment_index: int,
        values: _Values,
        salts: Mapping[str, bytes],
    ) -> SegmentRecord:
        segment = self.plan.segments[segment_index]
        names = [spec.name for spec in segment.inputs]
        asking = Asking(
            context,
            infer_index,
            self.plan.digest,
            Outgoing.of({name: values.tensors[name] for name in names}),
            {name: values.commitments[name] for name in sorted(names)},
            with_sizes(segment.outputs, segment.inputs, values.tensors),
            salts,
        )
        by_name = {peer.name: peer for peer in self.peers[segment_index]}
        scenario = context.scenario
        label = str(segment_index)
        try:
            seats = self._committee(context, segment_index)
            out = {seat.member.replica: seat.out for seat in seats}
            agreed: Round[Made] = await collect(
                [seat.member for seat in seats],
                lambda member: asking.ask(
                    by_name[member.replica], out=out[member.replica]
                ),
                distance=lambda a, b: self.distance(a.tensors, b.tensors),
                quorum=scenario.quorum,
                tolerance=segment.tolerance,
                deadline_seconds=scenario.deadline_ms / 1000,
                grace_seconds=scenario.grace_ms / 1000,
            )
        except QuorumNotReached:
            metrics.count_quorum(label, "refused")
            metrics.count_verification("consensus", label, "fail")
            raise
        metrics.count_quorum(label, "agreed")
        metrics.count_verification("consensus", label, "pass")
        for replica in agreed.tally.dissenters:
            metrics.count_dissent(label, replica)
        made = agreed.agreed.value
        if agreed.late is not None:
            context.late.append(
                PendingVotes(
                    infer_index, segment_index, segment.tolerance, made, agreed.late
                )
            )
        values.tensors.update(made.tensors)
        values.commitments.update(made.commitments)
        return SegmentRecord(
            segment=segment.identity,
            tally=agreed.tally,
            statements={n: a.value.envelope for n, a in agreed.answers.items()},
        )

    def _committee(
        self, context: RequestContext, segment_index: int
    ) -> tuple[Seat, ...]:
        found: dict[str, Attested] = {}
        candidates = []
        age = context.scenario.evidence_max_age_seconds
        for peer in self.peers[segment_index]:
            name = peer.name
            try:
                found[name] = context.pinned.get(name) or peer.require(age)
            except UnavailableError as error:
                # Without its remedy: that is for the operator, not for a receipt.
                reason = str(error.args[0])
                candidates.append(Candidate(replica=name, reason=reason))
            else:
                claims = found[name].result.claims
                candidates.append(Candidate(replica=name, claims=claims))
        seats = choose(
            candidates,
            context.scenario,
            segment_index,
            tolerance=self.plan.segments[segment_index].tolerance,
        )
        for seat in seats:
            if seat.out is None:
                context.pinned[seat.member.replica] = found[seat.member.replica]
        return seats

    async def close(self) -> None:
        """Give up the connections."""
        for replicas in self.peers:
            for peer in replicas:
                await peer.close()


async def keep_all_attested(peers: Sequence[Sequence[Peer]]) -> None:
    """Keep every replica attested until cancelled."""
    async with asyncio.TaskGroup() as group:
        for replicas in peers:
            for peer in replicas:
                group.create_task(peer.keep_attested())
