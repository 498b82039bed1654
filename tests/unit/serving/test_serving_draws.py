"""The entry's draws: each for one request of one session, and for no other."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.client.exchange import Reply
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import VerificationError
from bentoml_secure.receipts.draw import (
    Commitment,
    Draw,
    derive_request_id,
    parse_commitment_envelope,
    verify_commitment,
)
from bentoml_secure.receipts.receipt import Receipt, parse_receipt
from bentoml_secure.serving import draws as draws_module
from bentoml_secure.serving.draws import MAX_OPEN, Draws
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.entry_door import EntryDoor
from bentoml_secure.session.keys import Session
from bentoml_secure.signing import Envelope, VerificationKey
from bentoml_secure.testing.deployment import NOW
from tests.unit.serving.serving_doors import (
    ASK,
    NONCE,
    Behind,
    ask_sealed,
    call,
    client_session,
    error,
)
from tests.unit.serving.serving_parts import Ground
from tests.unit.session.session_parts import Ground as Handshakes

HEX = "ab" * 32


def sessions(count: int) -> list[Session]:
    """Return an entry's ends of sessions with as many clients."""
    handshakes = Handshakes()
    responder = handshakes.responder(handshakes.entry(), handshakes.judge_anybody)
    return [handshakes.shake_as_client(responder)[1] for _ in range(count)]


def commitment(envelope: Envelope | None) -> Digest:
    assert envelope is not None
    return Commitment.from_json(json.loads(envelope.payload)).commitment


class TestDraws:
    def test_one_is_used_once_by_the_session_it_was_made_for(self) -> None:
        mine, other = sessions(2)
        draws = Draws(lambda: NOW)
        signed = draws.give(mine)
        named = commitment(signed)
        with pytest.raises(VerificationError, match=f"draw: got {named}, want a"):
            draws.use(other, named)
        draw = draws.use(mine, named)
        assert draw.signed == signed
        assert draw.commitment == named == digest_bytes(bytes.fromhex(draw.r))
        with pytest.raises(VerificationError, match="not used yet"):
            draws.use(mine, named)

    def test_one_is_bound_to_session_and_key_document(self) -> None:
        mine, other = sessions(2)
        draws = Draws(lambda: NOW)
        said = []
        for session in (mine, other):
            signed = draws.give(session)
            assert signed is not None
            key = VerificationKey.from_hex(session.own.document.ed25519)
            said.append(verify_commitment(signed, key))
            assert said[-1].key_document == session.own.document.digest
            assert said[-1].evidence_nonce == session.own.nonce.hex()
        assert said[0].evidence_nonce != said[1].evidence_nonce

    def test_what_was_never_given_out_is_unknown(self) -> None:
        (session,) = sessions(1)
        with pytest.raises(VerificationError, match="given out in this session"):
            Draws(lambda: NOW).use(session, digest_bytes(b"mine"))

    def test_what_was_promised_is_kept_and_no_more_is_promised(self) -> None:
        (session,) = sessions(1)
        draws = Draws(lambda: NOW)
        given = [commitment(draws.give(session)) for _ in range(MAX_OPEN)]
        assert draws.give(session) is None
        assert draws.use(session, given[0]).signed
        assert draws.give(session) is not None
        assert len({draws.use(session, named).r for named in given[1:]}) == 31

    def test_they_end_with_their_session(self) -> None:
        mine, other = sessions(2)
        mine = replace(mine, expires_at=NOW + timedelta(seconds=1))
        now = [NOW]
        draws = Draws(lambda: now[0])
        draws.give(mine)
        now[0] += timedelta(seconds=1)
        draws.give(other)
        assert list(draws._open) == [other.secrets.session_id]

    def test_sessions_are_bounded(self) -> None:
        made = sessions(3)
        draws = Draws(lambda: NOW, max_sessions=2)
        first, *rest = [commitment(draws.give(session)) for session in made]
        with pytest.raises(VerificationError, match="draw: got"):
            draws.use(made[0], first)
        for session, named in zip(made[1:], rest, strict=True):
            assert draws.use(session, named).signed

    def test_threads_at_once_use_one_once(self) -> None:
        (session,) = sessions(1)
        draws = Draws(lambda: NOW)
        named = commitment(draws.give(session))

        def use(_: int) -> bool:
            try:
                draws.use(session, named)
            except VerificationError:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(use, range(64))) == 1


async def _without_infer(entry: Entry, request: bytes) -> bytes:
    return b"{}"


def receipt_of(entry: Entry, reply: Reply) -> Receipt:
    receipt_id = reply.header("bsec-receipt-id")
    assert receipt_id is not None
    return parse_receipt(entry.store.bundle(receipt_id).receipt)


def next_draw(reply: Reply) -> Digest:
    text = reply.header("bsec-next-draw")
    assert text is not None
    return commitment(parse_commitment_envelope(json.loads(text)))


def first_draw(session: Session) -> Digest:
    return commitment(parse_commitment_envelope(session.draw))


def named(draw: Digest) -> dict[str, str]:
    return {"bsec-draw": draw, "bsec-nonce": HEX}


