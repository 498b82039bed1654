"""Sealed answers that are not what an honest replica sealed for this exchange.

The replica has the session's keys, as a runner has whose inside was broken; and some
of these a stranger on the wire can send as well.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Mapping

from bentoml_secure.session.bodies import ANSWER_HEAD_BYTES
from bentoml_secure.session.keys import RESPONDER_NONCE_BYTES
from bentoml_secure.session.records import seal
from bentoml_secure.testing.rogue.replica import Turn

Record = Callable[[Turn], bytes]

_LENGTH = struct.Struct(">I")


def _flipped(turn: Turn) -> bytes:
    sealed = bytearray(turn.sealed())
    sealed[-20] ^= 1
    return bytes(sealed)


def _replayed(turn: Turn) -> bytes:
    answered = turn.replica.answered
    return turn.sealed() if answered is None else answered.sealed


def _unsealed(turn: Turn) -> bytes:
    return turn.body()


def _other_status(turn: Turn) -> bytes:
    return turn.sealed(status=500)


def _under(
    key: Callable[[Turn, bytes], bytes] | None = None,
    *,
    operation: str | None = None,
    request_id: bytes | None = None,
    direction: str = "response",
) -> Record:
    """Seal under another key, or as another answer."""

    def record(turn: Turn) -> bytes:
        answering, body = turn.answering, turn.body()
        session, nonce = (
            answering.served.session,
            secrets.token_bytes(RESPONDER_NONCE_BYTES),
        )
        derived = session.secrets.response_key(answering.exchange_id, nonce)
        context = session.context(
            direction,
            operation=operation or answering.operation,
            request_id=request_id or answering.request_id,
            status=200,
        )
        made = seal(derived if key is None else key(turn, nonce), context, (body,))
        return nonce + len(body).to_bytes(8, "big") + b"".join(made)

    return record


def _request_key(turn: Turn, nonce: bytes) -> bytes:
    answering = turn.answering
    return answering.served.session.secrets.request_key(answering.exchange_id)


def _other_exchange_key(turn: Turn, nonce: bytes) -> bytes:
    return turn.answering.served.session.secrets.response_key(bytes(16), nonce)


def _chunks(change: Callable[[list[bytes]], list[bytes]]) -> Record:
    """Change the order or number of an honest answer's chunks of one byte or more."""

    def record(turn: Turn) -> bytes:
        body, answering = turn.body(), turn.answering
        half = len(body) // 2
        made = answering.seal(200, (body[:half], body[half:]), (half, len(body) - half))
        sealed = b"".join(made.pieces)
        head, rest = sealed[:ANSWER_HEAD_BYTES], sealed[ANSWER_HEAD_BYTES:]
        chunks = []
        while rest:
            end = _LENGTH.size + _LENGTH.unpack_from(rest)[0]
            chunks.append(rest[:end])
            rest = rest[end:]
        changed = b"".join(change(chunks))
        # No more is announced than comes: what is told apart is told by the seal.
        announced = min(len(body), len(changed))
        return head[:-8] + announced.to_bytes(8, "big") + changed

    return record


def _message_length(change: Callable[[int], int]) -> Record:
    def record(turn: Turn) -> bytes:
        sealed, at = turn.sealed(), RESPONDER_NONCE_BYTES
        length = int.from_bytes(sealed[at : at + 8], "big")
        return sealed[:at] + change(length).to_bytes(8, "big") + sealed[at + 8 :]

    return record


def _chunk_length(length: int) -> Record:
    def record(turn: Turn) -> bytes:
        sealed, at = turn.sealed(), ANSWER_HEAD_BYTES
        return sealed[:at] + length.to_bytes(4, "big") + sealed[at + 4 :]

    return record


RECORDS: Mapping[str, Record] = {
    "record-flipped": _flipped,
    "record-replayed": _replayed,
    "record-unsealed": _unsealed,
    "record-of-another-status": _other_status,
    "record-of-another-operation": _under(operation="release"),
    "record-of-another-request": _under(request_id=bytes(16)),
    "record-reflected": _under(_request_key, direction="request"),
    "record-under-the-request-key": _under(_request_key),
    "record-of-another-exchange": _under(_other_exchange_key),
    "record-reordered": _chunks(lambda chunks: chunks[::-1]),
    "record-truncated": _chunks(lambda chunks: chunks[:1]),
    "record-doubled": _chunks(lambda chunks: [chunks[0], *chunks]),
    "record-appended": _chunks(lambda chunks: [*chunks, chunks[-1]]),
    "record-empty": _chunks(lambda chunks: []),
    "message-length-huge": _message_length(lambda _: (1 << 64) - 1),
    "message-length-long": _message_length(lambda length: length + 1),
    "message-length-short": _message_length(lambda length: length - 1),
    "chunk-length-huge": _chunk_length(0xFFFFFFFF),
    "chunk-length-zero": _chunk_length(0),
}
