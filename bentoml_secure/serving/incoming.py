"""Bounds what a replica answers by its head, and tells refusals from answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from bentoml_secure.errors import (
    MalformedInputError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.serving.http1 import Head
from bentoml_secure.session.bodies import (
    SEALED_TYPE,
    AnswerOpener,
    Feed,
    SealedCall,
    Whole,
    sealed_cap,
)
from bentoml_secure.session.responders import UNKNOWN_SESSION, UnknownSessionError

MAX_ERROR_BYTES = 8192

_R = TypeVar("_R", bound=Feed)


@dataclass(frozen=True, slots=True)
class Expected(Generic[_R]):
    """An answer as it should come.

    Attributes:
        content_type: Where it is not sealed.
        max_bytes: Cap on the message.
        read: From the message's length to its reader.
    """

    content_type: str
    max_bytes: int
    read: Callable[[int], _R]


class PlainAnswer(Generic[_R]):
    """Takes in an answer that is not sealed.

    Args:
        expected: Its type, cap and reader.
    """

    def __init__(self, expected: Expected[_R]) -> None:
        self._expected = expected
        self._status = 0
        self._reader: _R | None = None
        self._refusal = Whole(0)

    def on_head(self, head: Head) -> Callable[[memoryview], None]:
        """Return what takes in the body.

        Raises:
            MalformedInputError: Another type, or over the cap.
        """
        expected = self._expected
        self._status = head.status
        limit = expected.max_bytes if head.status == 200 else MAX_ERROR_BYTES
        if head.content_length > limit:
            raise MalformedInputError(
                f"answer content-length: got {head.content_length}, want at most "
                f"{limit} bytes"
            )
        if head.status != 200:
            return self._refusal.feed
        if head.content_type != expected.content_type:
            raise MalformedInputError(
                f"answer content-type: got {head.content_type!r:.100}, "
                f"want {expected.content_type}"
            )
        self._reader = expected.read(head.content_length)
        return self._reader.feed

    def result(self) -> _R:
        """Return the reader that took in the body.

        Raises:
            UnknownSessionError: The replica does not hold the session.
            UnavailableError: The replica refused.
        """
        if self._reader is None:
            raise _refusal(self._status, self._refusal.result())
        return self._reader


class SealedAnswer(Generic[_R]):
    """Takes in the answer to a sealed exchange, and opens it.

    Args:
        call: That it answers.
        expected: Cap and reader of the message in it.
    """

    def __init__(self, call: SealedCall, expected: Expected[_R]) -> None:
        self._call = call
        self._expected = expected
        self._status = 0
        self._refusal = Whole(0)
        self._opener: AnswerOpener | None = None
        self._reader: _R | None = None

    def on_head(self, head: Head) -> Callable[[memoryview], None]:
        """Return what takes in the body.

        Raises:
            MalformedInputError: Another type, or over the cap.
        """
        self._status = head.status
        limit = self._expected.max_bytes if head.status == 200 else MAX_ERROR_BYTES
        if head.content_length > sealed_cap(limit):
            raise MalformedInputError(
                f"answer content-length: got {head.content_length}, want at most "
                f"{sealed_cap(limit)} bytes"
            )
        if head.content_type == SEALED_TYPE:
            opener = self._call.open(head.status, head.content_length, self._begin)
            self._opener = opener
            return opener.feed
        # Whoever stands between may refuse in the clear; nobody answers so.
        if head.status == 200 or head.content_length > MAX_ERROR_BYTES:
            raise MalformedInputError(
                f"answer content-type: got {head.content_type!r:.100}, "
                f"want {SEALED_TYPE}"
            )
        return self._refusal.feed

    def _begin(self, length: int) -> Feed:
        if self._status != 200:
            return self._refusal
        self._reader = self._expected.read(length)
        return self._reader

    def result(self) -> _R:
        """Return the reader that took in the message.

        Raises:
            UnknownSessionError: The replica does not hold the session.
            UnavailableError: The replica refused.
            MalformedInputError: The message ended early.
        """
        if self._opener is not None:
            self._opener.finish()
        if self._reader is None:
            raise _refusal(self._status, self._refusal.result())
        return self._reader


def _refusal(status: int, said: bytes) -> SecureError:
    message = f"replica refused: {status} {said!r:.300}"
    if status == 401 and f'"code":"{UNKNOWN_SESSION}"'.encode() in said:
        return UnknownSessionError(message)
    return UnavailableError(message)
