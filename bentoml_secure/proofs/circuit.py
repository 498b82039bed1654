"""The ONNX graph that a segment's circuit is compiled from.

    boundary      float32[1, n + S]   the segment's inputs, flattened, then salt
    next_salt     float32[1, S]       of the boundary that comes out
    boundary_out  float32[1, m + S]   the segment's outputs, flattened, then next_salt

The segment's own nodes and weights stand in it, and what is added cuts the boundary
apart and joins the next one. Sizes are fixed: a circuit has one shape. The same plan
gives the same bytes, so that a verifier can build the circuit anew.

Functions that flatten out get their argument clipped where they are flat: a circuit
looks them up in a table as wide as the arguments can be, and one answer far from the
others would make the table a thousand times as wide for nothing. What that changes is
at most ``SATURATED``, and part of what a set-up's samples measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.boundary import MAX_ACTIVATIONS, FixedTensor, SaltForm
from bentoml_secure.split import Plan, Segment, inline_segment
from bentoml_secure.tensors import TensorSpec

BOUNDARY = "boundary"
NEXT_SALT = "next_salt"
BOUNDARY_OUT = "boundary_out"

_PREFIX = "proof"
_PRODUCER = "bentoml_secure"
_DTYPE = "float32"
# In it Slice and Clip take their ends as inputs, as they are given here.
_LEAST_OPSET = 11

SATURATED: Mapping[str, tuple[float, float]] = {
    "Sigmoid": (8.0, 3.4e-4),
    "Tanh": (4.5, 2.5e-4),
    "Erf": (3.0, 2.3e-5),
}
"""By operator: the magnitude at which its argument is clipped, and what that changes
at most: 1 - sigmoid(8), 1 - tanh(4.5), 1 - erf(3)."""

Form = tuple[FixedTensor, ...]
"""The tensors of one boundary, in order."""


def boundaries_of(
    plan: Plan, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Form, ...]:
    """Return the forms of a plan's boundaries: one more than it has segments.

    Args:
        plan: What is to be proven.
        shapes: Of every tensor in one request, by name.

    Raises:
        ConfigurationError: The plan is no chain, a tensor is not of float32, or a
            shape is missing or another than the plan's.
    """
    _require_chain(plan)
    sides = [plan.inputs, *(segment.outputs for segment in plan.segments)]
    forms = []
    for index, specs in enumerate(sides):
        form = tuple(_fixed(spec, shapes) for spec in specs)
        size = sum(tensor.size for tensor in form)
        if not 0 < size <= MAX_ACTIVATIONS:
            raise ConfigurationError(
                f"boundary {index}: got {size} elements, want 1 to {MAX_ACTIVATIONS}"
            )
        forms.append(form)
    return tuple(forms)


def _require_chain(plan: Plan) -> None:
    """Refuse plans in which a value skips a segment: proofs link neighbours only."""
    made = _names(plan.inputs)
    for index, segment in enumerate(plan.segments):
        reads = _names(segment.inputs)
        if reads != made:
            raise ConfigurationError(
                f"segment {index} inputs: got {sorted(reads)!r:.200}, want just what "
                f"comes out before it, {sorted(made)!r:.200}.",
                remedy="Cut elsewhere (`bentoml-secure split --cut`): where nothing "
                "but the next segment reads what is cut.",
            )
        made = _names(segment.outputs)
    if _names(plan.outputs) != made:
        raise ConfigurationError(
            f"model outputs: got {sorted(_names(plan.outputs))!r:.200}, want just what "
            f"the last segment makes, {sorted(made)!r:.200}.",
            remedy="Cut after the last output that comes early, or drop it.",
        )


def _names(specs: Iterable[TensorSpec]) -> set[str]:
    return {spec.name for spec in specs}


def _fixed(spec: TensorSpec, shapes: Mapping[str, tuple[int, ...]]) -> FixedTensor:
    if spec.dtype != _DTYPE:
        raise ConfigurationError(
            f"tensor {spec.name!r:.100}: got {spec.dtype}, want {_DTYPE} at both ends "
            "of every segment that is proven.",
            remedy="Cut elsewhere, or leave what looks up indices out of the model.",
        )
    shape = shapes.get(spec.name)
    if (
        shape is None
        or len(shape) != len(spec.shape)
        or any(
            size != want
            for size, want in zip(shape, spec.shape, strict=True)
            if isinstance(want, int)
        )
    ):
        raise ConfigurationError(
            f"tensor {spec.name!r:.100}: got shape {shape}, want one of "
            f"{list(spec.shape)}"
        )
    return FixedTensor(name=spec.name, shape=shape)


def circuit_model(
    segment: Segment,
    contents: Mapping[str, bytes],
    inputs: Form,
    outputs: Form,
    salt: SaltForm,
) -> bytes:
    """Return the graph that a segment's circuit is compiled from; see the module.

    Args:
        segment: Its entry in the plan.
        contents: The bytes of each of its files by path, compared with their digests.
        inputs: Form of the boundary that goes in.
        outputs: Form of the boundary that comes out.
        salt: Form of every boundary's salt.

    Raises:
        ConfigurationError: Its operators are of a version that is too old.
        MalformedInputError: Not the segment's files; see ``inline_segment``.
        VerificationError: See ``inline_segment``.
    """
    source = inline_segment(segment, contents)
    _require_opset(source, segment.file)
    graph = source.graph
    own = _Names(source)
    made = ModelProto(
        ir_version=source.ir_version,
        opset_import=source.opset_import,
        functions=source.functions,
        producer_name=_PRODUCER,
    )
    made.graph.name = "segment"
    boundary, next_salt, boundary_out = map(
        own.free, (BOUNDARY, NEXT_SALT, BOUNDARY_OUT)
    )
    size_in = sum(tensor.size for tensor in inputs) + salt.elements
    size_out = sum(tensor.size for tensor in outputs) + salt.elements
    made.graph.input.append(_row(boundary, size_in))
    made.graph.input.append(_row(next_salt, salt.elements))
    made.graph.output.append(_row(boundary_out, size_out))
    made.graph.initializer.extend(graph.initializer)
    made.graph.sparse_initializer.extend(graph.sparse_initializer)
    added = _Added(made, own)
    added.cut(boundary, inputs)
    for node in graph.node:
        added.saturate(node)
    added.join(outputs, next_salt, boundary_out)
    data: bytes = made.SerializeToString(deterministic=True)
    return data


def _require_opset(model: ModelProto, file: str) -> None:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version < _LEAST_OPSET:
            raise ConfigurationError(
                f"{file}: got ONNX operators of version {entry.version}, want "
                f"{_LEAST_OPSET} or newer.",
                remedy="Export the model anew, or use onnx.version_converter, then "
                "split it again.",
            )


def _row(name: str, size: int) -> ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])


class _Names:
    """Names that a graph has taken, its inner graphs included."""

    def __init__(self, model: ModelProto) -> None:
        self._taken = set[str]()
        # Whatever is text in the graph: inner graphs see the outer one's names.
        self._add(model.graph)

    def _add(self, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output, *graph.initializer):
            self._taken.add(value.name)
        for node in graph.node:
            self._taken.update(node.input, node.output)
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    self._add(inner)

    def free(self, name: str) -> str:
        """Take a name that nothing has: this one, or with underscores behind it."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


