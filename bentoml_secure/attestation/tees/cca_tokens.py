"""The two tokens of Arm CCA: what a platform and a realm say, parsed and not believed.

A CCA token is a CBOR map under a tag: 44234 the platform's token, 44241 the realm's,
each a COSE_Sign1 of an entity attestation token. Under tag 399 both are byte strings;
under 907 they are records of a conceptual message wrapper, [263, bytes]. The tag and
the wrapper are not signed, so either form is read under either tag.

The realm's token names the key that signs it (RAK), and the platform's token names the
hash of that key as its challenge.

Source: draft-ffm-rats-cca-token-00 to -03; Arm DEN0137 (Realm Management Monitor) 1.0,
section A7.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from bentoml_secure.attestation.tees.cbor import Tagged, parse_cbor
from bentoml_secure.attestation.tees.cose import Sign1, parse_sign1
from bentoml_secure.errors import MalformedInputError

TAGS = frozenset({399, 907})
PLATFORM, REALM = 44234, 44241
MAX_TOKEN_BYTES = 32 * 1024
CHALLENGE_BYTES = 64
INSTANCE_BYTES = 33
MAX_COMPONENTS = 64
HASHES: Mapping[str, str] = {
    "sha-256": "sha256",
    "sha-384": "sha384",
    "sha-512": "sha512",
}
"""Names of IANA's registry, as the tokens spell them, to Python's."""

_HASH_LENGTHS = (32, 48, 64)
_COLLECTION_TYPE = "__cmwc_t"
_RECORD_LENGTHS = (2, 3)
_REMS = 4
_CURVES: Mapping[int, tuple[ec.EllipticCurve, int]] = {
    1: (ec.SECP256R1(), 32),
    2: (ec.SECP384R1(), 48),
    3: (ec.SECP521R1(), 66),
}
"""COSE's numbers of curves, to the curve and the bytes of a coordinate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One piece of the platform's firmware."""

    kind: str | None
    measurement: bytes
    signer: bytes
    version: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the component as claims show it."""
        return {
            "type": self.kind,
            "measurement": self.measurement.hex(),
            "signer": self.signer.hex(),
            "version": self.version,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformClaims:
    """What the platform's token says."""

    profile: str
    challenge: bytes
    implementation_id: bytes
    instance_id: bytes
    config: bytes
    lifecycle: int
    components: tuple[Component, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmClaims:
    """What the realm's token says.

    Attributes:
        profile: None in the oldest tokens.
        key_bytes: The RAK as it stands in the token, which is what is hashed.
        key: The same, parsed.
        key_hash: Name of the hash, as in ``HASHES``.
    """

    profile: str | None
    challenge: bytes
    personalization_value: bytes
    rim: bytes
    rems: tuple[bytes, ...]
    key_bytes: bytes
    key: ec.EllipticCurvePublicKey
    key_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A CCA token as received; nothing is verified by parsing it."""

    platform: Sign1
    platform_claims: PlatformClaims
    realm: Sign1
    realm_claims: RealmClaims


def parse_token(data: bytes) -> Token:
    """Parse a CCA token and both tokens in it; zero bytes may follow.

    Raises:
        MalformedInputError: Another form, or a claim missing or out of its form.
    """
    what = "CCA token"
    if len(data) > MAX_TOKEN_BYTES:
        raise MalformedInputError(
            f"{what}: got {len(data)} bytes, want at most {MAX_TOKEN_BYTES}"
        )
    outer = parse_cbor(data, what=what, tags=TAGS, padded=True)
    if not isinstance(outer, Tagged) or not isinstance(outer.value, dict):
        raise MalformedInputError(f"{what}: want a map under tag 399 or 907")
    members = dict(outer.value)
    members.pop(_COLLECTION_TYPE, None)
    if members.keys() != {PLATFORM, REALM}:
        raise MalformedInputError(f"{what}: want exactly {PLATFORM} and {REALM}")
    platform = parse_sign1(_member(members[PLATFORM]), what="CCA platform token")
    realm = parse_sign1(_member(members[REALM]), what="CCA realm token")
    return Token(
        platform=platform,
        platform_claims=_parse_platform(platform.payload),
        realm=realm,
        realm_claims=_parse_realm(realm.payload),
    )


def _member(value: object) -> bytes:
    """Return a token's bytes, out of a message wrapper's record if it is in one."""
    if isinstance(value, list) and len(value) in _RECORD_LENGTHS:
        value = value[1]
    if not isinstance(value, bytes):
        raise MalformedInputError("CCA token: want each token as bytes or as a record")
    return value


class _Claims:
    """The claims of one token, read by number."""

    def __init__(self, payload: bytes, what: str) -> None:
        claims = parse_cbor(payload, what=what)
        if not isinstance(claims, dict):
            raise MalformedInputError(f"{what}: want a map of claims")
        self._claims = claims
        self._what = what

    def get(self, label: int, name: str) -> Any:
        if label not in self._claims:
            raise self.refusal(name, f"claim {label} is missing")
        return self._claims[label]

    def take(self, label: int, name: str, lengths: tuple[int, ...]) -> bytes:
        value = self.get(label, name)
        if not isinstance(value, bytes) or len(value) not in lengths:
            raise self.refusal(name, f"want {' or '.join(map(str, lengths))} bytes")
        return value

    def text(self, label: int, name: str) -> str:
        value = self.get(label, name)
        if not isinstance(value, str) or not 0 < len(value) <= 256:
            raise self.refusal(name, "want text of 1 to 256 characters")
        return value

    def optional_text(self, label: int, name: str) -> str | None:
        return self.text(label, name) if label in self._claims else None

    def refusal(self, name: str, why: str) -> MalformedInputError:
        return MalformedInputError(f"{self._what} {name}: {why}")


def _parse_platform(payload: bytes) -> PlatformClaims:
    claims = _Claims(payload, "CCA platform token")
    lifecycle = claims.get(2395, "lifecycle")
    if type(lifecycle) is not int or not 0 <= lifecycle <= 0xFFFF:
        raise claims.refusal("lifecycle", "want 0 to 65535")
    config = claims.get(2401, "config")
    if not isinstance(config, bytes):
        raise claims.refusal("config", "want bytes")
    components = claims.get(2399, "software components")
    if not isinstance(components, list) or not 0 < len(components) <= MAX_COMPONENTS:
        raise claims.refusal("software components", f"want 1 to {MAX_COMPONENTS}")
    return PlatformClaims(
        profile=claims.text(265, "profile"),
        challenge=claims.take(10, "challenge", _HASH_LENGTHS),
        implementation_id=claims.take(2396, "implementation id", (32,)),
        instance_id=claims.take(256, "instance id", (INSTANCE_BYTES,)),
        config=config,
        lifecycle=lifecycle,
        components=tuple(map(_parse_component, components)),
    )


def _parse_component(value: object) -> Component:
    what = "CCA software component"
    if not isinstance(value, dict):
        raise MalformedInputError(f"{what}: want a map")
    for name, label in (("measurement", 2), ("signer", 5)):
        digest = value.get(label)
        if not isinstance(digest, bytes) or len(digest) not in _HASH_LENGTHS:
            raise MalformedInputError(f"{what} {name}: want 32, 48 or 64 bytes")
    for label in (1, 4):
        if not isinstance(value.get(label), str | None):
            raise MalformedInputError(f"{what}: want text as {label}")
    return Component(
        kind=value.get(1), measurement=value[2], signer=value[5], version=value.get(4)
    )


def _parse_realm(payload: bytes) -> RealmClaims:
    claims = _Claims(payload, "CCA realm token")
    rems = claims.get(44239, "extensible measurements")
    if not isinstance(rems, list) or len(rems) != _REMS:
        raise claims.refusal("extensible measurements", f"want {_REMS}")
    for rem in rems:
        if not isinstance(rem, bytes) or len(rem) not in _HASH_LENGTHS:
            raise claims.refusal("extensible measurements", "want 32, 48 or 64 bytes")
    key_hash = claims.text(44240, "hash of the key")
    if key_hash not in HASHES:
        raise claims.refusal("hash of the key", f"want one of {', '.join(HASHES)}")
    key_bytes = claims.get(44237, "public key")
    if not isinstance(key_bytes, bytes):
        raise claims.refusal("public key", "want bytes")
    return RealmClaims(
        profile=claims.optional_text(265, "profile"),
        challenge=claims.take(10, "challenge", (CHALLENGE_BYTES,)),
        personalization_value=claims.take(44235, "personalization value", (64,)),
        rim=claims.take(44238, "initial measurement", _HASH_LENGTHS),
        rems=tuple(rems),
        key_bytes=key_bytes,
        key=_parse_key(key_bytes),
        key_hash=key_hash,
    )


def _parse_key(data: bytes) -> ec.EllipticCurvePublicKey:
    """Parse a RAK: a point as it is, as the oldest tokens have it, or a COSE_Key."""
    what = "CCA realm token public key"
    for curve, size in _CURVES.values():
        if len(data) == 1 + 2 * size and data[0] == 0x04:
            return point(data[1 : 1 + size], data[1 + size :], curve, what=what)
    key = parse_cbor(data, what=what)
    number = key.get(-1) if isinstance(key, dict) and key.get(1) == 2 else None
    if type(number) is not int or number not in _CURVES:
        raise MalformedInputError(f"{what}: want a COSE_Key of P-256, P-384 or P-521")
    curve, size = _CURVES[number]
    x, y = key.get(-2), key.get(-3)
    if not isinstance(x, bytes) or not isinstance(y, bytes):
        raise MalformedInputError(f"{what}: want both coordinates as bytes")
    if len(x) != size or len(y) != size:
        raise MalformedInputError(f"{what}: want coordinates of {size} bytes")
    return point(x, y, curve, what=what)


def point(
    x: bytes, y: bytes, curve: ec.EllipticCurve, *, what: str
) -> ec.EllipticCurvePublicKey:
    """Return the public key at a point.

    Args:
        x: Coordinate, big-endian.
        y: Coordinate, big-endian.
        curve: Which the point has to lie on.
        what: The key's name, for the error.

    Raises:
        MalformedInputError: It does not lie on the curve.
    """
    try:
        return ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve
        ).public_key()
    except ValueError as error:
        raise MalformedInputError(f"{what}: no point of {curve.name}") from error
