"""Results to make tokens of, and tokens made with nothing but a signature."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.ear_appraisal import AcceptedResult, ExpectedResult
from bentoml_secure.attestation.evidence import (
    AttestationResult,
    UncheckedField,
    VerifiedClaims,
)
from bentoml_secure.attestation.result_keys import (
    TokenKey,
    load_public_keys,
    load_signing_key,
)
from bentoml_secure.attestation.results import issue_result, verify_result
from bentoml_secure.digest import Digest

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
NAMES: dict[str, Any] = {
    "issuer": "https://verifier.example",
    "audience": "pipeline",
    "nonce": "ab" * 32,
}
TDX_TABLE: dict[str, Any] = {
    "mr_td": ["ab" * 48],
    "rtmr": {"1": ["01" * 48], "2": ["02" * 48]},
}
POLICY = AppraisalPolicy.from_table(
    {"version": 1, "max_age_seconds": 600, "allow": ["tdx"], "tdx": TDX_TABLE}
)


@dataclass(frozen=True)
class Pair:
    """A private key with both of its forms."""

    private: EllipticCurvePrivateKey | Ed25519PrivateKey

    @property
    def pem(self) -> bytes:
        form = PrivateFormat.PKCS8
        return self.private.private_bytes(Encoding.PEM, form, NoEncryption())

    @property
    def public_pem(self) -> bytes:
        form = PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(Encoding.PEM, form)

    @property
    def signing(self) -> TokenKey:
        return load_signing_key(self.pem)

    @property
    def pinned(self) -> tuple[TokenKey, ...]:
        return load_public_keys(self.public_pem)

    def sign(self, message: bytes) -> bytes:
        if isinstance(self.private, Ed25519PrivateKey):
            return self.private.sign(message)
        r, s = decode_dss_signature(self.private.sign(message, ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


EC = Pair(generate_private_key(SECP256R1()))
ED = Pair(Ed25519PrivateKey.generate())
ALGORITHMS = {"ES256": EC, "EdDSA": ED}


def tdx_result(
    *unchecked: str, kind: str = "tdx", simulated: bool = False, **claims: Any
) -> AttestationResult:
    """Return what an appraisal returns, with some checks left out."""
    return AttestationResult(
        claims=VerifiedClaims(
            kind=kind,
            report_data=bytes(range(64)),
            claims={"status": "UpToDate", "advisories": [], **claims},
            platform_id="ppid-1",
            vendor="intel",
            root=Digest("sha256:" + "a" * 64),
            issued_at=None,
            expires_at=None,
            simulated=simulated,
        ),
        unchecked=tuple(
            UncheckedField(field=field, reason="a test") for field in unchecked
        ),
        verified_at=NOW,
        expires_at=NOW + timedelta(seconds=600),
    )


def issue(
    result: AttestationResult | None = None,
    policy: AppraisalPolicy = POLICY,
    pair: Pair = EC,
    **changes: Any,
) -> str:
    arguments = {**NAMES, "token_id": "token-1", "now": NOW, **changes}
    return issue_result(result or tdx_result(), policy, pair.signing, **arguments)


def expected(**changes: Any) -> ExpectedResult:
    return ExpectedResult(**{**NAMES, **changes})


def verify(
    token: str, pair: Pair = EC, *, now: datetime = NOW, **changes: Any
) -> AcceptedResult:
    return verify_result(token, pair.pinned, expected(**changes), now=now)


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a token's header and claims."""
    header, payload, _ = token.split(".")
    return decode(header), decode(payload)


def signed(header: object, claims: object, pair: Pair = EC) -> str:
    """Sign a header and claims as they are; bytes stand for themselves."""
    texts = [
        encode(each if isinstance(each, bytes) else json.dumps(each).encode())
        for each in (header, claims)
    ]
    message = ".".join(texts)
    return f"{message}.{encode(pair.sign(message.encode()))}"


def changed(token: str, pair: Pair = EC, **claims: Any) -> str:
    """Sign a token's claims again with some of them replaced, or left out by None."""
    header, document = parts(token)
    document |= claims
    kept = {name: value for name, value in document.items() if value is not None}
    return signed(header, kept, pair)


def reheaded(token: str, pair: Pair = EC, **fields: Any) -> str:
    """Sign a token again with some fields of its header replaced, or left out."""
    header, document = parts(token)
    header |= fields
    kept = {name: value for name, value in header.items() if value is not None}
    return signed(kept, document, pair)
