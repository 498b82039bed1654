"""Sealed HTTP bodies: which session and exchange, then the message in chunks.

    request   session id (16) || exchange id (16) || request id (16) ||
              u64 big-endian length of the message || chunks
    answer    responder nonce (16) || u64 length of the message || chunks

The lengths are checked against what opens, and bounded by the body's own length, so
that a reader of the message knows its size before a byte of it arrives.
"""

from __future__ import annotations

import secrets
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.session.keys import (
    EXCHANGE_ID_BYTES,
    RESPONDER_NONCE_BYTES,
    Session,
)
from bentoml_secure.session.records import (
    CHUNK_BYTES,
    CHUNK_OVERHEAD,
    MAX_ODD_CHUNKS,
    Opener,
    Piece,
    seal_views,
    sealed_length,
)
from bentoml_secure.session.responders import Responder, Served

SEALED_TYPE = "application/vnd.bentoml-secure.sealed.v1"
_REQUEST = struct.Struct(">16s16s16sQ")
_ANSWER = struct.Struct(">16sQ")
REQUEST_HEAD_BYTES = _REQUEST.size
ANSWER_HEAD_BYTES = _ANSWER.size


def sealed_cap(message_bytes: int) -> int:
    """Return the longest sealed body of a message of at most so many bytes.

    Senders cut messages where tensors begin and end: for each of a few hundred of
    those there may be a chunk beside the full ones.
    """
    chunks = message_bytes // CHUNK_BYTES + MAX_ODD_CHUNKS
    return REQUEST_HEAD_BYTES + message_bytes + chunks * CHUNK_OVERHEAD


def chunked(piece: Piece) -> Iterator[Piece]:
    """Yield a piece as views of at most a chunk each; a small one as it is."""
    if len(piece) <= CHUNK_BYTES:
        yield piece
        return
    view = memoryview(piece)
    for begin in range(0, len(view), CHUNK_BYTES):
        yield view[begin : begin + CHUNK_BYTES]


def _chunk_lengths(lengths: Sequence[int]) -> Iterator[int]:
    for length in lengths:
        while length > CHUNK_BYTES:
            yield CHUNK_BYTES
            length -= CHUNK_BYTES
        if length:
            yield length


@dataclass(frozen=True, slots=True)
class SealedBody:
    """A body ready to be sent once: sealed while it goes out.

    Attributes:
        length: Of the whole body.
        views: Of the body, each good until the next is asked for: for a writer that
            is done with one then.
    """

    length: int
    views: Iterator[memoryview]

    @property
    def pieces(self) -> Iterator[bytes]:
        """The same, for a writer that keeps them."""
        return map(bytes, self.views)


def _sealed_body(
    head: bytes, key: bytes, context: bytes, pieces: Iterable[Piece], lengths: list[int]
) -> SealedBody:
    if len(lengths) > sum(lengths) // CHUNK_BYTES + MAX_ODD_CHUNKS:
        raise ConfigurationError(
            f"a message to seal: got {len(lengths)} pieces, want at most"
            f" {MAX_ODD_CHUNKS} beside full ones.",
            remedy="Join small pieces first.",
        )
    chunks = (chunk for piece in pieces for chunk in chunked(piece))

    # One piece with its first chunk: two writes cost a small body more.
    views = seal_views(key, context, chunks, head=head)
    return SealedBody(len(head) + sealed_length(lengths), views)


