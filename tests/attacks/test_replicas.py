"""A replica that answers anything at all: refused with its reason, and named.

Under the scenario ``unanimous`` the refusal's tally tells why the replica's answer was
none; under ``general`` the two others carry the request, and the receipt names it.
"""

from __future__ import annotations

import re

import pytest

from bentoml_secure.testing.rogue.answers import BODIES
from bentoml_secure.testing.rogue.records import RECORDS
from bentoml_secure.testing.rogue.streams import STREAMS
from tests.attacks.targets import Rogues, Target, error_of

ROGUE = "AttackedSegment0Replica1"

PLAN = "MalformedInputError: tensor"
HEADER = "MalformedInputError: tensors-v1"
STATED = "StatementError: statement"
SEAL = "VerificationError: sealed message:"
LENGTH = "MalformedInputError: answer content-length: got"
HTTP = "MalformedInputError: answer:"

REFUSED = {
    # What the plan does not promise, properly signed.
    "wrong-rank": rf"{PLAN} 'hidden0' shape: got \[1, 2, 64\]",
    "wrong-dtype": f"{PLAN} 'hidden0' dtype: got float64, want float32",
    "nan": f"{PLAN} 'hidden0': holds NaN or infinity",
    "infinity": f"{PLAN} 'hidden0': holds NaN or infinity",
    "renamed-tensor": rf"{PLAN}s: got \['hidden0_'\]",
    "one-more-tensor": rf"{PLAN}s: got \['hidden0', 'surplus'\]",
    "bool-of-two": f"{PLAN} 'hidden0' dtype: got bool",
    # Statements about something else, or not the replica's.
    "other-request": f"{STATED} request_id",
    "other-nonce": f"{STATED} nonce",
    "other-plan": f"{STATED} plan_digest",
    "other-infer": f"{STATED} infer_index: got 7, want 0",
    "other-exchange": f"{STATED} exchange_id",
    "other-segment": f"{STATED} segment",
    "other-key-document": f"{STATED} key_document",
    "other-inputs": f"{STATED} inputs",
    "other-outputs": f"{STATED} outputs",
    "swapped-after-signing": f"{STATED} outputs",
    "replayed": f"{STATED} request_id",
    "other-key": "VerificationError: keyid: got sha256:",
    "borrowed-key-id": "VerificationError: signature does not verify",
    "signed-by-neighbour": "VerificationError: keyid: got sha256:",
    "empty-statement": "MalformedInputError: statement: want exactly payload",
    "no-json-statement": "MalformedInputError: statement is not valid JSON",
    "deep-statement": "MalformedInputError: statement is not valid JSON|nested deeper",
    # Frames that lie about lengths.
    "statement-length-huge": "MalformedInputError: statement: got a length of 42949",
    "statement-length-long": f"{HEADER}: header says 592 bytes, the message 528",
    "statement-length-short": f"{HEADER}: header says 592 bytes, the message 600",
    "header-length-huge": f"{HEADER} header: got 4611686018427387904 bytes",
    "header-length-over-cap": f"{HEADER} header: got 65544 bytes",
    "header-length-zero": f"{HEADER} header: got 0 bytes",
    "tensor-of-a-gigabyte": f"{HEADER}: header says 10737419.. bytes, the message 600",
    "tensor-of-an-exabyte": f"{PLAN} 'hidden0': over 1073741824 bytes",
    "wrong-shape": f"{PLAN} 'hidden0' shape: got",
    "negative-dimension": f"{PLAN} 'hidden0' shape: bad dimension -1",
    "duplicate-name": f"{HEADER} header is not valid JSON: a key stands twice",
    "overlapping-offsets": rf"{PLAN} 'hidden0_' data_offsets: got \[0, 512\]",
    "metadata-in-header": f"{PLAN} '__metadata__'",
    "header-not-canonical": f"{HEADER} header: not in its canonical form",
    "header-no-json": f"{HEADER} header is not valid JSON",
    "extra-bytes": f"{HEADER}: header says 592 bytes, the message 600",
    # Bytes that are no answer.
    "pickle": "answer content-type: got 'application/vnd.bentoml[+]pickle'",
    "pickle-as-answer": "MalformedInputError: sealed message: announces",
    "pickle-as-refusal": "UnavailableError: replica refused: 500",
    "endless-chunks": f"{HTTP} transfer-encoding is not read here",
    "endless-length": f"{LENGTH} 1099511627776, want at most",
    "endless-refusal": f"{HTTP} transfer-encoding is not read here",
    "endless-headers": f"{HTTP} its head is over 16384 bytes",
    "endless-header": f"{HTTP} its head is over 16384 bytes",
    "endless-informational": f"{HTTP} got b'HTTP/1.1 102 Processing'",
    "endless-chunk-extension": f"{HTTP} transfer-encoding is not read here",
    "zeros-to-the-cap": "MalformedInputError: sealed chunk: got a length of 0",
    "over-the-cap": f"{LENGTH} [0-9]+, want at most",
    "closes-half-way": "UnavailableError: connection lost within the answer",
    "closes-at-once": "ConnectionLostError: connection lost before an answer",
    "length-too-long": "VerificationError: sealed message: chunk 0 is not authentic",
    "length-too-short": f"{HTTP} longer than its content-length|{HEADER}: header says",
    "two-lengths": f"{HTTP} bad or repeated header b'content-length: 8'",
    "length-and-chunks": f"{HTTP} transfer-encoding is not read here",
    "no-length": f"{LENGTH} b''",
    "redirect": "UnavailableError: replica refused: 307",
    "gzipped": f"{HTTP} content-encoding is not read here",
    "gzip-bomb": f"{HTTP} content-encoding is not read here",
    "html": "answer content-type: got 'text/html'",
    "two-content-types": f"{HTTP} bad or repeated header b'content-type",
    "typed-with-parameter": "answer content-type: got '.*; charset=utf-8'",
    "status-of-thousands-of-digits": f"{HTTP} got b'HTTP/1.1 2222",
    "old-http": f"{HTTP} got b'HTTP/1.0 200 OK'",
    # Sealed, and not the answer to this exchange.
    "record-flipped": f"{SEAL} chunk 0 is not authentic",
    "record-replayed": f"{SEAL} chunk 0 is not authentic",
    "record-unsealed": "MalformedInputError: sealed message: announces",
    "record-of-another-status": f"{SEAL} chunk 0 is not authentic",
    "record-of-another-operation": f"{SEAL} chunk 0 is not authentic",
    "record-of-another-request": f"{SEAL} chunk 0 is not authentic",
    "record-reflected": f"{SEAL} chunk 0 is not authentic",
    "record-under-the-request-key": f"{SEAL} chunk 0 is not authentic",
    "record-of-another-exchange": f"{SEAL} chunk 0 is not authentic",
    "record-reordered": f"{SEAL} chunk 0 is not authentic",
    "record-truncated": f"{SEAL} chunk 0 is not authentic",
    "record-doubled": f"{SEAL} chunk 1 is not authentic",
    "record-appended": f"{SEAL} chunk 1 is not authentic",
    "record-empty": "MalformedInputError: sealed message: it ended early|tensors-v1",
    "message-length-huge": "MalformedInputError: sealed message: announces",
    "message-length-long": "header says 592 bytes, the message 593",
    "message-length-short": "MalformedInputError: sealed message: longer than it",
    "chunk-length-huge": "MalformedInputError: sealed chunk: got a length of 42949",
    "chunk-length-zero": "MalformedInputError: sealed chunk: got a length of 0",
}

