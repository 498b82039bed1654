from __future__ import annotations

import copy
import json
import tomllib
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import ConfigurationError, SecureError
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.receipt import Receipt
from bentoml_secure.receipts.toml import write_toml
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.testing.deployment import Deployment, build_deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft


@cache
def deployment() -> Deployment:
    return build_deployment(segments=2)


@cache
def draft() -> Draft:
    return build_draft(deployment(), behaviours={(0, 0, 2): Behaviour.LATE})


@cache
def bundle_json() -> str:
    return canonical_json(draft().bundle().to_json()).decode()


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.integers(10**300, 10**400),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40),
    st.sampled_from(
        ["9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00.000Z", "00" * 32]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def edits(draw: st.DrawFn, document: Any) -> Any:
    """Change one node somewhere: replace, remove, double or swap."""
    document = copy.deepcopy(document)
    node, key = document, None
    parent: Any = None
    while isinstance(node, dict | list) and node and (key is None or draw(DEEPER)):
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        parent, key = node, draw(st.sampled_from(keys))
        node = parent[key]
    action = draw(st.sampled_from(["replace", "remove", "double", "add"]))
    if action == "remove":
        del parent[key]
    elif action == "double" and isinstance(parent, list):
        parent.append(copy.deepcopy(node))
    elif action == "add" and isinstance(node, dict):
        node[draw(st.text(max_size=5))] = draw(VALUES)
    else:
        parent[key] = draw(VALUES)
    return document


DEEPER = st.sampled_from([True, True, True, True, False])


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_that_are_no_bundle(data: bytes) -> None:
    with pytest.raises(SecureError, match="bundle"):
        parse_bundle(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_edited_bundle_is_never_accepted(data: st.DataObject) -> None:
    document = json.loads(bundle_json())
    changed = data.draw(edits(document))
    try:
        text = json.dumps(changed).encode()
    except ValueError:
        return
    now = deployment().now + timedelta(seconds=3)
    try:
        bundle = parse_bundle(text)
        verdict = verify_bundle(bundle, deployment().trust, now=now)
    except SecureError:
        return
    # Endorsements are hints, JSON numbers have many spellings, and an attachment
    # may still be on its way.
    if verdict.state is State.PROVISIONAL:
        assert bundle.attachments == ()
    else:
        assert bundle.to_json()["receipt"] == document["receipt"]
        assert bundle.key_documents == draft().bundle().key_documents
        assert bundle.attachments == draft().bundle().attachments


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_edited_receipt_parses_back_or_is_refused(data: st.DataObject) -> None:
    changed = data.draw(edits(draft().receipt.to_statement()))
    try:
        receipt = Receipt.from_statement(changed)
    except SecureError:
        return
    assert receipt.to_statement() == changed


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_flipped_bytes_are_never_accepted(data: st.DataObject) -> None:
    raw = bytearray(bundle_json().encode())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position] ^= 1 << data.draw(st.integers(0, 7))
    now = deployment().now + timedelta(seconds=3)
    if bytes(raw) == bundle_json().encode():
        return
    try:
        bundle = parse_bundle(bytes(raw))
    except SecureError:
        return
    with pytest.raises(SecureError, match=r"."):
        verify_bundle(bundle, deployment().trust, now=now)


@given(
    st.builds(
        dict,
        infers=st.integers(1, 2),
        behaviours=st.dictionaries(
            st.tuples(st.integers(0, 1), st.integers(0, 1), st.just(2)),
            st.sampled_from(list(Behaviour)),
        ),
    )
)
@settings(max_examples=25, deadline=None)
def test_one_odd_replica_never_spoils_a_receipt(options: dict[str, Any]) -> None:
    made = build_draft(deployment(), **options)
    bundle = parse_bundle(canonical_json(made.bundle().to_json()))
    assert bundle == made.bundle()
    assert Receipt.from_statement(made.receipt.to_statement()) == made.receipt
    now = deployment().now + timedelta(seconds=3)
    verdict = verify_bundle(bundle, deployment().trust, now=now)
    assert verdict.state is State.ACCEPTED
    liars = {Behaviour.LIAR, Behaviour.OTHER_LIAR, Behaviour.LATE_LIAR}
    expected = sorted(
        (infer, segment)
        for (infer, segment, _), behaviour in options["behaviours"].items()
        if behaviour in liars and infer < options["infers"]
    )
    assert (
        sorted((d["infer"], d["segment"]) for d in verdict.claims["dissenters"])
        == expected
    )


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_that_are_no_trust_file(data: bytes) -> None:
    with pytest.raises(SecureError, match="trust file"):
        parse_trust(data)


TOML = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), TOML))
def test_toml_that_is_written_is_read(document: dict[str, Any]) -> None:
    assert tomllib.loads(write_toml(document)) == document


def test_toml_has_no_null() -> None:
    with pytest.raises(ConfigurationError, match="no form for NoneType"):
        write_toml({"nothing": None})
