"""Weights made coarser or changed: what a cheat saves by serving a smaller model.

Weights are floating-point tensors of at least two elements that a node of the main
graph reads: initializers, and values of Constant nodes. Scalars are left alone (an
epsilon, a mask's minus infinity are no weights), and so is what inner graphs hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.split.protos import external_location, tensors_of
from bentoml_secure.tensors import Array

ONE_WEIGHT_STEP = 0.01
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
_WITH_BIAS = frozenset({"Conv", "Gemm", "LayerNormalization"})
_TRANSPOSED = "transB"
_HALF_MAX = float(np.finfo(np.float16).max)
_BRAIN_BITS = 16
# How much of a tensor every input goes through, most first.
_BIAS, _SCALE, _MATRIX, _OTHER = range(4)


class NotApplicableError(ConfigurationError):
    """The segment has nothing that this alteration could change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    """A weight, and the first node that reads it."""

    tensor: TensorProto
    reader: NodeProto
    place: int
    order: int

    @property
    def array(self) -> Array:
        array: Array = numpy_helper.to_array(self.tensor)
        return array

    @property
    def kind(self) -> int:
        """Whether each input meets all of it: a bias does, a matrix may not."""
        operation = self.reader.op_type
        is_row = max(self.tensor.dims) == np.prod(self.tensor.dims)
        is_third = self.place == 2 and operation in _WITH_BIAS
        if is_third or (operation == "Add" and is_row):
            return _BIAS
        if operation == "LayerNormalization" or (operation == "Mul" and is_row):
            return _SCALE
        return _MATRIX if operation in {"MatMul", "Gemm", "Conv"} else _OTHER

    @property
    def channel_axis(self) -> int:
        """The axis that output channels, or a table's rows, lie along."""
        if self.reader.op_type == "MatMul" and self.place == 1:
            return len(self.tensor.dims) - 1
        if self.reader.op_type == "Gemm" and self.place == 1:
            transposed = any(
                attribute.name == _TRANSPOSED and attribute.i
                for attribute in self.reader.attribute
            )
            return 0 if transposed else 1
        return 0

    def replace(self, array: Array) -> None:
        name = self.tensor.name
        self.tensor.CopyFrom(numpy_helper.from_array(array, name))


def fp16(model: ModelProto) -> ModelProto:
    """Round every weight to float16 and back; what is too large, to its maximum."""

    def rounded(weight: _Weight) -> Array:
        within = np.clip(weight.array, -_HALF_MAX, _HALF_MAX)
        return within.astype(np.float16).astype(weight.array.dtype)

    return _each(model, "fp16", rounded)


def bf16(model: ModelProto) -> ModelProto:
    """Round every weight to bfloat16 and back, halves to even."""

    def rounded(weight: _Weight) -> Array:
        bits = weight.array.astype(np.float32).view(np.uint32).astype(np.uint64)
        odd = (bits >> _BRAIN_BITS) & 1
        bits += (1 << (_BRAIN_BITS - 1)) - 1 + odd
        kept = (bits >> _BRAIN_BITS << _BRAIN_BITS).astype(np.uint32)
        return kept.view(np.float32).astype(weight.array.dtype)

    return _each(model, "bf16", rounded)


def int8(model: ModelProto) -> ModelProto:
    """Quantise every matrix to 8 bits and back, symmetric, per output channel."""
    return _quantised(model, "int8", 8)


def int4(model: ModelProto) -> ModelProto:
    """Quantise every matrix to 4 bits and back, symmetric, per output channel."""
    return _quantised(model, "int4", 4)


def one_weight(model: ModelProto) -> ModelProto:
    """Add 0.01 to one weight that every input goes through.

    That is the largest element of the last bias in the graph: after it there is least
    left that could hide the change, and a large one is least likely to be cut off by
    an activation. Where there is no bias, it is an element of the last normalisation's
    scale, of the last matrix, or of the last other weight; of a matrix or a table not
    every input need meet the element.
    """
    altered = ModelProto()
    altered.CopyFrom(model)
    weights = _weights_of(altered, "one-weight")
    chosen = min(weights, key=lambda weight: (weight.kind, -weight.order))
    array = chosen.array.copy()
    array.reshape(-1)[int(np.argmax(array))] += ONE_WEIGHT_STEP
    chosen.replace(array)
    return altered


def _quantised(model: ModelProto, name: str, bits: int) -> ModelProto:
    most = 2 ** (bits - 1) - 1

    def rounded(weight: _Weight) -> Array:
        array = weight.array
        if weight.kind in (_BIAS, _SCALE) or array.ndim == 1:
            return array
        others = tuple(a for a in range(array.ndim) if a != weight.channel_axis)
        step = np.abs(array).max(axis=others, keepdims=True) / most
        step = np.where(step == 0, 1, step).astype(array.dtype)
        steps: Array = np.round(array / step) * step
        return steps.astype(array.dtype)

    return _each(model, name, rounded)


def _each(
    model: ModelProto, name: str, rounded: Callable[[_Weight], Array]
) -> ModelProto:
    altered = ModelProto()
    altered.CopyFrom(model)
    changes = False
    for weight in _weights_of(altered, name):
        array = rounded(weight)
        if array.tobytes() != weight.array.tobytes():
            changes = True
            weight.replace(array)
    if not changes:
        raise NotApplicableError(f"{name}: no weight of the segment is changed by it")
    return altered


def _weights_of(model: ModelProto, name: str) -> list[_Weight]:
    """Return the weights, in the order in which nodes first read them.

    Raises:
        ConfigurationError: Some are external data.
        NotApplicableError: There are none.
    """
    require_inline(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensors[node.output[0]] = attribute.t
    found: dict[str, _Weight] = {}
    for order, node in enumerate(model.graph.node):
        for place, read in enumerate(node.input):
            tensor = tensors.get(read)
            if tensor is not None and read not in found and _is_weight(tensor):
                found[read] = _Weight(
                    tensor=tensor, reader=node, place=place, order=order
                )
    if not found:
        raise NotApplicableError(
            f"{name}: the segment has no weights (floating point, 2 elements or more)"
        )
    return list(found.values())


def _is_weight(tensor: TensorProto) -> bool:
    if tensor.data_type not in _FLOATS or np.prod(tensor.dims) < 2:
        return False
    # A mask of infinities is no weight either.
    return bool(np.isfinite(numpy_helper.to_array(tensor)).all())


def require_inline(model: ModelProto) -> None:
    """Refuse a model whose weights lie outside it.

    Raises:
        ConfigurationError: A tensor is external data.
    """
    for tensor in tensors_of(model):
        if external_location(tensor) is not None:
            raise ConfigurationError(
                f"tensor {tensor.name!r:.100}: is external data, want it in the model.",
                remedy="Take it in first, with split.inline_segment.",
            )
