"""A segment's key from a Trustee key broker (KBS) instead of this package's own.

The protocol is Request-Challenge-Attestation-Response, version 0.4.0:

    POST /kbs/v0/auth      {version, tee, extra-params} -> a cookie, {nonce, ...}
    POST /kbs/v0/attest    {runtime-data: {nonce, tee-pubkey}, tee-evidence} -> {token}
    GET  /kbs/v0/resource/<repository>/<type>/<tag> -> JWE to tee-pubkey

Evidence covers SHA-384 of the canonical JSON of {additional-evidence, nonce,
tee-pubkey}, with zeros up to 64 bytes. The key pair is made for one call and never
leaves memory. The broker judges us; it proves nothing to us but by what it sends,
which opens the sealed files or does not.

Source: confidential-containers/trustee, kbs/docs/kbs_attestation_protocol.md;
RFC 7516, RFC 7518 section 4.6.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bentoml_secure.attestation.checks import requiring
from bentoml_secure.attestation.roles import REPORT_DATA_BYTES, Attester
from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    Finding,
    MalformedInputError,
    MissingDependencyError,
    PolicyRejected,
    UnavailableError,
)
from bentoml_secure.keys.http_calls import Answer, Call, Send, make_send, parse_url
from bentoml_secure.keys.segment_key import SegmentKey

if TYPE_CHECKING:
    from joserfc.jwk import ECKey

PROTOCOL_VERSION = "0.4.0"
"""Servers accept exactly their own."""

KEY_ALGORITHM = "ECDH-ES+A256KW"
CONTENT_ALGORITHM = "A256GCM"
MAX_MESSAGE_BYTES = 256 * 1024

_TEES = frozenset(
    {"tdx", "sgx", "snp", "az-snp-vtpm", "az-tdx-vtpm", "cca", "csv", "tpm", "hygondcu"}
)
_QUOTED = {"tdx": "tdx", "sgx": "sgx"}
"""Kinds whose evidence Trustee takes as the quote's bytes, and its name for them."""

_NONCE = re.compile(r"[A-Za-z0-9+/_=-]{16,256}")
_COOKIE = re.compile(r"kbs-session-id=([A-Za-z0-9._-]{1,256})(?:;.*)?")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_JWE_PARTS = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
_JWE_HEADER = frozenset({"alg", "enc", "epk", "apu", "apv"})

MakeEvidence = Callable[[bytes], Any]
"""From 64 bytes of report data to evidence as Trustee reads it: JSON-able."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Where a broker keeps a secret: ``<repository>/<type>/<tag>``.

    Raises:
        ConfigurationError: A part with other characters than letters, digits and
            ``_ . -``.
    """

    repository: str
    type: str
    tag: str

    def __post_init__(self) -> None:
        for part in (self.repository, self.type, self.tag):
            if not _PART.fullmatch(part):
                raise ConfigurationError(
                    f"Trustee resource: got {part!r:.100}, want letters, digits,"
                    " '_', '.' and '-'."
                )

    @property
    def path(self) -> str:
        """The three parts, joined."""
        return f"{self.repository}/{self.type}/{self.tag}"


def quote_evidence(attester: Attester) -> tuple[str, MakeEvidence]:
    """Return Trustee's name of an attester's kind, and evidence as it reads it.

    Raises:
        ConfigurationError: A kind whose evidence is more to Trustee than its quote.
    """
    if attester.kind not in _QUOTED:
        raise ConfigurationError(
            f"Trustee: got {attester.kind} evidence, it is made from one of"
            f" {', '.join(_QUOTED)}.",
            remedy="Give the client a function that makes evidence in Trustee's form.",
        )

    def make(report_data: bytes) -> dict[str, str]:
        """Return the quote over these bytes."""
        blob = attester.attest(report_data).blob
        return {"quote": base64.b64encode(blob).decode()}

    return _QUOTED[attester.kind], make


