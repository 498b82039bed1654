"""What strangers, and an entry that was taken over, send to a prover.

The latter has the deployment's configuration and evidence that verifies: it may ask for
what an entry may ask for, and gets no proof of anything else by it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.client import Answer
from bentoml_secure.digest import Digest, digest_json
from bentoml_secure.proofs.jobs.job import JobKey, State
from bentoml_secure.serving.prover_messages import (
    MAX_MESSAGE_BYTES,
    OPERATION,
    PROOFS_PATH,
    SubmittedOrder,
    keys_message,
    link_message,
    submit_message,
)
from bentoml_secure.serving.prover_work import pack_order, unpack_order
from bentoml_secure.session.bodies import SEALED_TYPE, SealedCall, sealed_cap
from bentoml_secure.statements import format_time, utc_now
from bentoml_secure.testing.rogue.streams import pickle_payload
from tests.attacks import raw
from tests.attacks.raiders import JSON, SEALED, Opened, Raider, ask, sealed
from tests.attacks.targets import MemoryWatch
from tests.service.deployments import eventually
from tests.service.faulting import suspended
from tests.service.proving import SECONDS, SERVICE, Proving, configuration_of, proving

PICKLE = "application/vnd.bentoml+pickle"
ALLOWANCE_BYTES = 64 << 20


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proving]:
    with proving(tmp_path_factory.mktemp("doors"), replicas=1) as running:
        yield running
        # Whatever was tried: what is asked for properly is proven.
        with running.client("critical") as client:
            answer = running.confirmed(client, running.ask(client)[0])
        running.require_each_once(answer)
        assert "Traceback" not in running.entry.log()


def url_of(running: Proving, segment: int = 0) -> str:
    return running.entry.replica_urls()[running.prover(segment)]


def raider(running: Proving, **changes: Any) -> Raider:
    """Return an entry of the deployment that does as a test likes, or another one."""
    own = configuration_of(running.project, running.case, replicas=1).digest
    wanted = {
        "service": SERVICE,
        "config_digest": own,
        "plan": running.case.plan.digest,
    }
    return Raider.of(running.project, **{**wanted, **changes})


def tell(running: Proving, message: bytes, segment: int = 0) -> Opened:
    """Send a prover a message as its entry, in a session."""
    url = url_of(running, segment)
    call = SealedCall.begin(raider(running).session(url), OPERATION)
    return ask(url, call, message, PROOFS_PATH)


def said_by(opened: Opened) -> Any:
    assert (opened.status, opened.was_sealed) == (200, True), opened
    return json.loads(opened.body)


def refused(opened: Opened, reason: str) -> None:
    assert opened.status >= 400, opened
    assert reason in opened.error["message"]


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (b'{"ask":"order-key"}', JSON, "content-type: want"),
        (b'{"ask":"order-key"}', [], "content-type: want"),
        (b'{"ask":"order-key"}', SEALED, ""),
        (secrets.token_bytes(4096), SEALED, ""),
    ],
    ids=["json", "untyped", "named sealed", "noise"],
)
def test_an_unsealed_message_is_refused(
    running: Proving, body: bytes, headers: raw.Headers, reason: str
) -> None:
    said = raw.post(url_of(running), PROOFS_PATH, body, headers)
    assert 400 <= said.status < 500
    assert reason in said.message


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", PROOFS_PATH),
        ("POST", "/bsec/v1/infer"),
        ("POST", "/bsec/v1/receipts"),
        ("POST", "/execute"),
        ("GET", "/docs.json"),
    ],
)
def test_a_prover_knows_no_other_path(running: Proving, method: str, path: str) -> None:
    said = raw.post(url_of(running), path, b"{}", JSON, method=method)
    assert (said.status, said.code) == (404, "not-found")


@pytest.mark.parametrize("path", [PROOFS_PATH, "/bsec/v1/session/hello", "/prove"])
def test_no_prover_reads_a_pickle(running: Proving, path: str) -> None:
    marker = running.project.folder / "unpickled"
    payload = pickle_payload(marker)
    said = raw.post(url_of(running), path, payload, [("Content-Type", PICKLE)])
    assert 400 <= said.status < 500
    # Nor where it stands in a session.
    refused(tell(running, payload), "prover's message")
    assert not marker.exists()


OTHER = Digest("sha256-jcs-v1:" + "0" * 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"config_digest": OTHER},
        {"plan": OTHER},
        {"service": "Another"},
        {"role": Role.RUNNER, "segment": OTHER},
        {"role": Role.PROVER, "segment": OTHER},
    ],
    ids=["configuration", "plan", "name", "a runner", "a prover"],
)
def test_who_is_not_its_entry_gets_no_session(
    running: Proving, changes: Mapping[str, Any]
) -> None:
    url, other = url_of(running), raider(running, **changes)
    initiator = other.begin()
    offer = other.offer(url, initiator)
    record = other.identity.attest(offer.nonce, other.identity.keys)
    said = other.finish(url, initiator.finish(record))
    assert said.status >= 400
    # Nor does who shows no evidence at all, as an entry's clients do.
    initiator = other.begin()
    other.offer(url, initiator)
    assert other.finish(url, initiator.finish(None)).status >= 400


@pytest.mark.parametrize("operation", ["infer", "release", ""])
def test_a_message_that_was_sealed_for_something_else(
    running: Proving, operation: str
) -> None:
    url = url_of(running)
    call = SealedCall.begin(raider(running).session(url), operation)
    opened = ask(url, call, b'{"ask":"order-key"}', PROOFS_PATH)
    assert opened.status >= 400
    assert "request or operation" in opened.error["message"]


def test_a_message_counts_once(running: Proving) -> None:
    url = url_of(running)
    call = SealedCall.begin(raider(running).session(url), OPERATION)
    body = sealed(call, b'{"ask":"order-key"}')
    assert raw.post(url, PROOFS_PATH, body, SEALED).status == 200
    said = raw.post(url, PROOFS_PATH, body, SEALED)
    assert said.code == "verification"
    assert "this exchange id was used before" in said.message


KEY = ["00" * 16, 0, 0]
DEEP = b'{"ask":' + b"[" * 100_000


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "prover's message"),
        (DEEP, "prover's message"),
        (b'{"ask":"prove"}', "want a known question"),
        (b'{"ask":["submit"]}', "want a known question"),
        (b'{"ask":{}}', "want a known question"),
        (b"[]", "want a known question"),
        (b'{"ask":"order-key","more":1}', "order-key"),
        (b'{"ask":"collect"}', "collect"),
        (json.dumps({"ask": "collect", "keys": [KEY] * 1001}).encode(), "proof keys"),
        (json.dumps({"ask": "collect", "keys": [[*KEY, 1]]}).encode(), "proof key"),
        (b'{"ask":"forget","keys":[["../../etc/passwd",0,0]]}', "receipt id"),
        (b'{"ask":"cancel","keys":[["%s",-1,0]]}' % (b"00" * 16), "infer"),
        (b'{"ask":"execute","boundary":[NaN],"salt":[]}', "prover's message"),
        (b'{"ask":"execute","boundary":[1.5],"salt":[]}', "boundary"),
        (b'{"ask":"execute","boundary":[9007199254740992],"salt":[]}', "boundary"),
        (b'{"ask":"execute","boundary":[1],"salt":[1]}', "want"),
    ],
)
def test_messages_of_bad_form_are_refused(
    running: Proving, message: bytes, reason: str
) -> None:
    refused(tell(running, message), reason)


def test_bodies_over_the_cap_are_refused_unread(running: Proving) -> None:
    url, cap = url_of(running), sealed_cap(MAX_MESSAGE_BYTES)
    typed = [("Content-Type", SEALED_TYPE)]
    said = raw.post(url, PROOFS_PATH, b"", typed, length=cap + 1)
    assert (said.status, said.code) == (413, "too-large")
    chunked = raw.head("POST", PROOFS_PATH, [*typed, ("Transfer-Encoding", "chunked")])
    said = raw.exchange(url, [chunked, *raw.chunks(bytes(1 << 20), 64)])
    assert (said.status, said.code) == (400, "malformed-input")


def test_bodies_of_no_session_take_no_memory(running: Proving) -> None:
    url, idle = url_of(running), running.entry.resident_bytes()
    with MemoryWatch(running.entry) as watch, contextlib.ExitStack() as open_ones:
        length = ("Content-Length", str(sealed_cap(MAX_MESSAGE_BYTES)))
        head = raw.head("POST", PROOFS_PATH, [*SEALED, length])
        for _ in range(20):
            caller = open_ones.enter_context(raw.connect(url))
            with contextlib.suppress(ConnectionError):
                caller.sendall(head + bytes(1 << 16))
        for _ in range(3):
            with contextlib.suppress(ConnectionError):
                raw.post(url, PROOFS_PATH, bytes(16 << 20), SEALED)
    grown = watch.peak_bytes[running.prover(0)] - idle[running.prover(0)]
    assert grown < ALLOWANCE_BYTES, f"grew by {grown >> 20} MiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A receipt, and the orders that an entry which was taken over holds for it.

    Attributes:
        answer: As its client has it.
        orders: As they are stored, by segment.
    """

    answer: Answer
    orders: Mapping[int, bytes]

    def order(self, segment: int, **changes: Any) -> SubmittedOrder:
        """Return one as it is handed over, or something like it."""
        wanted = {
            "key": JobKey(self.answer.receipt_id, 0, segment),
            "deadline": format_time(utc_now() + timedelta(minutes=10)),
            "priority": "critical",
            "body": self.orders[segment],
        }
        return SubmittedOrder(**{**wanted, **changes})

    def about(self, place: int, /, **changes: Any) -> bytes:
        """Return an order with another label than what it was sealed for."""
        about, hidden = unpack_order(self.orders[place])
        return pack_order(replace(about, **changes), hidden)


