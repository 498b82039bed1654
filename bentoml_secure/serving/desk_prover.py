"""One prover as the entry's desk deals with it: what it was given, asked and owes.

Nothing here outlives the entry: a prover that is given an order which it has, or has
forgotten, says so, and the desk goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bentoml_secure.attestation.evidence import VerifiedClaims
from bentoml_secure.digest import Digest, parse_hex, require_fields
from bentoml_secure.errors import (
    MalformedInputError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.proofs.sealing import PUBLIC_BYTES
from bentoml_secure.receipts.keeping import DueOrder
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
from bentoml_secure.session.keys import Session
from bentoml_secure.session.responders import UnknownSessionError

logger = logging.getLogger("bentoml_secure")

_BATCH = 200
_BATCH_BYTES = 8 << 20
_ASK_SECONDS = 30.0
"""For an answer: then the prover counts as silent, until it says something."""


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
class DeskProver:
    """One prover, as the desk deals with it.

    Attributes:
        peer: Attests it.
        channel: How it is asked.
        handed_over: Orders that it was given.
        linked: Orders whose link went on to the next segment's prover.
        failed: Orders that it is asked for no more.
        unwanted: Orders to be cancelled.
        is_silent: Whether it did not answer when it was asked last.
        serving: The task that deals with it, while one does.
    """

    peer: Peer
    channel: Asking
    handed_over: set[JobKey] = field(default_factory=set)
    linked: set[JobKey] = field(default_factory=set)
    failed: set[JobKey] = field(default_factory=set)
    unwanted: list[JobKey] = field(default_factory=list)
    is_silent: bool = False
    serving: asyncio.Task[bool] | None = None
    _order_key: str | None = None
    _claims: VerifiedClaims | None = None
    _session: Session | None = None

    @property
    def name(self) -> str:
        """Of its service."""
        return self.peer.name

    @property
    def is_known(self) -> bool:
        """Whether orders can be sealed to it."""
        return self._order_key is not None

    def order_key(self, scenario: Scenario, segment: int) -> str:
        """Return what orders are sealed to.

        Args:
            scenario: Of the request.
            segment: Whose tensors the order holds.

        Raises:
            UnavailableError: It was not attested lately, or may not have the segment's
                tensors.
        """
        if self._order_key is None or self._claims is None:
            raise UnavailableError(
                f"{self.name}: no order key yet; it may not be attested.",
                remedy="Ask later; the log says what is wrong with the prover.",
            )
        self.peer.require(scenario.evidence_max_age_seconds)
        if (reason := misplaced(self._claims, scenario, segment)) is not None:
            raise UnavailableError(f"{self.name}: {reason}.")
        return self._order_key

    def forget(self, place: JobKey) -> None:
        """Remember nothing of an order that is settled or given up."""
        for places in (self.handed_over, self.linked, self.failed):
            places.discard(place)

    async def learn_order_key(self, manifest: Digest) -> None:
        """Ask what orders are sealed to, once in every session; log what is wrong.

        Args:
            manifest: Of the set-up that it must have.
        """
        try:
            attested = self._attested()
        except UnavailableError:
            return
        if self._session is attested.session:
            return
        try:
            said = await self._ask(order_key_message(), attested)
            got = require_fields(
                parse_answer(said), ("order_key", "manifest"), what="prover's answer"
            )
            if got["manifest"] != manifest:
                raise MalformedInputError(
                    f"{self.name} manifest: got {got['manifest']!r:.100}, want "
                    f"{manifest}"
                )
            parse_hex(got["order_key"], what="order key", length=PUBLIC_BYTES)
        except SecureError as error:
            logger.warning("%s: no order key: %s", self.name, error)
            return
        self._order_key, self._session = got["order_key"], attested.session
        self._claims = attested.result.claims

    async def cancel_unwanted(self) -> None:
        """Cancel what nobody wants any more.

        Raises:
            SecureError: No answer, or none of its form.
        """
        if unwanted := self.unwanted[:_BATCH]:
            await self._ask(keys_message("cancel", unwanted))
            del self.unwanted[: len(unwanted)]

    async def hand_over(
        self, due: Sequence[DueOrder], body_of: Callable[[JobKey], bytes | None]
    ) -> bool:
        """Hand over orders that it was not given yet; tell whether there were any.

        Args:
            due: Orders of its segment.
            body_of: Returns an order as it was sealed; called in a thread.

        Raises:
            SecureError: No answer, or none of its form.
        """
        missing = [order for order in due if order.key not in self.handed_over]
        if not missing:
            return False
        new = await asyncio.to_thread(_load, missing, body_of)
        if not new:
            return False
        await self._ask(submit_message(new))
        self.handed_over |= {order.key for order in new}
        return True

    async def collect(self, due: Sequence[DueOrder]) -> list[JobReport]:
        """Return how far it is with what it was given.

        Raises:
            SecureError: No answer, or none of its form.
        """
        asked = {
            order.key
            for order in due
            if order.key in self.handed_over and order.key not in self.failed
        }
        if not asked:
            return []
        reports = parse_reports(await self._ask(keys_message("collect", list(asked))))
        if not asked.issuperset(report.key for report in reports):
            raise MalformedInputError("it reports what it was not asked for")
        return list(reports)

    async def settle(self, place: JobKey) -> None:
        """Have it forget an order that is settled.

        Raises:
            SecureError: No answer, or none of its form.
        """
        await self._ask(keys_message("forget", [place]))

    async def link(self, place: JobKey, link: bytes) -> None:
        """Give it what the prover of the segment before handed on, unread.

        Raises:
            SecureError: No answer, or none of its form.
        """
        await self._ask(link_message(place, link))

    async def execute(
        self, boundary: Sequence[int], salt: Sequence[int]
    ) -> tuple[int, ...]:
        """Return what comes out of its circuit, without a proof; see ``ProofDesk``."""
        # Others are executed before it; who waits has a time limit of its own.
        message = execute_message(boundary, salt)
        return parse_executed(await self._ask_patiently(message, self._attested()))

    def _attested(self) -> Attested:
        return self.peer.require(float("inf"))

    async def _ask(self, message: bytes, attested: Attested | None = None) -> bytes:
        attested = attested or self._attested()
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                said = await self._ask_patiently(message, attested)
        except TimeoutError as error:
            self.is_silent = True
            raise UnavailableError(
                f"{self.name}: no answer within {_ASK_SECONDS:g} s"
            ) from error
        except UnavailableError:
            self.is_silent = True
            raise
        self.is_silent = False
        return said

    async def _ask_patiently(self, message: bytes, attested: Attested) -> bytes:
        try:
            return await self.channel.ask(
                PROOFS_PATH,
                OPERATION,
                message,
                attested.session,
                max_bytes=MAX_MESSAGE_BYTES,
            )
        except UnknownSessionError as error:
            # It was started anew.
            self.peer.renew()
            raise UnavailableError(f"{self.name}: {error}") from error


def _load(
    due: Sequence[DueOrder], body_of: Callable[[JobKey], bytes | None]
) -> list[SubmittedOrder]:
    """Return orders with their bodies, as many as one message holds."""
    loaded, size = list[SubmittedOrder](), 0
    for order in due:
        body = body_of(order.key)
        if body is None:
            # Settled or given up meanwhile.
            continue
        size += len(body)
        if loaded and size > _BATCH_BYTES:
            break
        loaded.append(
            SubmittedOrder(
                key=order.key,
                deadline=order.deadline,
                priority=order.priority,
                body=body,
            )
        )
    return loaded
