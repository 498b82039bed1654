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

A commitment to a tensor is HMAC-SHA256(salt, tensors-v1 bytes of that tensor alone).
"""

from __future__ import annotations

import functools
import hmac
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bentoml_secure.digest import TENSOR, Digest, parse_json
from bentoml_secure.errors import MalformedInputError

Array = NDArray[Any]

MAX_HEADER_BYTES = 64 * 1024
MAX_TENSORS = 256
MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 512
MAX_TOTAL_BYTES = 1 << 30

DTYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
}
"""Names as in plan.json and numpy, to those of safetensors."""

_FROM_WIRE = {wire: np.dtype(name).newbyteorder("<") for name, wire in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a plan promises of a tensor.

    Attributes:
        name: The model's own name of the value.
        dtype: A key of ``DTYPES``.
        shape: A size, or the symbol of a size that only the input fixes, per axis.
        allow_nonfinite: NaN and infinity are part of this tensor's range.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    allow_nonfinite: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the entry of plan.json."""
        entry: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }
        if self.allow_nonfinite:
            entry["allow_nonfinite"] = True
        return entry

    @classmethod
    def from_json(cls, entry: object, *, what: str) -> TensorSpec:
        """Parse an entry of plan.json; anything unexpected is refused.

        Raises:
            MalformedInputError: A field is missing, unknown or out of range.
        """
        if not isinstance(entry, dict):
            raise MalformedInputError(f"{what}: want an object")
        if unknown := entry.keys() - {"name", "dtype", "shape", "allow_nonfinite"}:
            raise MalformedInputError(f"{what}: unknown field {sorted(unknown)[0]!r}")
        name, dtype, shape = entry.get("name"), entry.get("dtype"), entry.get("shape")
        _bounded_name(name, what)
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise MalformedInputError(
                f"{what} dtype: got {dtype!r:.40}, want one of {', '.join(DTYPES)}"
            )
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
            raise MalformedInputError(
                f"{what} shape: want a list of at most {MAX_DIMENSIONS} dimensions"
            )
        for size in shape:
            if isinstance(size, bool) or not (
                (isinstance(size, int) and 0 <= size <= MAX_TOTAL_BYTES)
                or (isinstance(size, str) and 0 < len(size) <= MAX_NAME_CHARACTERS)
            ):
                raise MalformedInputError(f"{what} shape: bad dimension {size!r:.40}")
        nonfinite = entry.get("allow_nonfinite", False)
        if not isinstance(nonfinite, bool):
            raise MalformedInputError(f"{what} allow_nonfinite: want true or false")
        return cls(
            name=str(name),
            dtype=str(dtype),
            shape=tuple(shape),
            allow_nonfinite=nonfinite,
        )


def _bounded_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise MalformedInputError(
            f"{what} name: got {name!r:.60}, want 1 to {MAX_NAME_CHARACTERS} characters"
        )


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
    wire = DTYPES.get(array.dtype.name)
    if wire is None:
        raise MalformedInputError(
            f"dtype: got {array.dtype.name}, want one of {', '.join(DTYPES)}"
        )
    return wire


@functools.lru_cache(maxsize=1024)
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
        _bounded_name(name, "tensor")
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


@functools.lru_cache(maxsize=1024)
def parse_header(header: bytes) -> Layout:
    """Parse a header (its eight length bytes included) and check every limit.

    Raises:
        MalformedInputError: See the module's rules.
    """
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
        (e.name, DTYPES[e.dtype.name], e.shape, e.end - e.begin) for e in entries
    )
    if [e.name for e in entries] != sorted(document) or encode_header(again) != header:
        raise MalformedInputError("tensors-v1 header: not in its canonical form")
    return Layout(tuple(entries), header, offset)


def _parse_entry(name: str, value: object, offset: int) -> Entry:
    what = f"tensor {name!r:.60}"
    _bounded_name(name, what)
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


