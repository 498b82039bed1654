"""The manifest of a proof set-up: what the model's owner signs that proofs are of.

    1. one segment of the plan each, in order; what one puts out the next takes in
    2. one scale and one form of salt for all: what leaves one circuit enters the next
    3. every file of the set-up by its digest
    4. how far the circuits' answers are from the model's, on how many samples
    5. the structured reference string; one whose secret was known says that it is
    6. how proofs are linked; if by commitments, in circuits of as many rows each, each
       boundary in one column of them, with the longer salt

A verifier takes nothing from elsewhere: verification keys, settings and the verifier's
part of the string are those that this pins. The signer's key stands inside; whether it
is anyone's whose word counts, the verifier's trust file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bentoml_secure.digest import (
    JSON,
    Digest,
    digest_json,
    parse_choice,
    parse_digest,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.proofs.boundary import FixedTensor, SaltForm
from bentoml_secure.proofs.links import SPARE_ROWS, Ends, Link
from bentoml_secure.proofs.manifest_fields import (
    MAX_WHOLE,
    file_digest,
    name,
    parse_parameters,
    parse_tensors,
    whole,
)
from bentoml_secure.proofs.proof import Parameters
from bentoml_secure.proofs.srs import SrsRecord
from bentoml_secure.signing import (
    Envelope,
    SigningKey,
    VerificationKey,
    sign,
    verify,
)
from bentoml_secure.split.plan import MAX_SEGMENTS
from bentoml_secure.split.plan_fields import amount, items
from bentoml_secure.tensors import MAX_TENSORS

__all__ = [
    "Accuracy",
    "MANIFEST_TYPE",
    "MAX_MANIFEST_BYTES",
    "Manifest",
    "SegmentSetup",
    "SrsRecord",
    "sign_manifest",
    "verify_manifest",
]

MANIFEST_TYPE = "application/vnd.bentoml-secure.proof-manifest+json"
MAX_MANIFEST_BYTES = 2 << 20
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSetup:
    """How one segment of the plan is proven.

    Attributes:
        segment: Identity in the plan.
        parameters: Of the circuit.
        inputs: The tensors of the boundary that goes in, in its order.
        outputs: Of the one that comes out.
        model: Digest of the ONNX file that the circuit is compiled from.
        settings: Digest of the circuit's settings.
        key: Digest of the verification key.
        circuit: Digest of the compiled circuit.
        proving_key: Digest of the proving key.
        proving_key_bytes: How large it is.
        rows: Used by the circuit.
        memory_bytes: That a prover should have.
    """

    segment: Digest
    parameters: Parameters
    inputs: tuple[FixedTensor, ...]
    outputs: tuple[FixedTensor, ...]
    model: Digest
    settings: Digest
    key: Digest
    circuit: Digest
    proving_key: Digest
    proving_key_bytes: int
    rows: int
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a manifest."""
        return {
            "segment": self.segment,
            "parameters": self.parameters.to_json(),
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            **{file: getattr(self, file) for file in _FILES},
            **{number: getattr(self, number) for number in _NUMBERS},
        }

    @classmethod
    def from_json(cls, document: object, *, what: str) -> SegmentSetup:
        """Parse an entry of a manifest.

        Raises:
            MalformedInputError: A field missing, unknown or of another form.
        """
        names = ("segment", "parameters", "inputs", "outputs", *_FILES, *_NUMBERS)
        got = require_fields(document, names, what=what)
        read: dict[str, Any] = {
            file: file_digest(got[file], f"{what} {file}") for file in _FILES
        }
        for number in _NUMBERS:
            read[number] = whole(got[number], f"{what} {number}", 1, MAX_WHOLE)
        return cls(
            segment=parse_digest(got["segment"], what=what, algorithm=JSON),
            parameters=parse_parameters(got["parameters"], what=f"{what} parameters"),
            inputs=parse_tensors(got["inputs"], what=f"{what} inputs"),
            outputs=parse_tensors(got["outputs"], what=f"{what} outputs"),
            **read,
        )


