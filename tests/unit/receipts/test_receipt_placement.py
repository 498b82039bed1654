"""Voices and places, counted again by who judges the receipt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import ConfigurationError, MalformedInputError, ReceiptError
from bentoml_secure.receipts.bundle import Bundle, parse_bundle
from bentoml_secure.receipts.receipt import parse_receipt
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.scenario import Independence
from bentoml_secure.testing.deployment import SERVICE, Deployment, build_deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft

PLATFORM, VENDOR = Independence.PLATFORM, Independence.VENDOR


def deployed(*platforms: str, **settings: Any) -> Deployment:
    """Return a deployment whose replicas of segment 0 sit on these platforms."""
    replicas = len(platforms)
    return build_deployment(
        platforms={
            f"{SERVICE}Segment0Replica{replica}": platform
            for replica, platform in enumerate(platforms)
        },
        replicas=replicas,
        quorum=replicas // 2 + 1,
        **settings,
    )


def rejected(bundle: Bundle, trust: Trust, now: datetime) -> dict[str, str]:
    """Return the findings: what was got by field."""
    with pytest.raises(ReceiptError, match="rejected") as error:
        verify_bundle(bundle, trust, now=now)
    return {finding.field: finding.got for finding in error.value.findings}


class TestALyingEntry:
    """It counts two replicas of one host as two, where the scenario says one."""

    def test_two_votes_of_one_platform_are_rejected(self, now: datetime) -> None:
        deployment = deployed("host-a", "host-a", "host-b", independence=PLATFORM)
        forged = build_draft(
            deployment,
            behaviours={(0, 0, 2): Behaviour.LIAR},
            heads_counted=True,
        )
        found = rejected(forged.bundle(), deployment.trust, now)
        assert found == {
            "infer 0 segment 0 tally medoid": f"'{SERVICE}Segment0Replica0'",
            "infer 0 segment 0 tally accepted": "True",
            "infer 0 segment 0 tally dissenters": f"('{SERVICE}Segment0Replica2',)",
            "infer 0 segment 0 independence": (
                "1 platforms among the replicas that agree"
            ),
        }

    def test_without_the_defence_the_same_receipt_is_accepted(
        self, now: datetime
    ) -> None:
        deployment = deployed("host-a", "host-a", "host-b")
        same = build_draft(deployment, behaviours={(0, 0, 2): Behaviour.LIAR})
        verdict = verify_bundle(same.bundle(), deployment.trust, now=now)
        assert verdict.state is State.ACCEPTED
        assert verdict.claims["independence"] == "none"

    def test_a_committee_of_one_platform_is_no_committee(self, now: datetime) -> None:
        deployment = deployed("host", "host", "host", independence=PLATFORM)
        forged = build_draft(deployment, heads_counted=True).bundle()
        found = rejected(forged, deployment.trust, now)
        assert found["infer 0 segment 0 tally voices"] == "1"
        assert "infer 0 segment 0 independence" in found

    def test_a_vote_that_comes_late_is_no_voice_of_the_quorum(
        self, now: datetime
    ) -> None:
        """The second host answered after the decision, which was no decision."""
        deployment = deployed("host-a", "host-a", "host-b", independence=PLATFORM)
        forged = build_draft(
            deployment, behaviours={(0, 0, 2): Behaviour.LATE}, heads_counted=True
        )
        found = rejected(forged.bundle(), deployment.trust, now)
        assert "infer 0 segment 0 independence" in found
        assert "infer 0 segment 0 tally accepted" in found

    def test_the_medoid_of_heads_is_not_that_of_voices(self, now: datetime) -> None:
        """Three that share a host pulled the served answer to theirs."""
        near = {(0, 0, seat): Behaviour.NEAR for seat in range(3)}
        deployment = deployed("a", "a", "a", "b", "c", independence=PLATFORM)
        honest = build_draft(deployment, behaviours=near)
        medoid = honest.receipt.infers[0].segments[0].tally.medoid
        assert medoid in {f"{SERVICE}Segment0Replica{seat}" for seat in (3, 4)}
        verify_bundle(honest.bundle(), deployment.trust, now=now)
        forged = build_draft(deployment, behaviours=near, heads_counted=True)
        found = rejected(forged.bundle(), deployment.trust, now)
        (pulled,) = found.values()
        assert found.keys() == {"infer 0 segment 0 tally medoid"}
        assert pulled in {f"'{SERVICE}Segment0Replica{seat}'" for seat in range(3)}


class TestAnHonestEntry:
    @pytest.mark.parametrize("last", [Behaviour.HONEST, Behaviour.LIAR])
    def test_two_platforms_of_three_replicas_carry_a_quorum_of_two(
        self, last: Behaviour, now: datetime
    ) -> None:
        deployment = deployed("host-a", "host-b", "host-b", independence=PLATFORM)
        draft = build_draft(deployment, behaviours={(0, 0, 2): last})
        verdict = verify_bundle(draft.bundle(), deployment.trust, now=now)
        assert verdict.state is State.ACCEPTED
        assert verdict.claims["independence"] == "platform"
        platforms = {p["name"]: p["platform_id"] for p in verdict.claims["parties"]}
        assert (
            platforms[f"{SERVICE}Segment0Replica1"]
            == platforms[f"{SERVICE}Segment0Replica2"]
            == "host-b"
        )

    def test_a_replica_without_evidence_is_absent_and_no_voice(
        self, now: datetime
    ) -> None:
        deployment = deployed("host-a", "host-b", "host-c", independence=PLATFORM)
        draft = without(
            build_draft(deployment, behaviours={(0, 0, 1): Behaviour.ABSENT}),
            f"{SERVICE}Segment0Replica1",
        )
        verdict = verify_bundle(draft.bundle(), deployment.trust, now=now)
        assert [a["replica"] for a in verdict.claims["absent"]] == [
            f"{SERVICE}Segment0Replica1"
        ]

    def test_simulated_replicas_are_no_quorum_of_vendors(self) -> None:
        deployment = deployed("host-a", "host-b", "host-c", independence=VENDOR)
        with pytest.raises(ConfigurationError, match="voices: got 1, want at least 2"):
            build_draft(deployment)


class TestATrustFileThatAsksForMore:
    def test_platforms_are_counted_though_the_scenario_does_not(
        self, now: datetime
    ) -> None:
        deployment = deployed("host", "host", "host")
        bundle = build_draft(deployment).bundle()
        verify_bundle(bundle, deployment.trust, now=now)
        trust = replace(deployment.trust, independence=PLATFORM)
        assert set(rejected(bundle, trust, now)) == {"infer 0 segment 0 independence"}

    def test_each_measure_is_counted_for_itself(self, now: datetime) -> None:
        deployment = deployed("host-a", "host-b", "host-c", independence=PLATFORM)
        trust = replace(deployment.trust, independence=VENDOR)
        bundle = build_draft(deployment).bundle()
        assert rejected(bundle, trust, now) == {
            f"infer 0 segment {segment} independence": (
                "1 vendors among the replicas that agree"
            )
            for segment in (0, 1)
        }


def placing(
    placement: dict[str, tuple[str, ...]],
    behaviours: Mapping[tuple[int, int, int], Behaviour] | None = None,
) -> tuple[Draft, Trust]:
    """Return a draft whose scenario says where kinds belong, and trust in that."""
    left = {"unchecked": "a test"}
    kinds = {
        "tdx": {"status": left, "mr_td": left, "rtmr": left},
        "sev-snp": {"measurement": left, "min_tcb": left},
    }
    deployment = build_deployment(terms={"placement": placement}, kinds=kinds)
    return build_draft(deployment, behaviours=behaviours), deployment.trust


def without(draft: Draft, name: str) -> Draft:
    """Return a draft in which a replica never showed evidence."""
    parties = draft.receipt.parties
    (gone,) = [party for party in parties if party.name == name]
    left = tuple(party for party in parties if party is not gone)
    deployment = draft.deployment
    return replace(
        draft,
        receipt=replace(draft.receipt, parties=left),
        evidence=tuple(e for e in draft.evidence if e.digest != gone.evidence),
        deployment=replace(
            deployment,
            runners=tuple(
                tuple(runner for runner in row if runner.name != name)
                for row in deployment.runners
            ),
        ),
    )


class TestPlacement:
    def test_kinds_in_their_places_are_accepted(self, now: datetime) -> None:
        placed, trust = placing({"0": ("simulated", "tdx"), "*": ("simulated",)})
        verdict = verify_bundle(placed.bundle(), trust, now=now)
        assert verdict.state is State.ACCEPTED

    @pytest.mark.parametrize(
        ("placement", "segments"),
        [
            ({"0": ("sev-snp", "tdx")}, [0]),
            ({"1": ("tdx",)}, [1]),
            ({"0": ("simulated",), "*": ("tdx",)}, [1]),
            ({"*": ("tdx",)}, [0, 1]),
        ],
    )
    def test_a_party_out_of_its_place_is_a_finding(
        self,
        placement: dict[str, tuple[str, ...]],
        segments: list[int],
        now: datetime,
    ) -> None:
        placed, trust = placing(placement)
        assert rejected(placed.bundle(), trust, now) == {
            f"party {SERVICE}Segment{segment}Replica{replica} placement": "simulated"
            for segment in segments
            for replica in range(3)
        }

    def test_one_that_did_not_vote_is_a_finding_too(self, now: datetime) -> None:
        """It was asked: it has seen what it must not see."""
        placed, trust = placing({"0": ("tdx",)}, {(0, 0, 1): Behaviour.ABSENT})
        found = rejected(placed.bundle(), trust, now)
        assert f"party {SERVICE}Segment0Replica1 placement" in found

    def test_one_that_was_not_asked_is_none(self, now: datetime) -> None:
        placed, trust = placing({"0": ("tdx",)}, {(0, 0, 1): Behaviour.ABSENT})
        unasked = without(placed, f"{SERVICE}Segment0Replica1")
        found = rejected(unasked.bundle(), trust, now)
        assert set(found) == {
            f"party {SERVICE}Segment0Replica{replica} placement" for replica in (0, 2)
        }


class TestTheScenarioInTheBundle:
    @pytest.mark.parametrize(
        "change",
        [
            lambda scenario: scenario.pop("independence"),
            lambda scenario: scenario.pop("placement"),
            lambda scenario: scenario["placement"].update({"0": ["tdx", "nitro"]}),
        ],
        ids=["no independence", "no placement", "kinds in another order"],
    )
    def test_has_one_spelling(self, change: Any, draft: Draft) -> None:
        document = draft.bundle().to_json()
        change(document["scenario"])
        with pytest.raises(MalformedInputError, match="want every field, kinds sorted"):
            parse_bundle(canonical_json(document))

    def test_comes_back_whole(self, now: datetime) -> None:
        terms = {"placement": {"*": ("simulated",)}}
        hosts = ("host-a", "host-b", "host-c")
        deployment = deployed(*hosts, independence=PLATFORM, terms=terms)
        draft, trust = build_draft(deployment), deployment.trust
        bundle = parse_bundle(canonical_json(draft.bundle().to_json()))
        assert bundle.scenario == draft.deployment.scenario
        receipt = parse_receipt(bundle.receipt)
        assert receipt.scenario_digest == bundle.scenario.digest
        assert verify_bundle(bundle, trust, now=now).state is State.ACCEPTED
