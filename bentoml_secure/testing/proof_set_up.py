"""A proof set-up in memory: its manifest, signed, and keys that are real.

Its circuits are the caller's: they take a boundary and the next salt, and put out the
next boundary, as ``proofs.boundary`` has it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bentoml_secure.digest import Digest, digest_file_bytes
from bentoml_secure.proofs.boundary import FixedTensor, SaltForm
from bentoml_secure.proofs.links import Ends, Link
from bentoml_secure.proofs.manifest import (
    Accuracy,
    Manifest,
    SegmentSetup,
    sign_manifest,
)
from bentoml_secure.proofs.proof import (
    Limits,
    Parameters,
    ProofBackend,
    ProvingKey,
    VerificationKey,
)
from bentoml_secure.proofs.srs import SrsRecord
from bentoml_secure.signing import Envelope, SigningKey
from bentoml_secure.split.plan import Plan
from bentoml_secure.tensors import TensorSpec
from bentoml_secure.testing.deployment import key_of

OWNER = "owner"
BOUND = 0.01
LIMITS = Limits(memory_bytes=4 << 30, seconds=300, threads=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofSetUp:
    """What proves the segments of a plan, and what verifies that.

    Attributes:
        manifest: What the owner signs.
        owner: Whose key that is.
        keys: By segment.
        backend: That made them.
    """

    manifest: Manifest
    owner: SigningKey
    keys: tuple[ProvingKey, ...]
    backend: ProofBackend

    @property
    def envelope(self) -> Envelope:
        """The manifest, signed."""
        return sign_manifest(self.manifest, self.owner)

    @property
    def document(self) -> dict[str, Any]:
        """The ``verification_keys`` of a bundle."""
        return {
            "manifest": self.envelope.to_json(),
            "segments": [
                {
                    "settings": base64.b64encode(key.verification.settings).decode(),
                    "key": base64.b64encode(key.verification.key).decode(),
                }
                for key in self.keys
            ],
        }

    def trusted(self) -> dict[str, Any]:
        """What a caller's trust file says who accepts this set-up."""
        return {
            "manifest_signers": [self.manifest.signer_id],
            "srs": [self.manifest.srs.digest],
            "unsafe_srs": self.manifest.srs.unsafe,
            "polycommit_links": self.manifest.link is Link.POLYCOMMIT,
        }

    def altered(self, **changes: Any) -> ProofSetUp:
        """Return it with another manifest, which the owner signs all the same."""
        return replace(self, manifest=replace(self.manifest, **changes))

    def signed_by(self, name: str) -> ProofSetUp:
        """Return it as the set-up of whoever has the testing key of that name."""
        owner = SigningKey(key_of(name))
        manifest = replace(self.manifest, signer=owner.public.raw.hex())
        return replace(self, owner=owner, manifest=manifest)


def make_set_up(
    plan: Plan,
    circuits: Sequence[bytes],
    parameters: Parameters,
    *,
    salt: SaltForm,
    srs: SrsRecord,
    srs_file: Path,
    folder: Path,
    backend: ProofBackend,
    settings: Sequence[bytes] | None = None,
    link: Link = Link.HASHED,
) -> ProofSetUp:
    """Set up the circuits of a plan and sign what came of it.

    Args:
        plan: Each segment takes what the one before it put out, batches of one.
        circuits: ONNX graphs, by segment.
        parameters: Of all circuits.
        salt: Of all boundaries.
        srs: Of the structured reference string.
        srs_file: Its file of the circuits' size.
        folder: Where proving keys go.
        backend: Makes the keys.
        settings: In place of those that the backend measures.
        link: How boundaries between segments are stated.
    """
    keys, setups = [], []
    for index, (segment, model) in enumerate(zip(plan.segments, circuits, strict=True)):
        ends = Ends.of(link, index, len(circuits))
        measured, rows = backend.measure(model, parameters, LIMITS, ends)
        own = measured if settings is None else settings[index]
        circuit = backend.compile(model, own, LIMITS)
        proving = folder / f"{index}-{digest_file_bytes(model)[-8:]}.pk"
        proving.touch()
        verifying = backend.set_up(circuit, srs_file, proving, LIMITS)
        key = VerificationKey(settings=own, key=verifying)
        keys.append(
            ProvingKey(circuit=circuit, key=proving, verification=key, srs=srs_file)
        )
        setups.append(
            SegmentSetup(
                segment=segment.identity,
                parameters=parameters,
                inputs=_form(segment.inputs),
                outputs=_form(segment.outputs),
                model=digest_file_bytes(model),
                settings=digest_file_bytes(own),
                key=digest_file_bytes(verifying),
                circuit=digest_file_bytes(circuit),
                proving_key=_digest_of(proving),
                proving_key_bytes=proving.stat().st_size,
                rows=rows.rows,
                memory_bytes=LIMITS.memory_bytes,
            )
        )
    owner = SigningKey(key_of(OWNER))
    by_output = {spec.name: 0.0 for spec in plan.segments[-1].outputs}
    manifest = Manifest(
        backend=backend.name,
        backend_version=backend.version,
        plan=plan.digest,
        link=link,
        scale=parameters.scale,
        salt=salt,
        srs=srs,
        accuracy=Accuracy(
            bound=BOUND,
            largest=0.0,
            samples=1,
            samples_digest=None,
            by_output=by_output,
        ),
        segments=tuple(setups),
        signer=owner.public.raw.hex(),
    )
    return ProofSetUp(manifest=manifest, owner=owner, keys=tuple(keys), backend=backend)


def _form(specs: Sequence[TensorSpec]) -> tuple[FixedTensor, ...]:
    return tuple(
        FixedTensor(
            name=spec.name,
            shape=tuple(size if isinstance(size, int) else 1 for size in spec.shape),
        )
        for spec in specs
    )


def _digest_of(path: Path) -> Digest:
    return digest_file_bytes(path.read_bytes())
