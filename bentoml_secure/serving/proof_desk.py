"""The entry's desk for proofs: hands orders over, links on, and proofs to receipts.

It holds no secret and no state that matters: what is owed stands in the store, sealed
to its provers; what came of it, at the provers. So an entry that was killed and started
anew goes on where the store is.

    1. an order goes to its segment's prover; one that has it already says so
    2. what a prover hands on goes to the prover of the next segment, unread
    3. a proof is verified and attached, in one transaction with the order's removal
    4. an order past its deadline is given up: its receipt has failed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from bentoml_secure import metrics
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import parse_hex, parse_json, require_fields
from bentoml_secure.errors import (
    MalformedInputError,
    ProofError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.proofs.folder import VerificationKeys
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.proofs.proof import Limits, ProofBackend
from bentoml_secure.proofs.sealing import PUBLIC_BYTES
from bentoml_secure.receipts.attachments import parse_attachment, verify_attachment
from bentoml_secure.receipts.keeping import ReceiptStore, StoredOrder
from bentoml_secure.receipts.proofs import PROOF, ProofRecord, prover_key
from bentoml_secure.serving.peers import Attested, Peer
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
    session: Session | None = None
    handed_over: set[JobKey] = field(default_factory=set)
    linked: set[JobKey] = field(default_factory=set)
    failed: set[JobKey] = field(default_factory=set)


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
        for task in self._tasks:
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

    def order_keys(self) -> list[str]:
        """Return what orders are sealed to, by segment.

        Raises:
            UnavailableError: More is owed already than can be held, or a prover was
                not attested yet: a request is refused rather than promised.
        """
        if self._owed >= MAX_OWED:
            raise UnavailableError(
                f"proofs: {self._owed} are owed, want less than {MAX_OWED}.",
                remedy="Ask later, or add provers.",
            )
        keys = []
        for prover in self._provers:
            if prover.order_key is None:
                raise UnavailableError(
                    f"{prover.peer.name}: no order key yet; it may not be attested.",
                    remedy="Ask later; the log says what is wrong with the prover.",
                )
            keys.append(prover.order_key)
        return keys

    def wake(self, added: int) -> None:
        """Say that orders were added to the store."""
        self._owed += added
        self._awake.set()

    async def wait(self, receipt_id: str, seconds: float) -> bool:
        """Wait until all proofs of a receipt are attached.

        Returns:
            Whether they are.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                while await asyncio.to_thread(self._store.owed, receipt_id):
                    await self._changed.wait()
                return True
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
        said = await self._ask(prover, attested, execute_message(boundary, salt))
        return parse_executed(said)

    async def _run(self) -> None:
        pause = _SHORTEST_PAUSE_SECONDS
        while True:
            try:
                moved = await self._round()
            except SecureError as error:
                logger.warning("proofs: %s", error)
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
        for prover in self._provers:
            await self._learn_order_key(prover)
        self._owed = await asyncio.to_thread(self._store.count_orders)
        metrics.set_proof_queue_depth(self._owed)
        if not self._owed:
            return False
        due = await self._in_time(
            await asyncio.to_thread(self._store.orders, most=_BATCH)
        )
        moved = await asyncio.gather(
            *(
                self._serve(prover, [o for o in due if o.key.segment == index])
                for index, prover in enumerate(self._provers)
            )
        )
        return any(moved)

    async def _in_time(self, orders: Sequence[StoredOrder]) -> list[StoredOrder]:
        """Give up receipts whose deadline is over; return the orders of the others."""
        now = format_time(self._clock())
        # The format has one length, so text sorts as time does.
        over = {o.key.receipt_id for o in orders if (o.deadline or now) < now}
        if over:
            late = [order.key for order in orders if order.key.receipt_id in over]
            await asyncio.to_thread(self._store.drop_orders, sorted(over))
            for place in late:
                metrics.count_verification("proof", str(place.segment), "error")
                logger.error("receipt %s: no proof in time", place.receipt_id)
                self._forget(place)
            for receipt_id in over:
                await self._ended(receipt_id, False)
            await self._cancel(late)
            await self._notify()
        return [order for order in orders if order.key.receipt_id not in over]

    async def _cancel(self, places: Sequence[JobKey]) -> None:
        for index, prover in enumerate(self._provers):
            mine = [place for place in places if place.segment == index]
            # It drops them itself once they are of no use.
            with contextlib.suppress(SecureError):
                if mine:
                    asked = keys_message("cancel", mine)
                    await self._ask(prover, self._attested(prover), asked)

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

    def _attested(self, prover: _Prover) -> Attested:
        return prover.peer.require(float("inf"))

    async def _ask(self, prover: _Prover, attested: Attested, message: bytes) -> bytes:
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
        if not orders:
            return False
        try:
            attested = self._attested(prover)
            moved = await self._hand_over(prover, attested, orders)
            asked = [
                order.key
                for order in orders
                if order.key in prover.handed_over and order.key not in prover.failed
            ]
            if not asked:
                return moved
            said = await self._ask(prover, attested, keys_message("collect", asked))
            by_place = {order.key: order for order in orders}
            for report in parse_reports(said):
                if report.key not in by_place:
                    raise MalformedInputError("it reports what it was not asked for")
                moved |= await self._take(
                    prover, attested, by_place[report.key], report
                )
        except SecureError as error:
            logger.warning("%s: %s", prover.peer.name, error)
            return False
        return moved

    async def _hand_over(
        self, prover: _Prover, attested: Attested, orders: Sequence[StoredOrder]
    ) -> bool:
        new, size = list[SubmittedOrder](), 0
        for order in orders:
            size += len(order.body)
            if order.key in prover.handed_over or (new and size > _BATCH_BYTES):
                continue
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
        linked = report.link is None or order.key in prover.linked
        if report.link is not None and not linked:
            moved = linked = await self._relay(prover, order.key, report.link)
        # What it hands on is gone with its order: not before the next one has it.
        if linked and report.state == "done" and report.attachment is not None:
            await self._settle(prover, order, report)
            await self._ask(prover, attested, keys_message("forget", [order.key]))
            moved = True
        elif report.state in ("failed", "cancelled"):
            prover.failed.add(order.key)
            metrics.count_verification("proof", str(order.key.segment), "error")
            logger.error(
                "receipt %s: segment %d is not proven: %s",
                order.key.receipt_id,
                order.key.segment,
                report.reason,
            )
        return moved

    async def _relay(self, prover: _Prover, place: JobKey, link: bytes) -> bool:
        following = JobKey(place.receipt_id, place.infer, place.segment + 1)
        if following.segment >= len(self._provers):
            raise MalformedInputError("the last segment's prover hands something on")
        after = self._provers[following.segment]
        if following not in after.handed_over:
            return False
        await self._ask(after, self._attested(after), link_message(following, link))
        prover.linked.add(place)
        return True

    async def _settle(
        self, prover: _Prover, order: StoredOrder, report: JobReport
    ) -> None:
        envelope = parse_envelope(report.attachment, what="proof")
        label = str(order.key.segment)
        with metrics.verification("proof", label):
            await asyncio.to_thread(self._verify, envelope, order)
        place = order.key
        if await asyncio.to_thread(self._store.settle, place, envelope):
            self._forget(place)
            self._owed -= 1
            if not await asyncio.to_thread(self._store.owed, place.receipt_id):
                await self._ended(place.receipt_id, True)
        await self._notify()

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

    def _forget(self, place: JobKey) -> None:
        prover = self._provers[place.segment]
        for places in (prover.handed_over, prover.linked, prover.failed):
            places.discard(place)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
