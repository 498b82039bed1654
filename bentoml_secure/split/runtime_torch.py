"""torch, on the CPU, running a segment's ONNX graph node by node.

Another implementation of the same arithmetic than ONNX Runtime's: replicas on both are
harder to break in the same way. Its operators are in ``torch_operators``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    MissingDependencyError,
)
from bentoml_secure.split.inlining import inline_segment
from bentoml_secure.split.plan import Segment
from bentoml_secure.split.types import DTYPE_NAMES
from bentoml_secure.tensors import Array, TensorSpec

try:
    import torch

    from bentoml_secure.split.torch_operators import OPERATORS
    from bentoml_secure.split.torch_operators.operator import Operator
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        "runtime torch: torch is not installed.",
        remedy="pip install 'bentoml-secure[torch]'",
    ) from error

OPSETS = range(13, 24)
# What torch raises on values and shapes that do not fit, as far as it has been seen.
RUN_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A node, ready to run.

    Attributes:
        operator: What it does.
        attributes: Of the node, as Python and torch have them.
        inputs: Names of what it reads, empty for what is left out.
        outputs: Names of what it makes.
        last: Of the values it reads, those that nothing reads afterwards.
    """

    name: str
    operator: Operator
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...]


class TorchEngine:
    """One segment in torch.

    Args:
        segment: Its entry in the plan.
        contents: The bytes of its files by path, compared with their digests.
        threads: For one operation, in all of the process; torch's choice if None.

    Raises:
        ConfigurationError: It has operators that torch is not told how to do.
        MalformedInputError: Not ONNX, or not the segment that the plan describes.
        VerificationError: It names a file that the plan does not list.
    """

    def __init__(
        self, segment: Segment, contents: Mapping[str, bytes], *, threads: int | None
    ) -> None:
        model = inline_segment(segment, contents)
        self._file = segment.file
        self._threads = threads
        _require_described(segment, model)
        _require_known(segment.file, model)
        self._outputs = [spec.name for spec in segment.outputs]
        try:
            self._weights = {
                tensor.name: _tensor(tensor) for tensor in model.graph.initializer
            }
            self._steps = _steps(model, {*self._outputs, *self._weights})
        except RUN_ERRORS as error:
            raise MalformedInputError(
                f"{segment.file}: torch cannot load it: {error}"
            ) from error

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the segment; see ``runtime.Engine``."""
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        values: dict[str, Any] = dict(self._weights)
        at = "its inputs"
        try:
            with torch.inference_mode():
                for name, array in tensors.items():
                    values[name] = _from_array(array)
                for step in self._steps:
                    at = step.name
                    _take(step, values)
            return {name: _to_array(values[name]) for name in self._outputs}
        except RUN_ERRORS as error:
            raise MalformedInputError(
                f"{self._file}: torch refused its inputs, at {at:.100}: {error}"
            ) from error


def _take(step: _Step, values: dict[str, Any]) -> None:
    inputs = [values[name] if name else None for name in step.inputs]
    made = step.operator.run(inputs, step.attributes)
    outputs = made if isinstance(made, tuple | list) else (made,)
    for name, value in zip(step.outputs, outputs, strict=True):
        values[name] = value
    for name in step.last:
        del values[name]


def _from_array(array: Array) -> Any:
    # torch warns of arrays that it may not write to; views of messages are such.
    return torch.from_numpy(np.require(array, requirements=("A", "C", "W")))


def _to_array(value: Any) -> Array:
    return np.require(value.detach().numpy(), requirements=("A", "C"))


def _tensor(tensor: TensorProto) -> Any:
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))


def _steps(model: ModelProto, kept: set[str]) -> tuple[_Step, ...]:
    """Return the graph's nodes in order, each with the values that end with it."""
    steps: list[_Step] = []
    read_later = set(kept)
    for node in reversed(model.graph.node):
        operator = OPERATORS[node.op_type]
        names = {name for name in node.input if name}
        steps.append(
            _Step(
                name=f"{node.op_type} {node.output[0]}",
                operator=operator,
                attributes={a.name: _attribute(a) for a in node.attribute},
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                last=tuple(sorted(names - read_later)),
            )
        )
        read_later |= names
    return tuple(reversed(steps))


def _attribute(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return _tensor(value)
    return value.decode() if isinstance(value, bytes) else value


def _require_known(file: str, model: ModelProto) -> None:
    """Refuse what torch is not told how to do, all of it by name."""
    unknown = {reason for node in model.graph.node for reason in _reasons(node)}
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if any(version not in OPSETS for version in versions):
        unknown.add(f"operator set {versions[0]}")
    if model.graph.sparse_initializer:
        unknown.add("sparse weights")
    if unknown:
        raise ConfigurationError(
            f"{file}: torch is not told how to run {', '.join(sorted(unknown)):.300}.",
            remedy="Run this segment on onnxruntime.",
        )


def _reasons(node: NodeProto) -> list[str]:
    domain = "" if node.domain == "ai.onnx" else node.domain
    operator = OPERATORS.get(node.op_type)
    if domain or operator is None:
        return [f"{domain}:{node.op_type}" if domain else node.op_type]
    reasons = [
        f"{node.op_type} with {attribute.name}"
        for attribute in node.attribute
        if attribute.name not in operator.attributes
        and helper.get_attribute_value(attribute) != operator.fixed.get(attribute.name)
    ]
    if len(node.output) > operator.most_outputs:
        reasons.append(f"{node.op_type} with {len(node.output)} outputs")
    return reasons


def _require_described(segment: Segment, model: ModelProto) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    for side, values, specs in (
        ("inputs", inputs, segment.inputs),
        ("outputs", list(model.graph.output), segment.outputs),
    ):
        _require_side(segment.file, side, values, specs)


def _require_side(
    file: str, side: str, values: Sequence[Any], specs: Sequence[TensorSpec]
) -> None:
    got = {v.name: DTYPE_NAMES.get(v.type.tensor_type.elem_type, "?") for v in values}
    want = {spec.name: spec.dtype for spec in specs}
    if got != want:
        raise MalformedInputError(
            f"{file} {side}: got {got!r:.200}, the plan says {want!r:.200}"
        )
