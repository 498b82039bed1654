"""Commit, then reveal, between an entry and runners: over HTTP and in this process."""

from __future__ import annotations

import asyncio
import gc
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentoml_secure.consensus.barrier import Barrier
from bentoml_secure.consensus.commit_reveal import (
    COMMITMENT_TYPE,
    parse_commitment_envelope,
    require_commitment,
    require_opening,
    sign_commitment,
    verify_commitment,
)
from bentoml_secure.digest import Digest
from bentoml_secure.errors import (
    MalformedInputError,
    SecureError,
    StatementError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.serving.asking import Asking
from bentoml_secure.serving.channel import Channel, LocalChannel, Received
from bentoml_secure.serving.exchange import (
    CHUNK_BYTES,
    MAX_REVEAL_BYTES,
    Exchange,
    Opening,
    Outgoing,
    encode_reveal,
)
from bentoml_secure.serving.held import Held, HeldAnswers
from bentoml_secure.serving.http1 import ConnectionLostError
from bentoml_secure.serving.peers import Peer
from bentoml_secure.serving.readers import RequestReader, ResponseReader
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.serving.sealed import INFER, REVEAL, SealedExchange, SealedReveal
from bentoml_secure.session.bodies import SealedCall
from bentoml_secure.session.keys import Session
from bentoml_secure.signing import sign
from bentoml_secure.statements import parse_statement_envelope, verify_statement
from bentoml_secure.tensors import TensorSpec, commit
from tests.unit.serving.serving_parts import (
    MAX_AGE,
    Ground,
    Wrapped,
    feed,
    make_ground,
)
from tests.unit.serving.test_serving_channel import locally, over_http

LONG = 30.0
KEEPERS = (RequestReader, ResponseReader, Held, Outgoing)


@pytest.fixture
def ground(skips: Path) -> Ground:
    return make_ground(skips / "plan", commit_reveal=True)


@pytest.fixture
def plain(skips: Path) -> Ground:
    return make_ground(skips / "plan", commit_reveal=True, sealed=False)


def committing(ground: Ground, **changes: Any) -> Exchange:
    made = {"commit": True, "exchange_id": secrets.token_hex(16), **changes}
    return ground.exchange(0, **made)


def x(batch: int = 2) -> Outgoing:
    return Outgoing.of({"x": feed(batch=batch)["x"]})


WAYS = pytest.mark.parametrize("way", [over_http, locally])
SEALS = pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])


@WAYS
@SEALS
@pytest.mark.parametrize("batch", [1, 3, 20_000], ids=str)
async def test_a_commitment_then_the_answer(
    ground: Ground, plain: Ground, way: type, sealed: bool, batch: int
) -> None:
    ground = ground if sealed else plain
    core, exchange = ground.core(0), committing(ground)
    specs = ground.plan.segments[0].outputs
    async with way(core) as (channel, _):
        opened = await ground.session(channel)
        session = opened if sealed else None
        said = await channel.commit(exchange, x(batch), session)
        received = await channel.reveal(exchange, specs, session)
    key = core.identity.keys.signing.public
    commitment = verify_commitment(parse_commitment_envelope(said), key)
    require_commitment(commitment, exchange.task, core.identity.keys.digest)
    expected = ground.segments[0].run({"x": feed(batch=batch)["x"]})
    np.testing.assert_array_equal(received.tensors["h"], expected["h"], strict=True)
    outputs = commit(expected, exchange.output_salts)
    assert received.commitments == outputs
    opening = Opening.from_json(received.statement)
    name = core.identity.keys.document.service
    require_opening(commitment, name, outputs, opening.nonce)
    statement = verify_statement(parse_statement_envelope(opening.statement), key)
    assert statement.outputs == outputs
    assert (batch == 20_000) == (Outgoing.of(expected).total_bytes > CHUNK_BYTES)


@WAYS
@SEALS
async def test_tensors_go_once_they_are_revealed(
    ground: Ground, plain: Ground, way: type, sealed: bool
) -> None:
    ground = ground if sealed else plain
    specs = ground.plan.segments[0].outputs
    async with way(ground.core(0)) as (channel, _):
        opened = await ground.session(channel)
        session = opened if sealed else None

        async def once() -> None:
            exchange = committing(ground)
            await channel.commit(exchange, x(20_000), session)
            await channel.reveal(exchange, specs, session)

        await once()
        # Not when the collector comes by: whatever many requests read would wait.
        gc.collect()
        gc.disable()
        try:
            await once()
            # The thread that made commitments lets go of them a moment later.
            await asyncio.sleep(0.1)
            left = [type(o) for o in gc.get_objects() if issubclass(type(o), KEEPERS)]
        finally:
            gc.enable()
        assert left == []