class Feed(Protocol):
    """Takes in a message as its bytes become known."""

    def feed(self, data: memoryview) -> None:
        """Take in the next bytes; the view is good during the call only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedCall:
    """One exchange as its caller sees it.

    Attributes:
        session: With the responder.
        operation: What is asked; both ends know it from the path.
        exchange_id: 16 random bytes, new for every attempt.
        request_id: The request's 16 bytes; the exchange's where it has none.
    """

    session: Session
    operation: str
    exchange_id: bytes
    request_id: bytes
    _sealed: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    @classmethod
    def begin(
        cls, session: Session, operation: str, request_id: bytes | None = None
    ) -> SealedCall:
        """Return a new exchange, under an id of its own."""
        exchange_id = secrets.token_bytes(EXCHANGE_ID_BYTES)
        return cls(
            session=session,
            operation=operation,
            exchange_id=exchange_id,
            request_id=exchange_id if request_id is None else request_id,
        )

    def seal(self, pieces: Iterable[Piece], lengths: Sequence[int]) -> SealedBody:
        """Return the request's body.

        Args:
            pieces: Of the message.
            lengths: Of those pieces.

        Raises:
            ConfigurationError: One was made before: a key seals one message only.
        """
        if not self._sealed.acquire(blocking=False):
            raise ConfigurationError(
                "a sealed exchange: its request was made already.",
                remedy="Try again under a new exchange id.",
            )
        session = self.session
        head = _REQUEST.pack(
            session.secrets.session_id, self.exchange_id, self.request_id, sum(lengths)
        )
        return _sealed_body(
            head,
            session.secrets.request_key(self.exchange_id),
            session.context(
                "request", operation=self.operation, request_id=self.request_id
            ),
            pieces,
            list(_chunk_lengths(lengths)),
        )

    def open(
        self, status: int, length: int, begin: Callable[[int], Feed]
    ) -> AnswerOpener:
        """Return what takes in the answer's body.

        Args:
            status: HTTP's, which the answer binds.
            length: Of the body, announced and bounded by the caller.
            begin: From the message's length to what it is fed to.
        """
        return AnswerOpener(self, status, length, begin)


class AnswerOpener:
    """Opens the answer to a call as its bytes arrive."""

    def __init__(
        self, call: SealedCall, status: int, length: int, begin: Callable[[int], Feed]
    ) -> None:
        self._call = call
        self._status = status
        self._length = length
        self._head = bytearray()
        self._opener: Opener | None = None
        self._message = _Message(begin)

    def feed(self, data: Piece) -> None:
        """Take in the next bytes.

        Raises:
            SecureError: They are not authentic, break a limit, or are refused by what
                the message is fed to.
        """
        piece = memoryview(data)
        if self._opener is None:
            missing = ANSWER_HEAD_BYTES - len(self._head)
            self._head += piece[:missing]
            piece = piece[missing:]
            if len(self._head) < ANSWER_HEAD_BYTES:
                return
            self._opener = self._open_under(*_ANSWER.unpack(self._head))
        self._opener.feed(piece)

    def _open_under(self, nonce: bytes, message_length: int) -> Opener:
        call, length = self._call, self._length - ANSWER_HEAD_BYTES
        self._message.begin(message_length, length)
        return Opener(
            call.session.secrets.response_key(call.exchange_id, nonce),
            call.session.context(
                "response",
                operation=call.operation,
                request_id=call.request_id,
                status=self._status,
            ),
            length,
            self._message.feed,
        )

    def finish(self) -> None:
        """Require the whole message.

        Raises:
            MalformedInputError: It ended early.
        """
        if self._opener is None:
            raise MalformedInputError("sealed message: it ended early")
        self._opener.finish()
        self._message.finish()


class _Message:
    """Counts a message's bytes against what its head announced."""

    def __init__(self, begin: Callable[[int], Feed]) -> None:
        self._begin: Callable[[int], Feed] | None = begin
        self._missing = 0
        self._target: Feed | None = None

    def begin(self, length: int, most: int) -> None:
        # Let go at once: it is a method of who owns this, most often, and whatever
        # refers to itself keeps its tensors until the collector comes by.
        begin, self._begin = self._begin, None
        if begin is None:
            raise MalformedInputError("sealed message: refused already")
        if length > most:
            raise MalformedInputError(
                f"sealed message: announces {length} bytes in a body of {most}"
            )
        self._missing = length
        self._target = begin(length)

    def feed(self, data: memoryview) -> None:
        self._missing -= len(data)
        if self._missing < 0 or self._target is None:
            raise MalformedInputError("sealed message: longer than it announces")
        self._target.feed(data)

    def finish(self) -> None:
        if self._missing:
            raise MalformedInputError("sealed message: shorter than it announces")


