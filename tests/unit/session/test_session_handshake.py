"""Handshakes that succeed, and what both ends hold then."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.errors import ConfigurationError, PolicyRejected
from bentoml_secure.session.handshake import Initiator
from bentoml_secure.session.keys import Session, Shown
from bentoml_secure.session.responders import Responder
from bentoml_secure.session.suites import CLASSIC, HYBRID
from bentoml_secure.testing.deployment import NOW
from tests.unit.session.session_parts import MAX_AGE, Ground, Message, travelled


def exchanged(caller: Session, responder: Session) -> None:
    """Require that both ends derive one key for each direction."""
    exchange, nonce = b"e" * 16, b"n" * 16
    one, other = caller.secrets, responder.secrets
    assert one.session_id == other.session_id
    assert one.request_key(exchange) == other.request_key(exchange)
    assert one.response_key(exchange, nonce) == other.response_key(exchange, nonce)
    assert caller.context("request", operation="infer", request_id=exchange) == (
        responder.context("request", operation="infer", request_id=exchange)
    )


@pytest.mark.parametrize(
    ("suites", "chosen"),
    [(None, HYBRID), ((HYBRID,), HYBRID), ((CLASSIC,), CLASSIC)],
    ids=["both", "hybrid", "classic"],
)
def test_both_ends_hold_one_session(
    ground: Ground, suites: tuple[str, ...] | None, chosen: str
) -> None:
    runner, entry = ground.identity(suites=suites), ground.entry()
    seen: list[Message] = []

    def note(message: Message) -> Message:
        seen.append(message)
        return message

    caller, responder = ground.shake(entry, ground.responder(runner), c=note)
    exchanged(caller, responder)
    assert seen[0]["suite"] == chosen
    assert caller.peer.document == runner.keys.document == responder.own.document
    assert responder.peer.document == entry.keys.document == caller.own.document
    assert caller.peer.nonce != caller.own.nonce
    assert caller.peer.nonce == responder.own.nonce
    assert responder.peer.nonce == caller.own.nonce
    assert caller.result is not None
    assert responder.result is not None
    assert caller.expires_at == responder.expires_at == NOW + timedelta(seconds=MAX_AGE)


def test_suites_that_nobody_here_knows_are_passed_over(ground: Ground) -> None:
    runner = ground.identity(suites=("FUTURE/HKDF-SHA512/AEGIS", CLASSIC))
    exchanged(*ground.shake(ground.entry(), ground.responder(runner)))


def test_a_client_needs_no_evidence_at_an_entry(ground: Ground) -> None:
    responder = ground.responder(ground.entry(), ground.judge_anybody)
    caller, served = ground.shake_as_client(responder)
    exchanged(caller, served)
    assert served.result is None
    assert served.peer.record is None
    assert served.peer.document.role is Role.CLIENT


def test_two_sessions_share_no_key(ground: Ground) -> None:
    responder, entry = ground.responder(ground.identity()), ground.entry()
    (one, _), (other, _) = (ground.shake(entry, responder) for _ in range(2))
    assert one.secrets.session_id != other.secrets.session_id
    assert one.secrets.request_key(bytes(16)) != other.secrets.request_key(bytes(16))


def test_keys_differ_by_exchange_direction_and_nonce(ground: Ground) -> None:
    secrets = ground.shake(ground.entry(), ground.responder(ground.identity()))[
        0
    ].secrets
    one, other = b"1" * 16, b"2" * 16
    keys = [
        secrets.request_key(one),
        secrets.request_key(other),
        secrets.response_key(one, one),
        secrets.response_key(one, other),
        secrets.response_key(other, one),
        secrets.confirmation(b""),
    ]
    assert len(set(keys)) == len(keys)


def test_secrets_do_not_show_in_a_representation(ground: Ground) -> None:
    session, _ = ground.shake(ground.entry(), ground.responder(ground.identity()))
    secrets = session.secrets
    text = repr(session) + repr(ground.identity().keys)
    for secret in (secrets._confirm, secrets._records):
        assert repr(secret)[2:-1] not in text
        assert secret.hex() not in text
    assert "PrivateKey" not in text


def test_no_session_keeps_hpke_keys(ground: Ground) -> None:
    for session in ground.shake(ground.entry(), ground.responder(ground.identity())):
        assert session.keys.hpke is None
        assert session.keys.document == session.own.document


def test_an_entry_commits_to_a_draw_in_its_confirmation(ground: Ground) -> None:
    draw = {"payload": "e30="}
    responder = ground.responder(
        ground.entry(), ground.judge_anybody, draw=lambda _: draw
    )
    assert ground.shake_as_client(responder)[0].draw == draw


def test_no_draw_is_made_for_who_is_refused(ground: Ground) -> None:
    drawn: list[int] = []

    def draw(session: Session) -> dict[str, Any]:
        drawn.append(1)
        return {}

    responder = ground.responder(ground.entry(), ground.judge_entry, draw=draw)
    with pytest.raises(ConfigurationError, match="want finish"):
        _out_of_order(ground)
    with pytest.raises(Exception, match="got client, want entry"):
        ground.shake_as_client(responder)
    assert drawn == []


def _out_of_order(ground: Ground) -> None:
    initiator = ground.initiator(ground.entry().keys)
    offer = travelled(ground.responder(ground.identity()).offer(initiator.hello()))
    initiator.read_offer(offer, ground.judge_runner)
    initiator.read_offer(offer, ground.judge_runner)


class TestSteps:
    """A handshake goes one way; what failed is over."""

    def test_no_finish_before_an_offer(self, ground: Ground) -> None:
        initiator = ground.initiator(ground.client_keys())
        with pytest.raises(
            ConfigurationError, match=r"finish\(\) now, want read_offer"
        ):
            initiator.finish(None)
        with pytest.raises(ConfigurationError, match="want nothing more"):
            initiator.read_offer({}, ground.judge_runner)

    def test_no_offer_is_read_twice(self, ground: Ground) -> None:
        with pytest.raises(
            ConfigurationError, match=r"read_offer\(\) now, want finish"
        ):
            _out_of_order(ground)

    def test_no_second_offer_after_one_that_was_refused(self, ground: Ground) -> None:
        initiator = ground.initiator(ground.entry().keys)
        good = travelled(ground.responder(ground.identity()).offer(initiator.hello()))
        with pytest.raises(Exception, match="session offer"):
            initiator.read_offer({}, ground.judge_runner)
        with pytest.raises(ConfigurationError, match="want nothing more"):
            initiator.read_offer(good, ground.judge_runner)

    def test_no_second_master_secret(self, ground: Ground) -> None:
        entry, responder = ground.entry(), ground.responder(ground.identity())
        keys = entry.keys
        initiator = ground.initiator(keys)
        offer = initiator.read_offer(
            travelled(responder.offer(initiator.hello())), ground.judge_runner
        )
        initiator.finish(entry.attest(offer.nonce, keys))
        with pytest.raises(ConfigurationError, match=r"finish\(\) now, want conclude"):
            initiator.finish(entry.attest(offer.nonce, keys))

    def test_no_second_confirmation(self, ground: Ground) -> None:
        entry, responder = ground.entry(), ground.responder(ground.identity())
        keys = entry.keys
        initiator = ground.initiator(keys)
        offer = initiator.read_offer(
            travelled(responder.offer(initiator.hello())), ground.judge_runner
        )
        confirm = responder.accept(initiator.finish(entry.attest(offer.nonce, keys)))
        initiator.conclude(confirm)
        with pytest.raises(ConfigurationError, match="want nothing more"):
            initiator.conclude(confirm)


class TestEnd:
    """A session ends with whatever it rests on that ends first."""

    def test_with_the_responders_keys(self, ground: Ground) -> None:
        runner = ground.identity(key_lifetime=timedelta(seconds=100))
        for session in ground.shake(ground.entry(), ground.responder(runner)):
            assert session.expires_at == runner.keys.document.not_after

    def test_with_the_callers_keys(self, ground: Ground) -> None:
        entry = ground.entry(key_lifetime=timedelta(seconds=100))
        for session in ground.shake(entry, ground.responder(ground.identity())):
            assert session.expires_at == entry.keys.document.not_after

    def test_with_the_evidence_of_either_end(self, ground: Ground) -> None:
        soon = NOW + timedelta(seconds=7)

        def short(shown: Shown) -> Any:
            result = ground.judge_anybody(shown)
            assert result is not None
            return replace(result, expires_at=soon)

        runner = ground.responder(ground.identity())
        assert ground.shake(ground.entry(), runner, short)[0].expires_at == soon
        runner = ground.responder(ground.identity(), short)
        assert ground.shake(ground.entry(), runner)[1].expires_at == soon

    def test_with_the_age_that_either_end_allows(self, ground: Ground) -> None:
        # The policy that judged may allow more.
        entry, responder = ground.entry(), ground.responder(ground.identity())
        keys = entry.keys
        initiator = Initiator(keys, max_age_seconds=5, clock=ground.clock)
        offer = initiator.read_offer(
            travelled(responder.offer(initiator.hello())), ground.judge_runner
        )
        confirm = responder.accept(initiator.finish(entry.attest(offer.nonce, keys)))
        assert initiator.conclude(confirm).expires_at == NOW + timedelta(seconds=5)
        short = Responder(
            ground.identity(),
            ground.judge_entry,
            max_age_seconds=6,
            clock=ground.clock,
        )
        served = ground.shake(entry, short)[1]
        assert served.expires_at == NOW + timedelta(seconds=6)

    def test_before_it_began_makes_no_session(self, ground: Ground) -> None:
        def aged(shown: Shown) -> Any:
            result = ground.judge_anybody(shown)
            assert result is not None
            return replace(result, expires_at=NOW)

        with pytest.raises(PolicyRejected) as refused:
            ground.shake(ground.entry(), ground.responder(ground.identity()), aged)
        assert [f.field for f in refused.value.findings] == ["expires_at"]
        with pytest.raises(PolicyRejected) as refused:
            ground.shake(ground.entry(), ground.responder(ground.identity(), aged))
        assert [f.field for f in refused.value.findings] == ["expires_at"]

    def test_of_a_client_whose_document_has_ended(self, ground: Ground) -> None:
        responder = ground.responder(ground.entry(), ground.judge_anybody)
        keys = ground.client_keys()
        document = replace(keys.document, not_after=NOW)
        with pytest.raises(PolicyRejected) as refused:
            ground.shake_as_client(
                responder, keys=replace(keys, document=document, digest=document.digest)
            )
        assert [f.field for f in refused.value.findings] == ["expires_at"]
