"""docs/audits.md: its tables and its console are what the code says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bentoml_secure.audit.capture import capture, captured_with_aborts
from bentoml_secure.audit.challenge import CHALLENGE_LABEL, LOT_LABEL
from bentoml_secure.audit.merkle import MERKLE
from bentoml_secure.audit.sampling import AUDIT_LABEL
from bentoml_secure.cli import main
from bentoml_secure.consensus.committee import SEED_LABEL
from bentoml_secure.receipts.attachments import predicate_type
from bentoml_secure.receipts.audit import AUDIT
from bentoml_secure.receipts.epoch import EPOCH
from bentoml_secure.receipts.epoch_root import NONCE_TYPE, ROOT_TYPE

PAGE = (Path(__file__).parents[3] / "docs" / "audits.md").read_text()


def rows(name: str) -> Iterator[tuple[list[int], list[str]]]:
    """Yield N, k, quorum and M of each row of a table, and the figures beside."""
    after = PAGE.split(f"<!-- table: {name} -->\n")[1].split("\n\n")[0]
    for line in after.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        yield [int(cell) for cell in cells[:4]], cells[4:]


def test_the_table_of_bias_is_computed() -> None:
    found = list(rows("bias"))
    assert len(found) == 6
    for (n, k, q, m), figures in found:
        want = [
            captured_with_aborts(
                capture(replicas=n, colluders=m, committee=k, quorum=q, spares=spares),
                rounds=1,
                aborts=aborts,
            )
            for spares in (0, 1, 2)
            for aborts in (0, 1, 5)
        ]
        assert figures == [f"{chance:.3f}" for chance in want]


def test_the_table_of_weights_is_computed() -> None:
    found = list(rows("weights"))
    assert len(found) == 4
    for (n, k, q, m), figures in found:
        want = [
            capture(
                replicas=n, colluders=m, committee=k, quorum=q, colluder_weight=weight
            )
            for weight in (0.5, 1, 2, 4, 200)
        ]
        assert figures == [f"{chance:.3f}" for chance in want]


def test_the_console_is_what_the_command_prints() -> None:
    block = re.search(
        r"<!-- console: plan-audit -->\n```\n\$ bentoml-secure (.*)\n([^`]*)```", PAGE
    )
    assert block is not None
    result = CliRunner().invoke(main, block[1].split())
    assert result.exit_code == 0
    assert result.stdout == block[2]


@pytest.mark.parametrize(
    "label",
    [
        SEED_LABEL,
        AUDIT_LABEL,
        CHALLENGE_LABEL,
        LOT_LABEL,
        MERKLE.encode(),
        NONCE_TYPE.encode(),
        ROOT_TYPE.encode(),
        predicate_type(AUDIT).encode(),
        predicate_type(EPOCH).encode(),
    ],
)
def test_labels_on_the_page_are_those_of_the_code(label: bytes) -> None:
    assert label.decode() in PAGE
