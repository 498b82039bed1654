"""Fingerprints of activations: as they arrive, and built of tensors of any bits."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np

from bentoml_secure.consensus.rules.toploc import build_fingerprint, parse_fingerprint
from bentoml_secure.errors import SecureError
from fuzz._same import require_same

OWN = np.linspace(-3, 5, 300, dtype=np.float32)


def seeds() -> list[bytes]:
    """Return a fingerprint, one of a tensor of two entries, and a tensor."""
    return [
        build_fingerprint(OWN).to_bytes(),
        build_fingerprint(OWN[:2]).to_bytes(),
        OWN.tobytes(),
    ]


def one(data: bytes) -> None:
    """Read bytes as a fingerprint, and take the fingerprint of them."""
    with suppress(SecureError):
        found = parse_fingerprint(data)
        require_same(found.to_bytes(), data)
        own = OWN[: len(found.coefficients)] if len(data) < 258 else OWN
        require_same(math.isfinite(found.difference(own).severity), True)
    with suppress(SecureError):
        tensor = np.frombuffer(data[: len(data) & ~3], np.float32)
        made = build_fingerprint(tensor)
        require_same(parse_fingerprint(made.to_bytes()), made)
        require_same(made.difference(tensor).severity, 0.0)
