"""Kinds of evidence, one file each, and the table of them.

Third parties register a class that fills ``roles.Tee`` under the entry-point group
``bentoml_secure.tees``. A policy still has to name the kind before it counts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from bentoml_secure.attestation.roles import Tee
from bentoml_secure.registry import load

GROUP = "bentoml_secure.tees"

TEES: Mapping[str, str] = {
    "az-snp-vtpm": "bentoml_secure.attestation.tees.az_snp_vtpm:AzSnpVtpm",
    "tdx": "bentoml_secure.attestation.tees.tdx:Tdx",
    "sgx": "bentoml_secure.attestation.tees.sgx:Sgx",
    "sev-snp": "bentoml_secure.attestation.tees.sev_snp:SevSnp",
    "cca": "bentoml_secure.attestation.tees.cca:Cca",
    "nitro": "bentoml_secure.attestation.tees.nitro:Nitro",
    "nvidia-gpu": "bentoml_secure.attestation.tees.nvidia_gpu:NvidiaGpu",
    "simulated": "bentoml_secure.attestation.tees.simulated:Simulated",
    "tpm": "bentoml_secure.attestation.tees.tpm:Tpm",
}


@functools.cache
def load_tee(kind: str) -> Tee:
    """Return the kind's verifier and policy parser; looked up once per process.

    Raises:
        ConfigurationError: A plugin claims the name of a built-in kind.
        UnknownKindError: Nobody registered the kind.
    """
    tee: Tee = load(kind, TEES, GROUP)()
    return tee
