"""DCAP collateral from Intel's Provisioning Certification Service, version 4.

    {service}/tdx/certification/v4/tcb?fmspc=..        {"tcbInfo": .., "signature": ..}
    {service}/tdx/certification/v4/qe/identity         {"enclaveIdentity": .., ..}
    {service}/sgx/certification/v4/pckcrl?ca=..        revocations of platforms
    https://certificates.trustedservices.intel.com/..  revocations of the root's
    {service}/sgx/certification/v4/rootcacrl           the same, of a caching service

For SGX the first two stand under ``/sgx``. The chain that signed an answer stands in a
header of it, URL-encoded. Revocation lists come as DER, PEM or hex, by service.

Source: Intel SGX and TDX Provisioning Certification Service API, version 4; Intel
Provisioning Certificate Caching Service, version 4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bentoml_secure.attestation.endorsements.cache import Get
from bentoml_secure.attestation.endorsements.fetching import Endorsement, Response
from bentoml_secure.attestation.evidence import (
    MAX_ENDORSEMENT_BYTES,
    Evidence,
    parse_seconds,
)
from bentoml_secure.attestation.tees.dcap_quote import TeeType, parse_quote
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import ConfigurationError, MalformedInputError

INTEL_SERVICE = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

_SGX_EXTENSIONS = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_FMSPC = bytes.fromhex("060a2a864886f84d010d01040406")
"""DER of the identifier 1.2.840.113741.1.13.1.4 and the head of six octets."""

_FMSPC_BYTES = 6
_CHAIN_HEADERS = {
    # Version 3 of the service and caches of it write the second.
    "tcb": ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"),
    "identity": ("sgx-enclave-identity-issuer-chain",),
    "crl": ("sgx-pck-crl-issuer-chain",),
}
_PEM = re.compile(rb"\s*-----BEGIN X509 CRL-----")
_HEX = re.compile(rb"\s*(?:[0-9A-Fa-f]{2})+\s*")
_UNPARSABLE = (ValueError, TypeError, x509.DuplicateExtension, x509.InvalidVersion)


def fetch_tdx(evidence: Evidence, get: Get, service: str) -> tuple[Endorsement, ...]:
    """Fetch the collateral of a TDX quote; see ``fetch_endorsements``."""
    return _fetch_collateral(evidence, TeeType.TDX, get, service)


def fetch_sgx(evidence: Evidence, get: Get, service: str) -> tuple[Endorsement, ...]:
    """Fetch the collateral of an SGX quote; see ``fetch_endorsements``."""
    return _fetch_collateral(evidence, TeeType.SGX, get, service)


def _fetch_collateral(
    evidence: Evidence, tee: TeeType, get: Get, service: str
) -> tuple[Endorsement, ...]:
    fmspc, authority = _platform(evidence, tee)
    base = f"{service}/{tee.name.lower()}/certification/v4"
    sgx = f"{service}/sgx/certification/v4"
    is_intel = service == INTEL_SERVICE
    root_crl_url = INTEL_ROOT_CRL if is_intel else f"{sgx}/rootcacrl"

    tcb = get(f"{base}/tcb?fmspc={fmspc}", lambda r: _next_update(r, "tcbInfo"))
    identity = get(f"{base}/qe/identity", lambda r: _next_update(r, "enclaveIdentity"))
    crl = get(f"{sgx}/pckcrl?ca={authority}&encoding=der", _crl_expiry)
    root_crl = get(root_crl_url, _crl_expiry)

    tcb_info, tcb_signature = _signed_part(tcb, "tcbInfo")
    qe_identity, qe_signature = _signed_part(identity, "enclaveIdentity")
    collateral = {
        "pck_crl_issuer_chain": _chain(crl, "crl"),
        "root_ca_crl": _crl_der(root_crl).hex(),
        "pck_crl": _crl_der(crl).hex(),
        "tcb_info_issuer_chain": _chain(tcb, "tcb"),
        "tcb_info": tcb_info,
        "tcb_info_signature": tcb_signature,
        "qe_identity_issuer_chain": _chain(identity, "identity"),
        "qe_identity": qe_identity,
        "qe_identity_signature": qe_signature,
    }
    data = json.dumps(collateral, indent=2).encode() + b"\n"
    return (Endorsement(name="collateral.json", data=data),)


def _platform(evidence: Evidence, tee: TeeType) -> tuple[str, str]:
    """Return the platform model and the authority that a quote's certificate names."""
    quote = parse_quote(evidence.blob, tee)
    if quote.pck_chain is None:
        raise ConfigurationError(
            f"{tee.name} quote: it does not carry its platform's certificate"
            f" (certification data of type {quote.certification_type}), so which"
            " collateral it needs is not known.",
            remedy="Have the platform quote with its certificate chain, or ask its"
            " operator for the collateral.",
        )
    what = f"{tee.name} quote's platform certificate"
    try:
        leaf = x509.load_pem_x509_certificate(quote.pck_chain)
        extension = leaf.extensions.get_extension_for_oid(_SGX_EXTENSIONS).value
        names = leaf.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (*_UNPARSABLE, x509.ExtensionNotFound) as error:
        raise MalformedInputError(f"{what} does not parse: {error}") from error
    issuer = str(names[0].value) if names else ""
    raw = getattr(extension, "value", b"")
    before, found, after = raw.partition(_FMSPC)
    if not found or len(after) < _FMSPC_BYTES or _FMSPC in before + after:
        raise MalformedInputError(f"{what}: it names no platform model (FMSPC)")
    for authority in ("platform", "processor"):
        if authority in issuer.lower():
            return after[:_FMSPC_BYTES].hex().upper(), authority
    raise MalformedInputError(
        f"{what}: issued by {issuer!r:.80}, want the platform or processor authority"
    )


