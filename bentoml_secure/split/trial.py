"""Trying cuts out: are the parts, one after the other, bit for bit the whole?

ONNX Runtime fuses neighbouring nodes. A cut through what it would have fused can
change the last bits of a result, so every choice of cuts is written, loaded as a
runner would load it, and run on samples beside the uncut model.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import ModelProto, ValueInfoProto

from bentoml_secure.digest import Digest, is_finite_number
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split.extract import Extractor
from bentoml_secure.split.graph import Analysis
from bentoml_secure.split.plan import (
    MAX_NAME_CHARACTERS,
    PLAN_FILE,
    Plan,
    Runtime,
    Segment,
    SegmentFile,
    parse_plan,
)
from bentoml_secure.split.runtime import (
    PROVIDERS,
    RUN_ERRORS,
    GraphLevel,
    load_chain,
    session_options,
)
from bentoml_secure.split.samples import Sample
from bentoml_secure.split.specs import Specs
from bentoml_secure.split.weights import Source, digest_of_file, write_model
from bentoml_secure.tensors import DTYPES, MAX_DIMENSIONS, Array

# Each round can only turn sizes into symbols, and few tensors have more than two.
_MOST_ROUNDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is written into every plan of one split."""

    name: str
    digest: Digest
    runtime: Runtime
    tolerance: float
    inline_bytes: int

    def __post_init__(self) -> None:
        if not is_finite_number(self.tolerance) or self.tolerance < 0:
            raise ConfigurationError(
                f"tolerance: got {self.tolerance!r:.40}, want a number >= 0"
            )
        if not 0 < len(self.name) <= MAX_NAME_CHARACTERS:
            raise ConfigurationError(
                f"name: got {len(self.name)} characters, "
                f"want 1 to {MAX_NAME_CHARACTERS}"
            )


def distance(left: Array, right: Array) -> float:
    """Return ``max|a-b| / min(rms(a), rms(b))`` in float64; 0.0 for equal bits.

    Infinite where shapes, or the places of NaN and infinity, differ.
    """
    if left.shape != right.shape or left.dtype != right.dtype:
        return math.inf
    if left.dtype.kind == "O" or left.tobytes() == right.tobytes():
        # Text is compared by nobody: it is refused as a type.
        return 0.0
    a, b = left.astype(np.float64), right.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    a, b = a[finite], b[finite]
    if not np.isfinite(b).all():
        return math.inf
    scale = min(np.sqrt(np.mean(a * a)), np.sqrt(np.mean(b * b)))
    most = float(np.abs(a - b).max())
    return most / float(scale) if scale else math.inf


def run_whole(
    path: Path, samples: Sequence[Sample], outputs: Sequence[str], *, guessed: bool
) -> tuple[tuple[Sample, ...], bool]:
    """Run the uncut model at the plan's graph level on every sample.

    Returns:
        Its outputs for each sample, and whether a second run gave other ones.

    Raises:
        ConfigurationError: It does not run on these samples, or an output of it is
            not a tensor.
        MalformedInputError: ONNX Runtime cannot load it.
    """
    options = session_options(None, GraphLevel.EXTENDED)
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=list(PROVIDERS), enable_fallback=0
        )
    except RUN_ERRORS as error:
        raise MalformedInputError(
            f"{path}: onnxruntime cannot load it: {error}"
        ) from error
    results, is_random = [], False
    for sample in samples:
        try:
            made, again = (session.run(list(outputs), sample) for _ in range(2))
        except RUN_ERRORS as error:
            origin = "made up from its types" if guessed else "given"
            raise ConfigurationError(
                f"{path}: does not run on the samples {origin}: {error}.",
                remedy="Give samples that it accepts.",
            ) from error
        for name, array, second in zip(outputs, made, again, strict=True):
            if not isinstance(array, np.ndarray):
                raise ConfigurationError(
                    f"output {name!r:.100}: is a {type(array).__name__}, not a tensor.",
                    remedy="Export the model without maps, sequences and options.",
                )
            is_random = is_random or distance(array, second) > 0
        results.append(dict(zip(outputs, made, strict=True)))
    return tuple(results), is_random


