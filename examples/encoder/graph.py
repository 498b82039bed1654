"""The encoder as an ONNX graph, written out from its weights.

No exporter stands between the checkpoint and the graph, so its bytes depend on the
weights and on this file alone. A test compares it with the published model in torch.

    input_ids, attention_mask, token_type_ids   int64[batch, tokens]
    sentence_embedding                          float32[batch, 384], of length 1

It is BERT with 6 layers (Devlin et al. 2018), normalisation after each addition, then
the mean over the tokens that the mask keeps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from examples.encoder.published import Weights

LAYERS = 6
HEADS = 12
DIMENSIONS = 384
HEAD_DIMENSIONS = DIMENSIONS // HEADS

# Gelu is an operator from 20 on; runtimes since 1.20 read this pair.
_OPSET = 20
_IR_VERSION = 9
_EPSILON = 1e-12
# BERT's own. The softmax of what it is added to is exactly 0, and it stays finite.
_MASKED = 10_000.0
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Builder:
    """Nodes and weights in the order in which they are added."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, made: str, *read: str, **attributes: object) -> str:
        """Add a node that makes one value; return the value's name."""
        self.nodes.append(
            helper.make_node(operator, list(read), [made], name=made, **attributes)
        )
        return made

    def constant(self, name: str, value: ArrayLike, dtype: type = np.int64) -> str:
        """Return the name of a constant."""
        if name not in self.initializers:
            array: NDArray[Any] = np.asarray(value, dtype)
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, *, transposed: bool = False) -> str:
        """Return the name of one of the checkpoint's tensors."""
        array: NDArray[np.float32] = self._weights[name]
        if transposed:
            # torch keeps [out, in]; MatMul reads [in, out].
            array = np.ascontiguousarray(array.T)
        return self.constant(name, array, np.float32)

    def linear(self, made: str, read: str, part: str) -> str:
        """Multiply by a matrix and add its bias."""
        matrix = self.weight(f"{part}.weight", transposed=True)
        product = self.add("MatMul", f"{made}_product", read, matrix)
        return self.add("Add", made, product, self.weight(f"{part}.bias"))

    def normalised(self, made: str, read: str, part: str) -> str:
        """Normalise each token's vector."""
        scale, bias = self.weight(f"{part}.weight"), self.weight(f"{part}.bias")
        return self.add(
            "LayerNormalization", made, read, scale, bias, axis=-1, epsilon=_EPSILON
        )


