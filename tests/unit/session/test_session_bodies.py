"""Sealed bodies between two ends of a session, and what cannot be moved where."""

from __future__ import annotations

import gc
import struct
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    SecureError,
    VerificationError,
)
from bentoml_secure.session import bodies
from bentoml_secure.session.bodies import (
    ANSWER_HEAD_BYTES,
    REQUEST_HEAD_BYTES,
    Answering,
    RequestOpener,
    SealedBody,
    SealedCall,
    Whole,
    sealed_cap,
)
from bentoml_secure.session.keys import Secrets, Session
from bentoml_secure.session.records import CHUNK_BYTES, MAX_ODD_CHUNKS
from bentoml_secure.session.responders import Responder, Served, UnknownSessionError
from tests.unit.session.session_parts import OTHER_SEGMENT, Ground

REQUEST_ID = b"r" * 16


@pytest.fixture
def responder(ground: Ground) -> Responder:
    return ground.responder(ground.identity())


@pytest.fixture
def session(ground: Ground, responder: Responder) -> Session:
    return ground.shake(ground.entry(), responder)[0]


def call(session: Session, operation: str = "infer") -> SealedCall:
    return SealedCall.begin(session, operation, REQUEST_ID)


def joined(body: SealedBody) -> bytes:
    data = b"".join(body.pieces)
    assert len(data) == body.length
    return data


def sealed(made: SealedCall, message: bytes = b"question") -> bytes:
    return joined(made.seal([message], [len(message)]))


def opened(
    responder: Responder, data: bytes, operation: str = "infer"
) -> tuple[Answering, bytes]:
    """Return what a responder reads in a request's body."""
    seen: list[Whole] = []

    def begin(length: int) -> Whole:
        seen.append(Whole(length))
        return seen[0]

    opener = RequestOpener(responder, operation, len(data), begin)
    opener.feed(data)
    answering = opener.finish()
    return answering, seen[0].result()


def answered(made: SealedCall, data: bytes, status: int = 200) -> bytes:
    """Return what a caller reads in an answer's body."""
    seen: list[Whole] = []

    def begin(length: int) -> Whole:
        seen.append(Whole(length))
        return seen[0]

    opener = made.open(status, len(data), begin)
    opener.feed(data)
    opener.finish()
    return seen[0].result()


def answer(
    answering: Answering, message: bytes = b"answer", status: int = 200
) -> bytes:
    return joined(answering.seal(status, [message], [len(message)]))


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
def test_a_question_is_answered(
    session: Session, responder: Responder, length: int
) -> None:
    made, message = call(session), bytes(length)
    answering, read = opened(responder, sealed(made, message))
    assert read == message
    assert answering.exchange_id == made.exchange_id
    assert answering.request_id == REQUEST_ID
    for status in (200, 429):
        reply = answer(answering, message, status)
        assert answered(made, reply, status) == message


def test_the_heads_are_those_of_the_document(
    session: Session, responder: Responder
) -> None:
    made = call(session)
    data = sealed(made, b"12345")
    assert data[:REQUEST_HEAD_BYTES] == (
        session.secrets.session_id
        + made.exchange_id
        + REQUEST_ID
        + (5).to_bytes(8, "big")
    )
    reply = answer(opened(responder, data)[0], b"123")
    assert reply[16:ANSWER_HEAD_BYTES] == (3).to_bytes(8, "big")


def test_a_call_without_a_request_id_goes_by_its_exchange(session: Session) -> None:
    made = SealedCall.begin(session, "POST /predict")
    assert made.request_id == made.exchange_id


def test_a_key_seals_one_request(session: Session) -> None:
    made = call(session)
    made.seal([b"one"], [3])
    with pytest.raises(ConfigurationError, match="its request was made already"):
        made.seal([b"two"], [3])


@pytest.mark.parametrize("exchange_id", [b"", b"e" * 15, b"e" * 17])
def test_an_exchange_id_has_one_length(session: Session, exchange_id: bytes) -> None:
    made = SealedCall(
        session=session,
        operation="infer",
        exchange_id=exchange_id,
        request_id=REQUEST_ID,
    )
    with pytest.raises(MalformedInputError, match="exchange id: got"):
        made.seal([b"x"], [1])


