"""A runner: one segment, one process, a signed statement per exchange.

What it does to an exchange, in order:

    1. plan and segment are those it serves, salts are there for each of its tensors
    2. inputs have the promised names, dtypes, shapes; no NaN or infinity
    3. the segment runs
    4. outputs are what the plan promises
    5. a statement binds request, exchange, segment, inputs and outputs to its keys
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import anyio.to_thread

from bentoml_secure.digest import TENSOR, Digest
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)
from bentoml_secure.serving.exchange import CHUNK_BYTES, LENGTH, Exchange, Outgoing
from bentoml_secure.session.identity import Identity, Keys
from bentoml_secure.session.keys import Session
from bentoml_secure.session.responders import Responder
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
SignOutputs = Callable[[Mapping[str, Digest]], bytes]

# A thread costs about 0.1 ms; below this a run is cheaper on the event loop.
_INLINE_SECONDS = 1e-3


@dataclass(frozen=True, slots=True)
class Answer:
    """A run's outputs, ready to be sent once.

    Attributes:
        lengths: Of the pieces, known before they are made.
        pieces: The body; commitments are made while it goes out.
    """

    lengths: tuple[int, ...]
    pieces: Iterator[bytes | memoryview]

    @property
    def content_length(self) -> int:
        """Bytes of the whole body."""
        return sum(self.lengths)


def _whole(
    outgoing: Outgoing, commitments: TensorCommitments, sign: SignOutputs
) -> Answer:
    tensors = b"".join([outgoing.layout.header, *outgoing.committed_data(commitments)])
    statement = sign(commitments.result())
    body = b"".join([LENGTH.pack(len(statement)), tensors, statement])
    return Answer((len(body),), iter((body,)))


def _streamed(
    outgoing: Outgoing, commitments: TensorCommitments, sign: SignOutputs
) -> Answer:
    # The length goes out before the commitments exist. Every field of a statement
    # has a fixed width, so one over placeholders has the length of the real one.
    placeholder = Digest(f"{TENSOR}:{'0' * 64}")
    entries = outgoing.layout.entries
    statement_bytes = len(sign({entry.name: placeholder for entry in entries}))

    def pieces() -> Iterator[bytes | memoryview]:
        yield LENGTH.pack(statement_bytes) + outgoing.layout.header
        yield from outgoing.committed_data(commitments)
        yield sign(commitments.result())

    head = LENGTH.size + len(outgoing.layout.header)
    return Answer((head, *outgoing.data_lengths(), statement_bytes), pieces())


class RunnerCore:
    """Runs one segment and signs for it. Knows nothing of HTTP.

    Args:
        segment: The plan's entry.
        plan_digest: Of the whole plan.
        run: From input to output tensors by name; raises SecureError.
        identity: The process's keys and attester.
        responder: Its sessions.
        allows_plain: Whether a scenario of the deployment lets exchanges be unsealed.
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
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.identity = identity
        self.responder = responder
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
    ) -> Answer:
        """Run the segment on admitted tensors and prepare the signed answer.

        Args:
            exchange: Admitted.
            tensors: Of the promised names, dtypes and shapes.
            commitments: Of those tensors.
            keys: Returns what to sign with, or refuses; asked after the run.

        Raises:
            SecureError: Values that the plan refuses, or the run failed.
        """
        started_at = format_time(self._clock())
        require_values(tensors, self._segment.inputs)
        outputs = await self._timed_run(tensors)
        require(outputs, self._segment.outputs)
        outgoing = Outgoing.of(outputs)
        signing = keys()

        def sign(made: Mapping[str, Digest]) -> bytes:
            """Return the signed statement over these outputs."""
            return self._statement(exchange, commitments, made, started_at, signing)

        prepare = _whole if outgoing.total_bytes <= CHUNK_BYTES else _streamed
        salted = TensorCommitments(outgoing.layout, exchange.output_salts)
        return prepare(outgoing, salted, sign)

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
    ) -> bytes:
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
        envelope = sign_statement(keys.signing, statement)
        return json.dumps(envelope.to_json(), separators=(",", ":")).encode()
