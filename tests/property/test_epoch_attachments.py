"""Edited epochs: refused, rejected, or saying what the entry and auditors signed."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.attachments import (
    Attachment,
    issue_attachment,
    verify_attachment,
)
from bentoml_secure.receipts.epoch import EpochRecord
from bentoml_secure.receipts.epoch_root import (
    AuditorNonce,
    EpochRoot,
    verify_nonce,
    verify_root,
)
from bentoml_secure.receipts.late_challenge import (
    LateChallenge,
    sign_challenge,
    verify_challenge,
)
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.signing import Envelope
from bentoml_secure.testing.epochs import (
    Gathered,
    auditor_key,
    challenging_deployment,
    gather,
)
from tests.property.test_receipts_forms import edits
from tests.proven_case import set_up


@functools.cache
def gathered() -> Gathered:
    """Return three receipts, one auditor, and no challenge."""
    made = gather(challenging_deployment(1e-12, set_up()), ["a", "b", "c"])
    return made.audited("ann")


@functools.cache
def genuine() -> Attachment:
    key = gathered().drafts[0].deployment.entry.signing.public
    return verify_attachment(gathered().attach(1).attachments[-1], key)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_edited_epoch_is_refused_or_says_the_same(data: st.DataObject) -> None:
    changed = data.draw(edits(json.loads(json.dumps(genuine().content))))
    if not isinstance(changed, dict):
        return
    try:
        record = EpochRecord.from_attachment(replace(genuine(), content=changed))
        assert canonical_json(record.to_json()) == canonical_json(changed)
        key = gathered().drafts[0].deployment.entry.signing
        signed = issue_attachment(replace(genuine(), content=changed), key)
        bundle = replace(gathered().attach(1), attachments=(signed,))
        trust = gathered().drafts[1].deployment.trust
        now = gathered().signed_at + timedelta(seconds=1)
        verdict = verify_bundle(bundle, trust, now=now)
    except SecureError:
        return
    # Without a nonce it is still an epoch; nothing else may be left out or changed.
    kept = {**changed, "nonces": genuine().content["nonces"]}
    assert kept == genuine().content
    assert changed["nonces"] in ([], genuine().content["nonces"])
    assert verdict.claims["epoch"]["challenged"] is False


_Signed = type[EpochRoot] | type[AuditorNonce] | type[LateChallenge]


def _signed_parts() -> list[tuple[Any, _Signed]]:
    entry = gathered().drafts[0].deployment.entry.signing.public
    return [
        (verify_root(gathered().root, entry).to_json(), EpochRoot),
        (verify_nonce(gathered().nonces[0]).to_json(), AuditorNonce),
        (verify_challenge(_challenge()).to_json(), LateChallenge),
    ]


def _challenge() -> Envelope:
    receipt = gathered().drafts[0].receipt.receipt_id
    return sign_challenge(receipt, gathered().root.payload_digest, auditor_key("one"))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_edited_documents_parse_back_or_are_refused(data: st.DataObject) -> None:
    document, form = data.draw(st.sampled_from(_signed_parts()))
    changed = data.draw(edits(document))
    try:
        parsed = form.from_json(changed)
    except SecureError:
        return
    assert parsed.to_json() == changed
