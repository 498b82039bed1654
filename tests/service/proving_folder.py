"""A folder with a tiny circuit and its keys, orders of it, and what proves it right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bentoml_secure.proofs.backends.ezkl import Ezkl
from bentoml_secure.proofs.proof import Facts, SegmentProof, VerificationKey
from tests.proven_case import FEATURES, PARAMETERS, SALT, circuit
from tests.service.farming import LIMITS


def prepared(folder: Path) -> None:
    """Set the circuit up in a folder; some seconds."""
    ezkl = Ezkl()
    model = circuit(np.eye(FEATURES, dtype=np.float32), relu=True)
    settings, _ = ezkl.measure(model, PARAMETERS, LIMITS)
    compiled = ezkl.compile(model, settings, LIMITS)
    (folder / "settings").write_bytes(settings)
    (folder / "circuit").write_bytes(compiled)
    for name in ("srs", "pk"):
        (folder / name).touch()
    ezkl.generate_srs(PARAMETERS.logrows, folder / "srs", LIMITS)
    key = ezkl.set_up(compiled, folder / "srs", folder / "pk", LIMITS)
    (folder / "vk").write_bytes(key)


def order(number: int) -> bytes:
    """Return an order that ``farming.RealWork`` reads."""
    boundary = [*range(number, number + FEATURES), *SALT.expand(bytes([number]) * 32)]
    return json.dumps([boundary, SALT.expand(bytes([number + 1]) * 32)]).encode()


def require_proof(result: bytes, folder: Path) -> Facts:
    """Verify a proof, and return what it shows."""
    proof = SegmentProof.from_json(json.loads(result))
    key = VerificationKey(
        settings=(folder / "settings").read_bytes(), key=(folder / "vk").read_bytes()
    )
    srs = (folder / "srs").read_bytes()
    Ezkl().verify([(proof, key)], srs[4:68] + srs[-256:], LIMITS)
    return proof.facts
