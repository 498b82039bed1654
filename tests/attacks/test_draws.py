"""The entry's draws under attack, and under a caller who wants no other."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from bentoml_secure.client import SecureClient
from bentoml_secure.digest import digest_bytes
from bentoml_secure.errors import ReceiptError
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.draw import Drawn, derive_request_id
from bentoml_secure.receipts.receipt import parse_receipt
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.session.http import Inner
from bentoml_secure.session.keys import Session
from bentoml_secure.statements import utc_now
from tests.attacks.forgeries import payload_of
from tests.attacks.raiders import Raider, ask, new_call
from tests.attacks.targets import Target
from tests.harness import sample

API = "/diagnose"
BODY = json.dumps({"features": sample(2).tolist()}).encode()
NONCE = "5e" * 32


@pytest.fixture
def raider(target: Target) -> Raider:
    return Raider.of(target.project)


def commitment(envelope: object) -> str:
    """Return what an envelope commits to, believed as it is."""
    assert isinstance(envelope, dict)
    said: str = payload_of(envelope)["commitment"]
    return said


def asked(target: Target, session: Session, draw: str | None) -> Inner:
    """Ask sealed, naming a commitment; return what was inside the answer."""
    headers = {"content-type": "application/json", "bsec-nonce": NONCE}
    if draw is not None:
        headers["bsec-draw"] = draw
    message = b"".join(Inner(headers=headers, body=BODY).encode())
    call = new_call(session, f"POST {API}", request_id=None)
    said = ask(target.url, call, message, API)
    assert said.was_sealed
    return Inner.decode(said.body, is_answer=True)


def test_each_is_good_for_one_request_of_its_session(
    target: Target, raider: Raider
) -> None:
    session, other = (raider.client_session(target.url) for _ in range(2))
    draw = commitment(session.draw)
    refused = asked(target, other, draw)
    assert refused.status == 502
    assert b"in this session and not used yet" in refused.body
    # Nobody else could use it up, and what it commits to is what the id follows from.
    answer = asked(target, session, draw)
    assert answer.status == 200
    envelope = json.loads(answer.headers["bsec-next-draw"])
    receipt_id = answer.headers["bsec-receipt-id"]
    bundle = target.http.get(f"/bsec/v1/receipts/{receipt_id}").json()
    shown = payload_of(bundle["receipt"])["predicate"]["draw"]
    r = bytes.fromhex(shown["r"])
    assert digest_bytes(r) == shown["commitment"] == draw
    assert derive_request_id(r, bytes.fromhex(NONCE)).hex() == receipt_id
    # The receipt has told it: whoever names it again knows what it stands for.
    replayed = asked(target, session, draw)
    assert replayed.status == 502
    assert asked(target, session, commitment(envelope)).status == 200


@pytest.mark.parametrize(
    "draw", [digest_bytes(b"mine"), "sha256:", "sha256:" + "A" * 64]
)
def test_one_that_nobody_gave_is_refused(
    target: Target, raider: Raider, draw: str
) -> None:
    answer = asked(target, raider.client_session(target.url), draw)
    assert answer.status in (400, 502)
    assert b"draw: got" in answer.body


def test_one_that_is_named_outside_the_seal_is_refused(
    target: Target, raider: Raider
) -> None:
    draw = commitment(raider.client_session(target.url).draw)
    response = target.post(headers={"bsec-draw": draw, "bsec-nonce": NONCE})
    assert response.status_code == 400
    assert "in a sealed request only" in response.text


def test_a_session_holds_so_many_and_no_more(target: Target, raider: Raider) -> None:
    """A caller that asks and asks without using what it is promised."""
    session = raider.client_session(target.url)
    answers = [asked(target, session, None) for _ in range(34)]
    promised = ["bsec-next-draw" in answer.headers for answer in answers]
    assert promised == [True] * 31 + [False] * 3
    assert asked(target, session, commitment(session.draw)).status == 200


def test_callers_at_once_who_want_commitments_have_one_each(target: Target) -> None:
    trust = parse_trust(target.trust.read_bytes())
    strict = replace(trust, draw=Drawn.COMMITTED)
    with SecureClient(target.url, strict) as client, ThreadPoolExecutor(4) as threads:
        payload = {"features": sample(2).tolist()}
        answers = list(
            threads.map(lambda _: client.call("diagnose", payload), range(12))
        )
    said = {answer.verdict.claims["labels"]["draw"] for answer in answers}
    assert said == {"committed before the nonce"}
    assert len({answer.question.committed for answer in answers}) == len(answers)
    # A plain call's receipt holds, and is not what such a caller wants.
    plain = target.post().headers["bsec-receipt-id"]
    bundle = parse_bundle(target.http.get(f"/bsec/v1/receipts/{plain}").content)
    assert parse_receipt(bundle.receipt).draw.asserted
    verify_bundle(bundle, trust, now=utc_now())
    with pytest.raises(ReceiptError, match="draw: got asserted by the entry"):
        verify_bundle(bundle, strict, now=utc_now())


def test_callers_at_once_who_do_not_are_answered_by_either(target: Target) -> None:
    with (
        SecureClient(target.url, target.trust) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        payload = {"features": sample(2).tolist()}
        answers = list(
            threads.map(lambda _: client.call("diagnose", payload), range(12))
        )
    for answer in answers:
        committed = answer.question.committed is not None
        label = answer.verdict.claims["labels"]["draw"]
        assert label == (
            "committed before the nonce" if committed else "asserted by the entry"
        )
    assert any(answer.question.committed for answer in answers)
