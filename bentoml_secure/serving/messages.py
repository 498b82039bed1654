"""What an entry sends to a runner in one exchange, and what it expects back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bentoml_secure.digest import parse_json
from bentoml_secure.serving.exchange import (
    CHUNK_BYTES,
    COMMITTED_TYPE,
    MAX_COMMITTED_BYTES,
    REQUEST_TYPE,
    RESPONSE_TYPE,
    REVEAL_TYPE,
    Exchange,
    Outgoing,
    encode_reveal,
)
from bentoml_secure.serving.incoming import Expected
from bentoml_secure.serving.readers import ResponseReader
from bentoml_secure.serving.runner_app import PREFIX
from bentoml_secure.serving.sealed import INFER, REVEAL
from bentoml_secure.session.bodies import SealedCall, Whole
from bentoml_secure.session.keys import Session
from bentoml_secure.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent, to which path.

    Attributes:
        path: Of the runner's door.
        content_type: Where it is not sealed.
        operation: As sessions bind it, where it is.
        pieces: Of the body.
        lengths: Of those pieces.
    """

    path: str
    content_type: str
    operation: str
    pieces: Iterator[bytes | memoryview]
    lengths: tuple[int, ...]

    @classmethod
    def infer(cls, exchange: Exchange, outgoing: Outgoing) -> Message:
        """Return what sends an exchange's tensors."""
        head = exchange.encode() + outgoing.layout.header
        lengths = (len(head), *outgoing.data_lengths())
        pieces: Iterator[bytes | memoryview] = chain((head,), outgoing.data())
        if sum(lengths) <= CHUNK_BYTES:
            head = b"".join(pieces)
            lengths, pieces = (len(head),), iter((head,))
        return cls(f"{PREFIX}/infer", REQUEST_TYPE, INFER, pieces, lengths)

    @classmethod
    def reveal(cls, exchange: Exchange) -> Message:
        """Return what asks for the answer that an exchange was committed to with."""
        asked = encode_reveal(exchange.exchange_id)
        path = f"{PREFIX}/reveal"
        return cls(path, REVEAL_TYPE, REVEAL, iter((asked,)), (len(asked),))

    def call(self, exchange: Exchange, session: Session) -> SealedCall:
        """Return what seals it in a session."""
        request_id = bytes.fromhex(exchange.request_id)
        if self.operation == REVEAL:
            # Under an id of its own: the exchange's has sealed a message already.
            return SealedCall.begin(session, REVEAL, request_id)
        # Under the ids that the exchange names inside: the runner compares them.
        return SealedCall(
            session=session,
            operation=self.operation,
            exchange_id=bytes.fromhex(exchange.exchange_id),
            request_id=request_id,
        )


def expected_response(
    exchange: Exchange, specs: Sequence[TensorSpec], max_bytes: int
) -> Expected[ResponseReader]:
    """Return what an exchange is answered with, and what a reveal is.

    Args:
        exchange: That was sent.
        specs: Of its outputs.
        max_bytes: Cap on the answer.
    """
    return Expected(
        RESPONSE_TYPE,
        max_bytes,
        lambda length: ResponseReader(
            length, specs, exchange.output_salts, exchange.scheme
        ),
    )


EXPECTED_COMMITMENT = Expected(COMMITTED_TYPE, MAX_COMMITTED_BYTES, Whole)
"""What an exchange is answered with where the answer is committed to first."""


def parse_commitment(said: Whole) -> Any:
    """Return the JSON of a commitment's envelope.

    Raises:
        MalformedInputError: Not JSON, or too long.
    """
    return parse_json(said.result(), what="commitment", max_bytes=MAX_COMMITTED_BYTES)