async def test_a_sealed_exchange_that_ends_early_is_refused(ground: Ground) -> None:
    core = ground.core(0)
    session = await ground.session(LocalChannel(core))
    for sealed in (SealedExchange, SealedReveal):
        operation = REVEAL if sealed is SealedReveal else INFER
        body = SealedCall.begin(session, operation).seal((b"",), (0,))
        request = sealed(core, body.length)
        for piece in body.pieces:
            request.feed(piece)
        with pytest.raises(MalformedInputError, match=r"ended early|not valid JSON"):
            await request.answer()


@WAYS
@SEALS
async def test_an_answer_is_revealed_once(
    ground: Ground, plain: Ground, way: type, sealed: bool
) -> None:
    ground = ground if sealed else plain
    exchange, specs = committing(ground), ground.plan.segments[0].outputs
    async with way(ground.core(0)) as (channel, _):
        opened = await ground.session(channel)
        session = opened if sealed else None
        with pytest.raises(UnavailableError, match="no answer is held"):
            await channel.reveal(exchange, specs, session)
        await channel.commit(exchange, x(), session)
        await channel.reveal(exchange, specs, session)
        with pytest.raises(UnavailableError, match="no answer is held"):
            await channel.reveal(exchange, specs, session)


@WAYS
async def test_an_answer_is_revealed_to_the_session_that_asked(
    ground: Ground, way: type
) -> None:
    exchange, specs = committing(ground), ground.plan.segments[0].outputs
    async with way(ground.core(0)) as (channel, _):
        session, other = [await ground.session(channel) for _ in range(2)]
        await channel.commit(exchange, x(), session)
        with pytest.raises(UnavailableError, match="no answer is held for this sess"):
            await channel.reveal(exchange, specs, other)
        assert (await channel.reveal(exchange, specs, session)).statement


@WAYS
async def test_an_answer_is_revealed_for_its_own_request(
    ground: Ground, way: type
) -> None:
    exchange, specs = committing(ground), ground.plan.segments[0].outputs
    async with way(ground.core(0)) as (channel, _):
        session = await ground.session(channel)
        await channel.commit(exchange, x(), session)
        other = replace(exchange, request_id="ab" * 16)
        with pytest.raises(UnavailableError, match="reveal request_id: got abab"):
            await channel.reveal(other, specs, session)


@WAYS
@SEALS
async def test_an_answer_is_not_revealed_under_evidence_that_aged_out(
    ground: Ground, plain: Ground, way: type, sealed: bool
) -> None:
    ground = ground if sealed else plain
    exchange, specs = committing(ground), ground.plan.segments[0].outputs
    async with way(ground.core(0)) as (channel, _):
        opened = await ground.session(channel)
        session = opened if sealed else None
        await channel.commit(exchange, x(), session)
        ground.clock.advance(seconds=MAX_AGE + 1)
        with pytest.raises(SecureError, match="evidence"):
            await channel.reveal(exchange, specs, session)


@WAYS
async def test_nobody_commits_where_no_scenario_asks(skips: Path, way: type) -> None:
    ground = make_ground(skips / "plan")
    async with way(ground.core(0)) as (channel, _):
        session = await ground.session(channel)
        with pytest.raises(UnavailableError, match="asks for a commitment; no scen"):
            await channel.commit(committing(ground), x(), session)
        specs = ground.plan.segments[0].outputs
        with pytest.raises(UnavailableError, match="asks for a commitment; no scen"):
            await channel.reveal(committing(ground), specs, session)


@WAYS
async def test_a_flood_of_commitments_is_refused_before_the_segment_runs(
    ground: Ground, way: type
) -> None:
    runs = 0
    segment = ground.segments[0]

    def counted(tensors: Any) -> Any:
        nonlocal runs
        runs += 1
        return segment.run_unchecked(tensors)

    core = ground.core(0, run=counted)
    core._held = HeldAnswers(seconds=LONG, max_count=3)
    async with way(core) as (channel, _):
        session = await ground.session(channel)
        kept = [committing(ground) for _ in range(3)]
        for exchange in kept:
            await channel.commit(exchange, x(), session)
        with pytest.raises(UnavailableError, match="3 answers wait to be revealed"):
            await channel.commit(committing(ground), x(), session)
        assert runs == 3
        specs = ground.plan.segments[0].outputs
        # An exchange that commits to nothing is served meanwhile.
        await channel.exchange(committing(ground, commit=False), x(), specs, session)
        await channel.reveal(kept[0], specs, session)
        await channel.commit(committing(ground), x(), session)


