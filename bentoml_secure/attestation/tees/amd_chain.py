"""From a VCEK or VLEK up to a pinned ARK.

ARKs are pinned by the digest of the whole certificate: a result names the root that
verified in the same way, and AMD has issued one ARK per product line so far. The key
alone would also accept a certificate with other dates or limits.

Every signature is RSASSA-PSS with SHA-384, MGF1 of the same and a salt of 48 bytes,
whatever the certificate itself says.

Source: AMD 57230 (VCEK certificate and KDS interface) revision 1.00, chapters 2, 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA384

from bentoml_secure.attestation.checks import require, requiring
from bentoml_secure.attestation.evidence import format_seconds
from bentoml_secure.attestation.reference_values import one_of
from bentoml_secure.attestation.tees.amd_certificates import (
    AmdEndorsements,
    Certificate,
    Crl,
    Issuer,
    Leaf,
    Role,
)
from bentoml_secure.attestation.tees.simulated import VENDOR as SIMULATED
from bentoml_secure.attestation.tees.snp_report import Product
from bentoml_secure.digest import Digest
from bentoml_secure.errors import MissingEndorsementError

VENDOR = "amd"
KDS = "https://kdsintf.amd.com"

AMD_ROOTS: Mapping[Digest, Product] = {
    Digest(f"sha256:{digest}"): product
    for digest, product in (
        (
            "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
            Product.MILAN,
        ),
        (
            "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
            Product.GENOA,
        ),
        (
            "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
            Product.TURIN,
        ),
    )
}
"""AMD's root certificates, by digest of their DER."""

_SALT_BYTES = 48
_SIGNER_OF = {Role.VCEK: Role.ASK, Role.VLEK: Role.ASVK}


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdChain:
    """A leaf that a pinned root endorses, all within their dates.

    Attributes:
        product: The root's, and all others'.
        root: Digest of the root's DER.
        revocation_checked: Whether a revocation list of the root's was given.
        expires_at: End of the shortest validity, revocation lists included.
    """

    leaf: Leaf
    product: Product
    root: Digest
    vendor: str
    simulated: bool
    revocation_checked: bool
    expires_at: datetime


def verify_amd_chain(
    leaf: Leaf,
    endorsements: AmdEndorsements,
    *,
    now: datetime,
    development_roots: Mapping[Digest, Product],
) -> AmdChain:
    """Verify that a pinned root stands behind a leaf.

    Args:
        leaf: One of the endorsements' leaves.
        endorsements: From outside.
        now: Judges dates.
        development_roots: Roots of no hardware, accepted beside AMD's and marked.

    Raises:
        MissingEndorsementError: No ASK or ASVK at all was given, or no ARK.
        CheckFailedError: A certificate or revocation list does not hold.
    """
    known = {**development_roots, **AMD_ROOTS}
    signer, root = _issuers(leaf, endorsements, known)
    # 1. The root is one of those that are known.
    digest = root.digest
    require("ark.pinned", digest in known, got=digest, want=one_of(tuple(known)))
    product = known[digest]
    # 2. It signed the ASK or ASVK, which is one of the same product.
    _require_signer(signer, root, product)
    # 3. Which signed the leaf, of the right kind and the same product.
    _require_leaf(leaf, signer, product)
    # 4. All in their dates, none revoked.
    chain: tuple[Certificate, ...] = (root, signer, leaf)
    for certificate in chain:
        _require_dates(certificate, now)
    crls = [crl for crl in endorsements.crls if crl.issuer == root.subject]
    for crl in crls:
        _require_not_revoked(signer, root, crl, now)
    ends = [item.not_after for item in chain] + [crl.not_after for crl in crls]
    return AmdChain(
        leaf=leaf,
        product=product,
        root=digest,
        vendor=VENDOR if digest in AMD_ROOTS else SIMULATED,
        simulated=digest not in AMD_ROOTS,
        revocation_checked=bool(crls),
        expires_at=min(end for end in ends if end is not None),
    )


def _issuers(
    leaf: Leaf, endorsements: AmdEndorsements, known: Mapping[Digest, Product]
) -> tuple[Issuer, Issuer]:
    signer = _issuer_of(leaf, endorsements.signers, _SIGNER_OF[leaf.role])
    if signer is None:
        raise _missing(_SIGNER_OF[leaf.role], leaf)
    # Namesakes of a pinned root may have its key, and come after it.
    roots = sorted(endorsements.roots, key=lambda root: root.digest not in known)
    root = _issuer_of(signer, roots, Role.ARK)
    if root is None:
        raise _missing(Role.ARK, leaf)
    return signer, root


