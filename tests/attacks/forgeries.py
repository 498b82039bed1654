"""Receipts of a running service, edited the way a forger would.

Who edits cannot sign as the entry: what comes out is either under the old signature
or under a key that nobody attested.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bentoml_secure.digest import canonical_json
from bentoml_secure.signing import SigningKey, sign
from bentoml_secure.statements import INTOTO_TYPE

# Of segment 0 in the bundles that are edited: one that voted, one that came late.
VOTER, LATE = "AttackedSegment0Replica0", "AttackedSegment0Replica1"

Edit = Callable[["Forgery"], None]


@dataclass(slots=True)
class Forgery:
    """A bundle's JSON, its receipt's payload, and another bundle to borrow from."""

    bundle: dict[str, Any]
    statement: dict[str, Any]
    other: dict[str, Any]

    @property
    def predicate(self) -> dict[str, Any]:
        predicate: dict[str, Any] = self.statement["predicate"]
        return predicate

    @property
    def segments(self) -> list[dict[str, Any]]:
        segments: list[dict[str, Any]] = self.predicate["infers"][0]["segments"]
        return segments

    def other_statement(self) -> dict[str, Any]:
        return payload_of(self.other["receipt"])

    def unsigned(self) -> bytes:
        """Put the edited payload under the old signature."""
        payload = canonical_json(self.statement)
        self.bundle["receipt"]["payload"] = base64.b64encode(payload).decode()
        return json.dumps(self.bundle).encode()

    def signed(self, key: SigningKey) -> bytes:
        """Sign the edited payload with a key of one's own."""
        self.bundle["receipt"] = sign(key, INTOTO_TYPE, self.statement).to_json()
        return json.dumps(self.bundle).encode()


def payload_of(envelope: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))
    return document


def drop_segment(forgery: Forgery) -> None:
    del forgery.segments[1]


def double_segment(forgery: Forgery) -> None:
    forgery.segments.append(copy.deepcopy(forgery.segments[1]))


def swap_segments(forgery: Forgery) -> None:
    forgery.segments.reverse()


def borrow_statement(forgery: Forgery) -> None:
    other = forgery.other_statement()["predicate"]["infers"][0]["segments"][0]
    forgery.segments[0]["statements"][VOTER] = other["statements"][VOTER]


def exchange_statements(forgery: Forgery) -> None:
    statements = forgery.segments[0]["statements"]
    first, second = sorted(statements)
    statements[first], statements[second] = statements[second], statements[first]


def drop_statement(forgery: Forgery) -> None:
    del forgery.segments[0]["statements"][VOTER]


def edit_medoid(forgery: Forgery) -> None:
    tally = forgery.segments[0]["tally"]
    tally["medoid"] = LATE


def edit_quorum(forgery: Forgery) -> None:
    forgery.segments[0]["tally"]["quorum"] = 1


def edit_groups(forgery: Forgery) -> None:
    tally = forgery.segments[0]["tally"]
    tally["groups"] = [[name] for group in tally["groups"] for name in group]
    tally["distances"] = [[0, 0], [0, 0]]


def edit_pending(forgery: Forgery) -> None:
    forgery.segments[0]["tally"]["pending"] = []


def edit_committee(forgery: Forgery) -> None:
    del forgery.segments[0]["tally"]["committee"][-1]


def break_input(forgery: Forgery) -> None:
    other = {s["name"]: s["digest"] for s in forgery.other_statement()["subject"]}
    for subject in forgery.statement["subject"]:
        if subject["name"] == "infer/0/input/features":
            subject["digest"] = other[subject["name"]]


def break_output(forgery: Forgery) -> None:
    other = {s["name"]: s["digest"] for s in forgery.other_statement()["subject"]}
    for subject in forgery.statement["subject"]:
        if subject["name"] == "infer/0/output/probability":
            subject["digest"] = other[subject["name"]]


def edit_id(forgery: Forgery) -> None:
    forgery.predicate["receipt_id"] = "0" * 32


def edit_nonce(forgery: Forgery) -> None:
    forgery.predicate["client_nonce"] = "0" * 64


def require_nothing(forgery: Forgery) -> None:
    forgery.predicate["attachments"] = []


# Each edit, and the finding's field that names it beside the signature.
EDITS: dict[str, tuple[Edit, str]] = {
    "segment dropped": (drop_segment, "infer 0 segments"),
    "segment doubled": (double_segment, "infer 0 segments"),
    "segments swapped": (swap_segments, "infer 0 segments"),
    "statement of another request": (
        borrow_statement,
        f"infer 0 segment 0 statement {VOTER} request_id",
    ),
    "statements exchanged": (
        exchange_statements,
        f"infer 0 segment 0 statement {VOTER}",
    ),
    "statement dropped": (drop_statement, "infer 0 segment 0 tally groups"),
    "medoid edited": (edit_medoid, "infer 0 segment 0 tally medoid"),
    "quorum edited": (edit_quorum, "infer 0 segment 0 tally quorum"),
    "groups edited": (edit_groups, "infer 0 segment 0 tally groups"),
    "pending edited": (edit_pending, "infer 0 segment 0 tally pending"),
    "committee edited": (edit_committee, "infer 0 segment 0 committee size"),
    "input of another request": (
        break_input,
        f"infer 0 segment 0 statement {VOTER} input features",
    ),
    "output of another request": (break_output, "infer 0 output probability"),
    "id edited": (edit_id, "receipt_id"),
    "nonce edited": (edit_nonce, "receipt_id"),
    "attachments not required": (require_nothing, "attachments required"),
}
