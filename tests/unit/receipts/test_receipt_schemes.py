"""Commitments by another hash: named in each digest, and the scenario's everywhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import datetime

import pytest

from bentoml_secure.digest import Scheme, commit_body
from bentoml_secure.errors import MissingDependencyError
from bentoml_secure.receipts.opening import Opening
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.testing.deployment import Deployment, build_deployment
from bentoml_secure.testing.receipts import Draft, build_draft
from bentoml_secure.testing.tampering import with_receipt
from tests.unit.receipts.test_receipt_verdict import rejected


@pytest.fixture(scope="module")
def fast() -> Deployment:
    return build_deployment(terms={"commitments": Scheme.BLAKE3})


@pytest.fixture(scope="module")
def draft(fast: Deployment) -> Draft:
    return build_draft(fast)


def opening(draft: Draft) -> Opening:
    """Return what the caller holds, as tensors."""
    return Opening(salt=draft.salt, request=draft.inputs, response=draft.outputs)


def test_its_name_stands_in_every_commitment(draft: Draft) -> None:
    text = draft.bundle().receipt.payload.decode()
    assert '"blake3-keyed":' in text
    assert '"blake3-keyed-tensors-v1":' in text
    assert "hmac-sha256" not in text


def test_a_receipt_is_verified_and_opened(
    fast: Deployment, draft: Draft, now: datetime
) -> None:
    bodies = Opening(salt=draft.salt, request=draft.request, response=draft.response)
    for held in (None, opening(draft), bodies):
        verdict = verify_bundle(draft.bundle(), fast.trust, now=now, opening=held)
        assert verdict.state is State.ACCEPTED


def test_another_input_does_not_open(
    fast: Deployment, draft: Draft, now: datetime
) -> None:
    (name,) = draft.inputs
    held = replace(opening(draft), request={name: draft.inputs[name] + 1})
    found = rejected(draft.bundle(), fast.trust, now, opening=held)
    assert found == {f"opening request {name}"}


def test_a_scheme_that_the_scenario_does_not_name_is_found(
    fast: Deployment, draft: Draft, now: datetime
) -> None:
    other = commit_body(bytes(32), b"a request", Scheme.HMAC_SHA256)
    altered = with_receipt(draft, request=other)
    found = rejected(altered.bundle(), fast.trust, now)
    assert found == {"request commitment"}


def test_a_verifier_without_the_package_opens_nothing(
    fast: Deployment, draft: Draft, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    # It compares what parties signed; it cannot say what the caller's bytes are.
    assert verify_bundle(draft.bundle(), fast.trust, now=now).state is State.ACCEPTED
    with pytest.raises(MissingDependencyError, match="blake3 is not installed"):
        verify_bundle(draft.bundle(), fast.trust, now=now, opening=opening(draft))
