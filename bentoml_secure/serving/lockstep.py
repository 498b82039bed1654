"""One segment in lock-step: a committee is drawn, asked, and has to agree.

    1. every replica of the segment is a candidate; the draw orders them
       (``consensus/committee.py``), and seats are taken in that order
    2. who may vote is asked (``asking.py``), under the evidence that is pinned then:
       it is what the receipt shows of the voices that were counted
    3. a quorum of votes decides (``consensus/collect.py``); where none does, more
       replicas are asked, and then the referee, as far as the scenario goes
    4. votes that come later are collected for the scenario's grace and attached

All replicas get the same agreed inputs, so whoever answers otherwise is the one at
fault: the segment and the replica are named at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from bentoml_secure import metrics
from bentoml_secure.consensus.barrier import Barrier
from bentoml_secure.consensus.collect import Answer, Late, Round, Terms, collect
from bentoml_secure.consensus.committee import Candidate as Drawable
from bentoml_secure.consensus.committee import draw_order
from bentoml_secure.consensus.latency import Latencies
from bentoml_secure.consensus.quorum import Member
from bentoml_secure.consensus.reputation import Outcome, capped, outcomes_of
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.consensus.seating import Bench
from bentoml_secure.consensus.tally import Tally
from bentoml_secure.digest import Digest, is_finite_number
from bentoml_secure.errors import (
    ConfigurationError,
    QuorumNotReached,
    UnavailableError,
)
from bentoml_secure.receipts.receipt import SegmentRecord
from bentoml_secure.receipts.records import RefereeRecord
from bentoml_secure.scenario import Independence, Scenario
from bentoml_secure.serving.asking import Asking, Made
from bentoml_secure.serving.exchange import Outgoing
from bentoml_secure.serving.peers import Attested, Peer
from bentoml_secure.serving.placement import Candidate, seat_candidates
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.split.plan import Plan
from bentoml_secure.tensors import Array, with_sizes


@dataclass(frozen=True, slots=True)
class Values:
    """Tensors that the chain has so far, and the commitment of each."""

    tensors: dict[str, Array]
    commitments: dict[str, Digest]

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(array.nbytes for array in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Kept:
    """What one ``infer`` passed between segments, kept for referees.

    Attributes:
        infer_index: Which ``infer``, from 0.
        values: None where too much was kept already: it cannot be recomputed.
        salts: Of every tensor.
    """

    infer_index: int
    values: Values | None
    salts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class PendingVotes:
    """Votes of one segment still being collected after the decision."""

    infer_index: int
    segment_index: int
    tolerance: float
    agreed: Made
    task: asyncio.Task[Late[Made]]


Distance = Callable[[Mapping[str, Array], Mapping[str, Array]], float | None]


class Standing(Protocol):
    """What replicas' past answers count for, as a round asks it."""

    def weights(self, segment: int, replicas: Sequence[str]) -> Mapping[str, float]:
        """Return the weight of each of a segment's replicas, above 0."""
        ...

    def barred(self, replica: str) -> str | None:
        """Return why a replica has no vote now; None where it has one."""
        ...

    def record(
        self, request_id: str, segment: int, outcomes: Mapping[str, Outcome]
    ) -> None:
        """Take in what one round says of its replicas; does not wait for a disk."""
        ...

    def close(self) -> None:
        """Write what waits."""
        ...