def test_every_answer_has_a_nonce_of_its_own(
    session: Session, responder: Responder
) -> None:
    answering, _ = opened(responder, sealed(call(session)))
    one, other = answer(answering), answer(answering)
    assert one[:16] != other[:16]
    assert one[ANSWER_HEAD_BYTES:] != other[ANSWER_HEAD_BYTES:]


def test_an_exchange_is_good_once(session: Session, responder: Responder) -> None:
    data = sealed(call(session))
    opened(responder, data)
    with pytest.raises(VerificationError, match="used before"):
        opened(responder, data)


def test_an_id_is_used_up_by_what_was_cut_off_too(
    session: Session, responder: Responder
) -> None:
    data = sealed(call(session), bytes(CHUNK_BYTES + 1))
    opener = RequestOpener(responder, "infer", len(data), Whole)
    opener.feed(data[:-1])
    with pytest.raises(MalformedInputError, match="ended early"):
        opener.finish()
    with pytest.raises(VerificationError, match="used before"):
        opened(responder, data)


def test_bytes_that_do_not_open_use_no_id_up(
    session: Session, responder: Responder
) -> None:
    data = sealed(call(session))
    with pytest.raises(VerificationError, match="not authentic"):
        opened(responder, data[:-1] + bytes([data[-1] ^ 1]))
    assert opened(responder, data)[1] == b"question"


def test_nothing_is_answered_before_something_opened(
    session: Session, responder: Responder
) -> None:
    data = sealed(call(session))
    opener = RequestOpener(responder, "infer", len(data), Whole)
    opener.feed(data[:-1])
    assert opener.answering is None
    opener.feed(data[-1:])
    assert opener.answering is not None


# Moving records. Each returns what the wrong end reads, or raises.

Move = Callable[[Ground, Responder, Session], object]


def _with(head: dict[int, bytes], data: bytes) -> bytes:
    made = bytearray(data)
    for begin, value in head.items():
        made[begin : begin + len(value)] = value
    return bytes(made)


def to_another_operation(_: Ground, at: Responder, session: Session) -> object:
    return opened(at, sealed(call(session, "infer")), "release")


def to_another_request_id(_: Ground, at: Responder, session: Session) -> object:
    return opened(at, _with({32: b"R" * 16}, sealed(call(session))))


def to_another_exchange(_: Ground, at: Responder, session: Session) -> object:
    return opened(at, _with({16: b"E" * 16}, sealed(call(session))))


def to_another_session(ground: Ground, at: Responder, session: Session) -> object:
    other, _ = ground.shake(ground.entry(), at)
    return opened(at, _with({0: other.secrets.session_id}, sealed(call(session))))


def to_another_status(_: Ground, at: Responder, session: Session) -> object:
    made = call(session)
    refused = answer(opened(at, sealed(made))[0], b"{}", 429)
    return answered(made, refused, 200)


def to_another_call(_: Ground, at: Responder, session: Session) -> object:
    one, other = call(session), call(session)
    reply = answer(opened(at, sealed(one))[0])
    opened(at, sealed(other))
    return answered(other, reply)


def to_another_nonce(_: Ground, at: Responder, session: Session) -> object:
    made = call(session)
    reply = answer(opened(at, sealed(made))[0])
    return answered(made, _with({0: bytes(16)}, reply))


def to_an_answer(_: Ground, at: Responder, session: Session) -> object:
    """The caller's own request comes back as the answer."""
    made = call(session)
    data = sealed(made)
    return answered(made, bytes(16) + data[REQUEST_HEAD_BYTES - 8 :])


def to_a_request(_: Ground, at: Responder, session: Session) -> object:
    """The responder's answer comes back as a request."""
    made = call(session)
    reply = answer(opened(at, sealed(made))[0])
    head = session.secrets.session_id + b"E" * 16 + REQUEST_ID
    return opened(at, head + reply[16:])


def of_another_segment(_: Ground, at: Responder, session: Session) -> object:
    """What was sealed for one segment, under the keys of another's session."""
    document = replace(session.responder, segment=OTHER_SEGMENT)
    return opened(at, sealed(call(replace(session, responder=document))))


def of_another_service(_: Ground, at: Responder, session: Session) -> object:
    document = replace(session.responder, service="Runner9")
    return opened(at, sealed(call(replace(session, responder=document))))


