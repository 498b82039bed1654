"""How many replicas may lie: f of 2f+1, and what happens beyond."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bentoml_secure.errors import QuorumNotReached
from tests.attacks.targets import Rogues, Target, error_of
from tests.harness import sample

FIRST, SECOND, THIRD = (f"AttackedSegment1Replica{index}" for index in range(3))


def dissent_of(target: Target, replica: str) -> float:
    pattern = rf'^bentoml_secure_replica_dissent_total{{.*replica="{replica}".*}} (\S+)'
    found = re.search(pattern, target.served.metrics(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_one_liar_is_outvoted_and_named_everywhere(
    besieged: Target, rogues: Rogues
) -> None:
    before = dissent_of(besieged, SECOND)
    with rogues.behaving(**{SECOND: "scaled"}):
        answer = besieged.ask()
    (dissenter,) = answer.verdict.claims["dissenters"]
    assert (dissenter["segment"], dissenter["replica"]) == (1, SECOND)
    assert dissent_of(besieged, SECOND) == before + 1
    besieged.wait_until_whole()


def test_two_that_lie_alike_are_believed(besieged: Target, rogues: Rogues) -> None:
    """The stated limit: f+1 colluding replicas of one segment decide its answer."""
    features = sample(2, seed=9)
    with rogues.behaving(**{SECOND: "scaled", THIRD: "scaled"}):
        response = besieged.post(features=features.tolist())
    assert response.status_code == 200
    got = np.asarray(response.json()["malignant"], np.float32)
    honest = besieged.project.expected(features)[:, 0]
    np.testing.assert_allclose(got, honest * 1.01, rtol=1e-5)
    besieged.wait_until_whole()


def test_two_that_lie_differently_leave_no_quorum(
    besieged: Target, rogues: Rogues
) -> None:
    with (
        rogues.behaving(**{SECOND: "noisy", THIRD: "noisy"}),
        pytest.raises(QuorumNotReached, match="3 distinct answers") as refused,
    ):
        besieged.ask()
    assert sorted(refused.value.tally["groups"]) == [[FIRST], [SECOND], [THIRD]]
    assert refused.value.tally["accepted"] is False
    assert refused.value.tally["medoid"] is None
    besieged.wait_until_whole()


def test_one_liar_and_one_dead_leave_no_quorum(
    besieged: Target, rogues: Rogues
) -> None:
    with rogues.behaving(**{SECOND: "scaled", THIRD: "dead"}):
        response = besieged.post()
    assert response.status_code == 503
    error = error_of(response)
    assert error["code"] == "quorum-not-reached"
    assert sorted(error["tally"]["groups"]) == [[FIRST], [SECOND]]
    (absent,) = error["tally"]["absent"]
    assert absent["replica"] == THIRD
    assert re.search("ConnectionRefused|connection lost", absent["reason"])
    besieged.wait_until_whole()


def test_one_dead_is_no_reason_to_refuse(besieged: Target, rogues: Rogues) -> None:
    with rogues.behaving(**{FIRST: "dead"}):
        answer = besieged.ask()
        assert FIRST in {a["replica"] for a in answer.verdict.claims["absent"]}
    besieged.wait_until_whole()


def test_a_handler_cannot_swallow_a_refusal(besieged: Target, rogues: Rogues) -> None:
    with rogues.behaving(**{SECOND: "noisy", THIRD: "noisy"}):
        response = besieged.post("swallow")
    assert response.status_code == 503
    assert error_of(response)["code"] == "quorum-not-reached"
    assert "bsec-receipt-id" not in response.headers
    besieged.wait_until_whole()
