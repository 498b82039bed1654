"""GPU evidence, and SPDM reports, signed again after what was hurt."""

from __future__ import annotations

import base64
from contextlib import suppress

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.nvidia_gpu import NvidiaGpu
from bentoml_secure.attestation.tees.spdm import SIGNATURE_BYTES
from bentoml_secure.errors import SecureError
from bentoml_secure.testing.deployment import NOW
from bentoml_secure.testing.ec_pki import sign_raw
from bentoml_secure.testing.nvidia_pki import NvidiaPki

_PKI = NvidiaPki(now=NOW)
_TEE = NvidiaGpu(root=_PKI.root)
_NONCE = bytes(32)


def seeds() -> list[bytes]:
    """Return genuine evidence, a report, and a chain of certificates."""
    chain = base64.b64decode(_PKI.entry(_NONCE)["certificate"])
    return [_PKI.attest(_NONCE).blob, _PKI.report(_NONCE), chain]


def one(data: bytes) -> None:
    """Read bytes as evidence, as a report that is signed, and as a chain."""
    if not data or len(data) > 32768:
        return
    signed = data[:-SIGNATURE_BYTES]
    report = signed + sign_raw(_PKI.pki.leaf_key, signed)
    chain = base64.b64encode(data).decode()
    for evidence in (
        Evidence(kind="nvidia-gpu", blob=data),
        _PKI.evidence(_PKI.entry(_NONCE, report=report)),
        _PKI.evidence(_PKI.entry(_NONCE, certificate=chain)),
    ):
        with suppress(SecureError):
            _TEE.describe(evidence)
        with suppress(SecureError):
            _TEE.verify(evidence, (), now=NOW)