MOVES: tuple[Move, ...] = (
    to_another_operation,
    to_another_request_id,
    to_another_exchange,
    to_another_session,
    to_another_status,
    to_another_call,
    to_another_nonce,
    to_an_answer,
    to_a_request,
    of_another_segment,
    of_another_service,
)


@pytest.mark.parametrize("move", MOVES)
def test_a_record_opens_nowhere_else(
    ground: Ground, responder: Responder, session: Session, move: Move
) -> None:
    with pytest.raises(VerificationError, match="is not authentic"):
        move(ground, responder, session)


def one_context(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "context", lambda *_, **__: b"")


def one_key(patch: pytest.MonkeyPatch) -> None:
    for name in ("request_key", "response_key"):
        patch.setattr(Secrets, name, lambda secrets, *_: secrets._records)


def one_session(patch: pytest.MonkeyPatch) -> None:
    for name in ("request_key", "response_key"):
        patch.setattr(Secrets, name, lambda *_: bytes(32))


@pytest.mark.parametrize(
    ("move", "undefended"),
    [
        (to_another_operation, [one_context]),
        (to_another_request_id, [one_context]),
        (to_another_status, [one_context]),
        (of_another_segment, [one_context]),
        (of_another_service, [one_context]),
        (to_another_exchange, [one_key]),
        (to_another_call, [one_key]),
        (to_another_nonce, [one_key]),
        (to_another_session, [one_session]),
        (to_an_answer, [one_key, one_context]),
        (to_a_request, [one_key, one_context]),
    ],
)
def test_a_record_opens_where_it_is_not_bound(
    ground: Ground,
    responder: Responder,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    move: Move,
    undefended: list[Callable[[pytest.MonkeyPatch], None]],
) -> None:
    for patch in undefended:
        patch(monkeypatch)
    move(ground, responder, session)


@pytest.mark.parametrize("move", [to_an_answer, to_a_request])
@pytest.mark.parametrize("patch", [one_key, one_context])
def test_either_of_key_and_context_tells_directions_apart(
    ground: Ground,
    responder: Responder,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    move: Move,
    patch: Callable[[pytest.MonkeyPatch], None],
) -> None:
    patch(monkeypatch)
    with pytest.raises(VerificationError, match="is not authentic"):
        move(ground, responder, session)


def test_a_replay_is_run_again_where_ids_are_not_kept(
    session: Session, responder: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Served, "use", lambda *_: None)
    data = sealed(call(session))
    assert opened(responder, data)[1] == opened(responder, data)[1]


# Lengths.


@pytest.mark.parametrize(
    ("more", "says"), [(-5, "longer"), (-1, "longer"), (1, "shorter"), (20, "shorter")]
)
def test_the_announced_length_is_the_messages(
    session: Session, responder: Responder, more: int, says: str
) -> None:
    made = call(session)
    data = sealed(made, b"12345")
    with pytest.raises(MalformedInputError, match=f"{says} than it announces"):
        opened(responder, _with({48: struct.pack(">Q", 5 + more)}, data))
    reply = answer(opened(responder, sealed(again := call(session)))[0], b"12345")
    with pytest.raises(MalformedInputError, match=f"{says} than it announces"):
        answered(again, _with({16: struct.pack(">Q", 5 + more)}, reply))


