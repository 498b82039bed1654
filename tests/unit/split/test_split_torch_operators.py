"""Every operator that torch is told how to do, beside ONNX Runtime's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from onnx import helper as make

from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.split import Segment, SegmentFile
from bentoml_secure.split.runtime_torch import TorchEngine
from bentoml_secure.split.torch_operators import OPERATORS
from bentoml_secure.tensors import Array, TensorSpec

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def above(*shape: int) -> Array:
    return np.asarray(np.abs(floats(*shape)) + np.float32(0.1))


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


FLAGS = np.array([[True, False], [False, False]])
OTHER_FLAGS = np.array([[True, True], [False, True]])
X = floats(2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Case:
    operation: str
    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 20

    def __str__(self) -> str:
        return f"{self.operation} {self.attributes}"


def case(operation: str, *inputs: Any, **attributes: Any) -> Case:
    return Case(operation=operation, inputs=inputs, attributes=attributes)


UNARY = ["Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Identity", "Neg", "Reciprocal"]
UNARY += ["Relu", "Sigmoid", "Sign", "Sin", "Softplus", "Tanh"]
ARITHMETIC = ["Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum"]
COMPARED = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
REDUCED = ["ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"]
IMAGE = floats(1, 2, 7, 6)
KERNEL = floats(4, 2, 3, 3)

CASES = [
    *(case(name, X) for name in UNARY),
    *(case(name, above(2, 3), above(3)) for name in ARITHMETIC),
    *(case(name, X, floats(3, 1)) for name in COMPARED),
    case("Equal", whole(1, 2), whole(1, 3)),
    case("Div", whole(7, -7, 7), whole(2, 2, -2)),
    case("Pow", whole(2, 3), np.array([2.0, 3.0], np.float32)),
    case("Max", X, floats(4), floats(1)),
    *(case(name, FLAGS, OTHER_FLAGS) for name in ("And", "Or", "Xor")),
    case("Not", FLAGS),
    case("Sqrt", above(3, 2)),
    case("Log", above(3, 2)),
    case("IsNaN", np.array([1.0, np.nan], np.float32)),
    case("Cast", np.array([1.7, -1.7], np.float32), to=TensorProto.INT64),
    case("Cast", whole(0, 2), to=TensorProto.BOOL),
    case("Cast", FLAGS, to=TensorProto.FLOAT),
    case("Clip", X, np.float32(-0.5), np.float32(0.5)),
    case("Clip", X, None, np.float32(0.5)),
    case("Clip", X, np.float32(0.0)),
    case("Elu", X, alpha=0.7),
    case("Gelu", X),
    case("Gelu", X, approximate="tanh"),
    case("LeakyRelu", X, alpha=0.2),
    case("LeakyRelu", X),
    case("Where", FLAGS, floats(2, 2), floats(1)),
    case("ArgMax", np.array([[1.0, 3.0, 3.0]], np.float32), axis=1),
    case("ArgMax", X, axis=-1, keepdims=0),
    case("Concat", X, floats(2, 1, 4), axis=1),
    case("Constant", value=numpy_helper.from_array(floats(2, 2))),
    case("ConstantOfShape", whole(2, 3)),
    case(
        "ConstantOfShape",
        whole(2),
        value=numpy_helper.from_array(np.array([7], np.int64)),
    ),
    case("Expand", floats(3, 1), whole(2, 1, 4)),
    case("Expand", floats(2, 3), whole(1)),
    case("Flatten", X),
    case("Flatten", X, axis=0),
    case("Flatten", X, axis=-1),
    case("Gather", X, whole(0, -1), axis=1),
    case("Gather", X, np.array(1, np.int32)),
    case("GatherElements", floats(2, 3), np.array([[0, -1, 1]]), axis=0),
    case("Range", np.int64(1), np.int64(8), np.int64(3)),
    case("Range", np.float32(3), np.float32(0), np.float32(-1)),
    *(case(name, X, whole(-1), keepdims=0) for name in REDUCED),
    *(case(name, X) for name in REDUCED),
    *(case(name, X, whole(0, 2)) for name in REDUCED),
    case("ReduceSum", X, noop_with_empty_axes=1),
    case("ReduceSum", np.array([[1, 2]], np.int32), whole(1)),
    Case(
        operation="ReduceMean",
        inputs=(X,),
        attributes={"axes": [1], "keepdims": 1},
        opset=13,
    ),
    case("Reshape", X, whole(0, -1)),
    case("Reshape", floats(0, 3), whole(3, 0), allowzero=1),
    case("Shape", X),
    case("Shape", X, start=1, end=-1),
    case("Slice", X, whole(1), whole(1000), whole(2)),
    case("Slice", X, whole(-1, 0), whole(-1000, 2), whole(1, 2), whole(-1, 2)),
    case("Slice", X, whole(0, 1), whole(1, 3)),
    Case(
        operation="Split",
        inputs=(X, whole(1, 3)),
        attributes={"axis": 2},
        outputs=2,
    ),
    Case(
        operation="Split",
        inputs=(X,),
        attributes={"axis": 1, "num_outputs": 2},
        outputs=2,
    ),
    case("Squeeze", floats(1, 3, 1)),
    case("Squeeze", floats(1, 3, 1), whole(-1)),
    case("Tile", floats(2, 3), whole(2, 1)),
    case("Transpose", X),
    case("Transpose", X, perm=[1, 0, 2]),
    case("Trilu", X),
    case("Trilu", X, np.int64(1), upper=0),
    case("Unsqueeze", X, whole(0, -1)),
    case("BatchNormalization", IMAGE, above(2), floats(2), floats(2), above(2)),
    case("Conv", IMAGE, KERNEL),
    case("Conv", IMAGE, KERNEL, floats(4), pads=[0, 1, 2, 1], strides=[2, 1]),
    case("Conv", IMAGE, floats(4, 1, 3, 3), group=2, dilations=[2, 1]),
    case("Conv", IMAGE, KERNEL, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", IMAGE, KERNEL, auto_pad="SAME_LOWER", strides=[2, 2]),
    case("Conv", IMAGE, KERNEL, auto_pad="VALID"),
    case("Conv", floats(1, 2, 9), floats(3, 2, 3), pads=[1, 1]),
    case("Gemm", floats(2, 3), floats(3, 4)),
    case("Gemm", floats(3, 2), floats(4, 3), floats(4), transA=1, transB=1),
    case("Gemm", floats(2, 3), floats(3, 4), floats(1, 4), alpha=0.5, beta=2.0),
    case("Gemm", floats(2, 3), floats(3, 4), alpha=0.5),
    case("GlobalAveragePool", IMAGE),
    case("LayerNormalization", X, above(4), floats(4), epsilon=1e-3),
    case("LayerNormalization", X, above(3, 4), axis=1, stash_type=1),
    case("LogSoftmax", X, axis=1),
    case("MatMul", floats(2, 1, 3, 4), floats(5, 4, 2)),
    case("MaxPool", IMAGE, kernel_shape=[2, 3], strides=[2, 1], pads=[1, 0, 0, 1]),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], ceil_mode=0),
    case("Softmax", X),
    case("Softmax", X, axis=0),
]


def model_of(one: Case) -> tuple[bytes, dict[str, Array], list[str]]:
    names = ["" if given is None else f"i{n}" for n, given in enumerate(one.inputs)]
    feed = {
        name: np.asarray(given)
        for name, given in zip(names, one.inputs, strict=True)
        if given is not None
    }
    outputs = [f"o{n}" for n in range(one.outputs)]
    node = make.make_node(one.operation, names, outputs, **one.attributes)
    graph = make.make_graph(
        [node],
        "case",
        [
            make.make_tensor_value_info(
                name, make.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in feed.items()
        ],
        [make.make_empty_tensor_value_info(name) for name in outputs],
    )
    opset = [make.make_opsetid("", one.opset)]
    made = make.make_model(graph, opset_imports=opset, ir_version=9)
    return made.SerializeToString(), feed, outputs


def segment_of(
    data: bytes, feed: dict[str, Array], made: dict[str, Array]
) -> tuple[Segment, dict[str, bytes]]:
    segment = Segment(
        file="segment-0.onnx",
        files=(SegmentFile(path="segment-0.onnx", digest=digest_file_bytes(data)),),
        inputs=tuple(_spec(name, array) for name, array in feed.items()),
        outputs=tuple(_spec(name, array) for name, array in made.items()),
        tolerance=0.0,
    )
    return segment, {"segment-0.onnx": data}


def _spec(name: str, array: Array) -> TensorSpec:
    return TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape)


@pytest.mark.parametrize("one", CASES, ids=str)
def test_torch_does_what_onnx_runtime_does(one: Case) -> None:
    data, feed, names = model_of(one)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    want = dict(zip(names, session.run(names, feed), strict=True))
    # Outputs are typed by what ONNX Runtime makes of them.
    typed = typed_outputs(data, want)
    engine = TorchEngine(*segment_of(typed, feed, want), threads=1)
    got = engine.run(feed)
    assert got.keys() == want.keys()
    for name in names:
        assert got[name].dtype == want[name].dtype
        assert got[name].shape == want[name].shape
        np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=2e-6)


def typed_outputs(data: bytes, want: dict[str, Array]) -> bytes:
    made = onnx.load_model_from_string(data)
    del made.graph.output[:]
    made.graph.output.extend(
        make.make_tensor_value_info(
            name, make.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in want.items()
    )
    data = made.SerializeToString()
    return bytes(data)


def test_every_operator_of_the_table_is_tried() -> None:
    assert {one.operation for one in CASES} == OPERATORS.keys()
