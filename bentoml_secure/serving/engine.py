"""Runs a plan over its replicas, segment by segment, and records how they agreed.

Each segment gets what those before it agreed on; ``lockstep.py`` says how one agrees.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bentoml_secure.audit.sampling import audited
from bentoml_secure.consensus.barrier import Barrier
from bentoml_secure.errors import (
    ConfigurationError,
    QuorumNotReached,
    SecureError,
)
from bentoml_secure.receipts.receipt import MAX_INFERS, InferRecord
from bentoml_secure.scenario import Mode, Proving, Scenario
from bentoml_secure.serving.endtoend import EndToEnd
from bentoml_secure.serving.lockstep import Kept, Lockstep, Standing, Values
from bentoml_secure.serving.ordering import Provable, served_salts
from bentoml_secure.serving.peers import Peer
from bentoml_secure.serving.proving import EntryProving
from bentoml_secure.serving.request import RequestContext, own_context
from bentoml_secure.split.plan import Plan
from bentoml_secure.tensors import Array, commit, require

logger = logging.getLogger("bentoml_secure")


class Engine:
    """Runs the plan of one deployment.

    Args:
        plan: The split plan.
        peers: The replicas of each segment, in the plan's order.
        referees: One of each segment, or none at all.
        standing: What replicas' past answers count for; nothing if left out.
        proving: Of answers that are to be proven; None where none is.
    """

    def __init__(
        self,
        plan: Plan,
        peers: Sequence[Sequence[Peer]],
        referees: Sequence[Peer] = (),
        standing: Standing | None = None,
        proving: EntryProving | None = None,
    ) -> None:
        self._proving = proving
        self.plan = plan
        self.peers = peers
        self.referees = referees
        self.standing: Standing = standing or EqualStanding()
        self.lockstep = Lockstep(plan, peers, referees, self.standing)
        self.endtoend = EndToEnd(plan, peers, self.lockstep, self.standing)
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
        proving = self._proving
        if context.scenario.proof is Proving.NONE:
            proving = None
        if proving is not None:
            proving.admit(context.scenario, index, tensors)
        salts = {name: context.salt(index, "tensor", name) for name in self._names}
        scheme = context.scenario.commitments
        inputs = commit(tensors, {name: salts[name] for name in tensors}, scheme)
        values = Values(tensors, dict(inputs))
        chains, records = None, []
        if context.scenario.mode is Mode.END_TO_END:
            try:
                chains = await self.endtoend.run(context, index, values, salts)
            except QuorumNotReached as refused:
                logger.warning("chains did not agree, lock-step is next: %s", refused)
        if chains is None:
            for segment_index in range(len(self.plan.segments)):
                records.append(
                    await self.lockstep.run(
                        context, index, segment_index, values, salts
                    )
                )
        if audited(context.seed, context.scenario.audit_rate):
            context.kept.append(Kept(index, values, salts))
        names = [spec.name for spec in self.plan.outputs]
        answer = {name: values.tensors[name] for name in names}
        outputs = {name: values.commitments[name] for name in names}
        if proving is not None:
            provable = Provable(
                infer=index,
                inputs={spec.name: tensors[spec.name] for spec in self.plan.inputs},
                served=answer,
            )
            context.provable.append(provable)
            if context.scenario.serve_proven:
                answer = await proving.proven(context, provable)
                outputs = commit(answer, served_salts(context, provable), scheme)
        context.infers.append(
            InferRecord(
                index=index,
                inputs=inputs,
                outputs=outputs,
                segments=tuple(records),
                chains=chains,
            )
        )
        return answer

    async def examine(
        self,
        scenario: Scenario,
        replica: str,
        segment_index: int,
        inputs: Mapping[str, Array],
    ) -> Mapping[str, Array]:
        """Return one replica's verified outputs, of inputs of its segment.

        On the wire it is an exchange like any other, of a request of its own.

        Args:
            scenario: How replicas are asked.
            replica: Name of the replica.
            segment_index: Index of its segment.
            inputs: Exactly the segment's.

        Raises:
            SecureError: No answer, or one that is not what was asked.
        """
        # Placements are of callers' tensors. What is known may go to anybody attested:
        # who is placed by another scenario would never get a vote there.
        context = own_context(replace(scenario, placement={}))
        segment = self.plan.segments[segment_index]
        names = [spec.name for spec in (*segment.inputs, *segment.outputs)]
        salts = {name: context.salt(0, "tensor", name) for name in names}
        given = {name: salts[name] for name in inputs}
        values = Values(dict(inputs), dict(commit(inputs, given, scenario.commitments)))
        barrier = None
        if scenario.commit_reveal:
            barrier = Barrier([replica], quorum=1, wait_seconds=0)
        asking = self.lockstep.asking(context, 0, segment_index, values, salts, barrier)
        (peer,) = [p for p in self.peers[segment_index] if p.name == replica]
        return (await asking.ask(peer)).value.tensors

    def every_peer(self) -> Iterable[Peer]:
        """Yield every replica and every referee."""
        for replicas in self.peers:
            yield from replicas
        yield from self.referees

    async def keep_attested(self) -> None:
        """Keep every replica and referee attested until cancelled."""
        async with asyncio.TaskGroup() as group:
            for peer in self.every_peer():
                group.create_task(peer.keep_attested())

    async def close(self) -> None:
        """Give up the connections, and write what replicas' answers counted for."""
        for peer in self.every_peer():
            await peer.close()
        await asyncio.to_thread(self.standing.close)


class EqualStanding:
    """Every replica counts alike, whatever it answered before."""

    def weights(self, segment: int, replicas: Sequence[str]) -> Mapping[str, float]:
        """Return 1 for each."""
        return dict.fromkeys(replicas, 1.0)

    def barred(self, replica: str) -> str | None:
        """Return None: everybody has a vote."""
        return None

    def record(
        self, request_id: str, segment: int, outcomes: Mapping[str, object]
    ) -> None:
        """Forget it."""

    def close(self) -> None:
        """Do nothing."""