class _Added:
    """Writes nodes beside a segment's own."""

    def __init__(self, model: ModelProto, names: _Names) -> None:
        self._graph = model.graph
        self._names = names

    def cut(self, boundary: str, form: Form) -> None:
        """Make each tensor of a form out of its part of the boundary."""
        start = 0
        axis = self._integers("axis", [1])
        for tensor in form:
            end = start + tensor.size
            part = self._name("part")
            ends = [self._integers("at", [start]), self._integers("at", [end])]
            self._node("Slice", [boundary, *ends, axis], part)
            self._reshape(part, tensor.shape, tensor.name)
            start = end

    def join(self, form: Form, salt: str, boundary: str) -> None:
        """Make the boundary out of a form's tensors and its salt."""
        rows = []
        for tensor in form:
            rows.append(self._name("row"))
            self._reshape(tensor.name, (1, math.prod(tensor.shape)), rows[-1])
        self._node("Concat", [*rows, salt], boundary, axis=1)

    def saturate(self, node: NodeProto) -> None:
        """Write one of the segment's own nodes; see the module for what is clipped."""
        if node.op_type in SATURATED and node.domain in ("", "ai.onnx"):
            most, _ = SATURATED[node.op_type]
            clipped = self._name("clipped")
            ends = [self._number("end", -most), self._number("end", most)]
            self._node("Clip", [node.input[0], *ends], clipped)
            copied = NodeProto()
            copied.CopyFrom(node)
            copied.input[0] = clipped
            node = copied
        self._graph.node.append(node)

    def _number(self, what: str, value: float) -> str:
        name = self._name(what)
        array = np.array(value, np.float32)
        self._graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _reshape(self, given: str, shape: Sequence[int], made: str) -> None:
        self._node("Reshape", [given, self._integers("shape", shape)], made)

    def _integers(self, what: str, values: Sequence[int]) -> str:
        name = self._name(what)
        array = np.array(values, np.int64)
        self._graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _name(self, what: str) -> str:
        return self._names.free(f"{_PREFIX}_{what}")

    def _node(
        self, operator: str, inputs: Sequence[str], output: str, **attributes: int
    ) -> None:
        node: NodeProto = onnx.helper.make_node(
            operator, inputs, [output], name=self._name(operator), **attributes
        )
        self._graph.node.append(node)
