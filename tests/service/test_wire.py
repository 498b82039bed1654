"""What goes over the wires: of what was asked, computed and answered, nothing."""

from __future__ import annotations

import base64
import dataclasses
import itertools
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any

import httpx
import pytest

from bentoml_secure import SecureClient
from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.digest import derive_salt
from bentoml_secure.errors import PolicyRejected
from bentoml_secure.receipts.receipt import Receipt, parse_receipt
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.split.runtime import load_chain
from bentoml_secure.tensors import Array
from tests.harness import Project, Served, sample, serve
from tests.service.deployments import eventually
from tests.service.recording import Secrets
from tests.service.scanning import weights_of
from tests.service.wiring import (
    RUNNERS,
    SEALED,
    TARGET,
    UNSEALED,
    Wired,
)

TENSORS = {"input", "activation", "output"}
BODIES = {"request", "response"}
SALTS = {"salts of tensors"}
REFUSED = "simulated evidence is not accepted"

HARDWARE = """\
version = 1
max_age_seconds = 300
allow = ["tdx"]

[tdx]
mr_td = ["{}"]
""".format("00" * 48)

_SEEDS = itertools.count(5000)


def secrets_of(project: Project, features: Array, bodies: list[bytes]) -> Secrets:
    """Return what a request says, and what is computed of it and with."""
    chain = load_chain(project.plan, threads=1)
    values = chain.run_all({"features": features})
    between = [
        values[spec.name].tobytes()
        for segment in chain.plan.segments[:-1]
        for spec in segment.outputs
    ]
    return Secrets(
        {
            "input": features.tobytes(),
            "activation": b"".join(between),
            "output": values["probability"].tobytes(),
            "request": bodies[0],
            "response": bodies[1],
            "weights": b"".join(weights_of(project.plan)),
        }
    )


