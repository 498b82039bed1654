"""The folder of a proof set-up, and what of it travels with receipts.

    manifest.json            what the owner signs, in its envelope
    srs/kzg<k>.srs           the structured reference strings used
    <index>/settings.json    of the circuit of a segment, from 0
    <index>/vk               verification key
    <index>/circuit          compiled; holds the weights
    <index>/pk               proving key; holds the weights
    sealed.json              if circuits and proving keys are sealed: <name>.sealed

Every file is compared with the manifest when it is read. A bundle carries the manifest,
settings and verification keys along, so that a proof is verified with nothing else:

    {"manifest": envelope, "segments": [{"settings": base64, "key": base64}, ...]}
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bentoml_secure.digest import (
    FILE,
    Digest,
    equal,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.proofs.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    SegmentSetup,
    verify_manifest,
)
from bentoml_secure.proofs.proof import Contents, ProvingKey, VerificationKey
from bentoml_secure.proofs.srs import verifier_part
from bentoml_secure.proofs.srs_folder import file_name
from bentoml_secure.signing import Envelope, decode_base64, parse_envelope
from bentoml_secure.split.files import open_below, read_bytes, read_file, require_digest
from bentoml_secure.split.plan import MAX_SEGMENTS, Plan
from bentoml_secure.split.plan_fields import items

MANIFEST_FILE = "manifest.json"
SEALED_FILE = "sealed.json"
SRS_FOLDER = "srs"
SETTINGS = "settings.json"
KEY = "vk"
CIRCUIT = "circuit"
PROVING_KEY = "pk"

MAX_SETTINGS_BYTES = 1 << 20
MAX_KEY_BYTES = 8 << 20
MAX_CIRCUIT_BYTES = 1 << 30
MAX_PROVING_KEY_BYTES = 64 << 30
MAX_KEYS_BYTES = 16 << 20
"""Of all settings and verification keys of one set-up; the largest measured key has
1.3 MB."""

_MAX_ENVELOPE_BYTES = 2 * MAX_MANIFEST_BYTES
_PIECE_BYTES = 1 << 20
_REMEDY = "The file is not the one that the manifest was signed for."

OpenContents = Callable[[int], tuple[Contents, Contents]]
"""Returns circuit and proving key of a segment, compared with the manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationKeys:
    """What verifies all proofs of a set-up, all of it pinned by the manifest.

    Attributes:
        manifest: Signed by the key that it names, and by whom is not judged.
        envelope: Of the manifest.
        keys: By segment.
    """

    manifest: Manifest
    envelope: Envelope
    keys: tuple[VerificationKey, ...]

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.manifest.segments):
            raise MalformedInputError(
                f"verification keys: got {len(self.keys)}, want "
                f"{len(self.manifest.segments)} as the manifest has segments"
            )
        pairs = zip(self.keys, self.manifest.segments, strict=True)
        for index, (key, setup) in enumerate(pairs):
            require_digest(f"{index}/{SETTINGS}", key.settings, setup.settings)
            require_digest(f"{index}/{KEY}", key.key, setup.key)

    def to_json(self) -> dict[str, Any]:
        """Return the document that bundles carry."""
        return {
            "manifest": self.envelope.to_json(),
            "segments": [
                {
                    "settings": base64.b64encode(key.settings).decode(),
                    "key": base64.b64encode(key.key).decode(),
                }
                for key in self.keys
            ],
        }


def parse_verification_keys(document: object) -> VerificationKeys:
    """Parse what a bundle carries; whether the signer is trusted is not judged.

    Raises:
        MalformedInputError: A field missing, unknown or of another form; over
            ``MAX_KEYS_BYTES``.
        VerificationError: The manifest is not signed by the key that it names; a key
            or settings that it does not name.
    """
    what = "verification keys"
    got = require_fields(document, ("manifest", "segments"), what=what)
    entries = items(got["segments"], f"{what} segments", MAX_SEGMENTS)
    named = [
        require_fields(entry, ("settings", "key"), what=f"{what} segment {index}")
        for index, entry in enumerate(entries)
    ]
    texts = [text for entry in named for text in entry.values()]
    total = sum(len(text) for text in texts if isinstance(text, str))
    if total > MAX_KEYS_BYTES // 3 * 4:
        raise MalformedInputError(f"{what}: over {MAX_KEYS_BYTES} bytes in all")
    envelope = parse_envelope(
        got["manifest"], what=f"{what} manifest", max_bytes=MAX_MANIFEST_BYTES
    )
    return VerificationKeys(
        manifest=verify_manifest(envelope),
        envelope=envelope,
        keys=tuple(
            VerificationKey(
                settings=decode_base64(
                    entry["settings"],
                    what=f"{what} settings {index}",
                    max_bytes=MAX_SETTINGS_BYTES,
                ),
                key=decode_base64(
                    entry["key"], what=f"{what} key {index}", max_bytes=MAX_KEY_BYTES
                ),
            )
            for index, entry in enumerate(named)
        ),
    )


