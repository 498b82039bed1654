"""The entry's desk for proofs: hands orders over, links on, and proofs to receipts.

It holds no secret and no state that matters: what is owed stands in the store, sealed
to its provers; what came of it, at the provers. So an entry that was killed and started
anew goes on where the store is.

    1. an order goes to its segment's prover; one that has it already says so
    2. what a prover hands on goes to the prover of the next segment, unread
    3. a proof is verified and attached, in one transaction with the order's removal
    4. a receipt is given up with all its orders once one is past its deadline, or has
       failed for good: what nobody can settle must not stand before what can be

Each prover is dealt with in a task of its own: one that hangs holds up nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from bentoml_secure import metrics
from bentoml_secure.attestation.evidence import VerifiedClaims
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import parse_hex, parse_json, require_fields
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    ProofError,
    SecureError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.proofs.folder import VerificationKeys
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.proofs.proof import Limits, ProofBackend
from bentoml_secure.proofs.sealing import PUBLIC_BYTES
from bentoml_secure.receipts.attachments import parse_attachment, verify_attachment
from bentoml_secure.receipts.keeping import ReceiptStore, StoredOrder
from bentoml_secure.receipts.proofs import PROOF, ProofRecord, prover_key
from bentoml_secure.scenario import Scenario
from bentoml_secure.serving.peers import Attested, Peer
from bentoml_secure.serving.placement import misplaced
from bentoml_secure.serving.prover_messages import (
    MAX_MESSAGE_BYTES,
    OPERATION,
    PROOFS_PATH,
    JobReport,
    SubmittedOrder,
    execute_message,
    keys_message,
    link_message,
    order_key_message,
    parse_answer,
    parse_executed,
    parse_reports,
    submit_message,
)
from bentoml_secure.serving.prover_work import unpack_order
from bentoml_secure.session.keys import Session
from bentoml_secure.session.responders import UnknownSessionError
from bentoml_secure.signing import MAX_ENVELOPE_BYTES, Envelope, parse_envelope
from bentoml_secure.statements import format_time, utc_now

logger = logging.getLogger("bentoml_secure")

MAX_OWED = 10_000
"""Orders due at once; beyond that, requests that must be proven are refused."""

_BATCH = 200
_BATCH_BYTES = 8 << 20
_ASK_SECONDS = 30.0
"""For an answer: then the prover counts as silent, until it says something."""

_MAX_LOST = 10_000
_UNSOUND = (VerificationError, MalformedInputError, ConfigurationError)
_ROUND_SECONDS = 0.5
_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_VERIFYING = Limits(memory_bytes=2 << 30, seconds=60, background=True)


Ended = Callable[[str, bool], Awaitable[None]]


async def _unheard(receipt_id: str, proven: bool) -> None:
    """Tell nobody."""


class Asking(Protocol):
    """How a prover is reached, beside its handshake; ``HttpChannel`` is one."""

    async def ask(
        self,
        path: str,
        operation: str,
        message: bytes,
        session: Session,
        *,
        max_bytes: int,
    ) -> bytes:
        """Send one message sealed, and return the answer, opened."""
        ...


@dataclass(slots=True)
class _Prover:
    """One prover, as the desk deals with it."""

    peer: Peer
    channel: Asking
    order_key: str | None = None
    claims: VerifiedClaims | None = None
    session: Session | None = None
    handed_over: set[JobKey] = field(default_factory=set)
    linked: set[JobKey] = field(default_factory=set)
    failed: set[JobKey] = field(default_factory=set)
    unwanted: list[JobKey] = field(default_factory=list)
    is_silent: bool = False
    serving: asyncio.Task[bool] | None = None

    def forget(self, place: JobKey) -> None:
        """Remember nothing of an order that is settled or given up."""
        for places in (self.handed_over, self.linked, self.failed):
            places.discard(place)


class ProofDesk:
    """Deals with the provers of a deployment, one per segment.

    Args:
        provers: By segment, each with how it is asked.
        keys: That verify what they prove, and the manifest.
        document: The same as bundles carry it.
        backend: With them.
        store: What is owed.
        clock: For deadlines.
    """

    def __init__(
        self,
        provers: Sequence[tuple[Peer, Asking]],
        keys: VerificationKeys,
        document: Mapping[str, Any],
        backend: ProofBackend,
        store: ReceiptStore,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._provers = [_Prover(peer, channel) for peer, channel in provers]
        self.keys = keys
        self.document = document
        self._backend = backend
        self._store = store
        self._ended: Ended = _unheard
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._awake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._owed = 0
        # Receipts that will not get all their proofs: who waits for them is told.
        self._lost: OrderedDict[str, None] = OrderedDict()
        # Those of them whose orders are in the store yet.
        self._hopeless: set[str] = set()

    @property
    def manifest(self) -> Manifest:
        """Of the proof set-up."""
        return self.keys.manifest

    async def start(self, ended: Ended) -> None:
        """Begin to attest the provers, and to work off what is owed.

        Args:
            ended: Called with a receipt's id and whether all its proofs are attached.
        """
        self._ended = ended
        self._tasks += [
            asyncio.create_task(prover.peer.keep_attested()) for prover in self._provers
        ]
        self._tasks.append(asyncio.create_task(self._run()))

    async def close(self) -> None:
        """Stop; what is owed stays in the store."""
        serving = [p.serving for p in self._provers if p.serving is not None]
        for task in (*self._tasks, *serving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for prover in self._provers:
            await prover.peer.close()

    @property
    def is_ready(self) -> bool:
        """Whether requests that are to be proven would be taken now."""
        known = all(prover.order_key is not None for prover in self._provers)
        return known and self._owed < MAX_OWED

    def order_keys(self, scenario: Scenario) -> list[str]:
        """Return what orders are sealed to, by segment.

        Args:
            scenario: Of the request: its tensors go to no kind of machine but those
                that it places there.

        Raises:
            UnavailableError: More is owed already than can be held, or a prover was
                not attested lately, or may not have a segment's tensors: a request is
                refused rather than promised.
        """
        if self._owed >= MAX_OWED:
            raise UnavailableError(
                f"proofs: {self._owed} are owed, want less than {MAX_OWED}.",
                remedy="Ask later, or add provers.",
            )
        keys = []
        for index, prover in enumerate(self._provers):
            if prover.order_key is None or prover.claims is None:
                raise UnavailableError(
                    f"{prover.peer.name}: no order key yet; it may not be attested.",
                    remedy="Ask later; the log says what is wrong with the prover.",
                )
            prover.peer.require(scenario.evidence_max_age_seconds)
            if (reason := misplaced(prover.claims, scenario, index)) is not None:
                raise UnavailableError(f"{prover.peer.name}: {reason}.")
            keys.append(prover.order_key)
        return keys

    def wake(self, added: int) -> None:
        """Say that orders were added to the store."""
        self._owed += added
        self._awake.set()

    async def wait(self, receipt_id: str, seconds: float) -> bool:
        """Wait until all proofs of a receipt are attached, or will not be.

        Returns:
            Whether they are.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                while receipt_id not in self._lost:
                    if not await asyncio.to_thread(self._store.owed, receipt_id):
                        # It may have been given up in between.
                        return receipt_id not in self._lost
                    await self._changed.wait()
        return False

    async def execute(
        self, index: int, boundary: Sequence[int], salt: Sequence[int]
    ) -> tuple[int, ...]:
        """Return the boundary that comes out of a segment's circuit, without a proof.

        Args:
            index: Of the segment.
            boundary: That goes in, with its salt.
            salt: Of the boundary that comes out.

        Raises:
            SecureError: No prover, or values out of the circuit's range.
        """
        prover = self._provers[index]
        attested = self._attested(prover)
        asked = execute_message(boundary, salt)
        # Others are executed before it; who waits has a time limit of its own.
        said = await self._ask_patiently(prover, attested, asked)
        return parse_executed(said)

    async def _run(self) -> None:
        pause = _SHORTEST_PAUSE_SECONDS
        while True:
            try:
                moved = await self._round()
            except SecureError as error:
                logger.warning("proofs: %s", error)
                moved = False
            # A desk that ends unseen leaves its service up and its proofs uncollected.
            except Exception:
                logger.exception("proofs: a round failed; the next one goes on")
                moved = False
            pause = (
                _SHORTEST_PAUSE_SECONDS
                if moved
                else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            )
            self._awake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._awake.wait()

    async def _round(self) -> bool:
        """Begin with every prover that is not being dealt with; tell what moved."""
        self._owed = await asyncio.to_thread(self._store.count_orders)
        metrics.set_proof_queue_depth(self._owed)
        idle = [
            (index, prover)
            for index, prover in enumerate(self._provers)
            if prover.serving is None
        ]
        due: list[StoredOrder] = []
        if self._owed:
            # After it is known who is idle: no order is taken that is settled since.
            found = await asyncio.to_thread(self._store.orders, most=_BATCH)
            due = await self._in_time(found)
        for index, prover in idle:
            mine = [order for order in due if order.key.segment == index]
            prover.serving = asyncio.create_task(self._serve(prover, mine))
        serving = [p.serving for p in self._provers if p.serving is not None]
        await asyncio.wait(serving, timeout=_ROUND_SECONDS)
        moved = False
        for prover in self._provers:
            if prover.serving is not None and prover.serving.done():
                moved |= prover.serving.result()
                prover.serving = None
        return moved

    async def _in_time(self, orders: Sequence[StoredOrder]) -> list[StoredOrder]:
        """Give up receipts that are late or hopeless; return the orders of the others.

        At once: the earliest deadlines come first, and a batch of orders that nobody
        can settle would hide all others until then.
        """
        now = format_time(self._clock())
        # The format has one length, so text sorts as time does.
        late = {o.key.receipt_id for o in orders if (o.deadline or now) < now}
        if over := late | self._hopeless:
            # Before they are dropped: who waits must not take none owed for proven.
            for receipt_id in over:
                self._lost[receipt_id] = None
            await asyncio.to_thread(self._store.drop_orders, sorted(over))
            self._hopeless -= over
            for place in [o.key for o in orders if o.key.receipt_id in over]:
                if place.receipt_id in late:
                    metrics.count_verification("proof", str(place.segment), "error")
                    logger.error("receipt %s: no proof in time", place.receipt_id)
                prover = self._provers[place.segment]
                prover.forget(place)
                prover.unwanted.append(place)
            for receipt_id in over:
                await self._lose(receipt_id)
                await self._ended(receipt_id, False)
        return [order for order in orders if order.key.receipt_id not in over]

    async def _lose(self, receipt_id: str) -> None:
        self._lost[receipt_id] = None
        if len(self._lost) > _MAX_LOST:
            self._lost.popitem(last=False)
        await self._notify()

    async def _cancel(self, prover: _Prover, attested: Attested) -> None:
        unwanted = prover.unwanted[:_BATCH]
        if unwanted:
            await self._ask(prover, attested, keys_message("cancel", unwanted))
            del prover.unwanted[: len(unwanted)]

    async def _learn_order_key(self, prover: _Prover) -> None:
        try:
            attested = self._attested(prover)
        except UnavailableError:
            return
        if prover.session is attested.session:
            return
        try:
            said = await self._ask(prover, attested, order_key_message())
            got = require_fields(
                parse_answer(said), ("order_key", "manifest"), what="prover's answer"
            )
            if got["manifest"] != self.manifest.digest:
                raise MalformedInputError(
                    f"{prover.peer.name} manifest: got {got['manifest']!r:.100}, want "
                    f"{self.manifest.digest}"
                )
            parse_hex(got["order_key"], what="order key", length=PUBLIC_BYTES)
        except SecureError as error:
            logger.warning("%s: no order key: %s", prover.peer.name, error)
            return
        prover.order_key, prover.session = got["order_key"], attested.session
        prover.claims = attested.result.claims

    def _attested(self, prover: _Prover) -> Attested:
        return prover.peer.require(float("inf"))

    async def _ask(self, prover: _Prover, attested: Attested, message: bytes) -> bytes:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                said = await self._ask_patiently(prover, attested, message)
        except TimeoutError as error:
            prover.is_silent = True
            raise UnavailableError(
                f"{prover.peer.name}: no answer within {_ASK_SECONDS:g} s"
            ) from error
        except UnavailableError:
            prover.is_silent = True
            raise
        prover.is_silent = False
        return said

    async def _ask_patiently(
        self, prover: _Prover, attested: Attested, message: bytes
    ) -> bytes:
        try:
            return await prover.channel.ask(
                PROOFS_PATH,
                OPERATION,
                message,
                attested.session,
                max_bytes=MAX_MESSAGE_BYTES,
            )
        except UnknownSessionError as error:
            # It was started anew.
            prover.peer.renew()
            raise UnavailableError(f"{prover.peer.name}: {error}") from error

    async def _serve(self, prover: _Prover, orders: Sequence[StoredOrder]) -> bool:
        """Hand over, relay and collect at one prover; tell whether anything moved."""
        try:
            await self._learn_order_key(prover)
            if not (orders or prover.unwanted):
                return False
            attested = self._attested(prover)
            await self._cancel(prover, attested)
            moved = await self._hand_over(prover, attested, orders)
            return await self._collect(prover, attested, orders) or moved
        except SecureError as error:
            logger.warning("%s: %s", prover.peer.name, error)
        except Exception:
            logger.exception("%s: the next round goes on", prover.peer.name)
        return False

    async def _collect(
        self, prover: _Prover, attested: Attested, orders: Sequence[StoredOrder]
    ) -> bool:
        asked = {
            order.key: order
            for order in orders
            if order.key in prover.handed_over and order.key not in prover.failed
        }
        if not asked:
            return False
        message = keys_message("collect", list(asked))
        moved = False
        for report in parse_reports(await self._ask(prover, attested, message)):
            if report.key not in asked:
                raise MalformedInputError("it reports what it was not asked for")
            moved |= await self._take(prover, attested, asked[report.key], report)
        return moved

    async def _hand_over(
        self, prover: _Prover, attested: Attested, orders: Sequence[StoredOrder]
    ) -> bool:
        new, size = list[SubmittedOrder](), 0
        for order in orders:
            if order.key in prover.handed_over:
                continue
            size += len(order.body)
            if new and size > _BATCH_BYTES:
                break
            new.append(
                SubmittedOrder(
                    key=order.key,
                    deadline=order.deadline or "",
                    priority=order.priority,
                    body=order.body,
                )
            )
        if not new:
            return False
        await self._ask(prover, attested, submit_message(new))
        prover.handed_over |= {order.key for order in new}
        return True

    async def _take(
        self,
        prover: _Prover,
        attested: Attested,
        order: StoredOrder,
        report: JobReport,
    ) -> bool:
        moved = False
        if report.state == "missing":
            prover.handed_over.discard(order.key)
            self._relay_again(order.key)
        linked = report.link is None or order.key in prover.linked
        if report.link is not None and not linked:
            moved = linked = await self._relay(prover, order.key, report.link)
        # What it hands on is gone with its order: not before the next one has it.
        if linked and report.state == "done" and report.attachment is not None:
            try:
                settled = await self._settle(prover, order, report)
            except _UNSOUND as error:
                # It will be no better the next time: others are not kept waiting.
                await self._give_up(prover, order.key, str(error))
                return True
            moved, receipt_id = True, order.key.receipt_id
            if settled and not await asyncio.to_thread(self._store.owed, receipt_id):
                await self._ended(receipt_id, True)
            await self._ask(prover, attested, keys_message("forget", [order.key]))
        elif report.state in ("failed", "cancelled"):
            label = str(order.key.segment)
            metrics.count_verification("proof", label, "error")
            await self._give_up(prover, order.key, report.reason)
        return moved

    def _relay_again(self, place: JobKey) -> None:
        """Know that what was handed on for an order is gone with it."""
        if place.segment:
            before = JobKey(place.receipt_id, place.infer, place.segment - 1)
            self._provers[before.segment].linked.discard(before)

    async def _give_up(self, prover: _Prover, place: JobKey, reason: str) -> None:
        """Ask for a proof no more; the next round drops all that its receipt owes."""
        prover.failed.add(place)
        self._hopeless.add(place.receipt_id)
        logger.error(
            "receipt %s: segment %d is not proven: %s",
            place.receipt_id,
            place.segment,
            reason,
        )
        await self._lose(place.receipt_id)

    async def _relay(self, prover: _Prover, place: JobKey, link: bytes) -> bool:
        following = JobKey(place.receipt_id, place.infer, place.segment + 1)
        if following.segment >= len(self._provers):
            raise MalformedInputError("the last segment's prover hands something on")
        after = self._provers[following.segment]
        if following not in after.handed_over:
            # Settled before this one, by an entry that has died: it needs no link.
            return not await asyncio.to_thread(self._store.has, following)
        if after.is_silent:
            return False
        try:
            await self._ask(after, self._attested(after), link_message(following, link))
        except SecureError as error:
            # The other one's fault: this one is collected from all the same.
            logger.warning("%s: %s", after.peer.name, error)
            return False
        prover.linked.add(place)
        return True

    async def _settle(
        self, prover: _Prover, order: StoredOrder, report: JobReport
    ) -> bool:
        envelope = parse_envelope(report.attachment, what="proof")
        label = str(order.key.segment)
        with metrics.verification("proof", label):
            await asyncio.to_thread(self._verify, envelope, order)
        place = order.key
        settled = await asyncio.to_thread(self._store.settle, place, envelope)
        if settled:
            prover.forget(place)
            self._owed -= 1
        # First: what else is done with it may fail, and it is proven all the same.
        await self._notify()
        return settled

    def _verify(self, envelope: Envelope, order: StoredOrder) -> None:
        """Refuse a proof that no receipt should carry; whoever verifies judges all."""
        said = parse_json(envelope.payload, what=PROOF, max_bytes=MAX_ENVELOPE_BYTES)
        attachment = verify_attachment(envelope, prover_key(parse_attachment(said)))
        record = ProofRecord.from_attachment(attachment)
        about, _ = unpack_order(order.body)
        place = order.key
        for what, got, want in (
            ("kind", attachment.kind, PROOF),
            ("receipt", record.receipt_digest, about.receipt_digest),
            ("place", record.place, (place.infer, place.segment)),
            ("role", record.key_document.role, Role.PROVER),
            ("manifest", record.manifest, self.manifest.digest),
        ):
            if got != want:
                raise ProofError(f"proof {what}: got {got}, want {want}")
        key = self.keys.keys[place.segment]
        srs = self.manifest.srs.verifier
        self._backend.verify([(record.proof, key)], srs, _VERIFYING)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
