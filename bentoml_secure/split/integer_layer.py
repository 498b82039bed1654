"""Segments that are one linear layer over integers, recognised exactly.

Such a segment's graph is one node and nothing else, its weights are initializers:

    MatMulInteger   int8 or uint8 matrices, zero points of one element (that of the
                    weights also one per column), too short to overflow int32
    MatMul, Gemm    float32 or float64 whose weights and bias are whole numbers; Gemm
                    with alpha and beta 1 and inputs that are not transposed. Whether a
                    given input is whole and small enough to be summed exactly, its
                    values say (``IntegerLayer.integers``)

What such a layer puts out is given * weights + bias over the integers, with no
rounding, in whatever order a runtime adds it up. Everything else is no such layer.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split.plan import Segment
from bentoml_secure.split.protos import external_location, parse_model
from bentoml_secure.tensors import Array

Integers = NDArray[np.int64]

_MAX_WEIGHT = 2**42
_MAX_ROWS = 2**20
"""So many of the largest add up to 2^62, which int64 holds."""

_INT32_MAX = 2**31 - 1
_UINT8_SPAN = 255
"""Of an 8-bit value from any 8-bit zero point."""

_EXACT: Mapping[str, int] = {"float32": 2**24, "float64": 2**53}
_GEMM: Mapping[str, float] = {"alpha": 1.0, "beta": 1.0, "transA": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerLayer:
    """A linear layer over integers: given * weights + bias.

    Attributes:
        given: Name of the tensor that goes in.
        made: Name of the tensor that comes out.
        weights: [k, n], the zero point taken off.
        bias: [n].
        zero_point: Taken off what goes in.
        largest: Magnitude up to which every sum is exact in the layer's type.
        span: Largest sum of the magnitudes of a column of weights.
    """

    given: str
    made: str
    weights: Integers
    bias: Integers
    zero_point: int
    largest: int
    span: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        columns = np.abs(self.weights).sum(axis=0)
        object.__setattr__(self, "span", int(columns.max(initial=0)))

    def reach(self, given: int) -> int:
        """Return what sums may come to, of inputs of at most that magnitude."""
        # Of Python's numbers: int64 could overflow.
        return self.span * given + int(np.abs(self.bias).max(initial=0))

    def integers(self, given: Array) -> Integers:
        """Return what goes in as a matrix of integers, the zero point taken off.

        Args:
            given: [..., k].

        Raises:
            MalformedInputError: Another last axis; values that are not whole; sums
                that may be beyond what the layer's type adds up exactly.
        """
        matrix = _matrix(given, len(self.weights), self.given) - self.zero_point
        reach = self.reach(int(np.abs(matrix).max(initial=0)))
        if reach > self.largest:
            raise MalformedInputError(
                f"tensor {self.given!r:.60}: its products may add up to {reach}, want "
                f"at most {self.largest}, or they are rounded"
            )
        return matrix


def _matrix(values: Array, width: int, name: str) -> Integers:
    if values.ndim < 1 or values.shape[-1] != width:
        raise MalformedInputError(
            f"tensor {name!r:.60}: got shape {values.shape}, want {width} at its end"
        )
    return whole_numbers(values, name).reshape(-1, width)


def whole_numbers(values: Array, name: str) -> Integers:
    """Return an array's values as integers.

    Args:
        values: Of any type.
        name: Of the tensor, for the error.

    Raises:
        MalformedInputError: NaN, fractions, or magnitudes beyond 2^53.
    """
    if values.dtype.kind in "iu":
        in_range = values.size == 0 or abs(int(values.max())) <= 2**53
        if in_range and (values.size == 0 or int(values.min()) >= -(2**53)):
            return values.astype(np.int64)
    elif values.dtype.kind == "f":
        wide = values.astype(np.float64)
        # NaN is not below anything, so it is refused here.
        if bool(np.all((np.abs(wide) <= 2**53) & (np.rint(wide) == wide))):
            return wide.astype(np.int64)
    raise MalformedInputError(
        f"tensor {name!r:.60}: want whole numbers of at most 2^53"
    )


def read_integer_layer(segment: Segment, contents: Mapping[str, bytes]) -> IntegerLayer:
    """Return the layer that a segment is.

    Args:
        segment: Of a plan.
        contents: The bytes of each of its files, by path; compared with their digests.

    Raises:
        ConfigurationError: The segment is no such layer.
        MalformedInputError: Its file is not ONNX.
    """
    model = parse_model(contents[segment.file], what=segment.file)
    graph, nodes = model.graph, list(model.graph.node)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    if len(nodes) != 1 or nodes[0].domain not in ("", "ai.onnx"):
        raise _other(segment, "it is not one node of ONNX's own")
    (node,) = nodes
    reader = _READERS.get(node.op_type)
    if reader is None:
        raise _other(segment, f"{node.op_type!r:.60} is none of {', '.join(_READERS)}")
    fed = [value.name for value in graph.input if value.name not in initializers]
    if fed != [node.input[0]] or [o.name for o in graph.output] != [*node.output]:
        raise _other(segment, "what goes in is not one matrix on the left")
    arrays = {
        at: _array(segment, contents, initializers, name)
        for at, name in enumerate(node.input)
        if at and name
    }
    return reader(segment, node, arrays)


def _other(segment: Segment, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{segment.file}: is no linear layer over integers: {why}.",
        remedy="Have it recomputed.",
    )


def _array(
    segment: Segment,
    contents: Mapping[str, bytes],
    initializers: Mapping[str, TensorProto],
    name: str,
) -> Array:
    tensor = initializers.get(name)
    if tensor is None:
        raise _other(segment, f"{name!r:.60} is no initializer")
    place = external_location(tensor)
    if place is None:
        inline: Array = numpy_helper.to_array(tensor)
        return inline
    path = posixpath.join(posixpath.dirname(segment.file), place.path)
    if path not in contents:
        raise _other(segment, f"{name!r:.60} lies in {path!r:.60}")
    length = place.require_within(len(contents[path]), name)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    data = contents[path][place.offset : place.offset + length]
    shape = tuple(tensor.dims)
    if len(data) != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise MalformedInputError(f"tensor {name!r:.60}: got {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _read_integer(
    segment: Segment, node: NodeProto, arrays: Mapping[int, Array]
) -> IntegerLayer:
    weights = _weights(segment, arrays)
    off = arrays.get(2, np.zeros(1, np.int64))
    columns = arrays.get(3, np.zeros(1, np.int64))
    if off.size != 1 or columns.size not in (1, weights.shape[1]) or columns.ndim > 1:
        raise _other(segment, "zero points of rows")
    shifted = weights - columns.astype(np.int64).reshape(-1)
    layer = IntegerLayer(
        given=node.input[0],
        made=node.output[0],
        weights=shifted,
        bias=np.zeros(weights.shape[1], np.int64),
        zero_point=int(off.reshape(-1)[0]),
        largest=_INT32_MAX,
    )
    if layer.reach(_UINT8_SPAN) > _INT32_MAX:
        raise _other(segment, "its sums may overflow int32")
    return layer


def _read_float(
    segment: Segment, node: NodeProto, arrays: Mapping[int, Array]
) -> IntegerLayer:
    weights = _weights(segment, arrays)
    got = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Gemm":
        if got.pop("transB", 0):
            weights = np.ascontiguousarray(weights.T)
        if any(_GEMM.get(name) != value for name, value in got.items()):
            raise _other(segment, "Gemm with factors, or transposed")
    elif got:
        raise _other(segment, "MatMul with attributes")
    dtype = arrays[1].dtype.name
    if dtype not in _EXACT:
        raise _other(segment, f"weights of {dtype}")
    bias = arrays.get(2, np.zeros(1, np.int64))
    if bias.size not in (1, weights.shape[1]) or bias.ndim > 2:
        raise _other(segment, f"a bias of shape {bias.shape}")
    if bias.ndim == 2 and bias.shape[0] != 1:
        raise _other(segment, f"a bias of shape {bias.shape}")
    return IntegerLayer(
        given=node.input[0],
        made=node.output[0],
        weights=weights,
        bias=_whole(segment, bias).reshape(-1) + np.zeros(weights.shape[1], np.int64),
        zero_point=0,
        largest=_EXACT[dtype],
    )


def _weights(segment: Segment, arrays: Mapping[int, Array]) -> Integers:
    if 1 not in arrays or arrays[1].ndim != 2 or not arrays[1].size:
        raise _other(segment, "its weights are no matrix")
    weights = _whole(segment, arrays[1])
    if int(np.abs(weights).max()) > _MAX_WEIGHT or len(weights) > _MAX_ROWS:
        raise _other(segment, "its weights are too many, or too large to be summed")
    return weights


def _whole(segment: Segment, array: Array) -> Integers:
    try:
        return whole_numbers(array, "weights")
    except MalformedInputError as error:
        raise _other(segment, str(error)) from error


_READERS = {"MatMulInteger": _read_integer, "MatMul": _read_float, "Gemm": _read_float}
