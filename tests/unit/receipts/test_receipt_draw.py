"""The draw: what the entry committed to, and what it could choose where it did not."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from bentoml_secure.digest import digest_bytes, digest_json
from bentoml_secure.errors import (
    MalformedInputError,
    ReceiptError,
    VerificationError,
)
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.draw import (
    DRAW_TYPE,
    Commitment,
    Draw,
    Drawn,
    commit_draw,
    derive_request_id,
    parse_commitment_envelope,
    verify_commitment,
)
from bentoml_secure.receipts.receipt import ENTRY, UNSEALED
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.signing import SigningKey, sign
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Draft, build_draft

COMMITMENT = Commitment(
    commitment=digest_bytes(b"r"),
    key_document=digest_json("an entry"),
    evidence_nonce="ab" * 32,
)


def rejected(
    bundle: Bundle, deployment: Deployment, now: datetime, **given: Any
) -> set[str]:
    """Return the names of the findings."""
    with pytest.raises(ReceiptError, match="rejected") as caught:
        verify_bundle(bundle, deployment.trust, now=now, **given)
    return {finding.field for finding in caught.value.findings}


def label(bundle: Bundle, deployment: Deployment, now: datetime, **given: Any) -> str:
    """Return what an accepting verdict says of the draw."""
    verdict = verify_bundle(bundle, deployment.trust, now=now, **given)
    said: str = verdict.claims["labels"]["draw"]
    return said


def ground(nonce: bytes) -> bytes:
    """Return an ``r`` by which the request id begins with a zero byte."""
    return next(
        r
        for n in itertools.count()
        if derive_request_id(r := n.to_bytes(32, "big"), nonce)[0] == 0
    )


class TestCommitment:
    def test_what_is_signed_is_read(self) -> None:
        key = SigningKey.generate()
        envelope = commit_draw(key, COMMITMENT)
        travelled = parse_commitment_envelope(
            json.loads(json.dumps(envelope.to_json()))
        )
        assert verify_commitment(travelled, key.public) == COMMITMENT

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"version": 2}, "version: got 2"),
            ({"commitment": digest_json("r")}, "want sha256:<hex>"),
            ({"commitment": None}, "draw commitment: got None"),
            ({"key_document": digest_bytes(b"")}, "want sha256-jcs-v1"),
            ({"evidence_nonce": "ab"}, "evidence_nonce: got 2 hex digits"),
            ({"session": 1}, "unknown field 'session'"),
        ],
    )
    def test_what_is_refused_though_signed(
        self, change: dict[str, Any], match: str
    ) -> None:
        key = SigningKey.generate()
        envelope = sign(key, DRAW_TYPE, {**COMMITMENT.to_json(), **change})
        with pytest.raises(MalformedInputError, match=match):
            verify_commitment(envelope, key.public)

    def test_another_key_or_another_type(self) -> None:
        key = SigningKey.generate()
        with pytest.raises(VerificationError, match="keyid"):
            verify_commitment(
                commit_draw(SigningKey.generate(), COMMITMENT), key.public
            )
        another = sign(key, "application/json", COMMITMENT.to_json())
        with pytest.raises(VerificationError, match="payloadType"):
            verify_commitment(another, key.public)

    def test_it_is_small(self) -> None:
        key = SigningKey.generate()
        large = sign(key, DRAW_TYPE, "x" * 2048).to_json()
        with pytest.raises(MalformedInputError, match="at most 1024 bytes"):
            parse_commitment_envelope(large)


# What an entry may try. Each returns a draw for a receipt.


def _signed(draft: Draft, key: SigningKey | None = None, **changes: Any) -> Draw:
    """The draft's draw under a commitment that says something else."""
    signed = draft.receipt.draw.signed
    assert signed is not None
    said = Commitment.from_json(json.loads(signed.payload))
    key = key or draft.deployment.entry.signing
    envelope = commit_draw(key, replace(said, **changes))
    return replace(draft.receipt.draw, signed=envelope)


def of_another_session(draft: Draft) -> Draw:
    return _signed(draft, evidence_nonce="00" * 32)


def of_another_entry(draft: Draft) -> Draw:
    """Signed by this one, but for another's document."""
    other = draft.deployment.runners[0][0]
    return _signed(draft, key_document=other.document.digest)


def by_another_key(draft: Draft) -> Draw:
    return _signed(draft, draft.deployment.runners[0][0].signing)


