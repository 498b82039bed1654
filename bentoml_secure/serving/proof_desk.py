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
from datetime import datetime
from typing import Any

from bentoml_secure import metrics
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import parse_json
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
from bentoml_secure.receipts.attachments import parse_attachment, verify_attachment
from bentoml_secure.receipts.keeping import DueOrder, ReceiptStore
from bentoml_secure.receipts.proofs import PROOF, ProofRecord, prover_key
from bentoml_secure.scenario import Scenario
from bentoml_secure.serving.desk_prover import Asking, DeskProver
from bentoml_secure.serving.peers import Peer
from bentoml_secure.serving.prover_messages import JobReport
from bentoml_secure.serving.prover_work import unpack_order
from bentoml_secure.signing import MAX_ENVELOPE_BYTES, Envelope, parse_envelope
from bentoml_secure.statements import format_time, utc_now

logger = logging.getLogger("bentoml_secure")

MAX_OWED = 10_000
"""Orders due at once; beyond that, requests that must be proven are refused."""

_BATCH = 200
_MAX_LOST = 10_000
_UNSOUND = (VerificationError, MalformedInputError, ConfigurationError)
_ROUND_SECONDS = 0.5
_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_VERIFYING = Limits(memory_bytes=2 << 30, seconds=60, background=True)


Ended = Callable[[str, bool], Awaitable[None]]


