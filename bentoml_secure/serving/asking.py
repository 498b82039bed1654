"""Asking one replica: an exchange, and what makes its answer a vote.

An answer counts if its tensors are what the plan promises, and its statement, under
the key that the replica's evidence binds, says exactly this exchange.

Where replicas commit before they reveal, there are two exchanges: the first brings a
signed commitment, the second, once the round's barrier is open, the answer, which
counts if it is the one that was committed to.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from bentoml_secure import metrics
from bentoml_secure.consensus.barrier import Barrier
from bentoml_secure.consensus.collect import Answer
from bentoml_secure.consensus.commit_reveal import (
    Commitment,
    parse_commitment_envelope,
    require_commitment,
    require_opening,
    verify_commitment,
)
from bentoml_secure.consensus.quorum import Vote
from bentoml_secure.digest import Digest
from bentoml_secure.errors import VerificationError
from bentoml_secure.receipts.commitments import Revealed
from bentoml_secure.serving.channel import Received
from bentoml_secure.serving.exchange import Exchange, Opening, Outgoing
from bentoml_secure.serving.http1 import ConnectionLostError
from bentoml_secure.serving.peers import Attested, Peer
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.session.keys import Session
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import (
    EXCHANGE_ID_BYTES,
    parse_statement_envelope,
    require_statement,
    verify_statement,
)
from bentoml_secure.tensors import Array, TensorSpec, require_values

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Made:
    """What a replica made in one exchange, verified.

    Attributes:
        tensors: Its outputs, by name.
        commitments: Of those, by name.
        envelope: Its statement.
        revealed: What it committed to them with, and how it opened that; None where
            replicas do not commit.
    """

    tensors: Mapping[str, Array]
    commitments: Mapping[str, Digest]
    envelope: Envelope
    revealed: Revealed | None = None


@dataclass(frozen=True, slots=True)
class Asking:
    """One segment's inputs, as every replica of its committee is asked.

    With a barrier, replicas commit to their answers before any of them is shown.
    """

    context: RequestContext
    infer_index: int
    plan_digest: Digest
    outgoing: Outgoing
    inputs: Mapping[str, Digest]
    outputs: Sequence[TensorSpec]
    salts: Mapping[str, bytes]
    barrier: Barrier | None = None

    async def ask(self, peer: Peer) -> Answer[Made]:
        """Return one replica's verified answer.

        Args:
            peer: Who is asked.

        Raises:
            SecureError: No answer, or one that is not what was asked.
        """
        try:
            made = await self._made(peer)
        finally:
            if self.barrier is not None:
                # Whatever became of it: nobody waits for it any more.
                self.barrier.leave(peer.name)
        vote = Vote(
            replica=peer.name, commitments=tuple(sorted(made.commitments.items()))
        )
        return Answer(vote=vote, value=made)

    async def _made(self, peer: Peer) -> Made:
        attested = self.context.pin(peer)
        try:
            if self.barrier is None:
                return await _twice(lambda: self._exchange(peer, attested))
            return await self._committed(peer, attested, self.barrier)
        except VerificationError:
            # Another key, or a session that it does not hold: it was restarted.
            peer.renew()
            raise

    async def _exchange(self, peer: Peer, attested: Attested) -> Made:
        exchange = self._new_exchange(peer, attested)
        received = await peer.channel.exchange(
            exchange, self.outgoing, self.outputs, self._session(attested)
        )
        return self._verified(peer, attested, exchange, received)

    async def _committed(
        self, peer: Peer, attested: Attested, barrier: Barrier
    ) -> Made:
        session = self._session(attested)

        async def commit() -> tuple[Exchange, Envelope]:
            """Have it answer with a commitment."""
            exchange = self._new_exchange(peer, attested, commit=True)
            said = await peer.channel.commit(exchange, self.outgoing, session)
            return exchange, parse_commitment_envelope(said)

        exchange, envelope = await _twice(commit)
        label = str(peer.index)
        with metrics.overhead("commitment"):
            with metrics.verification("commitment", label):
                commitment = verify_commitment(envelope, attested.key)
                key_document = attested.party.key_document
                require_commitment(commitment, exchange.task, key_document)
            blind = await barrier.enter(peer.name, commitment.commitment)
            received = await _twice(
                lambda: peer.channel.reveal(exchange, self.outputs, session)
            )
        with metrics.verification("commitment", label):
            opening = Opening.from_json(received.statement)
            _require_opening(barrier, peer.name, commitment, received, opening)
        received = replace(received, statement=opening.statement)
        made = self._verified(peer, attested, exchange, received)
        revealed = Revealed(commitment=envelope, nonce=opening.nonce, blind=blind)
        return replace(made, revealed=revealed)

    def _session(self, attested: Attested) -> Session | None:
        return attested.session if self.context.scenario.sealed else None

    def _new_exchange(
        self, peer: Peer, attested: Attested, *, commit: bool = False
    ) -> Exchange:
        segment = peer.segment
        return Exchange(
            request_id=self.context.request_id.hex(),
            nonce=self.context.nonce.hex(),
            infer_index=self.infer_index,
            exchange_id=secrets.token_hex(EXCHANGE_ID_BYTES),
            plan_digest=self.plan_digest,
            segment=segment.identity,
            input_salts={s.name: self.salts[s.name] for s in segment.inputs},
            output_salts={s.name: self.salts[s.name] for s in segment.outputs},
            key_document=attested.party.key_document,
            commit=commit,
            scheme=self.context.scenario.commitments,
        )

    def _verified(
        self,
        peer: Peer,
        attested: Attested,
        exchange: Exchange,
        received: Received,
    ) -> Made:
        peer.require_young(attested, self.context.scenario.evidence_max_age_seconds)
        require_values(received.tensors, self.outputs)
        with metrics.verification("statement", str(peer.index)):
            envelope = self._verify(exchange, attested, received)
        return Made(received.tensors, received.commitments, envelope)

    def _verify(
        self, exchange: Exchange, attested: Attested, received: Received
    ) -> Envelope:
        envelope = parse_statement_envelope(received.statement)
        statement = verify_statement(envelope, attested.key)
        require_statement(
            statement,
            {
                "request_id": exchange.request_id,
                "nonce": exchange.nonce,
                "plan_digest": exchange.plan_digest,
                "infer_index": exchange.infer_index,
                "exchange_id": exchange.exchange_id,
                "segment": exchange.segment,
                "key_document": attested.party.key_document,
                "inputs": self.inputs,
                "outputs": received.commitments,
            },
        )
        return envelope


async def _twice(attempt: Callable[[], Awaitable[_T]]) -> _T:
    try:
        return await attempt()
    except ConnectionLostError:
        # An idle connection that the runner closed: once more, as a new exchange.
        return await attempt()


def _require_opening(
    barrier: Barrier,
    replica: str,
    commitment: Commitment,
    received: Received,
    opening: Opening,
) -> None:
    try:
        require_opening(commitment, replica, received.commitments, opening.nonce)
    except VerificationError as error:
        if not (twins := barrier.twins(replica)):
            raise
        raise VerificationError(
            f"commitment of {replica:.100}: the same as that of "
            f"{', '.join(twins):.200}, and not its own: it does not open"
        ) from error
