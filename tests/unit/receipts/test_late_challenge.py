"""What an auditor signs to have a receipt proven, and what is no such thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.digest import Digest
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.receipts.late_challenge import (
    CHALLENGE_TYPE,
    LateChallenge,
    sign_challenge,
    verify_challenge,
)
from bentoml_secure.signing import SigningKey, sign

KEY = SigningKey.generate()
RECEIPT = Digest("sha256-jcs-v1:" + "11" * 32)
NAME = "22" * 16


def test_what_is_signed_is_read_again() -> None:
    said = verify_challenge(sign_challenge(NAME, RECEIPT, KEY))
    assert (said.receipt_id, said.receipt) == (NAME, RECEIPT)
    assert said.auditor == KEY.public.key_id


def test_another_signature_is_refused() -> None:
    envelope = sign_challenge(NAME, RECEIPT, KEY)
    for other in (
        replace(envelope, signature=bytes(64)),
        replace(envelope, payload_type="application/json"),
        sign(SigningKey.generate(), CHALLENGE_TYPE, document()),
    ):
        with pytest.raises(VerificationError):
            verify_challenge(other)


def document(**changes: Any) -> dict[str, Any]:
    said = LateChallenge(receipt_id=NAME, receipt=RECEIPT, key=KEY.public.raw.hex())
    return said.to_json() | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"receipt_id": "22" * 15},
        {"receipt_id": 7},
        {"receipt": "sha256:" + "11" * 32},
        {"key": "11" * 31},
        {"more": 1},
    ],
)
def test_other_forms_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedInputError):
        verify_challenge(sign(KEY, CHALLENGE_TYPE, document(**changes)))
