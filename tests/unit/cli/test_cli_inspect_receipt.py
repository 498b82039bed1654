"""``inspect receipt``: shown, never vouched for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bentoml_secure.scenario import Mode
from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.deployment import Deployment, build_deployment
from bentoml_secure.testing.receipts import Behaviour, build_draft
from bentoml_secure.testing.tampering import with_record
from tests.unit.cli.conftest import Run, Write


def test_it_shows_rounds_and_parties(
    run: Run, write: Write, deployment: Deployment
) -> None:
    draft = build_draft(
        deployment,
        behaviours={(0, 0, 1): Behaviour.LIAR, (0, 1, 2): Behaviour.LATE},
    )
    result = run("inspect", "receipt", write(draft.bundle()))
    assert result.exit_code == 0
    assert f"receipt: {draft.receipt.receipt_id}" in result.stdout
    assert "segment 0: 2 of 3 agree" in result.stdout
    assert "dissent DSegment0Replica1" in result.stdout
    assert "pending DSegment1Replica2" in result.stdout
    assert "must follow: late-votes by" in result.stdout


def test_a_forged_one_is_shown_as_not_verified(
    run: Run, write: Write, deployment: Deployment
) -> None:
    forged = build_draft(deployment).bundle(key=SigningKey.generate())
    result = run("inspect", "receipt", write(forged))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("NOT VERIFIED")


def test_a_malformed_one_is_rejected(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_text('{"version": 1}')
    result = run("inspect", "receipt", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")


def test_it_shows_skips_and_rulings(run: Run, write: Write) -> None:
    deployment = build_deployment(
        replicas=5,
        committee=3,
        audit_rate=0.0,
        terms={"spares": 1, "referee": True, "commit_reveal": True},
    )
    names = [runner.name for runner in deployment.runners[0]]
    gone = Behaviour.ABSENT
    acting = [gone, Behaviour.LIAR, Behaviour.OTHER_LIAR, gone, gone]
    draft = build_draft(
        deployment,
        behaviours={(0, 0, seat): behaviour for seat, behaviour in enumerate(acting)},
        # The first is drawn as good as surely.
        weights=dict.fromkeys(names, 0.01) | {names[0]: 2.0},
    )
    result = run("inspect", "receipt", write(draft.bundle()))
    assert "1 of 3 agree, served DSegment0Referee, the referee" in result.stdout
    assert "; skipped DSegment0Replica0" in result.stdout
    assert "not blind" not in result.stdout
    assert "infer 0, segment 1: 3 of 3 agree" in result.stdout


def test_it_shows_who_was_not_blind(run: Run, write: Write) -> None:
    deployment = build_deployment(terms={"commit_reveal": True})
    draft = build_draft(deployment)
    made = draft.receipt.infers[0].segments[0].commitments
    seen = replace(made["DSegment0Replica1"], blind=False)
    forged = with_record(draft, 0, commitments={**made, "DSegment0Replica1": seen})
    result = run("inspect", "receipt", write(forged.bundle()))
    assert "not blind DSegment0Replica1" in result.stdout


def test_it_shows_chains(run: Run, write: Write) -> None:
    deployment = build_deployment(terms={"mode": Mode.END_TO_END})
    draft = build_draft(deployment, behaviours={(0, 1, 2): Behaviour.LIAR})
    result = run("inspect", "receipt", write(draft.bundle()))
    assert "infer 0, chains: 2 of 3 agree, served DSegment1Replica" in result.stdout
    assert "; dissent DSegment1Replica2" in result.stdout
