"""Reads the messages of one exchange as their bytes arrive.

Nothing is allocated before the length that asks for it was checked: lengths against
caps, the tensors' header against the plan. Commitments are made while bytes pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bentoml_secure.digest import Digest, Scheme, parse_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.serving.exchange import (
    LENGTH,
    MAX_METADATA_BYTES,
    MAX_STATEMENT_BYTES,
    Exchange,
)
from bentoml_secure.tensors import (
    Array,
    Layout,
    TensorCommitments,
    TensorSpec,
    header_length,
    parse_header,
    require_layout,
    views,
)


class TensorReader:
    """Receives a tensors-v1 byte string piece by piece into one buffer of its own.

    Args:
        total_bytes: Length of the byte string, announced and already bounded.
        specs: What the plan promises; refused before the data are allocated.
        salts: One per tensor, for the commitments.
        scheme: Of the commitments.
    """

    def __init__(
        self,
        total_bytes: int,
        specs: Sequence[TensorSpec],
        salts: Mapping[str, bytes],
        scheme: Scheme = Scheme.HMAC_SHA256,
    ) -> None:
        self._total_bytes = total_bytes
        self._specs = specs
        self._salts = salts
        self._scheme = scheme
        self._head = bytearray()
        self._layout: Layout | None = None
        self._buffer = memoryview(b"")
        self._position = 0
        self._commitments: TensorCommitments | None = None

    def feed(self, piece: memoryview) -> memoryview:
        """Take in what belongs to the tensors; return the rest of the piece.

        Raises:
            MalformedInputError: The header breaks a limit or the plan.
        """
        if self._layout is None:
            piece = self._feed_header(piece)
        if self._layout is None or self._commitments is None:
            return piece
        take = min(len(piece), len(self._buffer) - self._position)
        if take:
            target = self._buffer[self._position : self._position + take]
            target[:] = piece[:take]
            self._commitments.update(target)
            self._position += take
        return piece[take:]

    def _feed_header(self, piece: memoryview) -> memoryview:
        piece = self._fill_head(8, piece)
        if len(self._head) < 8:
            return piece
        length = header_length(self._head)
        piece = self._fill_head(length, piece)
        if len(self._head) < length:
            return piece
        layout = parse_header(bytes(self._head))
        if layout.total_bytes != self._total_bytes:
            raise MalformedInputError(
                f"tensors-v1: header says {layout.total_bytes} bytes, the "
                f"message {self._total_bytes}"
            )
        require_layout(layout, self._specs)
        self._commitments = TensorCommitments(layout, self._salts, self._scheme)
        # numpy leaves the pages untouched: an announced length costs nothing yet.
        self._buffer = np.empty(layout.data_bytes, np.uint8).data
        self._layout = layout
        return piece

    def _fill_head(self, length: int, piece: memoryview) -> memoryview:
        missing = length - len(self._head)
        if missing <= 0:
            return piece
        self._head += piece[:missing]
        return piece[missing:]

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived."""
        return self._layout is not None and self._position == len(self._buffer)

    def result(self) -> tuple[dict[str, Array], dict[str, Digest]]:
        """Return the tensors, as views of the buffer, and their commitments.

        Raises:
            MalformedInputError: The message ended early.
        """
        if not self.complete or self._layout is None or self._commitments is None:
            raise MalformedInputError("tensors-v1: the message ended early")
        return views(self._layout, self._buffer), self._commitments.result()


