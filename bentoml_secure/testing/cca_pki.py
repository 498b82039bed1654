"""CCA tokens of a development platform: real form, no hardware.

A CPAK has no subject to say so in; the token's implementation id spells it instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bentoml_secure.attestation.dev_chain import MARK
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.cca_tokens import HASHES, PLATFORM, REALM
from bentoml_secure.attestation.tees.cose import ALGORITHM, ES384, SIGN1
from bentoml_secure.testing.ec_pki import sign_raw

IMPLEMENTATION_ID = MARK.encode().ljust(32, b"\0")
_COSE_KEY_EC2, _COSE_P384 = 2, 2
_CONTENT_FORMAT = 263
"""application/eat+cwt."""


class CcaPki:
    """A development platform with its CPAK, and a realm with its RAK."""

    kind = "cca"

    def __init__(self) -> None:
        self.cpak = ec.generate_private_key(ec.SECP384R1())
        self.rak = ec.generate_private_key(ec.SECP384R1())

    @property
    def jwk(self) -> bytes:
        """The CPAK's public half as a JSON Web Key."""
        numbers = self.cpak.public_key().public_numbers()
        x, y = (
            base64.urlsafe_b64encode(number.to_bytes(48, "big")).decode().rstrip("=")
            for number in (numbers.x, numbers.y)
        )
        return json.dumps({"kty": "EC", "crv": "P-384", "x": x, "y": y}).encode()

    @property
    def pem(self) -> bytes:
        """The CPAK's public half as PEM."""
        return self.cpak.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )

    def cose_key(self) -> bytes:
        """Return the RAK as tokens since profile 1.0.0 have it."""
        numbers = self.rak.public_key().public_numbers()
        return cbor2.dumps(
            {
                1: _COSE_KEY_EC2,
                -1: _COSE_P384,
                -2: numbers.x.to_bytes(48, "big"),
                -3: numbers.y.to_bytes(48, "big"),
            }
        )

    def raw_key(self) -> bytes:
        """Return the RAK as the oldest tokens have it: a point."""
        return self.rak.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )

    def attest(self, report_data: bytes) -> Evidence:
        """Return a token over 64 bytes."""
        return self.token(realm={10: report_data})

    def token(
        self,
        *,
        platform: Mapping[int, Any] | None = None,
        realm: Mapping[int, Any] | None = None,
    ) -> Evidence:
        """Return a token whose two halves are bound and signed.

        Args:
            platform: Claims to replace; None leaves one out.
            realm: Likewise. The platform names whatever key stands here.
        """
        realm_claims = self.realm_claims(realm or {})
        key, name = realm_claims.get(44237, b""), realm_claims.get(44240, "sha-256")
        digest = hashlib.new(HASHES.get(name, "sha256"), key).digest()
        platform_claims = self.platform_claims({10: digest, **(platform or {})})
        return self.wrapped(
            self.sign(self.cpak, platform_claims), self.sign(self.rak, realm_claims)
        )

    def realm_claims(self, claims: Mapping[int, Any]) -> dict[int, Any]:
        """Return the claims of a good realm, some replaced or, by None, left out."""
        return _present(
            {
                10: bytes(range(64)),
                265: "tag:arm.com,2023:realm#1.0.0",
                44235: bytes(64),
                44236: "sha-256",
                44237: self.cose_key(),
                44238: b"\1" * 32,
                44239: [bytes([index] * 32) for index in range(4)],
                44240: "sha-256",
                **claims,
            }
        )

    def platform_claims(self, claims: Mapping[int, Any]) -> dict[int, Any]:
        """Return the claims of a good platform, some replaced or left out."""
        component = {1: "BL", 2: b"\2" * 32, 4: "1.0", 5: b"\3" * 32, 6: "sha-256"}
        return _present(
            {
                10: bytes(32),
                256: b"\1" + bytes(range(32)),
                265: "tag:arm.com,2023:cca_platform#1.0.0",
                2395: 0x3000,
                2396: IMPLEMENTATION_ID,
                2399: [component, {2: b"\4" * 32, 5: b"\3" * 32}],
                2401: b"\xcf",
                2402: "sha-256",
                **claims,
            }
        )

    def sign(
        self,
        key: ec.EllipticCurvePrivateKey,
        claims: Mapping[int, Any],
        *,
        header: Mapping[int, Any] | None = None,
    ) -> bytes:
        """Return claims as a COSE_Sign1 by any key, under any header."""
        protected = cbor2.dumps({ALGORITHM: ES384} if header is None else header)
        payload = cbor2.dumps(dict(claims))
        signature = sign_raw(key, cbor2.dumps(["Signature1", protected, b"", payload]))
        message = [protected, {}, payload, signature]
        return cbor2.dumps(cbor2.CBORTag(SIGN1, message))

    def wrapped(
        self, platform: bytes, realm: bytes, *, tag: int = 399, records: bool = False
    ) -> Evidence:
        """Return two tokens as one.

        Args:
            platform: Signed token.
            realm: Signed token.
            tag: Of the map.
            records: Whether each stands in a record of a message wrapper.
        """
        members: dict[int, Any] = {PLATFORM: platform, REALM: realm}
        if records:
            members = {name: [_CONTENT_FORMAT, members[name]] for name in members}
        blob = cbor2.dumps(cbor2.CBORTag(tag, members))
        return Evidence(kind=self.kind, blob=blob)


def _present(claims: Mapping[int, Any]) -> dict[int, Any]:
    return {label: value for label, value in claims.items() if value is not None}
