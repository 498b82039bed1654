"""TDX quotes with no TDX behind them: the real format under a development root.

Intel's whole chain, made from a development root's key: quotes, certificates and
collateral that the verifier of real ones verifies, at another root. The kind is
``simulated-tdx``: no policy that allows ``tdx`` accepts it, only one that names this
kind with its root. Registered by entry point, as a third party's kind would be.

    [simulated-tdx]
    roots = ["sha256:<hex>"]          # what ``root_digest`` returns
    mr_td = ["<hex>"]                 # and the rest as in [tdx]
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bentoml_secure.attestation.attesters import DEV_ROOT, SERVICE
from bentoml_secure.attestation.attesters.simulated import SIMULATED_PLATFORM
from bentoml_secure.attestation.dev_chain import MARK
from bentoml_secure.attestation.dev_root import load_dev_root
from bentoml_secure.attestation.evidence import (
    Endorsements,
    Evidence,
    VerifiedClaims,
)
from bentoml_secure.attestation.reference_values import compare_reference, read_list
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.attestation.tees.dcap_collateral import (
    find_collateral,
    pem_certificates,
)
from bentoml_secure.attestation.tees.tdx import Tdx, TdxPolicy
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import (
    AttestationError,
    ConfigurationError,
    MissingEndorsementError,
)
from bentoml_secure.testing.dcap_pki import DcapPki
from bentoml_secure.testing.dcap_platform import Platform, measurement

KIND = "simulated-tdx"
_REFRESH = timedelta(hours=1)
_SECRET_LABEL = b"bentoml-secure/simulated-tdx/v1"
logger = logging.getLogger(__name__)


def _pki(folder: Path, platform: Platform, now: datetime) -> DcapPki:
    key, root = load_dev_root(folder, now=now)
    since = x509.load_der_x509_certificate(root).not_valid_before_utc
    return DcapPki(now=since, platform=platform, secret=_secret(key))


def _secret(key: Ed25519PrivateKey) -> bytes:
    return hashlib.sha256(_SECRET_LABEL + key.private_bytes_raw()).digest()


def root_digest(folder: Path, *, now: datetime) -> Digest:
    """Return the digest of the simulated Intel root of a development root.

    Args:
        folder: What ``bentoml-secure dev-root`` made.
        now: The root must be within its dates.

    Raises:
        ConfigurationError: No usable development root there.
    """
    return _pki(folder, Platform(), now).root_digest


def mr_td() -> str:
    """Return the measurement that every simulated TD has, in hex."""
    return measurement("TD").hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedTdxPolicy:
    """Reference values of TDX, and the roots that stand in for Intel's."""

    roots: tuple[str, ...]
    tdx: TdxPolicy

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between simulated claims and this policy."""
        found = compare_reference("root", claims.root, self.roots)
        return found + self.tdx.compare(claims)

    def to_json(self) -> dict[str, Any]:
        """Return the table of the policy."""
        return {"roots": list(self.roots), **self.tdx.to_json()}


class SimulatedTdx:
    """The verifier of TDX quotes, at whichever development root signed them."""

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what a quote says; arguments and errors as ``Tdx.verify``.

        Raises:
            AttestationError: Also where the root is not marked as a simulation's.
        """
        if evidence.kind != KIND:
            raise AttestationError(f"evidence kind: got {evidence.kind}, want {KIND}")
        quote = Evidence(kind="tdx", blob=evidence.blob)
        claims = Tdx(root=_marked_root(endorsements)).verify(
            quote, endorsements, now=now
        )
        return replace(claims, kind=KIND, simulated=True)

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return a quote's fields, unverified."""
        return Tdx().describe(Evidence(kind="tdx", blob=evidence.blob))

    def parse_policy(self, table: Mapping[str, Any]) -> SimulatedTdxPolicy:
        """Return the reference values that the table ``[simulated-tdx]`` spells.

        Raises:
            ConfigurationError: No root, or a key that ``[tdx]`` does not have.
        """
        rest = {name: value for name, value in table.items() if name != "roots"}
        return SimulatedTdxPolicy(
            roots=read_list(
                table.get("roots"),
                what=f"appraisal policy [{KIND}] roots",
                pattern=re.compile(r"sha256:[0-9a-f]{64}"),
                form="digest of a root, sha256:<hex>",
            ),
            tdx=Tdx().parse_policy(rest),
        )


def _marked_root(endorsements: Sequence[bytes]) -> Digest:
    for collateral in find_collateral(endorsements):
        for der in reversed(pem_certificates(collateral.chains.values())):
            try:
                certificate = x509.load_der_x509_certificate(der)
                subject = certificate.subject.rfc4514_string()
                is_root = certificate.subject == certificate.issuer
            except (ValueError, TypeError) as error:
                raise AttestationError(f"{KIND}: a chain does not parse") from error
            if is_root and MARK in subject:
                return digest_bytes(der)
    raise MissingEndorsementError(
        f"{KIND} evidence: got no collateral under a root marked {MARK!r}"
    )


class SimulatedTdxAttester:
    """Makes quotes of a TD that is not there.

    Args:
        folder: Development root.
        machine: What the platform's id follows from.
        clock: The time, with a time zone.
    """

    def __init__(
        self, folder: Path, *, machine: str, clock: Callable[[], datetime]
    ) -> None:
        digest = hashlib.sha256(machine.encode()).digest()
        platform = Platform(ppid=digest[:16], instance=digest[16:])
        self._clock = clock
        self._pki = _pki(folder, platform, clock())
        self._collateral: tuple[datetime, bytes] | None = None

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, clock: Callable[[], datetime]
    ) -> SimulatedTdxAttester:
        """Make one under the development root that the environment names.

        Raises:
            ConfigurationError: None is named, or it is not usable.
        """
        folder = environ.get(DEV_ROOT)
        if not folder:
            raise ConfigurationError(
                f"{DEV_ROOT} is not set: there is no development root.",
                remedy=f"Run `bentoml-secure dev-root DIR` and set {DEV_ROOT}=DIR.",
            )
        machine = environ.get(SIMULATED_PLATFORM) or socket.gethostname()
        attester = cls(
            Path(os.path.abspath(folder)),
            machine=machine.replace("{service}", environ.get(SERVICE, "")),
            clock=clock,
        )
        logger.warning("%s: TDX quotes under the development root in %s", MARK, folder)
        return attester

    @property
    def kind(self) -> str:
        """``simulated-tdx``."""
        return KIND

    @property
    def endorsements(self) -> Endorsements:
        """Collateral, dated anew within its month."""
        now = self._clock()
        if self._collateral is None or now - self._collateral[0] > _REFRESH:
            self._pki.now = now
            self._collateral = (now, self._pki.collateral("TDX"))
        return (self._collateral[1],)

    def attest(self, report_data: bytes) -> Evidence:
        """Return a quote over 64 bytes."""
        return Evidence(kind=KIND, blob=self._pki.tdx_quote(report_data))