def salts_of(project: Project, receipt: Receipt, root: bytes) -> Secrets:
    """Return what the commitments of a receipt are made with."""
    plan = load_chain(project.plan, threads=1).plan
    tensors = {"features"} | {s.name for seg in plan.segments for s in seg.outputs}

    def salt(purpose: str, name: str) -> bytes:
        request_id = bytes.fromhex(receipt.receipt_id)
        return derive_salt(
            root, request_id=request_id, infer_index=0, purpose=purpose, name=name
        )

    return Secrets(
        {
            "root salt": root,
            "salts of tensors": b"".join(salt("tensor", name) for name in tensors),
            "salts of bodies": salt("body", "request") + salt("body", "response"),
        }
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What went by during one request, and what shows of it.

    Attributes:
        outside: Between client and entry, the receipt decoded with it.
        inside: Between entry and runners.
        shown: Secrets of the request, where they show: outside, inside.
        receipt: Of the request.
    """

    outside: list[bytes]
    inside: list[bytes]
    shown: tuple[set[str], set[str]]
    receipt: Receipt


def ask(wired: Wired, scenario: str) -> Recorded:
    """Ask something new with a client that seals, and look at what went by."""
    features = sample(8, seed=next(_SEEDS))
    wired.forget()
    with wired.client(scenario) as client:
        answer = client.call("diagnose", {"features": features.tolist()})
    outside = [*wired.entry.streams(), answer.bundle.receipt.payload]
    inside = wired.inside()
    receipt = parse_receipt(answer.bundle.receipt)
    secrets = [
        secrets_of(wired.project, features, [answer.question.body, answer.body]),
        salts_of(wired.project, receipt, answer.root_salt),
    ]
    # Drawn with the salt, and no secret: the receipt says it. Runners are told sealed.
    nonce = Secrets({"nonce": answer.nonce})
    return Recorded(
        outside=outside,
        inside=inside,
        shown=(
            {name for each in secrets for name in each.found_in(outside)},
            {name for each in [*secrets, nonce] for name in each.found_in(inside)},
        ),
        receipt=receipt,
    )


def ask_plainly(wired: Wired, scenario: str) -> Recorded:
    """Ask something new as plain HTTP, and look at what went by."""
    features = sample(8, seed=next(_SEEDS))
    wired.forget()
    with wired.http(scenario) as http:
        said = http.post("/diagnose", json={"features": features.tolist()})
        assert said.status_code == 200, said.text
        outside, inside = wired.entry.streams(), wired.inside()
        bundle = http.get(f"/bsec/v1/receipts/{said.headers['bsec-receipt-id']}")
    secrets = secrets_of(wired.project, features, [said.request.content, said.content])
    payload = base64.b64decode(bundle.json()["receipt"]["payload"])
    return Recorded(
        outside=outside,
        inside=inside,
        shown=(secrets.found_in([*outside, payload]), secrets.found_in(inside)),
        receipt=Receipt.from_statement(httpx.Response(200, content=payload).json()),
    )


def test_of_a_sealed_request_nothing_shows_on_either_hop(wired: Wired) -> None:
    recorded = ask(wired, SEALED)
    # The wires carried it.
    assert any(b"POST /diagnose" in data for data in recorded.outside)
    assert sum(b"POST /bsec/v1/infer" in data for data in recorded.inside) == 2
    assert recorded.shown == (set(), set())
    assert recorded.receipt.first_hop == "sealed"


def test_between_entry_and_runners_it_shows_where_a_scenario_does_not_seal(
    wired: Wired,
) -> None:
    recorded = ask(wired, UNSEALED)
    assert recorded.shown == (set(), TENSORS | SALTS | {"nonce"})
    assert recorded.receipt.first_hop == "sealed"


def test_a_plain_call_shows_on_the_first_hop_and_its_receipt_says_so(
    wired: Wired,
) -> None:
    recorded = ask_plainly(wired, SEALED)
    assert recorded.shown == (BODIES, set())
    assert recorded.receipt.first_hop == "unsealed"
    assert recorded.receipt.salt_drawn_by == "entry"


def test_both_hops_in_the_clear(wired: Wired) -> None:
    recorded = ask_plainly(wired, UNSEALED)
    assert recorded.shown == (BODIES, TENSORS)
    assert recorded.receipt.first_hop == "unsealed"


def test_who_does_not_accept_simulated_evidence_says_nothing_but_hello(
    wired: Wired,
) -> None:
    trust = parse_trust(wired.trust.read_bytes())
    strict = dataclasses.replace(trust, policy=parse_policy(HARDWARE.encode()))
    wired.forget()
    features = sample(8, seed=next(_SEEDS))
    with (
        SecureClient(wired.entry.url, strict) as client,
        pytest.raises(PolicyRejected, match=REFUSED) as caught,
    ):
        client.call("diagnose", {"features": features.tolist()})
    assert [(f.field, f.got, f.want) for f in caught.value.findings] == [
        ("kind", "simulated", "tdx")
    ]
    said = b"".join(data for data in wired.entry.streams() if b"HTTP/1.1 2" not in data)
    requests = [line for line in said.split(b"\r\n") if line.endswith(b"HTTP/1.1")]
    assert requests == [b"POST /bsec/v1/session/hello HTTP/1.1"]
    assert b"session/finish" not in said
    assert wired.inside() == [b""] * len(wired.inside())


@pytest.fixture(scope="module")
def strict(wired: Wired, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The same service under a policy that allows hardware only."""
    folder = tmp_path_factory.mktemp("strict")
    policy = folder / "policy.toml"
    policy.write_text(HARDWARE)
    env = {"BENTOML_SECURE_POLICY": str(policy)}
    with serve(TARGET, wired.project, folder, env=env, ready_seconds=None) as served:
        yield served


def test_simulated_evidence_serves_nothing_where_the_policy_does_not_name_it(
    strict: Served,
) -> None:
    with httpx.Client(base_url=strict.url, timeout=30) as http:

        def told() -> dict[str, Any] | None:
            try:
                said = http.post("/diagnose", json={"features": sample(1).tolist()})
                assert said.status_code == 503, said.text
                error: dict[str, Any] = said.json()["error"]
            except (httpx.ConnectError, JSONDecodeError):
                # It starts: nobody listens, or BentoML says so.
                return None
            return error if REFUSED in str(error) else None

        error = eventually(told, seconds=60, what="the reason")
        assert error["code"] == "quorum-not-reached"
        (absent,) = error["tally"]["absent"]
        assert absent["replica"] == RUNNERS[0]
        why = f"not attested: {REFUSED}; kind: got simulated, want tdx"
        assert absent["reason"] == why
        for _ in range(3):
            assert http.get("/readyz").status_code == 503
