"""Operators with weights: products, convolutions, normalisations; and pooling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from bentoml_secure.split.torch_operators.operator import Attributes, Inputs, Operator

_CONVOLUTIONS = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_MAX_POOLS = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
_WINDOW = {"auto_pad", "dilations", "kernel_shape", "pads", "strides"}


def _optional(inputs: Inputs, place: int) -> Any:
    return inputs[place] if len(inputs) > place else None


def _gemm(inputs: Inputs, attributes: Attributes) -> Any:
    left = inputs[0].t() if attributes.get("transA", 0) else inputs[0]
    right = inputs[1].t() if attributes.get("transB", 0) else inputs[1]
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    bias = _optional(inputs, 2)
    if bias is not None:
        return torch.addmm(bias, left, right, alpha=alpha, beta=beta)
    product = torch.mm(left, right)
    return product if alpha == 1.0 else product * alpha


def _padded(value: Any, attributes: Attributes, kernel: list[int], fill: float) -> Any:
    """Return the value with what a window needs around it, as much as ONNX says."""
    sides = len(kernel)
    strides = attributes.get("strides", [1] * sides)
    dilations = attributes.get("dilations", [1] * sides)
    how = attributes.get("auto_pad", "NOTSET")
    pads = list(attributes.get("pads", [0] * (2 * sides)))
    if how == "VALID":
        return value
    if how in ("SAME_UPPER", "SAME_LOWER"):
        for side, size in enumerate(value.shape[2:]):
            steps = -(-size // strides[side])
            reach = (kernel[side] - 1) * dilations[side] + 1
            missing = max((steps - 1) * strides[side] + reach - size, 0)
            small = missing // 2
            before = small if how == "SAME_UPPER" else missing - small
            pads[side], pads[sides + side] = before, missing - before
    if not any(pads):
        return value
    # torch wants the last side first, each with its beginning and end.
    around = [pads[place] for s in reversed(range(sides)) for place in (s, sides + s)]
    return functional.pad(value, around, value=fill)


def _conv(inputs: Inputs, attributes: Attributes) -> Any:
    kernel = list(inputs[1].shape[2:])
    value = _padded(inputs[0], attributes, kernel, 0.0)
    return _CONVOLUTIONS[len(kernel)](
        value,
        inputs[1],
        _optional(inputs, 2),
        stride=tuple(attributes.get("strides", [1] * len(kernel))),
        dilation=tuple(attributes.get("dilations", [1] * len(kernel))),
        groups=attributes.get("group", 1),
    )


def _max_pool(inputs: Inputs, attributes: Attributes) -> Any:
    kernel = list(attributes["kernel_shape"])
    return _MAX_POOLS[len(kernel)](
        _padded(inputs[0], attributes, kernel, float("-inf")),
        tuple(kernel),
        stride=tuple(attributes.get("strides", [1] * len(kernel))),
        dilation=tuple(attributes.get("dilations", [1] * len(kernel))),
    )


def _global_average(inputs: Inputs, _: Attributes) -> Any:
    sides = tuple(range(2, inputs[0].dim()))
    return torch.mean(inputs[0], sides, keepdim=True)


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Any:
    value, scale, bias, mean, variance = inputs
    epsilon = attributes.get("epsilon", 1e-5)
    return functional.batch_norm(
        value, mean, variance, scale, bias, training=False, eps=epsilon
    )


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Any:
    axis = attributes.get("axis", -1) % inputs[0].dim()
    shape = inputs[0].shape[axis:]
    bias = _optional(inputs, 2)
    return functional.layer_norm(
        inputs[0],
        shape,
        inputs[1].expand(shape),
        None if bias is None else bias.expand(shape),
        attributes.get("epsilon", 1e-5),
    )


def _softmax(inputs: Inputs, attributes: Attributes) -> Any:
    return torch.softmax(inputs[0], attributes.get("axis", -1))


def _log_softmax(inputs: Inputs, attributes: Attributes) -> Any:
    return torch.log_softmax(inputs[0], attributes.get("axis", -1))


LAYERS: Mapping[str, Operator] = {
    "BatchNormalization": Operator(
        # momentum is for training alone.
        run=_batch_norm,
        attributes=frozenset({"epsilon", "momentum"}),
        fixed={"training_mode": 0},
    ),
    "Conv": Operator(run=_conv, attributes=frozenset({*_WINDOW, "group"})),
    "Gemm": Operator(
        run=_gemm, attributes=frozenset({"alpha", "beta", "transA", "transB"})
    ),
    "GlobalAveragePool": Operator(run=_global_average),
    "LayerNormalization": Operator(
        run=_layer_norm,
        attributes=frozenset({"axis", "epsilon"}),
        fixed={"stash_type": 1},
    ),
    "LogSoftmax": Operator(run=_log_softmax, attributes=frozenset({"axis"})),
    "MatMul": Operator(run=lambda inputs, _: torch.matmul(inputs[0], inputs[1])),
    "MaxPool": Operator(
        run=_max_pool,
        attributes=frozenset(_WINDOW),
        fixed={"ceil_mode": 0, "storage_order": 0},
    ),
    "Softmax": Operator(run=_softmax, attributes=frozenset({"axis"})),
}
