"""From a model's file to a folder with its plan."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import onnxruntime
from onnx import TypeProto
from packaging.version import Version

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    SecureError,
)
from bentoml_secure.split import cut, types
from bentoml_secure.split import samples as sampling
from bentoml_secure.split.costs import Costs
from bentoml_secure.split.graph import Analysis, analyse
from bentoml_secure.split.plan import (
    MAX_SEGMENTS,
    PLAN_FILE,
    Plan,
    Runtime,
    load_plan,
)
from bentoml_secure.split.specs import Specs
from bentoml_secure.split.trial import Settings, Trial, probe, run_whole
from bentoml_secure.split.weights import INLINE_BYTES, Source
from bentoml_secure.tensors import MAX_TENSORS, Array

Samples = Mapping[str, Array] | Sequence[Mapping[str, Array]]

_MOST_ATTEMPTS = 64


class SplitWarning(UserWarning):
    """The parts are not bit for bit the whole; the message says how far off."""


def split_onnx(
    model_path: str | Path,
    out: str | Path,
    *,
    segments: int | None = None,
    cuts: Sequence[str | Sequence[str]] | None = None,
    tolerance: float = 2e-5,
    runtime: str | None = None,
    samples: Samples | None = None,
    name: str | None = None,
    inline_bytes: int = INLINE_BYTES,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Cut an ONNX model into segments and write them, with their plan, to a folder.

    Chosen cuts are tried on samples and moved until the segments, run one after the
    other at graph level EXTENDED, give the bits of the whole. A named cut stays where
    it is.

    Args:
        model_path: The ONNX file; its external data are found beside it.
        out: A folder that is new, empty, or holds an earlier plan and nothing else.
            plan.json is written last.
        segments: How many to choose cuts for; give this or ``cuts``.
        cuts: Where to cut: a tensor's name per cut, or several names, then right
            after the last of the nodes that make them.
        tolerance: Written into every segment: how far two honest runs may differ,
            as ``max|a-b| / min(rms(a), rms(b))``.
        runtime: Range of ONNX Runtime versions, as in PEP 440; by default the minor
            release that is installed.
        samples: Inputs to compare on: an array for each input of the model, or
            several such sets; by default made up from the model's types.
        name: The model's name in the plan; by default the file's.
        inline_bytes: Weights of a segment that come to this much are written beside
            it as external data.
        progress: Told in a few words what is being done.

    Returns:
        The plan that was written.

    Raises:
        ConfigurationError: The model cannot be cut that often or there, does not run
            on the samples, or ``out`` is in use.
        MalformedInputError: Not a model that ONNX Runtime loads.
        VerificationError: External data outside the model's folder.

    Warns:
        SplitWarning: A named cut changes the result; or the model draws random
            numbers, so nothing could be compared.
    """
    target, tell = Path(out), progress or _silent
    _require_asked(segments, cuts)
    _require_usable(target)
    wanted = _runtime(runtime)
    model = _prepare(Path(model_path), samples, tell)
    settings = Settings(
        name=Path(model_path).stem if name is None else name,
        digest=model.source.digest(),
        runtime=wanted,
        tolerance=tolerance,
        inline_bytes=inline_bytes,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}-"
    ) as work:
        trial = _trial(model, settings, Path(work))
        if cuts is None:
            steps = _chosen(model, trial, segments or 1, tell)
        else:
            steps = cut.named(model.analysis, model.specs, cuts)
            tell(f"comparing {len(steps) + 1} segments with the whole")
        remark = _remark(model, trial.distance(steps))
        _publish(trial.folder(steps), target)
    if remark:
        warnings.warn(remark, SplitWarning, stacklevel=2)
    return load_plan(target)


def _require_asked(
    segments: int | None, cuts: Sequence[str | Sequence[str]] | None
) -> None:
    if (segments is None) == (cuts is None):
        raise ConfigurationError("split: want either segments or cuts, and not both")
    count = segments if cuts is None else len(cuts) + 1
    if count is None or not 1 <= count <= MAX_SEGMENTS:
        raise ConfigurationError(f"segments: got {count}, want 1 to {MAX_SEGMENTS}")