_FILES = ("model", "settings", "key", "circuit", "proving_key")
_NUMBERS = ("proving_key_bytes", "rows", "memory_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How far the circuits' answers are from the model's.

    Attributes:
        bound: Largest absolute difference of an output's element that is accepted,
            at set-up and of every answer.
        largest: That the samples showed.
        samples: How many.
        samples_digest: Of the file they came from; None if they came from no file.
        by_output: The largest of each output.
    """

    bound: float
    largest: float
    samples: int
    samples_digest: Digest | None
    by_output: Mapping[str, float]

    def __post_init__(self) -> None:
        amounts = {"bound": self.bound, "largest": self.largest, **self.by_output}
        for what, value in amounts.items():
            amount(value, f"accuracy {what:.60}")
        if self.bound <= 0:
            raise MalformedInputError("accuracy bound: want a number above 0")
        if self.largest > self.bound:
            raise MalformedInputError(
                f"accuracy: samples showed {self.largest:g}, over the bound of "
                f"{self.bound:g}"
            )
        if not self.by_output or max(self.by_output.values()) != self.largest:
            raise MalformedInputError(
                "accuracy by_output: the largest of them is not the largest"
            )
        whole(self.samples, "accuracy samples", 1, MAX_WHOLE)

    def to_json(self) -> dict[str, Any]:
        """Return the document of a manifest."""
        return {
            "bound": self.bound,
            "largest": self.largest,
            "samples": self.samples,
            "samples_digest": self.samples_digest,
            "by_output": dict(self.by_output),
        }

    @classmethod
    def from_json(cls, document: object, *, what: str = "accuracy") -> Accuracy:
        """Parse a manifest's.

        Raises:
            MalformedInputError: A field missing, unknown or of another form; more than
                the bound; no bound.
        """
        names = ("bound", "largest", "samples", "samples_digest", "by_output")
        got = require_fields(document, names, what=what)
        outputs, digest = got["by_output"], got["samples_digest"]
        if not isinstance(outputs, dict) or len(outputs) > MAX_TENSORS:
            raise MalformedInputError(f"{what} by_output: want one number an output")
        return cls(
            # Canonical JSON writes 1.0 as 1.
            bound=float(amount(got["bound"], f"{what} bound")),
            largest=float(amount(got["largest"], f"{what} largest")),
            samples=whole(got["samples"], f"{what} samples", 1, MAX_WHOLE),
            samples_digest=None
            if digest is None
            else file_digest(digest, f"{what} samples_digest"),
            by_output={
                name(output, f"{what} output"): float(amount(value, f"{what} output"))
                for output, value in outputs.items()
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a proof set-up is; see the module's rules.

    Attributes:
        backend: Name of the proof system.
        backend_version: Of its package.
        plan: Digest of the plan whose segments are proven.
        link: How two segments' proofs state the boundary between them.
        scale: Of all boundaries.
        salt: Its form, in every boundary.
        srs: Of all segments.
        accuracy: Of the whole chain.
        segments: In the plan's order.
        signer: Ed25519 public key of the owner, hex.
        digest: Of the document: what proofs name.
    """

    backend: str
    backend_version: str
    plan: Digest
    link: Link = Link.HASHED
    scale: int
    salt: SaltForm
    srs: SrsRecord
    accuracy: Accuracy
    segments: tuple[SegmentSetup, ...]
    signer: str
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.segments) <= MAX_SEGMENTS:
            raise MalformedInputError(
                f"manifest segments: got {len(self.segments)}, want 1 to {MAX_SEGMENTS}"
            )
        _require_chain(self)
        _require_circuits(self)
        _require_linked(self)
        VerificationKey.from_hex(self.signer)
        object.__setattr__(self, "digest", digest_json(self.to_json()))

    @property
    def signer_id(self) -> Digest:
        """Key id by which trust files name the signer."""
        return VerificationKey.from_hex(self.signer).key_id

    def ends(self, segment: int) -> Ends:
        """Return how a segment's two boundaries are stated."""
        return Ends.of(self.link, segment, len(self.segments))

    def to_json(self) -> dict[str, Any]:
        """Return the document that is signed."""
        return {
            "version": VERSION,
            "backend": self.backend,
            "backend_version": self.backend_version,
            "plan": self.plan,
            "link": self.link,
            "scale": self.scale,
            "salt": self.salt.to_json(),
            "srs": self.srs.to_json(),
            "accuracy": self.accuracy.to_json(),
            "segments": [segment.to_json() for segment in self.segments],
            "signer": self.signer,
        }

    @classmethod
    def from_json(cls, document: object) -> Manifest:
        """Parse a manifest; who signed it is not looked at.

        Raises:
            MalformedInputError: A field missing, unknown or of another form; one of
                the module's rules broken.
        """
        got = require_fields(document, _FIELDS, what="manifest")
        whole(got["version"], "manifest version", VERSION, VERSION)
        segments = items(got["segments"], "manifest segments", MAX_SEGMENTS)
        return cls(
            backend=name(got["backend"], "manifest backend"),
            backend_version=name(got["backend_version"], "manifest backend_version"),
            plan=parse_digest(got["plan"], what="manifest plan", algorithm=JSON),
            link=parse_choice(got["link"], Link, what="manifest link"),
            scale=whole(got["scale"], "manifest scale", 1, MAX_WHOLE),
            salt=SaltForm.from_json(got["salt"], what="manifest salt"),
            srs=SrsRecord.from_json(got["srs"], what="manifest srs"),
            accuracy=Accuracy.from_json(got["accuracy"], what="manifest accuracy"),
            segments=tuple(
                SegmentSetup.from_json(entry, what=f"manifest segment {index}")
                for index, entry in enumerate(segments)
            ),
            signer=name(got["signer"], "manifest signer"),
        )


