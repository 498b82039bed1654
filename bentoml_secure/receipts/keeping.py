"""What the entry needs of the place where receipts are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.receipt import Receipt
from bentoml_secure.signing import Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOrder:
    """An order of a proof, as the entry keeps it until it is settled.

    Attributes:
        key: Which proof.
        deadline: By which the proof must be attached; None while it is only held, in
            case the receipt is challenged.
        held_until: How long it is held for that, or for a later challenge.
        priority: "critical" or "audit".
        body: Sealed to the prover.
    """

    key: JobKey
    deadline: str | None
    held_until: str
    priority: str
    body: bytes


@dataclass(frozen=True, slots=True)
class DueOrder:
    """An order that is due, without its body.

    Attributes:
        key: Which proof.
        deadline: By which the proof must be attached.
        priority: "critical" or "audit".
    """

    key: JobKey
    deadline: str
    priority: str


class ReceiptStore(Protocol):
    """What the entry service needs of a store; any thread may call."""

    def put(
        self, receipt: Receipt, bundle: Bundle, orders: Sequence[StoredOrder] = ()
    ) -> None:
        """Keep a new receipt, the documents that it names, and orders of its proofs.

        Raises:
            ConfigurationError: A receipt of this id exists; a document is missing.
            UnavailableError: The store does not answer.
        """
        ...

    def due_orders(self, segment: int, *, most: int) -> list[DueOrder]:
        """Return a segment's orders that are due.

        Critical ones first, and of those the earliest deadline.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    def order_body(self, order: JobKey) -> bytes | None:
        """Return an order, sealed to its prover; None where it is kept no more.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    def late_receipts(self, now: str, *, most: int) -> list[str]:
        """Return ids of receipts with an order that is past its deadline.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    def count_orders(self) -> int:
        """Return how many orders are due.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    def owed(self, receipt_id: str) -> int:
        """Return how many proofs of a receipt are due.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    def has(self, order: JobKey) -> bool:
        """Tell whether an order is kept: neither settled nor given up.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    def make_due(self, receipt_id: str, deadline: str) -> int:
        """Make the orders due that were held for a challenge; return how many.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    def settle(self, order: JobKey, attachment: Envelope) -> int | None:
        """Keep the proof that settles an order, and remove the order.

        Returns:
            How many proofs the receipt owes after it: of those who settle at once, one
            is told 0. None where there was no such order: then nothing is kept.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    def drop_held(self, now: str, *, most: int) -> int:
        """Remove orders that were held long enough, or are too many; return how many.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    def drop_orders(self, receipt_ids: Sequence[str]) -> list[JobKey]:
        """Remove orders that will not be settled any more; return which.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    def attach(self, receipt_id: str, attachment: Envelope) -> None:
        """Keep what came later to a receipt.

        Raises:
            ConfigurationError: No such receipt, or it has too many attachments.
            UnavailableError: The store does not answer.
        """
        ...

    def bundle(self, receipt_id: str) -> Bundle:
        """Return a receipt with its attachments and documents.

        Raises:
            ConfigurationError: No such receipt.
            UnavailableError: The store does not answer.
        """
        ...

    def close(self) -> None:
        """Let go of the store; every later call fails."""
        ...