def _remark(model: _Model, found: float) -> str:
    if model.is_random:
        return (
            "two runs of the whole model differ: it draws random numbers, and its "
            "segments could not be compared with it"
        )
    if found:
        return (
            f"the segments differ from the whole by {found:.3g} at graph level "
            "EXTENDED: a cut parts nodes that ONNX Runtime fuses"
        )
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A model read, understood and run once."""

    source: Source
    analysis: Analysis
    types: Mapping[str, TypeProto.Tensor]
    specs: Specs
    samples: tuple[sampling.Sample, ...]
    expected: tuple[sampling.Sample, ...]
    seen: sampling.Sample
    is_random: bool


def _silent(_: str) -> None:
    """Take no notice."""


def _runtime(version: str | None) -> Runtime:
    installed = Version(onnxruntime.__version__)
    if version is None:
        major, minor = installed.release[:2]
        return Runtime(version=f">={major}.{minor},<{major}.{minor + 1}")
    asked = Runtime(version=version)
    if installed not in asked.allowed:
        raise ConfigurationError(
            f"runtime: got {version}, which leaves out {installed}, the version that "
            "is installed and that the segments are tried on"
        )
    return asked


def _trial(model: _Model, settings: Settings, work: Path) -> Trial:
    numbers = count()

    def new_folder() -> Path:
        folder = work / str(next(numbers))
        folder.mkdir()
        return folder

    return Trial(
        model.source,
        model.analysis,
        model.specs,
        settings,
        model.samples,
        model.expected,
        new_folder,
    )


def _require_countable(analysis: Analysis) -> None:
    for what, names in (("inputs", analysis.inputs), ("outputs", analysis.outputs)):
        if len(names) > MAX_TENSORS:
            raise ConfigurationError(
                f"model {what}: got {len(names)}, want at most {MAX_TENSORS}"
            )
        if len(set(names)) != len(names):
            raise MalformedInputError(f"model {what}: a name stands there twice")
    if set(analysis.outputs) <= set(analysis.inputs):
        raise ConfigurationError("model: it computes nothing from its inputs")


def _prepare(path: Path, given: Samples | None, tell: Callable[[str], None]) -> _Model:
    """Read a model, infer its types, and run it whole on every sample.

    The specs of its inputs and outputs give way to what the samples show.
    """
    tell(f"reading {path.name}")
    source = Source(path)
    analysis = analyse(source.model)
    _require_countable(analysis)
    known = types.infer(source.model)
    specs = Specs(known)
    samples = _samples(source, analysis, specs, given)
    tell("running the whole model")
    expected, is_random = run_whole(
        path, samples, analysis.outputs, guessed=given is None
    )
    for sample, made in zip(samples, expected, strict=True):
        arrays = {**made, **sample}
        sizes = specs.bind(analysis.inputs, arrays)
        for name in (*analysis.inputs, *analysis.outputs):
            specs.learn(name, arrays[name])
            specs.observe(name, arrays[name], sizes)
    seen = probe(
        source,
        samples[0],
        [name for name in analysis.made_at if name not in known and name not in arrays],
    )
    for name, array in seen.items():
        specs.learn(name, array)
    return _Model(
        source=source,
        analysis=analysis,
        types=known,
        specs=specs,
        samples=samples,
        expected=expected,
        seen=seen,
        is_random=is_random,
    )


def _samples(
    source: Source, analysis: Analysis, specs: Specs, given: Samples | None
) -> tuple[sampling.Sample, ...]:
    if given is None:
        wanted = [specs.of(name) for name in analysis.inputs]
        return sampling.guess(source.model, analysis, wanted)
    sets = [given] if isinstance(given, Mapping) else given
    samples = tuple(dict(sample) for sample in sets)
    _require_named(samples, analysis)
    for name in analysis.inputs:
        specs.learn(name, samples[0][name])
    return samples


def _require_named(tried: Sequence[sampling.Sample], analysis: Analysis) -> None:
    if not tried:
        raise ConfigurationError("samples: got none, want at least one")
    for sample in tried:
        if sample.keys() != set(analysis.inputs):
            raise ConfigurationError(
                f"samples: got {sorted(sample)!r:.200}, "
                f"want {sorted(analysis.inputs)!r:.200}"
            )


def _chosen(
    model: _Model, trial: Trial, segments: int, tell: Callable[[str], None]
) -> tuple[int, ...]:
    """Return the best cuts whose parts are bit-equal to the whole.

    Raises:
        ConfigurationError: There are not that many.
    """
    sizes = model.specs.bind(model.analysis.inputs, model.samples[0])
    costs = Costs(model.source.model, model.types, sizes, model.seen)
    places, work = cut.candidates(model.analysis, model.specs, costs)
    barred: set[int] = set()
    failures: list[SecureError] = []
    for attempt in range(_MOST_ATTEMPTS):
        try:
            steps = cut.choose(places, work, segments, barred)
        except ConfigurationError as error:
            raise (_with_reason(error, failures[-1]) if failures else error) from error
        tell(f"comparing with the whole, choice {attempt + 1}")
        found = set() if model.is_random else _culprits(trial, steps, failures)
        if not found:
            return steps
        barred |= found
    raise ConfigurationError(
        f"segments: {_MOST_ATTEMPTS} choices of {segments - 1} cuts were tried, and "
        "each changes what the model computes.",
        remedy="Ask for fewer segments, or name the cuts.",
    )


def _with_reason(error: SecureError, failure: SecureError) -> ConfigurationError:
    return ConfigurationError(
        f"{error.args[0]} A part did not run by itself: {failure}", remedy=error.remedy
    )


def _culprits(
    trial: Trial, steps: tuple[int, ...], failures: list[SecureError]
) -> set[int]:
    """Return the cuts that make the parts differ from the whole; none if they do not.

    Each is tried alone, which says most in one go. Where only several together make
    the difference, it is the first that makes it beside those before it.
    """
    if not steps or _is_equal(trial, steps, failures):
        return set()
    alone = {step for step in steps if not _is_equal(trial, (step,), failures)}
    if alone:
        return alone
    for number in range(2, len(steps)):
        if not _is_equal(trial, steps[:number], failures):
            return {steps[number - 1]}
    return {steps[-1]}


def _is_equal(
    trial: Trial, steps: tuple[int, ...], failures: list[SecureError]
) -> bool:
    try:
        return trial.distance(steps) == 0.0
    except (ConfigurationError, MalformedInputError) as error:
        # A part that does not load or run on its own: cut elsewhere.
        failures.append(error)
        return False


def _require_usable(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier plan and its files."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigurationError(f"{out}: exists and is not a folder")
    try:
        held = {PLAN_FILE, *_files_of(out)}
    except SecureError:
        held = set()
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.relative_to(out).as_posix() not in held:
            raise ConfigurationError(
                f"{out}: holds {path.name}, which is not of an earlier plan.",
                remedy="Name a new folder, or empty this one.",
            )


def _files_of(folder: Path) -> set[str]:
    segments = load_plan(folder).segments
    return {entry.path for segment in segments for entry in segment.files}


def _publish(made: Path, out: Path) -> None:
    """Move a finished plan to its place; at no time does half a plan look whole."""
    if not out.exists():
        made.rename(out)
        return
    if (out / PLAN_FILE).exists():
        old = _files_of(out)
        (out / PLAN_FILE).unlink()
        for name in old:
            (out / name).unlink(missing_ok=True)
    names = sorted(path.name for path in made.iterdir())
    for name in sorted(names, key=lambda name: name == PLAN_FILE):
        shutil.move(made / name, out / name)
