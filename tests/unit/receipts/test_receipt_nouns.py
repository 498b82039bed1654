from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.digest import canonical_json, digest_json
from bentoml_secure.errors import MalformedInputError, UnknownKindError
from bentoml_secure.receipts.attachments import (
    ATTACHMENTS,
    Attachment,
    load_judge,
    parse_attachment,
)
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.late_votes import LateVotes
from bentoml_secure.receipts.receipt import (
    Receipt,
    derive_request_id,
    issue,
    parse_receipt,
)
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Draft

GONE = object()


def changed(document: Any, path: str, value: Any) -> Any:
    document = copy.deepcopy(document)
    node = document
    *parents, last = (int(k) if k.isdigit() else k for k in path.split("/"))
    for key in parents:
        node = node[key]
    if value is GONE:
        del node[last]
    else:
        node[last] = value
    return document


def test_a_request_id_has_two_makers() -> None:
    first = derive_request_id(bytes(32), bytes(32))
    assert first.hex() == "53df48369d86cb2df03542e8758e11af"
    assert derive_request_id(bytes(32), b"\1" * 32) != first
    assert derive_request_id(b"\1" * 32, bytes(32)) != first


class TestReceipt:
    def test_it_is_named_by_its_payload(
        self, draft: Draft, deployment: Deployment
    ) -> None:
        envelope = issue(draft.receipt, deployment.entry.signing)
        statement = draft.receipt.to_statement()
        assert envelope.payload_digest == digest_json(statement)
        assert parse_receipt(envelope) == draft.receipt
        assert issue(draft.receipt, deployment.entry.signing) == envelope

    def test_the_order_in_which_parties_are_given_does_not_matter(
        self, draft: Draft
    ) -> None:
        parties = tuple(reversed(draft.receipt.parties))
        again = replace(draft.receipt, parties=parties)
        assert again.to_statement() == draft.receipt.to_statement()

    @pytest.mark.parametrize(
        ("path", "value", "match"),
        [
            ("predicate/version", 2, "receipt version: got 2"),
            ("predicate/version", True, "got True, want an integer"),
            ("predicate/service", "", "service: got ''"),
            ("predicate/service", "\x1b[2J", "service: got"),
            ("predicate/service", "x" * 513, "service: got"),
            ("predicate/api", 1, "api: got 1"),
            ("predicate/status", 99, "status: got 99"),
            ("predicate/status", "200", "status: got '200'"),
            ("predicate/receipt_id", "00", "receipt_id: got 2 hex digits"),
            ("predicate/client_nonce", "zz", "client_nonce: got 'zz'"),
            ("predicate/nonce_drawn_by", "fate", "nonce_drawn_by: got 'fate'"),
            ("predicate/salt_drawn_by", [], "salt_drawn_by: got"),
            ("predicate/first_hop", "veiled", "first_hop: got 'veiled'"),
            ("predicate/plan_digest", "sha256:" + "00" * 32, "want sha256-jcs-v1"),
            ("predicate/scenario", [], "scenario: got list, want an object"),
            ("predicate/scenario/name", GONE, "field 'name' is missing"),
            ("predicate/draw/asserted", 1, "draw asserted: got 1"),
            ("predicate/draw/asserted", True, "draw: want a signed commitment, or"),
            ("predicate/draw/signed", None, "draw: want a signed commitment, or"),
            ("predicate/draw/signed", GONE, "draw: field 'signed' is missing"),
            ("predicate/draw/signed", [], "draw commitment: want exactly"),
            ("predicate/draw/signed/payload", "A" * 1400, "at most 1024 bytes"),
            ("predicate/draw/r", "00" * 31, "draw r: got 62"),
            ("predicate/parties", {}, "parties: want a list"),
            ("predicate/parties/0/role", "client", "role: got 'client'"),
            ("predicate/parties/1/name", "D", "a name stands twice"),
            ("predicate/parties/1/name", "Zed", "each once and in order"),
            ("predicate/infers", [], "infers: got none"),
            ("predicate/infers/0/index", 1, "infer 0 index: got 1"),
            ("predicate/infers/0/segments/0/statements", [], "want an object"),
            ("predicate/infers/0/segments/0/tally/quorum", 0, "tally quorum: got 0"),
            ("predicate/started_at", "2026-06-01", "started_at: got"),
            ("predicate/started_at", "9999-12-31T23:59:59.999Z", "want a year"),
            ("predicate/note", "x", "unknown field 'note'"),
            ("predicateType", "https://example.org/receipt/v1", "predicateType: got"),
            ("subject/0/name", "infer/7/input/x", "subject 'request'"),
            ("subject/2/name", "infer/1/input/x", "each once and in order"),
            ("subject/0/digest", {"sha256": "00" * 32}, "want hmac-sha256"),
            ("subject/2/digest", {"hmac-sha256": "00" * 32}, "tensors-v1:<hex>"),
        ],
    )
    def test_what_is_refused(
        self, path: str, value: Any, match: str, draft: Draft
    ) -> None:
        document = changed(draft.receipt.to_statement(), path, value)
        with pytest.raises(MalformedInputError, match=match):
            Receipt.from_statement(document)

    def test_an_obligation_stands_once(self, late_draft: Draft) -> None:
        document = late_draft.receipt.to_statement()
        document["predicate"]["attachments"] *= 2
        with pytest.raises(MalformedInputError, match="a kind stands twice"):
            Receipt.from_statement(document)

    def test_tensors_are_bounded(self, draft: Draft) -> None:
        document = draft.receipt.to_statement()
        document["subject"][2:3] = [
            {**document["subject"][2], "name": f"infer/0/input/{n}"} for n in range(257)
        ]
        with pytest.raises(MalformedInputError, match="at most 256 tensors"):
            Receipt.from_statement(document)

    def test_another_payload_type(self, draft: Draft) -> None:
        envelope = replace(draft.bundle().receipt, payload_type="text/plain")
        with pytest.raises(MalformedInputError, match="payloadType: got 'text/plain'"):
            parse_receipt(envelope)

    def test_another_spelling(self, draft: Draft) -> None:
        envelope = draft.bundle().receipt
        spaced = replace(envelope, payload=envelope.payload + b" ")
        with pytest.raises(MalformedInputError, match="not canonical JSON"):
            parse_receipt(spaced)


