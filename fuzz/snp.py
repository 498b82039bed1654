"""SEV-SNP: reports, and what stands among their endorsements."""

from __future__ import annotations

import functools
from contextlib import suppress
from datetime import UTC, datetime

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.sev_snp import SevSnp
from bentoml_secure.attestation.tees.snp_report import SigningKey, parse_report
from bentoml_secure.errors import SecureError
from bentoml_secure.testing.amd_pki import AmdPki

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@functools.cache
def _pki() -> AmdPki:
    return AmdPki(now=NOW)


def seeds() -> list[bytes]:
    """Return a report of each version, certificates and a revocation list."""
    pki = _pki()
    reports = [pki.sign_report(version=version) for version in (2, 3, 4, 5)]
    vlek = pki.endorsements(SigningKey.VLEK)
    return [*reports, *pki.endorsements(), *vlek, pki.issue_crl([1])]


def one(data: bytes) -> None:
    """Read bytes as a report, and as one more endorsement of a good one."""
    pki = _pki()
    tee = SevSnp(roots=pki.roots)
    with suppress(SecureError):
        evidence = Evidence(kind="sev-snp", blob=data)
        tee.describe(evidence)
        claims = tee.verify(evidence, pki.endorsements(), now=NOW)
        if claims.report_data != parse_report(data).report_data:
            raise AssertionError("claims that the report does not make")
    with suppress(SecureError):
        good = Evidence(kind="sev-snp", blob=pki.sign_report())
        tee.verify(good, (data, pki.ask, pki.ark), now=NOW)
