"""What a responder keeps: bounded, let go of in time, good for one use."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from bentoml_secure.digest import Digest, digest_json
from bentoml_secure.errors import (
    MalformedInputError,
    SecureError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.session import responders
from bentoml_secure.session.responders import (
    RateLimitedError,
    Responder,
    Served,
    TokenBucket,
    UnknownSessionError,
)
from tests.unit.session.session_parts import MAX_AGE, Ground, travelled


class TestSessions:
    def test_one_ends_with_the_evidence_under_it(self, ground: Ground) -> None:
        responder = ground.responder(ground.identity())
        session, _ = ground.shake(ground.entry(), responder)
        ground.clock.advance(MAX_AGE - 0.001)
        held = responder.find(session.secrets.session_id).session
        assert held.secrets == session.secrets
        ground.clock.advance(0.001)
        with pytest.raises(UnknownSessionError, match="ended with the evidence"):
            responder.find(session.secrets.session_id)
        # Its secrets are let go of: from now on it is as unknown as any.
        with pytest.raises(UnknownSessionError, match="none is held here"):
            responder.find(session.secrets.session_id)

    def test_one_that_is_never_asked_for_is_let_go_of_too(self, ground: Ground) -> None:
        responder = ground.responder(ground.identity())
        ground.shake(ground.entry(), responder)
        ground.clock.advance(MAX_AGE)
        responder.offer(ground.initiator(ground.client_keys()).hello())
        assert not responder._served

    @pytest.mark.parametrize("session_id", [b"", bytes(16), bytes(17)])
    def test_strangers_are_unknown(self, ground: Ground, session_id: bytes) -> None:
        with pytest.raises(UnknownSessionError, match="none is held here"):
            ground.responder(ground.identity()).find(session_id)

    def test_the_oldest_ends_where_there_are_too_many(self, ground: Ground) -> None:
        responder = ground.responder(ground.identity(), max_sessions=2)
        entry = ground.entry()
        ids = [ground.shake(entry, responder)[0].secrets.session_id for _ in range(3)]
        with pytest.raises(UnknownSessionError, match="none is held here"):
            responder.find(ids[0])
        held = [responder.find(each).session.secrets.session_id for each in ids[1:]]
        assert held == ids[1:]

    def test_new_keys_end_no_session(self, ground: Ground) -> None:
        runner = ground.identity(key_lifetime=timedelta(seconds=160))
        responder = ground.responder(runner)
        session, _ = ground.shake(ground.entry(), responder)
        old = runner.keys
        ground.clock.advance(150)
        assert runner.keys is not old
        assert responder.find(session.secrets.session_id).session.keys.digest == (
            old.digest
        )

    def test_the_youngest_in_force_is_found_by_the_keys_that_it_showed(
        self, ground: Ground
    ) -> None:
        runner = ground.identity(key_lifetime=timedelta(seconds=160))
        responder, entry = ground.responder(runner), ground.entry()
        assert responder.youngest() is None
        first, _ = ground.shake(entry, responder)
        old = runner.keys.digest
        ground.clock.advance(150)
        second, _ = ground.shake(entry, responder)
        new = runner.keys.digest
        assert old != new

        def found(keys: Digest | None = None) -> bytes | None:
            session = responder.youngest(keys)
            return None if session is None else session.secrets.session_id

        assert found() == found(new) == second.secrets.session_id
        assert found(old) == first.secrets.session_id
        assert found(digest_json("another")) is None
        ground.clock.now = first.expires_at
        assert found(old) is None
        assert found() == second.secrets.session_id
        ground.clock.now = second.expires_at
        assert found() is None


class TestHandshakes:
    def test_the_oldest_is_forgotten_where_there_are_too_many(
        self, ground: Ground, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(responders, "MAX_HANDSHAKES", 2)
        responder, entry = ground.responder(ground.identity()), ground.entry()
        keys = entry.keys
        started = []
        for _ in range(3):
            initiator = ground.initiator(keys)
            b = travelled(responder.offer(initiator.hello()))
            offer = initiator.read_offer(b, ground.judge_runner)
            started.append(initiator.finish(entry.attest(offer.nonce, keys)))
        with pytest.raises(MalformedInputError, match="no handshake is open"):
            responder.accept(started[0])
        assert all(responder.accept(message) for message in started[1:])

    def test_abandoned_ones_do_not_keep_old_keys(self, ground: Ground) -> None:
        runner = ground.identity()
        responder = ground.responder(runner)
        responder.offer(ground.initiator(ground.client_keys()).hello())
        old = runner.keys.hpke
        assert old is not None
        ground.clock.now = runner.keys.document.not_after
        responder.offer(ground.initiator(ground.client_keys()).hello())
        held = [offered.keys.hpke for offered in responder._offered.values()]
        assert old not in held
        assert len(held) == 1

    def test_a_stranger_is_refused_before_his_evidence_is_parsed(
        self, ground: Ground
    ) -> None:
        responder = ground.responder(ground.identity())
        junk = dict.fromkeys(
            ("key_document", "attestation", "suite", "sealed", "signature"), "x" * 10**6
        )
        with pytest.raises(MalformedInputError, match="no handshake is open"):
            responder.accept({"version": 1, "nonce": "00" * 32, **junk})

    def test_two_finishes_at_once_make_one_session(self, ground: Ground) -> None:
        responder, entry = ground.responder(ground.identity()), ground.entry()
        keys = entry.keys
        initiator = ground.initiator(keys)
        offer = initiator.read_offer(
            travelled(responder.offer(initiator.hello())), ground.judge_runner
        )
        message = initiator.finish(entry.attest(offer.nonce, keys))
        gate = threading.Barrier(4)

        def accept() -> bool:
            gate.wait()
            try:
                responder.accept(message)
            except SecureError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(accept) for _ in range(4)]
        assert sum(future.result() for future in done) == 1

    def test_only_hellos_are_answered(self, ground: Ground) -> None:
        responder = ground.responder(ground.identity(), quotes=TokenBucket(1e-9, 1))
        for bad in (None, {}, {"version": 1}, {"version": 1, "nonce": "00" * 31}):
            with pytest.raises(MalformedInputError, match="session hello"):
                responder.offer(bad)
        # None of them cost any evidence.
        responder.offer(ground.initiator(ground.client_keys()).hello())


class TestRate:
    def test_evidence_is_made_at_a_bounded_rate(self, ground: Ground) -> None:
        seconds = [0.0]
        bucket = TokenBucket(2, 3, clock=lambda: seconds[0])
        responder = ground.responder(ground.identity(), quotes=bucket)

        def ask() -> None:
            responder.offer(ground.initiator(ground.client_keys()).hello())

        for _ in range(3):
            ask()
        with pytest.raises(RateLimitedError, match="more than 2 a second"):
            ask()
        seconds[0] += 0.5
        ask()
        with pytest.raises(UnavailableError, match="Try again"):
            ask()
        # However long nobody asks, no more than the burst is saved up.
        seconds[0] += 1e6
        for _ in range(3):
            ask()
        with pytest.raises(RateLimitedError, match="a second"):
            ask()


class TestExchanges:
    def served(self, ground: Ground, most: int) -> Served:
        responder: Responder = ground.responder(ground.identity(), max_exchanges=most)
        session, _ = ground.shake(ground.entry(), responder)
        return responder.find(session.secrets.session_id)

    def test_an_id_is_good_for_one_use(self, ground: Ground) -> None:
        served = self.served(ground, 9)
        served.use(b"1" * 16)
        served.use(b"2" * 16)
        with pytest.raises(VerificationError, match="used before"):
            served.use(b"1" * 16)

    def test_a_full_window_ends_the_session_and_forgets_nothing(
        self, ground: Ground
    ) -> None:
        served = self.served(ground, 2)
        served.use(b"1" * 16)
        served.use(b"2" * 16)
        with pytest.raises(UnknownSessionError, match="more than 2 exchanges"):
            served.use(b"3" * 16)
        with pytest.raises(VerificationError, match="used before"):
            served.use(b"1" * 16)

    def test_threads_at_once_use_an_id_once(self, ground: Ground) -> None:
        served = self.served(ground, 9)

        class Slow(set[bytes]):
            """A set in which everybody looks before anybody adds."""

            def __contains__(self, key: object) -> bool:
                found = super().__contains__(key)
                # Gives the other threads the time to look as well.
                threading.Event().wait(0.01)
                return found

        served._used = Slow()
        gate = threading.Barrier(4)

        def use() -> bool:
            gate.wait()
            try:
                served.use(b"1" * 16)
            except VerificationError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(use) for _ in range(4)]
        assert sum(future.result() for future in done) == 1
