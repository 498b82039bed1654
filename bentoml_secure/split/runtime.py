"""Running segments: ONNX Runtime on the CPU, pinned to what the plan was checked on.

The bytes that are hashed are the bytes that run: every file is read once, compared
with its digest, and handed to ONNX Runtime from memory, external data included. A
segment that names any other file is refused before ONNX Runtime sees it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native
from packaging.version import Version

from bentoml_secure import tensors as tensor_rules
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.split.files import read_bytes, require_digest
from bentoml_secure.split.plan import Plan, Segment, load_plan
from bentoml_secure.split.protos import external_location, inner_tensors, parse_model
from bentoml_secure.tensors import Array, TensorSpec

MAX_FILE_BYTES = 64 << 30

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


class GraphLevel(StrEnum):
    """How far ONNX Runtime may rewrite a graph before it runs."""

    NONE = "ORT_DISABLE_ALL"
    EXTENDED = "ORT_ENABLE_EXTENDED"


def require_runtime(plan: Plan) -> None:
    """Refuse to run a plan on a version of ONNX Runtime that it does not allow.

    Raises:
        ConfigurationError: The installed version is outside the plan's range.
    """
    installed = onnxruntime.__version__
    if Version(installed) not in plan.runtime.allowed:
        raise ConfigurationError(
            f"onnxruntime: got {installed}, the plan wants {plan.runtime.version}.",
            remedy="Install a version in that range, or split the model again.",
        )


class LoadedSegment:
    """One segment, ready to run; made by ``load_segment`` or ``open_segment``."""

    def __init__(
        self, segment: Segment, index: int, session: onnxruntime.InferenceSession
    ) -> None:
        self.segment = segment
        self.index = index
        self._session = session
        self._names = [spec.name for spec in segment.outputs]

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the segment on exactly its inputs, and return exactly its outputs.

        Args:
            tensors: The segment's inputs by name.

        Raises:
            MalformedInputError: Inputs or outputs are not what the plan promises,
                or ONNX Runtime refuses these values.
        """
        tensor_rules.require(tensors, self.segment.inputs)
        outputs = self.run_unchecked(tensors)
        tensor_rules.require(outputs, self.segment.outputs)
        return outputs

    def run_unchecked(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the segment on inputs that the caller has put through ``require``.

        The outputs are as ONNX Runtime made them; who receives them requires them.

        Raises:
            MalformedInputError: ONNX Runtime refuses these values.
        """
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
                f"segment {self.index}: onnxruntime refused its inputs: {error}"
            ) from error
        return dict(zip(self._names, made, strict=True))


def load_segment(
    folder: Path,
    plan: Plan,
    index: int,
    *,
    threads: int | None = None,
    graph_level: GraphLevel = GraphLevel.EXTENDED,
) -> LoadedSegment:
    """Read one segment's files and load it.

    Args:
        folder: The plan's folder.
        plan: Its plan.
        index: Which segment, from 0.
        threads: For one operation; ONNX Runtime's own choice if left out.
        graph_level: EXTENDED is what plans are checked at; NONE is for comparison.

    Raises:
        ConfigurationError: No such segment, unreadable file, wrong version.
        VerificationError: A file is not the one that the plan names.
        MalformedInputError: A file is not a segment.
    """
    contents = {
        entry.path: read_bytes(folder, entry.path, max_bytes=MAX_FILE_BYTES)
        for entry in _segment(plan, index).files
    }
    return open_segment(plan, index, contents, threads=threads, graph_level=graph_level)


def _segment(plan: Plan, index: int) -> Segment:
    if not 0 <= index < len(plan.segments):
        raise ConfigurationError(
            f"segment: got {index}, the plan has 0 to {len(plan.segments) - 1}"
        )
    return plan.segments[index]


def open_segment(
    plan: Plan,
    index: int,
    contents: Mapping[str, bytes],
    *,
    threads: int | None = None,
    graph_level: GraphLevel = GraphLevel.EXTENDED,
) -> LoadedSegment:
    """Load one segment from bytes at hand, each compared with its digest first.

    Args:
        plan: The plan.
        index: Which segment, from 0.
        contents: The bytes of each of the segment's files, by path.
        threads: For one operation; ONNX Runtime's own choice if left out.
        graph_level: EXTENDED is what plans are checked at; NONE is for comparison.

    Raises:
        ConfigurationError: No such segment, wrong version of ONNX Runtime.
        VerificationError: Bytes that do not have the plan's digest.
        MalformedInputError: Not a segment, or not the one that the plan describes.
    """
    require_runtime(plan)
    segment = _segment(plan, index)
    if contents.keys() != {entry.path for entry in segment.files}:
        raise ConfigurationError(
            f"segment {index} files: got {sorted(contents)!r:.200}, "
            f"want {sorted(entry.path for entry in segment.files)!r:.200}"
        )
    for entry in segment.files:
        require_digest(entry.path, contents[entry.path], entry.digest)
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
    return LoadedSegment(segment, index, session)


def session_options(
    threads: int | None, graph_level: GraphLevel
) -> onnxruntime.SessionOptions:
    """Return the options that parts and whole are run with."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, graph_level.value
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A whole plan, loaded into one process."""

    plan: Plan
    segments: tuple[LoadedSegment, ...]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run every segment in order on the model's inputs; return its outputs.

        Raises:
            MalformedInputError: See ``LoadedSegment.run``.
        """
        made = self.run_all(inputs)
        return {spec.name: made[spec.name] for spec in self.plan.outputs}

    def run_all(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run every segment in order; return the inputs and all that was made."""
        tensor_rules.require(inputs, self.plan.inputs)
        made = dict(inputs)
        for loaded in self.segments:
            made |= loaded.run(
                {spec.name: made[spec.name] for spec in loaded.segment.inputs}
            )
        return made


def load_chain(
    folder: Path,
    *,
    threads: int | None = None,
    graph_level: GraphLevel = GraphLevel.EXTENDED,
) -> Chain:
    """Load every segment of a plan's folder into this process.

    Raises:
        SecureError: See ``load_plan`` and ``load_segment``.
    """
    plan = load_plan(folder)
    segments = tuple(
        load_segment(folder, plan, index, threads=threads, graph_level=graph_level)
        for index in range(len(plan.segments))
    )
    return Chain(plan=plan, segments=segments)


def run_chain(source: Path | Chain, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a whole plan in one process, without sessions or receipts.

    Args:
        source: A plan's folder, or a chain that is loaded already.
        inputs: The model's inputs by name.

    Returns:
        The model's outputs by name.

    Raises:
        SecureError: See ``load_chain`` and ``LoadedSegment.run``.
    """
    chain = source if isinstance(source, Chain) else load_chain(source)
    return chain.run(inputs)
