"""A service at the transport seam: it answers with real receipts, or tampered ones."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, cast

import httpx
import pytest

from bentoml_secure.client import Answer, AsyncSecureClient, SecureClient
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.receipt import Party, Receipt
from bentoml_secure.session.bodies import (
    SEALED_TYPE,
    Answering,
    RequestOpener,
    Whole,
)
from bentoml_secure.session.handshake import Offered, accept, make_offer
from bentoml_secure.session.http import Inner, inner_headers
from bentoml_secure.session.messages import Finish, Hello
from bentoml_secure.session.responders import Responder, Served, UnknownSessionError
from bentoml_secure.testing.deployment import Deployment, Process, build_deployment
from bentoml_secure.testing.receipts import Draft, build_draft

URL = "http://entry.test"
FEATURES = {"features": [[1.0, 2.0, 3.0, 4.0]]}
HELLO = "/bsec/v1/session/hello"
FINISH = "/bsec/v1/session/finish"
RECEIPTS = "/bsec/v1/receipts/"

Answered = tuple[int, list[tuple[str, str]], bytes]


def entry_of(draft: Draft) -> Party:
    """Return the entry as the receipt names it."""
    name = draft.deployment.entry.name
    return next(party for party in draft.receipt.parties if party.name == name)


def signed_draw(draft: Draft) -> dict[str, Any] | None:
    """Return the commitment to a draft's draw, as the entry gives it out."""
    signed = draft.receipt.draw.signed
    return None if signed is None else signed.to_json()


def with_receipt(draft: Draft, **changes: Any) -> Draft:
    """Return a draft whose receipt says something else, to be signed like any."""
    receipt: Receipt = dataclasses.replace(draft.receipt, **changes)
    return dataclasses.replace(draft, receipt=receipt)


