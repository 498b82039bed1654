"""Evidence of Intel TDX: quotes of a trust domain (TD), versions 4 and 5.

The evidence is the quote's bytes, the endorsement DCAP collateral. The table of a
policy, besides the keys of ``dcap_policy``:

    [tdx]
    mr_td = ["<hex>"]                 # required; 48 bytes, as are all but xfam
    rtmr = { 1 = ["<hex>"], 2 = ["<hex>"] }   # what it runs; optional
    mr_config_id = ["<hex>"]          # optional, as are mr_owner, mr_owner_config,
    xfam = ["<hex>"]                  #   mr_seam and xfam (8 bytes)

No key opens a TD to a debugger, to profiling by the host, to migration or to service
TDs, or does without SEPT_VE_DISABLE: such evidence is refused.

Source: Intel TDX Module ABI Specification 348551-008US, tables 3.23 and 3.40; Intel TDX
DCAP Quoting Library API, appendix A.3.
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
    IndexedReferences,
    References,
    Unchecked,
    compare_reference,
    read_indexed,
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
    read_platform_policy,
)
from bentoml_secure.attestation.tees.dcap_quote import Quote, TeeType, parse_quote
from bentoml_secure.digest import Digest
from bentoml_secure.errors import ConfigurationError

KIND = "tdx"
RTMR_COUNT = 4

_FIELDS: Mapping[str, slice] = {
    "tee_tcb_svn": slice(0, 16),
    "mr_seam": slice(16, 64),
    "mr_signer_seam": slice(64, 112),
    "seam_attributes": slice(112, 120),
    "td_attributes": slice(120, 128),
    "xfam": slice(128, 136),
    "mr_td": slice(136, 184),
    "mr_config_id": slice(184, 232),
    "mr_owner": slice(232, 280),
    "mr_owner_config": slice(280, 328),
    "report_data": slice(520, 584),
}
_RTMR = slice(328, 520)
_FIELDS_15: Mapping[str, slice] = {
    "tee_tcb_svn2": slice(584, 600),
    "mr_service_td": slice(600, 648),
}
_FIELDS_15_EX: Mapping[str, slice] = {
    "td_id": slice(649, 681),
    "init_service_td_hash": slice(729, 777),
    "cur_service_td_hash": slice(829, 877),
}
_MEASUREMENT_BYTES = 48
_XFAM_BYTES = 8

_DEBUG = 1 << 0
_PROFILING = 0x70
_SERVTD_EXT = 1 << 17
_SEPT_VE_DISABLE = 1 << 28
_MIGRATABLE = 1 << 29
_RESERVED = sum(
    1 << bit for bit in (*range(1, 4), *range(7, 16), *range(23, 27), *range(32, 62))
)
_REFERENCES = ("mr_td", "mr_config_id", "mr_owner", "mr_owner_config", "mr_seam")
_NONE_LISTED = "the policy lists none"


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPolicy:
    """Reference values for TDX evidence.

    Attributes:
        platform: For what the TD runs on.
        mr_td: Measurements of the TD as it was built.
        rtmr: Of its four runtime registers, in order.
        mr_config_id: What the host said the TD's configuration is.
        mr_owner: What it said the TD's owner is.
        mr_owner_config: What it said the owner's configuration is.
        mr_seam: Measurements of the TDX module; those that Intel's collateral knows
            where this is unchecked.
        xfam: Extended features that the TD may use.
    """

    platform: PlatformPolicy
    mr_td: References
    rtmr: tuple[References, References, References, References]
    mr_config_id: References
    mr_owner: References
    mr_owner_config: References
    mr_seam: References
    xfam: References

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between TDX claims and this policy."""
        got, rtmr = claims.claims, claims.claims["rtmr"]
        return (
            self.platform.compare(claims)
            + _compare_attributes(got)
            + compare_reference("mr_td", got["mr_td"], self.mr_td)
            + compare_reference("rtmr.0", rtmr["0"], self.rtmr[0])
            + compare_reference("rtmr.1", rtmr["1"], self.rtmr[1])
            + compare_reference("rtmr.2", rtmr["2"], self.rtmr[2])
            + compare_reference("rtmr.3", rtmr["3"], self.rtmr[3])
            + compare_reference("mr_config_id", got["mr_config_id"], self.mr_config_id)
            + compare_reference("mr_owner", got["mr_owner"], self.mr_owner)
            + compare_reference(
                "mr_owner_config", got["mr_owner_config"], self.mr_owner_config
            )
            + compare_reference("mr_seam", got["mr_seam"], self.mr_seam)
            + compare_reference("xfam", got["xfam"], self.xfam)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the table of the policy."""
        return {
            **self.platform.to_json(),
            "rtmr": {
                str(index): references_to_json(references)
                for index, references in enumerate(self.rtmr)
            },
            **{
                name: references_to_json(getattr(self, name))
                for name in (*_REFERENCES, "xfam")
            },
        }


def _compare_attributes(got: Mapping[str, Any]) -> Comparison:
    """Compare what no policy may leave out. The library refuses it too, for now."""
    shown = got["td_attributes"]
    bits = int.from_bytes(bytes.fromhex(shown), "little")
    return (
        compare("debug", not bits & _DEBUG, got=shown, want="bit 0 clear")
        + compare(
            "td_attributes.profiling",
            not bits & _PROFILING,
            got=shown,
            want="bits 4 to 6 clear",
        )
        + compare(
            "td_attributes.reserved",
            not bits & _RESERVED,
            got=shown,
            want="reserved bits clear",
        )
        + compare(
            "td_attributes.migratable",
            not bits & _MIGRATABLE,
            got=shown,
            want="bit 29 clear",
        )
        + compare(
            "td_attributes.sept_ve_disable",
            bool(bits & _SEPT_VE_DISABLE),
            got=shown,
            want="bit 28 set",
        )
        + _compare_service_tds(got, bound=bool(bits & _SERVTD_EXT))
    )


def _compare_service_tds(got: Mapping[str, Any], *, bound: bool) -> Comparison:
    hashes = got["mr_service_td"] + got.get("cur_service_td_hash", "")
    return compare(
        "mr_service_td",
        not bound and not hashes.strip("0"),
        got=f"{hashes}, SERVTD_EXT {'set' if bound else 'clear'}",
        want="zero, no service TD bound",
    )


class Tdx:
    """Verifier of TDX quotes and reader of their policy table.

    Args:
        root: Digest of the root that must verify. Any but Intel's makes the claims
            ``simulated``; the table of kinds makes none but Intel's.
    """

    def __init__(self, *, root: Digest = INTEL_ROOT) -> None:
        self._root = root

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what a TD's quote says, if its collateral and the root vouch for it.

        Args:
            evidence: From outside, of kind ``tdx``.
            endorsements: DCAP collateral, and perhaps those of other kinds.
            now: Judges every date.

        Raises:
            MalformedInputError: A quote or collateral that does not parse.
            MissingEndorsementError: No collateral.
            AttestationError: A check that does not hold.
        """
        require_kind(evidence, KIND)
        quote = parse_quote(evidence.blob, TeeType.TDX)
        verified = verify_quote(
            quote, TeeType.TDX, endorsements, root=self._root, now=now
        )
        return verified.to_claims(KIND, _report(quote))

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return a quote's fields, unverified.

        Raises:
            MalformedInputError: A quote that does not parse.
        """
        quote = parse_quote(evidence.blob, TeeType.TDX)
        return {"quote_version": quote.version, **_report(quote)}

    def parse_policy(self, table: Mapping[str, Any]) -> TdxPolicy:
        """Return the reference values that the table ``[tdx]`` spells.

        Raises:
            ConfigurationError: A key unknown or of another type; no ``mr_td``.
        """
        what = f"appraisal policy [{KIND}]"
        require_known(table, PLATFORM_KEYS | {*_REFERENCES, "rtmr", "xfam"}, what=what)
        if "mr_td" not in table:
            raise ConfigurationError(
                f"{what}: mr_td is missing, so any TD would do.",
                remedy='List the TDs accepted, or say mr_td = { unchecked = "why" }.',
            )
        references = {
            name: _read_hex(table, name, what, _MEASUREMENT_BYTES)
            for name in _REFERENCES
        }
        return TdxPolicy(
            platform=read_platform_policy(table, what),
            rtmr=_read_rtmr(table, what),
            xfam=_read_hex(table, "xfam", what, _XFAM_BYTES),
            **references,
        )


def _report(quote: Quote) -> dict[str, Any]:
    body = quote.body
    registers = body[_RTMR]
    size = _MEASUREMENT_BYTES
    fields = dict(_FIELDS)
    for more in (_FIELDS_15, _FIELDS_15_EX):
        if len(body) >= max(part.stop for part in more.values()):
            fields |= more
    return {
        # A TD of TDX 1.0 has no service TDs.
        "mr_service_td": bytes(_MEASUREMENT_BYTES).hex(),
        **{name: body[part].hex() for name, part in fields.items()},
        "rtmr": {
            str(index): registers[index * size : (index + 1) * size].hex()
            for index in range(RTMR_COUNT)
        },
    }


def _read_rtmr(
    table: Mapping[str, Any], what: str
) -> tuple[References, References, References, References]:
    listed: IndexedReferences = {}
    if "rtmr" in table:
        listed = read_indexed(
            table["rtmr"],
            what=f"{what} rtmr",
            indexes=range(RTMR_COUNT),
            pattern=_hex(_MEASUREMENT_BYTES),
            form=f"{_MEASUREMENT_BYTES} bytes as lower-case hex",
        )
    if isinstance(listed, Unchecked):
        return listed, listed, listed, listed
    zero, one, two, three = (
        listed.get(index, Unchecked(_NONE_LISTED)) for index in range(RTMR_COUNT)
    )
    return zero, one, two, three


def _read_hex(
    table: Mapping[str, Any], name: str, what: str, length: int
) -> References:
    if name not in table:
        return Unchecked(_NONE_LISTED)
    return read_references(
        table[name],
        what=f"{what} {name}",
        pattern=_hex(length),
        form=f"{length} bytes as lower-case hex",
    )


def _hex(length: int) -> re.Pattern[str]:
    return re.compile(f"[0-9a-f]{{{2 * length}}}")
