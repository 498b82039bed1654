"""Making a set-up's verification keys anew: trust in the model, not in who set it up.

A verification key says nothing by itself; a proof under one that was made for another
model verifies as well. Keys follow from the graph, the settings and the string, so
whoever has the plan makes them again and compares, for each segment:

1. the graph that the circuit is compiled from
2. the circuit's settings, up to the order of what is unordered, and that they bind
   weights, input and output
3. the verification key and the proving key, under the settings as published

The compiled circuit is made as well, but not compared: ezkl 23.0.5 writes its tables
in another order at every run. Only provers use it, and with a circuit of something
else they make no proof that verifies.

With that, the manifest's signer is trusted for the accuracy that it states, and for
nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bentoml_secure.digest import Digest, digest_file_bytes, equal, parse_json
from bentoml_secure.errors import (
    Finding,
    MalformedInputError,
    MissingDependencyError,
    ProofError,
    VerificationError,
)
from bentoml_secure.proofs.circuit import circuit_model
from bentoml_secure.proofs.folder import MAX_SETTINGS_BYTES, ProofFolder
from bentoml_secure.proofs.links import Ends
from bentoml_secure.proofs.manifest import Manifest, SegmentSetup
from bentoml_secure.proofs.proof import (
    Limits,
    ProofBackend,
    VerificationKey,
    settings_facts,
)
from bentoml_secure.proofs.srs import digest_large_file
from bentoml_secure.proofs.srs_folder import SrsFolder
from bentoml_secure.split import Plan, read_file

_MAX_SEGMENT_BYTES = 2 << 30
"""What one ONNX message holds."""

Progress = Callable[[str], None]


def rebuild(
    folder: ProofFolder,
    plan: Plan,
    plan_folder: Path,
    *,
    backend: ProofBackend,
    limits: Limits,
    srs_folder: SrsFolder | None = None,
    progress: Progress = lambda doing: None,
) -> list[Finding]:
    """Return what differs from keys that are made anew; nothing if all is the same.

    Args:
        folder: Of the set-up, in plain or sealed; its manifest is of ``plan``.
        plan: What is proven.
        plan_folder: Of the plan, in plain.
        backend: The manifest's.
        limits: Of each process.
        srs_folder: The caller's own strings; those in the set-up's folder, which the
            manifest names, where left out.
        progress: Told what is made now.

    Raises:
        ConfigurationError: A file is missing; a circuit cannot be made.
        MissingDependencyError: Another version of the backend is installed.
        MalformedInputError: A file is not of its form.
        UnavailableError: A process was killed, by its limits or otherwise.
        VerificationError: A file of the plan is not the plan's.
    """
    _require_backend(folder.manifest, backend)
    findings = []
    for index, setup in enumerate(folder.manifest.segments):
        where = f"segment {index}"
        try:
            published = folder.verification_key(index)
            srs = _srs(folder, index, setup, srs_folder)
        except VerificationError as error:
            findings.append(Finding(where, str(error), "files of the manifest"))
            continue
        model = _model(folder.manifest, plan, plan_folder, index)
        ends = folder.manifest.ends(index)
        segment = _Segment(where, setup, ends, backend, limits, progress)
        findings += segment.findings(model, published, srs)
    return findings


def _require_backend(manifest: Manifest, backend: ProofBackend) -> None:
    want = (manifest.backend, manifest.backend_version)
    if (backend.name, backend.version) != want:
        raise MissingDependencyError(
            f"proofs: got {backend.name} {backend.version}, want "
            f"{manifest.backend} {manifest.backend_version}, which made the keys.",
            remedy=f"pip install {manifest.backend}=={manifest.backend_version}",
        )


def _srs(
    folder: ProofFolder, index: int, setup: SegmentSetup, own: SrsFolder | None
) -> Path:
    if own is None:
        return folder.srs(index)
    logrows = setup.parameters.logrows
    file, want = own.require(logrows), folder.manifest.srs.files[logrows]
    if not equal(file.digest, want):
        raise VerificationError(f"{file.path}: got {file.digest}, want {want}")
    return file.path


def _model(manifest: Manifest, plan: Plan, folder: Path, index: int) -> bytes:
    segment, setup = plan.segments[index], manifest.segments[index]
    contents = {
        file.path: read_file(
            folder, file.path, file.digest, max_bytes=_MAX_SEGMENT_BYTES
        )
        for file in segment.files
    }
    return circuit_model(segment, contents, setup.inputs, setup.outputs, manifest.salt)


class _Segment:
    """One segment made anew: what follows from what differs is not made."""

    def __init__(
        self,
        where: str,
        setup: SegmentSetup,
        ends: Ends,
        backend: ProofBackend,
        limits: Limits,
        progress: Progress,
    ) -> None:
        self._where, self._setup, self._ends = where, setup, ends
        self._backend, self._limits, self._progress = backend, limits, progress

    def findings(
        self, model: bytes, published: VerificationKey, srs: Path
    ) -> list[Finding]:
        """Return what differs of the first step that does."""
        for step in (
            self._compared("model", digest_file_bytes(model), self._setup.model),
            self._settings(model, published.settings),
            self._keys(model, published.settings, srs),
        ):
            if found := list(step):
                return found
        return []

    def _compared(self, what: str, got: Digest, want: Digest) -> Iterator[Finding]:
        # Made anew is what is wanted; the manifest is what is judged.
        if not equal(got, want):
            yield Finding(f"{self._where} {what}", got=want, want=got)

    def _settings(self, model: bytes, published: bytes) -> Iterator[Finding]:
        self._progress(f"{self._where}: settings")
        what = f"{self._where} settings"
        made, _ = self._backend.measure(
            model, self._setup.parameters, self._limits, self._ends
        )
        try:
            rows = self._backend.require_settings(published, self._ends)
            got, want = _facts(published), _facts(made)
        except (ProofError, MalformedInputError) as error:
            yield Finding(what, str(error), "settings of such a circuit")
            return
        for name in sorted(got.keys() | want.keys()):
            if got.get(name) != want.get(name):
                yield Finding(
                    f"{what} {name}",
                    f"{got.get(name)!r:.80}",
                    f"{want.get(name)!r:.80}",
                )
        if rows.rows != self._setup.rows:
            yield Finding(f"{what} rows", str(self._setup.rows), str(rows.rows))

    def _keys(self, model: bytes, settings: bytes, srs: Path) -> Iterator[Finding]:
        self._progress(f"{self._where}: keys")
        circuit = self._backend.compile(model, settings, self._limits)
        with tempfile.NamedTemporaryFile(prefix="bsec-pk-") as file:
            proving_key = Path(file.name)
            key = self._backend.set_up(circuit, srs, proving_key, self._limits)
            made = digest_large_file(proving_key)
            size = proving_key.stat().st_size
        yield from self._compared("key", digest_file_bytes(key), self._setup.key)
        yield from self._compared("proving_key", made, self._setup.proving_key)
        if size != self._setup.proving_key_bytes:
            yield Finding(
                f"{self._where} proving_key_bytes",
                str(self._setup.proving_key_bytes),
                str(size),
            )


def _facts(settings: bytes) -> dict[str, Any]:
    document = parse_json(settings, what="settings", max_bytes=MAX_SETTINGS_BYTES)
    if not isinstance(document, dict):
        raise MalformedInputError("settings: want an object")
    return dict(settings_facts(document))