class ProofFolder:
    """The files of one set-up; ``read`` makes it.

    Attributes:
        path: Where it is.
        manifest: Signed by the key that it names; whose that is, is not judged.
        envelope: Of the manifest.
    """

    def __init__(self, path: Path, envelope: Envelope) -> None:
        self.path = path
        self.envelope = envelope
        self.manifest = verify_manifest(envelope)

    @classmethod
    def read(cls, path: Path, plan: Plan) -> ProofFolder:
        """Read the manifest, and compare it with a plan.

        Args:
            path: Of the folder, in plain or sealed.
            plan: That is to be proven.

        Raises:
            ConfigurationError: The folder has no manifest.
            MalformedInputError: The manifest is not of its form.
            VerificationError: It is not signed by the key that it names, or is of
                another plan.
        """
        data = read_bytes(path, MANIFEST_FILE, max_bytes=_MAX_ENVELOPE_BYTES)
        document = parse_json(data, what=MANIFEST_FILE, max_bytes=_MAX_ENVELOPE_BYTES)
        envelope = parse_envelope(
            document, what=MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES
        )
        folder = cls(path, envelope)
        folder._require_plan(plan)
        return folder

    def _require_plan(self, plan: Plan) -> None:
        if not equal(self.manifest.plan, plan.digest):
            raise VerificationError(
                f"manifest plan: got {self.manifest.plan}, want {plan.digest}.",
                remedy="The set-up is of another plan; make one of this: "
                "bentoml-secure prove setup",
            )
        got = [setup.segment for setup in self.manifest.segments]
        want = [segment.identity for segment in plan.segments]
        if got != want:
            raise VerificationError(
                "manifest segments: are not those of the plan that it names"
            )
        pairs = zip(self.manifest.segments, plan.segments, strict=True)
        for index, (setup, segment) in enumerate(pairs):
            for side in ("inputs", "outputs"):
                proven = {tensor.name for tensor in getattr(setup, side)}
                if proven != {spec.name for spec in getattr(segment, side)}:
                    raise VerificationError(
                        f"manifest segment {index} {side}: are not those of the plan"
                    )

    @property
    def is_sealed(self) -> bool:
        """Whether circuits and proving keys open under prover keys only."""
        return (self.path / SEALED_FILE).exists()

    def verification_key(self, index: int) -> VerificationKey:
        """Return what verifies a segment's proofs.

        Raises:
            ConfigurationError: No such segment; a file is missing.
            MalformedInputError: A file is too large.
            VerificationError: A file is not the one of the manifest.
        """
        setup = self._setup(index)
        return VerificationKey(
            settings=read_file(
                self.path,
                f"{index}/{SETTINGS}",
                setup.settings,
                max_bytes=MAX_SETTINGS_BYTES,
            ),
            key=read_file(
                self.path, f"{index}/{KEY}", setup.key, max_bytes=MAX_KEY_BYTES
            ),
        )

    def verification_keys(self) -> VerificationKeys:
        """Return what verifies all proofs; raises as ``verification_key`` does."""
        keys = map(self.verification_key, range(len(self.manifest.segments)))
        return VerificationKeys(
            manifest=self.manifest, envelope=self.envelope, keys=tuple(keys)
        )

    def verification_keys_document(self) -> dict[str, Any]:
        """Return what bundles carry; it is one that ``parse_verification_keys`` takes.

        Raises:
            ConfigurationError: A file is missing.
            MalformedInputError: It would be too large for a bundle.
            VerificationError: A file is not the one of the manifest.
        """
        document = self.verification_keys().to_json()
        parse_verification_keys(document)
        return document

    def srs(self, index: int) -> Path:
        """Return the file of the structured reference string of a segment's rows.

        Raises:
            ConfigurationError: No such segment; the file is missing.
            MalformedInputError: It is no structured reference string, or cut.
            VerificationError: It is not the one of the manifest.
        """
        logrows = self._setup(index).parameters.logrows
        path = f"{SRS_FOLDER}/{file_name(logrows)}"
        want = self.manifest.srs.files[logrows]
        where = self._compared(path, want, 16 << 30)
        if verifier_part(where) != self.manifest.srs.verifier:
            raise VerificationError(
                f"{path}: its verifier's part is not the one of the manifest"
            )
        return where

    def proving_key(
        self, index: int, contents: OpenContents | None = None
    ) -> ProvingKey:
        """Return what proves a segment.

        Args:
            index: Of the segment.
            contents: Opens circuit and proving key where they are sealed; from a
                folder in plain they are read.

        Raises:
            ConfigurationError: No such segment; a file is missing, or sealed.
            MalformedInputError: A file is too large.
            VerificationError: A file is not the one of the manifest.
        """
        verification = self.verification_key(index)
        circuit, key = (contents or self._plain)(index)
        return ProvingKey(
            circuit=circuit, key=key, verification=verification, srs=self.srs(index)
        )

    def _plain(self, index: int) -> tuple[Contents, Contents]:
        if self.is_sealed:
            raise ConfigurationError(
                f"{self.path}: its circuits and proving keys are sealed.",
                remedy="Provers get their keys from a broker.",
            )
        setup = self._setup(index)
        circuit = read_file(
            self.path, f"{index}/{CIRCUIT}", setup.circuit, max_bytes=MAX_CIRCUIT_BYTES
        )
        # Not held: it is large, and every proof is verified after it is made.
        key = self._compared(
            f"{index}/{PROVING_KEY}", setup.proving_key, MAX_PROVING_KEY_BYTES
        )
        return circuit, key

    def _compared(self, path: str, want: Digest, max_bytes: int) -> Path:
        """Return where a file is, having taken the digest of it piece by piece."""
        descriptor = open_below(self.path, path)
        with os.fdopen(descriptor, "rb") as stream:
            if os.fstat(descriptor).st_size > max_bytes:
                raise MalformedInputError(f"{path}: over {max_bytes} bytes")
            hashed = hashlib.sha256()
            while piece := stream.read(_PIECE_BYTES):
                hashed.update(piece)
        got = Digest(f"{FILE}:{hashed.hexdigest()}")
        if not equal(got, want):
            raise VerificationError(f"{path}: got {got}, want {want}.", remedy=_REMEDY)
        return (self.path / path).resolve()

    def _setup(self, index: int) -> SegmentSetup:
        if not 0 <= index < len(self.manifest.segments):
            raise ConfigurationError(
                f"segment: got {index}, the set-up has 0 to "
                f"{len(self.manifest.segments) - 1}"
            )
        return self.manifest.segments[index]