@pytest.mark.parametrize("announced", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_no_length_beyond_the_body_reaches_a_reader(
    session: Session, responder: Responder, announced: int
) -> None:
    begun: list[int] = []

    def begin(length: int) -> Any:
        begun.append(length)

    data = _with({48: struct.pack(">Q", announced)}, sealed(call(session)))
    opener = RequestOpener(responder, "infer", len(data), begin)
    with pytest.raises(MalformedInputError, match="announces"):
        opener.feed(data)
    with pytest.raises(MalformedInputError, match="announces"):
        call(session).open(200, 100, begin).feed(
            bytes(16) + struct.pack(">Q", announced)
        )
    assert begun == []


def test_bodies_cut_anywhere_are_refused(
    session: Session, responder: Responder
) -> None:
    made = call(session)
    data = sealed(made)
    for end in range(len(data)):
        opener = RequestOpener(responder, "infer", len(data), Whole)
        opener.feed(data[:end])
        with pytest.raises(MalformedInputError, match="ended early"):
            opener.finish()
    reply = answer(opened(responder, data)[0])
    for end in range(len(reply)):
        taken = made.open(200, len(reply), Whole)
        taken.feed(reply[:end])
        with pytest.raises(MalformedInputError, match="ended early"):
            taken.finish()


def test_a_body_fed_byte_by_byte_is_the_same(
    session: Session, responder: Responder
) -> None:
    data = sealed(call(session))
    whole = Whole(8)
    opener = RequestOpener(responder, "infer", len(data), lambda _: whole)
    for at in range(len(data)):
        opener.feed(memoryview(data)[at : at + 1])
    opener.finish()
    assert whole.result() == b"question"


def test_strangers_get_nothing(responder: Responder) -> None:
    with pytest.raises(UnknownSessionError, match="none is held here"):
        opened(responder, bytes(200))


def test_an_ended_session_opens_nothing(
    ground: Ground, session: Session, responder: Responder
) -> None:
    data = sealed(call(session))
    ground.clock.now = session.expires_at
    with pytest.raises(UnknownSessionError, match="ended"):
        opened(responder, data)


def test_what_a_reader_refuses_is_refused_and_sealed(
    session: Session, responder: Responder
) -> None:
    class Refusing:
        def feed(self, data: memoryview) -> None:
            raise MalformedInputError(f"{len(data)} bytes too many")

    made = call(session)
    data = sealed(made)
    opener = RequestOpener(responder, "infer", len(data), lambda _: Refusing())
    with pytest.raises(MalformedInputError, match="8 bytes too many"):
        opener.feed(data)
    assert opener.answering is not None
    refusal = answer(opener.answering, b"{}", 400)
    assert answered(made, refusal, 400) == b"{}"
    with pytest.raises(SecureError, match="ended early"):
        opener.finish()


def test_messages_in_more_pieces_than_may_be_are_not_sent(session: Session) -> None:
    lengths = [1] * (MAX_ODD_CHUNKS + 1)
    with pytest.raises(ConfigurationError, match=f"got {len(lengths)} pieces"):
        call(session).seal([b"x"] * len(lengths), lengths)


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES, 5 * CHUNK_BYTES + 3])
def test_a_sealed_body_is_within_its_cap(session: Session, length: int) -> None:
    odd = [1] * min(length, MAX_ODD_CHUNKS - 1)
    body = call(session).seal([], [*odd, length - len(odd)])
    assert body.length <= sealed_cap(length)
    assert body.length >= bodies.REQUEST_HEAD_BYTES


class Owner:
    """Has an opener that calls it back, as whoever reads a message does."""

    def __init__(self) -> None:
        self.target: Whole | None = None

    def begin(self, length: int) -> Whole:
        self.target = Whole(length)
        return self.target


def test_what_a_message_was_read_into_goes_with_its_reader(
    session: Session, responder: Responder
) -> None:
    # Not when the collector comes by: tensors of many requests would wait for it.
    made = call(session)
    asked, owner = sealed(made), Owner()
    opener = RequestOpener(responder, "infer", len(asked), owner.begin)
    owner.opener = opener  # type: ignore[attr-defined]
    opener.feed(asked)
    said = joined(opener.finish().seal(200, [b"answer"], [6]))
    reader = Owner()
    opened = made.open(200, len(said), reader.begin)
    reader.opener = opened  # type: ignore[attr-defined]
    opened.feed(said)
    opened.finish()
    held: list[weakref.ref[Any]] = [weakref.ref(o) for o in (owner, opener, reader)]
    gc.disable()
    try:
        del owner, opener, reader, opened
        assert [ref() for ref in held] == [None, None, None]
    finally:
        gc.enable()


def test_an_opener_whose_head_was_refused_stays_refused(
    session: Session, responder: Responder
) -> None:
    made = call(session)
    body = bytearray(sealed(made))
    struct.pack_into(">Q", body, REQUEST_HEAD_BYTES - 8, len(body))
    opener = RequestOpener(responder, "infer", len(body), Whole)
    with pytest.raises(MalformedInputError, match="announces"):
        opener.feed(bytes(body))
    with pytest.raises(MalformedInputError, match="refused already"):
        opener.feed(b"more")
