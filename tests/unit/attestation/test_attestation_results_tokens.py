"""Tokens that are not what a pinned key signed: headers, algorithms, encodings."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bentoml_secure.attestation.result_keys import (
    load_key_set,
    load_public_keys,
    load_signing_key,
)
from bentoml_secure.attestation.results import (
    MAX_HEADER_CHARACTERS,
    MAX_TOKEN_CHARACTERS,
    verify_result,
)
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
)
from tests.unit.attestation.result_tokens import (
    EC,
    ED,
    NOW,
    Pair,
    changed,
    encode,
    expected,
    issue,
    parts,
    reheaded,
    signed,
    verify,
)

OTHER = Pair(Ed25519PrivateKey.generate())
TOKEN = issue()


def refused(token: str, pair: Pair = EC) -> str:
    """Return the name of the check that refuses a token."""
    with pytest.raises(CheckFailedError, match="got") as caught:
        verify(token, pair)
    (finding,) = caught.value.findings
    return finding.field


def jwk_of(pair: Pair) -> dict[str, Any]:
    (key,) = pair.pinned
    return dict(key.public)


class TestAlgorithm:
    def test_none(self) -> None:
        header, payload, signature = TOKEN.split(".")
        head, _ = parts(TOKEN)
        for spelling in ("none", "None", "NONE", ""):
            header = encode(json.dumps({**head, "alg": spelling}).encode())
            assert refused(f"{header}.{payload}.{signature}") == "header.alg"

    def test_none_and_no_signature(self) -> None:
        header, payload, _ = TOKEN.split(".")
        header = encode(b'{"alg":"none"}')
        with pytest.raises(MalformedInputError, match="signature: got 0 bytes"):
            verify(f"{header}.{payload}.")

    @pytest.mark.parametrize("algorithm", ["HS256", "HS512"])
    def test_a_mac_with_the_public_key(self, algorithm: str) -> None:
        head, claims = parts(TOKEN)
        texts = [
            encode(json.dumps(each).encode())
            for each in ({**head, "alg": algorithm}, claims)
        ]
        message = ".".join(texts)
        (key,) = EC.pinned
        for secret in (EC.public_pem, json.dumps(dict(key.public)).encode()):
            tag = hmac.digest(secret, message.encode(), algorithm.replace("HS", "sha"))
            # As long as a signature of this key is.
            token = f"{message}.{encode(tag.ljust(64, bytes(1)))}"
            assert refused(token) == "header.alg"

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES384", "RS256", "PS256", None])
    def test_another_than_the_key_is_for(self, algorithm: str | None) -> None:
        assert refused(reheaded(TOKEN, alg=algorithm)) == "header.alg"

    def test_one_key_s_with_the_other_s_name(self) -> None:
        head, claims = parts(issue(pair=ED))
        token = signed({**head, "alg": "ES256"}, claims, ED)
        assert refused(token, ED) == "header.alg"

    def test_the_newer_name_of_eddsa(self) -> None:
        token = reheaded(issue(pair=ED), ED, alg="Ed25519")
        assert verify(token, ED).claims.issuer == "https://verifier.example"


class TestKey:
    def test_a_name_that_is_not_pinned(self) -> None:
        assert refused(reheaded(TOKEN, kid="other")) == "header.kid"
        assert refused(issue(pair=ED)) == "header.kid"

    def test_no_name_where_one_key_is_pinned(self) -> None:
        assert verify(reheaded(TOKEN, kid=None)).claims.token_id == "token-1"

    def test_no_name_where_several_are(self) -> None:
        keys = (*EC.pinned, *ED.pinned)
        with pytest.raises(CheckFailedError, match=r"header\.kid: got none"):
            verify_result(reheaded(TOKEN, kid=None), keys, expected(), now=NOW)

    def test_one_of_several_by_its_name(self) -> None:
        keys = (*ED.pinned, *EC.pinned)
        found = verify_result(TOKEN, keys, expected(), now=NOW)
        assert found.claims.token_id == "token-1"

    def test_a_key_set_s_own_name(self) -> None:
        jwk = {**jwk_of(EC), "kid": "2026-03", "use": "sig", "alg": "ES256"}
        keys = load_key_set(json.dumps({"keys": [jwk]}).encode())
        for token in (TOKEN, reheaded(TOKEN, kid="2026-03")):
            assert verify_result(token, keys, expected(), now=NOW).claims.submods
        with pytest.raises(CheckFailedError, match=r"header\.kid"):
            verify_result(reheaded(TOKEN, kid="2026-04"), keys, expected(), now=NOW)

    def test_another_key_s_signature(self) -> None:
        (key,) = ED.pinned
        header, claims = parts(issue(pair=ED))
        assert header["kid"] == key.key_id
        assert refused(signed(header, claims, OTHER), ED) == "signature"

    def test_none_pinned(self) -> None:
        with pytest.raises(ConfigurationError, match="no key is given"):
            verify_result(TOKEN, (), expected(), now=NOW)

    @pytest.mark.parametrize(
        "field",
        [
            {"jku": "https://attacker.example/keys"},
            {"x5u": "https://attacker.example/chain"},
            {"x5c": ["AAAA"]},
            {"x5t#S256": "AAAA"},
            {"crit": ["exp"], "exp": 1},
            {"b64": False},
            {"cty": "JWT"},
            {"zip": "DEF"},
        ],
        ids=lambda field: next(iter(field)),
    )
    def test_fields_that_lead_elsewhere(self, field: dict[str, Any]) -> None:
        assert refused(reheaded(TOKEN, **field)) == "header.fields"

    def test_a_key_in_the_header_changes_nothing(self) -> None:
        token = reheaded(TOKEN, jwk=jwk_of(EC))
        assert verify(token).claims.token_id == "token-1"

    def test_another_key_in_the_header(self) -> None:
        # Signed by the pinned key all the same: only this check refuses it.
        other = jwk_of(EC) | {"y": encode(bytes(32))}
        for jwk in (other, jwk_of(ED), {**jwk_of(EC), "d": "AA"}, {}, "text", 5):
            assert refused(reheaded(TOKEN, jwk=jwk)) == "header.jwk"
        for text in (5, "!", "A" * 65):
            jwk = jwk_of(EC) | {"x": text}
            assert refused(reheaded(TOKEN, jwk=jwk)) == "header.jwk"

    def test_leading_zeros_may_be_left_out(self) -> None:
        (key,) = EC.pinned
        x = base64.urlsafe_b64decode(key.public["x"] + "=")
        assert key.has_public_members({**key.public, "x": encode(b"\0" + x)})
        assert not key.has_public_members({**key.public, "x": encode(x[1:])})

    def test_other_types(self) -> None:
        for other in ("at+jwt", "dpop+jwt", "JOSE"):
            assert refused(reheaded(TOKEN, typ=other)) == "header.typ"
        for kind in ("JWT", "EAT+JWT", None):
            assert verify(reheaded(TOKEN, typ=kind)).claims.token_id == "token-1"


class TestForm:
    def test_every_bit_of_the_claims_counts(self) -> None:
        header, payload, signature = TOKEN.split(".")
        for at in range(0, len(payload), 97):
            letter = "A" if payload[at] != "A" else "B"
            hurt = f"{header}.{payload[:at]}{letter}{payload[at + 1 :]}.{signature}"
            with pytest.raises((CheckFailedError, MalformedInputError)) as caught:
                verify(hurt)
            assert "signature" in str(caught.value) or "base64url" in str(caught.value)

    def test_a_signature_of_other_claims(self) -> None:
        signature = TOKEN.split(".")[2]
        header, payload, _ = changed(TOKEN, iss="someone").split(".")
        assert refused(f"{header}.{payload}.{signature}") == "signature"

    def test_a_signature_of_zeros(self) -> None:
        header, payload, _ = TOKEN.split(".")
        assert refused(f"{header}.{payload}.{encode(bytes(64))}") == "signature"

    @pytest.mark.parametrize(
        ("token", "match"),
        [
            ("", "got 1 parts"),
            ("a.b", "got 2 parts"),
            (TOKEN + ".", "got 4 parts"),
            ("x" * (MAX_TOKEN_CHARACTERS + 1), "want at most"),
            (f"{'A' * (MAX_HEADER_CHARACTERS + 1)}..", "token header: want at most"),
            (TOKEN + "=", "not base64url"),
            (TOKEN + "\n", "not base64url"),
            (TOKEN[:-1], "base64url"),
            (" " + TOKEN, "not base64url"),
            (TOKEN.replace("_", "/").replace("-", "+") + "+", "not base64url"),
        ],
    )
    def test_what_is_no_token(self, token: str, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(token)

    def test_one_spelling_of_base64url(self) -> None:
        header, payload, signature = TOKEN.split(".")
        # 64 bytes are 86 characters; the last has four bits to spare.
        spare = chr(ord(signature[-1]) + 1)
        with pytest.raises(MalformedInputError, match="canonical base64url"):
            verify(f"{header}.{payload}.{signature[:-1]}{spare}")

    @pytest.mark.parametrize(
        ("header", "match"),
        [
            (b"[]", "want an object"),
            (b"{", "not valid JSON"),
            (b"\xff", "not valid JSON"),
            (b'{"alg":"ES256","alg":"none"}', "stands twice"),
            (b'{"alg":5}', "header alg: want a text"),
            (b'{"alg":"ES256","kid":[]}', "header kid: want a text"),
            (b'{"alg":"ES256","typ":{}}', "header typ: want a text"),
        ],
    )
    def test_headers(self, header: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(signed(header, parts(TOKEN)[1]))

    @pytest.mark.parametrize(
        ("claims", "match"),
        [
            (b"[]", "want an object"),
            (b"", "not valid JSON"),
            (b'{"iss":"a","iss":"b"}', "stands twice"),
            (b'{"submods":{"cpu0":{"a":1,"a":2}}}', "stands twice"),
            (b'{"exp":NaN}', "NaN is not JSON"),
            (b"[" * 5000, "not valid JSON|nested deeper"),
        ],
    )
    def test_claims(self, claims: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(signed(parts(TOKEN)[0], claims))


class TestKeyFiles:
    def test_thumbprint(self) -> None:
        # RFC 8037 appendix A.3.
        jwk = {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        }
        (key,) = load_key_set(json.dumps({"keys": [jwk]}).encode())
        assert key.key_id == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"

    def test_several_in_one_file(self) -> None:
        keys = load_public_keys(b"text\n" + EC.public_pem + ED.public_pem)
        assert [key.curve for key in keys] == ["P-256", "Ed25519"]
        assert not any(key.signs for key in keys)

    def test_a_key_is_not_shown(self) -> None:
        assert "PRIVATE" not in repr(EC.signing)

    def test_keys_of_other_uses_are_passed_over(self) -> None:
        others = [
            {"kty": "RSA", "n": "AA", "e": "AQAB"},
            {"kty": "EC", "crv": "P-521"},
            {"kty": "OKP", "crv": "P-256", "x": "AA"},
            {**jwk_of(ED), "use": "enc"},
            {"kty": "EC", "crv": ["P-256"]},
        ]
        data = json.dumps({"keys": [*others, jwk_of(EC)]}).encode()
        (key,) = load_key_set(data)
        assert key.curve == "P-256"

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"kty": "RSA"}, "holds no key"),
            ({"d": "AA"}, "private or secret"),
            ({"k": "AA"}, "private or secret"),
            ({"alg": "ES384"}, "for 'ES384'"),
            ({"alg": "none"}, "for 'none'"),
            ({"kid": ""}, "kid is ''"),
            ({"kid": 5}, "kid is 5"),
            ({"x": 5}, "not base64url"),
            ({"x": "AA"}, "got 1 bytes, want 32"),
            ({"y": encode(bytes(32))}, "a key of P-256"),
        ],
    )
    def test_key_sets_that_are_refused(
        self, change: dict[str, Any], match: str
    ) -> None:
        data = json.dumps({"keys": [jwk_of(EC) | change]}).encode()
        with pytest.raises(ConfigurationError, match=match):
            load_key_set(data)

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"", "not valid JSON"),
            (b"[]", "under keys"),
            (b'{"keys":{}}', "under keys"),
            (b'{"keys":[]}', "holds no key"),
            (b'{"keys":[5]}', "no object"),
            (b'{"keys":[],"keys":[]}', "stands twice"),
            (json.dumps({"keys": [{}] * 17}).encode(), "under keys"),
            (b" " * 70_000, "want at most"),
        ],
    )
    def test_what_is_no_key_set(self, data: bytes, match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            load_key_set(data)

    def test_two_keys_of_one_name(self) -> None:
        pair = [{**jwk_of(EC), "kid": "a"}, {**jwk_of(ED), "kid": "a"}]
        with pytest.raises(ConfigurationError, match="one name"):
            load_key_set(json.dumps({"keys": pair}).encode())
        with pytest.raises(ConfigurationError, match="one name"):
            load_public_keys(EC.public_pem * 2)

    @pytest.mark.parametrize(
        ("pem", "match"),
        [
            (b"", "got 0 PEM blocks"),
            (EC.pem, "holds a private key"),
            (EC.public_pem * 17, "got 17 PEM blocks"),
            (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no key"),
            (b"x" * 70_000, "want at most"),
        ],
    )
    def test_public_keys_that_are_refused(self, pem: bytes, match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            load_public_keys(pem)

    def test_private_keys_that_are_refused(self) -> None:
        form = PrivateFormat.PKCS8
        locked = BestAvailableEncryption(b"x")
        for private in (generate_private_key(SECP384R1()), X25519PrivateKey.generate()):
            pem = private.private_bytes(Encoding.PEM, form, NoEncryption())
            with pytest.raises(ConfigurationError, match="another kind"):
                load_signing_key(pem)
            public = private.public_key().public_bytes(
                Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
            )
            with pytest.raises(ConfigurationError, match="another kind"):
                load_public_keys(public)
        for pem in (
            ED.private.private_bytes(Encoding.PEM, form, locked),
            ED.public_pem,
            b"",
        ):
            with pytest.raises(ConfigurationError, match="not an unencrypted PEM"):
                load_signing_key(pem)
        with pytest.raises(ConfigurationError, match="want at most"):
            load_signing_key(b"x" * 70_000)


def test_an_equal_name_is_no_equal_key() -> None:
    # Names do not decide: a key set may call any key by another's thumbprint.
    (key,) = EC.pinned
    jwk = {**jwk_of(OTHER), "kid": key.key_id}
    keys = load_key_set(json.dumps({"keys": [jwk]}).encode())
    with pytest.raises(CheckFailedError, match=r"header\.alg"):
        verify_result(TOKEN, keys, expected(), now=NOW)