def to_another_draw(draft: Draft) -> Draw:
    return _signed(draft, commitment=digest_bytes(b"another"))


def edited_after_signing(draft: Draft) -> Draw:
    signed = of_another_session(draft).signed
    assert signed is not None
    genuine = draft.receipt.draw.signed
    assert genuine is not None
    return replace(
        draft.receipt.draw, signed=replace(signed, signature=genuine.signature)
    )


@pytest.mark.parametrize(
    ("attack", "finding"),
    [
        (of_another_session, "draw signed evidence_nonce"),
        (of_another_entry, "draw signed key_document"),
        (to_another_draw, "draw signed commitment"),
        (by_another_key, "draw signature"),
        (edited_after_signing, "draw signature"),
    ],
)
def test_a_commitment_that_is_not_this_draws(
    attack: Any, finding: str, draft: Draft, deployment: Deployment, now: datetime
) -> None:
    receipt = replace(draft.receipt, draw=attack(draft))
    bundle = replace(draft, receipt=receipt).bundle()
    assert rejected(bundle, deployment, now) == {finding}


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"nonce_drawn_by": ENTRY}, "draw nonce_drawn_by"),
        ({"first_hop": UNSEALED}, "draw first_hop"),
    ],
)
def test_a_commitment_that_its_caller_cannot_have_used(
    change: dict[str, Any],
    finding: str,
    draft: Draft,
    deployment: Deployment,
    now: datetime,
) -> None:
    """An entry that draws the nonce too chooses the request id, committed or not."""
    bundle = replace(draft, receipt=replace(draft.receipt, **change)).bundle()
    assert rejected(bundle, deployment, now) == {finding}


def test_an_entry_without_its_document(
    draft: Draft, deployment: Deployment, now: datetime
) -> None:
    bundle = draft.bundle()
    without = replace(bundle, key_documents=bundle.key_documents[1:])
    assert "draw signature" in rejected(without, deployment, now)


class TestWhoChoosesTheDraw:
    """An entry that has seen the nonce, and tries draws until the id suits it."""

    @pytest.fixture
    def nonce(self, draft: Draft) -> bytes:
        return bytes.fromhex(draft.receipt.client_nonce)

    def test_goes_undetected_where_nothing_was_committed_to(
        self, nonce: bytes, deployment: Deployment, now: datetime
    ) -> None:
        """The defence is off: the receipt holds, and says whose word it is."""
        chosen = build_draft(deployment, r=ground(nonce), committed=False)
        assert chosen.receipt.receipt_id.startswith("00")
        assert label(chosen.bundle(), deployment, now) == "asserted by the entry"

    def test_is_refused_by_who_wants_commitments(
        self, nonce: bytes, deployment: Deployment, now: datetime
    ) -> None:
        chosen = build_draft(deployment, r=ground(nonce), committed=False)
        strict = replace(
            deployment, trust=replace(deployment.trust, draw=Drawn.COMMITTED)
        )
        assert rejected(chosen.bundle(), strict, now) == {"draw"}
        honest = build_draft(deployment).bundle()
        assert "committed" in label(honest, strict, now)

    def test_is_caught_under_the_commitment_that_it_gave(
        self, nonce: bytes, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        chosen = build_draft(deployment, r=ground(nonce))
        draw = replace(
            chosen.receipt.draw,
            commitment=draft.receipt.draw.commitment,
            signed=draft.receipt.draw.signed,
        )
        bundle = replace(chosen, receipt=replace(chosen.receipt, draw=draw)).bundle()
        assert rejected(bundle, deployment, now) == {"draw commitment"}

    def test_is_caught_by_who_was_given_another(
        self, nonce: bytes, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        """It signs a commitment anew: only its caller knows which came first."""
        given = draft.receipt.draw.commitment
        chosen = build_draft(deployment, r=ground(nonce)).bundle()
        assert label(chosen, deployment, now) == "committed; when, is not checked"
        assert rejected(chosen, deployment, now, committed=given) == {
            "draw given beforehand"
        }
        asserted = build_draft(deployment, r=ground(nonce), committed=False).bundle()
        assert rejected(asserted, deployment, now, committed=given) == {
            "draw given beforehand"
        }

    def test_does_not_look_like_one_that_kept_its_word(
        self, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        given = draft.receipt.draw.commitment
        said = label(draft.bundle(), deployment, now, committed=given)
        assert said == "committed before the nonce"
