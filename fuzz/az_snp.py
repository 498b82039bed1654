"""VMs on Azure: their evidence as JSON, and the paravisor's report in it."""

from __future__ import annotations

import functools
import json
from contextlib import suppress
from datetime import UTC, datetime

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.az_snp_vtpm import AzSnpVtpm
from bentoml_secure.attestation.tees.hcl_report import parse_hcl_report
from bentoml_secure.errors import SecureError
from bentoml_secure.testing.amd_pki import AmdPki
from bentoml_secure.testing.az_vm import AzVm

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@functools.cache
def _vm() -> AzVm:
    return AzVm(AmdPki(now=NOW))


def seeds() -> list[bytes]:
    """Return evidence of both forms, and a paravisor's report."""
    vm = _vm()
    versioned, hcl_report = vm.document(bytes(32)), vm.hcl_report()
    quote = versioned["tpm_quote"]
    bare = {
        "quote": {
            "message": list(bytes.fromhex(quote["message"])),
            "signature": list(bytes.fromhex(quote["signature"])),
            "pcrs": [list(bytes.fromhex(pcr)) for pcr in quote["pcrs"]],
        },
        "report": list(hcl_report),
        "vcek": "",
    }
    return [json.dumps(versioned).encode(), json.dumps(bare).encode(), hcl_report]


def one(data: bytes) -> None:
    """Read bytes as evidence, and as a paravisor's report."""
    pki = _vm().pki
    tee = AzSnpVtpm(roots=pki.roots)
    with suppress(SecureError):
        evidence = Evidence(kind="az-snp-vtpm", blob=data)
        tee.describe(evidence)
        tee.verify(evidence, pki.endorsements(), now=NOW)
    with suppress(SecureError):
        parse_hcl_report(data)
