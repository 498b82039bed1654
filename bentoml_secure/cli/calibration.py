"""What ``calibrate`` does: measure every segment, judge, write plan and report."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bentoml_secure.consensus.calibration import (
    Calibrated,
    Cheat,
    Distance,
    calibrate,
    cheat_spread,
    honest_spread,
    require_apart,
)
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.keys.sealed_plan import is_sealed
from bentoml_secure.split.alterations import ALTERATIONS, NotApplicableError, alter
from bentoml_secure.split.calibration_inputs import draw_inputs
from bentoml_secure.split.calibration_record import CalibrationRecord, NearestCheat
from bentoml_secure.split.foreign_python import ForeignPython
from bentoml_secure.split.honest_runs import (
    Bench,
    Place,
    contents_of,
    here,
    permitting,
)
from bentoml_secure.split.inlining import inline_segment
from bentoml_secure.split.plan import PLAN_FILE, Plan, load_plan, parse_plan
from bentoml_secure.split.runtimes import DEFAULT, TORCH, GraphLevel, RuntimeChoice
from bentoml_secure.split.samples import Sample, read_samples

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for.

    Attributes:
        folder: The plan's.
        samples: File of inputs; made up from the model's types if None.
        inputs: How many to compare on.
        rule: For every segment; each keeps its own if None.
        runtimes: Of this environment; all that are installed if empty.
        pythons: Interpreters of other environments.
        margin: How many times the largest honest distance the tolerance is to be.
    """

    folder: Path
    samples: Path | None
    inputs: int
    rule: str | None
    runtimes: tuple[RuntimeChoice, ...]
    pythons: tuple[Path, ...]
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFound:
    """What was found of one segment.

    Attributes:
        file: Names it.
        before: Its tolerance until now.
        rule: Whose unit distances are in.
        runs: The honest runs, the reference first.
        calibrated: Spread, cheats and tolerance.
    """

    file: str
    before: float
    rule: str
    runs: tuple[str, ...]
    calibrated: Calibrated


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found of a plan.

    Attributes:
        plan: With the tolerances that were found, acceptable or not.
        inputs: How many were compared on.
        made_up: The inputs were made up from the model's types.
        segments: In the plan's order.
        notes: What was left out, and why.
    """

    plan: Plan
    inputs: int
    made_up: bool
    segments: tuple[SegmentFound, ...]
    notes: tuple[str, ...]

    def require_apart(self) -> None:
        """Refuse tolerances that a cheat would pass.

        Raises:
            PolicyRejected: ``findings`` has every such cheat.
        """
        require_apart({one.file: one.calibrated for one in self.segments})


def measure(request: Request, tell: Tell) -> Found:
    """Measure every segment of a plan; nothing is written.

    Raises:
        SecureError: A sealed plan, files or samples that are not in order, a runtime
            that cannot run a segment, honest runs that the rule cannot compare.
    """
    if is_sealed(request.folder):
        raise ConfigurationError(
            f"{request.folder}: its segments are sealed, want them plain.",
            remedy="Calibrate before sealing: tolerances are part of what is sealed.",
        )
    plan = load_plan(request.folder)
    samples = None if request.samples is None else read_samples(request.samples)
    tell("reading the segments")
    groups = _draw(request, plan, samples)
    places, notes = _places(request)
    bench = Bench(request.folder, permitting(plan, places), groups)
    places, omitted = _able(bench, places, asked=bool(request.runtimes))
    segments = tuple(
        _measure_segment(request, bench, index, places, tell)
        for index in range(len(plan.segments))
    )
    return Found(
        plan=_calibrated_plan(permitting(plan, places), segments),
        inputs=sum(map(len, groups)),
        made_up=samples is None,
        segments=segments,
        notes=(*notes, *omitted),
    )


def _draw(
    request: Request, plan: Plan, samples: Sample | None
) -> tuple[tuple[Sample, ...], ...]:
    models = [
        inline_segment(segment, contents_of(request.folder, segment))
        for segment in (plan.segments if samples is None else ())
    ]
    return draw_inputs(plan, models, samples, request.inputs)


def _places(request: Request) -> tuple[list[Place], list[str]]:
    """Return where segments are to be run, the reference first."""
    levels = [RuntimeChoice(graph_level=level) for level in reversed(GraphLevel)]
    asked = request.runtimes or (*levels, RuntimeChoice.parse(TORCH))
    places, notes = [here(DEFAULT)], []
    for choice in dict.fromkeys(asked):
        if choice == DEFAULT:
            continue
        try:
            places.append(here(choice))
        except ConfigurationError as error:
            if request.runtimes:
                raise
            notes.append(f"left out: {error}")
    for path in request.pythons:
        python = ForeignPython(path)
        if any(place.version == python.version for place in places):
            raise ConfigurationError(
                f"{path}: has onnxruntime {python.version}, which is measured already.",
                remedy="Name an environment with another version, or leave it out.",
            )
        chosen = [c for c in (DEFAULT, *asked) if c.graph_level is not None]
        places += [
            Place(choice=choice, version=python.version, python=python)
            for choice in dict.fromkeys(chosen)
        ]
    return places, notes


def _able(
    bench: Bench, places: Sequence[Place], *, asked: bool
) -> tuple[list[Place], list[str]]:
    """Leave out what cannot run some segment, unless it was asked for by name."""
    kept, notes = [], []
    for place in places:
        is_torch = place.python is None and place.choice.name == TORCH
        reason = bench.reason_against(place.choice) if is_torch else ""
        if reason and asked:
            raise ConfigurationError(f"{place}: {reason}")
        if reason:
            notes.append(f"left out: {place}: {reason}")
        else:
            kept.append(place)
    return kept, notes


def _measure_segment(
    request: Request, bench: Bench, index: int, places: Sequence[Place], tell: Tell
) -> SegmentFound:
    segment = bench.plan.segments[index]
    rule = request.rule or segment.rule
    distance = load_rule(rule).distance
    at = f"segment {index + 1} of {len(bench.plan.segments)}"
    runs = bench.runs(index, places)
    answers = {}
    tell(f"{at}: {runs[0]}")
    for run, rows in bench.answers(index, runs):
        tell(f"{at}: {run}")
        answers[str(run)] = rows
    names = [str(run) for run in runs]
    tell(f"{at}: distances")
    spread = honest_spread({name: answers[name] for name in names}, distance)
    cheats = []
    for name in ALTERATIONS:
        tell(f"{at}: cheat {name}")
        cheats.append(_cheat(bench, index, name, answers, names[0], distance))
    return SegmentFound(
        file=segment.file,
        before=segment.tolerance,
        rule=rule,
        runs=tuple(names),
        calibrated=calibrate(spread, cheats, margin=request.margin),
    )


def _cheat(
    bench: Bench,
    index: int,
    name: str,
    answers: dict[str, list[Sample]],
    reference: str,
    distance: Distance,
) -> Cheat:
    try:
        altered = bench.altered(index, alter(name, bench.model(index)))
    except (NotApplicableError, MalformedInputError) as error:
        return Cheat(name=name, not_applicable=str(error))
    return cheat_spread(name, altered, answers, reference, distance)


def _calibrated_plan(plan: Plan, found: Sequence[SegmentFound]) -> Plan:
    segments = tuple(
        replace(
            segment,
            tolerance=one.calibrated.tolerance,
            rule=one.rule,
            calibration=_record(one),
        )
        for segment, one in zip(plan.segments, found, strict=True)
    )
    return replace(plan, segments=segments)


def _record(one: SegmentFound) -> CalibrationRecord:
    found = one.calibrated
    nearest = found.nearest
    return CalibrationRecord(
        inputs=len(found.spread.per_input),
        pairs=found.spread.pairs,
        largest=found.spread.largest,
        margin=found.margin,
        false_alarm=found.false_alarm,
        runtimes=one.runs,
        nearest_cheat=None
        if nearest is None
        else NearestCheat(name=nearest.name, distance=nearest.smallest or math.inf),
    )


def write_plan(folder: Path, plan: Plan) -> None:
    """Put a plan in the place of the folder's, all of it or nothing.

    Raises:
        ConfigurationError: The folder cannot be written to.
    """
    document = json.dumps(plan.to_json(), indent=1, ensure_ascii=False).encode()
    parse_plan(document)
    try:
        replace_file(folder / PLAN_FILE, document)
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be written: {error}") from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file beside, and rename it into place; a new one all may read."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}-", delete=False
    ) as stream:
        made = Path(stream.name)
        try:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            made.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
            made.replace(path)
        except BaseException:
            made.unlink(missing_ok=True)
            raise


def to_json(found: Found) -> dict[str, Any]:
    """Return what was found as the report has it; infinite distances as None."""
    return {
        "plan": found.plan.digest,
        "model": found.plan.model_name,
        "inputs": found.inputs,
        "inputs_made_up": found.made_up,
        "permitted": [str(one.choice) for one in found.plan.runtime.permitted],
        "notes": list(found.notes),
        "segments": [_segment_json(one) for one in found.segments],
    }


def _segment_json(one: SegmentFound) -> dict[str, Any]:
    found = one.calibrated
    return {
        "file": one.file,
        "rule": one.rule,
        "tolerance_before": one.before,
        "tolerance": found.tolerance,
        "margin": found.margin,
        "largest": found.spread.largest,
        "farthest": list(found.spread.farthest),
        "false_alarm": found.false_alarm,
        "pairs": found.spread.pairs,
        "runs": list(one.runs),
        "honest": list(found.spread.per_input),
        "passing": [cheat.name for cheat in found.passing],
        "cheats": [
            {
                "name": cheat.name,
                "unchanged": cheat.unchanged,
                "distances": [d if math.isfinite(d) else None for d in cheat.distances],
                "not_applicable": cheat.not_applicable or None,
            }
            for cheat in found.cheats
        ],
    }
