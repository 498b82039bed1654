"""Altered copies of a segment: the cheats that a plan's tolerance must tell apart.

Each is a pure function from a model to a model with the same inputs and outputs, one
that really computes something else: a weight that is used is changed, or a node.

    fp16, bf16       weights rounded to that format
    int8, int4       matrices quantised per output channel, symmetric
    one-weight       0.01 more on one weight, in a place that every input goes through
    skipped-layer    a residual block, or another layer, passed over
    scaled           floating-point outputs times 1.01

Quantised weights are put back into the model's own format: what is changed is what is
computed, not how fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split.altered_weights import (
    NotApplicableError,
    bf16,
    fp16,
    int4,
    int8,
    one_weight,
    require_inline,
)
from bentoml_secure.split.protos import inner_graphs
from bentoml_secure.split.skipped_layer import skipped_layer

SCALE = 1.01
# What ONNX's and numpy's readers of tensors raise on bytes that do not fit.
_UNREADABLE = (IndexError, KeyError, OverflowError, TypeError, ValueError)
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)

__all__ = ["ALTERATIONS", "NotApplicableError", "SCALE", "alter", "scaled"]

Alteration = Callable[[ModelProto], ModelProto]


def scaled(model: ModelProto) -> ModelProto:
    """Multiply every floating-point output by 1.01.

    Raises:
        NotApplicableError: No output is floating point.
    """
    altered = ModelProto()
    altered.CopyFrom(model)
    graph = altered.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    outputs = [
        name
        for name, kind in kinds.items()
        if kind in _FLOATS and any(name in node.output for node in graph.node)
    ]
    if not outputs:
        raise NotApplicableError("scaled: the segment has no floating-point output")
    for name in outputs:
        honest = _unused(graph, f"{name}_unscaled")
        factor = _unused(graph, f"{name}_factor")
        _rename(graph, name, honest)
        dtype = helper.tensor_dtype_to_np_dtype(kinds[name])
        graph.initializer.append(
            numpy_helper.from_array(np.array(SCALE, dtype), factor)
        )
        graph.node.append(helper.make_node("Mul", [honest, factor], [name]))
    return altered


def _unused(graph: GraphProto, wanted: str) -> str:
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    while wanted in taken:
        wanted += "_"
    return wanted


def _rename(graph: GraphProto, old: str, new: str) -> None:
    """Give a value another name wherever a node makes or reads it, bodies included."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        _rename_inside(node, old, new)


def _rename_inside(node: NodeProto, old: str, new: str) -> None:
    for body in inner_graphs(node):
        _rename(body, old, new)
        for value in body.output:
            if value.name == old:
                value.name = new


ALTERATIONS: Mapping[str, Alteration] = {
    "fp16": fp16,
    "bf16": bf16,
    "int8": int8,
    "int4": int4,
    "one-weight": one_weight,
    "skipped-layer": skipped_layer,
    "scaled": scaled,
}
"""By name: the cheats that calibration measures."""


def alter(name: str, model: ModelProto) -> ModelProto:
    """Return an altered copy of a segment's model.

    Args:
        name: Of the alteration, one of ``ALTERATIONS``.
        model: The segment's, its weights inside it: see ``inline_segment``.

    Raises:
        ConfigurationError: No such alteration, or weights outside the model.
        MalformedInputError: A weight whose bytes are not what it says.
        NotApplicableError: The segment has nothing that it could change.
    """
    if name not in ALTERATIONS:
        raise ConfigurationError(
            f"alteration: got {name!r:.60}, want one of {', '.join(ALTERATIONS)}"
        )
    require_inline(model)
    try:
        return ALTERATIONS[name](model)
    except _UNREADABLE as error:
        raise MalformedInputError(
            f"{name}: a weight is not in order: {error}"
        ) from error
