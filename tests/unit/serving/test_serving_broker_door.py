"""A broker's door and who asks there, in one process; the network is a function."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bentoml_secure.attestation.evidence import AttestationResult
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
    SecureError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.keys.audit_log import Event
from bentoml_secure.keys.broker import Broker
from bentoml_secure.keys.broker_policy import BrokerPolicy, ModelPolicy
from bentoml_secure.keys.broker_store import BrokerStore
from bentoml_secure.keys.http_calls import Answer, Call
from bentoml_secure.keys.key_file import PlanKeys
from bentoml_secure.keys.release import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    RELEASE_PATH,
    Patience,
    fetch_segment_key,
    require_broker,
)
from bentoml_secure.keys.release_messages import ReleasedKey, ReleaseRequest
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.keys.wrapping_key import WrappingKey
from bentoml_secure.serving.broker_app import BrokerCore, BrokerDoor, judge_asker
from bentoml_secure.session.bodies import SEALED_TYPE
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Shown
from bentoml_secure.session.responders import Responder
from tests.unit.serving.serving_parts import (
    MAX_AGE,
    Asgi,
    Ground,
    pieces,
    scope_of,
)

URL = "http://broker.example:3900"


async def behind(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("BentoML saw it")


@dataclass
class Office:
    """A broker with a deployment's keys behind a door, and the way there.

    Attributes:
        calls: What was asked, in order.
        meanwhile: Answers, or edits the answer, in place of the door.
    """

    ground: Ground
    store: BrokerStore
    wrapping: WrappingKey
    keys: PlanKeys
    door: BrokerDoor
    identity: Identity
    slept: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    meanwhile: Callable[[Call, Callable[[Call], Answer]], Answer] = field(
        default=lambda call, ask: ask(call)
    )

    def send(self, call: Call) -> Answer:
        self.calls.append(call)
        return self.meanwhile(call, self.ask)

    def ask(self, call: Call) -> Answer:
        headers = [(n.lower().encode(), v.encode()) for n, v in call.headers.items()]
        headers.append((b"content-length", str(len(call.body)).encode()))
        caller = Asgi(pieces(call.body))
        scope = scope_of(call.method, call.url.removeprefix(URL), headers)
        asyncio.run(self.door(scope, caller.receive, caller.send))
        got = tuple((n.decode(), v.decode()) for n, v in caller.headers.items())
        return Answer(status=caller.status, headers=got, body=caller.body)

    def request(self, index: int = 0) -> ReleaseRequest:
        segment, key = self.keys.keys[index]
        return ReleaseRequest(segment=segment, key_id=key.key_id)

    def runner(self, index: int = 0, **changes: Any) -> Identity:
        segment = self.ground.plan.segments[index].identity
        role = changes.pop("role", Role.RUNNER)
        return self.ground.identity(role, "Runner", segment, **changes)

    def fetch(
        self,
        identity: Identity | None = None,
        request: ReleaseRequest | None = None,
        *,
        url: str = URL,
        seconds: float = 60.0,
        judged: Callable[[Shown], AttestationResult] | None = None,
    ) -> ReleasedKey:
        own = identity or self.runner()

        def judge_broker(shown: Shown) -> AttestationResult:
            require_broker(shown.document, own.keys.document)
            return judge(shown, self.ground.policy, now=self.ground.clock())

        def sleep(pause: float) -> None:
            self.slept.append(pause)

        return fetch_segment_key(
            url,
            own,
            judged or judge_broker,
            request or self.request(),
            max_age_seconds=MAX_AGE,
            send=self.send,
            patience=Patience(
                seconds=seconds, sleep=sleep, monotonic=lambda: sum(self.slept)
            ),
            clock=self.ground.clock,
        )


def broker_policy(ground: Ground) -> BrokerPolicy:
    model = ModelPolicy(
        plan=ground.plan.digest,
        roles=(Role.PROVER, Role.RUNNER),
        config_digests=(ground.configuration.digest,),
        packages=(ground.own.keys.document.package,),
    )
    return BrokerPolicy(models={model.plan: model}, appraisal=ground.policy)


@pytest.fixture
def office(ground: Ground, tmp_path: Path) -> Iterator[Office]:
    wrapping = WrappingKey(SegmentKey.generate())
    store = BrokerStore.create(tmp_path / "broker.db", wrapping, now=ground.clock())
    keys = PlanKeys(
        plan=ground.plan.digest,
        keys=tuple((s.identity, SegmentKey.generate()) for s in ground.plan.segments),
    )
    store.add_keys(keys, wrapping, now=ground.clock())
    identity = ground.identity(Role.BROKER, "Broker", plan=None)
    responder = Responder(
        identity,
        lambda shown: judge_asker(shown, ground.policy, now=ground.clock()),
        max_age_seconds=MAX_AGE,
        clock=ground.clock,
    )
    core = BrokerCore(
        broker=Broker(broker_policy(ground), store, wrapping),
        responder=responder,
        clock=ground.clock,
    )
    door = BrokerDoor(behind, lambda: core)
    yield Office(ground, store, wrapping, keys, door, identity)
    store.close()


def test_a_key_comes_back_sealed_and_is_in_no_log(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for index, role in enumerate((Role.RUNNER, Role.PROVER)):
        got = office.fetch(office.runner(index, role=role), office.request(index))
        assert got.key == office.keys.keys[index][1]
        assert got.audit == office.store.audit()[-1].digest
    assert [c.url.rpartition("/")[2] for c in office.calls] == [
        *("hello", "finish", "release") * 2
    ]
    for _, key in office.keys.keys:
        secret = key.reveal()
        assert not any(secret in c.body for c in office.calls)
        assert secret.hex() not in caplog.text
        assert repr(secret) not in caplog.text
    assert office.keys.keys[0][1].key_id in caplog.text


def test_a_prover_key_goes_to_provers_only(office: Office) -> None:
    segments = office.ground.plan.segments
    keys = PlanKeys(
        plan=office.keys.plan,
        keys=tuple((part.identity, SegmentKey.generate()) for part in segments),
        role=Role.PROVER,
    )
    office.store.add_keys(keys, office.wrapping, now=office.ground.clock())
    segment, key = keys.keys[0]
    request = ReleaseRequest(segment=segment, key_id=key.key_id)
    assert office.fetch(office.runner(role=Role.PROVER), request).key == key
    with pytest.raises(PolicyRejected, match="key_role: got runner, want prover"):
        office.fetch(office.runner(), request)
    entry = office.store.audit()[-1]
    assert [f["field"] for f in entry.details["findings"]] == ["key_role"]


def test_an_address_that_ends_in_a_slash(office: Office) -> None:
    assert office.fetch(url=f"{URL}/").key == office.keys.keys[0][1]
    with pytest.raises(ConfigurationError, match="broker 'ftp://x': want https"):
        office.fetch(url="ftp://x")


# Refusals


def test_a_refusal_is_final_sealed_and_says_every_reason(office: Office) -> None:
    with pytest.raises(PolicyRejected, match="refuses") as caught:
        office.fetch(
            office.runner(1, config_digest=digest_json("other")), office.request(0)
        )
    (finding,) = caught.value.findings
    assert finding.field == "broker"
    assert "config_digest: got sha256-jcs-v1:" in finding.got
    assert "segment: got asked for" in finding.got
    assert office.slept == []
    entry = office.store.audit()[-1]
    assert entry.event is Event.REFUSED
    assert {f["field"] for f in entry.details["findings"]} == {
        "config_digest",
        "segment",
    }


@pytest.mark.parametrize("role", [Role.ENTRY, Role.BROKER])
def test_a_role_without_a_segment_gets_no_session(office: Office, role: Role) -> None:
    identity = office.ground.identity(role, "Skips")
    with pytest.raises(PolicyRejected, match="not acceptable in role"):
        office.fetch(identity)
    assert office.calls[-1].url.endswith("/finish")
    assert len(office.store.audit()) == 1 + len(office.keys.keys)


def test_another_root_gets_no_session(office: Office) -> None:
    other = office.runner(root_name="other")
    with pytest.raises(PolicyRejected, match="root"):
        office.fetch(other)
    assert office.calls[-1].url.endswith("/finish")


# Brokers that are none


def test_another_role_is_no_broker(office: Office) -> None:
    shown, own = office.ground.own.keys.document, office.runner().keys.document
    with pytest.raises(CheckFailedError, match="got entry, want broker") as caught:
        require_broker(shown, own)
    assert caught.value.findings[0].field == "broker_role"


def test_another_release_is_no_broker_of_this_one(office: Office) -> None:
    shown = dataclasses.replace(
        office.identity.keys.document, package=digest_json("another release")
    )
    with pytest.raises(CheckFailedError) as caught:
        require_broker(shown, office.runner().keys.document)
    assert [f.field for f in caught.value.findings] == ["broker_package"]


def test_nothing_is_shown_to_a_broker_that_is_not_accepted(office: Office) -> None:
    def refuse(shown: Shown) -> AttestationResult:
        raise VerificationError("not that one")

    with pytest.raises(VerificationError, match="not that one"):
        office.fetch(judged=refuse)
    assert [c.url.rpartition("/")[2] for c in office.calls] == ["hello"]


# Brokers that are not there


def after(count: int, error: Callable[[], Answer]) -> Any:
    """Answer with ``error`` a number of times, then as the broker does."""
    left = [count]

    def answer(call: Call, ask: Callable[[Call], Answer]) -> Answer:
        if left[0] > 0:
            left[0] -= 1
            return error()
        return ask(call)

    return answer


def gone() -> Answer:
    raise UnavailableError("connection refused")


def said(status: int, body: bytes = b"") -> Callable[[], Answer]:
    return lambda: Answer(status=status, headers=(), body=body)


@pytest.mark.parametrize(
    "error",
    [gone, said(502, b"<html>"), said(503), said(429), said(500, b"[]")],
    ids=["refused", "proxy", "unavailable", "busy", "broken"],
)
def test_a_broker_that_is_not_there_is_asked_again(
    office: Office, error: Callable[[], Answer], caplog: pytest.LogCaptureFixture
) -> None:
    office.meanwhile = after(8, error)
    assert office.fetch().key == office.keys.keys[0][1]
    doubled = [FIRST_PAUSE_SECONDS * 2**n for n in range(8)]
    assert office.slept == [min(p, LONGEST_PAUSE_SECONDS) for p in doubled]
    assert caplog.text.count("again in") == 8


def test_patience_ends(office: Office) -> None:
    office.meanwhile = after(100, gone)
    with pytest.raises(
        UnavailableError, match=r"no key within 60 s: connection refused"
    ):
        office.fetch()
    assert 50 < sum(office.slept) <= 60


def test_a_session_that_ended_meanwhile_is_made_anew(office: Office) -> None:
    document = {"error": {"code": "unknown-session", "message": "none held"}}
    lost = [json.dumps(document).encode()]

    def answer(call: Call, ask: Callable[[Call], Answer]) -> Answer:
        if call.url.endswith("/release") and lost:
            return Answer(status=401, headers=(), body=lost.pop())
        return ask(call)

    office.meanwhile = answer
    assert office.fetch().key == office.keys.keys[0][1]
    assert len(office.slept) == 1


# Answers that are none


ANSWERS: dict[str, tuple[Callable[[], Answer], type[SecureError], str]] = {
    "nothing there": (said(404), ConfigurationError, "Is a broker of this release"),
    "no JSON": (said(200, b"<html>"), MalformedInputError, "broker's answer"),
    "no offer": (said(200, b"{}"), MalformedInputError, "session offer"),
    "a redirect": (said(302), ConfigurationError, "status 302"),
    "a refusal": (said(403, b"\x1b[2Jno"), PolicyRejected, "x1b"),
}


@pytest.mark.parametrize(
    ("answer", "kind", "message"), ANSWERS.values(), ids=ANSWERS.keys()
)
def test_answers_that_are_none_are_final(
    office: Office,
    answer: Callable[[], Answer],
    kind: type[SecureError],
    message: str,
) -> None:
    office.meanwhile = after(1, answer)
    with pytest.raises(kind, match=message):
        office.fetch()
    assert office.slept == []


def edited(edit: Callable[[Answer], Answer]) -> Any:
    """Answer a release as the broker does, edited on the way."""

    def answer(call: Call, ask: Callable[[Call], Answer]) -> Answer:
        got = ask(call)
        return edit(got) if call.url.endswith(RELEASE_PATH) else got

    return answer


EDITS: dict[str, Callable[[Answer], Answer]] = {
    "a bit": lambda a: Answer(
        status=200, headers=a.headers, body=a.body[:-1] + bytes([a.body[-1] ^ 1])
    ),
    "cut": lambda a: Answer(status=200, headers=a.headers, body=a.body[:-1]),
    "another status": lambda a: Answer(status=403, headers=a.headers, body=a.body),
    "too long": lambda a: Answer(
        status=200, headers=a.headers, body=a.body + bytes(1 << 20)
    ),
    "unsealed": lambda a: Answer(status=200, headers=(), body=a.body),
    "of two types": lambda a: Answer(
        status=200, headers=(*a.headers, *a.headers), body=a.body
    ),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_answer_that_was_edited_is_no_key(
    office: Office, edit: Callable[[Answer], Answer]
) -> None:
    office.meanwhile = edited(edit)
    with pytest.raises(
        (MalformedInputError, VerificationError), match=r"sealed|broker|unsealed"
    ):
        office.fetch()
    assert office.slept == []


# The door


def call_door(office: Office, method: str, path: str, **headers: str) -> Answer:
    return office.ask(Call(method=method, url=f"{URL}{path}", headers=headers))


def test_no_other_path_is_there(office: Office) -> None:
    for path in ("/", "/bsec/v1/infer", "/bsec/v1/attest", "/docs.json"):
        for method in ("GET", "POST", "PUT"):
            assert call_door(office, method, path).status == 404
    assert call_door(office, "GET", "/metrics").status == 200


def test_a_release_is_sealed_and_small(office: Office) -> None:
    sealed = {"content-type": SEALED_TYPE}
    assert call_door(office, "POST", RELEASE_PATH).status == 400
    assert call_door(office, "POST", RELEASE_PATH, **sealed).status == 400
    large = Call(
        method="POST",
        url=f"{URL}{RELEASE_PATH}",
        headers=sealed,
        body=bytes(100_000),
    )
    assert office.ask(large).status == 413


async def test_a_body_that_does_not_arrive(office: Office) -> None:
    core = office.door._core
    door = BrokerDoor(behind, core, body_seconds=0.05)

    class Slow(Asgi):
        async def receive(self) -> Any:
            await asyncio.sleep(30)

    caller = Slow()
    headers = [(b"content-type", SEALED_TYPE.encode()), (b"content-length", b"100")]
    await door(scope_of("POST", RELEASE_PATH, headers), caller.receive, caller.send)
    assert caller.status == 503
    assert b"not done within 0.05 s" in caller.body


async def test_a_key_is_not_sealed_for_who_has_no_evidence(office: Office) -> None:
    session = SimpleNamespace(result=None)
    answering: Any = SimpleNamespace(served=SimpleNamespace(session=session))
    with pytest.raises(VerificationError, match="the asker has no evidence"):
        office.door._core().answer(b"{}", answering)
