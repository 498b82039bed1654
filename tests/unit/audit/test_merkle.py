"""The tree of RFC 6962: known roots, every path of small trees, and paths that lie."""

from __future__ import annotations

import hashlib

import pytest

from bentoml_secure.audit.merkle import (
    MAX_LEAVES,
    MERKLE,
    MerkleTree,
    parse_node,
    require_included,
)
from bentoml_secure.digest import Digest, digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)

RECEIPTS = [digest_json(index) for index in range(70)]


def naive_root(receipts: list[Digest]) -> bytes:
    """The definition of RFC 6962, section 2.1, word for word."""
    if len(receipts) == 1:
        return hashlib.sha256(b"\x00" + receipts[0].encode()).digest()
    k = 1
    while k * 2 < len(receipts):
        k *= 2
    left, right = naive_root(receipts[:k]), naive_root(receipts[k:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def naive_path(index: int, receipts: list[Digest]) -> list[bytes]:
    """RFC 6962, section 2.1.1, word for word."""
    if len(receipts) == 1:
        return []
    k = 1
    while k * 2 < len(receipts):
        k *= 2
    if index < k:
        return [*naive_path(index, receipts[:k]), naive_root(receipts[k:])]
    return [*naive_path(index - k, receipts[k:]), naive_root(receipts[:k])]


@pytest.mark.parametrize("count", [*range(1, 18), 31, 32, 33, 64, 65, 70])
def test_roots_and_paths_are_those_of_the_definition(count: int) -> None:
    receipts = RECEIPTS[:count]
    tree = MerkleTree(receipts)
    assert (tree.count, tree.root) == (count, f"{MERKLE}:{naive_root(receipts).hex()}")
    for index, receipt in enumerate(receipts):
        path = tree.path(index)
        want = [f"{MERKLE}:{step.hex()}" for step in naive_path(index, receipts)]
        assert list(path) == want
        require_included(receipt, index=index, count=count, path=path, root=tree.root)


@pytest.mark.parametrize("count", range(1, 18))
def test_no_other_index_count_or_receipt_fits_a_path(count: int) -> None:
    tree = MerkleTree(RECEIPTS[:count])
    for index in range(count):
        path = tree.path(index)
        for said, of in {(i, n) for i in range(18) for n in range(1, 19)}:
            if (said, of) == (index, count):
                continue
            # Another shape may give the same steps; the leaf then is the same too.
            steps = _steps(said, of) == _steps(index, count)
            if steps:
                continue
            with pytest.raises(VerificationError, match="Merkle"):
                require_included(
                    RECEIPTS[index], index=said, count=of, path=path, root=tree.root
                )
        with pytest.raises(VerificationError, match="Merkle root: got"):
            require_included(
                RECEIPTS[index + 1],
                index=index,
                count=count,
                path=path,
                root=tree.root,
            )


def _steps(index: int, count: int) -> list[bool] | None:
    if index >= count:
        return None
    steps, last = [], count - 1
    while last > 0:
        if index % 2 or index < last:
            steps.append(index % 2 == 1)
        index, last = index // 2, last // 2
    return steps


def test_within_one_count_every_index_has_steps_of_its_own() -> None:
    for count in range(1, 200):
        steps = {tuple(_steps(index, count) or ()) for index in range(count)}
        assert len(steps) == count


def test_a_node_is_no_leaf() -> None:
    """Without the first byte, a tree of two would be a tree of one of their nodes."""
    tree = MerkleTree(RECEIPTS[:2])
    left, right = (tree.path(1)[0], tree.path(0)[0])
    node = Digest(left + right)
    with pytest.raises(MalformedInputError, match="Merkle leaf"):
        require_included(node, index=0, count=1, path=[], root=tree.root)


@pytest.mark.parametrize(
    ("index", "count", "steps", "said"),
    [
        (5, 5, 3, "index: got 5, want 0 to 4"),
        (-1, 5, 3, "index: got -1, want 0 to 4"),
        (0, 5, 2, "path: got 2 steps, want 3 for index 0 of 5"),
        (4, 5, 3, "path: got 3 steps, want 1 for index 4 of 5"),
        (1, 5, 3, "root: got"),
    ],
)
def test_paths_that_do_not_fit_are_named(
    index: int, count: int, steps: int, said: str
) -> None:
    tree = MerkleTree(RECEIPTS[:5])
    with pytest.raises(VerificationError, match=said):
        require_included(
            RECEIPTS[0],
            index=index,
            count=count,
            path=tree.path(0)[:steps],
            root=tree.root,
        )


@pytest.mark.parametrize("index", [-1, 3])
def test_there_are_paths_of_leaves_only(index: int) -> None:
    with pytest.raises(ConfigurationError, match=f"index: got {index}, want 0 to 2"):
        MerkleTree(RECEIPTS[:3]).path(index)


def test_a_tree_has_a_leaf_and_not_too_many() -> None:
    with pytest.raises(ConfigurationError, match="got 0 leaves, want 1 to 1048576"):
        MerkleTree([])
    many = (RECEIPTS[0] for _ in range(MAX_LEAVES + 1))
    with pytest.raises(ConfigurationError, match="got 1048577 leaves"):
        MerkleTree(many)


@pytest.mark.parametrize("value", [None, "", f"{MERKLE}:{'0' * 66}", RECEIPTS[0]])
def test_nodes_of_another_form_are_refused(value: object) -> None:
    with pytest.raises(MalformedInputError, match="step"):
        parse_node(value, what="step")
