"""The field that circuits compute in, and how its elements are spelled.

Apart from what surrounds it because every child process loads it, before each proof.
"""

from __future__ import annotations

import re

from bentoml_secure.errors import MalformedInputError

FIELD_MODULUS = 0x30644E72E131A029B85045B68181585D2833E84879B9709143E1F593F0000001
"""Of the scalar field of BN254, in which circuits compute."""

COMMITMENT_BYTES = 64
"""A point of BN254, its coordinates big-endian, as proofs begin with."""

_HASH = re.compile(r"[0-9a-f]{64}")
_COMMITMENT = re.compile(r"[0-9a-f]{128}")


def parse_hash(text: object, *, what: str) -> str:
    """Return 64 hex digits that spell one canonical field element, little-endian.

    Raises:
        MalformedInputError: Another form, or not below the field's modulus: the same
            element would have several spellings.
    """
    if not isinstance(text, str) or not _HASH.fullmatch(text):
        raise MalformedInputError(f"{what}: got {text!r:.80}, want 64 hex digits")
    if int.from_bytes(bytes.fromhex(text), "little") >= FIELD_MODULUS:
        raise MalformedInputError(f"{what}: not below the field's modulus")
    return text


def parse_commitment(text: object, *, what: str) -> str:
    """Return 128 hex digits. Whether they are a point, the verifier of proofs says.

    Raises:
        MalformedInputError: Another form.
    """
    if not isinstance(text, str) or not _COMMITMENT.fullmatch(text):
        raise MalformedInputError(f"{what}: got {text!r:.80}, want 128 hex digits")
    return text


def is_commitment(text: str) -> bool:
    """Tell whether a fact is a commitment, in place of a hash."""
    return len(text) == 2 * COMMITMENT_BYTES
