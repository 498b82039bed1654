"""Hand-made ONNX graphs, each with something that splitters trip over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    numpy_helper,
)
from onnx import helper as make

from bentoml_secure.tensors import Array

FLOAT = TensorProto.FLOAT
WIDTH = 4


def value(
    name: str, shape: Sequence[int | str] | None = ("n", WIDTH), kind: int = FLOAT
) -> ValueInfoProto:
    return make.make_tensor_value_info(name, kind, shape)


def weight(name: str, *shape: int, seed: int = 0) -> TensorProto:
    random = np.random.default_rng([seed, *name.encode()])
    array = random.standard_normal(shape or (WIDTH, WIDTH)).astype(np.float32)
    return numpy_helper.from_array(array, name)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: Sequence[TensorProto] = (),
    *,
    opset: int = 17,
    ir_version: int = 8,
    functions: Sequence[Any] = (),
    domains: Sequence[str] = (),
) -> ModelProto:
    graph = make.make_graph(nodes, "graph", inputs, outputs, weights)
    opsets = [make.make_opsetid("", opset)]
    opsets += [make.make_opsetid(domain, 1) for domain in domains]
    return make.make_model(
        graph, opset_imports=opsets, ir_version=ir_version, functions=functions
    )


def save(made: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def chain(length: int = 4) -> ModelProto:
    """x -> MatMul, Relu, MatMul, Relu ... -> y."""
    names = ["x", *(f"v{index}" for index in range(1, length)), "y"]
    nodes, weights = [], []
    for index in range(length):
        if index % 2:
            node = make.make_node("Relu", [names[index]], [names[index + 1]])
        else:
            weights.append(weight(f"w{index}"))
            node = make.make_node(
                "MatMul", [names[index], f"w{index}"], [names[index + 1]]
            )
        nodes.append(node)
    return model(nodes, [value("x")], [value("y")], weights)


def _body(name: str, nodes: Sequence[NodeProto], out: str) -> GraphProto:
    return make.make_graph(nodes, name, [], [value(out, None)])


def constant_weights() -> ModelProto:
    """Weights as Constant nodes, and one derived from another."""
    first = make.make_node("Constant", [], ["c1"], value=weight("c1"))
    second = make.make_node("Constant", [], ["c2"], value=weight("c2"))
    return model(
        [
            first,
            make.make_node("MatMul", ["x", "c1"], ["a"]),
            make.make_node("Relu", ["a"], ["b"]),
            second,
            make.make_node("Transpose", ["c1"], ["turned"]),
            make.make_node("Add", ["c2", "turned"], ["sum"]),
            make.make_node("MatMul", ["b", "sum"], ["c"]),
            make.make_node("MatMul", ["c", "c1"], ["y"]),
        ],
        [value("x")],
        [value("y")],
    )


def branches() -> ModelProto:
    """If bodies that read a weight, and values made before any cut."""
    then = _body("then", [make.make_node("MatMul", ["early", "w"], ["t"])], "t")
    other = _body(
        "else",
        [
            make.make_node("Relu", ["b"], ["inner"]),
            make.make_node("Add", ["inner", "early"], ["e"]),
        ],
        "e",
    )
    return model(
        [
            make.make_node("MatMul", ["x", "w"], ["early"]),
            make.make_node("Relu", ["early"], ["a"]),
            make.make_node("Add", ["a", "x"], ["b"]),
            make.make_node("If", ["flag"], ["c"], then_branch=then, else_branch=other),
            make.make_node("Add", ["c", "b"], ["y"]),
        ],
        [value("x"), value("flag", (), TensorProto.BOOL)],
        [value("y")],
        [weight("w")],
    )


def loop() -> ModelProto:
    """A Loop whose body reads a value from outside, and carries one."""
    body = make.make_graph(
        [
            make.make_node("MatMul", ["carried", "w"], ["step"]),
            make.make_node("Add", ["step", "outside"], ["next"]),
            make.make_node("Identity", ["go"], ["still"]),
        ],
        "body",
        [
            value("turn", (), TensorProto.INT64),
            value("go", (), TensorProto.BOOL),
            value("carried", None),
        ],
        [value("still", (), TensorProto.BOOL), value("next", None)],
    )
    return model(
        [
            make.make_node("Relu", ["x"], ["outside"]),
            make.make_node("Loop", ["times", "", "x"], ["looped"], body=body),
            make.make_node("Sub", ["looped", "outside"], ["z"]),
            make.make_node("Relu", ["z"], ["y"]),
        ],
        [value("x"), value("times", (), TensorProto.INT64)],
        [value("y")],
        [weight("w")],
    )


def scan() -> ModelProto:
    """A Scan over the rows, in the middle of a chain."""
    body = make.make_graph(
        [
            make.make_node("Add", ["total", "row"], ["more"]),
            make.make_node("Identity", ["more"], ["shown"]),
        ],
        "body",
        [value("total", (WIDTH,)), value("row", (WIDTH,))],
        [value("more", (WIDTH,)), value("shown", (WIDTH,))],
    )
    return model(
        [
            make.make_node("MatMul", ["x", "w"], ["a"]),
            make.make_node(
                "Scan", ["start", "a"], ["last", "sums"], body=body, num_scan_inputs=1
            ),
            make.make_node("Add", ["sums", "last"], ["b"]),
            make.make_node("Relu", ["b"], ["y"]),
        ],
        [value("x")],
        [value("y")],
        [weight("w"), weight("start", WIDTH)],
    )


def own_function() -> ModelProto:
    """Calls of the model's own functions, one of which calls the other."""
    opset = [make.make_opsetid("", 17), make.make_opsetid("own", 1)]
    double = make.make_function(
        "own", "Double", ["a"], ["b"], [make.make_node("Add", ["a", "a"], ["b"])], opset
    )
    twice = make.make_function(
        "own",
        "Quadruple",
        ["a"],
        ["b"],
        [
            make.make_node("Double", ["a"], ["c"], domain="own"),
            make.make_node("Double", ["c"], ["b"], domain="own"),
        ],
        opset,
    )
    return model(
        [
            make.make_node("Quadruple", ["x"], ["a"], domain="own"),
            make.make_node("MatMul", ["a", "w"], ["b"]),
            make.make_node("Double", ["b"], ["c"], domain="own"),
            make.make_node("Relu", ["c"], ["y"]),
        ],
        [value("x")],
        [value("y")],
        [weight("w")],
        functions=[double, twice],
        domains=["own"],
    )


