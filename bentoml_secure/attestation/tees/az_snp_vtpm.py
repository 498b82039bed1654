"""A confidential VM on Azure: SEV-SNP under a paravisor that gives it a vTPM.

The guest cannot ask the chip. At VMPL 0 a paravisor runs that the SNP report measures;
it makes a vTPM and puts the hash of its keys into the report, once, when it starts. The
guest's registers and the verifier's challenge are in a quote that the vTPM signs:

    AMD root -> SNP report of the paravisor -> runtime data -> key of the vTPM -> quote

What runs in the guest is in the registers (PCRs): list those that matter. The report's
measurement is the paravisor's.

The evidence is JSON as Trustee's attester writes it (``az_evidence``). Its VCEK counts
as one more endorsement.

Source: github.com/confidential-containers/trustee, deps/verifier/src/az_snp_vtpm;
Microsoft, "Azure confidential VMs guest attestation design".
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bentoml_secure.attestation.checks import require
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.reference_values import (
    IndexedReferences,
    References,
    Unchecked,
    compare_reference,
    indexed_to_json,
    read_references,
    require_known,
)
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.attestation.tees.az_evidence import AzEvidence, parse_az_evidence
from bentoml_secure.attestation.tees.hcl_report import HclReport
from bentoml_secure.attestation.tees.sev_snp import (
    VerifiedReport,
    describe_report,
    verify_snp_report,
)
from bentoml_secure.attestation.tees.snp_policy import (
    SNP_KEYS,
    SnpPolicy,
    parse_snp_policy,
)
from bentoml_secure.attestation.tees.snp_report import Product
from bentoml_secure.attestation.tees.tpm_pcrs import (
    compare_pcrs,
    pcrs_to_json,
    read_pcr_references,
)
from bentoml_secure.attestation.tees.tpm_quote import (
    Quote,
    parse_quote,
    verify_quote,
)
from bentoml_secure.digest import Digest

KIND = "az-snp-vtpm"
CHALLENGE_BYTES = 32
PARAVISOR_VMPL = 0
_NO_EK = Unchecked("the policy lists none; the paravisor vouches for its vTPM")


@dataclass(frozen=True, slots=True, kw_only=True)
class AzSnpVtpmPolicy:
    """Reference values for a VM on Azure.

    Attributes:
        snp: For the paravisor and its platform.
        pcr: For the guest's registers.
        ek_roots: Where listed, nothing is accepted: the vTPM shows no certificate of
            its endorsement key, and the paravisor vouches for it instead.
    """

    snp: SnpPolicy
    pcr: IndexedReferences
    ek_roots: References

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between claims and this policy."""
        return (
            self.snp.compare(claims)
            + compare_pcrs(claims.claims["pcr"], self.pcr)
            + compare_reference("ek_root", "no certificate", self.ek_roots)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the table of the policy."""
        document = {**self.snp.to_json(), "pcr": indexed_to_json(self.pcr)}
        if not isinstance(self.ek_roots, Unchecked):
            document["ek_roots"] = list(self.ek_roots)
        return document


class AzSnpVtpm:
    """Verifier of Azure's SEV-SNP VMs with a vTPM, and reader of their policy table.

    Args:
        roots: Development roots, as for ``SevSnp``. For tests: the table of kinds
            gives none.
    """

    def __init__(self, roots: Mapping[Digest, Product] | None = None) -> None:
        self._roots = dict(roots or {})

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what a VM's vTPM says, if AMD stands behind its paravisor.

        Args:
            evidence: From outside, of kind ``az-snp-vtpm``.
            endorsements: From outside, any order; the VCEK may stand in the evidence.
            now: Judges the dates of certificates and revocation lists.

        Returns:
            Claims whose ``report_data`` are the first 32 bytes of the quote's
            challenge, zeros put after a shorter one; ``extra_data`` has all of it.

        Raises:
            MalformedInputError: Bytes that do not parse.
            MissingEndorsementError: No VCEK, ASK or ARK.
            CheckFailedError: A check that does not hold.
        """
        require("kind", evidence.kind == KIND, got=evidence.kind, want=KIND)
        got = parse_az_evidence(evidence.blob)
        # 1. AMD's chip signed the report.
        verified = verify_snp_report(
            got.hcl_report.report,
            (*endorsements, got.vcek),
            now=now,
            development_roots=self._roots,
        )
        # 2. The paravisor asked for it, over its runtime data: a guest at a lower
        # level can ask for one over keys of its own.
        _require_paravisor(got.hcl_report)
        # 3. The key in there signed the quote, over these registers.
        quote = verify_quote(
            got.message,
            got.signature,
            got.hcl_report.attestation_key,
            got.pcrs,
            raw_signature=True,
        )
        return _claims(verified, got, quote)

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return the fields of report, runtime data and quote, unverified.

        Raises:
            MalformedInputError: Bytes that do not parse.
            CheckFailedError: What is quoted is no quote of a TPM's.
        """
        got = parse_az_evidence(evidence.blob)
        return {
            **describe_report(got.hcl_report.report),
            **_vtpm_claims(got, parse_quote(got.message)),
        }

    def parse_policy(self, table: Mapping[str, Any]) -> AzSnpVtpmPolicy:
        """Return the reference values that the table ``[az-snp-vtpm]`` spells.

        Raises:
            ConfigurationError: A key unknown, missing or of another type.
        """
        what = f"appraisal policy [{KIND}]"
        known = require_known(table, SNP_KEYS | {"pcr", "ek_roots"}, what=what)
        ek_roots: References = _NO_EK
        if "ek_roots" in known:
            ek_roots = read_references(
                known["ek_roots"],
                what=f"{what} ek_roots",
                pattern=re.compile(r"sha256:[0-9a-f]{64}"),
                form="digest of a root, sha256:<hex>",
            )
        return AzSnpVtpmPolicy(
            snp=parse_snp_policy(known, what=what),
            pcr=read_pcr_references(known.get("pcr"), what=what),
            ek_roots=ek_roots,
        )


def _require_paravisor(hcl_report: HclReport) -> None:
    report = hcl_report.report
    require(
        "hcl.vmpl",
        report.vmpl == PARAVISOR_VMPL,
        got=report.vmpl,
        want=f"{PARAVISOR_VMPL}, the paravisor's",
    )
    digest = hashlib.sha256(hcl_report.runtime_data).digest()
    require(
        "hcl.runtime_data",
        hmac.compare_digest(
            report.report_data, digest.ljust(len(report.report_data), b"\0")
        ),
        got=report.report_data.hex(),
        want=f"SHA-256 of the runtime data, {digest.hex()}, then zeros",
    )


def _claims(verified: VerifiedReport, got: AzEvidence, quote: Quote) -> VerifiedClaims:
    challenge = quote.extra_data[:CHALLENGE_BYTES].ljust(CHALLENGE_BYTES, b"\0")
    return VerifiedClaims(
        kind=KIND,
        report_data=challenge,
        claims={**verified.to_json(), **_vtpm_claims(got, quote)},
        platform_id=verified.platform_id,
        vendor=verified.chain.vendor,
        root=verified.chain.root,
        issued_at=None,
        expires_at=verified.chain.expires_at,
        simulated=verified.chain.simulated,
    )


def _vtpm_claims(got: AzEvidence, quote: Quote) -> dict[str, Any]:
    return {
        "pcr": pcrs_to_json(got.pcrs),
        "extra_data": quote.extra_data.hex(),
        "clock": quote.clock,
        "reset_count": quote.reset_count,
        "restart_count": quote.restart_count,
        "safe": quote.safe,
        "tpm_firmware": f"{quote.firmware_version:#x}",
        "vm_configuration": dict(got.hcl_report.vm_configuration),
        "user_data": got.hcl_report.user_data,
    }