async def revealed(
    core: RunnerCore, session: Session, operation: str, message: bytes
) -> None:
    """Send a runner a reveal, sealed as some operation."""
    call = SealedCall.begin(session, operation)
    body = call.seal((message,), (len(message),))
    reveal = SealedReveal(core, body.length)
    for piece in body.pieces:
        reveal.feed(piece)
    await reveal.answer()


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "not valid JSON"),
        (b"\x80\x04N.", "not valid JSON"),
        (b"[]", "want an object"),
        (b"{}", "field 'exchange_id' is missing"),
        (b'{"version":2,"exchange_id":"' + b"0" * 32 + b'"}', "version: want 1"),
        (b'{"version":true,"exchange_id":"' + b"0" * 32 + b'"}', "version: want 1"),
        (b'{"version":1,"exchange_id":"00"}', "got 2 hex digits, want 32"),
        (b" " * (MAX_REVEAL_BYTES + 1), "reveal: got 257 bytes, want at most 256"),
    ],
)
async def test_a_reveal_of_another_form_is_refused(
    ground: Ground, message: bytes, why: str
) -> None:
    core = ground.core(0)
    session = await ground.session(LocalChannel(core))
    with pytest.raises(MalformedInputError, match=why):
        await revealed(core, session, REVEAL, message)


async def test_a_reveal_that_ends_early_is_refused(ground: Ground) -> None:
    core = ground.core(0)
    with pytest.raises(MalformedInputError, match="ended early"):
        await SealedReveal(core, 100).answer()


async def test_an_exchange_is_no_reveal(ground: Ground) -> None:
    """The operation is in the seal: one cannot be sent to the other's path."""
    core = ground.core(0)
    session = await ground.session(LocalChannel(core))
    with pytest.raises(VerificationError, match="authentic"):
        await revealed(core, session, "infer", encode_reveal("0" * 32))


# Asking: what makes an answer that was committed to a vote.


class Meddling(Wrapped):
    """A channel that changes what a replica says.

    Attributes:
        said: Changes the commitment's JSON.
        shown: Changes what is revealed.
        commits: Exchanges sent to be committed to.
        reveals: Exchanges asked to be revealed.
    """

    def __init__(
        self,
        inner: Channel,
        said: Callable[[Any], Any] = lambda document: document,
        shown: Callable[[Received], Received] = lambda received: received,
    ) -> None:
        super().__init__(inner)
        self.said, self.shown = said, shown
        self.commits: list[Exchange] = []
        self.reveals: list[Exchange] = []
        self.losses: list[str] = []

    def lose(self, what: str) -> None:
        if what in self.losses:
            self.losses.remove(what)
            raise ConnectionLostError("connection lost before an answer")

    async def commit(
        self, exchange: Exchange, outgoing: Outgoing, session: Session | None
    ) -> Any:
        self.commits.append(exchange)
        self.lose("commit")
        return self.said(await self.inner.commit(exchange, outgoing, session))

    async def reveal(
        self,
        exchange: Exchange,
        specs: Sequence[TensorSpec],
        session: Session | None,
    ) -> Received:
        self.reveals.append(exchange)
        self.lose("reveal")
        return self.shown(await self.inner.reveal(exchange, specs, session))


@dataclass(kw_only=True)
class Committee:
    """Three replicas of the first segment, attested, and one round that asks them."""

    ground: Ground
    peers: list[Peer]
    channels: list[Meddling]
    cores: list[RunnerCore]

    @classmethod
    async def of(cls, ground: Ground) -> Committee:
        cores = [ground.core(0, replica) for replica in range(3)]
        channels = [Meddling(LocalChannel(core)) for core in cores]
        peers = [ground.peer(0, r, channel) for r, channel in enumerate(channels)]
        for peer in peers:
            await peer.attest()
        return cls(ground=ground, peers=peers, channels=channels, cores=cores)

    def asking(self, quorum: int = 2, seconds: float = LONG) -> Asking:
        plan, context = self.ground.plan, self.ground.context()
        tensors = {"x": feed()["x"]}
        salts = {n: context.salt(0, "tensor", n) for n in ("x", "h")}
        return Asking(
            context,
            0,
            plan.digest,
            Outgoing.of(tensors),
            commit(tensors, {"x": salts["x"]}),
            plan.segments[0].outputs,
            salts,
            Barrier(
                [peer.name for peer in self.peers],
                quorum=quorum,
                wait_seconds=seconds,
            ),
        )


