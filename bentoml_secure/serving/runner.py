"""A runner: one segment, one process, a signed statement per exchange.

What it does to an exchange, in order:

    1. plan and segment are those it serves, salts are there for each of its tensors
    2. inputs have the promised names, dtypes, shapes; no NaN or infinity
    3. the segment runs
    4. outputs are what the plan promises
    5. a statement binds request, exchange, segment, inputs and outputs to its keys
    6. where the exchange asks for it, a commitment goes out alone; tensors, statement
       and the nonce that opens it are held until they are asked to be revealed
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import anyio.to_thread

from bentoml_secure.consensus.commit_reveal import (
    OPENING_BYTES,
    Commitment,
    commit_answer,
    sign_commitment,
)
from bentoml_secure.digest import Digest
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.serving.answers import (
    Answer,
    commit_outputs,
    committed_answer,
    revealed_answer,
    stated_answer,
)
from bentoml_secure.serving.exchange import Exchange, Opening, Outgoing
from bentoml_secure.serving.held import PLAIN, Held, HeldAnswers
from bentoml_secure.session.identity import Identity, Keys
from bentoml_secure.session.keys import Session
from bentoml_secure.session.responders import Responder
from bentoml_secure.signing import Envelope
from bentoml_secure.split.plan import Segment
from bentoml_secure.statements import Statement, format_time, sign_statement, utc_now
from bentoml_secure.tensors import (
    Array,
    TensorCommitments,
    TensorSpec,
    require,
    require_values,
)

RunSegment = Callable[[Mapping[str, Array]], Mapping[str, Array]]

# A thread costs about 0.1 ms; below this a run is cheaper on the event loop.
_INLINE_SECONDS = 1e-3


class RunnerCore:
    """Runs one segment and signs for it. Knows nothing of HTTP.

    Args:
        segment: The plan's entry.
        plan_digest: Of the whole plan.
        run: From input to output tensors by name; raises SecureError.
        identity: The process's keys and attester.
        responder: Its sessions.
        allows_plain: Whether a scenario of the deployment lets exchanges be unsealed.
        held: Room for answers that are committed to before they are revealed; None
            where no scenario of the deployment asks for that.
        clock: For the statement's times.
    """

    def __init__(
        self,
        segment: Segment,
        plan_digest: Digest,
        run: RunSegment,
        identity: Identity,
        responder: Responder,
        *,
        allows_plain: bool,
        held: HeldAnswers | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.identity = identity
        self.responder = responder
        self._held = held
        self._allows_plain = allows_plain
        self._segment = segment
        self._plan_digest = plan_digest
        self._run = run
        self._clock = clock
        self._output_names = {spec.name for spec in segment.outputs}
        self._input_names = {spec.name for spec in segment.inputs}
        self._run_seconds = 0.0

    def require_plain(self, exchange: Exchange | None = None) -> Keys:
        """Return the keys for an unsealed exchange, where those are served at all.

        They are those that the entry knows: it may not have seen newer ones yet.

        Args:
            exchange: Once it was read.

        Raises:
            ConfigurationError: Every scenario of the deployment asks for sealing.
            UnavailableError: No session is in force: nobody can know whose the answer
                would be.
        """
        if not self._allows_plain:
            raise ConfigurationError(
                "exchange: got unsealed tensors, want a sealed body.",
                remedy="Open a session first; see docs/session.md.",
            )
        known = None if exchange is None else exchange.key_document
        session = self.responder.youngest(known)
        if session is None:
            raise UnavailableError("runner: its evidence is too old, or there is none")
        return session.keys

    def require_in_force(self, session: Session) -> Keys:
        """Return a session's keys, if the evidence under it is still young enough.

        Raises:
            UnavailableError: It aged out while the exchange was served.
        """
        if session.expires_at <= self._clock():
            raise UnavailableError("session: its evidence aged out meanwhile")
        return session.keys

    def admit(self, exchange: Exchange) -> Sequence[TensorSpec]:
        """Return the specs of the inputs, or refuse the exchange.

        Raises:
            MalformedInputError: Another plan or segment, or salts of other tensors.
        """
        for what, got, want in (
            ("plan", exchange.plan_digest, self._plan_digest),
            ("segment", exchange.segment, self._segment.identity),
        ):
            if got != want:
                raise MalformedInputError(f"exchange {what}: got {got}, want {want}")
        for what, names, wanted in (
            ("input_salts", exchange.input_salts.keys(), self._input_names),
            ("output_salts", exchange.output_salts.keys(), self._output_names),
        ):
            if names != wanted:
                raise MalformedInputError(
                    f"exchange {what}: got {sorted(names)!r:.200}, "
                    f"want {sorted(wanted)!r:.200}"
                )
        return self._segment.inputs

    async def answer(
        self,
        exchange: Exchange,
        tensors: Mapping[str, Array],
        commitments: Mapping[str, Digest],
        keys: Callable[[], Keys],
        owner: bytes = PLAIN,
    ) -> Answer:
        """Run the segment on admitted tensors and prepare the signed answer.

        Args:
            exchange: Admitted.
            tensors: Of the promised names, dtypes and shapes.
            commitments: Of those tensors.
            keys: Returns what to sign with, or refuses; asked after the run.
            owner: Id of the session that asks: an answer that is committed to is
                revealed to no other.

        Returns:
            The answer; where the exchange asks for a commitment, that alone.

        Raises:
            SecureError: Values that the plan refuses, the run failed, or there is no
                room for an answer to be revealed later.
        """
        if exchange.commit:
            self._room().require_room()
        started_at = format_time(self._clock())
        require_values(tensors, self._segment.inputs)
        outputs = await self._timed_run(tensors)
        require(outputs, self._segment.outputs)
        outgoing = Outgoing.of(outputs)
        signing = keys()

        def sign(made: Mapping[str, Digest]) -> Envelope:
            """Return the signed statement over these outputs."""
            return self._statement(exchange, commitments, made, started_at, signing)

        salted = TensorCommitments(
            outgoing.layout, exchange.output_salts, exchange.scheme
        )
        if exchange.commit:
            made = await commit_outputs(outgoing, salted)
            opening = Opening(
                nonce=secrets.token_bytes(OPENING_BYTES), statement=sign(made).to_json()
            )
            held = Held(
                exchange=exchange, outgoing=outgoing, opening=opening, keys=keys
            )
            self._room().hold(owner, held)
            return self._commitment(exchange, made, opening.nonce, signing)
        return stated_answer(outgoing, salted, sign)

    async def _timed_run(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        loop_time = time.perf_counter()
        if self._run_seconds < _INLINE_SECONDS:
            outputs = self._run(tensors)
        else:
            outputs = await anyio.to_thread.run_sync(self._run, tensors)
        self._run_seconds += 0.1 * (time.perf_counter() - loop_time - self._run_seconds)
        return outputs

    def _statement(
        self,
        exchange: Exchange,
        inputs: Mapping[str, Digest],
        outputs: Mapping[str, Digest],
        started_at: str,
        keys: Keys,
    ) -> Envelope:
        statement = Statement(
            request_id=exchange.request_id,
            nonce=exchange.nonce,
            plan_digest=self._plan_digest,
            infer_index=exchange.infer_index,
            exchange_id=exchange.exchange_id,
            segment=self._segment.identity,
            key_document=keys.digest,
            inputs=inputs,
            outputs=outputs,
            started_at=started_at,
            ended_at=format_time(self._clock()),
        )
        return sign_statement(keys.signing, statement)

    def _room(self) -> HeldAnswers:
        if self._held is None:
            raise ConfigurationError(
                "exchange: asks for a commitment; no scenario of this deployment does.",
                remedy="Set commit_reveal = true in the scenario, on all sides.",
            )
        return self._held

    def _commitment(
        self,
        exchange: Exchange,
        outputs: Mapping[str, Digest],
        nonce: bytes,
        keys: Keys,
    ) -> Answer:
        task, replica = exchange.task, keys.document.service
        commitment = Commitment(
            task=task,
            key_document=keys.digest,
            commitment=commit_answer(task, replica, outputs, nonce),
        )
        return committed_answer(sign_commitment(keys.signing, commitment))

    def reveal(
        self, exchange_id: str, *, owner: bytes = PLAIN, request_id: str | None = None
    ) -> Answer:
        """Return an answer that was committed to: tensors, statement, opening.

        Args:
            exchange_id: Of the exchange that was answered with a commitment.
            owner: Id of the session that asks, or ``PLAIN``.
            request_id: That the reveal was sealed under; None where it was not.

        Raises:
            VerificationError: None is held for that session, or for that request.
            UnavailableError: Evidence aged out meanwhile.
            ConfigurationError: No scenario of the deployment asks for commitments.
        """
        held = self._room().take(owner, exchange_id)
        if request_id not in (None, held.exchange.request_id):
            raise VerificationError(
                f"reveal request_id: got {request_id}, want that of the exchange"
            )
        held.keys()
        return revealed_answer(held.outgoing, held.opening)
