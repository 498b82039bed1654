"""The whole plan in chains: replicas of all segments in a row, compared at the end.

One comparison in place of one per segment. A chain's segments follow one another
without waiting for anybody else; the quorum is of chains, and the agreed one's outputs
are served. Which replica of a dissenting chain is at fault is found after the answer,
by referees (``completion.py``); without them nobody is named.

Chains fail together more easily than replicas: a liar in another segment of each of
two chains is too much for three. So where no quorum of chains agrees, the request is
run again in lock-step, which stands as many liars in *each* segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bentoml_secure import metrics
from bentoml_secure.consensus.collect import Answer, Ask, Round, Terms, collect
from bentoml_secure.consensus.quorum import Member, Vote
from bentoml_secure.consensus.reputation import Outcome
from bentoml_secure.consensus.seating import Bench
from bentoml_secure.errors import SecureError, UnavailableError
from bentoml_secure.receipts.chains import (
    ChainsRecord,
    chain_tolerance,
    draw_chains,
    weigh_chains,
)
from bentoml_secure.serving.asking import Made
from bentoml_secure.serving.lockstep import Kept, Lockstep, Standing, Values
from bentoml_secure.serving.peers import Peer
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.split.plan import Plan
from bentoml_secure.tensors import Array


@dataclass(frozen=True, slots=True)
class Ran:
    """What one chain made: everything between its segments, and what each signed."""

    values: Values
    made: tuple[Made, ...]


@dataclass(frozen=True, slots=True)
class Doubted(Kept):
    """What a chain made that ended apart from the agreed one, kept to find its fault.

    Attributes:
        chain: Its replicas.
    """

    chain: tuple[str, ...]


class EndToEnd:
    """Runs one deployment's plan in chains.

    Args:
        plan: The split plan.
        peers: The replicas of each segment, in the plan's order.
        lockstep: Asks single segments.
        standing: What replicas' past answers count for.
    """

    def __init__(
        self,
        plan: Plan,
        peers: Sequence[Sequence[Peer]],
        lockstep: Lockstep,
        standing: Standing,
    ) -> None:
        self._plan = plan
        self._peers = {peer.name: peer for row in peers for peer in row}
        self._names = [[peer.name for peer in row] for row in peers]
        self._lockstep = lockstep
        self._standing = standing

    async def run(
        self,
        context: RequestContext,
        infer_index: int,
        values: Values,
        salts: Mapping[str, bytes],
    ) -> ChainsRecord:
        """Run the plan, add what was agreed to ``values``, return the record.

        Raises:
            QuorumNotReached: The chains did not agree in time.
        """
        weights = [
            self._standing.weights(index, names)
            for index, names in enumerate(self._names)
        ]
        chains = {
            chain[-1]: chain
            for chain in draw_chains(
                context.seed,
                weights,
                infer_index=infer_index,
                size=context.scenario.replicas,
            )
        }
        shares = weigh_chains(list(chains.values()), weights)

        async def ask(name: str) -> Answer[Ran]:
            """Run the chain of that name."""
            return await self._ask(context, infer_index, chains[name], values, salts)

        agreed = await self._collect(context, shares, ask)
        if agreed.late is not None:
            # Compared at the end only, without a grace: they are given up, and ended.
            await agreed.late
        self._take(context, infer_index, chains, agreed, salts)
        ran = agreed.agreed.value
        values.tensors.update(ran.values.tensors)
        values.commitments.update(ran.values.commitments)
        return ChainsRecord(
            weights=tuple(weights),
            tally=agreed.tally,
            statements=tuple(
                {
                    chains[name][index]: answer.value.made[index].envelope
                    for name, answer in agreed.answers.items()
                }
                for index in range(len(self._plan.segments))
            ),
        )

    async def _collect(
        self, context: RequestContext, shares: Mapping[str, float], ask: Ask[Ran]
    ) -> Round[Ran]:
        scenario, segments = context.scenario, len(self._plan.segments)
        distance = self._lockstep.distances[-1]
        outputs = [spec.name for spec in self._plan.outputs]

        def ends(ran: Ran) -> dict[str, Array]:
            return {name: ran.values.tensors[name] for name in outputs}

        return await collect(
            Bench.of([Member(replica=n, weight=w) for n, w in shares.items()]),
            ask,
            distance=lambda a, b: distance(ends(a), ends(b)),
            terms=Terms(
                size=scenario.replicas,
                quorum=scenario.quorum,
                tolerance=chain_tolerance(self._plan),
                deadline_seconds=segments * scenario.deadline_ms / 1000,
                grace_seconds=0,
            ),
        )

    async def _ask(
        self,
        context: RequestContext,
        infer_index: int,
        chain: Sequence[str],
        values: Values,
        salts: Mapping[str, bytes],
    ) -> Answer[Ran]:
        own = Values(dict(values.tensors), dict(values.commitments))
        made = []
        for index, name in enumerate(chain):
            asking = self._lockstep.asking(context, infer_index, index, own, salts)
            try:
                if (barred := self._standing.barred(name)) is not None:
                    raise UnavailableError(barred)
                answer = await asking.ask(self._peers[name])
            except (SecureError, OSError) as error:
                # The chain is absent; this says by whose fault.
                raise UnavailableError(f"{name}: {error.args[0]}") from error
            made.append(answer.value)
            own.tensors.update(answer.value.tensors)
            own.commitments.update(answer.value.commitments)
        said = tuple(
            (name, own.commitments[name])
            for name in sorted(spec.name for spec in self._plan.outputs)
        )
        return Answer(
            vote=Vote(replica=chain[-1], commitments=said), value=Ran(own, tuple(made))
        )

    def _take(
        self,
        context: RequestContext,
        infer_index: int,
        chains: Mapping[str, tuple[str, ...]],
        agreed: Round[Ran],
        salts: Mapping[str, bytes],
    ) -> None:
        last = str(len(self._plan.segments) - 1)
        metrics.count_quorum(last, "agreed")
        metrics.count_verification("consensus", last, "pass")
        for name in agreed.tally.clique:
            for index, replica in enumerate(chains[name]):
                outcome = {replica: Outcome.AGREED}
                self._standing.record(context.request_id.hex(), index, outcome)
        # A dissenting chain costs nobody before it is known whose fault it is.
        for name in agreed.tally.dissenters:
            made = agreed.answers[name].value.values
            context.doubted.append(Doubted(infer_index, made, salts, chains[name]))