@pytest.fixture
async def committee(ground: Ground) -> Committee:
    return await Committee.of(ground)


async def test_no_answer_is_asked_for_before_a_quorum_has_committed(
    committee: Committee,
) -> None:
    asking = committee.asking()
    first = asyncio.create_task(asking.ask(committee.peers[0]))
    await asyncio.sleep(0.05)
    assert len(committee.channels[0].commits) == 1
    assert committee.channels[0].reveals == []
    second = await asking.ask(committee.peers[1])
    answers = [await first, second, await asking.ask(committee.peers[2])]
    revealed = [answer.value.revealed for answer in answers]
    assert [r.blind for r in revealed if r is not None] == [True, True, False]
    votes = {answer.vote.commitments for answer in answers}
    assert len(votes) == 1
    # Equal answers, and nobody could have told from the commitments.
    assert len({r.commitment.payload for r in revealed if r is not None}) == 3


async def test_what_was_committed_to_is_kept_with_the_vote(
    committee: Committee,
) -> None:
    asking, peer = committee.asking(quorum=1), committee.peers[0]
    made = (await asking.ask(peer)).value
    assert made.revealed is not None
    attested = asking.context.pin(peer)
    commitment = verify_commitment(made.revealed.commitment, attested.key)
    require_opening(commitment, peer.name, made.commitments, made.revealed.nonce)
    statement = verify_statement(made.envelope, attested.key)
    assert commitment.task == committee.channels[0].commits[0].task
    assert statement.exchange_id == commitment.task.exchange_id


async def test_without_a_barrier_nothing_is_committed_to(committee: Committee) -> None:
    asking = replace(committee.asking(), barrier=None)
    answer = await asking.ask(committee.peers[0])
    assert answer.value.revealed is None
    assert committee.channels[0].commits == []
    assert [e.commit for e in committee.channels[0].exchanges] == [False]


async def test_one_that_fails_holds_nobody_back(committee: Committee) -> None:
    asking = committee.asking(quorum=3)
    committee.channels[2].said = lambda document: {}
    first, second = [
        asyncio.create_task(asking.ask(peer)) for peer in committee.peers[:2]
    ]
    with pytest.raises(MalformedInputError, match="commitment"):
        await asking.ask(committee.peers[2])
    assert (await first).vote.commitments == (await second).vote.commitments


@pytest.mark.parametrize("what", ["commit", "reveal"])
async def test_an_idle_connection_that_was_closed_is_tried_again(
    committee: Committee, what: str
) -> None:
    channel = committee.channels[0]
    channel.losses = [what]
    answer = await committee.asking(quorum=1).ask(committee.peers[0])
    assert answer.value.revealed is not None
    commits = [exchange.exchange_id for exchange in channel.commits]
    reveals = [exchange.exchange_id for exchange in channel.reveals]
    assert (len(commits), len(reveals)) == ((2, 1) if what == "commit" else (1, 2))
    # A commitment is made anew; a reveal asks for what was committed to.
    assert len(set(commits)) == len(commits)
    assert set(reveals) == {commits[-1]}


def another_nonce(received: Received) -> Received:
    document = {**received.statement, "nonce": "00" * 16}
    return replace(received, statement=document)


def another_answer(received: Received) -> Received:
    made: dict[str, Digest] = {
        name: Digest(f"hmac-sha256-tensors-v1:{'0' * 64}") for name in received.tensors
    }
    return replace(received, commitments=made)


def no_nonce(received: Received) -> Received:
    return replace(received, statement=received.statement["statement"])


def no_statement(received: Received) -> Received:
    return replace(received, statement={**received.statement, "statement": {}})


@pytest.mark.parametrize(
    ("shown", "error", "why"),
    [
        (another_nonce, VerificationError, "opened another answer"),
        (another_answer, VerificationError, "opened another answer"),
        (no_nonce, MalformedInputError, "opening: unknown field"),
        (no_statement, MalformedInputError, "statement"),
    ],
)
async def test_an_opening_that_does_not_fit_is_no_vote(
    committee: Committee,
    shown: Callable[[Received], Received],
    error: type[SecureError],
    why: str,
) -> None:
    committee.channels[0].shown = shown
    with pytest.raises(error, match=why):
        await committee.asking(quorum=1).ask(committee.peers[0])


