"""Running segments, on the CPU and on what the plan permits: ONNX Runtime, or torch.

The bytes that are hashed are the bytes that run: every file is read once, compared
with its digest, and handed to the runtime from memory, external data included. A
segment that names any other file is refused before the runtime sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import onnxruntime
from packaging.version import Version

from bentoml_secure import tensors as tensor_rules
from bentoml_secure.errors import (
    ConfigurationError,
    MissingDependencyError,
)
from bentoml_secure.split.files import read_bytes, require_digest
from bentoml_secure.split.plan import Plan, Segment, load_plan
from bentoml_secure.split.runtime_onnx import PROVIDERS as PROVIDERS
from bentoml_secure.split.runtime_onnx import RUN_ERRORS as RUN_ERRORS
from bentoml_secure.split.runtime_onnx import OnnxEngine
from bentoml_secure.split.runtime_onnx import session_options as session_options
from bentoml_secure.split.runtimes import DEFAULT, TORCH, RuntimeChoice
from bentoml_secure.split.runtimes import GraphLevel as GraphLevel
from bentoml_secure.tensors import Array

MAX_FILE_BYTES = 64 << 30


def installed_version(choice: RuntimeChoice) -> Version:
    """Return the version of a runtime's library in this environment.

    Raises:
        MissingDependencyError: It is torch, and torch is not installed.
    """
    if choice.name != TORCH:
        return Version(onnxruntime.__version__)
    try:
        return Version(metadata.version(TORCH))
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError(
            "runtime torch: torch is not installed.",
            remedy="pip install 'bentoml-secure[torch]'",
        ) from error


def require_runtime(plan: Plan, choice: RuntimeChoice = DEFAULT) -> None:
    """Refuse to run a plan on a runtime, or a version of it, that it does not permit.

    Args:
        plan: The plan.
        choice: What to run it on.

    Raises:
        ConfigurationError: The plan permits it in no version, or not in this one.
    """
    ranges = plan.runtime.ranges(choice)
    if not ranges:
        raise ConfigurationError(
            f"runtime: got {choice}, which the plan does not permit.",
            remedy="Run it on another, or permit it: `bentoml-secure calibrate`.",
        )
    installed = installed_version(choice)
    if not plan.runtime.permits(choice, installed):
        raise ConfigurationError(
            f"{choice.name}: got {installed}, the plan wants {' or '.join(ranges)}.",
            remedy="Install a version in that range, or split the model again.",
        )


class Engine(Protocol):
    """What runs a segment, once it is loaded."""

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the segment on tensors of the promised names, dtypes and shapes.

        Raises:
            MalformedInputError: The runtime refuses these values.
        """


class LoadedSegment:
    """One segment, ready to run; made by ``load_segment`` or ``open_segment``."""

    def __init__(self, segment: Segment, index: int, engine: Engine) -> None:
        self.segment = segment
        self.index = index
        self._engine = engine

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the segment on exactly its inputs, and return exactly its outputs.

        Args:
            tensors: The segment's inputs by name.

        Raises:
            MalformedInputError: Inputs or outputs are not what the plan promises,
                or the runtime refuses these values.
        """
        tensor_rules.require(tensors, self.segment.inputs)
        outputs = self.run_unchecked(tensors)
        tensor_rules.require(outputs, self.segment.outputs)
        return outputs

    def run_unchecked(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the segment on inputs that the caller has put through ``require``.

        The outputs are as the runtime made them; who receives them requires them.

        Raises:
            MalformedInputError: The runtime refuses these values.
        """
        return self._engine.run(tensors)


def load_segment(
    folder: Path,
    plan: Plan,
    index: int,
    *,
    threads: int | None = None,
    choice: RuntimeChoice = DEFAULT,
    graph_level: GraphLevel | None = None,
) -> LoadedSegment:
    """Read one segment's files and load it.

    Args:
        folder: The plan's folder.
        plan: Its plan.
        index: Which segment, from 0.
        threads: For one operation; the runtime's own choice if left out.
        choice: What to run it on, of what the plan permits.
        graph_level: Of ONNX Runtime, permitted or not: for comparison.

    Raises:
        ConfigurationError: No such segment, unreadable file, a runtime that the plan
            does not permit, or that cannot run the segment.
        VerificationError: A file is not the one that the plan names.
        MalformedInputError: A file is not a segment.
    """
    contents = {
        entry.path: read_bytes(folder, entry.path, max_bytes=MAX_FILE_BYTES)
        for entry in _segment(plan, index).files
    }
    return open_segment(
        plan,
        index,
        contents,
        threads=threads,
        choice=choice,
        graph_level=graph_level,
    )


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
    choice: RuntimeChoice = DEFAULT,
    graph_level: GraphLevel | None = None,
) -> LoadedSegment:
    """Load one segment from bytes at hand, each compared with its digest first.

    Args:
        plan: The plan.
        index: Which segment, from 0.
        contents: The bytes of each of the segment's files, by path.
        threads: For one operation; the runtime's own choice if left out.
        choice: What to run it on, of what the plan permits.
        graph_level: Of ONNX Runtime, permitted or not: for comparison.

    Raises:
        ConfigurationError: No such segment, a runtime that the plan does not permit, or
            that cannot run the segment.
        VerificationError: Bytes that do not have the plan's digest.
        MalformedInputError: Not a segment, or not the one that the plan describes.
    """
    require_runtime(plan, choice)
    segment = _segment(plan, index)
    if contents.keys() != {entry.path for entry in segment.files}:
        raise ConfigurationError(
            f"segment {index} files: got {sorted(contents)!r:.200}, "
            f"want {sorted(entry.path for entry in segment.files)!r:.200}"
        )
    for entry in segment.files:
        require_digest(entry.path, contents[entry.path], entry.digest)
    engine: Engine
    if choice.graph_level is None:
        from bentoml_secure.split.runtime_torch import TorchEngine

        engine = TorchEngine(segment, contents, threads=threads)
    else:
        level = graph_level or choice.graph_level
        engine = OnnxEngine(
            segment, index, contents, threads=threads, graph_level=level
        )
    return LoadedSegment(segment, index, engine)


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
    choice: RuntimeChoice = DEFAULT,
    graph_level: GraphLevel | None = None,
) -> Chain:
    """Load every segment of a plan's folder into this process.

    Args:
        folder: The plan's folder.
        threads: See ``load_segment``.
        choice: See ``load_segment``.
        graph_level: See ``load_segment``.

    Raises:
        SecureError: See ``load_plan`` and ``load_segment``.
    """
    plan = load_plan(folder)
    segments = tuple(
        load_segment(
            folder,
            plan,
            index,
            threads=threads,
            choice=choice,
            graph_level=graph_level,
        )
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