def _signed_part(response: Response, name: str) -> tuple[str, str]:
    """Return the document in an answer, as it was signed, and its signature in hex."""
    document, _ = _parse_answer(response, name)
    text = response.body.decode()
    # What is signed is the text between the name and the signature, spaces and all.
    start = text.index("{", text.index(f'"{name}"'))
    end = json.JSONDecoder().raw_decode(text, start)[1]
    signature = document.get("signature")
    if not isinstance(signature, str) or not re.fullmatch(
        r"[0-9A-Fa-f]{128}", signature
    ):
        raise MalformedInputError(f"{name}: want a signature of 128 hex digits")
    return text[start:end], signature


def _parse_answer(
    response: Response, name: str
) -> tuple[Mapping[str, object], Mapping[str, object]]:
    document = parse_json(response.body, what=name, max_bytes=MAX_ENDORSEMENT_BYTES)
    inner = document.get(name) if isinstance(document, dict) else None
    if not isinstance(inner, dict) or next(iter(document)) != name:
        raise MalformedInputError(f"{name}: the answer does not begin with that object")
    return document, inner


def _next_update(response: Response, name: str) -> datetime:
    _, inner = _parse_answer(response, name)
    _signed_part(response, name)
    return parse_seconds(inner.get("nextUpdate"), what=f"{name} nextUpdate")


def _crl_der(response: Response) -> bytes:
    return _load_crl(response)[0]


def _crl_expiry(response: Response) -> datetime:
    return _load_crl(response)[1]


def _load_crl(response: Response) -> tuple[bytes, datetime]:
    body = response.body
    if _HEX.fullmatch(body):
        body = bytes.fromhex(body.decode("ascii"))
    try:
        if _PEM.match(body):
            crl = x509.load_pem_x509_crl(body)
        else:
            crl = x509.load_der_x509_crl(body)
        der, expires_at = crl.public_bytes(Encoding.DER), crl.next_update_utc
    except _UNPARSABLE as error:
        raise MalformedInputError(f"revocation list does not parse: {error}") from error
    if expires_at is None:
        raise MalformedInputError("revocation list: it does not say when it ends")
    return der, expires_at


def _chain(response: Response, kind: str) -> str:
    names = _CHAIN_HEADERS[kind]
    for name in names:
        if chain := response.headers.get(name):
            return unquote(chain)
    raise MalformedInputError(f"answer without its issuer chain: no header {names[0]}")