async def test_a_statement_about_another_exchange_is_no_vote(
    committee: Committee,
) -> None:
    """The commitment opens, and the statement beside it is an old one."""
    kept: list[Any] = []

    def old(received: Received) -> Received:
        kept.append(received.statement["statement"])
        return replace(received, statement={**received.statement, "statement": kept[0]})

    committee.channels[0].shown = old
    peer = committee.peers[0]
    await committee.asking(quorum=1).ask(peer)
    with pytest.raises(StatementError, match="statement exchange_id: got"):
        await committee.asking(quorum=1).ask(peer)


async def test_a_copied_commitment_is_refused_and_names_both(
    committee: Committee,
) -> None:
    """Signed as its own, a moment before the replica that made it."""
    copied = asyncio.get_running_loop().create_future()
    key = committee.cores[1].identity.keys

    def overheard(document: Any) -> Any:
        payload = parse_commitment_envelope(document).payload
        copied.set_result(json.loads(payload)["commitment"])
        return document

    class Copying(Meddling):
        async def commit(
            self, exchange: Exchange, outgoing: Outgoing, session: Session | None
        ) -> Any:
            own = await super().commit(exchange, outgoing, session)
            envelope = parse_commitment_envelope(own)
            made = verify_commitment(envelope, key.signing.public)
            copy = replace(made, commitment=await copied)
            return sign_commitment(key.signing, copy).to_json()

    committee.channels[0].said = overheard
    committee.peers[1].channel = Copying(LocalChannel(committee.cores[1]))
    asking = committee.asking(quorum=2)
    victim, copyist = [
        asyncio.create_task(asking.ask(peer)) for peer in committee.peers[:2]
    ]
    # One commitment, though it came twice: nothing is shown yet.
    await asyncio.sleep(0.05)
    assert committee.channels[0].reveals == []
    third = await asking.ask(committee.peers[2])
    names = [peer.name for peer in committee.peers]
    why = f"commitment of {names[1]}: the same as that of {names[0]}, and not its own"
    with pytest.raises(VerificationError, match=why):
        await copyist
    # Whoever was copied loses nothing by it.
    assert (await victim).vote.commitments == third.vote.commitments


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", "00" * 16),
        ("exchange_id", "00" * 16),
        ("infer_index", 3),
        ("nonce", "00" * 32),
        ("segment", f"sha256-jcs-v1:{'0' * 64}"),
        ("plan_digest", f"sha256-jcs-v1:{'0' * 64}"),
        ("key_document", f"sha256-jcs-v1:{'0' * 64}"),
    ],
)
async def test_a_commitment_about_something_else_is_no_commitment(
    committee: Committee, field: str, value: Any
) -> None:
    key = committee.cores[0].identity.keys.signing

    def other(document: Any) -> Any:
        payload = json.loads(parse_commitment_envelope(document).payload)
        return sign(key, COMMITMENT_TYPE, {**payload, field: value}).to_json()

    committee.channels[0].said = other
    with pytest.raises(VerificationError, match=f"commitment {field}: got"):
        await committee.asking(quorum=1).ask(committee.peers[0])
    assert committee.channels[0].reveals == []


async def test_a_commitment_under_another_key_is_no_commitment(
    committee: Committee,
) -> None:
    neighbour = committee.cores[1].identity.keys.signing

    def other(document: Any) -> Any:
        payload = json.loads(parse_commitment_envelope(document).payload)
        return sign(neighbour, COMMITMENT_TYPE, payload).to_json()

    committee.channels[0].said = other
    with pytest.raises(VerificationError, match="key"):
        await committee.asking(quorum=1).ask(committee.peers[0])
    assert committee.channels[0].reveals == []


@SEALS
async def test_every_vote_of_a_request_has_its_commitment(
    ground: Ground, plain: Ground, sealed: bool
) -> None:
    ground = ground if sealed else plain
    engine = await ground.attested()
    context = ground.context()
    await engine.infer(context, feed())
    for record in context.infers[0].segments:
        assert record.commitments.keys() == record.statements.keys()
        made = [record.commitments[name] for name in record.tally.clique]
        assert sum(revealed.blind for revealed in made) >= ground.scenario.quorum
    await context.abandon()
    await engine.close()
