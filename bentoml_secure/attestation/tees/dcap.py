"""Intel DCAP: what SGX and TDX quotes have in common, from bytes to verified facts.

The certificates, lists and documents that a quote is verified with are collateral,
given with it and never fetched. dcap-qvl verifies; what it does not do is done here:
lengths before it sees a byte, one root by digest, names for what it refuses, and a
refusal where it would end the process. Statuses below ``UpToDate`` verify: a policy
says which are acceptable.

Source: Intel SGX PCK Certificate and CRL Profile Specification; Intel TDX DCAP
Quoting Library API; dcap-qvl 0.7.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import dcap_qvl
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from bentoml_secure.attestation.checks import require
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.tees.dcap_collateral import (
    PCK_CHAIN,
    PCK_CRL,
    PCK_CRL_CHAIN,
    Collateral,
    find_collateral,
    is_pem,
    pem_certificates,
)
from bentoml_secure.attestation.tees.dcap_quote import Quote, TeeType
from bentoml_secure.attestation.tees.dcap_refusals import refuse
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import AttestationError, MissingEndorsementError

INTEL_ROOT = Digest(
    "sha256:44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
)
"""Intel SGX Root CA, 2018 to 2049: of SGX and TDX."""

INTEL = "intel"
NO_VENDOR = "none (simulated)"

_PANIC = "PanicException"
_UNPARSABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    # Odd serial numbers warn, and some processes turn warnings into errors.
    UserWarning,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedQuote:
    """A quote that its collateral and one root vouch for.

    Attributes:
        quote: Its parts.
        facts: What dcap-qvl says of the platform: status, dates, certificate.
        root: Digest of the root that verified.
    """

    quote: Quote
    facts: Mapping[str, Any]
    root: Digest

    def to_claims(self, kind: str, report: Mapping[str, Any]) -> VerifiedClaims:
        """Return the claims of a kind: its report, and the platform it is on.

        Args:
            kind: ``tdx`` or ``sgx``.
            report: The body's fields in hex, ``report_data`` among them.

        Raises:
            CheckFailedError: A platform without an id.
        """
        simulated = self.root != INTEL_ROOT
        claims = {**_platform_claims(self), **report}
        report_data = bytes.fromhex(claims.pop("report_data"))
        return VerifiedClaims(
            kind=kind,
            report_data=report_data,
            claims=claims,
            platform_id=_platform_id(self.facts["platform"]["pck"]),
            vendor=NO_VENDOR if simulated else INTEL,
            root=self.root,
            issued_at=None,
            expires_at=datetime.fromtimestamp(
                self.facts["earliest_expiration_date"], UTC
            ),
            simulated=simulated,
        )


def require_kind(evidence: Evidence, kind: str) -> None:
    """Refuse evidence of another kind.

    Raises:
        AttestationError: It is.
    """
    if evidence.kind != kind:
        raise AttestationError(f"evidence kind: got {evidence.kind}, want {kind}")


def verify_quote(
    quote: Quote,
    tee: TeeType,
    endorsements: Sequence[bytes],
    *,
    root: Digest,
    now: datetime,
) -> VerifiedQuote:
    """Verify a quote against the collateral among endorsements.

    Of several collaterals the one of this TEE and platform model counts; of several
    such, the one with the highest ``tcbEvaluationDataNumber``, then the latest.

    Args:
        quote: From ``parse_quote``.
        tee: What it is of.
        endorsements: From outside, any order, those of other kinds among them.
        root: Digest of the DER of the only root that may verify.
        now: Judges every date; with a time zone.

    Raises:
        MalformedInputError: Collateral that does not parse.
        MissingEndorsementError: No collateral, or no certificate of the platform.
        CheckFailedError: A signature, date, list or document that does not hold.
    """
    # 1. Which collateral, and which certificate of the platform.
    collateral, pck_chain = _choose(quote, tee, find_collateral(endorsements))
    # 2. The root, by its digest, from wherever it was given.
    chain = pck_chain.decode("ascii", "replace")
    roots = [
        der
        for der in pem_certificates([*collateral.chains.values(), chain])
        if digest_bytes(der) == root
    ]
    require(
        "chain.root",
        bool(roots),
        got="chains without it",
        want=f"the root certificate {root}",
    )
    # 3. Everything else; the library prefers the chain in the collateral.
    facts = _verify(quote.signed, collateral.to_json(pck_chain), roots[0], now)
    # 4. Chains that it does not read, or not to their ends.
    _require_chains(collateral, chain, roots[0])
    return VerifiedQuote(quote=quote, facts=facts, root=root)


def _choose(
    quote: Quote, tee: TeeType, collaterals: Sequence[Collateral]
) -> tuple[Collateral, bytes]:
    if not collaterals:
        raise MissingEndorsementError(
            f"{tee.name} quote: no DCAP collateral was given.",
            remedy="Fetch it for this quote and give it as an endorsement.",
        )
    chains = [quote.pck_chain or collateral.pck_chain for collateral in collaterals]
    models = [_fmspc(chain) if chain else None for chain in chains]

    def rank(index: int) -> tuple[bool, bool, int, str]:
        collateral = collaterals[index]
        return (
            collateral.tee == tee.name,
            collateral.fmspc == models[index],
            collateral.evaluation,
            collateral.issued,
        )

    best = max(range(len(collaterals)), key=rank)
    chain = chains[best]
    if chain is None:
        raise MissingEndorsementError(
            f"{tee.name} quote: it names its platform's certificate by certification"
            f" data of type {quote.certification_type}, and the collateral has none.",
            remedy="Give collateral with pck_certificate_chain.",
        )
    return collaterals[best], chain


def _fmspc(pck_chain: bytes) -> str | None:
    """Return the platform model that an unverified certificate names, if any."""
    with _contained():
        try:
            extension = dcap_qvl.parse_pck_extension_from_pem(pck_chain)
        except ValueError:
            # Verification will say what is wrong with it.
            return None
        return str(extension.fmspc.hex().upper())


def _verify(
    quote: bytes, collateral: str, root: bytes, now: datetime
) -> Mapping[str, Any]:
    # It takes no time before 1970, when no collateral was.
    seconds = max(0, int(now.timestamp()))
    with _contained():
        try:
            parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral)
            # No policy of the library's: it would refuse what ours may accept, and
            # accept what ours must see.
            facts = dcap_qvl.QuoteVerifier(root).verify_with_policy(
                quote, parsed, seconds, dcap_qvl.QuotePolicy.claims_only(seconds)
            )
            document: Mapping[str, Any] = json.loads(facts.to_json())
        except ValueError as error:
            refuse(_explained(error, quote, collateral, root, seconds))
    return document


def _explained(
    error: ValueError, quote: bytes, collateral: str, root: bytes, seconds: int
) -> str:
    """Return the library's reason with its causes, which only its older call says."""
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral)
        dcap_qvl.verify_with_root_ca(quote, parsed, root, seconds)
    except ValueError as causes:
        return str(causes)
    return str(error)