class TestTheDoor:
    async def test_a_receipt_shows_the_draw_that_was_named(
        self, door: EntryDoor, entry: Entry, ground: Ground
    ) -> None:
        session = await client_session(door, ground)
        draw = first_draw(session)
        for _ in range(3):
            reply, caller = await ask_sealed(door, ground, session, **named(draw))
            assert reply.status == 200, reply.body
            shown = receipt_of(entry, reply).draw
            assert (shown.commitment, shown.asserted) == (draw, False)
            assert b"bsec-next-draw" not in caller.headers
            assert next_draw(reply) != draw
            draw = next_draw(reply)

    async def test_the_request_id_follows_from_it(
        self, door: EntryDoor, entry: Entry, ground: Ground
    ) -> None:
        session = await client_session(door, ground)
        reply, _ = await ask_sealed(door, ground, session, **named(first_draw(session)))
        r = bytes.fromhex(receipt_of(entry, reply).draw.r)
        request_id = derive_request_id(r, bytes.fromhex(HEX)).hex()
        assert reply.header("bsec-receipt-id") == request_id

    async def test_one_that_is_named_again_is_refused(
        self, door: EntryDoor, ground: Ground
    ) -> None:
        session = await client_session(door, ground)
        draw = first_draw(session)
        await ask_sealed(door, ground, session, **named(draw))
        reply, _ = await ask_sealed(door, ground, session, **named(draw))
        assert reply.status == 502
        assert b"in this session and not used yet" in reply.body
        # The session goes on, with what this answer carries.
        again, _ = await ask_sealed(door, ground, session, **named(next_draw(reply)))
        assert again.status == 200

    async def test_one_of_another_session_is_refused(
        self, door: EntryDoor, ground: Ground
    ) -> None:
        mine = await client_session(door, ground)
        other = await client_session(door, ground)
        reply, _ = await ask_sealed(door, ground, mine, **named(first_draw(other)))
        assert reply.status == 502
        # It was not used up for whom it was made for.
        kept, _ = await ask_sealed(door, ground, other, **named(first_draw(other)))
        assert kept.status == 200

    async def test_one_that_a_failed_request_named_is_used_up(
        self, door: EntryDoor, behind: Behind, ground: Ground
    ) -> None:
        session = await client_session(door, ground)
        handler, behind.handler = behind.handler, _without_infer
        reply, _ = await ask_sealed(door, ground, session, **named(first_draw(session)))
        assert reply.status == 500
        behind.handler = handler
        again, _ = await ask_sealed(door, ground, session, **named(first_draw(session)))
        assert again.status == 502

    async def test_calls_that_name_none_are_asserted(
        self, door: EntryDoor, entry: Entry, ground: Ground
    ) -> None:
        session = await client_session(door, ground)
        reply, _ = await ask_sealed(door, ground, session, **{"bsec-nonce": HEX})
        assert receipt_of(entry, reply).draw.asserted
        assert next_draw(reply)

    async def test_plain_calls_are_asserted_and_name_none(
        self, door: EntryDoor, entry: Entry
    ) -> None:
        caller = await call(door, "POST", "/ask", ASK, NONCE)
        assert caller.status == 200
        assert b"bsec-next-draw" not in caller.headers
        receipt_id = caller.headers[b"bsec-receipt-id"].decode()
        receipt = parse_receipt(entry.store.bundle(receipt_id).receipt)
        assert receipt.draw.asserted
        draw = (b"bsec-draw", digest_bytes(b"r").encode())
        refused = await call(door, "POST", "/ask", ASK, NONCE, draw)
        assert error(refused)[:2] == (400, "malformed-input")
        assert "in a sealed request only" in error(refused)[2]

    @pytest.mark.parametrize(
        ("headers", "why"),
        [
            ({"bsec-draw": digest_bytes(b"r")}, b"wants a bsec-nonce beside it"),
            ({"bsec-draw": "r", "bsec-nonce": HEX}, b"got 'r', want <algorithm>:<hex>"),
            ({"bsec-draw": "", "bsec-nonce": HEX}, b"got '', want <algorithm>:<hex>"),
        ],
    )
    async def test_one_that_is_named_in_another_form_is_refused(
        self, door: EntryDoor, ground: Ground, headers: dict[str, str], why: bytes
    ) -> None:
        reply, _ = await ask_sealed(door, ground, None, **headers)
        assert reply.status == 400
        assert why in reply.body

    async def test_the_handler_cannot_promise_for_the_entry(
        self, door: EntryDoor, behind: Behind, ground: Ground
    ) -> None:
        behind.headers = [*behind.headers, (b"Bsec-Next-Draw", b"{}")]
        reply, _ = await ask_sealed(door, ground)
        assert next_draw(reply)

    async def test_an_answer_promises_none_while_too_many_are_open(
        self,
        door: EntryDoor,
        ground: Ground,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(draws_module, "MAX_OPEN", 1)
        session = await client_session(door, ground)
        asserted, _ = await ask_sealed(door, ground, session)
        assert asserted.header("bsec-next-draw") is None
        kept, _ = await ask_sealed(door, ground, session, **named(first_draw(session)))
        assert kept.status == 200
        assert next_draw(kept)


async def test_without_its_window_a_draw_is_used_twice(
    door: EntryDoor, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defence is off: one draw, two nonces, and the second request was foreseen."""
    monkeypatch.setattr(Draws, "use", _use_and_keep)
    session = await client_session(door, ground)
    draw = first_draw(session)
    statuses = [
        (
            await ask_sealed(
                door, ground, session, **{"bsec-draw": draw, "bsec-nonce": nonce * 32}
            )
        )[0].status
        for nonce in ("01", "02")
    ]
    assert statuses == [200, 200]


def _use_and_keep(self: Draws, session: Session, named: Digest) -> Any:
    return Draw.of(self._open[session.secrets.session_id].r[named])


def test_draws_do_not_repeat() -> None:
    (session,) = sessions(1)
    draws = Draws(lambda: NOW)
    seen = [draws.use(session, commitment(draws.give(session))).r for _ in range(64)]
    assert all(a != b for a, b in itertools.combinations(seen, 2))
