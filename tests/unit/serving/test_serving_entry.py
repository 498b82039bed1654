"""The entry: receipts that verify, evidence for them, and what follows them."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.attestation.key_document import package_digest
from bentoml_secure.errors import ConfigurationError, UnavailableError
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.receipt import (
    CALLER,
    ENTRY,
    SEALED,
    UNSEALED,
    parse_receipt,
)
from bentoml_secure.receipts.trust import Trust, parse_trust, write_trust
from bentoml_secure.receipts.verify import State, Verdict, verify_bundle
from bentoml_secure.serving import completion, entry, own_evidence
from bentoml_secure.serving.channel import Received
from bentoml_secure.serving.completion import late_votes, required_attachments
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.own_evidence import OwnEvidence
from bentoml_secure.serving.peers import FRESH_SHARE
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.session.handshake import Initiator
from bentoml_secure.session.identity import Keys, caller_keys
from bentoml_secure.session.judging import judge
from bentoml_secure.signing import Envelope
from bentoml_secure.testing.faults import lying, scaled
from tests.unit.serving.serving_parts import (
    MAX_AGE,
    Ground,
    Wrapped,
    feed,
    make_ground,
    name_of,
    with_late_replica,
)


def trust(ground: Ground) -> Trust:
    return parse_trust(
        write_trust(
            plan_digests=[ground.plan.digest],
            config_digests=[ground.configuration.digest],
            package_digests=[package_digest()],
            scenarios={ground.scenario.name: ground.scenario.digest},
            policy=ground.policy,
            minimum_quorum=ground.scenario.quorum,
        ).encode()
    )


def verify(bundle: Bundle, ground: Ground) -> Verdict:
    return verify_bundle(bundle, trust(ground), now=ground.clock())


async def asked(
    ground: Ground, made: Entry, context: RequestContext | None = None
) -> tuple[RequestContext, Envelope]:
    """One request from its arrival to its receipt."""
    context = context or ground.context()
    await made.engine.infer(context, feed())
    return context, await made.issue(context, 200, b"asked", b"answered")


def receipts(state: str) -> float:
    labels = {"scenario": "general", "state": state}
    name = "bentoml_secure_receipts_total"
    return REGISTRY.get_sample_value(name, labels) or 0.0


@dataclass(slots=True)
class Slow:
    """An entry one of whose replicas is late in segment 0, until the gate opens."""

    entry: Entry
    gate: threading.Event

    @classmethod
    async def of(cls, ground: Ground, store: Path, factor: float = 1.0) -> Slow:
        gate = threading.Event()
        run = lying(ground.segments[0].run_unchecked, scaled(factor))
        engine = await with_late_replica(ground, gate, run)
        return cls(ground.entry(engine, store), gate)


async def test_a_receipt_verifies_offline(ground: Ground, tmp_path: Path) -> None:
    made = ground.entry(await ground.attested(), tmp_path / "store")
    issued = receipts("issued")
    context, envelope = await asked(ground, made)
    assert receipts("issued") == issued + 1
    receipt_id = context.request_id.hex()
    await made.wait_complete(receipt_id, 5)
    bundle = made.store.bundle(receipt_id)
    assert bundle.receipt == envelope
    verdict = verify(bundle, ground)
    assert (verdict.state, verdict.simulated) == (State.ACCEPTED, True)
    receipt = parse_receipt(envelope)
    assert (receipt.api, receipt.status, receipt.service) == ("/ask", 200, "Skips")
    assert receipt.draw.asserted
    assert receipt.nonce_drawn_by == receipt.salt_drawn_by == CALLER
    assert receipt.first_hop == UNSEALED
    assert verdict.claims["labels"]["first hop"] == UNSEALED
    assert [p.name for p in receipt.parties if p.role == ENTRY] == ["Skips"]
    await made.close()


async def test_late_votes_are_attached_and_verify(
    ground: Ground, tmp_path: Path
) -> None:
    slow = await Slow.of(ground, tmp_path / "store")
    made = slow.entry
    completed = receipts("completed")
    context, envelope = await asked(ground, made)
    receipt_id = context.request_id.hex()
    (required,) = parse_receipt(envelope).attachments
    assert required.kind == "late-votes"
    assert verify(made.store.bundle(receipt_id), ground).state is State.PROVISIONAL
    # A wait that is over before the votes are in changes nothing.
    await made.wait_complete(receipt_id, 0.01)
    assert made.store.bundle(receipt_id).attachments == ()
    slow.gate.set()
    await made.wait_complete(receipt_id, 5)
    bundle = made.store.bundle(receipt_id)
    assert len(bundle.attachments) == 1
    assert verify(bundle, ground).state is State.ACCEPTED
    assert receipts("completed") == completed + 1
    await made.close()


async def test_a_late_liar_is_counted_and_attached(
    ground: Ground, tmp_path: Path
) -> None:
    slow = await Slow.of(ground, tmp_path / "store", factor=2.0)
    made = slow.entry
    name = "bentoml_secure_replica_dissent_total"
    labels = {"segment": "0", "replica": name_of(0, 2)}
    before = REGISTRY.get_sample_value(name, labels) or 0.0
    context, _ = await asked(ground, made)
    slow.gate.set()
    await made.wait_complete(context.request_id.hex(), 5)
    assert REGISTRY.get_sample_value(name, labels) == before + 1
    bundle = made.store.bundle(context.request_id.hex())
    assert verify(bundle, ground).state is State.ACCEPTED
    await made.close()


async def test_without_votes_still_out_nothing_is_to_follow(skips: Path) -> None:
    ground = make_ground(skips / "plan", replicas=1, quorum=1)
    context = ground.context()
    await (await ground.attested()).infer(context, feed())
    assert required_attachments(context, 3, ground.clock()) == ()


async def test_a_receipt_without_late_votes_is_complete_at_once(
    skips: Path, tmp_path: Path
) -> None:
    ground = make_ground(skips / "plan", replicas=1, quorum=1)
    made = ground.entry(await ground.attested(), tmp_path / "store")
    completed = receipts("completed")
    context, _ = await asked(ground, made)
    assert receipts("completed") == completed + 1
    await made.wait_complete(context.request_id.hex(), 5)
    await made.wait_complete("unknown", 5)
    await made.close()


async def test_the_deadline_of_late_votes_covers_the_grace(
    ground: Ground, tmp_path: Path
) -> None:
    slow = await Slow.of(ground, tmp_path / "store")
    made = slow.entry
    context = ground.context()
    await made.engine.infer(context, feed())
    (required,) = required_attachments(context, 3, ground.clock())
    grace = timedelta(milliseconds=ground.scenario.grace_ms)
    due = ground.clock() + grace + completion.DEADLINE_MARGIN
    assert required.deadline == due.strftime("%Y-%m-%dT%H:%M:%S.") + "000Z"
    slow.gate.set()
    await context.abandon()
    await made.close()


async def test_a_request_that_is_given_up_cancels_what_runs_for_it(
    ground: Ground, tmp_path: Path
) -> None:
    slow = await Slow.of(ground, tmp_path / "store")
    made = slow.entry
    context = ground.context()
    await made.engine.infer(context, feed())
    (pending, *_) = context.late
    slow.gate.set()
    await context.abandon()
    assert pending.task.cancelled()
    await made.close()


async def test_votes_that_cannot_be_attached_fail_the_receipt(
    ground: Ground, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = await Slow.of(ground, tmp_path / "store")
    made = slow.entry
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, told: unhandled.append(told)
    )
    failed = receipts("failed")
    context, _ = await asked(ground, made)
    made.store.close()
    slow.gate.set()
    with caplog.at_level(logging.ERROR, "bentoml_secure"):
        await made.wait_complete(context.request_id.hex(), 5)
    assert receipts("failed") == failed + 1
    assert "late votes were not attached" in caplog.text
    await made.close()
    # Said once, in the log: not again when the task is collected.
    assert unhandled == []


async def test_late_votes_of_several_segments_are_one_attachment(
    ground: Ground, tmp_path: Path
) -> None:
    slow = await Slow.of(ground, tmp_path / "store")
    made = slow.entry
    context = ground.context()
    await made.engine.infer(context, feed())
    await made.engine.infer(context, feed(1))
    envelope = await made.issue(context, 200, b"", b"")
    slow.gate.set()
    attached = await late_votes(
        context,
        envelope.payload_digest,
        made.engine,
        ground.own.keys.signing,
        ground.clock,
    )
    await made.wait_complete(context.request_id.hex(), 5)
    bundle = made.store.bundle(context.request_id.hex())
    assert attached.payload == bundle.attachments[0].payload
    assert verify(bundle, ground).state is State.ACCEPTED
    await made.close()


async def test_closing_finishes_attachments(ground: Ground, tmp_path: Path) -> None:
    slow = await Slow.of(ground, tmp_path / "store")
    made = slow.entry
    completed = receipts("completed")
    context, _ = await asked(ground, made)
    asyncio.get_running_loop().call_later(0.02, slow.gate.set)
    await made.close()
    assert receipts("completed") == completed + 1
    with pytest.raises(UnavailableError, match="receipt store"):
        made.store.bundle(context.request_id.hex())


async def test_a_receipt_that_cannot_be_stored_is_not_issued(
    ground: Ground, tmp_path: Path
) -> None:
    made = ground.entry(await ground.attested(), tmp_path / "store")
    context, _ = await asked(ground, made)
    issued = receipts("issued")
    with pytest.raises(ConfigurationError, match="a receipt of this id exists"):
        await made.issue(context, 200, b"", b"")
    assert receipts("issued") == issued
    await made.close()


@pytest.mark.parametrize(
    ("changes", "after", "who"),
    [
        # The entry's own: drawn with the first receipt, used again for half its age.
        ({}, 0, None),
        ({}, MAX_AGE - 1, None),
        ({}, MAX_AGE, "SkipsSegment.Replica."),
        ({"evidence_max_age_seconds": 60}, 59, None),
        ({"evidence_max_age_seconds": 60}, 60, "SkipsSegment.Replica."),
    ],
)
async def test_no_receipt_rests_on_evidence_that_aged_out_meanwhile(
    skips: Path, tmp_path: Path, changes: dict[str, Any], after: int, who: str | None
) -> None:
    ground = make_ground(skips / "plan", **changes)
    made = ground.entry(await ground.attested(), tmp_path / "store")
    context = ground.context()
    await made.engine.infer(context, feed())
    ground.clock.advance(seconds=after)
    if who is None:
        await made.issue(context, 200, b"", b"")
        receipt_id = context.request_id.hex()
        await made.wait_complete(receipt_id, 5)
        bundle = made.store.bundle(receipt_id)
        assert verify(bundle, ground).state is State.ACCEPTED
    else:
        issued = receipts("issued")
        with pytest.raises(UnavailableError, match=f"{who}: its evidence aged out"):
            await made.issue(context, 200, b"", b"")
        assert receipts("issued") == issued
    await context.abandon()
    await made.close()


@pytest.mark.parametrize(
    ("seconds", "signed"), [(FRESH_SHARE * 60 - 1, True), (FRESH_SHARE * 60, False)]
)
async def test_nor_on_the_entrys_own_that_aged_out_in_a_session(
    skips: Path, tmp_path: Path, seconds: float, signed: bool
) -> None:
    ground = make_ground(skips / "plan", evidence_max_age_seconds=60)
    made = ground.entry(await ground.attested(), tmp_path / "store")
    initiator = Initiator(
        caller_keys(ground.clock, timedelta(hours=1)),
        max_age_seconds=MAX_AGE,
        clock=ground.clock,
    )
    shown = made.responder.offer(initiator.hello())
    initiator.read_offer(
        shown, lambda shown: judge(shown, ground.policy, now=ground.clock())
    )
    initiator.conclude(made.responder.accept(initiator.finish(None)))
    session = made.responder.youngest()
    ground.clock.advance(seconds=seconds)
    for replicas in made.engine.peers:
        for peer in replicas:
            await peer.attest()
    context = ground.context(session=session)
    await made.engine.infer(context, feed())
    if signed:
        envelope = await made.issue(context, 200, b"", b"")
        assert parse_receipt(envelope).first_hop == SEALED
    else:
        with pytest.raises(UnavailableError, match="Skips: its evidence aged out"):
            await made.issue(context, 200, b"", b"")
    await context.abandon()
    await made.close()


# The entry's own evidence


def own(ground: Ground) -> OwnEvidence:
    return OwnEvidence(ground.own, timedelta(seconds=MAX_AGE / 2))


async def test_evidence_over_the_callers_nonce_stands_in_its_receipt(
    ground: Ground, tmp_path: Path
) -> None:
    made = ground.entry(await ground.attested(), tmp_path / "store")
    nonce = b"caller's own nonce of 32 bytes.."
    _, record = await made.evidence.attest(nonce, ground.clock())
    context = ground.context(evidence_nonce=nonce)
    _, envelope = await asked(ground, made, context)
    party = next(p for p in parse_receipt(envelope).parties if p.role == ENTRY)
    assert party.evidence_nonce == nonce.hex()
    assert party.evidence == record.digest
    await made.close()


async def test_a_nonce_that_nobody_asked_with_gets_the_entrys_own(
    ground: Ground,
) -> None:
    evidence = own(ground)
    for nonce in (None, b"x" * 32):
        made = await evidence.for_receipt(None, nonce, ground.clock())
        assert made.party.evidence == made.record.digest
        assert made.party.evidence_nonce != (b"x" * 32).hex()


async def test_own_evidence_is_used_again_until_half_its_age(ground: Ground) -> None:
    evidence = own(ground)
    first = await evidence.for_receipt(None, None, ground.clock())
    ground.clock.advance(seconds=MAX_AGE / 2 - 1)
    assert await evidence.for_receipt(None, None, ground.clock()) is first
    ground.clock.advance(seconds=1)
    second = await evidence.for_receipt(None, None, ground.clock())
    assert second.party.evidence_nonce != first.party.evidence_nonce
    assert await evidence.for_receipt(None, None, ground.clock()) is second


async def test_the_callers_evidence_that_is_too_old_is_not_used(
    ground: Ground,
) -> None:
    evidence = own(ground)
    await evidence.attest(b"n" * 32, ground.clock())
    ground.clock.advance(seconds=MAX_AGE / 2)
    made = await evidence.for_receipt(None, b"n" * 32, ground.clock())
    assert made.party.evidence_nonce != (b"n" * 32).hex()


async def test_a_receipt_is_signed_by_the_keys_that_its_evidence_binds(
    ground: Ground,
) -> None:
    evidence = own(ground)
    await evidence.attest(b"n" * 32, ground.clock())
    old = ground.own.keys
    # Renewed meanwhile: the caller has accepted evidence of the old ones.
    ground.own._keys = ground.own._make_keys()
    made = await evidence.for_receipt(None, b"n" * 32, ground.clock())
    assert made.keys is old
    assert made.keys is not ground.own.keys
    assert made.party.key_document == old.digest


async def test_open_nonces_are_bounded(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_evidence, "MAX_OPEN_NONCES", 3)
    evidence = own(ground)
    for index in range(5):
        await evidence.attest(bytes([index]) * 32, ground.clock())
    kept = [
        (
            await evidence.for_receipt(None, bytes([index]) * 32, ground.clock())
        ).party.evidence_nonce
        == (bytes([index]) * 32).hex()
        for index in (4, 3, 2, 1, 0)
    ]
    assert kept == [True, True, True, False, False]


# Salts, readiness, simulation


async def test_root_salts_that_the_entry_drew_are_kept_for_who_may_ask(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "MAX_KEPT_SALTS", 2)
    made = ground.entry(await ground.attested(), tmp_path / "store")
    await asked(ground, made, ground.context(1))
    assert made.salts == {}
    contexts = [ground.context(seed, salt_drawn_by=ENTRY) for seed in (2, 3, 4)]
    for context in contexts:
        await asked(ground, made, context)
    assert dict(made.salts) == {c.request_id.hex(): c.root_salt for c in contexts[1:]}
    await made.close()


async def test_root_salts_are_not_kept_where_nobody_may_ask(
    ground: Ground, tmp_path: Path
) -> None:
    made = ground.entry(await ground.attested(), tmp_path / "s", keep_salts=False)
    await asked(ground, made, ground.context(salt_drawn_by=ENTRY))
    assert made.salts == {}
    await made.close()


async def test_ready_once_the_minimum_scenario_could_be_served(
    ground: Ground, tmp_path: Path
) -> None:
    made = ground.entry(ground.engine(), tmp_path / "store")
    assert not await made.is_ready()
    await made.start()
    async with asyncio.timeout(5):
        while not await made.is_ready():  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.01)
    await made.close()


async def test_simulated_evidence_of_any_party_is_told(
    ground: Ground, tmp_path: Path
) -> None:
    made = ground.entry(await ground.attested(), tmp_path / "store")
    assert made.is_simulated(ground.context())
    await made.close()


async def test_a_replica_that_failed_is_no_reason_to_wait(
    ground: Ground, tmp_path: Path
) -> None:
    class Down(Wrapped):
        async def exchange(self, *args: Any) -> Received:
            raise UnavailableError("connection refused")

    engine = await ground.attested(
        wrap=lambda i, r, channel: Down(channel) if r == 0 else channel
    )
    made = ground.entry(engine, tmp_path / "store")
    context, _ = await asked(ground, made)
    await made.wait_complete(context.request_id.hex(), 5)
    bundle = made.store.bundle(context.request_id.hex())
    assert verify(bundle, ground).state is State.ACCEPTED
    absent = parse_receipt(bundle.receipt).infers[0].segments[0].tally.absent
    assert [a.replica for a in absent] == [name_of(0, 0)]
    await made.close()


async def test_requests_at_once_ask_the_device_once(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    attest = ground.own.attest

    def counted(nonce: bytes, keys: Keys) -> EvidenceRecord:
        asked.append(nonce)
        return attest(nonce, keys)

    monkeypatch.setattr(ground.own, "attest", counted)
    evidence = own(ground)
    made = await asyncio.gather(
        *(evidence.for_receipt(None, None, ground.clock()) for _ in range(20))
    )
    assert len(asked) == 1
    assert all(one is made[0] for one in made)