class RequestOpener:
    """Opens a request's body as its bytes arrive, for a responder.

    The exchange id is used up as soon as the first chunk is authentic: a stranger's
    bytes cost no id, and a replay gets no further.

    Args:
        responder: Holds the sessions.
        operation: What the path asks.
        length: Of the body, announced and bounded by the caller.
        begin: From the message's length to what it is fed to; called before any byte
            of it was opened, so it must not act.
    """

    def __init__(
        self,
        responder: Responder,
        operation: str,
        length: int,
        begin: Callable[[int], Feed],
    ) -> None:
        self._responder = responder
        self._operation = operation
        self._length = length
        self._head = bytearray()
        self._opener: Opener | None = None
        self._message = _Message(begin)
        self._admitted: _Admitted | None = None

    def feed(self, data: Piece) -> None:
        """Take in the next bytes.

        Raises:
            UnknownSessionError: No such session is held, or it has ended.
            SecureError: They are not authentic, were sent before, break a limit, or
                are refused by what the message is fed to.
        """
        piece = memoryview(data)
        if self._opener is None:
            missing = REQUEST_HEAD_BYTES - len(self._head)
            self._head += piece[:missing]
            piece = piece[missing:]
            if len(self._head) < REQUEST_HEAD_BYTES:
                return
            self._opener = self._open_under(*_REQUEST.unpack(self._head))
        self._opener.feed(piece)

    def _open_under(
        self,
        session_id: bytes,
        exchange_id: bytes,
        request_id: bytes,
        message_length: int,
    ) -> Opener:
        served = self._responder.find(session_id)
        session, length = served.session, self._length - REQUEST_HEAD_BYTES
        self._message.begin(message_length, length)
        answering = Answering(served, self._operation, exchange_id, request_id)
        self._admitted = _Admitted(answering, self._message)
        return Opener(
            session.secrets.request_key(exchange_id),
            session.context(
                "request", operation=self._operation, request_id=request_id
            ),
            length,
            self._admitted.feed,
        )

    @property
    def answering(self) -> Answering | None:
        """What seals the answer, once the caller has shown that it has the key."""
        admitted = self._admitted
        return admitted.answering if admitted is not None and admitted.used else None

    def finish(self) -> Answering:
        """Require the whole message.

        Raises:
            MalformedInputError: It ended early.
        """
        answering = self.answering
        if self._opener is None or answering is None:
            raise MalformedInputError("sealed message: it ended early")
        self._opener.finish()
        self._message.finish()
        return answering


class _Admitted:
    """Uses an exchange's id up before the first byte of its message goes on."""

    def __init__(self, answering: Answering, message: _Message) -> None:
        self.answering = answering
        self.used = False
        self._message = message

    def feed(self, data: memoryview) -> None:
        if not self.used:
            self.answering.served.use(self.answering.exchange_id)
            self.used = True
        self._message.feed(data)


@dataclass(frozen=True, slots=True)
class Answering:
    """One exchange as its responder sees it, once a request was opened."""

    served: Served
    operation: str
    exchange_id: bytes
    request_id: bytes

    def seal(
        self, status: int, pieces: Iterable[Piece], lengths: Sequence[int]
    ) -> SealedBody:
        """Return the answer's body, under a nonce of its own.

        Args:
            status: HTTP's.
            pieces: Of the message.
            lengths: Of those pieces.
        """
        session = self.served.session
        nonce = secrets.token_bytes(RESPONDER_NONCE_BYTES)
        return _sealed_body(
            _ANSWER.pack(nonce, sum(lengths)),
            session.secrets.response_key(self.exchange_id, nonce),
            session.context(
                "response",
                operation=self.operation,
                request_id=self.request_id,
                status=status,
            ),
            pieces,
            list(_chunk_lengths(lengths)),
        )


class Whole:
    """Collects a message whole: for those that are small, or are bytes anyway."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._data = bytearray()

    def feed(self, data: memoryview) -> None:
        """Take in the next bytes."""
        self._data += data

    def result(self) -> bytes:
        """Return all of them."""
        return bytes(self._data)
