"""Calls that succeed: what is sent, what comes back, what is kept between them."""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from bentoml_secure.client import AsyncSecureClient, SecureClient
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
    ReceiptError,
    VerificationError,
)
from bentoml_secure.receipts.opening import Opening
from bentoml_secure.receipts.trust import write_trust
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.session.bodies import Answering
from bentoml_secure.session.responders import UnknownSessionError
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from tests.unit.client.conftest import (
    FEATURES,
    FINISH,
    HELLO,
    RECEIPTS,
    URL,
    Answered,
    Call,
    Clock,
    FakeService,
    entry_of,
    script,
    sealed,
)


def client_of(service: FakeService, clock: Clock, calls: int = 8) -> SecureClient:
    draft = service.draft
    return SecureClient(
        URL,
        draft.deployment.trust,
        transport=service,
        clock=clock,
        random_bytes=script(draft, calls),
    )


def test_an_answer_is_the_value_with_its_verdict(
    call: Call, service: FakeService, draft: Draft
) -> None:
    answer = call(service)
    assert answer.value == {"malignant": [0.25]}
    assert answer.verdict.state is State.ACCEPTED
    assert not answer.is_provisional
    assert answer.verdict.claims["labels"]["opening"] == "checked"
    assert answer.receipt_id == draft.receipt.receipt_id
    assert answer.nonce.hex() == draft.receipt.client_nonce
    assert answer.root_salt == draft.salt


def test_the_entry_is_attested_before_anything_is_sent(
    call: Call, service: FakeService, draft: Draft
) -> None:
    call(service, wait_seconds=2.5)
    hello, finish, ask, fetch = service.seen
    assert service.paths == [
        HELLO,
        FINISH,
        "/diagnose",
        f"{RECEIPTS}{draft.receipt.receipt_id}",
    ]
    assert json.loads(hello.content)["nonce"] == entry_of(draft).evidence_nonce
    for request in (hello, finish, ask):
        sent = request.content + repr(request.headers).encode()
        assert b"features" not in sent
        assert draft.salt.hex().encode() not in sent
        assert draft.receipt.client_nonce.encode() not in sent
    assert not [name for name in ask.headers if name.startswith("bsec-")]
    assert ask.headers["accept-encoding"] == "identity"
    (inner,) = service.asked
    assert inner.headers["bsec-nonce"] == draft.receipt.client_nonce
    assert inner.headers["bsec-root-salt"] == draft.salt.hex()
    assert "bsec-scenario" not in inner.headers
    assert inner.body == draft.request
    assert fetch.url.params["wait"] == "2.5"


def test_a_scenario_is_asked_for_by_name(call: Call, service: FakeService) -> None:
    call(service, scenario="general", headers={"authorization": "Bearer t"})
    assert service.asked[0].headers["bsec-scenario"] == "general"
    # An ingress reads it, and so it stands outside the seal.
    assert service.seen[2].headers["authorization"] == "Bearer t"


def test_the_bundle_can_be_judged_again_offline(
    call: Call, service: FakeService, deployment: Deployment
) -> None:
    answer = call(service)
    verdict = verify_bundle(
        answer.bundle,
        deployment.trust,
        now=deployment.now + timedelta(days=1),
        opening=Opening(
            salt=answer.root_salt,
            request=answer.question.body,
            response=answer.body,
        ),
    )
    assert verdict.receipt_digest == answer.verdict.receipt_digest


def test_secrets_and_bodies_stay_out_of_what_is_printed(
    call: Call, service: FakeService, draft: Draft
) -> None:
    printed = repr(call(service))
    assert repr(draft.salt) not in printed
    assert repr(draft.response) not in printed


def test_bytes_are_asked_and_answered_as_they_are(
    service: FakeService, deployment: Deployment
) -> None:
    with client_of(service, Clock(deployment.now)) as client:
        answer = client.call_raw(
            "/diagnose", service.draft.request, "application/octet-stream"
        )
    assert answer.value == service.draft.response
    assert service.asked[0].headers["content-type"] == "application/octet-stream"


