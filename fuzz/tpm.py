"""TPM evidence, its structures and certificates, and a host's certificate table."""

from __future__ import annotations

from contextlib import suppress

from bentoml_secure.attestation.attesters.certificate_table import (
    parse_certificate_table,
)
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.tpm import Tpm, parse_tpm_evidence
from bentoml_secure.attestation.tees.tpm_endorsement import verify_endorsement_key
from bentoml_secure.attestation.tees.tpm_keys import parse_attestation_key
from bentoml_secure.attestation.tees.tpm_quote import parse_quote
from bentoml_secure.errors import SecureError
from bentoml_secure.testing.tpm_pki import (
    NOW,
    QuoteParts,
    TpmPki,
    marshal_public,
)
from fuzz._same import require_same

PKI = TpmPki()


def seeds() -> list[bytes]:
    """Return genuine evidence, and the structures in it."""
    return [
        PKI.evidence().blob,
        QuoteParts().marshal(),
        marshal_public(PKI.ak_key),
        PKI.ek_certificate,
        PKI.root,
        bytes.fromhex("63da758de6644564adc5f4b93be8accd3000000001000000").ljust(49),
    ]


def one(data: bytes) -> None:
    """Read bytes as each of them; what reads is written back the same."""
    with suppress(SecureError):
        parts = parse_tpm_evidence(Evidence(kind="tpm", blob=data))
        require_same(parts.to_evidence().blob, data)
        Tpm().verify(Evidence(kind="tpm", blob=data), PKI.chain, now=NOW)
    for parse in (parse_quote, parse_attestation_key, parse_certificate_table):
        with suppress(SecureError):
            parse(data)
    with suppress(SecureError):
        verify_endorsement_key(data, PKI.chain, now=NOW)
    with suppress(SecureError):
        verify_endorsement_key(PKI.ek_certificate, [data, *PKI.chain], now=NOW)
