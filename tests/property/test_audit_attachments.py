"""Edited audits: refused, rejected, or saying what the referees signed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import fuzz.audits
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.audit import Audit
from bentoml_secure.testing.receipts import Behaviour
from tests.property.test_receipts_forms import edits

SEEDS: list[Any] = [json.loads(seed) for seed in fuzz.audits.seeds()]


@settings(max_examples=100)
@given(st.data())
def test_an_edited_audit_is_never_another_answer(data: st.DataObject) -> None:
    changed = data.draw(edits(data.draw(st.sampled_from(SEEDS))))
    try:
        text = json.dumps(changed).encode()
    except ValueError:
        return
    fuzz.audits.one(text)


@settings(max_examples=100)
@given(st.data())
def test_an_edited_audit_parses_back_or_is_refused(data: st.DataObject) -> None:
    changed = data.draw(edits(data.draw(st.sampled_from(SEEDS))))
    if not isinstance(changed, dict):
        return
    genuine = fuzz.audits._attachment(Behaviour.HONEST)
    try:
        audit = Audit.from_attachment(replace(genuine, content=changed))
    except SecureError:
        return
    assert {"infers": audit.to_json()} == changed