def require(tensors: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Refuse tensors that are not exactly those that ``specs`` promise.

    A symbol stands for one size throughout the call.

    Raises:
        MalformedInputError: A name missing or too many, another dtype or shape, or
            NaN or infinity where the spec does not allow them.
    """
    require_shapes({n: (a.dtype.name, a.shape) for n, a in tensors.items()}, specs)
    require_values(tensors, specs)


def require_layout(layout: Layout, specs: Sequence[TensorSpec]) -> None:
    """Refuse a header that announces anything but what ``specs`` promise.

    Raises:
        MalformedInputError: A name missing or too many, another dtype or shape.
    """
    require_shapes({e.name: (e.dtype.name, e.shape) for e in layout.entries}, specs)


def require_shapes(
    found: Mapping[str, tuple[str, tuple[int, ...]]], specs: Sequence[TensorSpec]
) -> None:
    """Refuse names, dtypes and shapes other than those of ``specs``.

    Raises:
        MalformedInputError: With the first tensor that differs.
    """
    wanted = {spec.name for spec in specs}
    if found.keys() != wanted:
        raise MalformedInputError(
            f"tensors: got {sorted(found)!r:.200}, want {sorted(wanted)!r:.200}"
        )
    symbols: dict[str, int] = {}
    for spec in specs:
        dtype, shape = found[spec.name]
        if dtype != spec.dtype:
            raise MalformedInputError(
                f"tensor {spec.name!r} dtype: got {dtype}, want {spec.dtype}"
            )
        fits = len(shape) == len(spec.shape) and all(
            size == (symbols.setdefault(want, size) if isinstance(want, str) else want)
            for size, want in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            raise MalformedInputError(
                f"tensor {spec.name!r} shape: got {list(shape)}, "
                f"want {list(spec.shape)}"
            )


def require_values(tensors: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Refuse NaN and infinity where not allowed, and booleans that are neither.

    Args:
        tensors: Of the names, dtypes and shapes that ``specs`` promise.
        specs: The plan's.

    Raises:
        MalformedInputError: With the first tensor at fault.
    """
    for spec in specs:
        array = tensors[spec.name]
        if spec.dtype == "bool" and array.size and array.view(np.uint8).max() > 1:
            raise MalformedInputError(f"tensor {spec.name!r}: a bool is not 0 or 1")
        if not spec.allow_nonfinite and not is_finite(array):
            raise MalformedInputError(f"tensor {spec.name!r}: holds NaN or infinity")


def is_finite(array: Array) -> bool:
    """Tell whether every element is finite, in one cheap pass for the usual case."""
    if array.dtype.kind != "f" or not array.size:
        return True
    flat = array.reshape(-1)
    if array.dtype.itemsize >= 4:
        with np.errstate(over="ignore", invalid="ignore"):
            # A finite sum of squares proves it; an overflow proves nothing.
            if np.isfinite(np.dot(flat, flat)):
                return True
    return bool(np.isfinite(flat).all())


class Hasher(Protocol):
    """What commitments need of a hash object."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the digest so far."""


class TensorCommitments:
    """Commits to each tensor of a tensors-v1 byte string while its data pass.

    Feed it the data bytes (what follows the header) in order, in pieces of any size.
    """

    def __init__(self, layout: Layout, salts: Mapping[str, bytes]) -> None:
        names = {entry.name for entry in layout.entries}
        if names != salts.keys():
            raise MalformedInputError(
                f"salts: got {sorted(salts)!r:.200}, want {sorted(names)!r:.200}"
            )
        self._entries = layout.entries
        self._hashers: list[Hasher] = []
        for entry in layout.entries:
            hasher = hmac.new(salts[entry.name], digestmod="sha256")
            single = (
                entry.name,
                DTYPES[entry.dtype.name],
                entry.shape,
                entry.end - entry.begin,
            )
            hasher.update(encode_header((single,)))
            self._hashers.append(hasher)
        self._position = 0
        self._index = 0

    def update(self, data: memoryview) -> None:
        """Take in the next data bytes.

        Raises:
            MalformedInputError: More bytes than the layout holds.
        """
        while len(data):
            while (
                self._index < len(self._entries)
                and self._entries[self._index].end == self._position
            ):
                self._index += 1
            if self._index == len(self._entries):
                raise MalformedInputError("tensors-v1: bytes after the last tensor")
            take = min(len(data), self._entries[self._index].end - self._position)
            self._hashers[self._index].update(data[:take])
            self._position += take
            data = data[take:]

    def result(self) -> dict[str, Digest]:
        """Return the commitment of each tensor by name, once all bytes passed."""
        if self._entries and self._position != self._entries[-1].end:
            raise MalformedInputError("tensors-v1: ends inside its data")
        return {
            entry.name: Digest(f"{TENSOR}:{hasher.hexdigest()}")
            for entry, hasher in zip(self._entries, self._hashers, strict=True)
        }


def commit(
    tensors: Mapping[str, Array], salts: Mapping[str, bytes]
) -> dict[str, Digest]:
    """Return the commitment of each named array under its salt.

    Args:
        tensors: Arrays by name.
        salts: 32 secret bytes for each of those names.
    """
    arrays = {name: canonical(array) for name, array in tensors.items()}
    layout = layout_of(arrays)
    commitments = TensorCommitments(layout, salts)
    for entry in layout.entries:
        commitments.update(as_bytes(arrays[entry.name]))
    return commitments.result()


def total_bytes(tensors: Iterable[Array]) -> int:
    """Return the number of data bytes of some arrays."""
    return sum(array.nbytes for array in tensors)
