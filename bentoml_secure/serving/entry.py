"""The entry of one deployment: its identity, replicas, receipts and what follows.

Knows nothing of HTTP; ``entry_door.py`` is its door, ``service.py`` its place in
BentoML.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta

from bentoml_secure import metrics
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.audit.challenge import Epoch
from bentoml_secure.digest import commit_body
from bentoml_secure.errors import AttestationError, UnavailableError
from bentoml_secure.proofs.orders import Priority
from bentoml_secure.receipts.attachments import read_attachment
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.epoch import (
    EPOCH,
    EpochRecord,
    epoch_due,
    longest_epoch,
)
from bentoml_secure.receipts.keeping import ReceiptStore
from bentoml_secure.receipts.localisation import localisation_due
from bentoml_secure.receipts.proofs import PROOF
from bentoml_secure.receipts.receipt import (
    ENTRY,
    SEALED,
    UNSEALED,
    Receipt,
    issue,
)
from bentoml_secure.scenario import Configuration, Proving, Scenario
from bentoml_secure.serving.challenging import HELD_FOR, NONCE_SECONDS, Challenges
from bentoml_secure.serving.completion import (
    audit,
    late_votes,
    localise,
    required_attachments,
)
from bentoml_secure.serving.draws import Draws
from bentoml_secure.serving.engine import Engine
from bentoml_secure.serving.ordering import make_orders
from bentoml_secure.serving.own_evidence import OwnEvidence, OwnParty
from bentoml_secure.serving.peers import FRESH_SHARE, ready
from bentoml_secure.serving.proof_desk import ProofDesk
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.serving.trials import Examiner
from bentoml_secure.session.identity import Identity, Keys
from bentoml_secure.session.keys import Session, Shown
from bentoml_secure.session.messages import Document
from bentoml_secure.session.responders import Responder
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import format_time, utc_now

logger = logging.getLogger("bentoml_secure")

MAX_KEPT_SALTS = 10_000
CLOSE_SECONDS = 10.0
MAX_CLIENT_FINISH_BYTES = 16 * 1024
MAX_KEPT_BYTES = 1 << 30
"""Of tensors that wait for referees: beyond it, requests are not recomputed."""

MAX_CLIENT_EXCHANGES = 1 << 14
"""Of one client's session: its window of used ids has at most 2 MiB."""


def _judge_client(shown: Shown) -> None:
    """Accept a caller that shows nothing of itself: whom to serve is others' to say."""
    if shown.document.role is not Role.CLIENT or shown.record is not None:
        raise AttestationError(
            f"session caller: got a {shown.document.role}, want a client without"
            " evidence"
        )


