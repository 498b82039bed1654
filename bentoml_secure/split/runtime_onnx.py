"""ONNX Runtime, on the CPU, with a segment whose bytes are in memory.

It is handed what was compared with the plan's digests, and can open nothing else: a
graph that names any other file is refused before.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

from bentoml_secure import tensors as tensor_rules
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.split.plan import Segment
from bentoml_secure.split.protos import external_location, inner_tensors, parse_model
from bentoml_secure.split.runtimes import GraphLevel
from bentoml_secure.tensors import Array, TensorSpec

PROVIDERS = ("CPUExecutionProvider",)
_FATAL = 4
_NATIVE_ERRORS: tuple[type[Exception], ...] = tuple(
    value
    for value in vars(_native).values()
    if isinstance(value, type) and issubclass(value, Exception)
)
# ORT's Python layer checks names and types itself, with the built-in errors.
RUN_ERRORS: tuple[type[Exception], ...] = (
    *_NATIVE_ERRORS,
    ValueError,
    TypeError,
    RuntimeError,
)
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in tensor_rules.DTYPES},
}


OPTIONS = {
    GraphLevel.NONE: "ORT_DISABLE_ALL",
    GraphLevel.BASIC: "ORT_ENABLE_BASIC",
    GraphLevel.EXTENDED: "ORT_ENABLE_EXTENDED",
}


class OnnxEngine:
    """One segment in ONNX Runtime.

    Args:
        segment: Its entry in the plan.
        index: Its place in it, for messages.
        contents: The bytes of its files by path, compared with their digests.
        threads: For one operation; ONNX Runtime's own choice if None.
        graph_level: How far the graph may be rewritten.

    Raises:
        MalformedInputError: ONNX Runtime cannot load it, or it is another segment.
        VerificationError: It names a file that the plan does not list.
    """

    def __init__(
        self,
        segment: Segment,
        index: int,
        contents: Mapping[str, bytes],
        *,
        threads: int | None,
        graph_level: GraphLevel,
    ) -> None:
        self._index = index
        self._names = [spec.name for spec in segment.outputs]
        self._session = _open_session(segment, contents, threads, graph_level)

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the segment; see ``runtime.Engine``."""
        feed = {
            # Views into a received message need not be aligned; ORT assumes it.
            name: array
            if array.flags.aligned and array.flags.c_contiguous
            else np.require(array, requirements=("A", "C"))
            for name, array in tensors.items()
        }
        try:
            made = self._session.run(self._names, feed)
        except RUN_ERRORS as error:
            raise MalformedInputError(
                f"segment {self._index}: onnxruntime refused its inputs: {error}"
            ) from error
        return dict(zip(self._names, made, strict=True))


def _open_session(
    segment: Segment,
    contents: Mapping[str, bytes],
    threads: int | None,
    graph_level: GraphLevel,
) -> onnxruntime.InferenceSession:
    options = session_options(threads, graph_level)
    files = _external_files(segment, contents)
    if files:
        options.add_external_initializers_from_files_in_memory(
            list(files), list(files.values()), [len(data) for data in files.values()]
        )
    try:
        session = onnxruntime.InferenceSession(
            contents[segment.file],
            options,
            providers=list(PROVIDERS),
            enable_fallback=0,
        )
    except RUN_ERRORS as error:
        raise MalformedInputError(
            f"{segment.file}: onnxruntime cannot load it: {error}"
        ) from error
    _require_described(segment.file, "inputs", session.get_inputs(), segment.inputs)
    _require_described(segment.file, "outputs", session.get_outputs(), segment.outputs)
    return session


def session_options(
    threads: int | None, graph_level: GraphLevel
) -> onnxruntime.SessionOptions:
    """Return the options that parts and whole are run with."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, OPTIONS[graph_level]
    )
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 0 if threads is None else threads
    # Many segments share a machine: waiting threads must not burn its cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without it a few bytes make ONNX Runtime read a file as another format, and
    # what was parsed here would not be what runs.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _external_files(segment: Segment, contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the bytes of each external-data file, by the location in the graph.

    ONNX Runtime opens what a graph names and it does not hold in memory, so anything
    else that is named is refused here. It looks in memory for the main graph's
    initializers only, so external data anywhere else is refused too.
    """
    model = parse_model(contents[segment.file], what=segment.file)
    if any(external_location(tensor) for tensor in inner_tensors(model)):
        raise VerificationError(
            f"{segment.file}: a tensor inside a node names a file, "
            "only the graph's own initializers may"
        )
    files: dict[str, bytes] = {}
    for tensor in model.graph.initializer:
        location = external_location(tensor)
        if location is None:
            continue
        path = posixpath.join(posixpath.dirname(segment.file), location.path)
        if path not in contents:
            raise VerificationError(
                f"{segment.file}: tensor {tensor.name!r:.100} names the file "
                f"{location.path!r:.100}, which the plan does not list"
            )
        location.require_within(len(contents[path]), tensor.name)
        files[location.path] = contents[path]
    return files


def _require_described(
    file: str,
    side: str,
    arguments: Iterable[onnxruntime.NodeArg],
    specs: Sequence[TensorSpec],
) -> None:
    got = {arg.name: _DTYPES.get(arg.type, arg.type) for arg in arguments}
    want = {spec.name: spec.dtype for spec in specs}
    if got != want:
        raise MalformedInputError(
            f"{file} {side}: got {got!r:.200}, the plan says {want!r:.200}"
        )