@pytest.fixture
def seen(running: Proving) -> Seen:
    """A receipt whose proofs are under way, and its orders."""
    stopped = [running.process(running.prover(index)) for index in running.segments]
    with suspended(stopped):
        return seen_now(running)


def seen_now(running: Proving) -> Seen:
    """Ask; return what an entry has before any of the orders is settled."""
    with running.client("critical") as client:
        answer, _ = running.ask(client)
    file = running.state / f"{SERVICE.lower()}.sqlite"
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection:
        rows = connection.execute(
            "SELECT segment, body FROM orders WHERE receipt_id = ?",
            (answer.receipt_id,),
        ).fetchall()
    return Seen(answer=answer, orders=dict(rows))


def require_proven(running: Proving, answer: Answer) -> None:
    with running.client("critical") as client:
        running.require_each_once(running.confirmed(client, answer))


def ended(running: Proving, place: JobKey) -> str:
    """Wait until a job has failed; return why."""
    with running.jobs(place.segment) as store:

        def look() -> str | None:
            found = store.status([place]).get(place)
            assert found is None or found.state is not State.DONE
            failed = found is not None and found.state is State.FAILED
            return found.reason if failed and found is not None else None

        reason = eventually(look, seconds=SECONDS, what="it fails")
        assert store.results([place]) == store.links([place]) == {}
    return reason


