"""A manifest of two segments, valid in every rule, to break one rule at a time."""

from __future__ import annotations

from typing import Any

from bentoml_secure.digest import digest_file_bytes, digest_json
from bentoml_secure.proofs.boundary import FixedTensor, SaltForm
from bentoml_secure.proofs.manifest import Accuracy, Manifest, SegmentSetup
from bentoml_secure.proofs.proof import Parameters
from bentoml_secure.proofs.srs import LOCAL, VERIFIER_BYTES, SrsRecord
from bentoml_secure.signing import SigningKey

OWNER = SigningKey.generate()
PARAMETERS = Parameters(
    scale=7,
    decomposition_base=256,
    decomposition_legs=3,
    inner_columns=2,
    logrows=11,
    lookup_bound=0,
)
SRS = SrsRecord(
    source=LOCAL,
    unsafe=True,
    verifier=bytes(VERIFIER_BYTES),
    files={11: digest_file_bytes(b"srs")},
)
ACCURACY = Accuracy(
    bound=0.5,
    largest=0.25,
    samples=10,
    samples_digest=digest_file_bytes(b"samples"),
    by_output={"t2": 0.25},
)


def setup(index: int, **changes: Any) -> SegmentSetup:
    """Return the entry of a segment that maps tensor t<index> to t<index + 1>."""
    entry: dict[str, Any] = {
        "segment": digest_json({"segment": index}),
        "parameters": PARAMETERS,
        "inputs": (FixedTensor(name=f"t{index}", shape=(1, 4)),),
        "outputs": (FixedTensor(name=f"t{index + 1}", shape=(1, 4)),),
        "model": digest_file_bytes(b"model"),
        "settings": digest_file_bytes(b"settings"),
        "key": digest_file_bytes(b"vk"),
        "circuit": digest_file_bytes(b"circuit"),
        "proving_key": digest_file_bytes(b"pk"),
        "proving_key_bytes": 2,
        "rows": 1000,
        "memory_bytes": 1 << 28,
    }
    return SegmentSetup(**entry | changes)


def manifest(**changes: Any) -> Manifest:
    """Return the manifest, with changes."""
    entry: dict[str, Any] = {
        "backend": "ezkl",
        "backend_version": "23.0.5",
        "plan": digest_json("plan"),
        "scale": 7,
        "salt": SaltForm(elements=10, bits=13),
        "srs": SRS,
        "accuracy": ACCURACY,
        "segments": (setup(0), setup(1)),
        "signer": OWNER.public.raw.hex(),
    }
    return Manifest(**entry | changes)
