"""Fetching what evidence is judged with: on request, never by a verifier.

Intel and AMD publish certificates, revocation lists and what they know of each
platform. ``fetch_endorsements`` asks for those that one piece of evidence needs; the
network comes in as an argument, and what comes back is not trusted: verifiers check
every signature on it.

    fetching   the network: https, bounded, no redirects
    cache      answers by address, until they expire
    intel      Provisioning Certification Service, or a caching service that speaks it
    amd        Key Distribution Service
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bentoml_secure.attestation.endorsements.amd import (
    AMD_SERVICE,
    fetch_amd,
    fetch_azure,
)
from bentoml_secure.attestation.endorsements.cache import Get
from bentoml_secure.attestation.endorsements.fetching import Endorsement
from bentoml_secure.attestation.endorsements.intel import (
    INTEL_SERVICE,
    fetch_sgx,
    fetch_tdx,
)
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.errors import ConfigurationError

_Fetcher = Callable[[Evidence, Get, str], tuple[Endorsement, ...]]
_FETCHERS: Mapping[str, tuple[_Fetcher, str]] = {
    "az-snp-vtpm": (fetch_azure, AMD_SERVICE),
    "sev-snp": (fetch_amd, AMD_SERVICE),
    "sgx": (fetch_sgx, INTEL_SERVICE),
    "tdx": (fetch_tdx, INTEL_SERVICE),
}

KINDS = tuple(sorted(_FETCHERS))
"""Kinds whose endorsements can be fetched."""


def fetch_endorsements(
    evidence: Evidence, get: Get, *, service: str | None = None
) -> tuple[Endorsement, ...]:
    """Fetch the endorsements of one piece of evidence.

    Args:
        evidence: From outside, of one of ``KINDS``; says which platform to ask about.
        get: ``cache.CachedFetch``, or what stands in for it.
        service: Address of the vendor's service, or of one that speaks like it.

    Raises:
        ConfigurationError: A kind without such a service; evidence that says what
            cannot be asked for.
        MalformedInputError: Evidence or an answer that does not parse.
        UnavailableError: The service does not answer, or does not have it.
    """
    if evidence.kind not in _FETCHERS:
        raise ConfigurationError(
            f"endorsements of {evidence.kind:.40}: nothing to fetch;"
            f" there is for {', '.join(KINDS)}."
        )
    fetcher, default = _FETCHERS[evidence.kind]
    return fetcher(evidence, get, (service or default).rstrip("/"))
