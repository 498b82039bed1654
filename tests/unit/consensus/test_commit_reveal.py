"""Commitments to answers: what they bind, what opens them, what is no commitment."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.consensus.commit_reveal import (
    ANSWER,
    COMMITMENT_TYPE,
    MAX_COMMITMENT_BYTES,
    Commitment,
    Task,
    commit_answer,
    parse_commitment_envelope,
    require_commitment,
    require_opening,
    sign_commitment,
    verify_commitment,
)
from bentoml_secure.digest import Digest, canonical_json, digest_json
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.signing import SigningKey, sign
from bentoml_secure.statements import STATEMENT_TYPE

TASK = Task(
    request_id="11" * 16,
    nonce="22" * 32,
    plan_digest=digest_json("plan"),
    infer_index=0,
    exchange_id="33" * 16,
    segment=digest_json("segment"),
)
OUTPUTS = {
    "h": Digest(f"hmac-sha256-tensors-v1:{'4' * 64}"),
    "t": Digest(f"hmac-sha256-tensors-v1:{'5' * 64}"),
}
NONCE = bytes(range(16))
KEY_DOCUMENT = digest_json("key document")
MADE = Commitment(
    task=TASK,
    key_document=KEY_DOCUMENT,
    commitment=commit_answer(TASK, "R0", OUTPUTS, NONCE),
)


def h(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_the_formula_is_the_documented_one() -> None:
    by_hand = hashlib.sha256(
        b"bentoml-secure/commitment/v1"
        + h(canonical_json(TASK.to_json()))
        + h(b"R0")
        + h(canonical_json(OUTPUTS))
        + h(NONCE)
    ).hexdigest()
    assert MADE.commitment == f"{ANSWER}:{by_hand}"


OTHERS: dict[str, tuple[Task, str, dict[str, Digest], bytes]] = {
    "request": (replace(TASK, request_id="12" * 16), "R0", OUTPUTS, NONCE),
    "nonce of the caller": (replace(TASK, nonce="23" * 32), "R0", OUTPUTS, NONCE),
    "plan": (replace(TASK, plan_digest=digest_json(1)), "R0", OUTPUTS, NONCE),
    "infer": (replace(TASK, infer_index=1), "R0", OUTPUTS, NONCE),
    "exchange": (replace(TASK, exchange_id="34" * 16), "R0", OUTPUTS, NONCE),
    "segment": (replace(TASK, segment=digest_json(1)), "R0", OUTPUTS, NONCE),
    "replica": (TASK, "R1", OUTPUTS, NONCE),
    "one output": (TASK, "R0", {**OUTPUTS, "t": OUTPUTS["h"]}, NONCE),
    "outputs swapped": (
        TASK,
        "R0",
        {"h": OUTPUTS["t"], "t": OUTPUTS["h"]},
        NONCE,
    ),
    "one output fewer": (TASK, "R0", {"h": OUTPUTS["h"]}, NONCE),
    "nonce": (TASK, "R0", OUTPUTS, bytes(16)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_it_binds_every_part(
    other: tuple[Task, str, dict[str, Digest], bytes],
) -> None:
    task, replica, outputs, nonce = other
    assert commit_answer(*other) != MADE.commitment
    with pytest.raises(VerificationError, match="opened another answer"):
        require_opening(replace(MADE, task=task), replica, outputs, nonce)


def test_its_own_opening_opens_it() -> None:
    require_opening(MADE, "R0", dict(reversed(OUTPUTS.items())), NONCE)


@pytest.mark.parametrize("length", [0, 15, 17, 32])
def test_a_nonce_has_one_length(length: int) -> None:
    with pytest.raises(MalformedInputError, match=f"got {length} bytes, want 16"):
        require_opening(MADE, "R0", OUTPUTS, bytes(length))


def test_a_copied_commitment_does_not_open_under_another_name() -> None:
    """The copy knows all there is to know, in the end, and still cannot open it."""
    with pytest.raises(VerificationError, match="commitment of R1: opened another"):
        require_opening(MADE, "R1", OUTPUTS, NONCE)


def test_signed_and_verified() -> None:
    key = SigningKey.generate()
    envelope = sign_commitment(key, MADE)
    parsed = parse_commitment_envelope(envelope.to_json())
    assert verify_commitment(parsed, key.public) == MADE


def test_a_commitment_of_another_key_or_type_is_refused() -> None:
    key = SigningKey.generate()
    envelope = sign_commitment(key, MADE)
    with pytest.raises(VerificationError, match="key"):
        verify_commitment(envelope, SigningKey.generate().public)
    stated = sign(key, STATEMENT_TYPE, MADE.to_json())
    with pytest.raises(VerificationError, match=re.escape(COMMITMENT_TYPE)):
        verify_commitment(stated, key.public)


def test_an_envelope_is_bounded() -> None:
    long = replace(sign_commitment(SigningKey.generate(), MADE))
    long = replace(long, payload=long.payload + b" " * MAX_COMMITMENT_BYTES)
    with pytest.raises(MalformedInputError, match="commitment"):
        parse_commitment_envelope(long.to_json())


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": 2}, "version: want 1"),
    "version true": ({"version": True}, "version: want 1"),
    "more": ({"more": 1}, "unknown field 'more'"),
    "index": ({"infer_index": -1}, "infer_index: want an integer from 0"),
    "index true": ({"infer_index": True}, "infer_index: want an integer"),
    "index fraction": ({"infer_index": 0.5}, "infer_index: want an integer"),
    "request id": ({"request_id": "11"}, "request_id: got 2 hex digits, want 32"),
    "nonce": ({"nonce": None}, "nonce: got None, want lower-case hex"),
    "exchange id": ({"exchange_id": "G" * 32}, "exchange_id: got .* lower-case hex"),
    "plan": ({"plan_digest": "sha256:" + "0" * 64}, "plan_digest: got sha256:"),
    "segment": ({"segment": 1}, "segment: got 1, want <algorithm>:<hex>"),
    "key document": ({"key_document": None}, "key_document: got None"),
    "commitment": ({"commitment": "sha256:" + "0" * 64}, f"want {ANSWER}:<hex>"),
}


@pytest.mark.parametrize(("changes", "why"), FORMS.values(), ids=FORMS)
def test_any_other_form_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(MalformedInputError, match=why):
        Commitment.from_json({**MADE.to_json(), **changes})


@pytest.mark.parametrize("name", sorted(MADE.to_json()))
def test_a_field_less_is_refused(name: str) -> None:
    document = MADE.to_json()
    del document[name]
    with pytest.raises(MalformedInputError, match=f"field '{name}' is missing"):
        Commitment.from_json(document)


@pytest.mark.parametrize("document", [None, [], "x", 1])
def test_what_is_no_object_is_refused(document: object) -> None:
    with pytest.raises(MalformedInputError, match="want an object"):
        Commitment.from_json(document)


@pytest.mark.parametrize("name", sorted(TASK.to_json()))
def test_a_commitment_to_something_else_is_refused(name: str) -> None:
    other: dict[str, Any] = {
        "infer_index": 7,
        "request_id": "00" * 16,
        "exchange_id": "00" * 16,
    }
    changed = {name: other.get(name, digest_json("other"))}
    task = replace(TASK, **changed)
    with pytest.raises(VerificationError, match=f"commitment {name}: got .*, want"):
        require_commitment(MADE, task, KEY_DOCUMENT)


def test_a_commitment_under_another_key_document_is_refused() -> None:
    with pytest.raises(VerificationError, match="commitment key_document: got"):
        require_commitment(MADE, TASK, digest_json("another"))
    require_commitment(MADE, TASK, KEY_DOCUMENT)


def test_a_name_that_no_text_holds_is_committed_to() -> None:
    lone = commit_answer(TASK, "\ud800", OUTPUTS, NONCE)
    assert lone != MADE.commitment


def test_the_program_on_the_page_agrees() -> None:
    page = (Path(__file__).parents[3] / "docs" / "commit-reveal.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    made = subprocess.run(
        [sys.executable, "-I", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.stdout.strip() == MADE.commitment.partition(":")[2]
