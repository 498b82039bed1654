"""One rogue replica, and one exchange with it as a behaviour sees it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bentoml_secure.attestation.roles import Attester
from bentoml_secure.digest import Digest
from bentoml_secure.serving.asgi import App
from bentoml_secure.serving.exchange import LENGTH, Exchange
from bentoml_secure.serving.readers import RequestReader
from bentoml_secure.serving.runner import RunnerCore, RunSegment
from bentoml_secure.serving.sealed import INFER
from bentoml_secure.session.bodies import SEALED_TYPE, Answering, RequestOpener
from bentoml_secure.signing import SigningKey
from bentoml_secure.statements import Statement, format_time, sign_statement, utc_now
from bentoml_secure.tensors import Array, commit, encode
from bentoml_secure.testing.rogue.wire import Reply, Request

HONEST = "honest"

Restate = Callable[[Statement], Statement]


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer's body as it went out, and what was in it."""

    sealed: bytes
    body: bytes


@dataclass(slots=True, kw_only=True)
class Replica:
    """One replica: what an honest one has, and what it does instead.

    Attributes:
        name: Of its service.
        segment_index: Of its segment.
        core: Real: segment, keys, evidence.
        run: Its segment.
        door: What an honest replica would answer.
        attester: Makes its evidence.
        neighbour: Another replica of the same segment.
        trap_url: Where a redirect leads: nobody should ever come.
        marker: Folder that a pickle of this replica's would make.
        max_message_bytes: The deployment's cap on a message.
        infer: Behaviour towards exchanges, by name.
        attest: Behaviour towards attestation, by name.
        answered: The last honest answer, as it was sealed and inside.
        shown: The last answer that went out, by request id: others may have seen it.
        pledged: The last commitment that went out, by request id.
        pledges: What waits to be revealed, by exchange id, and how that is done.
    """

    name: str
    segment_index: int
    core: RunnerCore
    run: RunSegment
    door: App
    attester: Attester
    trap_url: str
    marker: Path
    max_message_bytes: int
    neighbour: Replica | None = None
    infer: str = HONEST
    attest: str = HONEST
    answered: Answered | None = None
    shown: dict[str, Mapping[str, Array]] = field(default_factory=dict)
    pledged: dict[str, Pledge] = field(default_factory=dict)
    pledges: dict[str, tuple[Pledge, Open]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One exchange: what was asked, and what the segment really makes of it."""

    replica: Replica
    answering: Answering
    exchange: Exchange
    inputs: Mapping[str, Digest]
    outputs: Mapping[str, Array]

    @classmethod
    def of(cls, replica: Replica, request: Request) -> Turn:
        """Open an exchange and run the segment."""
        readers: list[RequestReader] = []

        def begin(length: int) -> RequestReader:
            """Read what is inside as an honest replica does."""
            readers.append(RequestReader(length, replica.core.admit))
            return readers[0]

        opener = RequestOpener(replica.core.responder, INFER, len(request.body), begin)
        opener.feed(request.body)
        answering = opener.finish()
        exchange, tensors, commitments = readers[0].result()
        return cls(
            replica=replica,
            answering=answering,
            exchange=exchange,
            inputs=commitments,
            outputs=replica.run(tensors),
        )

    def sealed(self, body: bytes | None = None, *, status: int = 200) -> bytes:
        """Return an answer's body as an honest replica seals it; honest by default."""
        inside = self.body() if body is None else body
        made = self.answering.seal(status, (inside,), (len(inside),))
        return b"".join(made.pieces)

    def statement(self, outputs: Mapping[str, Array]) -> Statement:
        """Return what an honest replica that made ``outputs`` would state."""
        exchange = self.exchange
        # Tensors that the plan does not know get the salt of one that it does.
        any_salt = next(iter(exchange.output_salts.values()))
        salts = {name: exchange.output_salts.get(name, any_salt) for name in outputs}
        now = format_time(utc_now())
        return Statement(
            request_id=exchange.request_id,
            nonce=exchange.nonce,
            plan_digest=exchange.plan_digest,
            infer_index=exchange.infer_index,
            exchange_id=exchange.exchange_id,
            segment=exchange.segment,
            key_document=self.replica.core.identity.keys.digest,
            inputs=self.inputs,
            outputs=commit(outputs, salts, exchange.scheme),
            started_at=now,
            ended_at=now,
        )

    def signed(
        self,
        outputs: Mapping[str, Array] | None = None,
        *,
        restate: Restate | None = None,
        key: SigningKey | None = None,
        key_id: str | None = None,
    ) -> bytes:
        """Return a statement's bytes.

        Args:
            outputs: What it commits to; the honest ones by default.
            restate: Changes the statement before it is signed.
            key: Signs in place of the replica's.
            key_id: Named in place of the key's own.
        """
        statement = self.statement(self.outputs if outputs is None else outputs)
        if restate is not None:
            statement = restate(statement)
        envelope = sign_statement(
            key or self.replica.core.identity.keys.signing, statement
        )
        if key_id is not None:
            envelope = replace(envelope, key_id=key_id)
        return json.dumps(envelope.to_json()).encode()

    def body(
        self,
        outputs: Mapping[str, Array] | None = None,
        statement: bytes | None = None,
    ) -> bytes:
        """Return an answer's body; honest by default."""
        made = self.outputs if outputs is None else outputs
        return frame(encode(made), statement or self.signed(made))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pledge:
    """A commitment as a replica made it, and what it will be opened with.

    Attributes:
        turn: The exchange.
        outputs: What is shown when it is opened.
        nonce: That opens it.
        commitment: What was signed.
        said: What went out: the envelope's JSON, or not.
    """

    turn: Turn
    outputs: Mapping[str, Array]
    nonce: bytes
    commitment: Digest
    said: bytes


Open = Callable[[Pledge], Awaitable[bytes]]
"""Makes the body that opens a commitment."""


def frame(tensors: bytes, statement: bytes, *, length: int | None = None) -> bytes:
    """Put an answer's body together.

    Args:
        tensors: As tensors-v1, or not.
        statement: As JSON, or not.
        length: What the frame says of the statement's; the truth by default.
    """
    said = len(statement) if length is None else length
    return LENGTH.pack(said) + tensors + statement


def answer_reply(body: bytes) -> Reply:
    """Return an answer as an honest replica sends it."""
    return Reply(
        status=200,
        headers=(
            (b"content-type", SEALED_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
        ),
        body=body,
    )
