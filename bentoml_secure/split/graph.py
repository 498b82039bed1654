"""What a graph's nodes read and make, in an order in which they can run.

Three kinds of value: *inputs* of the model; *constants*, made from weights alone and
so remade wherever they are needed, never sent; and all others, made by *steps*. A cut
stands after a step; what crosses it was made before it and is read after it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.split.protos import inner_graphs

MODEL_INPUT = -1

# Not constant even without inputs: two segments would draw different numbers.
_RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """A graph taken apart.

    Attributes:
        inputs: Names of the model's inputs, those with a default left out.
        outputs: Names of the model's outputs.
        nodes: The nodes that an output needs, in an order in which they can run.
        steps: Index of each node that is not constant.
        reads: Per step, the non-constant values it reads, inner graphs included.
        constant_reads: Per step, the constants and weights it reads.
        made_at: Step that makes each non-constant value, -1 for a model input.
        last_read: Last step that reads each non-constant value.
        constants: Index of the node that makes each constant, by its name.
        weights: Names of the initializers.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[NodeProto, ...]
    steps: tuple[int, ...]
    reads: tuple[frozenset[str], ...]
    constant_reads: tuple[frozenset[str], ...]
    made_at: Mapping[str, int]
    last_read: Mapping[str, int]
    constants: Mapping[str, int]
    weights: frozenset[str]


def reads_of(node: NodeProto) -> frozenset[str]:
    """Return the values of its own graph that a node reads, its bodies included."""
    names = set(node.input)
    for graph in inner_graphs(node):
        names |= _outer_reads(graph)
    return frozenset(names - {""})


def _outer_reads(graph: GraphProto) -> set[str]:
    made = {value.name for value in graph.input} | weight_names(graph)
    read = {value.name for value in graph.output}
    for node in graph.node:
        made.update(node.output)
        read |= reads_of(node)
    return read - made


def weight_names(graph: GraphProto) -> set[str]:
    """Return the names of a graph's initializers, sparse ones included."""
    names = {tensor.name for tensor in graph.initializer}
    return names | {sparse.values.name for sparse in graph.sparse_initializer}


def analyse(model: ModelProto) -> Analysis:
    """Take a model's graph apart.

    Raises:
        MalformedInputError: A value is made twice, or read and never made.
    """
    graph = model.graph
    weights = weight_names(graph)
    inputs = [value.name for value in graph.input if value.name not in weights]
    outputs = [value.name for value in graph.output]
    makers = _makers(graph, {*inputs, *weights})
    reads = [reads_of(node) for node in graph.node]
    order = _ordered(reads, makers, {*inputs, *weights})
    for name in outputs:
        if name not in makers and name not in weights and name not in inputs:
            raise MalformedInputError(f"output {name!r:.100}: no node makes it")
    needed = _needed(outputs, reads, makers)
    kept = [index for index in order if index in needed]
    return _classified(
        tuple(graph.node[index] for index in kept),
        [reads[index] for index in kept],
        inputs,
        outputs,
        weights,
        _random_functions(model.functions),
    )


def _classified(
    nodes: tuple[NodeProto, ...],
    reads: list[frozenset[str]],
    inputs: list[str],
    outputs: list[str],
    weights: set[str],
    random: set[tuple[str, str]],
) -> Analysis:
    """Tell constants from steps, and follow each value from maker to last reader."""
    fixed, steps = set(weights), []
    constants: dict[str, int] = {}
    for index, node in enumerate(nodes):
        if reads[index] <= fixed and not _is_random(node, random):
            fixed.update(node.output)
            constants |= {name: index for name in node.output if name}
        else:
            steps.append(index)
    made_at = dict.fromkeys(inputs, MODEL_INPUT)
    last_read: dict[str, int] = {}
    for step, index in enumerate(steps):
        made_at |= {name: step for name in nodes[index].output if name}
        last_read |= dict.fromkeys(reads[index] - fixed, step)
    return Analysis(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        nodes=nodes,
        steps=tuple(steps),
        reads=tuple(reads[index] - fixed for index in steps),
        constant_reads=tuple(reads[index] & fixed for index in steps),
        made_at=made_at,
        last_read=last_read,
        constants=constants,
        weights=frozenset(weights),
    )


def _makers(graph: GraphProto, given: set[str]) -> dict[str, int]:
    makers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name in makers or name in given:
                raise MalformedInputError(f"value {name!r:.100}: is made twice")
            if name:
                makers[name] = index
    return makers


def _ordered(
    reads: list[frozenset[str]], makers: Mapping[str, int], given: set[str]
) -> list[int]:
    """Return the nodes so that each follows what it reads; as they stood, if they do.

    ONNX wants graphs sorted, ONNX Runtime runs them unsorted.
    """
    waiting = []
    readers: dict[int, list[int]] = {}
    for index, names in enumerate(reads):
        before = {makers[name] for name in names if name in makers}
        if unmade := names - makers.keys() - given:
            raise MalformedInputError(
                f"value {sorted(unmade)[0]!r:.100}: is read, and no node makes it"
            )
        waiting.append(len(before))
        for maker in before:
            readers.setdefault(maker, []).append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) != len(reads):
        raise MalformedInputError("graph: its nodes wait for each other in a circle")
    return order


def _needed(
    outputs: Iterable[str], reads: list[frozenset[str]], makers: Mapping[str, int]
) -> set[int]:
    needed: set[int] = set()
    open_nodes = [makers[name] for name in outputs if name in makers]
    while open_nodes:
        index = open_nodes.pop()
        if index not in needed:
            needed.add(index)
            open_nodes += [makers[name] for name in reads[index] if name in makers]
    return needed


def _random_functions(functions: Iterable[FunctionProto]) -> set[tuple[str, str]]:
    """Return (domain, name) of the model's own functions that draw random numbers."""
    random: set[tuple[str, str]] = set()
    bodies = {(function.domain, function.name): function for function in functions}
    while True:
        more = {
            key
            for key, function in bodies.items()
            if key not in random
            and any(_is_random(node, random) for node in function.node)
        }
        if not more:
            return random
        random |= more


def _is_random(node: NodeProto, random: set[tuple[str, str]]) -> bool:
    return (
        node.op_type in _RANDOM
        or (node.domain, node.op_type) in random
        or any(
            _is_random(inner, random)
            for graph in inner_graphs(node)
            for inner in graph.node
        )
    )