async def _unheard(receipt_id: str, proven: bool) -> None:
    """Tell nobody."""


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
        self._provers = [DeskProver(peer, channel) for peer, channel in provers]
        self.keys = keys
        self.document = document
        self._backend = backend
        self._store = store
        self._ended: Ended = _unheard
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._awake = asyncio.Event()
        # Set, and replaced, whenever something was settled or given up.
        self._changed = asyncio.Event()
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
        known = all(prover.is_known for prover in self._provers)
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
        return [
            prover.order_key(scenario, index)
            for index, prover in enumerate(self._provers)
        ]

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
            async with asyncio.timeout(seconds):
                while receipt_id not in self._lost:
                    # Before the look: what changes after it is not slept through.
                    changed = self._changed
                    if not await asyncio.to_thread(self._store.owed, receipt_id):
                        # It may have been given up in between.
                        return receipt_id not in self._lost
                    await changed.wait()
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
        return await self._provers[index].execute(boundary, salt)

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
        await self._give_up_late()
        for index, prover in enumerate(self._provers):
            if prover.serving is None:
                # No sooner: no order is taken that is settled since.
                due = await self._due(index)
                prover.serving = asyncio.create_task(self._serve(prover, due))
        serving = [p.serving for p in self._provers if p.serving is not None]
        await asyncio.wait(serving, timeout=_ROUND_SECONDS)
        moved = False
        for prover in self._provers:
            if prover.serving is not None and prover.serving.done():
                moved |= prover.serving.result()
                prover.serving = None
        return moved

    async def _due(self, segment: int) -> list[DueOrder]:
        if not self._owed:
            return []
        return await asyncio.to_thread(self._store.due_orders, segment, most=_BATCH)

    async def _give_up_late(self) -> None:
        """Give up receipts that are late or hopeless.

        At once: a batch of orders that nobody can settle would hide all others.
        """
        late = set[str]()
        if self._owed:
            now = format_time(self._clock())
            found = await asyncio.to_thread(self._store.late_receipts, now, most=_BATCH)
            late.update(found)
        if not (over := late | self._hopeless):
            return
        # Before they are dropped: who waits must not take none owed for proven.
        for receipt_id in over:
            self._lost[receipt_id] = None
        dropped = await asyncio.to_thread(self._store.drop_orders, sorted(over))
        self._hopeless -= over
        for place in dropped:
            if place.receipt_id in late:
                metrics.count_verification("proof", str(place.segment), "error")
                logger.error("receipt %s: no proof in time", place.receipt_id)
            # A set-up of fewer segments may have taken the store over.
            if place.segment < len(self._provers):
                prover = self._provers[place.segment]
                prover.forget(place)
                prover.unwanted.append(place)
        self._owed -= len(dropped)
        ended = {place.receipt_id for place in dropped}
        for receipt_id in over:
            self._lose(receipt_id)
            # Of the others the last proof was settled, or all was dropped, meanwhile.
            if receipt_id in ended:
                await self._ended(receipt_id, False)

    def _lose(self, receipt_id: str) -> None:
        self._lost[receipt_id] = None
        if len(self._lost) > _MAX_LOST:
            self._lost.popitem(last=False)
        self._notify()

    async def _serve(self, prover: DeskProver, due: Sequence[DueOrder]) -> bool:
        """Hand over, relay and collect at one prover; tell whether anything moved."""
        try:
            await prover.learn_order_key(self.manifest.digest)
            await prover.cancel_unwanted()
            moved = await prover.hand_over(due, self._store.order_body)
            for report in await prover.collect(due):
                moved |= await self._take(prover, report)
            return moved
        except SecureError as error:
            logger.warning("%s: %s", prover.name, error)
        except Exception:
            logger.exception("%s: the next round goes on", prover.name)
        return False

    async def _take(self, prover: DeskProver, report: JobReport) -> bool:
        moved, place = False, report.key
        if place.receipt_id in self._lost:
            # Given up while it was asked about: nobody wants to know any more.
            return False
        if report.state == "missing":
            prover.handed_over.discard(place)
            self._relay_again(place)
        linked = report.link is None or place in prover.linked
        if report.link is not None and not linked:
            moved = linked = await self._relay(prover, place, report.link)
        # What it hands on is gone with its order: not before the next one has it.
        if linked and report.state == "done" and report.attachment is not None:
            try:
                left = await self._settle(prover, report)
            except _UNSOUND as error:
                # It will be no better the next time: others are not kept waiting.
                self._give_up(prover, place, str(error))
                return True
            moved = True
            if left == 0:
                await self._ended(place.receipt_id, True)
            await prover.settle(place)
        elif report.state in ("failed", "cancelled"):
            metrics.count_verification("proof", str(place.segment), "error")
            self._give_up(prover, place, report.reason)
        return moved

    def _relay_again(self, place: JobKey) -> None:
        """Know that what was handed on for an order is gone with it."""
        if place.segment:
            before = JobKey(place.receipt_id, place.infer, place.segment - 1)
            self._provers[before.segment].linked.discard(before)

    def _give_up(self, prover: DeskProver, place: JobKey, reason: str) -> None:
        """Ask for a proof no more; the next round drops all that its receipt owes."""
        prover.failed.add(place)
        self._hopeless.add(place.receipt_id)
        logger.error(
            "receipt %s: segment %d is not proven: %s",
            place.receipt_id,
            place.segment,
            reason,
        )
        self._lose(place.receipt_id)

    async def _relay(self, prover: DeskProver, place: JobKey, link: bytes) -> bool:
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
            await after.link(following, link)
        except SecureError as error:
            # The other one's fault: this one is collected from all the same.
            logger.warning("%s: %s", after.name, error)
            return False
        prover.linked.add(place)
        return True

    async def _settle(self, prover: DeskProver, report: JobReport) -> int | None:
        """Attach a proof; return how many its receipt still owes, None if not this."""
        envelope = parse_envelope(report.attachment, what="proof")
        place = report.key
        order = await asyncio.to_thread(self._store.order_body, place)
        if order is None:
            return None
        with metrics.verification("proof", str(place.segment)):
            await asyncio.to_thread(self._verify, envelope, place, order)
        left = await asyncio.to_thread(self._store.settle, place, envelope)
        if left is not None:
            prover.forget(place)
            self._owed -= 1
        # First: what else is done with it may fail, and it is proven all the same.
        self._notify()
        return left

    def _verify(self, envelope: Envelope, place: JobKey, order: bytes) -> None:
        """Refuse a proof that no receipt should carry; whoever verifies judges all."""
        said = parse_json(envelope.payload, what=PROOF, max_bytes=MAX_ENVELOPE_BYTES)
        attachment = verify_attachment(envelope, prover_key(parse_attachment(said)))
        record = ProofRecord.from_attachment(attachment)
        about, _ = unpack_order(order)
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

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
