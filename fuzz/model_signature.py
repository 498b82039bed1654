"""OpenSSF model signatures, and secrets from a Trustee broker."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe
from joserfc.jwk import ECKey

from bentoml_secure.errors import SecureError
from bentoml_secure.keys.model_signing import (
    BUNDLE_TYPE,
    PREDICATE_TYPE,
    parse_signature,
    public_key_hint,
)
from bentoml_secure.keys.trustee import (
    CONTENT_ALGORITHM,
    KEY_ALGORITHM,
    decrypt_resource,
)
from bentoml_secure.statements import INTOTO_TYPE, intoto_statement

_OWNER = ec.generate_private_key(ec.SECP256R1())
_PUBLIC = _OWNER.public_key()
_MINE = ECKey.generate_key("P-256", private=True)


def seeds() -> list[bytes]:
    """Return a signature over two files, and a secret."""
    resources = [
        {"name": name, "algorithm": "sha256", "digest": "00" * 32}
        for name in ("plan.json", "segment.onnx")
    ]
    predicate = {"serialization": {"method": "files"}, "resources": resources}
    payload = json.dumps(intoto_statement([], PREDICATE_TYPE, predicate)).encode()
    signed = f"DSSEv1 {len(INTOTO_TYPE)} {INTOTO_TYPE} {len(payload)} ".encode()
    signature = _OWNER.sign(signed + payload, ec.ECDSA(hashes.SHA256()))
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": public_key_hint(_PUBLIC)}},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": INTOTO_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        },
    }
    header = {"alg": KEY_ALGORITHM, "enc": CONTENT_ALGORITHM}
    algorithms = [KEY_ALGORITHM, CONTENT_ALGORITHM]
    parts = jwe.encrypt_compact(header, b"secret", _MINE, algorithms).split(".")
    names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
    secret = dict(zip(names, parts, strict=True))
    return [json.dumps(bundle).encode(), json.dumps(secret).encode()]


def one(data: bytes) -> None:
    """Read bytes as either."""
    with suppress(SecureError):
        parse_signature(data, _PUBLIC)
    with suppress(SecureError):
        decrypt_resource(data, _MINE)
