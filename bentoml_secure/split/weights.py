"""Weights from where a model keeps them to where a segment does, without one big copy.

External data are read range by range from the model's own folder and nowhere else,
and written in pieces, so that a model of any size passes through a small buffer.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import ModelProto, TensorProto

from bentoml_secure.digest import FILE, Digest, digest_json
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split.files import open_below
from bentoml_secure.split.protos import (
    external_location,
    inner_tensors,
    parse_model,
    tensors_of,
)
from bentoml_secure.split.types import DTYPE_NAMES

CHUNK_BYTES = 16 << 20
INLINE_BYTES = 1 << 30
MAX_PROTO_BYTES = (2 << 30) - 1

# Below this a tensor may be a shape that inference has to read: it stays inline.
_SMALL_BYTES = 1024
# So that a page of the file is a page of the tensor, for whoever maps it.
_ALIGNMENT = 4096


class Source:
    """A model's file, parsed, and the folder that its external data lie in.

    Small external tensors, and those inside nodes, are taken in: shapes must be read
    where they are used, and ONNX Runtime looks up only initializers from memory.

    Raises:
        ConfigurationError: A file of the model is missing or cannot be read.
        MalformedInputError: Not ONNX, too large, or data run over a file's end.
        VerificationError: External data outside the model's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = path.parent
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
        self._sizes: dict[str, int] = {}
        for tensor in tensors_of(self.model):
            self.size_of(tensor)
        self._take_in()

    @property
    def is_external(self) -> bool:
        """Whether some of the model's bytes lie beside its ONNX file."""
        return bool(self._sizes)

    def digest(self) -> Digest:
        """Return the digest of the list of the model's files.

        That is ``digest_json`` of [{"path", "digest"}, ...]: base names of the ONNX
        file and its external data, each with the digest of its bytes, sorted.
        """
        digests = [(self.path.name, digest_of_file(self.path))]
        for name in self._sizes:
            with self._stream(name) as stream:
                digests.append((posixpath.basename(name), _digest(stream)))
        return digest_json(
            [{"path": path, "digest": digest} for path, digest in sorted(digests)]
        )

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
        left = self.size_of(tensor)
        with self._stream(location.path) as stream:
            stream.seek(location.offset)
            while left:
                piece = stream.read(min(left, CHUNK_BYTES))
                if not piece:
                    raise ConfigurationError(f"{location.path}: ends while it is read")
                left -= len(piece)
                yield piece

    def size_of(self, tensor: TensorProto) -> int:
        """Return how many raw bytes an external tensor has, 0 for an inline one."""
        location = external_location(tensor)
        if location is None:
            return 0
        if location.path not in self._sizes:
            with self._stream(location.path) as stream:
                self._sizes[location.path] = os.fstat(stream.fileno()).st_size
        return location.require_within(self._sizes[location.path], tensor.name)

    def _stream(self, name: str) -> BinaryIO:
        return os.fdopen(open_below(self._folder, name), "rb")

    def _take_in(self) -> None:
        small = [
            tensor
            for tensor in self.model.graph.initializer
            if external_location(tensor) and self.size_of(tensor) <= _SMALL_BYTES
        ]
        inner = [t for t in inner_tensors(self.model) if external_location(t)]
        if sum(map(self.size_of, inner)) > INLINE_BYTES:
            raise MalformedInputError(
                f"{self.path}: over {INLINE_BYTES} bytes of external data in nodes.",
                remedy="Make them initializers of the main graph.",
            )
        for tensor in (*small, *inner):
            tensor.raw_data = b"".join(self.pieces(tensor))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


def digest_of_file(path: Path) -> Digest:
    """Return the digest of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return _digest(stream)


def _digest(stream: BinaryIO) -> Digest:
    hasher = hashlib.sha256()
    while piece := stream.read(CHUNK_BYTES):
        hasher.update(piece)
    return Digest(f"{FILE}:{hasher.hexdigest()}")


def raw_bytes(tensor: TensorProto) -> bytes:
    """Return the raw little-endian bytes of an inline tensor."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    array = onnx.numpy_helper.to_array(tensor)
    return bytes(onnx.numpy_helper.tobytes_little_endian(array))


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
    plain = tensor.data_type in DTYPE_NAMES or tensor.HasField("raw_data")
    return bool(plain and tensor.ByteSize() > _SMALL_BYTES)


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
