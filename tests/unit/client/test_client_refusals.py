"""What a caller does not believe: each refusal with its finding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.attestation.dev_chain import make_root
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    Finding,
    MalformedInputError,
    PolicyRejected,
    ReceiptError,
)
from bentoml_secure.receipts.receipt import ENTRY, UNSEALED
from bentoml_secure.scenario import Scenario
from bentoml_secure.session.bodies import SEALED_TYPE, Answering
from bentoml_secure.session.http import Inner
from bentoml_secure.signing import SigningKey, sign
from bentoml_secure.statements import INTOTO_TYPE
from bentoml_secure.testing.deployment import (
    EVIDENCE_AGE,
    NOW,
    Deployment,
    build_deployment,
    key_of,
)
from bentoml_secure.testing.receipts import Draft, build_draft
from tests.unit.client.conftest import (
    FINISH,
    HELLO,
    RECEIPTS,
    Answered,
    Call,
    Clock,
    FakeService,
    entry_of,
    signed_draw,
    with_receipt,
)


def fields(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.field for finding in findings}


class TestEntry:
    """Nothing is sent to an entry that the trust file does not accept."""

    def refused(self, call: Call, service: FakeService, **given: Any) -> set[str]:
        with pytest.raises(PolicyRejected, match=r"key document|entry") as caught:
            call(service, **given)
        assert service.paths == [HELLO]
        return fields(caught.value.findings)

    def test_of_another_deployment(self, call: Call, service: FakeService) -> None:
        other = build_deployment(
            sessions=True, segments=1, package=digest_json("another release")
        )
        trust = dataclasses.replace(other.trust, policy=service.draft.deployment.policy)
        trusted = dataclasses.replace(other, trust=trust)
        names = self.refused(call, service, deployment=trusted)
        assert names == {"plan", "config_digest", "package"}

    def test_under_another_root(self, call: Call) -> None:
        root = make_root(key_of("root"), now=NOW - timedelta(days=3))
        service = FakeService.of(
            build_draft(build_deployment(sessions=True, root=root))
        )
        names = self.refused(call, service, deployment=build_deployment(sessions=True))
        assert names == {"root"}

    def test_with_a_runner_s_keys(
        self, call: Call, service: FakeService, deployment: Deployment
    ) -> None:
        # Its own evidence, over the caller's nonce: only the role is wrong.
        runner = deployment.runners[0][0]
        nonce = bytes.fromhex(entry_of(service.draft).evidence_nonce)
        party, record = runner.party(nonce, NOW)
        as_entry = dataclasses.replace(party, name=deployment.entry.name)
        service.process = runner
        service.attested = dataclasses.replace(
            with_receipt(service.draft, parties=(as_entry,)), evidence=(record,)
        )
        assert self.refused(call, service) == {"role"}

    def test_with_keys_that_the_evidence_is_not_about(
        self, call: Call, service: FakeService, deployment: Deployment
    ) -> None:
        service.process = deployment.runners[0][0]
        assert self.refused(call, service) == {"report_data"}

    def test_with_evidence_over_another_nonce(
        self, call: Call, service: FakeService, deployment: Deployment
    ) -> None:
        service.attested = build_draft(deployment, label="another request")
        assert self.refused(call, service) == {"report_data"}

    def test_with_old_evidence(
        self, call: Call, service: FakeService, deployment: Deployment
    ) -> None:
        clock = Clock(deployment.now + timedelta(seconds=300) - EVIDENCE_AGE)
        clock.now += timedelta(seconds=1)
        assert self.refused(call, service, clock=clock) == {"issued_at"}


def headers_of(service: FakeService, name: str, value: str) -> None:
    service.headers = [(k, value if k == name else v) for k, v in service.headers]


OTHER_DIGEST = digest_json("another document")


class TestHeaders:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("bsec-receipt-digest", OTHER_DIGEST), ("bsec-scenario", OTHER_DIGEST)],
    )
    def test_that_name_something_else(
        self, call: Call, service: FakeService, name: str, value: str
    ) -> None:
        headers_of(service, name, value)
        with pytest.raises(ReceiptError, match=f"{name}: got") as caught:
            call(service)
        assert fields(caught.value.findings) == {name}

    def test_that_name_another_receipt(self, call: Call, service: FakeService) -> None:
        headers_of(service, "bsec-receipt-id", "00" * 16)
        with pytest.raises(ReceiptError, match=r"bsec-receipt-id: got .* want 0000"):
            call(service)

    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_that_are_missing(
        self, call: Call, service: FakeService, index: int
    ) -> None:
        del service.headers[index]
        with pytest.raises(ReceiptError, match="without a receipt"):
            call(service)
        assert service.paths == [HELLO, FINISH, "/diagnose"]

    def test_that_stand_twice(self, call: Call, service: FakeService) -> None:
        def twice(answering: Answering, said: Answered) -> Answered:
            status, headers, body = said
            head, rest = Inner(headers=dict(headers), body=body, status=status).encode()
            doubled = head[4:].replace(b'{"bsec', b'{"bsec-receipt-id":"","bsec', 1)
            message = len(doubled).to_bytes(4, "big") + doubled + rest
            made = answering.seal(status, (message,), (len(message),))
            return status, [("content-type", SEALED_TYPE)], b"".join(made.pieces)

        service.sealing = twice
        with pytest.raises(MalformedInputError, match="a key stands twice"):
            call(service)

    def test_that_lead_to_another_path(self, call: Call, service: FakeService) -> None:
        headers_of(service, "bsec-receipt-id", "../../attest")
        with pytest.raises(ReceiptError, match="without a receipt"):
            call(service)


def rejected(call: Call, service: FakeService, **given: Any) -> tuple[Finding, ...]:
    with pytest.raises(
        ReceiptError, match=r"^/diagnose: receipt .* rejected"
    ) as caught:
        call(service, **given)
    return caught.value.findings


class TestAnswers:
    def test_a_receipt_of_another_request(
        self, call: Call, draft: Draft, deployment: Deployment
    ) -> None:
        # Honest in itself, and shown to another caller before.
        replayed = FakeService.of(build_draft(deployment, label="another request"))
        replayed.attested, replayed.first_draw = draft, signed_draw(draft)
        names = fields(rejected(call, replayed, random=draft))
        assert names >= {
            "client_nonce",
            "entry evidence_nonce",
            "opening request",
            "opening response",
        }

    def test_a_bundle_of_another_receipt(
        self, call: Call, service: FakeService, deployment: Deployment
    ) -> None:
        service.bundles = [build_draft(deployment, label="another request").bundle()]
        names = fields(rejected(call, service))
        assert names >= {"bsec-receipt-id", "bsec-receipt-digest", "client_nonce"}

    def test_another_response(self, call: Call, service: FakeService) -> None:
        service.body = b'{"malignant": [0.75]}'
        assert fields(rejected(call, service)) == {"opening response"}

    def test_an_answer_to_another_input(
        self, call: Call, deployment: Deployment
    ) -> None:
        service = FakeService.of(build_draft(deployment, request=b'{"features": []}'))
        assert fields(rejected(call, service)) == {"opening request"}

    def test_a_receipt_under_another_key(self, call: Call, draft: Draft) -> None:
        service = FakeService.of(draft, draft.bundle(key=SigningKey.generate()))
        assert fields(rejected(call, service)) == {"receipt signature"}

    def test_a_receipt_that_cannot_be_read(
        self, call: Call, service: FakeService, draft: Draft
    ) -> None:
        other = sign(draft.deployment.entry.signing, INTOTO_TYPE, {"_type": "other"})
        service.bundles = [dataclasses.replace(service.bundles[0], receipt=other)]
        with pytest.raises(ReceiptError, match="receipt cannot be read") as caught:
            call(service)
        assert fields(caught.value.findings) == {"receipt"}

    @pytest.mark.parametrize(
        ("change", "names"),
        [
            ({"nonce_drawn_by": ENTRY}, {"nonce_drawn_by", "draw nonce_drawn_by"}),
            ({"salt_drawn_by": ENTRY}, {"salt_drawn_by"}),
            ({"first_hop": UNSEALED}, {"first_hop", "draw first_hop"}),
            ({"api": "/other"}, {"api"}),
            ({"status": 201}, {"status"}),
        ],
    )
    def test_a_receipt_that_says_something_else(
        self, call: Call, draft: Draft, change: dict[str, Any], names: set[str]
    ) -> None:
        service = FakeService.of(with_receipt(draft, **change))
        assert fields(rejected(call, service)) == names

    def test_the_entry_s_evidence_over_another_nonce(
        self, call: Call, draft: Draft, deployment: Deployment
    ) -> None:
        party, record = deployment.entry.party(bytes(32), NOW - EVIDENCE_AGE)
        own = entry_of(draft)
        parties = tuple(party if p == own else p for p in draft.receipt.parties)
        evidence = tuple(
            record if r.digest == own.evidence else r for r in draft.evidence
        )
        changed = dataclasses.replace(
            with_receipt(draft, parties=parties), evidence=evidence
        )
        service = FakeService.of(changed)
        service.attested = draft
        names = fields(rejected(call, service, random=draft))
        assert names == {"entry evidence_nonce", "draw signed evidence_nonce"}

    def test_a_receipt_from_before_the_call(
        self, call: Call, service: FakeService, deployment: Deployment
    ) -> None:
        clock = Clock(deployment.now + timedelta(seconds=62))
        (finding,) = rejected(call, service, clock=clock)
        assert finding.field == "issued_at"

    def test_a_receipt_from_after_the_call(
        self, call: Call, service: FakeService, deployment: Deployment
    ) -> None:
        clock = Clock(deployment.now - timedelta(seconds=60))
        names = fields(rejected(call, service, clock=clock))
        assert names == {"issued_at"}

    def test_another_scenario_than_asked_for(
        self, call: Call, service: FakeService
    ) -> None:
        assert fields(rejected(call, service, scenario="critical")) == {"scenario name"}

    def test_a_scenario_of_that_name_that_demands_less(
        self, call: Call, service: FakeService, deployment: Deployment
    ) -> None:
        strict = Scenario.from_json({**deployment.scenario.to_json(), "quorum": 3})
        trust = dataclasses.replace(
            deployment.trust, scenarios={"general": strict.digest}
        )
        trusted = dataclasses.replace(deployment, trust=trust)
        names = fields(rejected(call, service, deployment=trusted))
        assert names == {"scenario in the trust file"}

    def test_all_findings_are_listed(self, call: Call, draft: Draft) -> None:
        tampered = with_receipt(draft, api="/other", salt_drawn_by=ENTRY)
        service = FakeService.of(tampered, tampered.bundle(key=SigningKey.generate()))
        service.body = b"{}"
        assert fields(rejected(call, service)) == {
            "api",
            "salt_drawn_by",
            "receipt signature",
            "opening response",
        }


def receipt_path(service: FakeService) -> str:
    return f"{RECEIPTS}{service.draft.receipt.receipt_id}"


class TestReplies:
    @pytest.mark.parametrize("where", [lambda _: HELLO, receipt_path])
    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000])
    def test_that_do_not_parse(
        self,
        call: Call,
        service: FakeService,
        where: Callable[[FakeService], str],
        body: bytes,
    ) -> None:
        service.replies[where(service)] = (200, [], body)
        with pytest.raises(MalformedInputError, match=r"session|receipts|bundle"):
            call(service)

    def test_that_are_larger_than_allowed(
        self, call: Call, service: FakeService
    ) -> None:
        size = len(service.body)
        assert call(service, max_body_bytes=size).value
        with pytest.raises(MalformedInputError, match=f"more than {size - 1} bytes"):
            call(service, max_body_bytes=size - 1)

    def test_that_redirect(self, call: Call, service: FakeService) -> None:
        elsewhere = [("location", "http://elsewhere.test/diagnose")]
        service.replies["/diagnose"] = (307, elsewhere, b"")
        with pytest.raises(MalformedInputError, match="redirects are not followed"):
            call(service)
        assert service.paths == [HELLO, FINISH, "/diagnose"]

    def test_that_are_encoded(self, call: Call, service: FakeService) -> None:
        service.replies["/diagnose"] = (200, [("content-encoding", "gzip")], b"")
        with pytest.raises(MalformedInputError, match="content-encoding 'gzip'"):
            call(service)

    def test_that_are_no_json(self, call: Call, deployment: Deployment) -> None:
        # Verified, and still nothing that a value could be made of.
        service = FakeService.of(build_draft(deployment, response=b"NaN"))
        with pytest.raises(MalformedInputError, match="answer is not valid JSON"):
            call(service)
