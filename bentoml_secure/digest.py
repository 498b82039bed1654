"""Digests that say what they are taken over, canonical JSON, commitments.

A digest is written ``<algorithm>:<hex>``. Where more than the raw bytes decides the
value, the rule is part of the algorithm's name:

    sha256               the bytes themselves
    sha256-file-v1       the bytes of one file, as loaded
    sha256-jcs-v1        the RFC 8785 form of a JSON document
    hmac-sha256          commitment to a body: HMAC-SHA256(salt, bytes)
    blake3-keyed         the same, by BLAKE3 in keyed mode; the salt is the key
    hmac-sha256-tensors-v1, blake3-keyed-tensors-v1
                         commitment to one tensor in its tensors-v1 form
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sys
from collections.abc import Collection, Set
from enum import StrEnum
from typing import Any, NewType, Protocol, TypeVar

import rfc8785
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bentoml_secure.errors import MalformedInputError, MissingDependencyError

Digest = NewType("Digest", str)
"""``<algorithm>:<hex>``."""

Choice = TypeVar("Choice", bound=StrEnum)

SALT_BYTES = 32
NONCE_BYTES = 32
REQUEST_ID_BYTES = 16

FILE = "sha256-file-v1"
JSON = "sha256-jcs-v1"


class Scheme(StrEnum):
    """How bodies and tensors are committed to: as the digests' names begin."""

    HMAC_SHA256 = "hmac-sha256"
    BLAKE3 = "blake3-keyed"

    @property
    def tensor(self) -> str:
        """The algorithm of commitments to tensors."""
        return f"{self}-tensors-v1"

    @classmethod
    def of(cls, commitment: Digest) -> Scheme:
        """Return the scheme of a commitment that was parsed."""
        return cls(commitment.partition(":")[0].removesuffix("-tensors-v1"))


BODIES = frozenset(str(scheme) for scheme in Scheme)
TENSORS = frozenset(scheme.tensor for scheme in Scheme)
"""Algorithms of commitments to bodies and to tensors."""

_DIGEST = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*:[0-9a-f]{64,128}\Z")
_MAX_DEPTH = 64
_MAX_INTEGER = 2**53 - 1
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False
)


def canonical_json(document: Any) -> bytes:
    """Return the RFC 8785 (JCS) form of a JSON document.

    Raises:
        MalformedInputError: The document holds what JSON cannot say exactly:
            NaN, infinity, integers beyond 2**53, lone surrogates, other types.

    Source: RFC 8785.
    """
    try:
        return _canonical(document).encode()
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise MalformedInputError(
            f"not representable as canonical JSON: {error}"
        ) from (error)


def _canonical(document: Any) -> str:
    # rfc8785 is pure Python and writes a receipt in milliseconds; what the standard
    # encoder spells alike is left to that, and only the rest is taken apart.
    if _spelled_alike(document):
        return _ENCODER.encode(document)
    return _taken_apart(document)


def _taken_apart(node: Any) -> str:
    if type(node) is list:
        return f"[{','.join(map(_taken_apart, node))}]"
    if type(node) is dict and all(type(k) is str and k.isascii() for k in node):
        if all(type(value) is str for value in node.values()):
            return _ENCODER.encode(node)
        members = (
            f"{_ENCODER.encode(key)}:{_taken_apart(node[key])}" for key in sorted(node)
        )
        return f"{{{','.join(members)}}}"
    if type(node) is str:
        return _ENCODER.encode(node)
    return rfc8785.dumps(node).decode()


def _spelled_alike(document: Any) -> bool:
    """Tell whether the standard encoder, which is in C, writes the canonical form.

    It does unless there are floats (spelled as in Python), integers beyond 2**53
    (refused), or keys that are not ASCII (sorted by code point, not by UTF-16).
    """
    stack = [document]
    while stack:
        node = stack.pop()
        kind = type(node)
        if kind is dict:
            if not all(type(key) is str and key.isascii() for key in node):
                return False
            stack.extend(node.values())
        elif kind is list:
            stack.extend(node)
        elif kind is int:
            if not -_MAX_INTEGER <= node <= _MAX_INTEGER:
                return False
        elif kind is not str and kind is not bool and node is not None:
            return False
    return True


def parse_json(data: bytes | str, *, what: str, max_bytes: int) -> Any:
    """Parse JSON from outside: bounded, no duplicate keys, no NaN, no surprises.

    Args:
        data: UTF-8 text.
        what: The thing's name, for the error.
        max_bytes: Longer input is refused before it is looked at.

    Raises:
        MalformedInputError: Not JSON, too long, too deep, a key twice, NaN.
    """
    if len(data) > max_bytes:
        raise MalformedInputError(
            f"{what}: got {len(data)} bytes, want at most {max_bytes}"
        )
    try:
        text = data.decode() if isinstance(data, bytes) else data
        document = json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise MalformedInputError(f"{what} is not valid JSON: {error}") from error
    _bound_depth(document, what)
    return document


def require_fields(
    document: object, names: Collection[str], *, what: str
) -> dict[str, Any]:
    """Return a parsed object that has exactly the fields ``names``.

    Raises:
        MalformedInputError: Not an object, a field missing, a field unknown.
    """
    if not isinstance(document, dict):
        raise MalformedInputError(
            f"{what}: got {type(document).__name__}, want an object"
        )
    wanted = set(names)
    if unknown := document.keys() - wanted:
        raise MalformedInputError(f"{what}: unknown field {min(unknown)!r:.60}")
    if missing := wanted - document.keys():
        raise MalformedInputError(f"{what}: field {min(missing)!r} is missing")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _bound_depth(document: Any, what: str) -> None:
    level = [document]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise MalformedInputError(f"{what} is nested deeper than {_MAX_DEPTH} levels")


