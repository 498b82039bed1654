"""What a runner sends back: tensors with their statement, or a commitment alone.

An answer knows the length of each of its pieces before it makes them, so that it can
be sealed and sent as it is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import anyio.to_thread

from bentoml_secure.digest import Digest
from bentoml_secure.serving.exchange import CHUNK_BYTES, LENGTH, Opening, Outgoing
from bentoml_secure.signing import Envelope
from bentoml_secure.tensors import TensorCommitments

SignOutputs = Callable[[Mapping[str, Digest]], Envelope]


@dataclass(frozen=True, slots=True)
class Answer:
    """A body, ready to be sent once.

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


def stated_answer(
    outgoing: Outgoing, commitments: TensorCommitments, sign: SignOutputs
) -> Answer:
    """Return outputs with the statement over them.

    Args:
        outgoing: The outputs.
        commitments: Under the exchange's salts; nothing was committed to yet.
        sign: Returns the signed statement over commitments to the outputs.
    """
    prepare = _whole if outgoing.total_bytes <= CHUNK_BYTES else _streamed
    return prepare(outgoing, commitments, sign)


def _json(envelope: Envelope) -> bytes:
    return json.dumps(envelope.to_json(), separators=(",", ":")).encode()


def _whole(
    outgoing: Outgoing, commitments: TensorCommitments, sign: SignOutputs
) -> Answer:
    tensors = b"".join([outgoing.layout.header, *outgoing.committed_data(commitments)])
    statement = _json(sign(commitments.result()))
    body = b"".join([LENGTH.pack(len(statement)), tensors, statement])
    return Answer((len(body),), iter((body,)))


def _streamed(
    outgoing: Outgoing, commitments: TensorCommitments, sign: SignOutputs
) -> Answer:
    # The length goes out before the commitments exist. Every field of a statement
    # has a fixed width, so one over placeholders has the length of the real one.
    placeholder = Digest(f"{commitments.scheme.tensor}:{'0' * 64}")
    entries = outgoing.layout.entries
    statement_bytes = len(_json(sign({entry.name: placeholder for entry in entries})))

    def pieces() -> Iterator[bytes | memoryview]:
        yield LENGTH.pack(statement_bytes) + outgoing.layout.header
        yield from outgoing.committed_data(commitments)
        yield _json(sign(commitments.result()))

    head = LENGTH.size + len(outgoing.layout.header)
    return Answer((head, *outgoing.data_lengths(), statement_bytes), pieces())


async def commit_outputs(
    outgoing: Outgoing, commitments: TensorCommitments
) -> Mapping[str, Digest]:
    """Return the commitment of each output, by name, before any of it is sent."""

    def commit() -> Mapping[str, Digest]:
        """Take in every piece."""
        for piece in outgoing.data():
            commitments.update(piece)
        return commitments.result()

    # An answer's commitments are made between its pieces; nothing goes out here.
    if outgoing.total_bytes <= CHUNK_BYTES:
        return commit()
    return await anyio.to_thread.run_sync(commit)


def committed_answer(commitment: Envelope) -> Answer:
    """Return a signed commitment, alone."""
    body = _json(commitment)
    return Answer((len(body),), iter((body,)))


def revealed_answer(outgoing: Outgoing, opening: Opening) -> Answer:
    """Return outputs with what opens the commitment to them."""
    said = opening.encode()
    head = LENGTH.pack(len(said)) + outgoing.layout.header
    if outgoing.total_bytes <= CHUNK_BYTES:
        body = b"".join([head, *outgoing.data(), said])
        return Answer((len(body),), iter((body,)))

    def pieces() -> Iterator[bytes | memoryview]:
        yield head
        yield from outgoing.data()
        yield said

    return Answer((len(head), *outgoing.data_lengths(), len(said)), pieces())
