"""tensors-v1: canonical safetensors, and commitments to single tensors.

Layout (that of safetensors, restricted to one byte string per content):

    u64 little-endian   length of the header, a multiple of 8
    header              JSON object, names sorted by code point, no whitespace, no
                        metadata: {"name":{"dtype":"F32","shape":[2,3],
                        "data_offsets":[0,24]},...}, padded with spaces
    data                the tensors in the order of the header, without gaps,
                        little-endian, C order

Everything is checked before anything is allocated: header size, count, names,
dtypes, dimensions, shape times item size against the offsets, total size. A header
that does not encode back to itself is refused, so a byte string has one meaning and a
content one byte string.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bentoml_secure.digest import parse_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.tensors.spec import (
    DTYPES,
    MAX_DIMENSIONS,
    MAX_TOTAL_BYTES,
    Array,
    TensorSpec,
    dtype_name,
    require_name,
    require_shapes,
)

MAX_HEADER_BYTES = 64 * 1024
MAX_TENSORS = 256
_REMEMBERED_BYTES = 2048

_FROM_WIRE = {wire: np.dtype(name).newbyteorder("<") for name, wire in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a parsed header: where its bytes lie after the header."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A parsed header: the entries in order, and the length of the data."""

    entries: tuple[Entry, ...]
    header: bytes
    data_bytes: int

    @property
    def total_bytes(self) -> int:
        """Length of the whole tensors-v1 byte string."""
        return len(self.header) + self.data_bytes


def wire_dtype(array: Array) -> str:
    """Return the safetensors name of an array's dtype.

    Raises:
        MalformedInputError: Not in the allow-list.
    """
    wire = DTYPES.get(dtype_name(array.dtype))
    if wire is None:
        raise MalformedInputError(
            f"dtype: got {dtype_name(array.dtype)}, want one of {', '.join(DTYPES)}"
        )
    return wire


