"""A proof set-up's folder that is signed and whole, with bytes instead of circuits."""

from __future__ import annotations

from pathlib import Path

from bentoml_secure.digest import Digest, canonical_json, digest_file_bytes
from bentoml_secure.proofs.boundary import FixedTensor, SaltForm
from bentoml_secure.proofs.manifest import (
    Accuracy,
    Manifest,
    SegmentSetup,
    sign_manifest,
)
from bentoml_secure.proofs.proof import Parameters
from bentoml_secure.proofs.srs import LOCAL, VERIFIER_BYTES, SrsRecord
from bentoml_secure.signing import SigningKey
from bentoml_secure.split.plan import Plan

LOGROWS = 11
PARAMETERS = Parameters(
    scale=7,
    decomposition_base=256,
    decomposition_legs=3,
    inner_columns=2,
    logrows=LOGROWS,
    lookup_bound=0,
)


def contents(index: int, name: str) -> bytes:
    """Return what a file of the folder holds: more than two chunks of 4096 bytes."""
    return f"{index}/{name} ".encode() * 1000


def write_setup(folder: Path, plan: Plan) -> Manifest:
    """Write a set-up of a plan and return its manifest."""
    owner, srs = SigningKey.generate(), b"srs" * 100
    (folder / "srs").mkdir(parents=True)
    (folder / "srs" / f"kzg{LOGROWS}.srs").write_bytes(srs)
    manifest = Manifest(
        backend="ezkl",
        backend_version="23.0.5",
        plan=plan.digest,
        scale=PARAMETERS.scale,
        salt=SaltForm(elements=8, bits=16),
        srs=SrsRecord(
            source=LOCAL,
            unsafe=True,
            verifier=bytes(VERIFIER_BYTES),
            files={LOGROWS: digest_file_bytes(srs)},
        ),
        accuracy=Accuracy(
            bound=0.1,
            largest=0.05,
            samples=10,
            samples_digest=None,
            by_output={"a": 0.05},
        ),
        segments=tuple(
            _write_segment(folder, index, segment.identity)
            for index, segment in enumerate(plan.segments)
        ),
        signer=owner.public.raw.hex(),
    )
    envelope = sign_manifest(manifest, owner)
    (folder / "manifest.json").write_bytes(canonical_json(envelope.to_json()))
    return manifest


def _write_segment(folder: Path, index: int, segment: Digest) -> SegmentSetup:
    (folder / str(index)).mkdir()
    digests = {}
    for name in ("settings.json", "vk", "circuit", "pk"):
        data = contents(index, name)
        (folder / str(index) / name).write_bytes(data)
        digests[name] = digest_file_bytes(data)
    tensor = (FixedTensor(name="a", shape=(1, 4)),)
    return SegmentSetup(
        segment=segment,
        parameters=PARAMETERS,
        inputs=tensor,
        outputs=tensor,
        model=digest_file_bytes(b"model"),
        settings=digests["settings.json"],
        key=digests["vk"],
        circuit=digests["circuit"],
        proving_key=digests["pk"],
        proving_key_bytes=len(contents(index, "pk")),
        rows=100,
        memory_bytes=1 << 30,
    )