def build_graph(weights: Weights) -> onnx.ModelProto:
    """Return the whole model.

    Args:
        weights: The published ones.
    """
    build = _Builder(weights)
    hidden = _embedded(build)
    bias = _mask_bias(build)
    for layer in range(LAYERS):
        hidden = _layer(build, layer, hidden, bias)
    _pooled(build, hidden)
    shape = ["batch", "tokens"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        for name in _INPUTS
    ]
    output = helper.make_tensor_value_info(
        "sentence_embedding", TensorProto.FLOAT, ["batch", DIMENSIONS]
    )
    graph = helper.make_graph(
        build.nodes,
        "all-MiniLM-L6-v2",
        inputs,
        [output],
        list(build.initializers.values()),
        # What no inference finds out: that the positions are as many as the tokens.
        # With it additions and normalisations are fused alike in parts and whole.
        value_info=[
            helper.make_tensor_value_info(
                "hidden0", TensorProto.FLOAT, [*shape, DIMENSIONS]
            )
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model)
    return model


def _embedded(build: _Builder) -> str:
    """Add up each token's word, kind and position."""
    table = "embeddings.{}_embeddings.weight"
    word = build.add("Gather", "word", build.weight(table.format("word")), "input_ids")
    kind = build.add(
        "Gather", "kind", build.weight(table.format("token_type")), "token_type_ids"
    )
    length = build.add("Shape", "length", "input_ids", start=1, end=2)
    position = build.add(
        "Slice",
        "position",
        build.weight(table.format("position")),
        build.constant("start", [0]),
        length,
        build.constant("token_axis", [0]),
    )
    both = build.add("Add", "word_kind", word, kind)
    summed = build.add("Add", "word_kind_position", both, position)
    return build.normalised("hidden0", summed, "embeddings.LayerNorm")


def _mask_bias(build: _Builder) -> str:
    """Return [batch, 1, 1, tokens]: 0 where a token counts, far below 0 elsewhere."""
    axes = build.constant("mask_axes", [1, 2])
    wide = build.add("Unsqueeze", "mask_wide", "attention_mask", axes)
    kept = build.add("Cast", "mask_kept", wide, to=TensorProto.FLOAT)
    one = build.constant("one", 1.0, np.float32)
    masked = build.constant("masked", _MASKED, np.float32)
    # Not one less kept: ONNX Runtime knows that pattern, and makes a layer's nodes one
    # where the mask is in sight. Parts and whole would differ in their last bits.
    left_out = build.add("Sub", "mask_left_out", kept, one)
    return build.add("Mul", "mask_bias", left_out, masked)


def _layer(build: _Builder, layer: int, hidden: str, bias: str) -> str:
    part, at = f"encoder.layer.{layer}", f"layer{layer}"
    mixed = _attention(build, layer, hidden, bias)
    dense = build.linear(f"{at}_attended", mixed, f"{part}.attention.output.dense")
    summed = build.add("Add", f"{at}_attended_sum", dense, hidden)
    between = build.normalised(
        f"{at}_between", summed, f"{part}.attention.output.LayerNorm"
    )
    wide = build.linear(f"{at}_wide", between, f"{part}.intermediate.dense")
    active = build.add("Gelu", f"{at}_active", wide)
    narrow = build.linear(f"{at}_narrow", active, f"{part}.output.dense")
    summed = build.add("Add", f"{at}_sum", narrow, between)
    return build.normalised(f"hidden{layer + 1}", summed, f"{part}.output.LayerNorm")


def _attention(build: _Builder, layer: int, hidden: str, bias: str) -> str:
    """Return [batch, tokens, 384]: each token's mixture of what the others say."""
    part, at = f"encoder.layer.{layer}.attention.self", f"layer{layer}"

    def heads(of: str, permutation: list[int]) -> str:
        flat = build.linear(f"{at}_{of}", hidden, f"{part}.{of}")
        # 0 keeps a size: the graph need not know how many tokens there are.
        shape = build.constant("by_head", [0, 0, HEADS, HEAD_DIMENSIONS])
        apart = build.add("Reshape", f"{at}_{of}_apart", flat, shape)
        return build.add("Transpose", f"{at}_{of}_heads", apart, perm=permutation)

    query, value = heads("query", [0, 2, 1, 3]), heads("value", [0, 2, 1, 3])
    key = heads("key", [0, 2, 3, 1])
    scale = build.constant("scale", HEAD_DIMENSIONS**-0.5, np.float32)
    product = build.add("MatMul", f"{at}_scores", query, key)
    scaled = build.add("Mul", f"{at}_scaled", product, scale)
    weighed = build.add("Add", f"{at}_biased", scaled, bias)
    shares = build.add("Softmax", f"{at}_shares", weighed, axis=-1)
    mixed = build.add("MatMul", f"{at}_mixed", shares, value)
    apart = build.add("Transpose", f"{at}_mixed_apart", mixed, perm=[0, 2, 1, 3])
    shape = build.constant("together", [0, 0, DIMENSIONS])
    return build.add("Reshape", f"{at}_together", apart, shape)


def _pooled(build: _Builder, hidden: str) -> None:
    """Add the mean over the tokens that count, brought to length 1."""
    last, tokens = build.constant("last_axis", [-1]), build.constant("tokens_axis", [1])
    wide = build.add("Unsqueeze", "pool_wide", "attention_mask", last)
    kept = build.add("Cast", "pool_kept", wide, to=TensorProto.FLOAT)
    masked = build.add("Mul", "pool_masked", hidden, kept)
    summed = build.add("ReduceSum", "pool_sum", masked, tokens, keepdims=0)
    count = build.add("ReduceSum", "pool_count", kept, tokens, keepdims=0)
    mean = build.add("Div", "pool_mean", summed, count)
    length = build.add("ReduceL2", "pool_length", mean, last, keepdims=1)
    build.add("Div", "sentence_embedding", mean, length)