class Lockstep:
    """Runs single segments of one deployment's plan.

    Args:
        plan: The split plan.
        peers: The replicas of each segment, in the plan's order.
        referees: One of each segment, or none at all.
        standing: What replicas' past answers count for.
    """

    def __init__(
        self,
        plan: Plan,
        peers: Sequence[Sequence[Peer]],
        referees: Sequence[Peer],
        standing: Standing,
    ) -> None:
        self._plan = plan
        self._replicas = [{peer.name: peer for peer in row} for row in peers]
        self._referees = referees
        self._standing = standing
        self._latencies = [Latencies() for _ in plan.segments]
        self.distances = [_finite(load_rule(s.rule).distance) for s in plan.segments]

    def asking(
        self,
        context: RequestContext,
        infer_index: int,
        segment_index: int,
        values: Values,
        salts: Mapping[str, bytes],
        barrier: Barrier | None = None,
    ) -> Asking:
        """Return one segment's inputs, laid out once for whoever is asked.

        With a barrier, who is asked commits to its answer before it shows it.
        """
        segment = self._plan.segments[segment_index]
        names = [spec.name for spec in segment.inputs]
        return Asking(
            context,
            infer_index,
            self._plan.digest,
            Outgoing.of({name: values.tensors[name] for name in names}),
            {name: values.commitments[name] for name in sorted(names)},
            with_sizes(segment.outputs, segment.inputs, values.tensors),
            salts,
            barrier,
        )

    async def run(
        self,
        context: RequestContext,
        infer_index: int,
        segment_index: int,
        values: Values,
        salts: Mapping[str, bytes],
    ) -> SegmentRecord:
        """Run one segment, add what was agreed to ``values``, return the record.

        Raises:
            QuorumNotReached: Its replicas did not agree in time.
        """
        label = str(segment_index)
        try:
            candidates, found = self._candidates(context, infer_index, segment_index)
            bench = seat_candidates(
                candidates,
                context.scenario,
                segment_index,
                tolerance=self._plan.segments[segment_index].tolerance,
            )
            barrier = _barrier(bench, context.scenario)
            asking = self.asking(
                context, infer_index, segment_index, values, salts, barrier
            )
            agreed = await self._collect(context, segment_index, bench, found, asking)
        except QuorumNotReached as refused:
            metrics.count_quorum(label, "refused")
            metrics.count_verification("consensus", label, "fail")
            self._record(context, segment_index, outcomes_of(_tally(refused)))
            raise
        self._count(context, segment_index, agreed)
        self._pin_passed_over(context, bench, agreed, found)
        made = agreed.agreed.value
        if agreed.late is not None:
            context.late.append(
                PendingVotes(
                    infer_index,
                    segment_index,
                    agreed.tally.tolerance,
                    made,
                    agreed.late,
                )
            )
        values.tensors.update(made.tensors)
        values.commitments.update(made.commitments)
        return self._segment_record(segment_index, bench, agreed)

    def _candidates(
        self, context: RequestContext, infer_index: int, segment_index: int
    ) -> tuple[list[Candidate], dict[str, Attested]]:
        """Return the replicas in the drawn order, and the evidence of each."""
        peers = self._replicas[segment_index]
        weights = self._standing.weights(segment_index, list(peers))
        order = draw_order(
            context.seed,
            [Drawable(replica=name, weight=weights[name]) for name in peers],
            infer_index=infer_index,
            segment_index=segment_index,
        )
        found: dict[str, Attested] = {}
        candidates = []
        age = context.scenario.evidence_max_age_seconds
        for name in order:
            candidate = Candidate(replica=name, weight=weights[name])
            reason = self._standing.barred(name) or context.out.get(name, "")
            shown = context.pinned.get(name)
            if shown is None and not reason:
                try:
                    shown = peers[name].require(age)
                except UnavailableError as error:
                    # Without its remedy: that is for the operator, not for a receipt.
                    reason = str(error.args[0])
            if shown is not None:
                candidate = replace(candidate, claims=shown.result.claims)
                if not reason:
                    found[name] = shown
            elif context.scenario.independence is not Independence.NONE:
                # Evidence of it in the receipt would give it another voice here.
                context.out[name] = reason
            candidates.append(replace(candidate, reason=reason))
        return candidates, found

    async def _collect(
        self,
        context: RequestContext,
        segment_index: int,
        bench: Bench,
        found: Mapping[str, Attested],
        asking: Asking,
    ) -> Round[Made]:
        scenario, latencies = context.scenario, self._latencies[segment_index]
        distance = self.distances[segment_index]
        peers = dict(self._replicas[segment_index])
        referee = None
        if scenario.referee:
            referee = self._referees[segment_index].name
            peers[referee] = self._referees[segment_index]

        async def ask(name: str) -> Answer[Made]:
            if name in found:
                context.pinned.setdefault(name, found[name])
            begun = time.monotonic()
            # The referee is asked when every answer is there: nothing to be blind to.
            asked = asking if name != referee else replace(asking, barrier=None)
            answer = await asked.ask(peers[name])
            if name != referee:
                latencies.add(time.monotonic() - begun)
            return answer

        return await collect(
            bench,
            ask,
            distance=lambda a, b: distance(a.tensors, b.tensors),
            terms=Terms(
                size=scenario.replicas,
                quorum=scenario.quorum,
                tolerance=self._plan.segments[segment_index].tolerance,
                deadline_seconds=scenario.deadline_ms / 1000,
                grace_seconds=scenario.grace_ms / 1000,
                escalation=scenario.escalation,
                hedge_seconds=latencies.p95 if scenario.spares else None,
            ),
            referee=referee,
            share=weigh,
        )

    def _count(
        self, context: RequestContext, segment_index: int, agreed: Round[Made]
    ) -> None:
        label, ruling = str(segment_index), agreed.ruling
        metrics.count_quorum(label, "ruled" if ruling else "agreed")
        metrics.count_verification("consensus", label, "pass")
        wrong = ruling.wrong(agreed.tally) if ruling else agreed.tally.dissenters
        for replica in wrong:
            metrics.count_dissent(label, replica)
        upheld = {*agreed.answers} - {*wrong} if ruling else None
        outcomes = outcomes_of(agreed.tally, upheld=upheld)
        self._record(context, segment_index, outcomes)

    def _record(
        self,
        context: RequestContext,
        segment_index: int,
        outcomes: Mapping[str, Outcome],
    ) -> None:
        self._standing.record(context.request_id.hex(), segment_index, outcomes)

    @staticmethod
    def _pin_passed_over(
        context: RequestContext,
        bench: Bench,
        agreed: Round[Made],
        found: Mapping[str, Attested],
    ) -> None:
        # Passed over because its voice had a seat: its evidence has to show that.
        seats = [member.replica for member in agreed.tally.committee]
        skips = {skip.replica for skip in agreed.skips}
        last = max(map(bench.order.index, seats))
        if len({bench.members[name].voice for name in seats}) < len(seats):
            # A second seat for a voice is given when all have been considered.
            last = len(bench.order)
        for name in bench.order[:last]:
            if name in found and name not in seats and name not in skips:
                context.pinned.setdefault(name, found[name])
        # Given up before its ask began, a spare has pinned nothing by itself.
        for name in (*agreed.unused, *agreed.tally.pending):
            context.pinned.setdefault(name, found[name])

    def _segment_record(
        self, segment_index: int, bench: Bench, agreed: Round[Made]
    ) -> SegmentRecord:
        ruling = agreed.ruling
        return SegmentRecord(
            segment=self._plan.segments[segment_index].identity,
            weights={name: member.weight for name, member in bench.members.items()},
            skips=agreed.skips,
            unused=tuple(sorted(agreed.unused)),
            tally=agreed.tally,
            statements={n: a.value.envelope for n, a in agreed.answers.items()},
            commitments={
                name: answer.value.revealed
                for name, answer in agreed.answers.items()
                if answer.value.revealed is not None
            },
            referee=None
            if ruling is None
            else RefereeRecord(
                replica=ruling.answer.vote.replica,
                statement=ruling.answer.value.envelope,
                distances=ruling.distances,
            ),
        )


