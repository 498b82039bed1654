"""Running segments on every runtime, thread count and batch size, on the same inputs.

What a segment reads are the reference's outputs of the segments before it, the same
for every run; so distances do not add up along the chain. The reference is the plan's
own runtime with one thread and batches of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from onnx import ModelProto
from packaging.version import Version

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split.calibration_inputs import (
    batch_symbol,
    is_led_by,
    split_rows,
)
from bentoml_secure.split.files import read_file
from bentoml_secure.split.foreign_python import ForeignPython, ForeignRun
from bentoml_secure.split.inlining import inline_segment
from bentoml_secure.split.plan import Plan, Segment
from bentoml_secure.split.runtime import (
    MAX_FILE_BYTES,
    LoadedSegment,
    installed_version,
    open_segment,
)
from bentoml_secure.split.runtime_onnx import OnnxEngine
from bentoml_secure.split.runtimes import (
    DEFAULT,
    GRAPH_LEVEL,
    MAX_PERMITTED,
    PermittedRuntime,
    RuntimeChoice,
)
from bentoml_secure.split.samples import Sample
from bentoml_secure.tensors import Array
from bentoml_secure.tensors import require as require_tensors

THREADS_AND_BATCHES = ((1, 1), (2, 1), (1, 4), (1, 16))

Groups = Sequence[Sequence[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A runtime in an environment: this process's, or another interpreter's.

    Attributes:
        choice: Which runtime.
        version: Of its library there.
        python: The other interpreter, None for this process.
    """

    choice: RuntimeChoice
    version: Version
    python: ForeignPython | None = None

    @property
    def permitted(self) -> PermittedRuntime:
        """As a plan permits it: this version's minor release."""
        major, minor = (*self.version.release, 0)[:2]
        return PermittedRuntime(
            name=self.choice.name,
            version=f">={major}.{minor},<{major}.{minor + 1}",
            graph_level=self.choice.graph_level,
        )

    def __str__(self) -> str:
        level = f" {self.choice.graph_level}" if self.choice.graph_level else ""
        return f"{self.choice.name} {self.version}{level}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HonestRun:
    """A place, with how many threads and how large batches."""

    place: Place
    threads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.place}, threads {self.threads}, batch {self.batch}"


def here(choice: RuntimeChoice) -> Place:
    """Return a runtime of this process's environment.

    Raises:
        MissingDependencyError: Its library is not installed.
    """
    return Place(choice=choice, version=installed_version(choice))


def permitting(plan: Plan, places: Sequence[Place]) -> Plan:
    """Return the plan with these runtimes permitted, and no others beside its own.

    Raises:
        ConfigurationError: More than a plan can list.
    """
    wanted = dict.fromkeys(
        place.permitted
        for place in places
        if place.choice != DEFAULT or place.version not in plan.runtime.allowed
    )
    if len(wanted) > MAX_PERMITTED:
        raise ConfigurationError(
            f"runtimes: got {len(wanted)}, want at most {MAX_PERMITTED}"
        )
    return replace(plan, runtime=replace(plan.runtime, permitted=tuple(wanted)))