# Properly formed and signed, and outvoted.
OUTVOTED = ["scaled", "constant", "noisy"]

# Nothing to refuse: they just do not answer.
SILENT = ["slow-drip", "slow-body", "hangs", "no-http"]

# A good answer, and then bytes that nobody reads.
HARMLESS = ["endless-beyond"]


def test_every_behaviour_is_tried() -> None:
    tried = [*REFUSED, *OUTVOTED, *SILENT, *HARMLESS]
    assert sorted(tried) == sorted([*BODIES, *RECORDS, *STREAMS])


@pytest.mark.parametrize("behaviour", REFUSED)
def test_no_answer_is_refused_with_its_reason(
    besieged: Target, rogues: Rogues, behaviour: str
) -> None:
    with besieged.watched(), rogues.behaving(**{ROGUE: behaviour}):
        refusal = besieged.post(scenario="unanimous")
        assert refusal.status_code == 503
        error = error_of(refusal)
        assert error["code"] == "quorum-not-reached"
        (absent,) = error["tally"]["absent"]
        assert absent["replica"] == ROGUE
        assert re.search(REFUSED[behaviour], absent["reason"]), absent["reason"]
        answer = besieged.ask()
        assert ROGUE in {a["replica"] for a in answer.verdict.claims["absent"]}
        assert answer.verdict.claims["dissenters"] == []
    besieged.wait_until_whole()
    assert not rogues.marker.exists()
    assert rogues.state()["trapped"] == 0


@pytest.mark.parametrize("behaviour", OUTVOTED)
def test_a_signed_lie_is_outvoted_and_named(
    besieged: Target, rogues: Rogues, behaviour: str
) -> None:
    with besieged.watched(), rogues.behaving(**{ROGUE: behaviour}):
        refusal = besieged.post(scenario="unanimous")
        assert refusal.status_code == 503
        assert [ROGUE] in error_of(refusal)["tally"]["groups"]
        answer = besieged.ask()
        (dissenter,) = answer.verdict.claims["dissenters"]
        assert dissenter["replica"] == ROGUE
    besieged.wait_until_whole()


@pytest.mark.parametrize("behaviour", SILENT)
def test_a_silent_replica_costs_its_deadline_and_no_more(
    besieged: Target, rogues: Rogues, behaviour: str
) -> None:
    with besieged.watched(), rogues.behaving(**{ROGUE: behaviour}):
        refusal = besieged.post(scenario="unanimous")
        assert refusal.status_code == 503
        assert 2.0 <= refusal.elapsed.total_seconds() < 4.0
        error = error_of(refusal)
        assert "the deadline passed" in error["message"]
        named = [*error["tally"]["pending"]]
        named += [absent["replica"] for absent in error["tally"]["absent"]]
        assert named == [ROGUE]
        answer = besieged.ask()
        (absent,) = answer.verdict.claims["absent"]
        assert absent["replica"] == ROGUE
        assert "no answer within 1 s of the decision" in absent["reason"]
    besieged.wait_until_whole()


@pytest.mark.parametrize("behaviour", HARMLESS)
def test_bytes_after_an_answer_are_not_read(
    besieged: Target, rogues: Rogues, behaviour: str
) -> None:
    with besieged.watched(), rogues.behaving(**{ROGUE: behaviour}):
        for _ in range(3):
            besieged.ask()
    besieged.wait_until_whole()
