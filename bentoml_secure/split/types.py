"""Types and shapes of a graph's values, inferred without its weights.

Inference runs on a copy of the graph whose large weights have become inputs, so that
a model of any size is inferred from a small message. What ONNX cannot say (operators
of other domains) ONNX Runtime is asked.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from bentoml_secure.split.runtime import RUN_ERRORS
from bentoml_secure.tensors import DTYPES

# Shapes for Reshape, axes for Squeeze: what inference has to read stays.
_SMALL_ELEMENTS = 1024
_FIRST_IR_WITH_FREE_INITIALIZERS = 4
_SILENT = 4
DTYPE_NAMES = {
    onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)): name for name in DTYPES
}
_ELEMENTS = {
    **{f"tensor({name})": element for element, name in DTYPE_NAMES.items()},
    "tensor(float)": TensorProto.FLOAT,
    "tensor(double)": TensorProto.DOUBLE,
}


def infer(model: ModelProto) -> dict[str, TypeProto.Tensor]:
    """Return the tensor type of every value of the main graph that has a known one."""
    skeleton = without_weights(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        # A custom operator, or a type that inference disputes: ask the other one.
        inferred = skeleton
    graph = inferred.graph
    known = {
        value.name: value.type.tensor_type
        for value in (*graph.value_info, *graph.output, *graph.input)
        if value.type.HasField("tensor_type")
        and value.type.tensor_type.elem_type
        and value.type.tensor_type.HasField("shape")
    }
    # What is known to be something else than a tensor needs no second opinion.
    told = known.keys() | {
        value.name
        for value in (*graph.value_info, *graph.output, *graph.input)
        if value.type.WhichOneof("value") not in (None, "tensor_type")
    }
    made = [name for node in skeleton.graph.node for name in node.output if name]
    unknown = [name for name in made if name not in told]
    return known | _ask_runtime(skeleton, unknown) if unknown else known


def without_weights(model: ModelProto) -> ModelProto:
    """Return a copy of the model whose large constants are inputs instead."""
    graph = model.graph
    skeleton = ModelProto(
        ir_version=max(model.ir_version, _FIRST_IR_WITH_FREE_INITIALIZERS),
        opset_import=model.opset_import,
        functions=model.functions,
    )
    skeleton.graph.name = graph.name
    listed = {value.name for value in graph.input}
    skeleton.graph.input.extend(graph.input)
    for tensor in graph.initializer:
        if _is_small(tensor):
            skeleton.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            skeleton.graph.input.append(_described(tensor.name, tensor))
    for sparse in graph.sparse_initializer:
        if sparse.values.name not in listed:
            value = onnx.helper.make_tensor_value_info(
                sparse.values.name, sparse.values.data_type, sparse.dims
            )
            skeleton.graph.input.append(value)
    for node in graph.node:
        large = _large_constant(node)
        if large is None:
            skeleton.graph.node.append(node)
        else:
            skeleton.graph.input.append(_described(node.output[0], large))
    skeleton.graph.output.extend(graph.output)
    skeleton.graph.value_info.extend(graph.value_info)
    return skeleton


def _large_constant(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        if attribute.name == "value" and not _is_small(attribute.t):
            return attribute.t
    return None


def _is_small(tensor: TensorProto) -> bool:
    elements = 1
    for size in tensor.dims:
        elements *= size
    return elements <= _SMALL_ELEMENTS


def _described(name: str, tensor: TensorProto) -> ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)


def _ask_runtime(
    skeleton: ModelProto, unknown: Iterable[str]
) -> dict[str, TypeProto.Tensor]:
    """Return the types that ONNX Runtime infers; none, if it cannot load the graph."""
    asked = ModelProto()
    asked.CopyFrom(skeleton)
    listed = {value.name for value in asked.graph.output}
    asked.graph.output.extend(
        ValueInfoProto(name=name) for name in unknown if name not in listed
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    options.log_severity_level = _SILENT
    try:
        session = onnxruntime.InferenceSession(
            asked.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,
        )
    except RUN_ERRORS:
        return {}
    types = {}
    for argument in session.get_outputs():
        element = _ELEMENTS.get(argument.type)
        # A shape of no dimensions may mean a scalar or that nothing is known.
        if element is not None and argument.shape:
            made = onnx.helper.make_tensor_type_proto(element, argument.shape)
            types[argument.name] = made.tensor_type
    return types
