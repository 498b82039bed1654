"""Merkle paths: every honest one holds, and no edited one does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bentoml_secure.audit.merkle import MERKLE, MerkleTree, require_included
from bentoml_secure.digest import Digest, digest_json
from bentoml_secure.errors import SecureError

RECEIPTS = [digest_json(index) for index in range(300)]
counts = st.integers(1, len(RECEIPTS))


@given(counts, st.data())
def test_every_leaf_has_its_path(count: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    tree = MerkleTree(RECEIPTS[:count])
    require_included(
        RECEIPTS[index],
        index=index,
        count=count,
        path=tree.path(index),
        root=tree.root,
    )


@settings(max_examples=200)
@given(counts, st.data())
def test_no_edited_path_leads_to_the_root(count: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    tree = MerkleTree(RECEIPTS[:count])
    path, receipt = list(tree.path(index)), RECEIPTS[index]
    said = index
    match data.draw(st.sampled_from(["receipt", "index", "step", "drop", "more"])):
        case "receipt":
            receipt = data.draw(
                st.sampled_from(RECEIPTS).filter(lambda r: r != receipt)
            )
        case "index" if count > 1:
            said = data.draw(st.integers(0, count - 1).filter(lambda i: i != index))
        case "step" if path:
            at = data.draw(st.integers(0, len(path) - 1))
            made = data.draw(st.binary(min_size=32, max_size=32)).hex()
            path[at] = Digest(f"{MERKLE}:{made}")
        case "drop" if path:
            del path[data.draw(st.integers(0, len(path) - 1))]
        case _:
            path.append(tree.root)
    if (receipt, said, tuple(path)) == (RECEIPTS[index], index, tree.path(index)):
        return
    try:
        require_included(receipt, index=said, count=count, path=path, root=tree.root)
    except SecureError:
        return
    raise AssertionError("an edited path was taken")
