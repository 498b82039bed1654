"""What a node costs to run and a tensor to send, for balance, not for billing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TypeProto

from bentoml_secure.split.protos import inner_graphs
from bentoml_secure.split.specs import Sizes
from bentoml_secure.split.types import DTYPE_NAMES
from bentoml_secure.tensors import Array

_UNKNOWN_SIZE = 8
_PRODUCTS = {"MatMul": 0, "Gemm": 0, "MatMulInteger": 0, "QLinearMatMul": 0}
_PRODUCTS |= {"FusedMatMul": 0, "FusedGemm": 0, "Einsum": 0, "MatMulNBits": 0}
_CONVOLUTIONS = {
    "Conv": 1,
    "ConvTranspose": 1,
    "ConvInteger": 1,
    "FusedConv": 1,
    "QLinearConv": 3,
}
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


class Costs:
    """FLOPs of nodes and bytes of tensors.

    Args:
        model: For the shapes of its weights.
        types: Of its values, as far as inferred.
        sizes: Of the symbols in one sample.
        seen: Values of that sample that inference knows nothing of.
    """

    def __init__(
        self,
        model: ModelProto,
        types: Mapping[str, TypeProto.Tensor],
        sizes: Sizes,
        seen: Mapping[str, Array],
    ) -> None:
        self._shapes = {
            name: [
                size.dim_value
                if size.HasField("dim_value") and size.dim_value >= 0
                else sizes.get(size.dim_param, _UNKNOWN_SIZE)
                for size in known.shape.dim
            ]
            for name, known in types.items()
        }
        self._widths = {
            name: np.dtype(DTYPE_NAMES[known.elem_type]).itemsize
            for name, known in types.items()
            if known.elem_type in DTYPE_NAMES
        }
        for name, array in seen.items():
            self._shapes[name] = list(array.shape)
            self._widths[name] = array.itemsize
        for tensor in model.graph.initializer:
            self._shapes[tensor.name] = list(tensor.dims)

    def bytes_of(self, name: str) -> int:
        """Return the bytes of one tensor."""
        return self._elements(name) * self._widths.get(name, 4)

    def _elements(self, name: str) -> int:
        return math.prod(self._shapes.get(name, ()))

    def flops(self, node: NodeProto) -> int:
        """Return the operations of one node: 2 per multiply-add, 1 per element else."""
        made = max((self._elements(name) for name in node.output if name), default=0)
        inner = sum(
            self.flops(step) for graph in inner_graphs(node) for step in graph.node
        )
        return max(made, 1) * self._per_element(node) + inner

    def _per_element(self, node: NodeProto) -> int:
        if node.op_type in _PRODUCTS:
            shape = self._shapes.get(node.input[0], [])
            turned = node.op_type == "Gemm" and any(
                attribute.name == "transA" and attribute.i
                for attribute in node.attribute
            )
            return 2 * shape[0 if turned else -1] if shape else 1
        if node.op_type in _CONVOLUTIONS and len(node.input) > 1:
            kernel = self._shapes.get(node.input[_CONVOLUTIONS[node.op_type]], [])
            return max(2 * math.prod(kernel[1:]), 1)
        if node.op_type in _RECURRENT and len(node.input) > 2:
            weights = self._elements(node.input[1]) + self._elements(node.input[2])
            hidden = self._shapes.get(node.input[2], [1])[-1]
            return max(2 * weights // max(hidden, 1), 1)
        return 1
