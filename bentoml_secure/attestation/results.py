"""Attestation results as signed tokens, for who does not run this package.

A token is a JWT whose claims are an EAR (``ear``). Rules of its signature:

    the key decides       a P-256 key is ES256, an Ed25519 key EdDSA; the header's
                          algorithm must be its key's, it chooses nothing
    keys are pinned       nothing in a header leads to a key: jku, x5u, x5c, crit and
                          whatever else is not known are refused, a jwk has to be the
                          pinned key
    one reading           bounded first, canonical base64url, JSON without a key twice

Source: RFC 7515, RFC 7519, RFC 8725, RFC 9711.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.checks import require, requiring
from bentoml_secure.attestation.ear_appraisal import (
    AcceptedResult,
    ExpectedResult,
    appraise_claims,
)
from bentoml_secure.attestation.ear_claims import ear_claims
from bentoml_secure.attestation.ear_parsing import parse_claims
from bentoml_secure.attestation.evidence import AttestationResult
from bentoml_secure.attestation.result_keys import P256, TokenKey, decode_base64url
from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    MissingDependencyError,
)

if TYPE_CHECKING:
    from joserfc.jwk import ECKey, OKPKey
    from joserfc.jws import JWSRegistry

MAX_TOKEN_CHARACTERS = 256 * 1024
MAX_HEADER_CHARACTERS = 16 * 1024
"""Trustee's carries its key's certificates."""

SIGNATURE_BYTES = 64
TYPE = "eat+jwt"
LIFETIME_SECONDS = 300

_TYPES = frozenset({TYPE, "jwt"})
_HEADER = frozenset({"alg", "kid", "typ", "jwk"})


def issue_result(
    result: AttestationResult,
    policy: AppraisalPolicy,
    key: TokenKey,
    *,
    issuer: str,
    audience: str,
    nonce: str,
    token_id: str,
    now: datetime,
    lifetime_seconds: int = LIFETIME_SECONDS,
) -> str:
    """Sign a result as a token.

    Args:
        result: What was accepted.
        policy: The policy that accepted it.
        key: The issuer's.
        issuer: Who signs.
        audience: Whom it is for.
        nonce: The relying party's, 8 to 88 of A-Z a-z 0-9 - _.
        token_id: Different for every token.
        now: The time of issue, with a time zone.
        lifetime_seconds: At most; a token never outlives its result.

    Raises:
        ConfigurationError: A public key; claims longer than a token may be; whatever
            ``ear_claims`` refuses.
        MissingDependencyError: The extra ``tokens`` is not installed.
    """
    if not key.signs:
        raise ConfigurationError("a token is signed with a private key.")
    claims = ear_claims(
        result,
        policy,
        issuer=issuer,
        audience=audience,
        nonce=nonce,
        token_id=token_id,
        now=now,
        lifetime_seconds=lifetime_seconds,
    )
    algorithm = key.algorithms[0]
    header = {"alg": algorithm, "kid": key.key_id, "typ": TYPE}
    token = _sign(header, canonical_json(claims), key)
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise ConfigurationError(
            f"token: the claims make {len(token)} characters,"
            f" want at most {MAX_TOKEN_CHARACTERS}."
        )
    return token


def verify_result(
    token: str, keys: Sequence[TokenKey], expected: ExpectedResult, *, now: datetime
) -> AcceptedResult:
    """Return what a token says, if a pinned key signed it and it says enough.

    Args:
        token: From outside: a JWT in its compact form.
        keys: The issuer's; nothing else verifies.
        expected: What the relying party demands.
        now: The time to judge for, with a time zone.

    Raises:
        MalformedInputError: A token that does not parse, or is too long.
        CheckFailedError: A header that is not accepted, a signature that does not
            hold, a profile that is not known.
        PolicyRejected: A result that does not say what is demanded.
        ConfigurationError: No key.
        MissingDependencyError: The extra ``tokens`` is not installed.
    """
    # 1. Sizes and forms, before anything is decoded.
    header, payload = _parse(token)
    # 2. Which pinned key, and nothing in the header that says otherwise.
    key = _select(keys, header)
    _require_header(header, key)
    # 3. Its signature.
    _verify_signature(token, header["alg"], key)
    # 4. Only now what it says.
    document = parse_json(payload, what="token claims", max_bytes=MAX_TOKEN_CHARACTERS)
    return appraise_claims(parse_claims(document), expected, now=now)


def _parse(token: str) -> tuple[dict[str, Any], bytes]:
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise MalformedInputError(
            f"token: got {len(token)} characters, want at most {MAX_TOKEN_CHARACTERS}"
        )
    parts = token.split(".")
    if len(parts) != 3:
        raise MalformedInputError(f"token: got {len(parts)} parts, want 3")
    if len(parts[0]) > MAX_HEADER_CHARACTERS:
        raise MalformedInputError(
            f"token header: want at most {MAX_HEADER_CHARACTERS} characters"
        )
    signature = decode_base64url(parts[2], what="token signature")
    if len(signature) != SIGNATURE_BYTES:
        raise MalformedInputError(
            f"token signature: got {len(signature)} bytes, want {SIGNATURE_BYTES}"
        )
    return _parse_header(parts[0]), decode_base64url(parts[1], what="token claims")


def _parse_header(text: str) -> dict[str, Any]:
    what = "token header"
    data = decode_base64url(text, what=what)
    header = parse_json(data, what=what, max_bytes=MAX_HEADER_CHARACTERS)
    if not isinstance(header, dict):
        raise MalformedInputError(f"{what}: want an object")
    for name in ("alg", "kid", "typ"):
        if name in header and not isinstance(header[name], str):
            raise MalformedInputError(f"{what} {name}: want a text")
    return header


def _select(keys: Sequence[TokenKey], header: Mapping[str, Any]) -> TokenKey:
    if not keys:
        raise ConfigurationError("no key is given to verify a token with.")
    kid = header.get("kid")
    named = [key for key in keys if kid is None or kid in key.names]
    require(
        "header.kid",
        len(named) == 1,
        got="none" if kid is None else f"{kid!r:.100}",
        want="the name of a key given; none only where one key is",
    )
    return named[0]


def _require_header(header: Mapping[str, Any], key: TokenKey) -> None:
    algorithm, kind = header.get("alg"), header.get("typ", TYPE)
    require(
        "header.alg",
        algorithm in key.algorithms,
        got=f"{algorithm!r:.40}",
        want=f"{' or '.join(key.algorithms)}, which its key is for",
    )
    unknown = ", ".join(sorted(header.keys() - _HEADER))
    require(
        "header.fields",
        not unknown,
        got=f"{unknown!r:.100}",
        want=f"only {', '.join(sorted(_HEADER))}",
    )
    require(
        "header.typ",
        kind.lower() in _TYPES,
        got=f"{kind!r:.40}",
        want=f"{TYPE} or JWT",
    )
    require(
        "header.jwk",
        "jwk" not in header or key.has_public_members(header["jwk"]),
        got="another key",
        want="the key given, or none",
    )


def _verify_signature(token: str, algorithm: str, key: TokenKey) -> None:
    jose_key, registry = _jose(key, algorithm)
    from joserfc.errors import JoseError
    from joserfc.jws import deserialize_compact

    with requiring("signature", JoseError, ValueError, want=f"one of key {key.key_id}"):
        deserialize_compact(token, jose_key, registry=registry)


def _sign(header: dict[str, Any], payload: bytes, key: TokenKey) -> str:
    jose_key, registry = _jose(key, header["alg"])
    from joserfc.jws import serialize_compact

    return serialize_compact(header, payload, jose_key, registry=registry)


def _jose(key: TokenKey, algorithm: str) -> tuple[ECKey | OKPKey, JWSRegistry]:
    """Return the key as the library has it, and a registry of one algorithm.

    The library's own registry warns of the name EdDSA, which is the one known to most.
    """
    try:
        from joserfc.errors import UnsupportedAlgorithmError
        from joserfc.jwk import ECKey, OKPKey
        from joserfc.jws import JWSRegistry
    except ImportError as error:
        raise MissingDependencyError(
            f"attestation results as tokens need {error.name}, which is not installed.",
            remedy="pip install 'bentoml-secure[tokens]'",
        ) from error

    class OneAlgorithm(JWSRegistry):
        max_header_length = MAX_HEADER_CHARACTERS
        max_payload_length = MAX_TOKEN_CHARACTERS

        def get_alg(self, name: str) -> Any:
            if name != algorithm:
                raise UnsupportedAlgorithmError(name)
            return self.algorithms[name]

    form = ECKey if key.curve == P256 else OKPKey
    return form.import_key(key.pem), OneAlgorithm()
