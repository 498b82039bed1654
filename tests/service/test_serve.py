"""``bentoml serve``: seven processes, UDS between them, a receipt with each answer."""

from __future__ import annotations

import asyncio
import secrets
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx

from bentoml_secure import AsyncSecureClient
from bentoml_secure.client import Answer
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.opening import Opening
from bentoml_secure.receipts.receipt import parse_receipt
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.receipts.verify import State, verify_bundle
from tests.harness import sample
from tests.service.deployments import (
    BACK_SECONDS,
    ENTRY,
    REPLICAS,
    Deployment,
    absent,
    eventually,
)


def key_documents(answer: Answer) -> dict[str, str]:
    """Return the digest of each party's key document by name."""
    receipt = parse_receipt(answer.bundle.receipt)
    return {party.name: party.key_document for party in receipt.parties}


def test_answers_are_the_whole_models_and_every_receipt_verifies(
    deployment: Deployment,
) -> None:
    with deployment.client() as client:
        answers = [deployment.ask(client) for _ in range(36)]
    assert len({answer.receipt_id for answer in answers}) == 36
    for answer in answers:
        assert answer.verdict.simulated
        assert answer.verdict.claims["dissenters"] == []
        assert answer.verdict.claims["segments"] == 2


async def test_the_asynchronous_client_verifies_alike(deployment: Deployment) -> None:
    async with AsyncSecureClient(deployment.url, deployment.trust) as client:
        asked = [sample(2, seed=seed) for seed in range(12)]
        answers = await asyncio.gather(
            *(client.call("diagnose", {"features": f.tolist()}) for f in asked)
        )
    for features, answer in zip(asked, answers, strict=True):
        deployment.require_right(answer.value, features)
        assert answer.verdict.state is State.ACCEPTED
    assert len({answer.receipt_id for answer in answers}) == 12


def test_each_replica_is_a_process_and_a_socket_that_no_other_user_reaches(
    deployment: Deployment,
) -> None:
    workers = deployment.entry.workers()
    assert set(workers) == {ENTRY, *REPLICAS}
    assert len({worker.pid for worker in workers.values()}) == 7
    urls = deployment.entry.replica_urls()
    sockets = [Path(urls[name].removeprefix("file://")) for name in REPLICAS]
    assert len(set(sockets)) == 6
    assert all(stat.S_ISSOCK(socket.stat().st_mode) for socket in sockets)
    (folder,) = {socket.parent for socket in sockets}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_killed_runner_is_named_absent_and_comes_back_with_a_new_key(
    deployment: Deployment,
) -> None:
    name = "DiagnosisSegment1Replica1"
    with deployment.client() as client:
        before = key_documents(deployment.ask(client))
        killed = deployment.entry.workers()[name]
        killed.kill()
        assert absent(deployment.ask(client)) == {name}

        def back() -> dict[str, str] | None:
            answer = deployment.ask(client)
            return None if absent(answer) else key_documents(answer)

        after = eventually(back, seconds=BACK_SECONDS, what=f"{name} is back")
    changed = {party for party in after if after[party] != before[party]}
    assert changed == {name}
    assert deployment.entry.workers()[name].pid != killed.pid


class Asked:
    """One question of a crowd, with what its caller needs to open the receipt."""

    def __init__(self, seed: int) -> None:
        self.features = sample(2, seed=seed)
        self.salt = secrets.token_bytes(32)
        self.nonce = secrets.token_hex(32)
        self.response = httpx.Response(0)

    async def ask(self, client: httpx.AsyncClient) -> None:
        self.response = await client.post(
            "/diagnose",
            json={"features": self.features.tolist()},
            headers={"bsec-nonce": self.nonce, "bsec-root-salt": self.salt.hex()},
        )


async def test_600_requests_of_32_callers_at_once(deployment: Deployment) -> None:
    questions = [Asked(seed) for seed in range(600)]
    left = iter(questions)

    async def caller(client: httpx.AsyncClient) -> None:
        for question in left:
            await question.ask(client)

    async with httpx.AsyncClient(base_url=deployment.url, timeout=60) as client:
        started = time.monotonic()
        await asyncio.gather(*(caller(client) for _ in range(32)))
        seconds = time.monotonic() - started
        print(f"{len(questions) / seconds:.0f} requests/s")
        assert {question.response.status_code for question in questions} == {200}
        ids = {question.response.headers["bsec-receipt-id"] for question in questions}
        assert len(ids) == 600
        for question in questions[::10]:
            await require_receipt(deployment, client, question)


async def require_receipt(
    deployment: Deployment, client: httpx.AsyncClient, question: Asked
) -> None:
    """Fetch one receipt of the crowd and verify it, bodies opened."""
    response = question.response
    deployment.require_right(response.json(), question.features)
    receipt_id = response.headers["bsec-receipt-id"]
    fetched = await client.get(f"/bsec/v1/receipts/{receipt_id}?wait=5")
    verdict = verify_bundle(
        parse_bundle(fetched.content),
        parse_trust(deployment.trust.read_bytes()),
        now=datetime.now(UTC),
        opening=Opening(
            salt=question.salt,
            request=response.request.content,
            response=response.content,
        ),
    )
    assert verdict.receipt_id == receipt_id
    assert verdict.claims["client_nonce"] == question.nonce
    assert verdict.claims["labels"]["opening"] == "checked"
