"""What /metrics counts is what a test counted, over all processes of a deployment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from bentoml_secure.client import Answer
from tests.harness import client_of
from tests.service.counters import Key, attested_series, scrape, series
from tests.service.deployments import REPLICAS, Deployment, eventually

LIAR = "DiagnosisSegment0Replica1"
GOOD, LIED, REFUSED = 12, 7, 5


def settled(deployment: Deployment) -> Counter[Key]:
    """Scrape when nothing is under way: every receipt issued is completed."""
    issued = series("receipts_total", scenario="general", state="issued")
    completed = series("receipts_total", scenario="general", state="completed")

    def look() -> Counter[Key] | None:
        counts = scrape(deployment.entry.metrics())
        return counts if counts[issued] == counts[completed] else None

    return eventually(look, seconds=10, what="every receipt is completed")


def of_requests(counts: Counter[Key]) -> Counter[Key]:
    """Return what requests count; attestation and the ledger go on by themselves."""
    return Counter(
        {
            key: value
            for key, value in counts.items()
            if value
            and key[0] not in {"attested", "reputation"}
            and "mechanism=attestation" not in key
        }
    )


def counted(
    answers: Iterable[Answer], tallies: Iterable[dict[str, Any]]
) -> Counter[Key]:
    """Return what must have been counted, by the receipts and refusals alone."""
    counts: Counter[Key] = Counter()
    for answer in answers:
        claims = answer.verdict.claims
        for state in ("issued", "completed"):
            counts[series("receipts_total", scenario="general", state=state)] += 1
        counts[series("request_overhead_seconds_count", mechanism="receipt")] += 1
        for segment in ("0", "1"):
            away = [a for a in claims["absent"] if str(a["segment"]) == segment]
            count_round(counts, segment, "agreed", 3 - len(away))
        for dissent in claims["dissenters"]:
            labels = {key: str(dissent[key]) for key in ("segment", "replica")}
            counts[series("replica_dissent_total", **labels)] += 1
    for tally in tallies:
        count_round(
            counts, "0", "refused", 3 - len(tally["absent"]) - len(tally["pending"])
        )
    return counts


def count_round(
    counts: Counter[Key], segment: str, outcome: str, statements: int
) -> None:
    """Count one round of consensus and the statements verified in it."""
    result = "pass" if outcome == "agreed" else "fail"
    counts[series("quorum_total", segment=segment, outcome=outcome)] += 1
    verified = {"mechanism": "consensus", "segment": segment, "result": result}
    counts[series("verifications_total", **verified)] += 1
    verified = {"mechanism": "statement", "segment": segment}
    timed = series("verification_seconds_count", **verified)
    counts[timed] += statements
    counts[series("verifications_total", result="pass", **verified)] += statements


def test_a_known_sequence_is_counted_exactly(deployment: Deployment) -> None:
    before = settled(deployment)
    with deployment.client() as client, deployment.http() as http:
        answers = [deployment.ask(client) for _ in range(GOOD)]
        with deployment.switched("lie-1"):
            lied = [deployment.ask(client) for _ in range(LIED)]
        with deployment.switched("lie-1", "lie-2"):
            refused = [deployment.post(http) for _ in range(REFUSED)]
    assert {response.status_code for response in refused} == {503}
    tallies = [response.json()["error"]["tally"] for response in refused]
    # The test's own view first: the liar is named in every receipt it lied for.
    for answer in lied:
        named = [d["replica"] for d in answer.verdict.claims["dissenters"]]
        assert named == [LIAR]
    for answer in answers:
        assert answer.verdict.claims["dissenters"] == []
    after = settled(deployment)
    want = counted([*answers, *lied], tallies)
    assert want[series("replica_dissent_total", segment="0", replica=LIAR)] == LIED
    assert of_requests(after) - of_requests(before) == want
    assert of_requests(settled(deployment)) == of_requests(after)


def test_every_replica_is_attested_and_its_kind_says_simulated(
    deployment: Deployment,
) -> None:
    counts = settled(deployment)
    attested = {key: value for key, value in counts.items() if key[0] == "attested"}
    assert attested == {attested_series(name): 1 for name in REPLICAS}
    for segment in ("0", "1"):
        labels = {"mechanism": "attestation", "segment": segment}
        passed = counts[series("verifications_total", result="pass", **labels)]
        assert passed >= 3
        assert passed == counts[series("verification_seconds_count", **labels)]


@pytest.mark.parametrize("replica", [REPLICAS[0], REPLICAS[-1]])
def test_a_runner_of_the_same_start_shows_the_same_counters(
    deployment: Deployment, replica: str
) -> None:
    with client_of(deployment.entry.replica_urls()[replica], timeout=10) as runner:
        shown = scrape(runner.get("/metrics").text)
    assert of_requests(shown) == of_requests(settled(deployment))
