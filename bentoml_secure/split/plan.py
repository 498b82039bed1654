"""plan.json: which segments a model was cut into, and what passes between them.

The rules of a plan, all checked before one exists:

    1. every value is made once: by the model's inputs or by one segment
    2. a segment reads only what the inputs or earlier segments make
    3. reader and maker say the same of a tensor: dtype, shape, finiteness
    4. every model output is made
    5. paths are relative, plain, and stay inside the folder
    6. the document is the one that this module would write

Digests of files are taken over the bytes that are then loaded (``read_file``), so a
file swapped after the check is not the one that runs. Reading a plan imports neither
onnx nor onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bentoml_secure.digest import (
    FILE,
    JSON,
    Digest,
    digest_json,
    parse_digest,
    parse_json,
)
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split.calibration_record import CalibrationRecord
from bentoml_secure.split.files import read_bytes, read_file, require_path
from bentoml_secure.split.plan_fields import amount, fields, items, text
from bentoml_secure.split.runtimes import Runtime
from bentoml_secure.tensors import MAX_TENSORS, TensorSpec

PLAN_FILE = "plan.json"
VERSION = 1
DEFAULT_RULE = "within_tolerance"

MAX_PLAN_BYTES = 8 << 20
MAX_SEGMENTS = 256
MAX_FILES = 64
MAX_NAME_CHARACTERS = 512
MAX_RULE_CHARACTERS = 60
MODEL_INPUT = -1

__all__ = [
    "CalibrationRecord",
    "PLAN_FILE",
    "Plan",
    "Runtime",
    "Segment",
    "SegmentFile",
    "load_plan",
    "parse_plan",
    "read_file",
    "require_path",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFile:
    """A file that a segment loads: its path in the folder, the digest of its bytes."""

    path: str
    digest: Digest

    def __post_init__(self) -> None:
        require_path(self.path, what="segment file")

    def to_json(self) -> dict[str, Any]:
        """Return the entry of plan.json."""
        return {"path": self.path, "digest": self.digest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One part of the model, run by one process.

    Attributes:
        file: Path of the ONNX file, one of ``files``.
        files: All that is loaded: the ONNX file and its external data.
        inputs: What it reads, under the model's own names.
        outputs: What it makes, under the model's own names.
        tolerance: Largest distance between two honest runs' outputs, in the unit of
            the rule; of the default one, ``max|a-b| / min(rms(a), rms(b))``.
        rule: Which rule of ``consensus.rules`` gives that distance.
        calibration: How the tolerance was found, if it was measured.
        identity: Digest of the entry in plan.json.
    """

    file: str
    files: tuple[SegmentFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerance: float
    rule: str = DEFAULT_RULE
    calibration: CalibrationRecord | None = None
    identity: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        _unique([entry.path for entry in self.files], f"{self.file} files")
        if self.file not in {entry.path for entry in self.files}:
            raise MalformedInputError(f"{self.file}: is not listed in its files")
        _unique([spec.name for spec in self.inputs], f"{self.file} inputs")
        _unique([spec.name for spec in self.outputs], f"{self.file} outputs")
        if not self.outputs:
            raise MalformedInputError(f"{self.file} outputs: got none, want at least 1")
        amount(self.tolerance, f"{self.file} tolerance")
        if not 0 < len(self.rule) <= MAX_RULE_CHARACTERS or not self.rule.isprintable():
            raise MalformedInputError(
                f"{self.file} rule: got {self.rule!r:.60}, want a rule's name"
            )
        object.__setattr__(self, "identity", digest_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return the entry of plan.json; what is as by default is left out."""
        entry: dict[str, Any] = {
            "file": self.file,
            "files": [entry.to_json() for entry in self.files],
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "tolerance": self.tolerance,
        }
        if self.rule != DEFAULT_RULE:
            entry["rule"] = self.rule
        if self.calibration is not None:
            entry["calibration"] = self.calibration.to_json()
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole plan.json; see the module's rules.

    Attributes:
        version: Of the format.
        model_name: For people.
        model_digest: Digest of the list of the original model's files.
        inputs: Of the model, those that its graph does not use included.
        outputs: Of the model. One may be a model input passed straight through.
        runtime: What the segments were checked on.
        segments: In the order in which they run.
        digest: Digest of the document.
    """

    version: int = VERSION
    model_name: str
    model_digest: Digest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: Runtime
    segments: tuple[Segment, ...]
    digest: Digest = field(init=False, compare=False)
    _producers: Mapping[str, int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise MalformedInputError(
                f"plan version: got {self.version!r:.40}, want {VERSION}"
            )
        if not 0 < len(self.model_name) <= MAX_NAME_CHARACTERS:
            raise MalformedInputError(
                f"model name: want 1 to {MAX_NAME_CHARACTERS} characters"
            )
        if not 0 < len(self.segments) <= MAX_SEGMENTS:
            raise MalformedInputError(
                f"plan segments: got {len(self.segments)}, want 1 to {MAX_SEGMENTS}"
            )
        object.__setattr__(self, "_producers", _follow_chain(self))
        _same_bytes(self.segments)
        object.__setattr__(self, "digest", digest_json(self.to_json()))

    def producer(self, name: str) -> int:
        """Return the index of the segment that makes a value, -1 for a model input.

        Raises:
            ConfigurationError: Nothing in the plan makes it.
        """
        try:
            return self._producers[name]
        except KeyError:
            raise ConfigurationError(
                f"tensor {name!r:.100}: no segment of the plan makes it"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Return the document of plan.json."""
        return {
            "version": self.version,
            "model": {"name": self.model_name, "digest": self.model_digest},
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "runtime": self.runtime.to_json(),
            "segments": [segment.to_json() for segment in self.segments],
        }


def _unique(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedInputError(f"{what}: {twice!r:.100} stands there twice")


def _follow_chain(plan: Plan) -> dict[str, int]:
    """Return who makes each value, having checked that all that is read is made."""
    _unique([spec.name for spec in plan.inputs], "plan inputs")
    _unique([spec.name for spec in plan.outputs], "plan outputs")
    if not plan.outputs:
        raise MalformedInputError("plan outputs: got none, want at least 1")
    made = {spec.name: spec for spec in plan.inputs}
    producers = dict.fromkeys(made, MODEL_INPUT)
    for index, segment in enumerate(plan.segments):
        for spec in segment.inputs:
            _require_made(spec, made, f"segment {index} input")
        for spec in segment.outputs:
            if spec.name in made:
                raise MalformedInputError(
                    f"segment {index} output {spec.name!r:.100}: is made before"
                )
            made[spec.name] = spec
            producers[spec.name] = index
    for spec in plan.outputs:
        _require_made(spec, made, "plan output")
    return producers


def _require_made(
    spec: TensorSpec, made: Mapping[str, TensorSpec], reader: str
) -> None:
    maker = made.get(spec.name)
    if maker is None:
        raise MalformedInputError(
            f"{reader} {spec.name!r:.100}: no model input or earlier segment makes it"
        )
    if maker != spec:
        raise MalformedInputError(
            f"{reader} {spec.name!r:.100}: got {spec.dtype} {list(spec.shape)!r:.100}, "
            f"its maker says {maker.dtype} {list(maker.shape)!r:.100}"
        )


def _same_bytes(segments: Sequence[Segment]) -> None:
    """Refuse one path under two digests: a file has one content."""
    digests: dict[str, Digest] = {}
    for entry in (entry for segment in segments for entry in segment.files):
        if digests.setdefault(entry.path, entry.digest) != entry.digest:
            raise MalformedInputError(f"{entry.path}: stands there under two digests")


def parse_plan(data: bytes) -> Plan:
    """Parse plan.json; see the module's rules.

    Raises:
        MalformedInputError: Not JSON, a rule broken, a field unknown or missing.
    """
    document = parse_json(data, what=PLAN_FILE, max_bytes=MAX_PLAN_BYTES)
    top = fields(
        document,
        {"version", "model", "inputs", "outputs", "runtime", "segments"},
        PLAN_FILE,
    )
    if type(top["version"]) is not int:
        raise MalformedInputError(
            f"plan version: got {top['version']!r:.40}, want {VERSION}"
        )
    model = fields(top["model"], {"name", "digest"}, "model")
    segments = items(top["segments"], "segments", MAX_SEGMENTS)
    plan = Plan(
        version=top["version"],
        model_name=text(model["name"], "model name"),
        model_digest=parse_digest(model["digest"], what="model digest", algorithm=JSON),
        inputs=_specs(top["inputs"], "plan inputs"),
        outputs=_specs(top["outputs"], "plan outputs"),
        runtime=Runtime.from_json(top["runtime"]),
        segments=tuple(
            _segment(entry, f"segment {index}") for index, entry in enumerate(segments)
        ),
    )
    if plan.to_json() != document:
        raise MalformedInputError(
            f"{PLAN_FILE}: says a default in so many words; want it left out"
        )
    return plan


def _specs(value: object, what: str) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec.from_json(entry, what=f"{what} {index}")
        for index, entry in enumerate(items(value, what, MAX_TENSORS))
    )


def _segment(value: object, what: str) -> Segment:
    entry = fields(
        value,
        {"file", "files", "inputs", "outputs", "tolerance"},
        what,
        optional=["rule", "calibration"],
    )
    files = []
    for item in items(entry["files"], f"{what} files", MAX_FILES):
        got = fields(item, {"path", "digest"}, f"{what} file")
        files.append(
            SegmentFile(
                path=require_path(got["path"], what=f"{what} file"),
                digest=parse_digest(
                    got["digest"], what=f"{what} file digest", algorithm=FILE
                ),
            )
        )
    calibration = entry.get("calibration")
    if "calibration" in entry:
        calibration = CalibrationRecord.from_json(calibration)
    return Segment(
        file=require_path(entry["file"], what=f"{what} file"),
        files=tuple(files),
        inputs=_specs(entry["inputs"], f"{what} inputs"),
        outputs=_specs(entry["outputs"], f"{what} outputs"),
        tolerance=amount(entry["tolerance"], f"{what} tolerance"),
        rule=text(entry.get("rule", DEFAULT_RULE), f"{what} rule"),
        calibration=calibration,
    )


def load_plan(folder: Path) -> Plan:
    """Read and parse ``folder``'s plan.json.

    Raises:
        ConfigurationError: There is none, or it cannot be read.
        MalformedInputError: It breaks a rule.
    """
    return parse_plan(read_bytes(folder, PLAN_FILE, max_bytes=MAX_PLAN_BYTES))