def _barrier(bench: Bench, scenario: Scenario) -> Barrier | None:
    if not scenario.commit_reveal:
        return None
    # Spares too: one that is asked in place of another has to be waited for.
    askable = [name for name in bench.order if name not in bench.out]
    return Barrier(
        askable[: scenario.replicas + scenario.spares],
        quorum=scenario.quorum,
        # Before more replicas are asked, which is at half of the deadline.
        wait_seconds=scenario.deadline_ms / 4000,
    )


def _finite(distance: Distance) -> Distance:
    """Return a rule's distance, refusing what no rule may say: NaN agrees with all."""

    def measured(a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        apart = distance(a, b)
        if apart is not None and not (is_finite_number(apart) and apart >= 0):
            raise ConfigurationError(
                f"distance: got {apart}, want a finite number from 0, or none.",
                remedy="Mend the rule that measured it.",
            )
        return apart

    return measured


def weigh(members: tuple[Member, ...]) -> tuple[Member, ...]:
    """Return a committee's members, no voice of which outweighs all the others."""
    weights = capped(
        {member.replica: member.weight for member in members},
        {member.replica: member.voice for member in members},
    )
    return tuple(replace(m, weight=weights[m.replica]) for m in members)


def _tally(refused: QuorumNotReached) -> Tally:
    return Tally.from_json(refused.tally)
