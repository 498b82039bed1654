"""A replica is believed while accepted evidence of it is at hand, and no longer."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    AttestationError,
    MalformedInputError,
    PolicyRejected,
    SecureError,
    UnavailableError,
)
from bentoml_secure.serving import peers
from bentoml_secure.serving.channel import Channel, LocalChannel
from bentoml_secure.serving.peers import FRESH_SHARE, Peer, ready
from bentoml_secure.serving.runner_app import attestation_document
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.messages import Document
from bentoml_secure.testing.rogue.attestations import as_offer
from tests.unit.serving.serving_parts import (
    MAX_AGE,
    Ground,
    Wrapped,
    name_of,
    scenario,
)

OFFER = {"version": 1, "nonce": "00" * 32, "key_document": 1, "attestation": 2}


class Shows(Wrapped):
    """A replica that shows what it is told to.

    Attributes:
        answer: In place of the replica's; an exception is raised.
        hang: Never answers.
        asked: Nonces, in order.
    """

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner)
        self.answer: Any = None
        self.hang = False
        self.probe_error: Exception | None = None
        self.asked: list[bytes] = []

    async def hello(self, message: Document) -> Any:
        nonce = bytes.fromhex(message["nonce"])
        self.asked.append(nonce)
        if self.hang:
            await asyncio.sleep(3600)
        if isinstance(self.answer, Exception):
            raise self.answer
        if callable(self.answer):
            return self.answer(nonce)
        return await super().hello(message)

    async def probe(self) -> None:
        if self.hang:
            await asyncio.sleep(3600)
        if self.probe_error is not None:
            raise self.probe_error


def shown_by(identity: Identity) -> Any:
    """Return what a process with this identity answers to a hello."""

    def answer(nonce: bytes) -> Any:
        keys = identity.keys
        shown = attestation_document(keys, identity.attest(nonce, keys))
        return as_offer(shown)

    return answer


@pytest.fixture
def channel(ground: Ground) -> Shows:
    return Shows(LocalChannel(ground.core(0)))


@pytest.fixture
def peer(ground: Ground, channel: Shows) -> Peer:
    return ground.peer(0, 0, channel)


def attested_metric(peer: Peer) -> float | None:
    labels = {"segment": "0", "replica": peer.name, "kind": "simulated"}
    return REGISTRY.get_sample_value("bentoml_secure_attested", labels)


def counted(result: str) -> float:
    labels = {"mechanism": "attestation", "segment": "0", "result": result}
    name = "bentoml_secure_verifications_total"
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_nothing_is_believed_before_evidence(peer: Peer) -> None:
    with pytest.raises(UnavailableError, match="not attested: not attested yet"):
        peer.require(MAX_AGE)
    assert not await peer.is_ready(MAX_AGE)


async def test_accepted_evidence_and_what_it_binds(
    peer: Peer, channel: Shows, ground: Ground
) -> None:
    passed = counted("pass")
    await peer.attest()
    attested = peer.require(MAX_AGE)
    assert attested.document.service == name_of(0, 0)
    assert attested.key.raw.hex() == attested.document.ed25519
    assert attested.nonce_issued_at == ground.clock()
    assert attested.result.kind == "simulated"
    party = attested.party
    assert (party.name, party.role) == (name_of(0, 0), "runner")
    assert party.key_document == attested.document.digest
    assert party.evidence == attested.record.digest
    assert party.evidence_nonce == channel.asked[0].hex()
    assert attested_metric(peer) == 1
    assert counted("pass") == passed + 1
    assert await peer.is_ready(MAX_AGE)


async def test_every_attestation_has_a_nonce_of_its_own(
    peer: Peer, channel: Shows
) -> None:
    for _ in range(3):
        await peer.attest()
    assert len(set(channel.asked)) == 3
    assert {len(nonce) for nonce in channel.asked} == {32}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("role", {"role": Role.PROVER}),
        ("service", {"service": "Another"}),
        ("segment", {"segment": digest_json("another")}),
        ("plan", {"plan": digest_json("another")}),
        ("config_digest", {"config_digest": digest_json("another")}),
    ],
)
async def test_keys_of_anything_else_are_refused(
    peer: Peer, channel: Shows, ground: Ground, field: str, changes: dict[str, Any]
) -> None:
    made = {
        "role": Role.RUNNER,
        "service": name_of(0, 0),
        "segment": ground.plan.segments[0].identity,
        **changes,
    }
    channel.answer = shown_by(ground.identity(**made))
    failed = counted("fail")
    with pytest.raises(AttestationError, match=f"{field}: got .* want"):
        await peer.attest()
    assert counted("fail") == failed + 1


async def test_another_release_of_the_package_is_refused(
    peer: Peer, channel: Shows, ground: Ground
) -> None:
    honest = shown_by(
        ground.identity(Role.RUNNER, name_of(0, 0), ground.plan.segments[0].identity)
    )

    def answer(nonce: bytes) -> Any:
        shown = copy.deepcopy(honest(nonce))
        shown["key_document"]["package"] = digest_json("another release")
        return shown

    channel.answer = answer
    with pytest.raises(AttestationError, match="package: got"):
        await peer.attest()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "want an object"),
        ([], "want an object"),
        ({}, "is missing"),
        ({**OFFER, "more": 4}, "more"),
        (OFFER, "key document"),
    ],
)
async def test_an_answer_that_is_none(
    peer: Peer, channel: Shows, answer: Any, why: str
) -> None:
    channel.answer = lambda nonce: answer
    with pytest.raises(MalformedInputError, match=why):
        await peer.attest()
    with pytest.raises(UnavailableError, match=f"not attested: .*{why}"):
        peer.require(MAX_AGE)


async def test_evidence_over_another_nonce_or_root_is_refused(
    peer: Peer, channel: Shows, ground: Ground
) -> None:
    segment = ground.plan.segments[0].identity
    honest = shown_by(ground.identity(Role.RUNNER, name_of(0, 0), segment))
    recorded = honest(b"\1" * 32)
    channel.answer = lambda nonce: recorded
    with pytest.raises(PolicyRejected, match="report_data"):
        await peer.attest()
    foreign = ground.identity(
        Role.RUNNER, name_of(0, 0), segment, root_name="another root"
    )
    channel.answer = shown_by(foreign)
    with pytest.raises(PolicyRejected, match="root: got"):
        await peer.attest()
    with pytest.raises(UnavailableError, match="not attested: key document of runner"):
        peer.require(MAX_AGE)


async def test_evidence_ages_and_is_asked_for_anew(
    peer: Peer, channel: Shows, ground: Ground
) -> None:
    await peer.attest()
    ground.clock.advance(seconds=FRESH_SHARE * 60)
    peer.require(60)
    ground.clock.advance(seconds=1)
    with pytest.raises(UnavailableError, match="evidence is 55 s old"):
        peer.require(60)
    await asyncio.sleep(0.05)
    assert len(channel.asked) == 2
    peer.require(60)
    await peer.close()


async def test_the_policys_age_holds_whatever_the_scenario_allows(
    peer: Peer, ground: Ground
) -> None:
    await peer.attest()
    ground.clock.advance(seconds=FRESH_SHARE * MAX_AGE + 1)
    with pytest.raises(UnavailableError, match="evidence is 271 s old"):
        peer.require(86_400)
    await peer.close()


async def test_a_device_that_fails_is_named_while_evidence_ages(
    peer: Peer, channel: Shows, ground: Ground
) -> None:
    await peer.attest()
    channel.answer = UnavailableError("the device does not answer")
    with pytest.raises(UnavailableError, match="does not answer"):
        await peer.attest()
    ground.clock.advance(seconds=FRESH_SHARE * MAX_AGE + 1)
    why = "evidence is 271 s old; asked for anew: the device does not answer"
    with pytest.raises(UnavailableError, match=why):
        peer.require(MAX_AGE)
    await asyncio.sleep(0)
    channel.answer = None
    await peer.attest()
    ground.clock.advance(seconds=FRESH_SHARE * MAX_AGE + 1)
    with pytest.raises(UnavailableError, match=r"evidence is 271 s old$"):
        peer.require(MAX_AGE)
    await peer.close()


async def test_a_session_that_ends_before_its_evidence_is_left_in_time(
    peer: Peer, ground: Ground
) -> None:
    # Keys that end within the evidence's age end the session with them.
    ground.own._keys = replace(
        ground.own.keys,
        document=replace(
            ground.own.keys.document,
            not_after=ground.clock() + timedelta(seconds=60),
        ),
    )
    await peer.attest()
    attested = peer.require(MAX_AGE)
    assert attested.session.expires_at == ground.clock() + timedelta(seconds=60)
    ground.clock.advance(seconds=58)
    peer.require(MAX_AGE)
    ground.clock.advance(seconds=0.5)
    with pytest.raises(UnavailableError, match="its session is about to end"):
        peer.require(MAX_AGE)
    peer.require_young(attested, MAX_AGE)
    ground.clock.advance(seconds=1.5)
    with pytest.raises(UnavailableError, match="its session has ended by now"):
        peer.require_young(attested, MAX_AGE)
    await peer.close()


async def test_an_answer_under_evidence_older_than_the_scenario_allows(
    peer: Peer, ground: Ground
) -> None:
    await peer.attest()
    attested = peer.require(60)
    ground.clock.advance(seconds=60)
    peer.require_young(attested, 60)
    ground.clock.advance(seconds=1)
    with pytest.raises(UnavailableError, match="evidence is 61 s old by now"):
        peer.require_young(attested, 60)


async def test_evidence_is_renewed_in_time_for_every_scenario(
    ground: Ground, channel: Shows
) -> None:
    peer = ground.peer(0, 0, channel, max_age_seconds=0.05)
    async with kept(peer):
        await until(lambda: len(channel.asked) >= 3)


async def test_one_renewal_at_a_time(peer: Peer, channel: Shows) -> None:
    for _ in range(3):
        peer.renew()
    await asyncio.sleep(0.05)
    assert len(channel.asked) == 1
    peer.renew()
    await asyncio.sleep(0.05)
    assert len(channel.asked) == 2
    await peer.close()


async def test_a_renewal_that_fails_says_so_in_the_log(
    peer: Peer, channel: Shows, caplog: pytest.LogCaptureFixture
) -> None:
    channel.answer = UnavailableError("connection refused")
    peer.renew()
    await asyncio.sleep(0.02)
    assert f"{peer.name}: attestation failed: connection refused" in caplog.text
    await peer.close()


async def test_a_replica_that_is_not_reachable_is_believed_for_its_age(
    peer: Peer, channel: Shows, ground: Ground
) -> None:
    await peer.attest()
    channel.answer = UnavailableError("connection refused")
    with pytest.raises(UnavailableError, match="connection refused"):
        await peer.attest()
    peer.require(MAX_AGE)
    assert attested_metric(peer) == 1
    ground.clock.advance(seconds=MAX_AGE + 1)
    with pytest.raises(UnavailableError, match="connection refused"):
        await peer.attest()
    assert attested_metric(peer) == 0
    with pytest.raises(UnavailableError, match="not attested: connection refused"):
        peer.require(MAX_AGE)


async def test_a_replica_that_shows_something_else_is_believed_no_more(
    peer: Peer, channel: Shows
) -> None:
    await peer.attest()
    channel.answer = lambda nonce: {}
    with pytest.raises(SecureError, match="is missing"):
        await peer.attest()
    assert attested_metric(peer) == 0
    with pytest.raises(UnavailableError, match="not attested: session offer"):
        peer.require(MAX_AGE)


async def test_a_replica_that_hangs_is_waited_for_a_little(
    peer: Peer, channel: Shows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await peer.attest()
    monkeypatch.setattr(peers, "ATTEST_SECONDS", 0.02)
    monkeypatch.setattr(peers, "PROBE_SECONDS", 0.02)
    channel.hang = True
    with pytest.raises(UnavailableError, match=r"no evidence within 0\.02 s"):
        await peer.attest()
    peer.require(MAX_AGE)
    assert not await peer.is_ready(MAX_AGE)


@asynccontextmanager
async def kept(peer: Peer) -> AsyncIterator[None]:
    task = asyncio.create_task(peer.keep_attested())
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def until(condition: Any, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing here sets an event
            await asyncio.sleep(0.005)


async def test_a_replica_is_asked_until_it_shows_evidence(
    peer: Peer, channel: Shows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "RETRY_SECONDS", 0.01)
    channel.answer = UnavailableError("starting")
    async with kept(peer):
        await until(lambda: len(channel.asked) >= 3)
        assert not await peer.is_ready(MAX_AGE)
        channel.answer = None
        asked = len(channel.asked)
        await until(lambda: len(channel.asked) > asked)
        await asyncio.sleep(0.05)
        # Fresh: left alone now.
        assert len(channel.asked) == asked + 1
        assert await peer.is_ready(MAX_AGE)


async def test_evidence_is_renewed_long_before_it_is_too_old(
    peer: Peer, channel: Shows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_LONGEST_PAUSE_SECONDS", 0.02)
    async with kept(peer):
        await until(lambda: len(channel.asked) >= 3)


async def test_a_replica_given_up_meanwhile_is_asked_at_once(
    peer: Peer, channel: Shows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "RETRY_SECONDS", 0.01)
    async with kept(peer):
        await until(lambda: peer.claims is not None)
        channel.answer = lambda nonce: {}
        with pytest.raises(MalformedInputError, match="is missing"):
            await peer.attest()
        channel.answer = None
        asked = len(channel.asked)
        await until(lambda: len(channel.asked) > asked)
        await asyncio.sleep(0.02)
        peer.require(MAX_AGE)


async def test_closing_ends_a_renewal_and_the_connection(
    peer: Peer, channel: Shows
) -> None:
    channel.hang = True
    peer.renew()
    await asyncio.sleep(0.01)
    async with asyncio.timeout(1):
        await peer.close()
    assert channel.closed


async def test_a_quorum_of_every_segment_makes_it_ready(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PROBE_SECONDS", 0.05)
    rows = [
        [ground.peer(i, r, Shows(LocalChannel(ground.core(i, r)))) for r in range(3)]
        for i in range(2)
    ]

    async def is_ready(quorum: int = 2) -> bool:
        return await ready(rows, scenario(quorum=quorum))

    assert not await is_ready()
    for row in rows:
        for peer in row:
            await peer.attest()
    assert await is_ready(3)
    hung, refusing = rows[1][0].channel, rows[1][1].channel
    assert isinstance(hung, Shows)
    assert isinstance(refusing, Shows)
    hung.hang = True
    assert await is_ready()
    assert not await is_ready(3)
    refusing.probe_error = UnavailableError("connection refused")
    async with asyncio.timeout(1):
        # One segment's surplus does not make up for another's lack.
        assert not await is_ready()