class Entry:
    """Serves one deployment.

    Args:
        configuration: Of the deployment.
        identity: The entry's.
        engine: Its plan over its replicas.
        store: Where receipts stay.
        max_age_seconds: Of evidence, by the appraisal policy and the scenarios.
        keep_salts: Whether root salts that the entry drew may be asked for later.
        examiner: Puts replicas without a vote to trial, if there are known answers.
        desk: Deals with provers, where the deployment has some.
        auditors: Key ids of those who draw challenges too.
        clock: For times in receipts.
    """

    def __init__(
        self,
        configuration: Configuration,
        identity: Identity,
        engine: Engine,
        store: ReceiptStore,
        *,
        max_age_seconds: float,
        keep_salts: bool,
        examiner: Examiner | None = None,
        desk: ProofDesk | None = None,
        auditors: frozenset[str] = frozenset(),
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.configuration = configuration
        self._configuration = configuration.to_json()
        self.identity = identity
        self.engine = engine
        self.store = store
        self.clock = clock
        self.salts: OrderedDict[str, bytes] = OrderedDict()
        # Half of the age: evidence in a receipt must not age out while it is checked.
        self.evidence = OwnEvidence(identity, timedelta(seconds=max_age_seconds / 2))
        self.draws = Draws(clock)
        self.responder = Responder(
            identity,
            _judge_client,
            max_age_seconds=max_age_seconds / 2,
            clock=clock,
            draw=self._first_draw,
            max_exchanges=MAX_CLIENT_EXCHANGES,
            max_finish_bytes=MAX_CLIENT_FINISH_BYTES,
        )
        self._max_age_seconds = max_age_seconds
        self._keep_salts = keep_salts
        self._examiner = examiner
        self._desk = desk
        self.challenges: Challenges | None = None
        if desk is not None:
            self.challenges = Challenges(
                store,
                auditors=auditors,
                nonce_seconds=NONCE_SECONDS,
                challenged=desk.wake,
                clock=clock,
            )
        self._completions: dict[str, asyncio.Task[None]] = {}
        self._kept_bytes = 0
        self._tasks: list[asyncio.Task[None]] = []

    def _first_draw(self, session: Session) -> Document | None:
        signed = self.draws.give(session)
        return None if signed is None else signed.to_json()

    async def start(self) -> None:
        """Begin to attest the replicas and to try newcomers; does not wait for them."""
        self._tasks.append(asyncio.create_task(self.engine.keep_attested()))
        if self._examiner is not None:
            self._tasks.append(asyncio.create_task(self._examiner.run()))
        if self._desk is not None:
            await self._desk.start(self._proven)
        if self.challenges is not None:
            self._tasks.append(asyncio.create_task(self.challenges.run()))

    async def is_ready(self) -> bool:
        """Tell, within a second, whether the minimum scenario could be served."""
        scenarios, barred = self.configuration.scenarios, self.engine.standing.barred
        least = scenarios.by_name[scenarios.minimum]
        proven = self._desk is not None and self._desk.is_ready
        if least.proof is not Proving.NONE and not proven:
            return False
        voters = [
            [peer for peer in replicas if barred(peer.name) is None]
            for replicas in self.engine.peers
        ]
        return await ready(voters, least)

    async def issue(
        self, context: RequestContext, status: int, request: bytes, response: bytes
    ) -> Envelope:
        """Sign and store the receipt of an answered request.

        It is stored when this returns, so no answer leaves without one.

        Args:
            context: Of the request, its ``infer`` calls done.
            status: Of the HTTP response.
            request: The body as it came.
            response: The body as it will be sent.

        Raises:
            UnavailableError: Evidence aged out while the request was served.
            SecureError: It could not be stored.
        """
        self._pin_auditors(context)
        own = await self.evidence.for_receipt(
            context.session, context.evidence_nonce, self.clock()
        )
        if self.challenges is None or not epoch_due(context.scenario):
            return await self._issue(context, own, (status, request, response), None)
        joined = self.challenges.join(context.scenario, own.keys)
        try:
            envelope = await self._issue(
                context, own, (status, request, response), joined.epoch
            )
        except BaseException:
            self.challenges.leave(joined)
            raise
        self.challenges.add(joined, envelope.payload_digest, context.request_id.hex())
        return envelope

    async def _issue(
        self,
        context: RequestContext,
        own: OwnParty,
        answered: tuple[int, bytes, bytes],
        epoch: Epoch | None,
    ) -> Envelope:
        now = self.clock()
        self._require_young(context, own, now)
        receipt = self._receipt(context, own, answered, epoch, now)
        envelope = issue(receipt, own.keys.signing)
        pinned = context.pinned.values()
        bundle = Bundle(
            receipt=envelope,
            key_documents=(own.keys.document, *(a.document for a in pinned)),
            evidence=(own.record, *(a.record for a in pinned)),
            plan=self.engine.plan,
            scenario=context.scenario,
            configuration=self._configuration,
            verification_keys=None if self._desk is None else self._desk.document,
        )
        await self._keep(context, receipt, bundle)
        metrics.count_receipt(context.scenario.name, "issued")
        if context.salt_drawn_by == ENTRY and self._keep_salts:
            self.salts[receipt.receipt_id] = context.root_salt
            if len(self.salts) > MAX_KEPT_SALTS:
                self.salts.popitem(last=False)
        self._complete(context, receipt.receipt_id, envelope, own.keys)
        return envelope

    def _receipt(
        self,
        context: RequestContext,
        own: OwnParty,
        answered: tuple[int, bytes, bytes],
        epoch: Epoch | None,
        now: datetime,
    ) -> Receipt:
        status, request, response = answered
        salt, scheme = context.salt, context.scenario.commitments
        return Receipt(
            receipt_id=context.request_id.hex(),
            service=self.configuration.service,
            api=context.api,
            status=status,
            scenario_name=context.scenario.name,
            scenario_digest=context.scenario.digest,
            plan_digest=self.engine.plan.digest,
            config_digest=self.configuration.digest,
            client_nonce=context.nonce.hex(),
            nonce_drawn_by=context.nonce_drawn_by,
            salt_drawn_by=context.salt_drawn_by,
            first_hop=UNSEALED if context.session is None else SEALED,
            draw=context.draw,
            parties=(own.party, *(a.party for a in context.pinned.values())),
            request=commit_body(salt(0, "body", "request"), request, scheme),
            response=commit_body(salt(0, "body", "response"), response, scheme),
            infers=tuple(sorted(context.infers, key=lambda record: record.index)),
            attachments=required_attachments(
                context, len(self.engine.plan.segments), now
            ),
            epoch=epoch,
            started_at=format_time(context.started_at),
            issued_at=format_time(now),
        )

    async def _keep(
        self, context: RequestContext, receipt: Receipt, bundle: Bundle
    ) -> None:
        """Store a receipt, and orders of its proofs with it."""
        desk = self._desk
        if desk is None or not context.provable:
            await asyncio.to_thread(self.store.put, receipt, bundle)
            return
        challenged = context.scenario.proof is Proving.CHALLENGE
        making = functools.partial(
            make_orders,
            context,
            bundle.receipt.payload_digest,
            context.provable,
            desk.manifest,
            desk.order_keys(context.scenario),
            priority=Priority.AUDIT if challenged else Priority.CRITICAL,
            deadline=_proof_deadline(context.scenario, receipt),
            held_until=format_time(
                self.clock() + longest_epoch(context.scenario) + HELD_FOR
            ),
            held=challenged,
        )

        def keep() -> int:
            """Seal and write: not on the loop."""
            orders = making()
            self.store.put(receipt, bundle, orders)
            return len(orders)

        kept = await asyncio.to_thread(keep)
        context.provable.clear()
        if not challenged:
            desk.wake(kept)

    def _require_young(
        self, context: RequestContext, own: OwnParty, now: datetime
    ) -> None:
        # Who judges the receipt judges evidence for the time of its issue.
        allowed = context.scenario.evidence_max_age_seconds
        oldest = timedelta(seconds=min(allowed, self._max_age_seconds))
        drawn = datetime.fromisoformat(own.party.nonce_issued_at)
        # Its own it cannot judge: it may say that it is older than its nonce.
        ends = {
            own.party.name: min(
                drawn + FRESH_SHARE * oldest, own.keys.document.not_after
            )
        }
        for name, attested in context.pinned.items():
            aged = attested.nonce_issued_at + timedelta(seconds=allowed)
            ends[name] = min(aged, attested.session.expires_at)
        for name, end in ends.items():
            if end <= now:
                raise UnavailableError(
                    f"{name}: its evidence aged out while the request was served.",
                    remedy="Ask again, for less at once; or allow older evidence.",
                )

    def _pin_auditors(self, context: RequestContext) -> None:
        # Parties of the receipt: who verifies the audit finds their keys there. One
        # that is not there now does not audit, and the audit says so.
        due = context.kept or localisation_due(context.infers, context.scenario)
        for referee in self.engine.referees if due else ():
            with contextlib.suppress(UnavailableError):
                context.pin(referee)

    def is_simulated(self, context: RequestContext) -> bool:
        """Tell whether any evidence behind an answer is simulated."""
        return self.identity.keys.document.platform == "simulated" or any(
            attested.result.simulated for attested in context.pinned.values()
        )

    def _complete(
        self, context: RequestContext, receipt_id: str, receipt: Envelope, keys: Keys
    ) -> None:
        if not (context.late or context.kept or context.doubted):
            if context.scenario.proof is Proving.NONE:
                metrics.count_receipt(context.scenario.name, "completed")
            return
        if self._kept_bytes + context.kept_bytes > MAX_KEPT_BYTES:
            logger.warning("receipt %s: too many others wait for referees", receipt_id)
            context.forget()
        self._kept_bytes += context.kept_bytes
        task = asyncio.create_task(self._attach(context, receipt_id, receipt, keys))
        self._completions[receipt_id] = task
        task.add_done_callback(lambda _: self._end(context, receipt_id))

    def _end(self, context: RequestContext, receipt_id: str) -> None:
        self._completions.pop(receipt_id, None)
        self._kept_bytes -= context.kept_bytes
        context.kept.clear()
        context.doubted.clear()

    async def _attach(
        self, context: RequestContext, receipt_id: str, receipt: Envelope, keys: Keys
    ) -> None:
        digest, engine, sign = receipt.payload_digest, self.engine, keys.signing
        due: list[tuple[str, Coroutine[None, None, Envelope]]] = []
        if context.late:
            votes = late_votes(context, digest, engine, sign, self.clock)
            due.append(("late votes", votes))
        if context.kept:
            due.append(("audit", audit(context, digest, engine, sign, self.clock)))
        if localisation_due(context.infers, context.scenario):
            found = localise(context, digest, engine, sign, self.clock)
            due.append(("localisation", found))
        # At once: each has a deadline of its own, whatever the others take.
        attached = await asyncio.gather(
            *(self._attach_one(receipt_id, what, coming) for what, coming in due)
        )
        if not all(attached):
            metrics.count_receipt(context.scenario.name, "failed")
        elif context.scenario.proof is Proving.NONE:
            metrics.count_receipt(context.scenario.name, "completed")

    async def _attach_one(
        self, receipt_id: str, what: str, coming: Coroutine[None, None, Envelope]
    ) -> bool:
        try:
            attachment = await coming
            await asyncio.to_thread(self.store.attach, receipt_id, attachment)
        except Exception:
            # Nobody waits for this task: the log and the missing attachment tell.
            logger.exception("receipt %s: %s were not attached", receipt_id, what)
            return False
        return True

    async def _proven(self, receipt_id: str, proven: bool) -> None:
        """Note that a receipt has its proofs, or that it will not get them in time."""
        bundle = await asyncio.to_thread(self.store.bundle, receipt_id)
        state: metrics.ReceiptState = "completed" if proven else "failed"
        if proven and _was_passed_over(bundle):
            # Complete since its draw; an auditor wanted more than it owed.
            return
        metrics.count_receipt(bundle.scenario.name, state)

    async def wait_proven(self, receipt_id: str, seconds: float) -> bool:
        """Wait until a receipt's proofs are attached.

        Returns:
            Whether they are: not if the time is over, or one of them failed.
        """
        if self._desk is None:
            return False
        return await self._desk.wait(receipt_id, seconds)

    async def wait_complete(
        self, receipt_id: str, seconds: float, *, proofs: bool = False
    ) -> None:
        """Wait until what a receipt requires is attached, or the time is over.

        Args:
            receipt_id: Of the receipt.
            seconds: At most.
            proofs: Whether to wait for proofs as well.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                task = self._completions.get(receipt_id)
                if task is not None:
                    await asyncio.wait([task])
                if proofs and self._desk is not None:
                    await self._desk.wait(receipt_id, seconds)

    async def close(self) -> None:
        """Finish attachments, stop attesting, close connections and files."""
        if self._completions:
            await asyncio.wait(self._completions.values(), timeout=CLOSE_SECONDS)
        for task in [*self._tasks, *self._completions.values()]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._desk is not None:
            await self._desk.close()
        await self.engine.close()
        self.store.close()


def _was_passed_over(bundle: Bundle) -> bool:
    """Tell whether a receipt was not drawn when its epoch was."""
    attached = (read_attachment(envelope) for envelope in bundle.attachments)
    return any(
        EpochRecord.from_attachment(attachment).deadline is None
        for attachment in attached
        if attachment.kind == EPOCH
    )


def _proof_deadline(scenario: Scenario, receipt: Receipt) -> str:
    due = {required.kind: required.deadline for required in receipt.attachments}
    if PROOF in due:
        return due[PROOF]
    # Of a challenge that may come: told when it comes.
    issued = datetime.fromisoformat(receipt.issued_at)
    return format_time(issued + timedelta(seconds=scenario.proof_deadline_seconds))