def _issuer_of(
    certificate: Certificate, candidates: Sequence[Issuer], role: Role
) -> Issuer | None:
    """Pick whom to hold a certificate against: its issuer by name and signature.

    Failing that one of the name, then one of the role, for the checks to refuse.
    """
    named = [issuer for issuer in candidates if issuer.subject == certificate.issuer]
    signed = [issuer for issuer in named if _signed(issuer.key, certificate)]
    others = [issuer for issuer in candidates if issuer.role is role]
    return next(iter(signed or named or others), None)


def _signed(key: RSAPublicKey, certificate: Certificate) -> bool:
    try:
        _verify_certificate(key, certificate)
    except InvalidSignature:
        return False
    return True


def _verify_certificate(key: RSAPublicKey, certificate: Certificate) -> None:
    signed = certificate.parsed.tbs_certificate_bytes
    _verify_pss(key, certificate.parsed.signature, signed)


def _verify_pss(key: RSAPublicKey, signature: bytes, message: bytes) -> None:
    key.verify(signature, message, PSS(MGF1(SHA384()), _SALT_BYTES), SHA384())


def _require_signer(signer: Issuer, root: Issuer, product: Product) -> None:
    require(
        "ask.issuer",
        signer.issuer == root.subject,
        got=signer.issuer.rfc4514_string(),
        want=root.subject.rfc4514_string(),
    )
    with requiring("ask.signature", InvalidSignature, want="the ARK's"):
        _verify_certificate(root.key, signer)
    require(
        "ask.ca",
        signer.is_ca,
        got="a certificate that may not sign others",
        want="a CA with keyCertSign",
    )
    require("ask.product", signer.product == product, got=signer.product, want=product)


def _require_leaf(leaf: Leaf, signer: Issuer, product: Product) -> None:
    require(
        "leaf.issuer",
        leaf.issuer == signer.subject,
        got=leaf.issuer.rfc4514_string(),
        want=signer.subject.rfc4514_string(),
    )
    with requiring("leaf.signature", InvalidSignature, want=f"the {signer.role}'s"):
        _verify_certificate(signer.key, leaf)
    require(
        "leaf.signer",
        signer.role is _SIGNER_OF[leaf.role],
        got=f"{leaf.role} signed by an {signer.role}",
        want=f"by an {_SIGNER_OF[leaf.role]}",
    )
    require("leaf.product", leaf.product == product, got=leaf.product, want=product)


def _require_dates(certificate: Certificate, now: datetime) -> None:
    start = format_seconds(certificate.not_before)
    end = format_seconds(certificate.not_after)
    require(
        "chain.dates",
        certificate.not_before <= now <= certificate.not_after,
        got=f"{format_seconds(now)}, {certificate.subject.rfc4514_string()}",
        want=f"{start} to {end}",
    )


def _require_not_revoked(signer: Issuer, root: Issuer, crl: Crl, now: datetime) -> None:
    with requiring("crl.signature", InvalidSignature, want="the ARK's"):
        _verify_pss(root.key, crl.parsed.signature, crl.parsed.tbs_certlist_bytes)
    # Such a list may be about other certificates than it seems.
    require("crl.extensions", not crl.critical, got=crl.critical, want="none critical")
    end = crl.not_after
    require(
        "crl.dates",
        end is not None and crl.not_before <= now <= end,
        got=format_seconds(now),
        want=f"{format_seconds(crl.not_before)} to"
        f" {format_seconds(end) if end else 'a date, and it says none'}",
    )
    # Not the leaf's: AMD numbers every VCEK 0, and revokes none by number.
    number = signer.serial_number
    require(
        "crl.serial",
        crl.parsed.get_revoked_certificate_by_serial_number(number) is None,
        got=f"{signer.role} {number} is revoked",
        want="not revoked",
    )


def _missing(role: Role, leaf: Leaf) -> MissingEndorsementError:
    kind = leaf.role.lower()
    return MissingEndorsementError(
        f"SEV-SNP: no {role} among the endorsements of this {leaf.role}.",
        remedy=f"Add {KDS}/{kind}/v1/{leaf.product}/cert_chain.",
    )
