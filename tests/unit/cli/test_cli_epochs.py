"""What people read of a receipt's epoch: whether it is challenged, and who drew."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bentoml_secure.cli.summary import receipt_lines
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.testing.epochs import (
    Gathered,
    auditor_key,
    challenging_deployment,
    gather,
)
from tests.proven_case import set_up


def said(gathered: Gathered) -> list[str]:
    """Return the lines about the epoch of the second of two receipts."""
    verdict = verify_bundle(
        gathered.attach(1),
        gathered.drafts[0].deployment.trust,
        now=gathered.signed_at + timedelta(seconds=1),
    )
    lines = receipt_lines(verdict.to_json())
    at = lines.index("epoch 0: receipt 2 of 2")
    return lines[at + 1 : at + 3]


@pytest.mark.parametrize(
    ("rate", "line"),
    [
        (1e-12, "  not challenged"),
        (1.0, "  challenged, proofs due by 2026-06-01T12:01:13.000Z"),
    ],
)
def test_a_summary_says_who_drew_and_what(rate: float, line: str) -> None:
    gathered = gather(challenging_deployment(rate, set_up()), ["a", "b"])
    alone = "  drawn by the entry alone, which could arrange the epoch to suit itself"
    assert said(gathered) == [line, alone]
    ann = auditor_key("ann").public.key_id
    assert said(gathered.audited("ann")) == [line, f"  drawn by auditor {ann} too"]