class TrusteeClient:
    """Gets secrets from one Trustee broker.

    Args:
        url: Of the broker: https, or http on this machine's loopback.
        tee: Trustee's name of the platform. ``sample`` shows nothing and is refused.
        make_evidence: What attests; see ``quote_evidence``.
        send: Makes the calls; over the network where left out.
        protocol_version: For a broker of another release.

    Raises:
        ConfigurationError: An address or platform out of its form.
        MissingDependencyError: The ``tokens`` extra is not installed.
    """

    def __init__(
        self,
        url: str,
        tee: str,
        make_evidence: MakeEvidence,
        *,
        send: Send | None = None,
        protocol_version: str = PROTOCOL_VERSION,
    ) -> None:
        parse_url(url, what="Trustee broker")
        if tee not in _TEES:
            raise ConfigurationError(
                f"Trustee platform: got {tee!r:.60}, want one of"
                f" {', '.join(sorted(_TEES))}."
            )
        _jose()
        self._url = url.rstrip("/")
        self._tee = tee
        self._make_evidence = make_evidence
        self._send = send or make_send()
        self._version = protocol_version

    def fetch_key(self, resource: Resource) -> SegmentKey:
        """Return a segment key that a broker keeps as 32 raw bytes.

        Raises:
            MalformedInputError: The resource is no key.
            SecureError: See ``fetch``.
        """
        return SegmentKey(self.fetch(resource))

    def fetch(self, resource: Resource) -> bytes:
        """Attest anew and return one secret.

        Raises:
            PolicyRejected: The broker does not accept the evidence, or does not
                release this to it.
            ConfigurationError: The broker has no such resource.
            UnavailableError: No answer, or one that says to try again.
            MalformedInputError: An answer out of its form.
            CheckFailedError: A secret that was not encrypted to this call's key.
        """
        ec_key, _ = _jose()
        key = ec_key.generate_key("P-256", private=True)
        nonce, cookie = self._challenge()
        cookie = self._attest(nonce, cookie, key)
        answer = self._call("GET", f"resource/{resource.path}", cookie=cookie)
        return decrypt_resource(answer.body, key)

    def _challenge(self) -> tuple[str, str]:
        request = {"version": self._version, "tee": self._tee, "extra-params": {}}
        answer = self._call("POST", "auth", request)
        challenge = _object(answer.body, "Trustee challenge")
        nonce = challenge.get("nonce")
        # It goes into what is hashed, which has one spelling for these only.
        if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
            raise MalformedInputError(
                f"Trustee challenge nonce: got {nonce!r:.80}, want base64"
            )
        cookie = _session_cookie(answer)
        if cookie is None:
            raise MalformedInputError("Trustee challenge: sets no session cookie")
        return nonce, cookie

    def _attest(self, nonce: str, cookie: str, key: ECKey) -> str:
        public = tee_pubkey(key)
        evidence = self._make_evidence(runtime_report_data(nonce, public))
        attestation = {
            "runtime-data": {"nonce": nonce, "tee-pubkey": public},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }
        answer = self._call("POST", "attest", attestation, cookie=cookie)
        token = _object(answer.body, "Trustee attestation").get("token")
        if not isinstance(token, str):
            raise MalformedInputError("Trustee attestation: no token")
        return _session_cookie(answer) or cookie

    def _call(
        self, method: str, path: str, body: Any = None, *, cookie: str | None = None
    ) -> Answer:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if cookie is not None:
            headers["Cookie"] = f"kbs-session-id={cookie}"
        call = Call(
            method=method,
            url=f"{self._url}/kbs/v0/{path}",
            headers=headers,
            body=b"" if body is None else canonical_json(body),
        )
        answer = self._send(call)
        if answer.status != 200:
            raise _refusal(call, answer)
        return answer


def tee_pubkey(key: ECKey) -> dict[str, str]:
    """Return the public half of a key as the protocol spells it."""
    public = key.as_dict(private=False)
    parts = {name: str(public[name]) for name in ("kty", "crv", "x", "y")}
    return {**parts, "alg": KEY_ALGORITHM}


