"""Challenging: epochs of receipts, fixed before it is drawn who must be proven.

Of every scenario with ``proof = "challenge"``, under each key that the entry has:

    1. a receipt joins the open epoch before it is signed, and is added after
    2. an epoch whose time is over is closed, its root signed and shown to auditors
    3. for a while their nonces are taken
    4. the secret is shown: every receipt gets its attachment, and whoever is challenged
       owes the proofs whose orders were held
    5. as long as the others' are held, an auditor may have any of them proven

Epochs live in this process: their roots are signed with the key of their receipts,
which ends with it. Receipts of an epoch that was open then fail at their deadline.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bentoml_secure import metrics
from bentoml_secure.audit.challenge import SECRET_BYTES, ClosedEpoch, Epoch, EpochLog
from bentoml_secure.digest import Digest
from bentoml_secure.errors import (
    ConfigurationError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.receipts.epoch import EpochRecord, issue_epoch
from bentoml_secure.receipts.epoch_closing import close_epoch, settle_epoch
from bentoml_secure.receipts.epoch_root import verify_nonce
from bentoml_secure.receipts.keeping import ReceiptStore
from bentoml_secure.receipts.late_challenge import verify_challenge
from bentoml_secure.scenario import Scenario
from bentoml_secure.session.identity import Keys
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import format_time, utc_now

logger = logging.getLogger("bentoml_secure")

_TURN_SECONDS = 0.25
HELD_FOR = timedelta(days=1)
"""How long after its epoch orders of what was not challenged are kept."""

MAX_HELD = 100_000
"""Orders; beyond that the oldest go. Their epochs are settled long before."""

_TIDY_SECONDS = 600.0
NONCE_SECONDS = 60.0
"""For auditors; where there are none, or all have said theirs, nobody waits."""


@dataclass(slots=True)
class _Closing:
    """An epoch whose root is signed, and whose secret is not shown yet."""

    closed: ClosedEpoch
    keys: Keys
    scenario: Scenario
    root: Envelope
    until: datetime
    nonces: dict[str, Envelope] = field(default_factory=dict)
    records: deque[EpochRecord] | None = None
    """What is to be attached yet, once its secret is being shown."""


@dataclass(slots=True, kw_only=True)
class Joined:
    """A receipt's place in an epoch, before it is signed.

    Attributes:
        epoch: That the receipt names.
        log: That holds the epoch.
    """

    epoch: Epoch
    log: EpochLog


class Challenges:
    """Gathers receipts into epochs, and challenges some of each.

    Args:
        store: Where receipts are, with the orders that are held.
        auditors: Key ids of those whose nonces are taken.
        nonce_seconds: How long they have for it after an epoch's root.
        challenged: Called with how many orders came due.
        clock: The entry's.
    """

    def __init__(
        self,
        store: ReceiptStore,
        *,
        auditors: frozenset[str],
        nonce_seconds: float,
        challenged: Callable[[int], None],
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._auditors = auditors
        self._nonces_for = timedelta(seconds=nonce_seconds)
        self._challenged = challenged
        self._clock = clock
        self._logs: dict[tuple[Digest, Digest], tuple[EpochLog, Keys, Scenario]] = {}
        self._ids: dict[Digest, str] = {}
        self._closing: dict[Digest, _Closing] = {}
        # No nonce is taken for these any more: some of their receipts show the secret.
        self._drawing: list[_Closing] = []

    def join(self, scenario: Scenario, keys: Keys) -> Joined:
        """Return the place that a receipt must name which is signed next.

        Args:
            scenario: The receipt's.
            keys: That it will be signed with: its epoch's root is, too.
        """
        place = scenario.digest, keys.digest
        if place not in self._logs:
            log = EpochLog(
                seconds=scenario.epoch_seconds,
                draw=lambda: secrets.token_bytes(SECRET_BYTES),
            )
            self._logs[place] = log, keys, scenario
        log = self._logs[place][0]
        return Joined(epoch=log.join(self._clock()), log=log)

    def add(self, joined: Joined, receipt: Digest, receipt_id: str) -> None:
        """Take in a receipt that was signed and stored."""
        joined.log.add(joined.epoch, receipt)
        self._ids[receipt] = receipt_id

    def leave(self, joined: Joined) -> None:
        """Wait no longer for a receipt that came to nothing."""
        joined.log.leave(joined.epoch)

    def roots(self) -> list[Envelope]:
        """Return the roots that nonces are taken for."""
        return [closing.root for closing in self._closing.values()]

    def take_nonce(self, envelope: Envelope) -> None:
        """Take an auditor's nonce over a root that was shown.

        Raises:
            VerificationError: Its signature does not fit; nobody's who is an auditor
                here; no such root waits for one; the auditor has given another.
        """
        said = verify_nonce(envelope)
        closing = self._closing.get(said.root)
        if said.auditor not in self._auditors:
            # Strangers would have everything proven, and crowd the auditors out.
            raise VerificationError(f"nonce: {said.auditor} is no auditor here")
        if closing is None:
            raise VerificationError(f"nonce: no root {said.root} waits for one")
        if said.auditor in closing.nonces:
            raise VerificationError(f"nonce: {said.auditor} has given one already")
        closing.nonces[said.auditor] = envelope

    async def challenge_again(self, receipt_id: str, envelope: Envelope) -> int:
        """Make the orders of a receipt due that an auditor wants proven.

        Args:
            receipt_id: Of the receipt.
            envelope: The auditor's, of ``sign_challenge``.

        Returns:
            How many proofs are owed now.

        Raises:
            VerificationError: Its signature does not fit; nobody's who is an auditor
                here; about another receipt.
            ConfigurationError: No such receipt, or its orders are not held any more.
            UnavailableError: The store does not answer.
        """
        said = verify_challenge(envelope)
        if said.auditor not in self._auditors:
            raise VerificationError(f"challenge: {said.auditor} is no auditor here")
        bundle = await asyncio.to_thread(self._store.bundle, receipt_id)
        digest = bundle.receipt.payload_digest
        if (said.receipt_id, said.receipt) != (receipt_id, digest):
            raise VerificationError(
                f"challenge: got one of {said.receipt_id}, {said.receipt}, want "
                f"{receipt_id}, {digest}"
            )
        if self._awaits_draw(digest):
            raise ConfigurationError(
                f"receipt {receipt_id}: its epoch is not drawn yet.",
                remedy="Give a nonce now, or challenge it later.",
            )
        ends = self._clock() + timedelta(seconds=bundle.scenario.proof_deadline_seconds)
        due, owed = await asyncio.to_thread(
            self._make_due, receipt_id, format_time(ends)
        )
        if not owed:
            raise ConfigurationError(
                f"receipt {receipt_id}: no orders of its proofs are held.",
                remedy=f"Orders are held for {HELD_FOR.days} day; see its bundle for "
                "proofs that have come.",
            )
        self._challenged(due)
        return owed

    def _awaits_draw(self, receipt: Digest) -> bool:
        return receipt in self._ids or any(
            receipt == record.receipt_digest
            for closing in self._drawing
            for record in closing.records or ()
        )

    def _make_due(self, receipt_id: str, deadline: str) -> tuple[int, int]:
        """Return how many orders came due, and how many are."""
        due = self._store.make_due(receipt_id, deadline)
        return due, due or self._store.owed(receipt_id)

    async def run(self) -> None:
        """Close epochs and draw, until cancelled."""
        tidied = float("-inf")
        while True:
            try:
                if time.monotonic() - tidied >= _TIDY_SECONDS:
                    tidied = time.monotonic()
                    now = format_time(self._clock())
                    await asyncio.to_thread(self._store.drop_held, now, most=MAX_HELD)
                self._close()
                over = [r for r, c in self._closing.items() if self._is_over(c)]
                self._drawing += [self._closing.pop(root) for root in over]
                while self._drawing:
                    await self._draw(self._drawing[0])
                    del self._drawing[0]
            except UnavailableError as error:
                logger.warning("challenges: %s", error)
            # A task that ends unseen leaves every later epoch without a root.
            except Exception:
                logger.exception("challenges: a turn failed; the next one goes on")
            await asyncio.sleep(_TURN_SECONDS)

    def _is_over(self, closing: _Closing) -> bool:
        all_said = closing.nonces.keys() == self._auditors
        return all_said or self._clock() >= closing.until

    def _close(self) -> None:
        now = self._clock()
        for place, (log, keys, scenario) in list(self._logs.items()):
            for closed in log.close(now):
                envelope = close_epoch(
                    closed,
                    key_document=keys.digest,
                    scenario=scenario.digest,
                    key=keys.signing,
                )
                self._closing[envelope.payload_digest] = _Closing(
                    closed, keys, scenario, envelope, now + self._nonces_for
                )
            if keys.document.not_after < now and log.is_idle:
                del self._logs[place]

    async def _draw(self, closing: _Closing) -> None:
        """Attach what became of an epoch's receipts.

        Raises:
            UnavailableError: The store does not answer; what is left comes with the
                next call.
        """
        if closing.records is None:
            closing.records = self._records(closing)
        while closing.records:
            record = closing.records[0]
            try:
                envelope = issue_epoch(record, closing.keys.signing)
                due = await asyncio.to_thread(self._settle, record, envelope)
                self._challenged(due)
                if record.deadline is None:
                    # Of the others it is counted when their proofs have come.
                    metrics.count_receipt(closing.scenario.name, "completed")
            except UnavailableError:
                raise
            except Exception:
                # It fails at its deadline; those beside it must not.
                logger.exception("receipt %s: its epoch", record.receipt_id)
            closing.records.popleft()

    def _records(self, closing: _Closing) -> deque[EpochRecord]:
        receipts = closing.closed.receipts
        ids = {r: known for r in receipts if (known := self._ids.pop(r, None))}
        try:
            return deque(
                settle_epoch(
                    closing.closed,
                    closing.root,
                    tuple(closing.nonces.values()),
                    receipt_ids=ids,
                    scenario=closing.scenario,
                    issued_at=self._clock(),
                )
            )
        except Exception:
            # Its receipts fail at their deadline; the next epoch may do better.
            logger.exception("challenges: an epoch came to nothing")
            return deque()

    def _settle(self, record: EpochRecord, envelope: Envelope) -> int:
        """Attach what became of one receipt; return how many of its orders are due."""
        due = 0
        if record.deadline is not None:
            # First, for it may be done again: what is attached stays, and stands once.
            _, due = self._make_due(record.receipt_id, record.deadline)
            if not due:
                logger.error(
                    "receipt %s: challenged, and no orders are held", record.receipt_id
                )
        self._store.attach(record.receipt_id, envelope)
        return due
