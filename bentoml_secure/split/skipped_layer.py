"""A layer left out: the graph of who computes less than was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    TensorShapeProto,
    TypeProto,
    helper,
)

from bentoml_secure.split.altered_weights import NotApplicableError
from bentoml_secure.split.graph import analyse, reads_of
from bentoml_secure.split.types import infer
from bentoml_secure.tensors import Array

_SAME_PADDING = ("SAME_UPPER", "SAME_LOWER")
_NORMS = frozenset(
    {"BatchNormalization", "InstanceNormalization", "LayerNormalization"}
)
_ACTIVATIONS = frozenset(
    {"Elu", "Gelu", "LeakyRelu", "Relu", "Sigmoid", "Softmax", "Softplus", "Tanh"}
)


def skipped_layer(model: ModelProto) -> ModelProto:
    """Pass over a layer whose input has the shape of its output.

    The largest residual block, which is an addition of a value and of what was made
    from it; where there is none, the last matrix product or convolution that keeps its
    input's shape; then the last normalisation; then the last activation.

    Raises:
        NotApplicableError: The segment has none of them.
    """
    altered = ModelProto()
    altered.CopyFrom(model)
    found = _residual(altered) or _simple(altered)
    if found is None:
        raise NotApplicableError(
            "skipped-layer: no layer of the segment has an input of its output's shape"
        )
    node, value = found
    bypass = helper.make_node("Identity", [value], [node.output[0]])
    node.CopyFrom(bypass)
    return altered


def _residual(model: ModelProto) -> tuple[NodeProto, str] | None:
    """Return the addition at the end of the largest residual block, and its input."""
    analysis = analyse(model)
    types = infer(model)
    behind: dict[str, frozenset[str]] = {}
    best: tuple[int, NodeProto, str] | None = None
    for index in analysis.steps:
        node = analysis.nodes[index]
        read = [name for name in reads_of(node) if name in analysis.made_at]
        made_from = frozenset(read).union(*(behind.get(name, ()) for name in read))
        behind |= dict.fromkeys(node.output, made_from)
        if node.op_type != "Add" or len(read) != 2:
            continue
        for past, made in (read, read[::-1]):
            is_block = past in behind.get(made, ()) and _alike(past, made, types)
            if is_block:
                size = len(behind[made] - behind.get(past, frozenset()))
                # Of two as large, the later one.
                if best is None or size >= best[0]:
                    best = size, _original(model, node), past
    return None if best is None else best[1:]


def _alike(left: str, right: str, types: Mapping[str, TypeProto.Tensor]) -> bool:
    """Whether two shapes can be the same: an added mask is not a block's input."""
    if left not in types or right not in types:
        return False
    one, other = types[left].shape.dim, types[right].shape.dim
    return len(one) == len(other) and all(map(_may_equal, one, other))


def _may_equal(one: TensorShapeProto.Dimension, other: Any) -> bool:
    # Of a size that is not known, only that it is not always 1.
    sizes = {d.dim_value if d.HasField("dim_value") else None for d in (one, other)}
    return len(sizes) == 1 or (None in sizes and 1 not in sizes)


def _original(model: ModelProto, wanted: NodeProto) -> NodeProto:
    return next(n for n in model.graph.node if n.output[:1] == wanted.output[:1])


def _simple(model: ModelProto) -> tuple[NodeProto, str] | None:
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    backwards = list(reversed(model.graph.node))
    for keeps in (_is_square, _is_norm, _is_activation):
        for node in backwards:
            if keeps(node, weights):
                return node, node.input[0]
    return None


def _is_norm(node: NodeProto, _: Mapping[str, TensorProto]) -> bool:
    return node.op_type in _NORMS


def _is_activation(node: NodeProto, _: Mapping[str, TensorProto]) -> bool:
    return node.op_type in _ACTIVATIONS


def _is_square(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    """Whether it is a matrix product or convolution that keeps its input's shape."""
    if len(node.input) < 2 or node.input[1] not in weights:
        return False
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    shape = list(weights[node.input[1]].dims)
    if node.op_type in {"MatMul", "Gemm"}:
        return len(shape) == 2 and shape[0] == shape[1] and not attributes.get("transA")
    return node.op_type == "Conv" and _keeps_size(shape, attributes)


def _keeps_size(shape: list[int], attributes: Mapping[str, object]) -> bool:
    sides = np.array(shape[2:])
    if shape[0] != shape[1] or attributes.get("group", 1) != 1:
        return False
    if (_numbers(attributes, "strides", 1, sides.size) != 1).any():
        return False
    if attributes.get("auto_pad", b"NOTSET") in [s.encode() for s in _SAME_PADDING]:
        return True
    dilations = _numbers(attributes, "dilations", 1, sides.size)
    pads = _numbers(attributes, "pads", 0, 2 * sides.size)
    around = pads[: sides.size] + pads[sides.size :]
    return bool((around == dilations * (sides - 1)).all())


def _numbers(
    attributes: Mapping[str, object], name: str, default: int, count: int
) -> Array:
    return np.array(attributes.get(name, [default] * count))