def test_an_order_of_another_segment(running: Proving, seen: Seen) -> None:
    refused(tell(running, submit_message([seen.order(1)]), 0), "want segment 0")
    # Renamed, it is taken, and does not open: it was sealed to another prover.
    other = JobKey(secrets.token_hex(16), 0, 0)
    body = seen.about(1, segment=0, receipt_id=other.receipt_id)
    said_by(tell(running, submit_message([seen.order(0, key=other, body=body)]), 0))
    assert "order" in ended(running, other)
    require_proven(running, seen.answer)


def test_an_order_planted_under_another_receipt(running: Proving, seen: Seen) -> None:
    other = JobKey(secrets.token_hex(16), 0, 0)
    planted = seen.order(0, key=other)
    refused(tell(running, submit_message([planted])), "want segment 0")
    digest = digest_json({"another": "receipt"})
    for changes in (
        {"receipt_id": other.receipt_id},
        {"receipt_id": secrets.token_hex(16), "receipt_digest": digest},
        {"receipt_id": secrets.token_hex(16), "infer": 1},
    ):
        key = JobKey(str(changes["receipt_id"]), int(str(changes.get("infer", 0))), 0)
        order = seen.order(0, key=key, body=seen.about(0, **changes))
        assert said_by(tell(running, submit_message([order]))) == {"taken": [True]}
        assert "order" in ended(running, key)
    require_proven(running, seen.answer)