class Bench:
    """A plan's segments and the inputs that they are compared on.

    Args:
        folder: The plan's.
        plan: It.
        groups: Inputs, see ``draw_inputs``; those of a group have equal sizes.

    Raises:
        SecureError: A file that cannot be read, or a segment that does not run.
    """

    def __init__(self, folder: Path, plan: Plan, groups: Groups) -> None:
        self.plan = plan
        self._symbol = batch_symbol(plan)
        self._contents = [contents_of(folder, segment) for segment in plan.segments]
        self._groups = groups
        self._chains: dict[int, list[Sample]] = {}

    @cached_property
    def _reference(self) -> tuple[LoadedSegment, ...]:
        return tuple(self._open(i, DEFAULT, 1) for i in range(len(self.plan.segments)))

    def _open(self, index: int, choice: RuntimeChoice, threads: int) -> LoadedSegment:
        contents = self._contents[index]
        return open_segment(self.plan, index, contents, threads=threads, choice=choice)

    def model(self, index: int) -> ModelProto:
        """Return a segment's model, its weights inside."""
        return inline_segment(self.plan.segments[index], self._contents[index])

    def reason_against(self, choice: RuntimeChoice) -> str:
        """Return why a runtime cannot run some segment, "" if it can run all."""
        try:
            for index in range(len(self.plan.segments)):
                self._open(index, choice, 1)
        except ConfigurationError as error:
            return str(error)
        return ""

    def runs(self, index: int, places: Sequence[Place]) -> list[HonestRun]:
        """Return what a segment is run on, the reference first.

        Batches are varied where all of the segment's outputs that are floating point
        have a row for each input.
        """
        varied = self._is_batched(self.plan.segments[index])
        return [
            HonestRun(place=place, threads=threads, batch=batch)
            for place in places
            for threads, batch in THREADS_AND_BATCHES
            if batch == 1 or varied
        ]

    def _is_batched(self, segment: Segment) -> bool:
        floats = [spec for spec in segment.outputs if spec.dtype.startswith("float")]
        return bool(floats) and all(is_led_by(spec, self._symbol) for spec in floats)

    def answers(
        self, index: int, runs: Sequence[HonestRun]
    ) -> Iterator[tuple[HonestRun, list[Sample]]]:
        """Run a segment, and yield each run with its answer to each input.

        Raises:
            ConfigurationError: A runtime that cannot run the segment.
            MalformedInputError: A runtime that makes something else than the plan says.
        """
        segment = self.plan.segments[index]
        others: dict[ForeignPython, list[HonestRun]] = {}
        for run in runs:
            if run.place.python is not None:
                others.setdefault(run.place.python, []).append(run)
            else:
                loaded = self._open(index, run.place.choice, run.threads)
                made = [loaded.run(feed) for feed in self._feeds(index, run.batch)]
                yield run, self._apart(segment, run.batch, made)
        for python, there in others.items():
            yield from self._answers_there(index, python, there)

    def _answers_there(
        self, index: int, python: ForeignPython, runs: Sequence[HonestRun]
    ) -> Iterator[tuple[HonestRun, list[Sample]]]:
        segment = self.plan.segments[index]
        wanted = [
            ForeignRun(
                graph_level=run.place.choice.graph_level or GRAPH_LEVEL,
                threads=run.threads,
                feeds=tuple(self._feeds(index, run.batch)),
            )
            for run in runs
        ]
        model = self.model(index).SerializeToString()
        names = [spec.name for spec in segment.outputs]
        for run, made in zip(runs, python.run(model, names, wanted), strict=True):
            for answer in made:
                require_tensors(answer, segment.outputs)
            yield run, self._apart(segment, run.batch, made)

    def altered(self, index: int, model: ModelProto) -> list[Sample]:
        """Return an altered segment's answers, run as the reference is.

        Raises:
            MalformedInputError: It does not load, or does not run on these inputs.
        """
        segment = self.plan.segments[index]
        engine = OnnxEngine(
            segment,
            index,
            {segment.file: model.SerializeToString()},
            threads=1,
            graph_level=GRAPH_LEVEL,
        )
        return [engine.run(feed) for feed in self._feeds(index, 1)]

    def _feeds(self, index: int, batch: int) -> list[Sample]:
        """Return a segment's inputs, put together in batches.

        What has a row for each input is stacked; what depends on the batch otherwise
        (a shape, a mask) is what the reference makes of that batch.
        """
        segment, alone = self.plan.segments[index], self._chain(1)
        feeds, start = [], 0
        for whole in self._chain(batch):
            stop = start + self._rows_of(whole)
            feed = {}
            for spec in segment.inputs:
                rows = [made[spec.name] for made in alone[start:stop]]
                stacked = batch > 1 and is_led_by(spec, self._symbol)
                feed[spec.name] = _stack(rows) if stacked else whole[spec.name]
            feeds.append(feed)
            start = stop
        return feeds

    def _rows_of(self, made: Sample) -> int:
        if self._symbol is None:
            return 1
        return int(made[self.plan.inputs[0].name].shape[0])

    def _chain(self, batch: int) -> list[Sample]:
        """Return all that the reference makes of the inputs in batches of this size."""
        if batch not in self._chains:
            found = []
            for group in self._groups:
                for start in range(0, len(group), batch):
                    rows = group[start : start + batch]
                    whole = rows[0]
                    if batch > 1:
                        whole = {k: _stack([row[k] for row in rows]) for k in whole}
                    found.append(self._run_chain(whole))
            self._chains[batch] = found
        return self._chains[batch]

    def _run_chain(self, inputs: Sample) -> Sample:
        made = dict(inputs)
        for loaded in self._reference:
            feed = {spec.name: made[spec.name] for spec in loaded.segment.inputs}
            made |= loaded.run(feed)
        return made

    def _apart(
        self, segment: Segment, batch: int, made: Sequence[Sample]
    ) -> list[Sample]:
        """Return the answers to single inputs; of batches, what has rows."""
        if batch == 1:
            return list(made)
        led = [s.name for s in segment.outputs if is_led_by(s, self._symbol)]
        return [
            row
            for answer in made
            for row in split_rows(
                {name: answer[name] for name in led}, len(answer[led[0]])
            )
        ]


def contents_of(folder: Path, segment: Segment) -> dict[str, bytes]:
    """Read a segment's files, each compared with its digest.

    Raises:
        SecureError: One cannot be read, or is another.
    """
    return {
        entry.path: read_file(
            folder, entry.path, entry.digest, max_bytes=MAX_FILE_BYTES
        )
        for entry in segment.files
    }


def _stack(rows: Sequence[Array]) -> Array:
    if len({row.shape[1:] for row in rows}) > 1:
        raise MalformedInputError(
            "inputs of equal sizes make tensors of other sizes: they cannot be batched"
        )
    return np.concatenate(rows)
