"""Certificates of a chip from AMD's Key Distribution Service.

    {service}/vcek/v1/{product}/{chip id}?blSPL=..&..   the chip's key, DER
    {service}/vcek/v1/{product}/cert_chain              ASK and ARK, PEM
    {service}/vcek/v1/{product}/crl                     revocations, DER
    {service}/vlek/v1/{product}/..                      the last two for VLEKs

A VLEK itself is its provider's to give. Reports before version 3 do not say which
product they come from; those that may be are tried in turn.

Source: AMD 57230 (VCEK certificate and KDS interface) revision 1.00, chapter 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from bentoml_secure.attestation.endorsements.cache import Get
from bentoml_secure.attestation.endorsements.fetching import (
    Endorsement,
    NotFoundError,
    Response,
)
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.amd_certificates import (
    find_amd_endorsements,
)
from bentoml_secure.attestation.tees.az_evidence import parse_az_evidence
from bentoml_secure.attestation.tees.snp_report import (
    TURIN_CHIP_ID_BYTES,
    Product,
    Report,
    SigningKey,
    Tcb,
    parse_report,
)
from bentoml_secure.errors import ConfigurationError, MalformedInputError

AMD_SERVICE = "https://kdsintf.amd.com"

_PARAMETERS = {
    "fmc": "fmcSPL",
    "bootloader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}
_BEFORE_TURIN = (Product.MILAN, Product.GENOA)


def fetch_amd(evidence: Evidence, get: Get, service: str) -> tuple[Endorsement, ...]:
    """Fetch the certificates of a SEV-SNP report; see ``fetch_endorsements``."""
    return _fetch_for(parse_report(evidence.blob), get, service)


def fetch_azure(evidence: Evidence, get: Get, service: str) -> tuple[Endorsement, ...]:
    """Fetch those of the report in an Azure VM's evidence; see ``fetch_endorsements``.

    Its VCEK may stand in the evidence already; its authorities do not.
    """
    report = parse_az_evidence(evidence.blob).hcl_report.report
    return _fetch_for(report, get, service)


def _fetch_for(report: Report, get: Get, service: str) -> tuple[Endorsement, ...]:
    products = _products(report)
    if report.signing_key is SigningKey.VLEK:
        return _chain_of("vlek", products, get, service)
    if report.chip_id_masked:
        raise ConfigurationError(
            "SEV-SNP report: the chip's id is masked, so its certificate cannot be"
            " asked for.",
            remedy="Ask the machine's operator for the VCEK.",
        )
    product, vcek = _first(
        products, lambda product: get(_vcek_url(service, product, report), _leaf_expiry)
    )
    leaf = Endorsement(name="vcek.der", data=vcek.body)
    return (leaf, *_chain_of("vcek", (product,), get, service))


def _products(report: Report) -> Sequence[Product]:
    if report.cpuid is None:
        return (Product.TURIN,) if report.looks_like_turin else _BEFORE_TURIN
    if report.cpuid.product is None:
        raise ConfigurationError(
            f"SEV-SNP report: AMD's service has no product for {report.cpuid}."
        )
    return (report.cpuid.product,)


def _vcek_url(service: str, product: Product, report: Report) -> str:
    turin = product is Product.TURIN
    chip_id = report.chip_id[:TURIN_CHIP_ID_BYTES] if turin else report.chip_id
    levels = Tcb.from_bytes(report.reported_tcb, turin=turin).to_json()
    query = "&".join(f"{_PARAMETERS[part]}={level}" for part, level in levels.items())
    return f"{service}/vcek/v1/{product}/{chip_id.hex()}?{query}"


def _chain_of(
    key: str, products: Sequence[Product], get: Get, service: str
) -> tuple[Endorsement, ...]:
    if len(products) > 1:
        raise ConfigurationError(
            "SEV-SNP report: it does not say which product it is from, and its key is"
            " its provider's, so AMD cannot tell.",
            remedy="Ask the provider for the certificates.",
        )
    base = f"{service}/{key}/v1/{products[0]}"
    chain = get(f"{base}/cert_chain", _chain_expiry)
    crl = get(f"{base}/crl", _crl_expiry)
    return (
        Endorsement(name="cert_chain.pem", data=chain.body),
        Endorsement(name="crl.der", data=crl.body),
    )


def _first(
    products: Sequence[Product], ask: Callable[[Product], Response]
) -> tuple[Product, Response]:
    """Return the first product whose service answers."""
    for product in products[:-1]:
        try:
            return product, ask(product)
        except NotFoundError:
            continue
    return products[-1], ask(products[-1])


def _leaf_expiry(response: Response) -> datetime:
    leaves = find_amd_endorsements((response.body,)).leaves
    if len(leaves) != 1:
        raise MalformedInputError("AMD's answer holds no key certificate of a chip")
    return leaves[0].not_after


def _chain_expiry(response: Response) -> datetime:
    found = find_amd_endorsements((response.body,))
    if (len(found.roots), len(found.signers)) != (1, 1):
        raise MalformedInputError(
            f"AMD's answer holds {len(found.roots)} roots and {len(found.signers)}"
            " other authorities, want one of each"
        )
    return min(issuer.not_after for issuer in (*found.roots, *found.signers))


def _crl_expiry(response: Response) -> datetime:
    crls = find_amd_endorsements((response.body,)).crls
    expires_at = crls[0].not_after if len(crls) == 1 else None
    if expires_at is None:
        raise MalformedInputError(
            "AMD's answer holds no revocation list that says when it ends"
        )
    return expires_at