def test_simulated_evidence_is_warned_of_once(
    deployment: Deployment,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = FakeService.of(build_draft(deployment, committed=False))
    with (
        caplog.at_level(logging.WARNING, "bentoml_secure"),
        client_of(service, Clock(deployment.now)) as client,
    ):
        assert client.call("diagnose", FEATURES).verdict.simulated
        client.call("diagnose", FEATURES)
    (record,) = caplog.records
    assert record.getMessage().startswith("SIMULATED - NOT HARDWARE")


class TestEvidenceBetweenCalls:
    def test_it_is_asked_for_once(self, deployment: Deployment) -> None:
        service = FakeService.of(build_draft(deployment, committed=False))
        with client_of(service, Clock(deployment.now)) as client:
            client.attest()
            client.call("diagnose", FEATURES)
            client.call("diagnose", FEATURES)
        assert service.paths.count(HELLO) == 1

    def test_it_is_asked_for_anew_at_a_quarter_of_its_age(
        self, service: FakeService, deployment: Deployment
    ) -> None:
        clock = Clock(deployment.now)
        draft = service.draft
        nonce = bytes.fromhex(entry_of(draft).evidence_nonce)
        with SecureClient(
            URL,
            deployment.trust,
            transport=service,
            clock=clock,
            random_bytes=lambda length: nonce,
        ) as client:
            for seconds, asked in ((0, 1), (74, 1), (75, 2), (76, 2)):
                clock.now = deployment.now + timedelta(seconds=seconds)
                client.attest()
                assert service.paths.count(HELLO) == asked

    def test_it_is_asked_for_anew_after_a_failure(
        self, service: FakeService, deployment: Deployment
    ) -> None:
        drawn = script(service.draft, 1)
        nonce = bytes.fromhex(entry_of(service.draft).evidence_nonce)
        again = script(service.draft, 1)
        draws = [draw(32) for draw in (drawn, again) for _ in range(4)]
        assert draws[0] == draws[4] == nonce
        honest, service.body = service.body, b"{}"
        with SecureClient(
            URL,
            deployment.trust,
            transport=service,
            clock=Clock(deployment.now),
            random_bytes=lambda length: draws.pop(0),
        ) as client:
            with pytest.raises(ReceiptError, match="opening response"):
                client.call("diagnose", FEATURES)
            service.body = honest
            assert client.call("diagnose", FEATURES).value == {"malignant": [0.25]}
        assert service.paths.count(HELLO) == 2


class TestProvisional:
    @pytest.fixture
    def late(self, deployment: Deployment) -> Draft:
        return build_draft(deployment, behaviours={(0, 0, 2): Behaviour.LATE})

    def test_an_answer_can_be_confirmed_once_all_is_there(self, late: Draft) -> None:
        service = FakeService.of(late)
        service.bundles = [late.bundle(attach=False), late.bundle()]
        clock = Clock(late.deployment.now + timedelta(seconds=2))
        with client_of(service, clock) as client:
            answer = client.call("diagnose", FEATURES)
            assert answer.is_provisional
            clock.now += timedelta(hours=1)
            confirmed = client.confirm(answer)
        assert confirmed.verdict.state is State.ACCEPTED
        assert confirmed.value == answer.value
        assert confirmed.nonce == answer.nonce

    def test_what_never_came_fails_it(self, late: Draft) -> None:
        service = FakeService.of(late, late.bundle(attach=False))
        clock = Clock(late.deployment.now + timedelta(seconds=2))
        with client_of(service, clock) as client:
            answer = client.call("diagnose", FEATURES)
            clock.now += timedelta(hours=1)
            with pytest.raises(ReceiptError, match="late-votes: got missing"):
                client.confirm(answer)


async def test_the_async_client_has_every_call(
    deployment: Deployment,
) -> None:
    late = build_draft(deployment, behaviours={(0, 0, 2): Behaviour.LATE})
    service = FakeService.of(late)
    service.bundles = [late.bundle(attach=False), late.bundle()]
    async with AsyncSecureClient(
        URL,
        deployment.trust,
        transport=service,
        clock=Clock(deployment.now),
        random_bytes=script(late),
    ) as client:
        entry = await client.attest()
        answer = await client.call_raw("diagnose", late.request, "application/json")
        confirmed = await client.confirm(answer)
    assert entry.document == deployment.entry.document
    assert answer.value == confirmed.value == late.response
    assert (answer.is_provisional, confirmed.is_provisional) == (True, False)


class TestTrustFile:
    def test_a_path_is_read(
        self, service: FakeService, deployment: Deployment, tmp_path: Path
    ) -> None:
        path = tmp_path / "trust.toml"
        path.write_text(
            write_trust(
                plan_digests=[deployment.plan.digest],
                config_digests=[deployment.config_digest],
                package_digests=[digest_json("a release")],
                scenarios={"general": deployment.scenario.digest},
                policy=deployment.policy,
                minimum_quorum=2,
            )
        )
        with SecureClient(
            URL,
            str(path),
            transport=service,
            clock=Clock(deployment.now),
            random_bytes=script(service.draft),
        ) as client:
            assert client.call("diagnose", FEATURES).status == 200

    @pytest.mark.parametrize(
        ("text", "said"), [(None, "cannot be read"), ("version = 1", "is missing")]
    )
    def test_a_bad_one_is_refused(
        self, tmp_path: Path, text: str | None, said: str
    ) -> None:
        path = tmp_path / "trust.toml"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigurationError, match=said):
            SecureClient(URL, path)


