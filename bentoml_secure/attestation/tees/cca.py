"""Arm CCA: a realm's token and its platform's, see ``cca_tokens``.

The platform's key (CPAK) comes among the endorsements and is its own trust anchor. A
policy lists accepted ones by digest as ``cpak``. Where it lists none, whoever brought
the endorsements vouches for the platform: on the command line that is the relying
party, and the result says so; evidence that came over a network is refused then
(``verification``).

The challenge is the realm's, 64 bytes. No time is signed.

Source: draft-ffm-rats-cca-token-00 to -03; Arm DEN0137 1.0, section A7.2.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from bentoml_secure.attestation.checks import compare, require, requiring
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.reference_values import (
    IndexedReferences,
    References,
    Unchecked,
    at_index,
    compare_reference,
    indexed_to_json,
    read_indexed,
    read_references,
    references_to_json,
    require_known,
)
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.attestation.tees.cca_keys import find_keys, key_digest
from bentoml_secure.attestation.tees.cca_tokens import HASHES, Token, parse_token
from bentoml_secure.attestation.tees.cose import ALGORITHM, Sign1
from bentoml_secure.attestation.tees.simulated import VENDOR as SIMULATED
from bentoml_secure.digest import Digest
from bentoml_secure.errors import (
    AttestationError,
    MissingEndorsementError,
)

KIND = "cca"
VENDOR = "arm"

EXAMPLE_KEYS = frozenset(
    {Digest("sha256:0928f896cb02326566530a62a1e36329a12d0a4a308f4fc81e8ff5560bca6bca")}
)
"""CPAKs whose private halves are published, for examples: nothing secret signs."""

SECURED = range(0x3000, 0x3100)
"""Life cycle states of a platform that nobody debugs."""

_LEGACY_PROFILE = "http://arm.com/CCA-SSD/1.0.0"
_REALM_1 = "tag:arm.com,2023:realm#1.0.0"
_PROFILES: Mapping[str, tuple[str | None, ...]] = {
    _LEGACY_PROFILE: (None, _REALM_1),
    "tag:arm.com,2023:cca_platform#1.0.0": (_REALM_1,),
    "tag:arm.com,2024:cca_platform#2.0.0": ("tag:arm.com,2024:realm#2.0.0",),
}
"""Profiles of platform tokens, to those of the realm tokens that they bind."""

_CONTENT_TYPE = 3
_HEX = r"[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}"
_MEASUREMENT = re.compile(_HEX)
_FORMS: Mapping[str, tuple[re.Pattern[str], str]] = {
    "rim": (_MEASUREMENT, "initial measurement in hex"),
    "personalization_value": (re.compile(r"[0-9a-f]{128}"), "64 bytes in hex"),
    "software": (_MEASUREMENT, "firmware measurement in hex"),
    "implementation_id": (re.compile(r"[0-9a-f]{64}"), "32 bytes in hex"),
    "cpak": (re.compile(r"sha256:[0-9a-f]{64}"), "digest of a CPAK, sha256:<hex>"),
}
_ABSENT = {
    "personalization_value": "the policy lists no personalization values",
    "software": "the policy lists no firmware measurements",
    "implementation_id": "the policy lists no implementations",
    "cpak": "the policy lists no CPAK: whoever brought the endorsements vouches for"
    " the platform",
}
_REMS = range(4)
_NO_REMS = Unchecked("the policy lists no extensible measurements")


@dataclass(frozen=True, slots=True, kw_only=True)
class CcaPolicy:
    """Reference values for a realm and its platform.

    Attributes:
        rim: Initial measurements.
        rem: Extensible measurements by index, 0 to 3.
        personalization_value: Of the realm.
        software: Measurements of the platform's firmware; each piece has to have one.
        implementation_id: Of the platform.
        cpak: Digests of platform keys.
    """

    rim: References
    rem: IndexedReferences
    personalization_value: References
    software: References
    implementation_id: References
    cpak: References

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between a realm's claims and this policy."""
        got = claims.claims
        lifecycle = got["lifecycle"]
        comparison = (
            compare(
                "lifecycle",
                lifecycle in SECURED,
                got=f"0x{lifecycle:04x}",
                want="a secured platform, 0x3000 to 0x30ff",
            )
            + compare_reference("cpak", claims.root, self.cpak)
            + compare_reference("rim", got["rim"], self.rim)
            + compare_reference(
                "personalization_value",
                got["personalization_value"],
                self.personalization_value,
            )
            + compare_reference(
                "implementation_id", got["implementation_id"], self.implementation_id
            )
            + self._compare_rems(got["rem"])
        )
        if isinstance(self.software, Unchecked):
            return comparison + compare_reference("software", "", self.software)
        for component in got["software"]:
            measurement = component["measurement"]
            comparison += compare_reference("software", measurement, self.software)
        return comparison

    def _compare_rems(self, rems: Sequence[str]) -> Comparison:
        if isinstance(self.rem, Unchecked):
            return compare_reference("rem", "", self.rem)
        comparison = Comparison()
        for index, references in self.rem.items():
            got = f"{index}:{rems[index]}"
            comparison += compare_reference("rem", got, at_index(index, references))
        return comparison

    def to_json(self) -> dict[str, Any]:
        """Return the table of the policy."""
        table: dict[str, Any] = {}
        for name in _FORMS:
            references: References = getattr(self, name)
            if references != _absent(name):
                table[name] = references_to_json(references)
        if self.rem != _NO_REMS:
            table["rem"] = indexed_to_json(self.rem)
        return table