_FIELDS = (
    "version",
    "backend",
    "backend_version",
    "plan",
    "link",
    "scale",
    "salt",
    "srs",
    "accuracy",
    "segments",
    "signer",
)


def _require_chain(manifest: Manifest) -> None:
    """Refuse segments that do not follow one upon the other."""
    before: SegmentSetup | None = None
    for index, segment in enumerate(manifest.segments):
        if before is not None and segment.inputs != before.outputs:
            raise MalformedInputError(
                f"manifest segment {index} inputs: are not the outputs of the one "
                "before"
            )
        before = segment
    identities = {segment.segment for segment in manifest.segments}
    if len(identities) != len(manifest.segments):
        raise MalformedInputError("manifest segments: one stands there twice")
    made = {tensor.name for tensor in manifest.segments[-1].outputs}
    if manifest.accuracy.by_output.keys() != made:
        raise MalformedInputError(
            "manifest accuracy by_output: are not the outputs of the last segment"
        )


def _require_circuits(manifest: Manifest) -> None:
    """Refuse circuits that do not fit one another, their string, or their salt."""
    for index, segment in enumerate(manifest.segments):
        parameters = segment.parameters
        if parameters.scale != manifest.scale:
            raise MalformedInputError(
                f"manifest segment {index} scale: got {parameters.scale}, want "
                f"{manifest.scale} as all"
            )
        magnitude = parameters.decomposition_base**parameters.decomposition_legs
        if 1 << manifest.salt.bits >= magnitude:
            raise MalformedInputError(
                f"manifest segment {index}: salt of {manifest.salt.bits} bits is out "
                "of the circuit's range"
            )
    used = {segment.parameters.logrows for segment in manifest.segments}
    if manifest.srs.files.keys() != used:
        raise MalformedInputError(
            f"manifest srs files: got {sorted(manifest.srs.files)}, want those of the "
            f"segments, {sorted(used)}"
        )


def _require_linked(manifest: Manifest) -> None:
    """Refuse commitments that could not be compared, or that are salted too little."""
    salt, want = manifest.salt, manifest.link.salt_bits
    if salt.elements * salt.bits < want:
        raise MalformedInputError(
            f"manifest salt: got {salt.elements} elements of {salt.bits} bits, want at "
            f"least {want} bits for {manifest.link} links"
        )
    if manifest.link is Link.HASHED:
        return
    used = {segment.parameters.logrows for segment in manifest.segments}
    if len(used) != 1:
        raise MalformedInputError(
            f"manifest logrows: got {sorted(used)}, want the same of all segments for "
            f"{manifest.link} links"
        )
    column = (1 << used.pop()) - SPARE_ROWS
    for index, segment in enumerate(manifest.segments):
        cells = sum(tensor.size for tensor in segment.inputs) + salt.elements
        if index and cells > column:
            raise MalformedInputError(
                f"manifest segment {index} inputs: are {cells} numbers, want at most "
                f"{column} for {manifest.link} links"
            )


def sign_manifest(manifest: Manifest, key: SigningKey) -> Envelope:
    """Sign a manifest.

    Args:
        manifest: It names ``key`` as its signer.
        key: The owner's.

    Raises:
        MalformedInputError: It names another.
    """
    if manifest.signer != key.public.raw.hex():
        raise MalformedInputError(
            f"manifest signer: got {manifest.signer:.80}, want the key that signs"
        )
    return sign(key, MANIFEST_TYPE, manifest.to_json())


def verify_manifest(envelope: Envelope) -> Manifest:
    """Verify that a manifest is signed by the key that it names, and parse it.

    Whether that key is trusted is the caller's question: ``Manifest.signer_id``.

    Raises:
        MalformedInputError: The payload is not the canonical JSON of a manifest.
        VerificationError: Another type, another key, a signature that does not fit.
    """
    manifest = _unverified(envelope)
    signer = VerificationKey.from_hex(manifest.signer)
    document = verify(envelope, signer, payload_type=MANIFEST_TYPE)
    if document != manifest.to_json():
        raise VerificationError("manifest: what is signed is not what was read")
    return manifest


def _unverified(envelope: Envelope) -> Manifest:
    document = parse_json(
        envelope.payload, what="manifest", max_bytes=MAX_MANIFEST_BYTES
    )
    return Manifest.from_json(document)