@dataclass(slots=True)
class FakeService(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers as an entry does, from a request that was drafted beforehand.

    Attributes:
        draft: Of the only request that it answers.
        process: Shows evidence.
        attested: Whose nonce the evidence is over, and the evidence.
        bundles: Handed out in order; the last one again and again.
        headers: Of the answer; those of the draft's receipt unless changed.
        replies: By path, in place of what an entry says; an exception is raised.
        seen: All requests.
        asked: Those to an API, as they stood inside the seal.
        first_draw: Given out in a handshake; that of the draft unless changed.
        sealing: How an API's answer is sealed; the truth unless changed.
    """

    draft: Draft
    process: Process
    attested: Draft
    bundles: list[Bundle]
    headers: list[tuple[str, str]]
    body: bytes
    replies: dict[str, Answered | Exception] = field(default_factory=dict)
    seen: list[httpx.Request] = field(default_factory=list)
    asked: list[Inner] = field(default_factory=list)
    first_draw: dict[str, Any] | None = None
    sealing: Callable[[Answering, Answered], Answered] | None = None
    offered: dict[bytes, Offered] = field(default_factory=dict)
    sessions: dict[bytes, Served] = field(default_factory=dict)

    @classmethod
    def of(cls, draft: Draft, bundle: Bundle | None = None) -> FakeService:
        bundle = bundle or draft.bundle()
        return cls(
            draft=draft,
            process=draft.deployment.entry,
            attested=draft,
            bundles=[bundle],
            headers=[
                ("bsec-receipt-id", draft.receipt.receipt_id),
                ("bsec-receipt-digest", bundle.receipt.payload_digest),
                ("bsec-scenario", draft.receipt.scenario_digest),
            ],
            body=draft.response,
            first_draw=signed_draw(draft),
        )

    @property
    def paths(self) -> list[str]:
        return [request.url.path for request in self.seen]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        reply = self._reply(request)
        if isinstance(reply, Exception):
            raise reply
        status, headers, body = reply
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self.handle_request(request)

    def _reply(self, request: httpx.Request) -> Answered | Exception:
        path = request.url.path
        if path in self.replies:
            return self.replies[path]
        if path == HELLO:
            return 200, [], json.dumps(self.hello(request)).encode()
        if path == FINISH:
            return 200, [], json.dumps(self.finish(request)).encode()
        if path.startswith(RECEIPTS):
            bundle = self.bundles.pop(0) if len(self.bundles) > 1 else self.bundles[0]
            return 200, [], json.dumps(bundle.to_json()).encode()
        assert path == "/diagnose"
        return self.answer(request)

    def hello(self, request: httpx.Request) -> Any:
        digest = entry_of(self.attested).evidence
        record = next(r for r in self.attested.evidence if r.digest == digest)
        offered = make_offer(
            Hello.from_json(json.loads(request.content)),
            self.process.keys,
            record,
            secrets.token_bytes(32),
            self.draft.deployment.now,
        )
        self.offered[offered.offer.nonce] = offered
        return offered.offer.to_json()

    def finish(self, request: httpx.Request) -> Any:
        finish = Finish.from_json(json.loads(request.content))
        session, confirm = accept(
            self.offered.pop(finish.nonce),
            finish,
            lambda _: None,
            now=self.draft.deployment.now,
            max_age_seconds=300,
            draw=lambda _: self.first_draw,
        )
        self.sessions[session.secrets.session_id] = Served(session, 100)
        return confirm

    def find(self, session_id: bytes) -> Served:
        """As a responder does."""
        if session_id not in self.sessions:
            raise UnknownSessionError("none")
        return self.sessions[session_id]

    def answer(self, request: httpx.Request) -> Answered:
        whole: list[Whole] = []

        def begin(length: int) -> Whole:
            whole.append(Whole(length))
            return whole[0]

        opener = RequestOpener(
            cast(Responder, self),
            f"POST {request.url.path}",
            len(request.content),
            begin,
        )
        try:
            opener.feed(request.content)
        except UnknownSessionError:
            error = {"code": "unknown-session", "message": "none"}
            return 401, [], json.dumps({"error": error}).encode()
        answering = opener.finish()
        self.asked.append(Inner.decode(whole[0].result(), is_answer=False))
        said: Answered = (
            200,
            [("content-type", "application/json"), *self.headers],
            self.body,
        )
        return (self.sealing or sealed)(answering, said)


def sealed(answering: Answering, said: Answered) -> Answered:
    """Return an answer as an entry seals it."""
    status, headers, body = said
    pairs = [(name.encode(), value.encode()) for name, value in headers]
    inner = Inner(headers=inner_headers(pairs), body=body, status=status)
    message = b"".join(inner.encode())
    made = answering.seal(status, (message,), (len(message),))
    return status, [("content-type", SEALED_TYPE)], b"".join(made.pieces)


@dataclass(slots=True)
class Clock:
    now: datetime

    def __call__(self) -> datetime:
        return self.now


def script(draft: Draft, calls: int = 8) -> Callable[[int], bytes]:
    """Return the randomness of a caller who asks just what was drafted."""
    drawn: Iterator[bytes] = iter(
        [
            bytes.fromhex(entry_of(draft).evidence_nonce),
            # The session's master secret.
            b"m" * 32,
            *[bytes.fromhex(draft.receipt.client_nonce), draft.salt] * calls,
        ]
    )
    return lambda length: next(drawn)


class Call(Protocol):
    def __call__(
        self,
        service: FakeService,
        payload: Any = ...,
        *,
        deployment: Deployment | None = ...,
        random: Draft | None = ...,
        **settings: Any,
    ) -> Answer: ...


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    """One call of a new client, over either client."""

    def call(
        service: FakeService,
        payload: Any = FEATURES,
        *,
        deployment: Deployment | None = None,
        random: Draft | None = None,
        **settings: Any,
    ) -> Answer:
        trusted = deployment or service.draft.deployment
        settings = {
            "clock": Clock(trusted.now + timedelta(seconds=2)),
            "random_bytes": script(random or service.draft),
            **settings,
        }
        if request.param == "sync":
            with SecureClient(
                URL, trusted.trust, transport=service, **settings
            ) as client:
                return client.call("diagnose", payload)

        async def ask() -> Answer:
            async with AsyncSecureClient(
                URL, trusted.trust, transport=service, **settings
            ) as client:
                return await client.call("diagnose", payload)

        return asyncio.run(ask())

    return call


@pytest.fixture(scope="session")
def deployment() -> Deployment:
    return build_deployment(sessions=True)


@pytest.fixture(scope="session")
def draft(deployment: Deployment) -> Draft:
    return build_draft(deployment)


@pytest.fixture
def service(draft: Draft) -> FakeService:
    return FakeService.of(draft)
