"""AMD SEV-SNP: an attestation report under the chip's or the provider's key.

The evidence is the report of 1184 bytes as ``SNP_GET_REPORT`` or configfs-tsm gives it,
of version 2 to 5, from Milan, Genoa (Bergamo and Siena too) or Turin. The endorsements
are the VCEK or VLEK, its ASK or ASVK, the ARK, and revocation lists where there are;
see ``amd_certificates``.

The machine is known by the hardware id of its VCEK, whether the report says it or masks
it. A VLEK belongs to many machines: where a report under one masks the chip, all
machines of that provider's id have one platform id, and count as one.

Source: AMD 56860 (SEV-SNP firmware ABI) revision 1.58, chapters 7.3 and 10; AMD 57230
(VCEK certificate and KDS interface) revision 1.00.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from bentoml_secure.attestation.checks import require, requiring
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.reference_values import require_known
from bentoml_secure.attestation.tees.amd_certificates import (
    Leaf,
    Role,
    find_amd_endorsements,
)
from bentoml_secure.attestation.tees.amd_chain import KDS, AmdChain, verify_amd_chain
from bentoml_secure.attestation.tees.snp_policy import (
    SNP_KEYS,
    SnpPolicy,
    parse_snp_policy,
)
from bentoml_secure.attestation.tees.snp_report import (
    ECDSA_P384_SHA384,
    TURIN_CHIP_ID_BYTES,
    Product,
    Report,
    SigningKey,
    Tcb,
    parse_report,
)
from bentoml_secure.digest import Digest
from bentoml_secure.errors import MissingEndorsementError

KIND = "sev-snp"

_NUMBER_BYTES = 72
"""R and S are stored in so many, of which a P-384 number fills 48."""

_KEY_OF = {Role.VCEK: SigningKey.VCEK, Role.VLEK: SigningKey.VLEK}
_KDS_NAMES = {
    "fmc": "fmcSPL",
    "bootloader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}
_NOT_IN_PLATFORM_ID = re.compile(r"[^A-Za-z0-9._:-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReport:
    """A report that an endorsed key signed, and what endorses that key."""

    report: Report
    chain: AmdChain

    @property
    def turin(self) -> bool:
        """Whether its TCBs have the layout of Turin."""
        return self.chain.product is Product.TURIN

    @property
    def platform_id(self) -> str:
        """The machine: the chip's id in hex, or the provider's where that is masked."""
        leaf = self.chain.leaf
        if leaf.hwid is not None:
            return leaf.hwid.hex()
        if not self.report.chip_id_masked:
            length = TURIN_CHIP_ID_BYTES if self.turin else None
            return self.report.chip_id[:length].hex()
        return _NOT_IN_PLATFORM_ID.sub("_", f"vlek:{leaf.csp_id}")

    def to_json(self) -> dict[str, Any]:
        """Return the claims of the report and of what endorses it."""
        return {
            **self.report.to_json(turin=self.turin),
            "product": self.chain.product.value,
            "key": _KEY_OF[self.chain.leaf.role].value,
            "csp_id": self.chain.leaf.csp_id,
            "revocation_checked": self.chain.revocation_checked,
        }


class SevSnp:
    """Verifier of SEV-SNP reports and reader of their policy table.

    Args:
        roots: Development roots, accepted beside AMD's and marked as simulated, with
            the product that they stand for. For tests: the table of kinds gives none.
    """

    def __init__(self, roots: Mapping[Digest, Product] | None = None) -> None:
        self._roots = dict(roots or {})

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what a report says, if AMD stands behind it.

        Args:
            evidence: From outside, of kind ``sev-snp``.
            endorsements: From outside, any order, those of other kinds among them.
            now: Judges the dates of certificates and revocation lists.

        Raises:
            MalformedInputError: A report or a certificate of AMD's does not parse.
            MissingEndorsementError: No VCEK or VLEK, no ASK or ASVK, or no ARK.
            CheckFailedError: A check that does not hold.
        """
        require("kind", evidence.kind == KIND, got=evidence.kind, want=KIND)
        verified = verify_snp_report(
            parse_report(evidence.blob),
            endorsements,
            now=now,
            development_roots=self._roots,
        )
        return VerifiedClaims(
            kind=KIND,
            report_data=verified.report.report_data,
            claims=verified.to_json(),
            platform_id=verified.platform_id,
            vendor=verified.chain.vendor,
            root=verified.chain.root,
            issued_at=None,
            expires_at=verified.chain.expires_at,
            simulated=verified.chain.simulated,
        )

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return a report's fields, unverified.

        Raises:
            MalformedInputError: Not a report.
        """
        return describe_report(parse_report(evidence.blob))

    def parse_policy(self, table: Mapping[str, Any]) -> SnpPolicy:
        """Return the reference values that the table ``[sev-snp]`` spells.

        Raises:
            ConfigurationError: A key unknown, missing or of another type.
        """
        what = f"appraisal policy [{KIND}]"
        return parse_snp_policy(require_known(table, SNP_KEYS, what=what), what=what)


def describe_report(report: Report) -> dict[str, Any]:
    """Return what a report says of itself, unverified."""
    product = report.cpuid.product if report.cpuid else None
    return {
        **report.to_json(turin=report.looks_like_turin),
        "report_data": report.report_data.hex(),
        "product": product.value if product else None,
        "key": report.signing_key.value if report.signing_key else None,
    }


def verify_snp_report(
    report: Report,
    endorsements: Sequence[bytes],
    *,
    now: datetime,
    development_roots: Mapping[Digest, Product],
) -> VerifiedReport:
    """Verify that a chip of AMD's signed a report.

    Args:
        report: As parsed, from outside.
        endorsements: From outside.
        now: Judges dates.
        development_roots: See ``verify_amd_chain``.

    Raises:
        MalformedInputError: A certificate of AMD's does not parse.
        MissingEndorsementError: One that is needed was not given.
        CheckFailedError: A check that does not hold.
    """
    # 1. Of this form.
    _require_form(report)
    # 2. A key that AMD endorses.
    found = find_amd_endorsements(endorsements)
    if not found.leaves:
        raise _missing_leaf(report)
    leaf = max(found.leaves, key=lambda leaf: _fitness(leaf, report, now))
    chain = verify_amd_chain(leaf, found, now=now, development_roots=development_roots)
    verified = VerifiedReport(report=report, chain=chain)
    # 3. Of this chip, at this TCB.
    _require_endorsed(verified)
    # 4. Which signed all of it.
    with requiring("report.signature", InvalidSignature, want=f"the {leaf.role}'s"):
        _verify_signature(leaf, report)
    return verified


def _require_form(report: Report) -> None:
    algorithm = report.signature_algorithm
    require(
        "report.signature_algorithm",
        algorithm == ECDSA_P384_SHA384,
        got=algorithm,
        want=f"{ECDSA_P384_SHA384}, ECDSA P-384 with SHA-384",
    )
    require(
        "report.reserved",
        not any(report.reserved) and not report.key_info >> 5,
        got="other bytes",
        want="zeros where the ABI reserves them",
    )
    # Not under the signature.
    unused = report.signature[2 * _NUMBER_BYTES :]
    require(
        "report.signature_form", not any(unused), got=unused.hex(), want="zeros after S"
    )


def _fitness(leaf: Leaf, report: Report, now: datetime) -> tuple[bool, ...]:
    """Rank leaves, of which several may be given: the best is the one verified."""
    try:
        _verify_signature(leaf, report)
    except InvalidSignature:
        signed = False
    else:
        signed = True
    return (
        signed,
        _KEY_OF[leaf.role] is report.signing_key,
        leaf.hwid is not None and report.chip_id.startswith(leaf.hwid),
        leaf.not_before <= now <= leaf.not_after,
    )


def _verify_signature(leaf: Leaf, report: Report) -> None:
    r, s = (
        int.from_bytes(report.signature[start : start + _NUMBER_BYTES], "little")
        for start in (0, _NUMBER_BYTES)
    )
    leaf.key.verify(encode_dss_signature(r, s), report.signed, ECDSA(SHA384()))


def _require_endorsed(verified: VerifiedReport) -> None:
    report, leaf = verified.report, verified.chain.leaf
    curve = leaf.key.curve
    require(
        "leaf.key", isinstance(curve, SECP384R1), got=curve.name, want=SECP384R1.name
    )
    require(
        "report.signing_key",
        report.signing_key is _KEY_OF[leaf.role],
        got=report.signing_key,
        want=_KEY_OF[leaf.role],
    )
    product = verified.chain.product
    require(
        "report.cpuid",
        report.cpuid is None or report.cpuid.product is product,
        got=report.cpuid,
        want=product,
    )
    if leaf.hwid is not None and not report.chip_id_masked:
        padded = leaf.hwid.ljust(len(report.chip_id), b"\0")
        require(
            "leaf.hwid",
            padded == report.chip_id,
            got=leaf.hwid.hex(),
            want=report.chip_id.hex(),
        )
    reported = Tcb.from_bytes(report.reported_tcb, turin=verified.turin)
    endorsed = {name: leaf.tcb.get(name) for name in reported.to_json()}
    require("leaf.tcb", endorsed == reported.to_json(), got=endorsed, want=reported)


def _missing_leaf(report: Report) -> MissingEndorsementError:
    if report.signing_key is SigningKey.VLEK:
        return MissingEndorsementError(
            "SEV-SNP: no VLEK among the endorsements.",
            remedy="The provider gives it to the guest, in the certificate table of an"
            " extended report; it cannot be fetched.",
        )
    turin = report.looks_like_turin
    tcb = Tcb.from_bytes(report.reported_tcb, turin=turin)
    chip_id = report.chip_id[: TURIN_CHIP_ID_BYTES if turin else None].hex()
    if report.chip_id_masked:
        where = "The chip's id is masked: ask the machine's operator for it."
    else:
        product = report.cpuid.product if report.cpuid else None
        name = product or (Product.TURIN if turin else "{Milan or Genoa}")
        levels = tcb.to_json().items()
        query = "&".join(f"{_KDS_NAMES[part]}={level:02}" for part, level in levels)
        where = f"Add {KDS}/vcek/v1/{name}/{chip_id}?{query}."
    return MissingEndorsementError(
        f"SEV-SNP: no VCEK among the endorsements, for chip {chip_id} at TCB {tcb}.",
        remedy=where,
    )
