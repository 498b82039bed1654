"""Key documents."""

from __future__ import annotations

from bentoml_secure.attestation.key_document import KeyDocument
from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.testing.deployment import build_deployment
from fuzz._same import require_same


def seeds() -> list[bytes]:
    """Return the documents of an entry and of a runner."""
    processes = build_deployment(segments=1).processes[:2]
    return [canonical_json(process.document.to_json()) for process in processes]


def one(data: bytes) -> None:
    """Read bytes as a key document."""
    try:
        document = parse_json(data, what="key document", max_bytes=1 << 20)
        parsed = KeyDocument.from_json(document)
    except SecureError:
        return
    require_same(parsed.to_json(), document)