class Cca:
    """Verifier of CCA tokens and reader of their policy table.

    Args:
        development_key: A CPAK of a development platform; what it signs is flagged as
            simulated, as is what published example keys sign.
    """

    def __init__(
        self, development_key: ec.EllipticCurvePublicKey | None = None
    ) -> None:
        own = {key_digest(development_key)} if development_key else set()
        self._no_hardware = EXAMPLE_KEYS | own

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what a realm and its platform say, if a given CPAK stands behind it.

        Args:
            evidence: From outside, of kind ``cca``; zero bytes may follow it.
            endorsements: From outside, the platform's CPAK among them.
            now: Not read: nothing in a token has dates.

        Raises:
            MalformedInputError: A token or a CPAK that does not parse.
            AttestationError: A signature or the binding of the two does not hold.
            MissingEndorsementError: No CPAK among the endorsements.
        """
        # 1. Both tokens, whole, before any signature.
        token = _parse(evidence)
        # 2. One of the given keys signed the platform's token.
        cpak = _require_platform(token, endorsements)
        # 3. The platform names the key that signs for the realm, and that key signed.
        _require_realm(token)
        # 4. Only now what they say.
        root = key_digest(cpak)
        simulated = root in self._no_hardware
        return VerifiedClaims(
            kind=KIND,
            report_data=token.realm_claims.challenge,
            claims=_claims(token),
            platform_id=token.platform_claims.instance_id.hex(),
            vendor=SIMULATED if simulated else VENDOR,
            root=root,
            issued_at=None,
            expires_at=None,
            simulated=simulated,
        )

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return both tokens' claims, unverified.

        Raises:
            MalformedInputError: A token that does not parse.
        """
        token = _parse(evidence)
        challenge = token.realm_claims.challenge.hex()
        return {"challenge": challenge, **_claims(token)}

    def parse_policy(self, table: Mapping[str, Any]) -> CcaPolicy:
        """Return the reference values that the table ``[cca]`` spells.

        Raises:
            ConfigurationError: A key unknown or of another form; no ``rim``.
        """
        what = f"appraisal policy [{KIND}]"
        require_known(table, frozenset({"rem", *_FORMS}), what=what)
        references = {
            name: _read(table, name, what=f"{what} {name}") for name in _FORMS
        }
        rem: IndexedReferences = _NO_REMS
        if "rem" in table:
            rem = read_indexed(
                table["rem"],
                what=f"{what} rem",
                indexes=_REMS,
                pattern=_MEASUREMENT,
                form="extensible measurement in hex",
            )
        return CcaPolicy(rem=rem, **references)


def _absent(name: str) -> Unchecked | None:
    return Unchecked(_ABSENT[name]) if name in _ABSENT else None


def _read(table: Mapping[str, Any], name: str, *, what: str) -> References:
    if name not in table and (absent := _absent(name)) is not None:
        return absent
    pattern, form = _FORMS[name]
    return read_references(table.get(name), what=what, pattern=pattern, form=form)


def _parse(evidence: Evidence) -> Token:
    if evidence.kind != KIND:
        raise AttestationError(f"evidence kind: got {evidence.kind}, want {KIND}")
    return parse_token(evidence.blob)


def _claims(token: Token) -> dict[str, Any]:
    platform, realm = token.platform_claims, token.realm_claims
    return {
        "rim": realm.rim.hex(),
        "rem": [rem.hex() for rem in realm.rems],
        "personalization_value": realm.personalization_value.hex(),
        "realm_profile": realm.profile,
        "platform_profile": platform.profile,
        "lifecycle": platform.lifecycle,
        "implementation_id": platform.implementation_id.hex(),
        "instance_id": platform.instance_id.hex(),
        "config": platform.config.hex(),
        "software": [component.to_json() for component in platform.components],
    }


def _require_platform(
    token: Token, endorsements: Sequence[bytes]
) -> ec.EllipticCurvePublicKey:
    platform, claims = token.platform, token.platform_claims
    keys = find_keys(endorsements)
    if not keys:
        raise MissingEndorsementError(
            "CCA token: no CPAK was given.",
            remedy="Give the platform's public key, as a JSON Web Key or PEM.",
        )
    require(
        "platform.header",
        platform.header.keys() <= {ALGORITHM, _CONTENT_TYPE},
        got=sorted(map(str, platform.header)),
        want="an algorithm and at most a content type",
    )
    require(
        "platform.profile",
        claims.profile in _PROFILES,
        got=claims.profile,
        want=" or ".join(_PROFILES),
    )
    signers = [key for key in keys if _signed(platform, key)]
    require(
        "platform.signature",
        bool(signers),
        got=f"a signature by none of {', '.join(map(key_digest, keys))}",
        want="the signature of a CPAK that was given",
    )
    return signers[0] if signers else keys[0]


def _signed(message: Sign1, key: ec.EllipticCurvePublicKey) -> bool:
    try:
        message.verify(key)
    except InvalidSignature:
        return False
    return True


def _require_realm(token: Token) -> None:
    realm, claims = token.realm, token.realm_claims
    require(
        "realm.header",
        realm.header.keys() <= {ALGORITHM, _CONTENT_TYPE},
        got=sorted(map(str, realm.header)),
        want="an algorithm and at most a content type",
    )
    profiles = _PROFILES.get(token.platform_claims.profile, ())
    require(
        "realm.profile",
        claims.profile in profiles,
        got=claims.profile,
        want=f"one that goes with {token.platform_claims.profile}",
    )
    named = hashlib.new(HASHES[claims.key_hash], claims.key_bytes).digest()
    require(
        "binding",
        hmac.compare_digest(named, token.platform_claims.challenge),
        got=f"the platform names the key {token.platform_claims.challenge.hex()}",
        want=named.hex(),
    )
    with requiring("realm.signature", InvalidSignature, want="the realm key's"):
        realm.verify(claims.key)