def runtime_report_data(nonce: str, public: Mapping[str, str]) -> bytes:
    """Return the 64 bytes that evidence for a Trustee broker covers."""
    runtime_data = {
        "additional-evidence": "",
        "nonce": nonce,
        "tee-pubkey": dict(public),
    }
    digest = hashlib.sha384(canonical_json(runtime_data)).digest()
    return digest.ljust(REPORT_DATA_BYTES, b"\0")


def decrypt_resource(data: bytes, key: ECKey) -> bytes:
    """Decrypt a broker's answer: a flattened JWE to ``key``.

    Args:
        data: From outside.
        key: The private key of this call.

    Raises:
        MalformedInputError: Not of that form, or by another algorithm.
        CheckFailedError: It does not decrypt.
    """
    _, decrypt_compact = _jose()
    from joserfc.errors import JoseError

    what = "Trustee resource"
    document = _object(data, what)
    if document.keys() != set(_JWE_PARTS):
        raise MalformedInputError(
            f"{what}: got {sorted(document)!r:.200}, want {', '.join(_JWE_PARTS)}"
        )
    for name, part in document.items():
        if not isinstance(part, str) or not _BASE64URL.fullmatch(part):
            raise MalformedInputError(f"{what} {name}: want base64url")
    _require_header(document["protected"], what)
    # The compact form is the same JWE, and is checked over the header as received.
    compact = ".".join(document[name] for name in _JWE_PARTS)
    algorithms = [KEY_ALGORITHM, CONTENT_ALGORITHM]
    errors = (JoseError, ValueError, TypeError, KeyError, AssertionError)
    with requiring("resource", *errors, want="encrypted to this call's key"):
        plaintext = decrypt_compact(compact, key, algorithms=algorithms).plaintext
    return bytes(plaintext or b"")


def _require_header(protected: str, what: str) -> None:
    padded = protected + "=" * (-len(protected) % 4)
    try:
        data = base64.urlsafe_b64decode(padded)
    except ValueError as error:
        raise MalformedInputError(f"{what} protected: {error}") from error
    header = _object(data, f"{what} protected")
    for name, want in (("alg", KEY_ALGORITHM), ("enc", CONTENT_ALGORITHM)):
        if header.get(name) != want:
            raise MalformedInputError(
                f"{what} {name}: got {header.get(name)!r:.60}, want {want}"
            )
    # zip would decompress without bound, crit demand what is not understood.
    if unknown := header.keys() - _JWE_HEADER:
        raise MalformedInputError(f"{what} header: unknown field {min(unknown)!r:.60}")


def _object(data: bytes, what: str) -> dict[str, Any]:
    document = parse_json(data, what=what, max_bytes=MAX_MESSAGE_BYTES)
    if not isinstance(document, dict):
        raise MalformedInputError(f"{what}: want an object")
    return document


def _session_cookie(answer: Answer) -> str | None:
    for name, value in answer.headers:
        if name == "set-cookie" and (match := _COOKIE.fullmatch(value)):
            return match[1]
    return None


def _refusal(call: Call, answer: Answer) -> Exception:
    detail = answer.body[:300].decode("utf-8", "replace")
    said = f"{call.url}: status {answer.status}: {detail!r}"
    match answer.status:
        case 401 | 403:
            finding = Finding("trustee", said, "status 200")
            return PolicyRejected("the Trustee broker refuses", [finding])
        case 404:
            return ConfigurationError(
                said, remedy="Is the resource there, and is this a Trustee broker?"
            )
        case status if status == 429 or status >= 500:
            return UnavailableError(said)
        case _:
            return MalformedInputError(said)


def _jose() -> tuple[type[ECKey], Callable[..., Any]]:
    try:
        from joserfc.jwe import decrypt_compact
        from joserfc.jwk import ECKey
    except ImportError as error:
        raise MissingDependencyError(
            f"a Trustee broker needs {error.name}, which is not installed.",
            remedy="pip install 'bentoml-secure[tokens]'",
        ) from error
    return ECKey, decrypt_compact