def test_the_same_order_again_is_proven_once(running: Proving, seen: Seen) -> None:
    order = seen.order(0)
    first = said_by(tell(running, submit_message([order])))["taken"][0]
    again = said_by(tell(running, submit_message([order, order])))["taken"]
    assert again == [False, False]
    # The entry may have been first; whoever was, no other body takes its place.
    assert first in (True, False)
    changed = replace(order, body=seen.about(0, receipt_digest=digest_json({})))
    opened = tell(running, submit_message([changed]))
    assert opened.status >= 400
    assert "another order already" in opened.error["message"]
    require_proven(running, seen.answer)


def link_of(running: Proving, answer: Answer) -> bytes:
    """Return what the first prover hands on for a receipt, as an entry gets it."""
    asked = keys_message("collect", [JobKey(answer.receipt_id, 0, 0)])

    def look() -> bytes | None:
        (job,) = said_by(tell(running, asked))["jobs"]
        return None if job["link"] is None else str(job["link"]).encode()

    return eventually(look, seconds=SECONDS, what="it hands on", every=0.02)


def test_a_link_of_another_request(running: Proving) -> None:
    """A boundary that was proven for one receipt is not another one's input."""
    # The first prover's job stays until the second one has the link.
    with suspended([running.process(running.prover(1))]):
        seen = seen_now(running)
        link = base64.b64decode(link_of(running, seen.answer))
    other = JobKey(secrets.token_hex(16), 0, 1)
    body = seen.about(1, receipt_id=other.receipt_id)
    order = seen.order(1, key=other, body=body)
    refused(tell(running, link_message(other, link), 1), "is not here")
    said_by(tell(running, submit_message([order]), 1))
    said_by(tell(running, link_message(other, link), 1))
    assert ended(running, other)
    # Nor does a link of the raider's own open, in a job that is genuine.
    with running.client("critical") as client:
        answer, _ = running.ask(client)
        place = JobKey(answer.receipt_id, 0, 1)
        eventually(
            lambda: running.is_in(State.WAITING, answer.receipt_id, 1),
            seconds=SECONDS,
            what="its second order is handed over",
            every=0.01,
        )
        with suspended([running.process(SERVICE)]):
            said_by(tell(running, link_message(place, link), 1))
            assert ended(running, place)
    require_proven(running, seen.answer)


@pytest.mark.parametrize("deadline", ["", "tomorrow", "2026-01-01T00:00:00.000Z"])
def test_orders_without_a_deadline_ahead(
    running: Proving, seen: Seen, deadline: str
) -> None:
    other = JobKey(secrets.token_hex(16), 0, 0)
    body = seen.about(0, receipt_id=other.receipt_id)
    order = seen.order(0, key=other, body=body, deadline=deadline)
    opened = tell(running, submit_message([order]))
    if opened.status == 200:
        assert "deadline" in ended(running, other)
    else:
        refused(opened, "order deadline")
    require_proven(running, seen.answer)
