"""Evidence of Intel SGX: quotes of an enclave, version 3.

The evidence is the quote's bytes, the endorsement DCAP collateral. The table of a
policy, besides the keys of ``dcap_policy``:

    [sgx]
    mr_enclave = ["<hex>"]            # 32 bytes; or, and also beside it,
    mr_signer = ["<hex>"]             #   32 bytes: whose signing key, and with it
    isv_prod_id = 1                   #   which of the signer's products
    min_isv_svn = 3                   #   not older than this
    config_id = ["<hex>"]             # optional; 64 bytes

No key opens an enclave to a debugger: such evidence is refused.

Source: Intel SGX ECDSA QuoteLibReference, appendix A.4; Intel SDM volume 3D, table
36-21.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bentoml_secure.attestation.checks import compare
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.reference_values import (
    References,
    Unchecked,
    compare_reference,
    read_references,
    references_to_json,
    require_known,
)
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.attestation.tees.dcap import (
    INTEL_ROOT,
    require_kind,
    verify_quote,
)
from bentoml_secure.attestation.tees.dcap_policy import (
    PLATFORM_KEYS,
    PlatformPolicy,
    read_integer,
    read_platform_policy,
    unchecked,
)
from bentoml_secure.attestation.tees.dcap_quote import Quote, TeeType, parse_quote
from bentoml_secure.digest import Digest
from bentoml_secure.errors import ConfigurationError

KIND = "sgx"

_FIELDS: Mapping[str, slice] = {
    "cpu_svn": slice(0, 16),
    "misc_select": slice(16, 20),
    "isv_ext_prod_id": slice(32, 48),
    "attributes": slice(48, 64),
    "mr_enclave": slice(64, 96),
    "mr_signer": slice(128, 160),
    "config_id": slice(192, 256),
    "isv_family_id": slice(304, 320),
    "report_data": slice(320, 384),
}
_INTEGERS: Mapping[str, slice] = {
    "isv_prod_id": slice(256, 258),
    "isv_svn": slice(258, 260),
    "config_svn": slice(260, 262),
}
_REFERENCE_BYTES: Mapping[str, int] = {
    "mr_enclave": 32,
    "mr_signer": 32,
    "config_id": 64,
}
_MAX_UINT16 = 2**16 - 1
_DEBUG = 1 << 1
_NONE_LISTED = "the policy lists none"


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxPolicy:
    """Reference values for SGX evidence.

    Attributes:
        platform: For what the enclave runs on.
        mr_enclave: Measurements of the enclave.
        mr_signer: Digests of the keys that may have signed it.
        isv_prod_id: The signer's product; there with a list of signers.
        min_isv_svn: That product's lowest version; likewise.
        config_id: What the host said the enclave's configuration is.
    """

    platform: PlatformPolicy
    mr_enclave: References
    mr_signer: References
    isv_prod_id: int | None
    min_isv_svn: int | None
    config_id: References

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between SGX claims and this policy."""
        got = claims.claims
        attributes = int.from_bytes(bytes.fromhex(got["attributes"]), "little")
        return (
            self.platform.compare(claims)
            # The library refuses it too, for now.
            + compare(
                "debug",
                not attributes & _DEBUG,
                got=got["attributes"],
                want="bit 1 clear",
            )
            + compare_reference("mr_enclave", got["mr_enclave"], self.mr_enclave)
            + compare_reference("mr_signer", got["mr_signer"], self.mr_signer)
            + self._compare_product(got)
            + compare_reference("config_id", got["config_id"], self.config_id)
        )

    def _compare_product(self, got: Mapping[str, Any]) -> Comparison:
        if self.isv_prod_id is None or self.min_isv_svn is None:
            return unchecked("isv_prod_id", "the policy lists no signer") + unchecked(
                "isv_svn", "the policy lists no signer"
            )
        return compare(
            "isv_prod_id",
            got["isv_prod_id"] == self.isv_prod_id,
            got=got["isv_prod_id"],
            want=self.isv_prod_id,
        ) + compare(
            "isv_svn",
            got["isv_svn"] >= self.min_isv_svn,
            got=got["isv_svn"],
            want=f"at least {self.min_isv_svn}",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the table of the policy."""
        document = {
            **self.platform.to_json(),
            **{
                name: references_to_json(getattr(self, name))
                for name in _REFERENCE_BYTES
            },
        }
        if self.isv_prod_id is not None:
            document["isv_prod_id"] = self.isv_prod_id
            document["min_isv_svn"] = self.min_isv_svn
        return document


class Sgx:
    """Verifier of SGX quotes and reader of their policy table.

    Args:
        root: Digest of the root that must verify. Any but Intel's makes the claims
            ``simulated``; the table of kinds makes none but Intel's.
    """

    def __init__(self, *, root: Digest = INTEL_ROOT) -> None:
        self._root = root

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what an enclave's quote says, if collateral and root vouch for it.

        Args:
            evidence: From outside, of kind ``sgx``.
            endorsements: DCAP collateral, and perhaps those of other kinds.
            now: Judges every date.

        Raises:
            MalformedInputError: A quote or collateral that does not parse.
            MissingEndorsementError: No collateral.
            AttestationError: A check that does not hold.
        """
        require_kind(evidence, KIND)
        quote = parse_quote(evidence.blob, TeeType.SGX)
        verified = verify_quote(
            quote, TeeType.SGX, endorsements, root=self._root, now=now
        )
        return verified.to_claims(KIND, _report(quote))

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return a quote's fields, unverified.

        Raises:
            MalformedInputError: A quote that does not parse.
        """
        quote = parse_quote(evidence.blob, TeeType.SGX)
        return {"quote_version": quote.version, **_report(quote)}

    def parse_policy(self, table: Mapping[str, Any]) -> SgxPolicy:
        """Return the reference values that the table ``[sgx]`` spells.

        Raises:
            ConfigurationError: A key unknown or of another type; neither
                ``mr_enclave`` nor ``mr_signer``; a signer without product and version.
        """
        what = f"appraisal policy [{KIND}]"
        product = {"isv_prod_id", "min_isv_svn"}
        require_known(
            table, PLATFORM_KEYS | _REFERENCE_BYTES.keys() | product, what=what
        )
        if not table.keys() & {"mr_enclave", "mr_signer"}:
            raise ConfigurationError(
                f"{what}: neither mr_enclave nor mr_signer, so any enclave would do.",
                remedy="List the enclaves accepted, or say"
                ' mr_enclave = { unchecked = "why" }.',
            )
        references = {name: _read_hex(table, name, what) for name in _REFERENCE_BYTES}
        by_signer = not isinstance(references["mr_signer"], Unchecked)
        if table.keys() & product != (product if by_signer else set()):
            raise ConfigurationError(
                f"{what}: isv_prod_id and min_isv_svn go with a list of mr_signer,"
                " and only with that: a signer has products of all kinds."
            )
        return SgxPolicy(
            platform=read_platform_policy(table, what),
            isv_prod_id=read_integer(table, "isv_prod_id", what, maximum=_MAX_UINT16),
            min_isv_svn=read_integer(table, "min_isv_svn", what, maximum=_MAX_UINT16),
            **references,
        )


def _report(quote: Quote) -> dict[str, Any]:
    body = quote.body
    return {
        **{name: body[part].hex() for name, part in _FIELDS.items()},
        **{
            name: int.from_bytes(body[part], "little")
            for name, part in _INTEGERS.items()
        },
    }


def _read_hex(table: Mapping[str, Any], name: str, what: str) -> References:
    if name not in table:
        return Unchecked(_NONE_LISTED)
    length = _REFERENCE_BYTES[name]
    return read_references(
        table[name],
        what=f"{what} {name}",
        pattern=re.compile(f"[0-9a-f]{{{2 * length}}}"),
        form=f"{length} bytes as lower-case hex",
    )
