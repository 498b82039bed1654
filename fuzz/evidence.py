"""Evidence: the envelope of every kind, and the blob of each kind that is built in."""

from __future__ import annotations

import json
from contextlib import suppress

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees import TEES, load_tee
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.testing.deployment import NOW, build_deployment


def seeds() -> list[bytes]:
    """Return genuine simulated evidence: its document, and its blob."""
    evidence = build_deployment(segments=1).entry.attest(bytes(64))
    return [json.dumps(evidence.to_json()).encode(), evidence.blob]


def one(data: bytes) -> None:
    """Read bytes as a document of evidence, and as the blob of each kind."""
    with suppress(SecureError):
        Evidence.from_json(parse_json(data, what="evidence", max_bytes=1 << 20))
    for kind in TEES:
        try:
            load_tee(kind).verify(Evidence(kind=kind, blob=data), (), now=NOW)
        except SecureError:
            continue
