"""``inspect receipt``: shown, never vouched for."""

from __future__ import annotations

from pathlib import Path

from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Behaviour, build_draft
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
