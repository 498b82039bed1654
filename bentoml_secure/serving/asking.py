"""Asking one replica: an exchange, and what makes its answer a vote.

An answer counts if its tensors are what the plan promises, and its statement, under
the key that the replica's evidence binds, says exactly this exchange.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bentoml_secure import metrics
from bentoml_secure.consensus.collect import Answer
from bentoml_secure.consensus.quorum import Vote
from bentoml_secure.digest import Digest
from bentoml_secure.errors import UnavailableError, VerificationError
from bentoml_secure.serving.channel import Received
from bentoml_secure.serving.exchange import Exchange, Outgoing
from bentoml_secure.serving.http1 import ConnectionLostError
from bentoml_secure.serving.peers import Attested, Peer
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import (
    EXCHANGE_ID_BYTES,
    parse_statement_envelope,
    require_statement,
    verify_statement,
)
from bentoml_secure.tensors import Array, TensorSpec, require_values


@dataclass(frozen=True, slots=True)
class Made:
    """What a replica made in one exchange, verified."""

    tensors: Mapping[str, Array]
    commitments: Mapping[str, Digest]
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Asking:
    """One segment's inputs, as every replica of its committee is asked."""

    context: RequestContext
    infer_index: int
    plan_digest: Digest
    outgoing: Outgoing
    inputs: Mapping[str, Digest]
    outputs: Sequence[TensorSpec]
    salts: Mapping[str, bytes]

    async def ask(self, peer: Peer, *, out: str | None) -> Answer[Made]:
        """Return one replica's verified answer.

        Args:
            peer: Who is asked.
            out: Why it may not be asked; None where it may.

        Raises:
            SecureError: It may not vote, no answer, or one that is not what was asked.
        """
        if out is not None:
            raise UnavailableError(out)
        attested = self.context.pin(peer)
        try:
            made = await self._attempts(peer, attested)
        except VerificationError:
            # Another key, or a session that it does not hold: it was restarted.
            peer.renew()
            raise
        vote = Vote(
            replica=peer.name, commitments=tuple(sorted(made.commitments.items()))
        )
        return Answer(vote=vote, value=made)

    async def _attempts(self, peer: Peer, attested: Attested) -> Made:
        try:
            return await self._attempt(peer, attested)
        except ConnectionLostError:
            # An idle connection that the runner closed: once more, as a new exchange.
            return await self._attempt(peer, attested)

    async def _attempt(self, peer: Peer, attested: Attested) -> Made:
        segment = peer.segment
        exchange = Exchange(
            request_id=self.context.request_id.hex(),
            nonce=self.context.nonce.hex(),
            infer_index=self.infer_index,
            exchange_id=secrets.token_hex(EXCHANGE_ID_BYTES),
            plan_digest=self.plan_digest,
            segment=segment.identity,
            input_salts={s.name: self.salts[s.name] for s in segment.inputs},
            output_salts={s.name: self.salts[s.name] for s in segment.outputs},
            key_document=attested.party.key_document,
        )
        session = attested.session if self.context.scenario.sealed else None
        received = await peer.channel.exchange(
            exchange, self.outgoing, self.outputs, session
        )
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