def many_ends() -> ModelProto:
    """Two inputs and one unused; an early output, a weight and an input as outputs."""
    return model(
        [
            make.make_node("MatMul", ["x", "w"], ["early"]),
            make.make_node("Relu", ["early"], ["a"]),
            make.make_node("Add", ["a", "z"], ["b"]),
            make.make_node("Neg", ["w"], ["negated"]),
            make.make_node("Relu", ["b"], ["y"]),
        ],
        [value("x"), value("z"), value("unused", ("m",))],
        [
            value("early"),
            value("y"),
            value("z"),
            value("w", (WIDTH, WIDTH)),
            value("negated", (WIDTH, WIDTH)),
        ],
        [weight("w")],
    )


def old_style() -> ModelProto:
    """Opset 9, IR 3: every initializer is an input too."""
    return model(
        [
            make.make_node("MatMul", ["x", "w"], ["a"]),
            make.make_node("Relu", ["a"], ["b"]),
            make.make_node("MatMul", ["b", "v"], ["y"]),
        ],
        [value("x"), value("w", (WIDTH, WIDTH)), value("v", (WIDTH, WIDTH))],
        [value("y")],
        [weight("w"), weight("v")],
        opset=9,
        ir_version=3,
    )


def odd_names() -> ModelProto:
    """Nodes without names, values with spaces, slashes and other alphabets."""
    return model(
        [
            make.make_node("MatMul", ["x in/1:0", "gewichte ü"], ["/a b/c"]),
            make.make_node("Clip", ["/a b/c", "", "top"], ["値"]),
            make.make_node("Relu", ["値"], ["y'\""]),
        ],
        [value("x in/1:0")],
        [value("y'\"")],
        [
            weight("gewichte ü"),
            numpy_helper.from_array(np.array(1.0, np.float32), "top"),
        ],
    )


def unsorted() -> ModelProto:
    """Nodes in an order in which they cannot run, and one that nothing needs."""
    return model(
        [
            make.make_node("Relu", ["b"], ["y"]),
            make.make_node("MatMul", ["a", "w"], ["b"]),
            make.make_node("Exp", ["a"], ["needless"]),
            make.make_node("Relu", ["x"], ["a"]),
        ],
        [value("x")],
        [value("y")],
        [weight("w")],
    )


def unknown_sizes() -> ModelProto:
    """A value whose length only the data decide, and shapes computed on the way."""
    return model(
        [
            make.make_node("Relu", ["x"], ["a"]),
            make.make_node("NonZero", ["a"], ["places"]),
            make.make_node("Transpose", ["places"], ["turned"]),
            make.make_node("GatherND", ["x", "turned"], ["picked"]),
            make.make_node("Exp", ["picked"], ["b"]),
            make.make_node("Neg", ["b"], ["y"]),
        ],
        [value("x")],
        [value("y", ("k",))],
    )


