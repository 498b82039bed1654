from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.tees.simulated import Simulated
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    ReceiptError,
    UnavailableError,
)
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.opening import Opening
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.scenario import Independence
from bentoml_secure.tensors import commit
from bentoml_secure.testing.deployment import SERVICE, Deployment, build_deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft


def rejected(bundle: Bundle, trust: Trust, now: datetime, **options: Any) -> set[str]:
    with pytest.raises(ReceiptError, match="rejected") as error:
        verify_bundle(bundle, trust, now=now, **options)
    return {finding.field for finding in error.value.findings}


class TestClaims:
    def test_an_honest_request(
        self, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        verdict = verify_bundle(draft.bundle(), deployment.trust, now=now)
        assert verdict.state is State.ACCEPTED
        assert verdict.simulated
        assert verdict.receipt_id == draft.receipt.receipt_id
        assert verdict.receipt_digest == draft.bundle().receipt.payload_digest
        claims = verdict.to_json()
        assert claims["verdict"] == "accepted"
        assert claims["quorum"] == 2
        assert claims["dissenters"] == claims["absent"] == []
        assert len(claims["parties"]) == 7
        assert {party["platform"] for party in claims["parties"]} == {"simulated"}
        assert claims["labels"]["evidence time"] == "asserted by the issuer"
        assert claims["labels"]["opening"] == "not checked"
        assert claims["labels"]["draw"] == "committed; when, is not checked"

    def test_how_each_party_is_attested(
        self, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        claims = verify_bundle(draft.bundle(), deployment.trust, now=now).claims
        digests = {party.name: party.evidence for party in draft.receipt.parties}
        issued = draft.receipt.issued_at[:19]
        for party in claims["parties"]:
            assert party["evidence"] == digests[party["name"]]
            assert party["verified_at"] == f"{issued}Z"
            assert party["expires_at"] > party["verified_at"]
        roots = {party["root"] for party in claims["parties"]}
        accepted = deployment.trust.policy.to_json()["simulated"]["roots"]
        assert sorted(roots) == accepted

    def test_who_dissented_and_who_was_absent(
        self, deployment: Deployment, now: datetime
    ) -> None:
        draft = build_draft(
            deployment,
            behaviours={
                (0, 0, 0): Behaviour.LIAR,
                (0, 1, 2): Behaviour.ABSENT,
                (1, 0, 1): Behaviour.LATE_LIAR,
                (1, 1, 1): Behaviour.LOST,
            },
            infers=2,
        )
        claims = verify_bundle(draft.bundle(), deployment.trust, now=now).claims
        assert claims["dissenters"] == [
            {
                "infer": 0,
                "segment": 0,
                "replica": f"{SERVICE}Segment0Replica0",
                "where": "receipt",
            },
            {
                "infer": 1,
                "segment": 0,
                "replica": f"{SERVICE}Segment0Replica1",
                "where": "late-votes",
            },
        ]
        assert [
            (a["infer"], a["segment"], a["replica"], a["where"])
            for a in claims["absent"]
        ] == [
            (0, 1, f"{SERVICE}Segment1Replica2", "receipt"),
            (1, 1, f"{SERVICE}Segment1Replica1", "late-votes"),
        ]

    def test_other_bits_within_the_tolerance_are_no_dissent(
        self, deployment: Deployment, now: datetime
    ) -> None:
        draft = build_draft(
            deployment,
            behaviours={(0, 0, 0): Behaviour.NEAR, (0, 1, 2): Behaviour.LATE},
        )
        claims = verify_bundle(draft.bundle(), deployment.trust, now=now).claims
        assert claims["dissenters"] == claims["absent"] == []

    def test_an_absent_replica_need_not_have_shown_evidence(
        self, deployment: Deployment, now: datetime
    ) -> None:
        draft = build_draft(deployment, behaviours={(0, 0, 2): Behaviour.ABSENT})
        name = f"{SERVICE}Segment0Replica2"
        (gone,) = [p for p in draft.receipt.parties if p.name == name]
        parties = tuple(p for p in draft.receipt.parties if p is not gone)
        draft = replace(draft, receipt=replace(draft.receipt, parties=parties))
        bundle = draft.bundle()
        bundle = replace(
            bundle,
            key_documents=tuple(
                d for d in bundle.key_documents if d.digest != gone.key_document
            ),
            evidence=tuple(r for r in bundle.evidence if r.digest != gone.evidence),
        )
        verdict = verify_bundle(bundle, deployment.trust, now=now)
        assert [a["replica"] for a in verdict.claims["absent"]] == [name]

    def test_a_longer_plan(self, now: datetime) -> None:
        deployment = build_deployment(segments=4, replicas=1, quorum=1)
        bundle = build_draft(deployment).bundle()
        verdict = verify_bundle(bundle, deployment.trust, now=now)
        assert verdict.claims["segments"] == 4


class TestTime:
    def test_evidence_is_judged_for_the_time_given(
        self, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        at = deployment.now + timedelta(seconds=20)
        verdict = verify_bundle(draft.bundle(), deployment.trust, now=now, at=at)
        assert verdict.claims["labels"]["evidence time"] == "given"
        later = deployment.now + timedelta(days=400)
        fields = rejected(draft.bundle(), deployment.trust, now=now, at=later)
        assert f"party {SERVICE} evidence" in fields

    def test_years_later_the_time_of_issue_still_counts(
        self, draft: Draft, deployment: Deployment
    ) -> None:
        now = deployment.now + timedelta(days=4000)
        assert verify_bundle(draft.bundle(), deployment.trust, now=now).state is (
            State.ACCEPTED
        )


class TestTrust:
    @pytest.mark.parametrize(
        ("field", "finding"),
        [
            ("plan_digests", "plan_digest"),
            ("config_digests", "config_digest"),
            ("package_digests", f"party {SERVICE}Segment0Replica0 package"),
        ],
    )
    def test_a_digest_that_is_not_listed(
        self,
        field: str,
        finding: str,
        draft: Draft,
        deployment: Deployment,
        now: datetime,
    ) -> None:
        other: dict[str, Any] = {field: (digest_json("another"),)}
        trust = replace(deployment.trust, **other)
        assert finding in rejected(draft.bundle(), trust, now)

    @pytest.mark.parametrize(
        ("field", "shown"),
        [
            ("plan_digests", "plan_digest"),
            ("config_digests", "config_digest"),
            ("package_digests", f"party {SERVICE}Segment0Replica0 package"),
            ("scenarios", "scenarios"),
        ],
    )
    def test_what_is_left_out_shows(
        self,
        field: str,
        shown: str,
        draft: Draft,
        deployment: Deployment,
        now: datetime,
    ) -> None:
        left_out: dict[str, Any] = {field: Unchecked("a trial")}
        trust = replace(deployment.trust, **left_out)
        verdict = verify_bundle(draft.bundle(), trust, now=now)
        assert (shown, "a trial") in {(u.field, u.reason) for u in verdict.unchecked}

    @pytest.mark.parametrize(
        "scenarios",
        [{"general": digest_json("another")}, {"critical": digest_json("another")}],
        ids=["another of that name", "none of that name"],
    )
    def test_a_scenario_that_is_not_listed(
        self,
        scenarios: dict[str, Any],
        draft: Draft,
        deployment: Deployment,
        now: datetime,
    ) -> None:
        trust = replace(deployment.trust, scenarios=scenarios)
        assert "scenario in the trust file" in rejected(draft.bundle(), trust, now)

    def test_a_quorum_below_the_minimum(
        self, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        trust = replace(deployment.trust, minimum_quorum=3)
        assert rejected(draft.bundle(), trust, now) == {"scenario quorum"}

    def test_evidence_under_a_foreign_root(
        self, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        foreign = replace(deployment.trust, policy=build_deployment().policy)
        fields = rejected(draft.bundle(), foreign, now)
        assert f"party {SERVICE} evidence root" in fields


class TestIndependence:
    def test_replicas_on_one_platform_are_one_voice(self, now: datetime) -> None:
        hosts = {
            f"{SERVICE}Segment0Replica{replica}": "simulated-host"
            for replica in range(3)
        }
        deployment = build_deployment(platforms=hosts)
        bundle = build_draft(deployment).bundle()
        verify_bundle(bundle, deployment.trust, now=now)
        trust = replace(deployment.trust, independence=Independence.PLATFORM)
        assert rejected(bundle, trust, now) == {"infer 0 segment 0 independence"}

    def test_two_platforms_are_enough_for_a_quorum_of_two(self, now: datetime) -> None:
        hosts = {
            f"{SERVICE}Segment0Replica{replica}": "simulated-host"
            for replica in range(2)
        }
        deployment = build_deployment(platforms=hosts)
        trust = replace(deployment.trust, independence=Independence.PLATFORM)
        bundle = build_draft(deployment).bundle()
        assert verify_bundle(bundle, trust, now=now).state is State.ACCEPTED

    def test_only_replicas_that_agree_count(self, now: datetime) -> None:
        hosts = {
            f"{SERVICE}Segment0Replica{replica}": "simulated-host"
            for replica in range(2)
        }
        deployment = build_deployment(platforms=hosts)
        trust = replace(deployment.trust, independence=Independence.PLATFORM)
        liar = build_draft(deployment, behaviours={(0, 0, 2): Behaviour.LIAR})
        fields = rejected(liar.bundle(), trust, now)
        assert fields == {"infer 0 segment 0 independence"}

    def test_simulated_evidence_has_one_vendor(
        self, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        trust = replace(deployment.trust, independence=Independence.VENDOR)
        assert "infer 0 segment 1 independence" in rejected(draft.bundle(), trust, now)


class TestMissingEndorsements:
    @pytest.fixture(autouse=True)
    def _no_endorsement(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def verify(
            self: Simulated, evidence: Evidence, endorsements: object, *, now: datetime
        ) -> VerifiedClaims:
            raise UnavailableError("no endorsement of type VCEK was given")

        monkeypatch.setattr(Simulated, "verify", verify)

    def test_no_verdict_without_them(
        self, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        with pytest.raises(UnavailableError, match="VCEK"):
            verify_bundle(draft.bundle(), deployment.trust, now=now)

    def test_what_fails_anyway_is_rejected(
        self, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        trust = replace(deployment.trust, minimum_quorum=3)
        assert rejected(draft.bundle(), trust, now) == {"scenario quorum"}


class TestOpening:
    def test_bodies_and_tensors_that_fit(
        self, draft: Draft, deployment: Deployment, now: datetime
    ) -> None:
        for request, response in (
            (draft.request, draft.response),
            (draft.inputs, draft.outputs),
            (draft.request, None),
            (None, draft.outputs),
        ):
            opening = Opening(salt=draft.salt, request=request, response=response)
            verdict = verify_bundle(
                draft.bundle(), deployment.trust, now=now, opening=opening
            )
            assert verdict.claims["labels"]["opening"] == "checked"

    @pytest.mark.parametrize(
        ("changes", "finding"),
        [
            ({"request": b"{}"}, "opening request"),
            ({"response": b"{}"}, "opening response"),
            ({"request": {"x": np.zeros((1, 4), np.float32)}}, "opening request x"),
            (
                {"request": {"z": np.zeros((1, 4), np.float32)}},
                "opening request tensors",
            ),
            ({"response": {}}, "opening response tensors"),
            ({"salt": bytes(32)}, "opening request"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_does_not_fit(
        self,
        changes: dict[str, Any],
        finding: str,
        draft: Draft,
        deployment: Deployment,
        now: datetime,
    ) -> None:
        held = {
            "salt": draft.salt,
            "request": draft.request,
            "response": draft.response,
        }
        opening = Opening(**{**held, **changes})
        fields = rejected(draft.bundle(), deployment.trust, now, opening=opening)
        assert finding in fields

    @pytest.mark.parametrize(
        ("held", "match"),
        [
            ({"salt": None, "request": b""}, "no root salt"),
            ({"salt": bytes(31), "request": b""}, "31 bytes"),
            ({"salt": bytes(32)}, "nothing to compare"),
        ],
    )
    def test_an_opening_that_cannot_be_meant(
        self, held: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=match):
            Opening(**held)


def guess(draft: Draft, salt: bytes) -> list[tuple[int, ...]]:
    """Try all inputs of four bits, as a stranger who sees the receipt would."""
    committed = draft.receipt.infers[0].inputs["x"]
    return [
        bits
        for bits in itertools.product((0, 1), repeat=4)
        if commit({"x": np.array([bits], np.float32)}, {"x": salt})["x"] == committed
    ]


class TestLowEntropyInput:
    """Four features, each 0 or 1: sixteen inputs to try."""

    SECRET = (1, 0, 1, 1)

    def test_a_receipt_does_not_let_a_stranger_guess_it(
        self, deployment: Deployment
    ) -> None:
        inputs = {"x": np.array([self.SECRET], np.float32)}
        draft = build_draft(deployment, inputs=inputs)
        public = [
            bytes(32),
            bytes.fromhex(draft.receipt.client_nonce),
            bytes.fromhex(draft.receipt.draw.r),
            bytes.fromhex(draft.receipt.receipt_id).ljust(32, b"\0"),
        ]
        assert not any(guess(draft, salt) for salt in public)
        body = draft.bundle().receipt.payload
        assert draft.salt.hex().encode() not in body

    def test_without_salts_it_would(self, deployment: Deployment) -> None:
        inputs = {"x": np.array([self.SECRET], np.float32)}
        draft = build_draft(deployment, inputs=inputs, salt_of=lambda *_: bytes(32))
        assert guess(draft, bytes(32)) == [self.SECRET]

    def test_equal_inputs_of_two_requests_do_not_show_as_equal(
        self, deployment: Deployment
    ) -> None:
        first = build_draft(deployment, label="one").receipt.infers[0]
        second = build_draft(deployment, label="two").receipt.infers[0]
        assert first.inputs["x"] != second.inputs["x"]
