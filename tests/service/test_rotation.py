"""Evidence and keys that end while requests are served, and devices that fail."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from bentoml_secure.client import SecureClient
from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.verify import State
from bentoml_secure.serving.exchange import REQUEST_TYPE, Exchange, Outgoing
from bentoml_secure.session.bodies import SealedCall
from bentoml_secure.session.responders import QUOTE_BURST
from bentoml_secure.split.plan import load_plan
from bentoml_secure.statements import utc_now
from tests.attacks import raw
from tests.attacks.raiders import (
    HELLO,
    INFER_PATH,
    JSON,
    Raider,
    ask,
    new_call,
)
from tests.harness import sample
from tests.service.counters import scrape
from tests.service.deployments import eventually
from tests.service.rotating import (
    ALL_THREE,
    ALL_THREE_OPEN,
    ANY_TWO,
    ENTRY,
    MAX_AGE_SECONDS,
    REPLICAS,
    Load,
    Rotating,
    body,
    rotating_in,
)

ATTEST = "/bsec/v1/attest"
AGED = "its evidence aged out while the request was served"
ISSUED = "receipts_total"
NO_QUORUM = "quorum-not-reached"
DEVICE = "the device does not answer"
PLAIN = [("Content-Type", REQUEST_TYPE)]


@pytest.fixture(scope="module")
def rotating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotating]:
    """A deployment whose evidence is good for seconds."""
    with rotating_in(tmp_path_factory.mktemp("rotating")) as rotating:
        yield rotating


@pytest.fixture(autouse=True)
def _whole(rotating: Rotating) -> None:
    """Begin with all replicas, whatever the test before did to them."""
    with rotating.http() as http:
        wait_until_whole(http)


def require_rotated(load: Load, *, evidence: int, keys: int) -> None:
    """Require that nothing failed while every process had others so often."""
    assert load.errors == []
    load.judge_some()
    rotations = load.rotations()
    assert rotations.keys() == {ENTRY, *REPLICAS}
    for name, (other_evidence, other_keys) in rotations.items():
        assert other_evidence >= evidence, (name, rotations)
        assert other_keys >= keys, (name, rotations)


def test_no_request_fails_while_sessions_and_keys_are_replaced(
    rotating: Rotating,
) -> None:
    load, ends = Load(target=rotating), time.monotonic() + 10
    load.run(
        until=lambda _: time.monotonic() > ends,
        plain={ALL_THREE: 2, ALL_THREE_OPEN: 1},
        sealed=2,
    )
    require_rotated(load, evidence=2, keys=1)
    assert load.count >= 100


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_requests_while_sessions_and_keys_are_replaced(
    rotating: Rotating,
) -> None:
    load, ends = Load(target=rotating), time.monotonic() + 45
    load.run(
        until=lambda load: load.count >= 10_000 and time.monotonic() > ends,
        plain={ALL_THREE: 4, ALL_THREE_OPEN: 2},
        sealed=2,
    )
    require_rotated(load, evidence=5, keys=3)


# A device that fails


def raider_of(rotating: Rotating) -> Raider:
    """Return another entry of the deployment, to ask a runner directly."""
    with rotating.client() as client:
        shown = client.attest().document
    return Raider.of(rotating.project, service=ENTRY, config_digest=shown.config_digest)


def message_of(rotating: Rotating, call: SealedCall) -> bytes:
    """Return an honest exchange."""
    plan = load_plan(rotating.project.plan)
    (segment,) = plan.segments
    exchange = Exchange(
        request_id=call.request_id.hex(),
        nonce="0" * 64,
        infer_index=0,
        exchange_id=call.exchange_id.hex(),
        plan_digest=plan.digest,
        segment=segment.identity,
        input_salts={spec.name: bytes(32) for spec in segment.inputs},
        output_salts={spec.name: bytes(32) for spec in segment.outputs},
    )
    outgoing = Outgoing.of({"features": sample(2)})
    return b"".join([exchange.encode(), outgoing.layout.header, *outgoing.data()])


def reason_of(client: SecureClient, replica: str) -> str | None:
    """Ask; return why a replica is absent in the verdict, or None."""
    answer = client.call("diagnose", body())
    assert answer.verdict.state is State.ACCEPTED
    reasons = {a["replica"]: a["reason"] for a in answer.verdict.claims["absent"]}
    reason: str | None = reasons.get(replica)
    return reason


def test_a_replica_whose_device_fails_serves_until_its_evidence_is_too_old(
    rotating: Rotating,
) -> None:
    broken = REPLICAS[1]
    url = rotating.served.replica_urls()[broken]
    raider = raider_of(rotating)
    session = raider.session(url)
    call = new_call(session)
    message = message_of(rotating, call)
    assert ask(url, call, message).status == 200
    assert raw.post(url, INFER_PATH, message, PLAIN).status == 200
    with (
        rotating.switched(f"device-{broken}"),
        rotating.client(ANY_TWO) as client,
        rotating.http() as http,
    ):
        # What it showed holds for its age.
        assert http.post("/diagnose", json=body()).status_code == 200
        # Until then it may be absent for being slower than the other two.
        eventually(
            lambda: DEVICE in (reason_of(client, broken) or ""),
            seconds=MAX_AGE_SECONDS + 10,
            what="it is named absent, and why",
        )
        assert http.get("/readyz").status_code == 200
        # It refuses by itself, whatever an entry still believes.
        time.sleep(max(0.0, (session.expires_at - utc_now()).total_seconds()) + 0.5)
        refused = raw.post(url, INFER_PATH, message, PLAIN)
        assert (refused.status, refused.code) == (503, "unavailable")
        assert "its evidence is too old, or there is none" in refused.message
        late = ask(url, new_call(session), message)
        assert (late.status, late.error["code"]) == (401, "unknown-session")
        hello = json.dumps(raider.begin().hello()).encode()
        refused = raw.post(url, HELLO, hello, JSON)
        assert (refused.status, refused.code) == (503, "unavailable")
        assert DEVICE in refused.message
        said = http.post("/diagnose", json=body())
        assert (said.status_code, DEVICE in said.text) == (503, True)
    with rotating.http() as http:
        wait_until_whole(http)


def wait_until_whole(http: httpx.Client) -> None:
    """Wait until all three replicas serve again."""
    eventually(
        lambda: http.post("/diagnose", json=body()).status_code == 200,
        seconds=20,
        what="all three serve",
    )


def test_evidence_is_made_at_a_bounded_rate_and_service_goes_on(
    rotating: Rotating,
) -> None:
    url = rotating.served.replica_urls()[REPLICAS[0]]
    nonce = json.dumps({"nonce": "00" * 32}).encode()
    with rotating.http() as http:
        asked = (raw.post(url, ATTEST, nonce, JSON) for _ in range(1000))
        served, limited = next(
            (count, said) for count, said in enumerate(asked) if said.status != 200
        )
        # Its entry has asked for some as well.
        assert served >= QUOTE_BURST - 8
        assert (limited.status, limited.code) == (429, "rate-limited")
        assert "Try again in a second" in limited.message
        assert http.post("/diagnose", json=body()).status_code == 200
        # What it makes again goes to who asks next: to its entry as well.
        eventually(
            lambda: raw.post(url, ATTEST, nonce, JSON).status == 200,
            seconds=2,
            what="it makes some more",
        )


# Evidence that ends in the middle of a request


def issued(rotating: Rotating) -> int:
    """Return how many receipts were issued so far."""
    counts = scrape(rotating.served.metrics())
    return sum(count for key, count in counts.items() if key[0] == ISSUED)


def test_no_answer_rests_on_evidence_that_ended_while_it_was_made(
    rotating: Rotating,
) -> None:
    with (
        rotating.http(ALL_THREE) as sealed,
        rotating.http(ALL_THREE_OPEN) as plain,
        rotating.client() as client,
        ThreadPoolExecutor() as pool,
    ):
        wait_until_whole(sealed)
        before = issued(rotating)
        late = pool.submit(sealed.post, "/dawdle", json=body())
        late_sealed = pool.submit(failure_of, client, "dawdle")
        # They are past the runners by then.
        time.sleep(1)
        with rotating.switched("slow"):
            slow = pool.submit(sealed.post, "/diagnose", json=body())
            slow_open = pool.submit(plain.post, "/diagnose", json=body())
            require_refusal(late.result(), "unavailable", AGED)
            # The caller of a session knows the entry by older evidence.
            assert f"{ENTRY}: {AGED}" in str(late_sealed.result())
            # It ended while the runner ran, or before it had read what it was sent.
            said = slow.result()
            meanwhile = "aged out meanwhile" in said.text
            reason = "aged out meanwhile" if meanwhile else "it ended with the evidence"
            refusal = require_refusal(said, NO_QUORUM, reason)
            # The first that cannot vote is the end where all must.
            absent = [missing["replica"] for missing in refusal["tally"]["absent"]]
            assert {*absent, *refusal["tally"]["pending"]} == set(REPLICAS)
            assert absent
            # Its entry notices; or the runner, where it has other keys by now.
            said = slow_open.result()
            noticed = "s old by now" in said.text
            reason = "s old by now" if noticed else "its evidence is too old"
            require_refusal(said, NO_QUORUM, reason)
        assert issued(rotating) == before
        wait_until_whole(sealed)


def failure_of(client: SecureClient, api: str) -> SecureError:
    """Ask what must fail; return how."""
    with pytest.raises(SecureError, match=r"\S") as caught:
        client.call(api, body())
    return caught.value


def require_refusal(said: httpx.Response, code: str, reason: str) -> dict[str, Any]:
    """Require that no answer and no receipt came, and why."""
    error: dict[str, Any] = said.json()["error"]
    assert (said.status_code, error["code"]) == (503, code), said.text
    assert reason in said.text
    assert "bsec-receipt-id" not in said.headers
    return error
