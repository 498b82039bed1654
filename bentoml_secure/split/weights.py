"""Weights from where a model keeps them to where a segment does, without one big copy.

External data are read range by range from the model's own folder and nowhere else,
and written in pieces, so that a model of any size passes through a small buffer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import onnx
from onnx import ModelProto, TensorProto

from bentoml_secure.digest import FILE, Digest, digest_json
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split.files import open_below
from bentoml_secure.split.protos import (
    Location,
    external_location,
    parse_model,
    tensors_of,
)

CHUNK_BYTES = 16 << 20
INLINE_BYTES = 1 << 30
MAX_PROTO_BYTES = (2 << 30) - 1

# Below this a tensor may be a shape that inference has to read: it stays inline.
_SMALL_BYTES = 1024
# So that a page of the file is a page of the tensor, for whoever maps it.
_ALIGNMENT = 4096
_SCALARS = frozenset(
    onnx.TensorProto.DataType.Value(name)
    for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "BOOL", "INT8", "INT16")
    + ("INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
)


class Source:
    """A model's file, parsed, and the folder that its external data lie in.

    Small external tensors, and those inside nodes, are taken in: shapes must be read
    where they are used, and ONNX Runtime looks up only initializers from memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = path.parent
        self._open: dict[str, BinaryIO] = {}
        try:
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if size > MAX_PROTO_BYTES:
                    raise MalformedInputError(
                        f"{path}: got {size} bytes, want at most {MAX_PROTO_BYTES}.",
                        remedy="Save it with its weights as external data.",
                    )
                data = stream.read(MAX_PROTO_BYTES)
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be read: {error}") from error
        self.model = parse_model(data, what=str(path))
        try:
            self._files = self._external_files()
            self._take_in()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the external files."""
        for stream in self._open.values():
            stream.close()
        self._open.clear()

    def digest(self) -> Digest:
        """Return the digest of the list of the model's files.

        That is ``digest_json`` of [{"path", "digest"}, ...]: base names of the ONNX
        file and its external data, each with the digest of its bytes, sorted.
        """
        try:
            paths = [self.path, *(self._folder / name for name in self._files)]
            entries = [
                {"path": path.name, "digest": digest_of_file(path)} for path in paths
            ]
        except OSError as error:
            raise ConfigurationError(f"{self.path}: {error}") from error
        return digest_json(sorted(entries, key=lambda e: (e["path"], e["digest"])))

    def pieces(self, tensor: TensorProto) -> Iterator[bytes]:
        """Yield the raw little-endian bytes of a tensor, wherever they lie.

        Raises:
            ConfigurationError: Its file cannot be read.
            MalformedInputError: It runs over the end of its file.
            VerificationError: Its file is outside the model's folder.
        """
        location = external_location(tensor)
        if location is None:
            yield raw_bytes(tensor)
            return
        stream = self._stream(location)
        try:
            size = os.fstat(stream.fileno()).st_size
            left = location.require_within(size, tensor.name)
            stream.seek(location.offset)
            while left:
                piece = stream.read(min(left, CHUNK_BYTES))
                if not piece:
                    raise ConfigurationError(f"{location.path}: ends while it is read")
                left -= len(piece)
                yield piece
        except OSError as error:
            raise ConfigurationError(f"{location.path}: {error}") from error

    def size_of(self, tensor: TensorProto) -> int:
        """Return how many raw bytes a tensor has."""
        location = external_location(tensor)
        if location is None:
            return len(raw_bytes(tensor))
        size = os.fstat(self._stream(location).fileno()).st_size
        return location.require_within(size, tensor.name)

    def _stream(self, location: Location) -> BinaryIO:
        if location.path not in self._open:
            descriptor = open_below(self._folder, location.path)
            self._open[location.path] = os.fdopen(descriptor, "rb")
        return self._open[location.path]

    def _external_files(self) -> tuple[str, ...]:
        names: dict[str, None] = {}
        for tensor in tensors_of(self.model):
            location = external_location(tensor)
            if location is not None:
                self.size_of(tensor)
                names[location.path] = None
        return tuple(names)

    def _take_in(self) -> None:
        large = set()
        for tensor in self.model.graph.initializer:
            if external_location(tensor) and self.size_of(tensor) > _SMALL_BYTES:
                large.add(tensor.name)
        inside = 0
        for tensor in tensors_of(self.model):
            if external_location(tensor) is None or tensor.name in large:
                continue
            inside += self.size_of(tensor)
            if inside > INLINE_BYTES:
                raise MalformedInputError(
                    f"{self.path}: over {INLINE_BYTES} bytes of external data inside "
                    "nodes.",
                    remedy="Make them initializers of the main graph.",
                )
            tensor.raw_data = b"".join(self.pieces(tensor))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


def digest_of_file(path: Path) -> Digest:
    """Return the digest of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return Digest(f"{FILE}:{hashlib.file_digest(stream, 'sha256').hexdigest()}")


def raw_bytes(tensor: TensorProto) -> bytes:
    """Return the raw little-endian bytes of an inline tensor."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    array = onnx.numpy_helper.to_array(tensor)
    return bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())


def write_model(
    model: ModelProto, path: Path, source: Source, *, inline_bytes: int = INLINE_BYTES
) -> tuple[Path, ...]:
    """Write a segment, and beside it its external data if it has or needs any.

    A tensor that was external stays so; inline ones move out together when they come
    to ``inline_bytes``.

    Args:
        model: The segment; external tensors still say where ``source`` has them.
        path: Of the ONNX file; external data go to the same name with ``.data``.
        source: Where the weights are.
        inline_bytes: How much may stay inside the ONNX file.

    Returns:
        The files written.
    """
    tensors = model.graph.initializer
    inline = sum(t.ByteSize() for t in tensors if external_location(t) is None)
    moves = [
        tensor
        for tensor in tensors
        if external_location(tensor) is not None
        or (inline >= inline_bytes and _movable(tensor))
    ]
    written = [path]
    if moves:
        beside = path.with_name(f"{path.name}.data")
        written.append(beside)
        with beside.open("wb") as stream:
            for tensor in moves:
                _move_out(tensor, stream, beside.name, source)
    if model.ByteSize() > MAX_PROTO_BYTES:
        raise MalformedInputError(
            f"{path.name}: over {MAX_PROTO_BYTES} bytes without its initializers.",
            remedy="Make large constants initializers of the main graph.",
        )
    path.write_bytes(model.SerializeToString(deterministic=True))
    return tuple(written)


def _movable(tensor: TensorProto) -> bool:
    return (
        tensor.data_type in _SCALARS or tensor.HasField("raw_data")
    ) and tensor.ByteSize() > _SMALL_BYTES


def _move_out(
    tensor: TensorProto, stream: BinaryIO, file_name: str, source: Source
) -> None:
    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
    offset = stream.tell()
    for piece in source.pieces(tensor):
        stream.write(piece)
    length = stream.tell() - offset
    header = TensorProto(
        name=tensor.name,
        data_type=tensor.data_type,
        dims=tensor.dims,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", file_name), ("offset", offset), ("length", length)):
        header.external_data.add(key=key, value=str(value))
    tensor.CopyFrom(header)