class TestBundle:
    @pytest.mark.parametrize(
        ("path", "value", "match"),
        [
            ("version", 2, "bundle version: got 2"),
            ("note", 1, "unknown field 'note'"),
            ("receipt", GONE, "field 'receipt' is missing"),
            ("receipt/signatures", [], "want exactly one"),
            ("attachments", [{}] * 4097, "attachments: want a list of at most 4096"),
            ("key_documents/0/role", "owner", "role: got 'owner'"),
            ("evidence/0/endorsements", "x", "endorsements: want a list"),
            ("evidence/0/evidence/kind", "", "kind: got ''"),
            ("plan/segments", [], "plan segments: got 0"),
            ("scenario/quorum", 1, "bundle: scenario 'general' quorum"),
        ],
    )
    def test_what_is_refused(
        self, path: str, value: Any, match: str, draft: Draft
    ) -> None:
        document = changed(draft.bundle().to_json(), path, value)
        with pytest.raises(MalformedInputError, match=match):
            parse_bundle(canonical_json(document))

    def test_what_is_written_is_read(self, late_draft: Draft) -> None:
        bundle = late_draft.bundle()
        assert parse_bundle(json.dumps(bundle.to_json()).encode()) == bundle


class TestAttachments:
    @pytest.fixture
    def statement(self, late_draft: Draft) -> dict[str, Any]:
        (envelope,) = late_draft.bundle().attachments
        document: dict[str, Any] = json.loads(envelope.payload)
        return document

    def test_every_kind_has_a_judge(self) -> None:
        for kind in ATTACHMENTS:
            assert callable(load_judge(kind))

    def test_an_unknown_kind(self) -> None:
        with pytest.raises(UnknownKindError, match="excuses"):
            load_judge("excuses")

    @pytest.mark.parametrize(
        ("path", "value", "match"),
        [
            ("predicateType", "https://example.org/x/v1", "predicateType: got"),
            ("predicateType", 1, "predicateType: got 1"),
            ("subject/0/name", "another", "subject: got"),
            ("subject/0/digest", {"sha256": "00" * 32}, "want sha256-jcs-v1"),
            ("predicate/issued_at", GONE, "'issued_at' is missing"),
            ("predicate/issued_at", "now", "issued_at: got 'now'"),
            ("predicate/receipt_id", "00", "receipt_id: got 2"),
            ("predicate/version", 2, "version: got 2"),
        ],
    )
    def test_what_is_refused(
        self, path: str, value: Any, match: str, statement: dict[str, Any]
    ) -> None:
        with pytest.raises(MalformedInputError, match=match):
            parse_attachment(changed(statement, path, value))

    @pytest.mark.parametrize("document", [None, [], "text", {}])
    def test_what_is_no_statement(self, document: Any) -> None:
        with pytest.raises(MalformedInputError, match="predicateType: got None"):
            parse_attachment(document)

    def test_late_votes_come_back(
        self, statement: dict[str, Any], late_draft: Draft
    ) -> None:
        votes = LateVotes.from_attachment(parse_attachment(statement))
        assert votes == late_draft.late_votes(late_draft.bundle().receipt)

    def test_what_is_empty_is_left_out(self, late_draft: Draft) -> None:
        votes = late_draft.late_votes(late_draft.bundle().receipt)
        nothing = replace(votes.rounds[0, 0], answers=(), absent=())
        padded = replace(votes, rounds={**votes.rounds, (3, 3): nothing})
        assert padded.to_json() == votes.to_json()

    @pytest.mark.parametrize(
        ("path", "value", "match"),
        [
            ("note", 1, "unknown field 'note'"),
            ("infers/0/index", -1, "index: got -1"),
            ("infers/0/segments/0/index", 256 + 1, "index: got 257"),
            ("infers/0/segments/0/answers/0/distance", -1, "distance: got -1"),
            ("infers/0/segments/0/answers/0/distance", True, "distance: got True"),
            ("infers/0/segments/0/answers/0/distance", 10**400, "distance: got"),
            ("infers/0/segments/0/answers/0/statement", {}, "want exactly payload"),
            ("infers/0/segments/0/answers", [], "none empty"),
            ("infers/0/segments/1/index", 0, "none empty"),
            ("infers/0/segments/1/absent/0/reason", "x" * 201, "got 201 characters"),
            ("infers/0/segments/1/absent/0/reason", "", "reason: got ''"),
        ],
    )
    def test_late_votes_that_are_refused(
        self, path: str, value: Any, match: str, statement: dict[str, Any]
    ) -> None:
        attachment = parse_attachment(statement)
        content = changed(attachment.content, path, value)
        with pytest.raises(MalformedInputError, match=match):
            LateVotes.from_attachment(replace(attachment, content=content))

    def test_an_infer_stands_once(self, statement: dict[str, Any]) -> None:
        attachment: Attachment = parse_attachment(statement)
        infers = attachment.content["infers"] * 2
        with pytest.raises(MalformedInputError, match="each infer and segment once"):
            LateVotes.from_attachment(replace(attachment, content={"infers": infers}))
