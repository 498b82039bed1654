"""What the ONNX library does not offer: walking a model's tensors and inner graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from google.protobuf.descriptor import (  # type: ignore[import-untyped]
    FieldDescriptor,
)
from google.protobuf.message import (  # type: ignore[import-untyped]
    DecodeError,
    Message,
)
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
)

from bentoml_secure.errors import MalformedInputError


def parse_model(data: bytes, *, what: str) -> ModelProto:
    """Parse an ONNX file; external data stay where they are.

    Raises:
        MalformedInputError: Not an ONNX model with a graph.
    """
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise MalformedInputError(f"{what}: is not ONNX: {error}") from error
    if not model.HasField("graph"):
        raise MalformedInputError(f"{what}: is not ONNX: it has no graph")
    try:
        _require_text(model)
    except UnicodeDecodeError as error:
        raise MalformedInputError(f"{what}: is not ONNX: {error}") from error
    return model


def _require_text(message: Message) -> None:
    """Refuse text that is not UTF-8: protobuf lets it pass, and gives bytes for it.

    Raises:
        UnicodeDecodeError: At the first such text.
    """
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in (value,) if isinstance(value, Message) else value:
                _require_text(inner)
        elif field.type == FieldDescriptor.TYPE_STRING:
            for text in (value,) if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    text.decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a tensor's bytes lie outside the ONNX file.

    Attributes:
        path: As in the graph: relative to the ONNX file.
        offset: Of the first byte.
        length: In bytes, or all that follows if None.
    """

    path: str
    offset: int
    length: int | None

    def require_within(self, size: int, name: str) -> int:
        """Return the number of bytes, all of them within a file of ``size``.

        Raises:
            MalformedInputError: They run over its end.
        """
        length = size - self.offset if self.length is None else self.length
        if length < 0 or self.offset + length > size:
            raise MalformedInputError(
                f"tensor {name!r:.100}: got bytes {self.offset} to "
                f"{self.offset + length}, {self.path!r:.100} has {size}"
            )
        return length


def external_location(tensor: TensorProto) -> Location | None:
    """Return where an external tensor lies, None for one that is inline.

    Raises:
        MalformedInputError: No location, a field twice, or a bad number.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data) or "location" not in entries:
        raise MalformedInputError(
            f"tensor {tensor.name!r:.100}: its external data has no one location"
        )
    return Location(
        path=entries["location"],
        offset=_number(entries.get("offset", "0"), tensor.name),
        length=_number(entries["length"], tensor.name) if "length" in entries else None,
    )


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise MalformedInputError(
            f"tensor {name!r:.100}: external data at {text!r:.40}, want a number"
        )
    return int(text)


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the bodies that a node's attributes hold (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model: initializers, attributes, bodies, functions."""
    yield from model.graph.initializer
    yield from inner_tensors(model)


def inner_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model but the main graph's dense initializers."""
    for sparse in model.graph.sparse_initializer:
        yield from _sparse_tensors(sparse)
    for node in model.graph.node:
        yield from _node_tensors(node)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield every tensor of a graph and of the bodies in it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from _sparse_tensors(sparse)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    """Yield every tensor that a node's attributes hold, bodies included."""
    for attribute in node.attribute:
        yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    # By field, not by type: what the type hides, another reader may still load.
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield from _sparse_tensors(attribute.sparse_tensor)
    for sparse in attribute.sparse_tensors:
        yield from _sparse_tensors(sparse)
    if attribute.HasField("g"):
        yield from _graph_tensors(attribute.g)
    for graph in attribute.graphs:
        yield from _graph_tensors(graph)


def _sparse_tensors(sparse: SparseTensorProto) -> Iterator[TensorProto]:
    yield sparse.values
    yield sparse.indices