def sparse_weight() -> ModelProto:
    """A sparse initializer."""
    made = model(
        [
            make.make_node("Relu", ["x"], ["a"]),
            make.make_node("MatMul", ["a", "s"], ["b"]),
            make.make_node("Relu", ["b"], ["y"]),
        ],
        [value("x")],
        [value("y")],
    )
    values = numpy_helper.from_array(np.array([1.5, -2.0], np.float32), "s")
    indices = numpy_helper.from_array(np.array([1, 6], np.int64), "s_indices")
    made.graph.sparse_initializer.append(
        make.make_sparse_tensor(values, indices, [WIDTH, WIDTH])
    )
    return made


def masked() -> ModelProto:
    """Minus infinity at some cuts, and not in the result."""
    return model(
        [
            make.make_node("Greater", ["x", "limit"], ["hide"]),
            make.make_node("Where", ["hide", "minus", "x"], ["a"]),
            make.make_node("Add", ["a", "x"], ["b"]),
            make.make_node("Softmax", ["b"], ["c"]),
            make.make_node("Sqrt", ["c"], ["y"]),
        ],
        [value("x")],
        [value("y")],
        [
            numpy_helper.from_array(np.array(-np.inf, np.float32), "minus"),
            numpy_helper.from_array(np.array(0.8, np.float32), "limit"),
        ],
    )


def sequence_between() -> ModelProto:
    """A sequence lives between two nodes; there one may not cut."""
    return model(
        [
            make.make_node("Relu", ["x"], ["a"]),
            make.make_node("SequenceConstruct", ["a", "x"], ["both"]),
            make.make_node("ConcatFromSequence", ["both"], ["b"], axis=0),
            make.make_node("Relu", ["b"], ["y"]),
        ],
        [value("x")],
        [value("y", ("k", WIDTH))],
    )


def contrib_operator() -> ModelProto:
    """An operator that ONNX's own inference does not know."""
    return model(
        [
            make.make_node("MatMul", ["x", "w"], ["a"]),
            make.make_node("Gelu", ["a"], ["b"], domain="com.microsoft"),
            make.make_node("MatMul", ["b", "w"], ["c"]),
            make.make_node("Relu", ["c"], ["y"]),
        ],
        [value("x")],
        [value("y")],
        [weight("w")],
        domains=["com.microsoft"],
    )


def random_numbers() -> ModelProto:
    """Noise without a seed."""
    return model(
        [
            make.make_node("Relu", ["x"], ["a"]),
            make.make_node("RandomNormalLike", ["a"], ["noise"]),
            make.make_node("Add", ["a", "noise"], ["y"]),
        ],
        [value("x")],
        [value("y")],
    )


def lookup() -> ModelProto:
    """Indices into two tables, the smaller of 7 rows."""
    return model(
        [
            make.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
            make.make_node("Gather", ["large", "wide"], ["a"]),
            make.make_node("Gather", ["small", "ids"], ["b"]),
            make.make_node("Add", ["a", "b"], ["c"]),
            make.make_node("Relu", ["c"], ["y"]),
        ],
        [value("ids", ("n", "t"), TensorProto.INT32)],
        [value("y", ("n", "t", WIDTH))],
        [weight("large", 100, WIDTH), weight("small", 7, WIDTH)],
    )


ALL = {
    made.__name__: made
    for made in (
        chain,
        constant_weights,
        branches,
        loop,
        scan,
        own_function,
        many_ends,
        old_style,
        odd_names,
        unsorted,
        unknown_sizes,
        sparse_weight,
        masked,
        sequence_between,
        contrib_operator,
        lookup,
    )
}


def external(made: ModelProto, folder: Path, *, single: bool = True) -> Path:
    """Save a model with all its initializers, of any size, as external data."""
    path = folder / "model.onnx"
    onnx.save(
        made,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=single,
        location="weights.bin" if single else None,
        size_threshold=0,
    )
    return path


def inputs_of(made: ModelProto, rows: int = 3) -> dict[str, Array]:
    """Return inputs for the graphs above."""
    random = np.random.default_rng(1)
    fed: dict[str, Array] = {}
    held = {tensor.name for tensor in made.graph.initializer}
    for entry in made.graph.input:
        kind = entry.type.tensor_type
        shape = [size.dim_value or rows for size in kind.shape.dim]
        if entry.name in held:
            continue
        if kind.elem_type == FLOAT:
            fed[entry.name] = random.standard_normal(shape).astype(np.float32)
        elif kind.elem_type == TensorProto.BOOL:
            fed[entry.name] = np.asarray(random.integers(0, 2, shape) > 0)
        else:
            dtype = make.tensor_dtype_to_np_dtype(kind.elem_type)
            fed[entry.name] = random.integers(0, 3, shape).astype(dtype)
    return fed