def encode_header(tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]) -> bytes:
    """Encode (name, wire dtype, shape, bytes) of sorted tensors as the header.

    Includes the eight bytes of its length.
    """
    document, offset = {}, 0
    for name, dtype, shape, size in tensors:
        document[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def canonical(array: Array) -> Array:
    """Return the array little-endian and C-contiguous, copied only if it is not."""
    wire = array.dtype.newbyteorder("<")
    return np.ascontiguousarray(array, dtype=wire).reshape(array.shape)


def as_bytes(array: Array) -> memoryview:
    """Return the bytes of a canonical array, without a copy."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def layout_of(tensors: Mapping[str, Array]) -> Layout:
    """Lay out canonical arrays under their names.

    Raises:
        MalformedInputError: A name, dtype, count or size outside the limits.
    """
    items = []
    for name in sorted(tensors):
        require_name(name, "tensor")
        array = tensors[name]
        items.append((name, wire_dtype(array), array.shape, array.nbytes))
    try:
        header = encode_header(tuple(items))
    except UnicodeEncodeError as error:
        raise MalformedInputError(f"tensor name: {error}") from error
    return parse_header(header)


def header_length(prefix: bytes | bytearray | memoryview) -> int:
    """Return the length of the header, its own eight bytes included.

    Args:
        prefix: At least the first eight bytes.

    Raises:
        MalformedInputError: Not a multiple of 8, empty, or over the cap.
    """
    (length,) = struct.unpack_from("<Q", prefix)
    if not 0 < length <= MAX_HEADER_BYTES or length % 8:
        raise MalformedInputError(
            f"tensors-v1 header: got {length} bytes, want a multiple of 8 up to "
            f"{MAX_HEADER_BYTES}"
        )
    return 8 + int(length)


def parse_header(header: bytes) -> Layout:
    """Parse a header (its eight length bytes included) and check every limit.

    Raises:
        MalformedInputError: See the module's rules.
    """
    # The same few headers come again and again; what a stranger may send is bounded.
    parse = _parse_remembered if len(header) <= _REMEMBERED_BYTES else _parse_header
    return parse(header)


def _parse_header(header: bytes) -> Layout:
    if len(header) < 8 or header_length(header) != len(header):
        raise MalformedInputError("tensors-v1 header: its length does not fit")
    document = parse_json(
        header[8:], what="tensors-v1 header", max_bytes=MAX_HEADER_BYTES
    )
    if not isinstance(document, dict) or len(document) > MAX_TENSORS:
        raise MalformedInputError(
            f"tensors-v1 header: want an object of at most {MAX_TENSORS} tensors"
        )
    entries, offset = [], 0
    for name, value in document.items():
        entry = _parse_entry(name, value, offset)
        offset = entry.end
        entries.append(entry)
    if offset > MAX_TOTAL_BYTES:
        raise MalformedInputError(
            f"tensors-v1: got {offset} bytes, want at most {MAX_TOTAL_BYTES}"
        )
    again = tuple(
        (e.name, DTYPES[dtype_name(e.dtype)], e.shape, e.end - e.begin) for e in entries
    )
    if [e.name for e in entries] != sorted(document) or encode_header(again) != header:
        raise MalformedInputError("tensors-v1 header: not in its canonical form")
    return Layout(tuple(entries), header, offset)


_parse_remembered = functools.lru_cache(maxsize=256)(_parse_header)


def _parse_entry(name: str, value: object, offset: int) -> Entry:
    what = f"tensor {name!r:.60}"
    require_name(name, what)
    if not isinstance(value, dict) or value.keys() != {
        "dtype",
        "shape",
        "data_offsets",
    }:
        raise MalformedInputError(f"{what}: want dtype, shape and data_offsets")
    dtype = _FROM_WIRE.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise MalformedInputError(f"{what} dtype: got {value['dtype']!r:.40}")
    shape = value["shape"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise MalformedInputError(f"{what} shape: want at most {MAX_DIMENSIONS} axes")
    size = dtype.itemsize
    for axis in shape:
        if isinstance(axis, bool) or not isinstance(axis, int) or axis < 0:
            raise MalformedInputError(f"{what} shape: bad dimension {axis!r:.40}")
        # Bounded at every step: a zero elsewhere must not hide a huge axis.
        if axis > MAX_TOTAL_BYTES or size > MAX_TOTAL_BYTES:
            raise MalformedInputError(f"{what}: over {MAX_TOTAL_BYTES} bytes")
        size *= axis
    if value["data_offsets"] != [offset, offset + size]:
        raise MalformedInputError(
            f"{what} data_offsets: got {value['data_offsets']!r:.60}, "
            f"want [{offset}, {offset + size}]"
        )
    return Entry(name, dtype, tuple(shape), offset, offset + size)


def encode(tensors: Mapping[str, Array]) -> bytes:
    """Return the tensors-v1 byte string of named arrays.

    Raises:
        MalformedInputError: A name, dtype, count or size outside the limits.
    """
    arrays = {name: canonical(array) for name, array in tensors.items()}
    layout = layout_of(arrays)
    return b"".join(
        [layout.header, *(as_bytes(arrays[e.name]) for e in layout.entries)]
    )


def decode(data: bytes | bytearray | memoryview) -> dict[str, Array]:
    """Parse a tensors-v1 byte string into views of it.

    Raises:
        MalformedInputError: See the module's rules.
    """
    view = memoryview(data).cast("B")
    if len(view) < 8:
        raise MalformedInputError(f"tensors-v1: got {len(view)} bytes, want at least 8")
    length = header_length(view)
    if len(view) < length:
        raise MalformedInputError("tensors-v1: ends inside its header")
    layout = parse_header(bytes(view[:length]))
    if len(view) != layout.total_bytes:
        raise MalformedInputError(
            f"tensors-v1: got {len(view)} bytes, want {layout.total_bytes}"
        )
    return views(layout, view[length:])


def views(layout: Layout, data: memoryview) -> dict[str, Array]:
    """Return the tensors of ``layout`` as views of its data bytes."""
    return {
        entry.name: np.frombuffer(
            data[entry.begin : entry.end], dtype=entry.dtype
        ).reshape(entry.shape)
        for entry in layout.entries
    }


def require_layout(layout: Layout, specs: Sequence[TensorSpec]) -> None:
    """Refuse a header that announces anything but what ``specs`` promise.

    Raises:
        MalformedInputError: A name missing or too many, another dtype or shape.
    """
    require_shapes(
        {e.name: (dtype_name(e.dtype), e.shape) for e in layout.entries}, specs
    )
