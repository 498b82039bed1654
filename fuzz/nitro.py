"""Attestation documents of Nitro enclaves, signed again after what was hurt."""

from __future__ import annotations

from contextlib import suppress

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.cbor import parse_cbor
from bentoml_secure.attestation.tees.nitro import Nitro
from bentoml_secure.errors import SecureError
from bentoml_secure.testing.deployment import NOW
from bentoml_secure.testing.nitro_pki import NitroPki

_PKI = NitroPki(now=NOW)
_TEE = Nitro(root=_PKI.root)


def seeds() -> list[bytes]:
    """Return a genuine document, and the payload of one."""
    document = _PKI.document(nonce=b"n", public_key=b"k").blob
    return [document, parse_cbor(document, what="seed")[2]]


def one(data: bytes) -> None:
    """Read bytes as a document, and as the payload of one that is signed."""
    if not data:
        return
    for evidence in (Evidence(kind="nitro", blob=data[:65536]), _PKI.signed(data)):
        with suppress(SecureError):
            _TEE.describe(evidence)
        with suppress(SecureError):
            _TEE.verify(evidence, (), now=NOW)
