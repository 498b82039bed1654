"""Inputs of segments whose outputs are known: what trials are made of.

Layout:

    8 bytes     "BSKNOWN1"
    u32         length of the index, big-endian
    index       canonical JSON: {"plan":digest,"segments":[[[inputs,outputs],...],...],
                "version":1}, for each segment of the plan its answers, for each of
                those the lengths of two byte strings
    bodies      those byte strings in that order, without gaps: tensors-v1

The model's owner makes the file (``bentoml-secure trials make``), for one plan. It
holds inputs and outputs of every segment in the clear, unsigned: who can write it can
fail honest replicas, and pass others.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.digest import (
    JSON,
    Digest,
    canonical_json,
    parse_digest,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.tensors import Array, decode, encode

MAGIC = b"BSKNOWN1"
VERSION = 1
MAX_BYTES = 256 << 20
MAX_INDEX_BYTES = 1 << 20
MAX_SEGMENTS = 256
MAX_ANSWERS = 1024
"""Of each segment."""

_LENGTH = struct.Struct(">I")
_HEAD_BYTES = len(MAGIC) + _LENGTH.size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownAnswer:
    """One segment's inputs by name, and the outputs that they give."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownAnswers:
    """Known answers of every segment of one plan.

    Attributes:
        plan: Digest of the plan.
        segments: The answers of each segment, in the plan's order.
    """

    plan: Digest
    segments: tuple[tuple[KnownAnswer, ...], ...]

    def to_bytes(self) -> bytes:
        """Return the file's bytes.

        Raises:
            MalformedInputError: More than one file holds, or tensors that do not fit
                tensors-v1.
        """
        bodies = [
            [(encode(answer.inputs), encode(answer.outputs)) for answer in answers]
            for answers in self.segments
        ]
        index = canonical_json(
            {
                "version": VERSION,
                "plan": self.plan,
                "segments": [
                    [[len(inputs), len(outputs)] for inputs, outputs in answers]
                    for answers in bodies
                ],
            }
        )
        data = b"".join(
            [
                MAGIC,
                _LENGTH.pack(len(index)),
                index,
                *(body for answers in bodies for pair in answers for body in pair),
            ]
        )
        # What nobody could read is not written.
        parse_known_answers(data)
        return data


def parse_known_answers(data: bytes) -> KnownAnswers:
    """Parse a file of known answers; the tensors are views of it.

    Raises:
        MalformedInputError: Anything but what ``to_bytes`` returns.
    """
    if len(data) > MAX_BYTES:
        raise MalformedInputError(
            f"known answers: got {len(data)} bytes, want at most {MAX_BYTES}"
        )
    if len(data) < _HEAD_BYTES or data[: len(MAGIC)] != MAGIC:
        raise MalformedInputError(
            f"known answers: got {data[: len(MAGIC)]!r}, want {MAGIC!r} first"
        )
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    if length > min(MAX_INDEX_BYTES, len(data) - _HEAD_BYTES):
        raise MalformedInputError(
            f"known answers index: got {length} bytes, want at most {MAX_INDEX_BYTES}"
            " and no more than follow"
        )
    begin = _HEAD_BYTES + length
    plan, sizes = _parse_index(data[_HEAD_BYTES:begin])
    total = sum(map(sum, (pair for answers in sizes for pair in answers)))
    if total != len(data) - begin:
        raise MalformedInputError(
            f"known answers: got {len(data) - begin} bytes of tensors, want {total}"
        )
    view = memoryview(data)
    segments = []
    for answers in sizes:
        parsed = []
        for inputs, outputs in answers:
            middle, end = begin + inputs, begin + inputs + outputs
            parsed.append(
                KnownAnswer(
                    inputs=decode(view[begin:middle]), outputs=decode(view[middle:end])
                )
            )
            begin = end
        segments.append(tuple(parsed))
    return KnownAnswers(plan=plan, segments=tuple(segments))


def _parse_index(data: bytes) -> tuple[Digest, list[list[tuple[int, int]]]]:
    what = "known answers index"
    document = parse_json(data, what=what, max_bytes=MAX_INDEX_BYTES)
    fields = require_fields(document, ("version", "plan", "segments"), what=what)
    if fields["version"] != VERSION or fields["version"] is True:
        raise MalformedInputError(
            f"{what} version: got {fields['version']!r:.40}, want {VERSION}"
        )
    plan = parse_digest(fields["plan"], what=f"{what} plan", algorithm=JSON)
    segments = _list(fields["segments"], MAX_SEGMENTS, f"{what} segments")
    sizes = [
        [
            _pair(pair, f"{what} segment {index}")
            for pair in _list(answers, MAX_ANSWERS, f"{what} segment {index}")
        ]
        for index, answers in enumerate(segments)
    ]
    if canonical_json(document) != data:
        raise MalformedInputError(f"{what}: not in its canonical form")
    return plan, sizes


def _list(value: Any, most: int, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise MalformedInputError(f"{what}: want a list of at most {most}")
    return value


def _pair(value: Any, what: str) -> tuple[int, int]:
    match value:
        case [int(inputs), int(outputs)] if not (
            isinstance(inputs, bool) or isinstance(outputs, bool)
        ):
            if 0 <= inputs <= MAX_BYTES and 0 <= outputs <= MAX_BYTES:
                return inputs, outputs
    raise MalformedInputError(
        f"{what}: got {value!r:.60}, want two lengths up to {MAX_BYTES}"
    )
