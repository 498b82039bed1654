"""``plan-audit``: options, the table, the JSON, refusals."""

from __future__ import annotations

import json

import pytest

from bentoml_secure.audit.planning import Terms, forecast
from tests.unit.cli.conftest import Run

OPTIONS = {
    "--replicas": "7",
    "--committee": "3",
    "--quorum": "2",
    "--colluders": "2",
    "--audit-rate": "0.05",
    "--stake": "20",
    "--gain": "1",
    "--requests": "100",
}
TERMS = Terms(
    replicas=7,
    committee=3,
    quorum=2,
    colluders=2,
    audit_rate=0.05,
    stake=20.0,
    gain=1.0,
    requests=100,
)


def arguments(**changes: str) -> list[str]:
    given = OPTIONS | {f"--{k.replace('_', '-')}": v for k, v in changes.items()}
    return ["plan-audit", *(part for pair in given.items() for part in pair)]


def test_the_table_has_every_figure(run: Run) -> None:
    result = run(*arguments())
    assert (result.exit_code, result.stderr) == (0, "")
    made = forecast(TERMS)
    first, *rest = result.stdout.splitlines()
    assert first.startswith("3 of 7 replicas asked, 2 must agree, 2 collude; 0.05 of")
    values = [line.split()[-1] for line in rest if line.startswith("  ")]
    figures = [
        made.capture_per_round,
        made.capture_per_request,
        made.capture_by_entry,
        made.unaudited_by_entry,
        made.lone_cheater_seen,
        made.caught_after_cheats,
        made.caught_after_requests,
        made.mean_cheats_until_caught,
        made.cheats_until_confident,
        made.runs_per_request,
        made.false_alarm,
        made.deterring_rate,
        made.margin_per_cheat,
        made.check_passes,
        made.runs_with_checks,
        made.challenged_after_cheats,
        made.evaded_by_entry,
        made.runs_of_proofs,
    ]
    assert values == [f"{figure:.4g}" for figure in figures]
    assert len(figures) == len(made.to_json())
    assert {len(line) for line in rest if line.startswith("  ")} == {70}


def test_what_never_happens_is_said(run: Run) -> None:
    result = run(*arguments(audit_rate="0", sensitivity="0", colluders="1"))
    assert result.exit_code == 0
    assert result.stdout.count("never") == 3


def test_json_is_one_object_with_all_terms(run: Run) -> None:
    extra = {
        "sensitivity": "0.9",
        "aborts": "3",
        "spares": "1",
        "escalation": "1",
        "rounds": "4",
        "colluder_weight": "2",
        "pair_excess": "0.001",
        "check_cost": "0.25",
        "challenge_rate": "0.05",
        "auditors": "2",
        "tries": "1000",
        "proof_cost": "5000",
    }
    result = run(*arguments(**extra), "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    terms = Terms(
        replicas=7,
        committee=3,
        quorum=2,
        colluders=2,
        audit_rate=0.05,
        sensitivity=0.9,
        stake=20.0,
        gain=1.0,
        requests=100,
        aborts=3,
        spares=1,
        escalation=1,
        rounds=4,
        colluder_weight=2.0,
        pair_excess=0.001,
        check_cost=0.25,
        challenge_rate=0.05,
        auditors=2,
        tries=1000,
        proof_cost=5000.0,
    )
    assert document == {
        "terms": terms.to_json(),
        "forecast": forecast(terms).to_json(),
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audit_rate": "1.5"}, "not in the range"),
        ({"audit_rate": "nan"}, "audit rate: got nan, want 0 to 1"),
        ({"quorum": "1"}, "quorum: got 1, want 2 to 3"),
        ({"quorum": "4"}, "quorum: got 4, want 2 to 3"),
        ({"committee": "8"}, "committee: got 8, want 1 to 7"),
        ({"replicas": "100"}, "replicas: got 100, want 1 to 64"),
        ({"colluders": "8"}, "colluders: got 8, want 0 to 7"),
        ({"colluders": "-1"}, "not in the range"),
        ({"spares": "5"}, "spares: got 5, want 0 to 4"),
        ({"colluder_weight": "0"}, "not in the range"),
        ({"colluder_weight": "inf"}, "colluder weight: got inf"),
        ({"stake": "-1"}, "not in the range"),
        ({"stake": "inf"}, "stake: got inf"),
        ({"gain": "nan"}, "gain: got nan"),
        ({"requests": "0"}, "not in the range"),
        ({"requests": "1.5"}, "not a valid integer"),
        ({"rounds": "99999999"}, "rounds: got 99999999"),
        ({"aborts": "9999999"}, "aborts: got 9999999"),
        ({"challenge_rate": "2"}, "not in the range"),
        ({"auditors": "17"}, "auditors: got 17, want 0 to 16"),
        ({"tries": "9999999999999999999"}, "tries: got 9999999999999999999"),
        ({"check_cost": "inf"}, "check cost: got inf"),
        ({"proof_cost": "nan"}, "proof cost: got nan"),
    ],
)
def test_refusals_are_usage_errors(
    run: Run, changes: dict[str, str], said: str
) -> None:
    result = run(*arguments(**changes))
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_what_is_planned_must_be_said(run: Run, option: str) -> None:
    given = arguments()
    at = given.index(option)
    result = run(*given[:at], *given[at + 2 :])
    assert result.exit_code == 2
    assert f"Missing option '{option}'" in result.stderr
