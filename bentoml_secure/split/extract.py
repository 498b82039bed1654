"""A stretch of a graph as a model of its own, under the same names.

Copied along: the constants that it reads and what makes them, the functions that it
calls, the opsets. Left out: what the exporter wrote for debugging (it names files of
the machine that exported, and would make digests differ from machine to machine).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from bentoml_secure.split.graph import Analysis, reads_of
from bentoml_secure.split.protos import inner_graphs
from bentoml_secure.split.specs import Specs
from bentoml_secure.tensors import TensorSpec


class Extractor:
    """Cuts stretches out of one model."""

    def __init__(self, model: ModelProto, analysis: Analysis, specs: Specs) -> None:
        self._model = model
        self._analysis = analysis
        self._specs = specs
        graph = model.graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._sparse = {
            sparse.values.name: sparse for sparse in graph.sparse_initializer
        }

    def boundary(
        self, first: int, stop: int
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return what the steps from ``first`` up to ``stop`` read and make.

        What they make: values that later steps read, and outputs of the model. Outputs
        that are constants come from the last stretch.
        """
        analysis = self._analysis
        read = set().union(*analysis.reads[first:stop])
        inputs = [
            name
            for name, made in analysis.made_at.items()
            if name in read and made < first
        ]
        outputs = [
            name
            for name, made in analysis.made_at.items()
            if first <= made < stop
            and (analysis.last_read.get(name, -1) >= stop or name in analysis.outputs)
        ]
        if stop == len(analysis.steps):
            outputs += self._constant_outputs()
        return tuple(map(self._specs.of, inputs)), tuple(map(self._specs.of, outputs))

    def _constant_outputs(self) -> list[str]:
        analysis = self._analysis
        return [name for name in analysis.outputs if name not in analysis.made_at]

    def extract(self, first: int, stop: int) -> ModelProto:
        """Return the steps from ``first`` up to ``stop`` as a model.

        Weights with external data still say where the original has them.
        """
        analysis = self._analysis
        inputs, outputs = self.boundary(first, stop)
        read = set().union(*analysis.constant_reads[first:stop])
        read |= {spec.name for spec in outputs} - analysis.made_at.keys()
        remade, weights = self._closure(read)
        chosen = sorted(remade | set(analysis.steps[first:stop]))
        model = ModelProto(
            ir_version=self._model.ir_version,
            opset_import=self._model.opset_import,
            producer_name=self._model.producer_name,
            producer_version=self._model.producer_version,
        )
        graph = model.graph
        graph.name = f"{self._model.graph.name}-{first}-{stop}"
        for index in chosen:
            node = graph.node.add()
            node.CopyFrom(analysis.nodes[index])
            _forget(node)
        graph.input.extend(map(_value, inputs))
        graph.output.extend(map(_value, outputs))
        self._add_weights(graph, weights)
        made = {name for node in graph.node for name in node.output}
        made -= {spec.name for spec in outputs}
        graph.value_info.extend(
            _plain(value)
            for value in self._model.graph.value_info
            if value.name in made
        )
        known = made | weights | {spec.name for spec in (*inputs, *outputs)}
        graph.quantization_annotation.extend(
            annotation
            for annotation in self._model.graph.quantization_annotation
            if {
                annotation.tensor_name,
                *(entry.value for entry in annotation.quant_parameter_tensor_names),
            }
            <= known
        )
        self._add_functions(model)
        return model

    def _closure(self, read: set[str]) -> tuple[set[int], set[str]]:
        """Return the nodes and the weights that some constants are made from."""
        nodes: set[int] = set()
        weights: set[str] = set()
        waiting = list(read)
        while waiting:
            name = waiting.pop()
            if name in self._analysis.weights:
                weights.add(name)
            elif (index := self._analysis.constants[name]) not in nodes:
                nodes.add(index)
                waiting += reads_of(self._analysis.nodes[index])
        return nodes, weights

    def _add_weights(self, graph: GraphProto, names: set[str]) -> None:
        for name in sorted(names):
            if name in self._weights:
                graph.initializer.append(self._weights[name])
            else:
                graph.sparse_initializer.append(self._sparse[name])
        # A weight that is listed as an input too can be overridden: that keeps
        # ONNX Runtime from folding it, in the whole and so in the part.
        graph.input.extend(
            _plain(value) for value in self._model.graph.input if value.name in names
        )

    def _add_functions(self, model: ModelProto) -> None:
        bodies = {(f.domain, f.name): f for f in self._model.functions}
        called = _calls(model.graph.node)
        waiting = [key for key in called if key in bodies]
        kept = set(waiting)
        while waiting:
            for key in _calls(bodies[waiting.pop()].node) & bodies.keys() - kept:
                kept.add(key)
                waiting.append(key)
        for key, body in bodies.items():
            if key in kept:
                function = model.functions.add()
                function.CopyFrom(body)
                function.ClearField("doc_string")
                function.ClearField("metadata_props")
                for node in function.node:
                    _forget(node)


def _calls(nodes: Iterable[NodeProto]) -> set[tuple[str, str]]:
    called = set()
    for node in nodes:
        called.add((node.domain, node.op_type))
        for graph in inner_graphs(node):
            called |= _calls(graph.node)
    return called


def _value(spec: TensorSpec) -> ValueInfoProto:
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return onnx.helper.make_tensor_value_info(spec.name, element, spec.shape)


def _plain(value: ValueInfoProto) -> ValueInfoProto:
    return ValueInfoProto(name=value.name, type=value.type)


def _forget(node: NodeProto) -> None:
    node.ClearField("doc_string")
    node.ClearField("metadata_props")
    for graph in inner_graphs(node):
        graph.ClearField("doc_string")
        graph.ClearField("metadata_props")
        for inner in graph.node:
            _forget(inner)
