"""A Merkle tree over receipts: one digest for all, a short path for each. Pure.

The hashing is RFC 6962's, which keeps leaves and inner nodes apart by their first byte,
so that no node can be passed off as a leaf:

    leaf        SHA-256(0x00 || the receipt's digest, as it is written)
    node        SHA-256(0x01 || left || right)
    k           of n leaves, n > 1, the left side has the largest power of two below n

A path proves that a leaf stands at one index among exactly ``count`` leaves. The count
must be known from elsewhere (it is signed beside the root): it fixes the tree's shape,
and with it which side of each step is whose.

Source: RFC 6962, section 2.1; RFC 9162, section 2.1.3.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from bentoml_secure.digest import JSON, Digest, equal, parse_digest
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)

MERKLE = "sha256-merkle-v1"
"""The algorithm's name, in digests of roots and of what stands in paths."""

MAX_LEAVES = 1 << 20
MAX_PATH = 20
"""Steps from a leaf to the root, at ``MAX_LEAVES``."""

_LEAF = b"\x00"
_NODE = b"\x01"


def _leaf(receipt: Digest) -> bytes:
    return hashlib.sha256(_LEAF + receipt.encode()).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _written(value: bytes) -> Digest:
    return Digest(f"{MERKLE}:{value.hex()}")


def _raw(digest: Digest) -> bytes:
    return bytes.fromhex(digest.partition(":")[2])


def parse_node(value: object, *, what: str) -> Digest:
    """Return a root, or a step of a path.

    Raises:
        MalformedInputError: Not ``sha256-merkle-v1:`` and 64 hex digits.
    """
    digest = parse_digest(value, what=what, algorithm=MERKLE)
    if len(_raw(digest)) != hashlib.sha256().digest_size:
        raise MalformedInputError(f"{what}: got {digest:.60}..., want 64 hex digits")
    return digest


class MerkleTree:
    """A tree over receipts in the order of their arrival, all levels kept.

    Args:
        receipts: Digests of receipts, at least one.

    Raises:
        ConfigurationError: No receipt, or more than ``MAX_LEAVES``.
    """

    def __init__(self, receipts: Iterable[Digest]) -> None:
        level = [_leaf(receipt) for receipt in receipts]
        if not 0 < len(level) <= MAX_LEAVES:
            raise ConfigurationError(
                f"Merkle tree: got {len(level)} leaves, want 1 to {MAX_LEAVES}"
            )
        # Pairing neighbours, and carrying up who has none, makes RFC 6962's tree.
        self._levels = [level]
        while len(level) > 1:
            above = [_node(*level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
            level = above + level[2 * len(above) :]
            self._levels.append(level)

    @property
    def count(self) -> int:
        """How many leaves it has."""
        return len(self._levels[0])

    @property
    def root(self) -> Digest:
        """Of all leaves."""
        return _written(self._levels[-1][0])

    def path(self, index: int) -> tuple[Digest, ...]:
        """Return the siblings from a leaf up to the root.

        Raises:
            ConfigurationError: No leaf has that index.
        """
        if not 0 <= index < self.count:
            raise ConfigurationError(
                f"Merkle tree index: got {index}, want 0 to {self.count - 1}"
            )
        siblings = []
        for level in self._levels[:-1]:
            if (sibling := index ^ 1) < len(level):
                siblings.append(_written(level[sibling]))
            index >>= 1
        return tuple(siblings)


def require_included(
    receipt: Digest, *, index: int, count: int, path: Sequence[Digest], root: Digest
) -> None:
    """Refuse a path that does not lead from a receipt to a root.

    Args:
        receipt: Digest of the receipt.
        index: Where it is said to stand.
        count: Leaves of the tree, from the signed root.
        path: Of ``MerkleTree.path``, each parsed with ``parse_node``.
        root: From the signed root.

    Raises:
        VerificationError: No such index, a path of another length, another root.
    """
    if not 0 <= index < count:
        raise VerificationError(f"Merkle index: got {index}, want 0 to {count - 1}")
    steps = _steps(index, count)
    if len(path) != len(steps):
        raise VerificationError(
            f"Merkle path: got {len(path)} steps, want {len(steps)} for index {index} "
            f"of {count}"
        )
    at = _leaf(parse_digest(receipt, what="Merkle leaf", algorithm=JSON))
    for sibling, is_left in zip(path, steps, strict=True):
        at = _node(_raw(sibling), at) if is_left else _node(at, _raw(sibling))
    if not equal(_written(at), root):
        raise VerificationError(
            f"Merkle root: got {_written(at)} from the path, want {root}"
        )


def _steps(index: int, count: int) -> list[bool]:
    """Return for each step whether the sibling stands on the left."""
    steps = []
    last = count - 1
    while last > 0:
        if index & 1 or index < last:
            steps.append(bool(index & 1))
        index, last = index >> 1, last >> 1
    return steps