def digest_bytes(data: bytes | bytearray | memoryview) -> Digest:
    """Return the SHA-256 digest of raw bytes."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def digest_json(document: Any) -> Digest:
    """Return the digest of a JSON document in its canonical form."""
    return Digest(f"{JSON}:{hashlib.sha256(canonical_json(document)).hexdigest()}")


def digest_file_bytes(data: bytes | bytearray | memoryview) -> Digest:
    """Return the digest of a file's bytes, as they were loaded."""
    return Digest(f"{FILE}:{hashlib.sha256(data).hexdigest()}")


def parse_digest(
    text: object, *, what: str, algorithm: str | Set[str] | None = None
) -> Digest:
    """Return ``text`` as a digest.

    Args:
        text: From outside.
        what: The thing's name, for the error.
        algorithm: The only one accepted, or those that are; any if left out.

    Raises:
        MalformedInputError: Not of the form ``<algorithm>:<lower-case hex>``.
    """
    if not isinstance(text, str) or not _DIGEST.match(text):
        raise MalformedInputError(f"{what}: got {text!r:.100}, want <algorithm>:<hex>")
    accepted = {algorithm} if isinstance(algorithm, str) else algorithm
    if accepted is not None and text.partition(":")[0] not in accepted:
        want = " or ".join(f"{each}:<hex>" for each in sorted(accepted, reverse=True))
        raise MalformedInputError(f"{what}: got {text:.100}, want {want}")
    return Digest(text)


def parse_choice(value: object, kinds: type[Choice], *, what: str) -> Choice:
    """Return the member of an enumeration that ``value`` spells.

    Raises:
        MalformedInputError: None of them.
    """
    if not isinstance(value, str) or value not in tuple(kinds):
        raise MalformedInputError(
            f"{what}: got {value!r:.40}, want one of {', '.join(kinds)}"
        )
    return kinds(value)


def parse_hex(text: object, *, what: str, length: int) -> bytes:
    """Return the bytes that exactly ``2 * length`` lower-case hex digits spell.

    Raises:
        MalformedInputError: Anything else.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]*", text):
        raise MalformedInputError(f"{what}: got {text!r:.100}, want lower-case hex")
    if len(text) != 2 * length:
        raise MalformedInputError(
            f"{what}: got {len(text)} hex digits, want {2 * length}"
        )
    return bytes.fromhex(text)


def equal(left: str, right: str) -> bool:
    """Compare two digests or commitments in constant time."""
    return hmac.compare_digest(left.encode(), right.encode())


def is_finite_number(value: object) -> bool:
    """Tell whether a parsed JSON value is a finite number (booleans are not)."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        # A comparison, for math.isfinite raises on integers beyond a float.
        and abs(value) <= sys.float_info.max
    )


def derive_salt(
    root_salt: bytes, *, request_id: bytes, infer_index: int, purpose: str, name: str
) -> bytes:
    """Derive the 32-byte salt of one tensor or body from a request's root salt.

    salt = HKDF-SHA256(root salt, salt = request id, info = label || infer index ||
    purpose || name), each part preceded by its length.

    Args:
        root_salt: 32 secret bytes, the caller's.
        request_id: 16 bytes.
        infer_index: Which ``infer`` of the request, from 0.
        purpose: "tensor" or "body".
        name: The tensor's name, or "request" or "response".

    Source: RFC 5869.
    """
    if len(root_salt) != SALT_BYTES:
        raise MalformedInputError(
            f"root salt: got {len(root_salt)} bytes, want {SALT_BYTES}"
        )
    parts = (b"bentoml-secure/salt/v1", str(infer_index).encode(), purpose.encode())
    info = b"".join(
        len(part).to_bytes(4, "big") + part for part in (*parts, name.encode())
    )
    return HKDF(SHA256(), SALT_BYTES, request_id, info).derive(root_salt)


class Hasher(Protocol):
    """What commitments need of a hash object."""

    def update(self, data: memoryview | bytes | bytearray, /) -> Any:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the digest so far."""


def salted_hasher(scheme: Scheme, salt: bytes) -> Hasher:
    """Return what commits to the bytes that it is given.

    Hiding as long as ``salt`` is secret and has 256 bits; binding by the hash.

    Args:
        scheme: Which hash.
        salt: 32 bytes.

    Raises:
        MissingDependencyError: BLAKE3, and its package is not installed.

    Source: RFC 2104; BLAKE3, github.com/BLAKE3-team/BLAKE3-specs, keyed_hash.
    """
    if scheme is Scheme.HMAC_SHA256:
        return hmac.new(salt, digestmod="sha256")
    try:
        from blake3 import blake3
    except ImportError as error:
        raise MissingDependencyError(
            "commitments: blake3 is not installed.",
            remedy="pip install 'bentoml-secure[fast]'",
        ) from error
    made: Hasher = blake3(key=salt)
    return made


def commit_body(
    salt: bytes,
    body: bytes | bytearray | memoryview,
    scheme: Scheme = Scheme.HMAC_SHA256,
) -> Digest:
    """Return the commitment to a request or response body.

    Args:
        salt: 32 secret bytes.
        body: As it was sent.
        scheme: How it is committed to.

    Raises:
        MissingDependencyError: As ``salted_hasher``.
    """
    if scheme is Scheme.HMAC_SHA256:
        return Digest(f"{scheme}:{hmac.digest(salt, body, 'sha256').hex()}")
    hasher = salted_hasher(scheme, salt)
    hasher.update(body)
    return Digest(f"{scheme}:{hasher.hexdigest()}")
