"""Setting proofs of a plan up: from the plan and samples to a folder that proves it.

1. the plan is a chain of float tensors, and runs on the samples as it is served
2. parameters are chosen (``search``), or given
3. every circuit is compiled, and the whole chain of them run on all samples: answers
   over the bound are refused before any key is made
4. each segment's keys are made, if a proof with them fits in the memory there is
5. the manifest names every file, and the owner signs it

The folder appears whole or not at all. Circuits and proving keys hold the model's
weights: the folder is readable to its owner only.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bentoml_secure.digest import Digest, digest_file_bytes
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.accuracy import (
    Measured,
    Reference,
    Tensors,
    execute_chain,
    measure,
    run_model,
)
from bentoml_secure.proofs.admission import available_memory, require_fits
from bentoml_secure.proofs.backends import open_backend
from bentoml_secure.proofs.boundary import SaltForm, activations_of
from bentoml_secure.proofs.circuit import Form, boundaries_of, circuit_model
from bentoml_secure.proofs.folder import (
    CIRCUIT,
    KEY,
    MANIFEST_FILE,
    PROVING_KEY,
    SETTINGS,
    SRS_FOLDER,
)
from bentoml_secure.proofs.links import Ends, Link
from bentoml_secure.proofs.manifest import Manifest, SegmentSetup, sign_manifest
from bentoml_secure.proofs.proof import Limits, Parameters, ProofBackend, Rows
from bentoml_secure.proofs.search import Chosen, choose
from bentoml_secure.proofs.srs import digest_large_file
from bentoml_secure.proofs.srs_folder import SrsFolder, file_name
from bentoml_secure.signing import SigningKey
from bentoml_secure.split import Plan, load_plan, read_file, read_samples

DEFAULT_ACCURACY = 0.01
SECONDS = 3600.0
_MAX_SEGMENT_BYTES = 2 << 30

Progress = Callable[[str], None]


_ATTEMPTS = 3
_STRICTER = 1.25
"""Than what the samples showed asks for: next time others are the worst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What a set-up is to be.

    Attributes:
        accuracy: Largest absolute difference of an output's element.
        shapes: Of inputs whose requests are to be of several rows of the batch.
        parameters: Of each segment; chosen where left out.
        memory_bytes: That a prover has; this machine's where left out.
        threads: That keys are made with.
        unsafe_srs: Whether structured reference strings are made here if missing.
        link: How boundaries between segments are stated; see ``links``.
    """

    accuracy: float = DEFAULT_ACCURACY
    shapes: Mapping[str, tuple[int, ...]] | None = None
    parameters: Sequence[Parameters] | None = None
    memory_bytes: int | None = None
    threads: int = 2
    unsafe_srs: bool = False
    link: Link = Link.HASHED


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """A finished set-up.

    Attributes:
        manifest: Signed, and written.
        measured: How far its answers are from the model's, on the samples.
        tested: On the test set, if one was given.
    """

    manifest: Manifest
    measured: Measured
    tested: Measured | None = None


def set_up(
    plan_folder: Path,
    out: Path,
    samples: Path | Tensors,
    key: SigningKey,
    srs_folder: Path,
    *,
    tests: Path | Tensors | None = None,
    demands: Demands | None = None,
    backend: ProofBackend | None = None,
    progress: Progress = lambda doing: None,
) -> SetUp:
    """Set proofs of a plan up; see the module.

    Args:
        plan_folder: Of the plan, in plain.
        out: New folder of the set-up.
        samples: The model's inputs by name, stacked; or the .npz file of them.
        key: The owner's, which signs the manifest.
        srs_folder: Structured reference strings, as ``prove srs`` keeps them.
        tests: Inputs that nothing is chosen on, as ``samples``: answers must be as
            accurate on them.
        demands: What it is to be; as by default where left out.
        backend: Which proves; ezkl where left out.
        progress: Told what is done now.

    Raises:
        ConfigurationError: Not a chain of float tensors, an operator that cannot be
            proven, answers that are not accurate enough, no file of so many rows, or
            less memory than a proof takes.
        MalformedInputError: A file, or a sample, is not of its form.
        VerificationError: A file of the plan is not the plan's.
        UnavailableError: A process was killed, by its limits or otherwise.
    """
    if out.exists():
        raise ConfigurationError(
            f"{out}: exists.", remedy="Name a new folder, or remove this one."
        )
    plan = load_plan(plan_folder)
    digest = None
    if isinstance(samples, Path):
        digest, samples = digest_large_file(samples), read_samples(samples)
    work = _Work(
        plan_folder,
        plan,
        demands or Demands(),
        backend or open_backend("ezkl"),
        progress,
    )
    progress("running the model")
    reference = run_model(plan_folder, plan, samples, work.demands.shapes or {})
    circuits, measured = work.settle(reference)
    tested = None
    if tests is not None:
        rows = read_samples(tests) if isinstance(tests, Path) else tests
        tested = work.test(rows, circuits)
    strings = SrsFolder(srs_folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".prove-setup-") as folder:
        made = Path(folder) / "made"
        made.mkdir(mode=0o700)
        manifest = work.write(made, circuits, measured, digest, key, strings)
        made.rename(out)
    return SetUp(manifest=manifest, measured=measured, tested=tested)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Circuit:
    """One segment, compiled."""

    model: bytes
    parameters: Parameters
    settings: bytes
    rows: Rows
    compiled: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Circuits:
    """All segments, compiled, and what goes between them."""

    forms: Sequence[Form]
    scale: int
    salt: SaltForm
    segments: Sequence[_Circuit]


class _Work:
    """What every step of one set-up needs."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        demands: Demands,
        backend: ProofBackend,
        progress: Progress,
    ) -> None:
        self._folder, self._plan = folder, plan
        self.demands = demands
        self._backend = backend
        self._progress = progress
        self._memory = demands.memory_bytes or available_memory()
        self._limits = Limits(
            memory_bytes=available_memory(), seconds=SECONDS, threads=demands.threads
        )

    def settle(self, reference: Reference) -> tuple[_Circuits, Measured]:
        """Return circuits whose answers are accurate on all samples, and how far.

        Parameters are chosen on the first few; where the others show more, they are
        chosen again, for so much less.
        """
        aim = self.demands.accuracy
        for attempt in range(_ATTEMPTS):
            circuits = self.choose(reference, aim)
            measured = self.judge(reference, circuits)
            largest = max(measured.largest.values())
            last = attempt == _ATTEMPTS - 1 or self.demands.parameters is not None
            if largest <= self.demands.accuracy or last or not math.isfinite(largest):
                break
            aim *= self.demands.accuracy / largest / _STRICTER
            self._progress(f"up to {largest:.2g} from the model's: choosing again")
        measured.require_within(self.demands.accuracy)
        return circuits, measured

    def test(self, rows: Tensors, circuits: _Circuits) -> Measured:
        """Return how accurate answers are on inputs that nothing was chosen on."""
        shapes = self.demands.shapes or {}
        measured = self.judge(
            run_model(self._folder, self._plan, rows, shapes), circuits
        )
        measured.require_within(self.demands.accuracy, of="test set")
        return measured

    def choose(self, reference: Reference, accuracy: float) -> _Circuits:
        """Return the circuits of all segments, under given or chosen parameters."""
        forms = boundaries_of(self._plan, reference.shapes)
        chosen = self._given() or choose(
            self._backend,
            lambda index, salt: self._model(forms, index, salt),
            forms,
            reference,
            accuracy=accuracy,
            limits=self._limits,
            link=self.demands.link,
            progress=self._progress,
        )
        segments = []
        for index, parameters in enumerate(chosen.parameters):
            self._progress(f"segment {index}: compiling")
            model = self._model(forms, index, chosen.salt)
            ends = Ends.of(self.demands.link, index, len(chosen.parameters))
            settings, rows = self._backend.measure(
                model, parameters, self._limits, ends
            )
            self._require(index, parameters, rows)
            compiled = self._backend.compile(model, settings, self._limits)
            segments.append(
                _Circuit(
                    model=model,
                    parameters=parameters,
                    settings=settings,
                    rows=rows,
                    compiled=compiled,
                )
            )
        return _Circuits(
            forms=forms, scale=chosen.scale, salt=chosen.salt, segments=segments
        )

    def _given(self) -> Chosen | None:
        given = self.demands.parameters
        if given is None:
            return None
        scales = {parameters.scale for parameters in given}
        if len(given) != len(self._plan.segments) or len(scales) != 1:
            raise ConfigurationError(
                f"parameters: got {len(given)} at scales {sorted(scales)}, want "
                f"{len(self._plan.segments)} at one scale"
            )
        logrows = {parameters.logrows for parameters in given}
        if self.demands.link is Link.POLYCOMMIT and len(logrows) != 1:
            raise ConfigurationError(
                f"parameters: got logrows {sorted(logrows)}, want the same of all "
                f"segments for {self.demands.link} links"
            )
        return Chosen.of(given, self.demands.link)

    def _model(self, forms: Sequence[Form], index: int, salt: SaltForm) -> bytes:
        segment = self._plan.segments[index]
        contents = {
            file.path: read_file(
                self._folder, file.path, file.digest, max_bytes=_MAX_SEGMENT_BYTES
            )
            for file in segment.files
        }
        return circuit_model(segment, contents, forms[index], forms[index + 1], salt)

    def _require(self, index: int, parameters: Parameters, rows: Rows) -> None:
        """Refuse a circuit that does not fit its neighbours, its rows or the memory."""
        scale = parameters.scale
        if (rows.input_scale, rows.output_scale) != (scale, scale):
            raise ConfigurationError(
                f"segment {index}: takes scale {rows.input_scale} and gives "
                f"{rows.output_scale}, want {scale} at both ends."
            )
        if rows.least_logrows > parameters.logrows:
            raise ConfigurationError(
                f"segment {index} logrows: got {parameters.logrows}, want at least "
                f"{rows.least_logrows}"
            )
        require_fits(
            rows.proving_key_bytes,
            what=f"segment {index}",
            available_bytes=self._memory,
        )

    def judge(self, reference: Reference, circuits: _Circuits) -> Measured:
        """Run all samples through the circuits."""
        self._progress(f"running {len(reference.requests)} requests as circuits")
        forms = circuits.forms
        passed = execute_chain(
            self._backend,
            [(segment.compiled, segment.settings) for segment in circuits.segments],
            [
                activations_of(request, forms[0], circuits.scale)
                for request in reference.requests
            ],
            circuits.salt,
            self._limits,
        )
        return measure(reference.answers, passed[-1], forms[-1], circuits.scale)

    def write(
        self,
        made: Path,
        circuits: _Circuits,
        measured: Measured,
        samples: Digest | None,
        key: SigningKey,
        strings: SrsFolder,
    ) -> Manifest:
        """Make the keys and write all files."""
        used = sorted({each.parameters.logrows for each in circuits.segments})
        self._take_strings(used, strings, made / SRS_FOLDER)
        segments = tuple(
            self._write_segment(made, circuits, index)
            for index in range(len(circuits.segments))
        )
        manifest = Manifest(
            backend=self._backend.name,
            backend_version=self._backend.version,
            plan=self._plan.digest,
            link=self.demands.link,
            scale=circuits.scale,
            salt=circuits.salt,
            srs=strings.record(used),
            accuracy=measured.record(self.demands.accuracy, samples),
            segments=segments,
            signer=key.public.raw.hex(),
        )
        envelope = sign_manifest(manifest, key)
        (made / MANIFEST_FILE).write_text(json.dumps(envelope.to_json()))
        return manifest

    def _take_strings(
        self, used: Sequence[int], strings: SrsFolder, folder: Path
    ) -> None:
        folder.mkdir()
        for logrows in used:
            name = file_name(logrows)
            if self.demands.unsafe_srs and not (strings.path / name).exists():
                self._progress(f"making an unsafe string of 2**{logrows} rows")
                strings.generate(logrows)
            shutil.copyfile(strings.require(logrows).path, folder / name)

    def _write_segment(
        self, made: Path, circuits: _Circuits, index: int
    ) -> SegmentSetup:
        self._progress(f"segment {index}: making keys")
        circuit = circuits.segments[index]
        folder = made / str(index)
        folder.mkdir()
        proving_key = folder / PROVING_KEY
        proving_key.touch()
        srs = made / SRS_FOLDER / file_name(circuit.parameters.logrows)
        key = self._backend.set_up(circuit.compiled, srs, proving_key, self._limits)
        (folder / SETTINGS).write_bytes(circuit.settings)
        (folder / KEY).write_bytes(key)
        (folder / CIRCUIT).write_bytes(circuit.compiled)
        size = proving_key.stat().st_size
        needed = require_fits(
            size, what=f"segment {index}", available_bytes=self._memory
        )
        return SegmentSetup(
            segment=self._plan.segments[index].identity,
            parameters=circuit.parameters,
            inputs=circuits.forms[index],
            outputs=circuits.forms[index + 1],
            model=digest_file_bytes(circuit.model),
            settings=digest_file_bytes(circuit.settings),
            key=digest_file_bytes(key),
            circuit=digest_file_bytes(circuit.compiled),
            proving_key=digest_large_file(proving_key),
            proving_key_bytes=size,
            rows=circuit.rows.rows,
            memory_bytes=needed.memory_bytes,
        )
