"""Tokens of attestation results: the token, its header, its claims, key sets."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from joserfc.jwk import OKPKey

from bentoml_secure.attestation.ear import EAR_PROFILE, TRUSTEE_PROFILE
from bentoml_secure.attestation.ear_appraisal import ExpectedResult, appraise_claims
from bentoml_secure.attestation.ear_parsing import parse_claims
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.result_keys import (
    TokenKey,
    encode_base64url,
    load_key_set,
    load_public_keys,
    load_signing_key,
)
from bentoml_secure.attestation.results import verify_result
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import SecureError
from fuzz._same import require_same

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
_WHY = Unchecked("fuzzing")
_EXPECTED = ExpectedResult(
    issuer=_WHY, audience=_WHY, nonce=_WHY, allow_warning=True, allow_simulated=True
)
_KEY = load_signing_key(OKPKey.generate_key("Ed25519").as_pem(private=True))


def _claims(profile: str, dot: str) -> dict[str, Any]:
    status, vector = f"ear{dot}status", f"ear{dot}trustworthiness"
    vector += "-vector" if dot == "." else "_vector"
    verifier = "ear.verifier-id" if dot == "." else "ear_verifier_id"
    cpu = {status: "affirming", vector: {"hardware": 2, "executables": 3}}
    return {
        "eat_profile": profile,
        "iss": "issuer",
        "aud": ["audience"],
        "eat_nonce": "nonce-01",
        "iat": int(NOW.timestamp()),
        "exp": int((NOW + timedelta(minutes=5)).timestamp()),
        verifier: {"developer": "d", "build": "b"},
        "submods": {"cpu0": cpu},
    }


def seeds() -> list[bytes]:
    """Return claims in both spellings, a token that nobody signed, a key set."""
    documents = [_claims(EAR_PROFILE, "_"), _claims(TRUSTEE_PROFILE, ".")]
    claims = [json.dumps(document).encode() for document in documents]
    header = json.dumps({"alg": "EdDSA", "kid": _KEY.key_id, "typ": "eat+jwt"})
    texts = [header.encode(), claims[0], bytes(64)]
    token = ".".join(map(encode_base64url, texts)).encode()
    keys = json.dumps({"keys": [{**_KEY.public, "kid": "a"}]}).encode()
    return [*claims, token, keys]


def one(data: bytes) -> None:
    """Read bytes as claims, as a token and as files of keys."""
    with suppress(SecureError):
        document = parse_json(data, what="token claims", max_bytes=1 << 20)
        appraise_claims(parse_claims(document), _EXPECTED, now=NOW).to_json()
    with suppress(SecureError):
        verify_result(data.decode("latin-1"), (_KEY,), _EXPECTED, now=NOW)
        # Nothing here signs: whatever verifies was made up.
        require_same(data, "a token that the key signed")
    for load in (load_key_set, load_public_keys):
        with suppress(SecureError):
            keys: tuple[TokenKey, ...] = load(data)
            require_same([key.signs for key in keys], [False] * len(keys))