@contextmanager
def _contained() -> Iterator[None]:
    """Turn a panic of the library's Rust, which is no ``Exception``, into a refusal."""
    try:
        yield
    except BaseException as error:
        # By name: the class cannot be imported.
        if type(error).__name__ != _PANIC:
            raise
        refuse(f"the library failed: {error}")


def _require_chains(collateral: Collateral, pck_chain: str, root: bytes) -> None:
    texts = {**collateral.chains, PCK_CHAIN: pck_chain}
    chains = {
        name: [*(der for der in pem_certificates([text]) if der != root), root]
        for name, text in texts.items()
    }
    broken = [
        name
        for name, chain in chains.items()
        if not is_pem(texts[name]) or not _is_chain(chain)
    ]
    require(
        "chain.links",
        not broken,
        got=", ".join(broken),
        want="nothing but certificates, each issued by the next, the last by the root",
    )
    issuer, signed = chains[PCK_CRL_CHAIN][0], collateral.fields[PCK_CRL]
    require(
        "crl.issuer_chain",
        _issued_list(issuer, bytes.fromhex(signed)),
        got="another list",
        want=f"{PCK_CRL} signed by the first of {PCK_CRL_CHAIN}",
    )


def _is_chain(chain: Sequence[bytes]) -> bool:
    try:
        for one, issuer in pairwise(map(x509.load_der_x509_certificate, chain)):
            one.verify_directly_issued_by(issuer)
    except (InvalidSignature, *_UNPARSABLE):
        return False
    return True


def _issued_list(issuer: bytes, revocation_list: bytes) -> bool:
    try:
        key = x509.load_der_x509_certificate(issuer).public_key()
        parsed = x509.load_der_x509_crl(revocation_list)
        return parsed.is_signature_valid(key)  # type: ignore[arg-type]
    except _UNPARSABLE:
        return False


def _platform_claims(verified: VerifiedQuote) -> dict[str, Any]:
    facts = verified.facts
    tcb, platform = facts["tcb"], facts["platform"]
    pck, current = platform["pck"], platform["current_tcb_level"] or {}
    advisories = {*tcb["advisory_ids"], *current.get("advisoryIDs", ())}
    return {
        "quote_version": verified.quote.version,
        "status": tcb["status"],
        "advisories": sorted(advisories),
        "tcb_evaluation": tcb["eval_data_number"],
        "tcb_date": platform["tcb_level"]["tcbDate"],
        "qe_status": facts["qe"]["tcb_level"]["tcbStatus"],
        "fmspc": bytes(pck["fmspc"]).hex(),
        "ppid": bytes(pck["ppid"]).hex(),
        "pck_ca": _authority(pck),
        "pck_cpu_svn": bytes(pck["cpu_svn"]).hex(),
        "pce_svn": pck["pce_svn"],
        "dynamic_platform": _flag(pck["dynamic_platform"]),
        "cached_keys": _flag(pck["cached_keys"]),
        "smt": _flag(pck["smt_enabled"]),
    }


def _authority(pck: Mapping[str, Any]) -> str:
    # Certificates of the platform authority name an instance, the processor's do not.
    return "processor" if pck["platform_instance_id"] is None else "platform"


def _flag(value: str) -> bool | None:
    return {"True": True, "False": False}.get(value)


def _platform_id(pck: Mapping[str, Any]) -> str:
    """Return the machine's PPID, or its platform instance where that is blank."""
    ppid, instance = bytes(pck["ppid"]), bytes(pck["platform_instance_id"] or b"")
    identity = ppid if any(ppid) else instance
    require("ppid", any(identity), got="zero", want="a platform with an id")
    return identity.hex()
