"""Operators that work on each element by itself, broadcast as numpy does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch

from bentoml_secure.split.torch_operators.operator import Attributes, Inputs, Operator
from bentoml_secure.split.types import DTYPE_NAMES

_TORCH_DTYPES = {number: getattr(torch, name) for number, name in DTYPE_NAMES.items()}


def _unary(function: Callable[[Any], Any]) -> Operator:
    return Operator(run=lambda inputs, _: function(inputs[0]))


def _binary(function: Callable[[Any, Any], Any]) -> Operator:
    return Operator(run=lambda inputs, _: function(inputs[0], inputs[1]))


def _variadic(function: Callable[[Any, Any], Any]) -> Operator:
    return Operator(run=lambda inputs, _: reduce(function, inputs))


def _div(a: Any, b: Any) -> Any:
    # Integers are divided towards zero, and stay integers.
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _pow(a: Any, b: Any) -> Any:
    return torch.pow(a, b).to(a.dtype)


def _cast(inputs: Inputs, attributes: Attributes) -> Any:
    return inputs[0].to(_TORCH_DTYPES[attributes["to"]])


def _clip(inputs: Inputs, _: Attributes) -> Any:
    low, high = (*inputs[1:], None, None)[:2]
    kept = inputs[0] if low is None else torch.maximum(inputs[0], low)
    return kept if high is None else torch.minimum(kept, high)


def _gelu(inputs: Inputs, attributes: Attributes) -> Any:
    approximate = attributes.get("approximate", "none")
    return torch.nn.functional.gelu(inputs[0], approximate=approximate)


def _leaky_relu(inputs: Inputs, attributes: Attributes) -> Any:
    slope = attributes.get("alpha", 0.01)
    return torch.nn.functional.leaky_relu(inputs[0], negative_slope=slope)


def _elu(inputs: Inputs, attributes: Attributes) -> Any:
    return torch.nn.functional.elu(inputs[0], alpha=attributes.get("alpha", 1.0))


ELEMENTWISE: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Cast": Operator(run=_cast, attributes=frozenset({"to"}), fixed={"saturate": 1}),
    "Ceil": _unary(torch.ceil),
    "Clip": Operator(run=_clip),
    "Cos": _unary(torch.cos),
    "Div": _binary(_div),
    "Elu": Operator(run=_elu, attributes=frozenset({"alpha"})),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": Operator(run=_gelu, attributes=frozenset({"approximate"})),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Identity": _unary(lambda value: value),
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": Operator(run=_leaky_relu, attributes=frozenset({"alpha"})),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "Pow": _binary(_pow),
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(torch.relu),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softplus": _unary(torch.nn.functional.softplus),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _variadic(torch.add),
    "Tanh": _unary(torch.tanh),
    "Where": Operator(run=lambda inputs, _: torch.where(*inputs)),
    "Xor": _binary(torch.logical_xor),
}