def test_importing_it_imports_no_bentoml() -> None:
    code = "import sys, bentoml_secure.client; print('bentoml' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


class TestTheSession:
    def test_one_that_the_entry_lost_is_followed_once(
        self, service: FakeService, deployment: Deployment
    ) -> None:
        """It was restarted between two calls: evidence anew, and the call again."""
        draws = _draws(service)
        with SecureClient(
            URL,
            deployment.trust,
            transport=service,
            clock=Clock(deployment.now),
            random_bytes=lambda length: draws.pop(0),
        ) as client:
            client.attest()
            service.sessions.clear()
            # The call's own nonce and salt, then a handshake, then new ones.
            draws[:] = [b"x" * 32, b"y" * 32, *_draws(service)]
            assert client.call("diagnose", FEATURES).value == {"malignant": [0.25]}
        assert service.paths.count(HELLO) == 2
        assert service.paths.count("/diagnose") == 2

    def test_one_that_is_lost_again_is_an_error(
        self, service: FakeService, deployment: Deployment
    ) -> None:
        error = {"error": {"code": "unknown-session", "message": "none"}}
        service.replies["/diagnose"] = (401, [], json.dumps(error).encode())
        with (
            SecureClient(
                URL,
                deployment.trust,
                transport=service,
                clock=Clock(deployment.now),
                random_bytes=_endless(service),
            ) as client,
            pytest.raises(UnknownSessionError, match="has no such session") as caught,
        ):
            client.call("diagnose", FEATURES)
        assert service.paths.count("/diagnose") == 2
        # How far it came, step by step.
        assert [note.rpartition(": ")[2] for note in caught.value.__notes__][-1] == (
            "FAILED"
        )

    def test_keys_that_are_pinned_are_the_only_ones(
        self, call: Call, service: FakeService
    ) -> None:
        own = service.process.document.digest
        assert call(service, pin=own).value == {"malignant": [0.25]}
        with pytest.raises(PolicyRejected, match="other keys than those pinned"):
            call(service, pin=digest_json("other keys"))
        # Nothing was said to the other one.
        assert service.paths[-1] == HELLO

    @pytest.mark.parametrize("part", ["status", "body", "key"])
    def test_an_answer_that_does_not_open_is_an_error(
        self, call: Call, service: FakeService, part: str
    ) -> None:
        def altered(answering: Answering, said: Answered) -> Answered:
            status, headers, body = sealed(answering, said)
            if part == "status":
                return 201, headers, body
            at = -1 if part == "body" else 0
            flipped = bytearray(body)
            flipped[at] ^= 1
            return status, headers, bytes(flipped)

        service.sealing = altered
        with pytest.raises(VerificationError, match="chunk 0 is not authentic"):
            call(service)

    def test_an_answer_in_the_clear_is_an_error(
        self, call: Call, service: FakeService
    ) -> None:
        service.sealing = lambda answering, said: said
        with pytest.raises(MalformedInputError, match="the answer is not sealed"):
            call(service)


def _draws(service: FakeService) -> list[bytes]:
    draw = script(service.draft, 1)
    return [draw(32) for _ in range(4)]


def _endless(service: FakeService) -> Callable[[int], bytes]:
    draws = itertools.cycle([_draws(service)[0], *[b"z" * 32] * 3])
    return lambda length: next(draws)
