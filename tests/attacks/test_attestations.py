"""A replica that shows somebody else's evidence is given up, and says why."""

from __future__ import annotations

import re
import time

import pytest

from bentoml_secure.testing.rogue.attestations import ATTESTATIONS
from tests.attacks.targets import Rogues, Target, error_of

ROGUE = "AttackedSegment1Replica2"

REASONS = {
    "neighbour": "key document service: got AttackedSegment1Replica0",
    "neighbours-key": "report_data: got",
    "other-role": "entry .* role: got entry, want runner",
    "other-service": "key document service: got Somebody",
    "other-segment": "key document segment: got sha256-jcs-v1:0000",
    "other-plan": " plan: got sha256-jcs-v1:0000",
    "other-package": " package: got sha256-jcs-v1:0000",
    "other-config": " config_digest: got sha256-jcs-v1:0000",
    "ended": "not_after: got",
    "replayed": "report_data: got",
    "unknown-root": "root: got sha256:",
    "unknown-field": "evidence record: ",
    "too-long": "endorsement 0",
}


def test_every_attestation_is_tried() -> None:
    assert REASONS.keys() == ATTESTATIONS.keys()


@pytest.mark.parametrize("behaviour", REASONS)
def test_evidence_of_something_else_is_refused(
    besieged: Target, rogues: Rogues, behaviour: str
) -> None:
    with besieged.watched():
        try:
            # As after a restart: a key that is not the attested one, so the entry asks
            # for evidence at once.
            rogues.behave(ROGUE, infer="other-key", attest=behaviour)
            reason = reason_once_given_up(besieged)
            assert re.search(f"not attested: .*{REASONS[behaviour]}", reason), reason
            answer = besieged.ask()
            assert ROGUE in {a["replica"] for a in answer.verdict.claims["absent"]}
            # Whom the entry never believed is no party of the receipt.
            parties = {party["name"] for party in answer.verdict.claims["parties"]}
            assert ROGUE not in parties
        finally:
            rogues.behave(ROGUE)
    # Soon: not at the next routine renewal, minutes later.
    besieged.wait_until_whole(5)


def reason_once_given_up(target: Target, seconds: float = 5.0) -> str:
    ends = time.monotonic() + seconds
    while True:
        tally = error_of(target.post(scenario="unanimous"))["tally"]
        reason: str = tally["absent"][0]["reason"]
        if "not attested" in reason or time.monotonic() > ends:
            return reason