class PrefixReader:
    """Collects a length-prefixed part of bounded size."""

    def __init__(self, what: str, max_bytes: int) -> None:
        self._what = what
        self._max_bytes = max_bytes
        self._data = bytearray()
        self._length: int | None = None

    def feed(self, piece: memoryview) -> memoryview:
        """Take in what belongs to the part; return the rest of the piece.

        Raises:
            MalformedInputError: The announced length is over the cap.
        """
        if self._length is None:
            missing = LENGTH.size - len(self._data)
            self._data += piece[:missing]
            piece = piece[missing:]
            if len(self._data) < LENGTH.size:
                return piece
            self._length = parse_length(bytes(self._data), self._what, self._max_bytes)
            self._data.clear()
        missing = self._length - len(self._data)
        self._data += piece[:missing]
        return piece[missing:]

    @property
    def length(self) -> int:
        """Bytes of the whole part, its prefix included, once complete."""
        return LENGTH.size + len(self._data)

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived."""
        return self._length is not None and len(self._data) == self._length

    def result(self) -> bytes:
        """Return the part without its prefix.

        Raises:
            MalformedInputError: The message ended early.
        """
        if not self.complete:
            raise MalformedInputError(f"{self._what}: the message ended early")
        return bytes(self._data)


def parse_length(data: bytes, what: str, max_bytes: int) -> int:
    """Return a u32 length, refused if it is over the cap.

    Raises:
        MalformedInputError: Over ``max_bytes``.
    """
    length = int(LENGTH.unpack(data)[0])
    if length > max_bytes:
        raise MalformedInputError(
            f"{what}: got a length of {length} bytes, want at most {max_bytes}"
        )
    return length


class RequestReader:
    """Reads a runner's request as its bytes arrive.

    Args:
        content_length: Announced and bounded by the caller.
        on_exchange: Called with the metadata before any tensor byte is read; returns
            the specs of the input tensors or raises to refuse the exchange.
    """

    def __init__(
        self,
        content_length: int,
        on_exchange: Callable[[Exchange], Sequence[TensorSpec]],
    ) -> None:
        self._content_length = content_length
        self._on_exchange = on_exchange
        self._prefix = PrefixReader("exchange", MAX_METADATA_BYTES)
        self._tensors: TensorReader | None = None
        self.exchange: Exchange | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """Take in the next bytes of the body.

        Raises:
            SecureError: The bytes break a limit, the format or the plan.
        """
        piece = memoryview(data)
        if self._tensors is None:
            piece = self._prefix.feed(piece)
            if not self._prefix.complete:
                return
            self.exchange = Exchange.decode(self._prefix.result())
            specs = self._on_exchange(self.exchange)
            self._tensors = TensorReader(
                self._content_length - self._prefix.length,
                specs,
                self.exchange.input_salts,
                self.exchange.scheme,
            )
        if len(self._tensors.feed(piece)):
            raise MalformedInputError("exchange: bytes after the tensors")

    def result(self) -> tuple[Exchange, dict[str, Array], dict[str, Digest]]:
        """Return metadata, tensors and their commitments.

        Raises:
            MalformedInputError: The message ended early.
        """
        if self.exchange is None or self._tensors is None:
            raise MalformedInputError("exchange: the message ended early")
        return self.exchange, *self._tensors.result()


class ResponseReader:
    """Reads a runner's answer as its bytes arrive.

    Args:
        content_length: Announced and bounded by the caller.
        specs: Of the output tensors.
        salts: One per output tensor.
        scheme: Of commitments to them.
    """

    def __init__(
        self,
        content_length: int,
        specs: Sequence[TensorSpec],
        salts: Mapping[str, bytes],
        scheme: Scheme = Scheme.HMAC_SHA256,
    ) -> None:
        self._content_length = content_length
        self._specs = specs
        self._salts = salts
        self._scheme = scheme
        self._length = bytearray()
        self._tensors: TensorReader | None = None
        self._statement = bytearray()
        self._statement_bytes = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take in the next bytes of the body.

        Raises:
            MalformedInputError: The bytes break a limit, the format or the plan.
        """
        piece = memoryview(data)
        if self._tensors is None:
            missing = LENGTH.size - len(self._length)
            self._length += piece[:missing]
            piece = piece[missing:]
            if len(self._length) < LENGTH.size:
                return
            self._statement_bytes = parse_length(
                bytes(self._length), "statement", MAX_STATEMENT_BYTES
            )
            tensor_bytes = self._content_length - LENGTH.size - self._statement_bytes
            self._tensors = TensorReader(
                tensor_bytes, self._specs, self._salts, self._scheme
            )
        rest = self._tensors.feed(piece)
        if len(self._statement) + len(rest) > self._statement_bytes:
            raise MalformedInputError("answer: bytes after the statement")
        self._statement += rest

    def result(self) -> tuple[dict[str, Array], dict[str, Digest], Any]:
        """Return tensors, their commitments and the statement's JSON.

        Raises:
            MalformedInputError: The message ended early, or no JSON.
        """
        if self._tensors is None or len(self._statement) != self._statement_bytes:
            raise MalformedInputError("answer: the message ended early")
        tensors, commitments = self._tensors.result()
        document = parse_json(
            bytes(self._statement), what="statement", max_bytes=MAX_STATEMENT_BYTES
        )
        return tensors, commitments, document
