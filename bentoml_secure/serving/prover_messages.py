"""What an entry and a prover say to each other, sealed in their session: JSON.

    {"ask": "order-key"}                              -> {"order_key", "manifest"}
    {"ask": "submit", "orders": [order, ...]}         -> {"taken": [true, ...]}
    {"ask": "link", "key": key, "link": base64}       -> {}
    {"ask": "collect", "keys": [key, ...]}            -> {"jobs": [job, ...]}
    {"ask": "forget", "keys": [key, ...]}             -> {}
    {"ask": "cancel", "keys": [key, ...]}             -> {}
    {"ask": "execute", "boundary": [...], "salt": []} -> {"boundary": [...]}

A key is [receipt id, infer, segment]. Orders and links are sealed once more, so that
neither an entry that was started anew nor a prover's queue can read them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bentoml_secure.digest import (
    REQUEST_ID_BYTES,
    canonical_json,
    parse_hex,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.receipts.receipt import MAX_INFERS, MAX_SEGMENTS
from bentoml_secure.receipts.strict import items, whole
from bentoml_secure.signing import decode_base64

OPERATION = "proofs"
PROOFS_PATH = "/bsec/v1/proofs"
MAX_MESSAGE_BYTES = 64 << 20
MAX_ORDER_BYTES = 32 << 20
MAX_LINK_BYTES = 16 << 20
MAX_KEYS = 1000
MAX_VALUES = 1 << 20
MOST_VALUE = 2**53 - 1
PRIORITIES = ("critical", "audit")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedOrder:
    """An order on its way to the prover's queue.

    Attributes:
        key: Which proof.
        deadline: RFC 3339: later it is of no use.
        priority: Of ``PRIORITIES``.
        body: Sealed to the prover.
    """

    key: JobKey
    deadline: str
    priority: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """How far a prover is with an order.

    Attributes:
        key: Which proof.
        state: "missing", "waiting", "running", "done", "failed" or "cancelled".
        link: For the next segment's prover, sealed to it; None before it is there.
        attachment: The signed proof's envelope, as JSON; None before it is there.
        reason: Why it failed, or "".
    """

    key: JobKey
    state: str
    link: bytes | None = None
    attachment: Mapping[str, Any] | None = None
    reason: str = ""


STATES = ("missing", "waiting", "running", "done", "failed", "cancelled")


def key_to_json(key: JobKey) -> list[Any]:
    """Return a key as it is sent."""
    return [key.receipt_id, key.infer, key.segment]


def key_from_json(document: object) -> JobKey:
    """Parse a key.

    Raises:
        MalformedInputError: Not of its form.
    """
    what = "proof key"
    if not isinstance(document, list) or len(document) != 3:
        raise MalformedInputError(f"{what}: want receipt id, infer and segment")
    receipt_id, infer, segment = document
    return JobKey(
        parse_hex(receipt_id, what=f"{what} receipt id", length=REQUEST_ID_BYTES).hex(),
        whole(infer, what=f"{what} infer", low=0, high=MAX_INFERS - 1),
        whole(segment, what=f"{what} segment", low=0, high=MAX_SEGMENTS - 1),
    )


def parse_keys(value: object) -> tuple[JobKey, ...]:
    """Parse a list of keys.

    Raises:
        MalformedInputError: Too many, or one that is not of its form.
    """
    return tuple(map(key_from_json, items(value, what="proof keys", most=MAX_KEYS)))


def submit_message(orders: Sequence[SubmittedOrder]) -> bytes:
    """Return the message that hands orders over."""
    return canonical_json(
        {
            "ask": "submit",
            "orders": [
                {
                    "key": key_to_json(order.key),
                    "deadline": order.deadline,
                    "priority": order.priority,
                    "order": base64.b64encode(order.body).decode(),
                }
                for order in orders
            ],
        }
    )


def parse_orders(value: object) -> tuple[SubmittedOrder, ...]:
    """Parse the orders of a message.

    Raises:
        MalformedInputError: Too many, or one that is not of its form.
    """
    found = items(value, what="orders", most=MAX_KEYS)
    return tuple(_order(document) for document in found)


def _order(document: object) -> SubmittedOrder:
    names = ("key", "deadline", "priority", "order")
    got = require_fields(document, names, what="order")
    if got["priority"] not in PRIORITIES:
        raise MalformedInputError(
            f"order priority: got {got['priority']!r:.40}, want one of "
            f"{', '.join(PRIORITIES)}"
        )
    if not isinstance(got["deadline"], str) or len(got["deadline"]) > 40:
        raise MalformedInputError("order deadline: want a time")
    return SubmittedOrder(
        key=key_from_json(got["key"]),
        deadline=got["deadline"],
        priority=got["priority"],
        body=decode_base64(got["order"], what="order", max_bytes=MAX_ORDER_BYTES),
    )


def keys_message(ask: str, keys: Sequence[JobKey]) -> bytes:
    """Return the message that asks something about orders."""
    return canonical_json({"ask": ask, "keys": [key_to_json(key) for key in keys]})


def link_message(key: JobKey, link: bytes) -> bytes:
    """Return the message that hands a link over."""
    said = base64.b64encode(link).decode()
    return canonical_json({"ask": "link", "key": key_to_json(key), "link": said})


def order_key_message() -> bytes:
    """Return the message that asks what orders are to be sealed to."""
    return canonical_json({"ask": "order-key"})


def execute_message(boundary: Sequence[int], salt: Sequence[int]) -> bytes:
    """Return the message that has a circuit executed, without a proof."""
    return canonical_json(
        {"ask": "execute", "boundary": list(boundary), "salt": list(salt)}
    )


def parse_values(value: object, *, what: str) -> tuple[int, ...]:
    """Parse the integers of a boundary or salt.

    Raises:
        MalformedInputError: Too many, or one that is no integer of 53 bits.
    """
    found = items(value, what=what, most=MAX_VALUES)
    return tuple(whole(v, what=what, low=-MOST_VALUE, high=MOST_VALUE) for v in found)


def parse_executed(data: bytes) -> tuple[int, ...]:
    """Parse the answer to "execute".

    Raises:
        MalformedInputError: Not of its form.
    """
    got = require_fields(parse_answer(data), ("boundary",), what="prover's answer")
    return parse_values(got["boundary"], what="boundary")


def reports_to_json(reports: Sequence[JobReport]) -> dict[str, Any]:
    """Return the answer to "collect"."""
    return {
        "jobs": [
            {
                "key": key_to_json(report.key),
                "state": report.state,
                "link": None
                if report.link is None
                else base64.b64encode(report.link).decode(),
                "attachment": report.attachment,
                "reason": report.reason,
            }
            for report in reports
        ]
    }


def parse_reports(data: bytes) -> tuple[JobReport, ...]:
    """Parse the answer to "collect".

    Raises:
        MalformedInputError: Not of its form.
    """
    got = require_fields(parse_answer(data), ("jobs",), what="prover's answer")
    found = items(got["jobs"], what="prover's jobs", most=MAX_KEYS)
    return tuple(_report(document) for document in found)


def _report(document: object) -> JobReport:
    names = ("key", "state", "link", "attachment", "reason")
    got = require_fields(document, names, what="prover's job")
    state, link, reason = got["state"], got["link"], got["reason"]
    if state not in STATES or not isinstance(reason, str):
        raise MalformedInputError(f"prover's job state: got {state!r:.40}")
    if got["attachment"] is not None and not isinstance(got["attachment"], dict):
        raise MalformedInputError("prover's job attachment: want an envelope")
    return JobReport(
        key=key_from_json(got["key"]),
        state=state,
        link=None
        if link is None
        else decode_base64(link, what="link", max_bytes=MAX_LINK_BYTES),
        attachment=got["attachment"],
        reason=reason[:500],
    )


def parse_answer(data: bytes) -> Any:
    """Parse a prover's answer, or an entry's question.

    Raises:
        MalformedInputError: Not JSON, or too long.
    """
    return parse_json(data, what="prover's message", max_bytes=MAX_MESSAGE_BYTES)