def probe(source: Source, sample: Sample, names: Sequence[str]) -> Sample:
    """Run the whole once more, and return values inside it that inference left open.

    Only what turns out to be an array comes back; nothing, if the model's weights are
    not all in its one file, or it does not run that way.
    """
    if source.is_external or not names:
        return {}
    asked = ModelProto()
    asked.CopyFrom(source.model)
    listed = {value.name for value in asked.graph.output}
    asked.graph.output.extend(
        ValueInfoProto(name=name) for name in names if name not in listed
    )
    try:
        session = onnxruntime.InferenceSession(
            asked.SerializeToString(),
            session_options(None, GraphLevel.NONE),
            providers=list(PROVIDERS),
            enable_fallback=0,
        )
        made = session.run(list(names), sample)
    except RUN_ERRORS:
        return {}
    return {
        name: array
        for name, array in zip(names, made, strict=True)
        if isinstance(array, np.ndarray)
        and array.dtype.name in DTYPES
        and array.ndim <= MAX_DIMENSIONS
    }


class Trial:
    """Writes, loads and compares plans for one model; remembers what it found."""

    def __init__(
        self,
        source: Source,
        analysis: Analysis,
        specs: Specs,
        settings: Settings,
        samples: Sequence[Sample],
        expected: Sequence[Mapping[str, Array]],
        new_folder: Callable[[], Path],
    ) -> None:
        self._source = source
        self._analysis = analysis
        self._specs = specs
        self._settings = settings
        self._samples = samples
        self._expected = expected
        self._new_folder = new_folder
        self._extractor = Extractor(source.model, analysis, specs)
        self._found: dict[tuple[int, ...], float] = {}
        self._folder = new_folder()
        self._cuts: tuple[int, ...] | None = None

    def distance(self, cuts: tuple[int, ...]) -> float:
        """Return the largest distance of any output on any sample; 0.0 if bit-equal.

        Raises:
            SecureError: A part cannot be written, loaded or run.
        """
        if cuts not in self._found:
            self._found[cuts] = self._attempt(cuts)
        return self._found[cuts]

    def folder(self, cuts: tuple[int, ...]) -> Path:
        """Return the folder of the plan with these cuts, its plan.json included."""
        if self._cuts != cuts:
            self._attempt(cuts)
        return self._folder

    def _attempt(self, cuts: tuple[int, ...]) -> float:
        for _ in range(_MOST_ROUNDS):
            # One copy of the weights at a time: they may be large.
            shutil.rmtree(self._folder)
            self._folder, self._cuts = self._new_folder(), None
            plan = self._write(cuts, self._folder)
            worst = self._compare(self._folder)
            # What the runs showed may have changed the specs just written.
            if self._described(cuts) == [(s.inputs, s.outputs) for s in plan.segments]:
                self._cuts = cuts
                return worst
        raise ConfigurationError("model: its sizes differ from run to run")

    def _stretches(self, cuts: tuple[int, ...]) -> list[tuple[int, int]]:
        edges = [0, *(step + 1 for step in cuts), len(self._analysis.steps)]
        return list(pairwise(edges))

    def _described(self, cuts: tuple[int, ...]) -> list[tuple[object, object]]:
        return [self._extractor.boundary(*stretch) for stretch in self._stretches(cuts)]

    def _write(self, cuts: tuple[int, ...], folder: Path) -> Plan:
        segments = []
        for index, (first, stop) in enumerate(self._stretches(cuts)):
            inputs, outputs = self._extractor.boundary(first, stop)
            written = write_model(
                self._extractor.extract(first, stop),
                folder / f"segment-{index}.onnx",
                self._source,
                inline_bytes=self._settings.inline_bytes,
            )
            files = tuple(
                SegmentFile(path=path.name, digest=digest_of_file(path))
                for path in written
            )
            segments.append(
                Segment(
                    file=written[0].name,
                    files=files,
                    inputs=inputs,
                    outputs=outputs,
                    tolerance=self._settings.tolerance,
                )
            )
        plan = Plan(
            model_name=self._settings.name,
            model_digest=self._settings.digest,
            inputs=tuple(map(self._specs.of, self._analysis.inputs)),
            outputs=tuple(map(self._specs.of, self._analysis.outputs)),
            runtime=self._settings.runtime,
            segments=tuple(segments),
        )
        document = json.dumps(plan.to_json(), indent=1, ensure_ascii=False).encode()
        parse_plan(document)
        (folder / PLAN_FILE).write_bytes(document)
        return plan

    def _compare(self, folder: Path) -> float:
        chain = load_chain(folder)
        worst = 0.0
        for sample, wanted in zip(self._samples, self._expected, strict=True):
            made: Sample = dict(sample)
            sizes = self._specs.bind(self._analysis.inputs, made)
            for loaded in chain.segments:
                feed = {spec.name: made[spec.name] for spec in loaded.segment.inputs}
                for name, array in loaded.run_unchecked(feed).items():
                    self._specs.observe(name, array, sizes)
                    made[name] = array
            for name, array in wanted.items():
                worst = max(worst, distance(made[name], array))
        return worst
