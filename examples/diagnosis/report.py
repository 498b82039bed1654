"""What the demo found: figures of each run, in a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from examples.diagnosis.asking import Asked, percentile_ms

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifications:
    """What the service counted, from its ``/metrics``: results of verifications.

    Attributes:
        passed: Those that passed.
        all: Passed, failed, or ended by an error.
        others: Mechanism of each that did not pass, sorted.
    """

    passed: int
    all: int
    others: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Verifications:
        """Read ``bentoml_secure_verifications_total``."""
        passed, others = 0, []
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name != "bentoml_secure_verifications_total":
                    continue
                if sample.labels["result"] == "pass":
                    passed += int(sample.value)
                else:
                    others += [sample.labels["mechanism"]] * int(sample.value)
        return cls(
            passed=passed, all=passed + len(others), others=tuple(sorted(others))
        )

    def __str__(self) -> str:
        rate = self.passed / self.all if self.all else 0.0
        return f"{self.passed}/{self.all} ({rate:.2%})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The test set, sent once.

    Attributes:
        title: Of its column.
        asked: One per sample, in the order of the test set.
        expected: float32[samples], the whole model's.
        labels: float32[samples], 1 = malignant.
        reverified: Receipts that also held when judged from their files.
        verifications: What the service counted.
    """

    title: str
    asked: Sequence[Asked]
    expected: NDArray[np.float32]
    labels: NDArray[np.float32]
    reverified: int
    verifications: Verifications

    @property
    def equal(self) -> int:
        """How many answers have the very bits of the whole model's."""
        return sum(
            asked.malignant.tobytes() == wanted.tobytes()
            for asked, wanted in zip(self.asked, self.expected, strict=True)
        )

    def named(self, of: Callable[[Asked], set[str]]) -> Counter[str]:
        """Count in how many receipts each replica is named."""
        return Counter(name for asked in self.asked for name in of(asked))

    def cells(self) -> list[tuple[str, str]]:
        """Return the rows of the run's column: what, and the figure."""
        count = len(self.asked)
        served = np.array([asked.malignant for asked in self.asked])
        accuracy = np.mean((served >= 0.5) == (self.labels >= 0.5))
        answers = [asked.answer_seconds for asked in self.asked]
        verified = [asked.verified_seconds for asked in self.asked]
        return [
            ("requests answered", f"{count}"),
            ("accuracy on unseen samples", f"{accuracy:.1%}"),
            ("equal to the whole model, bit for bit", f"{self.equal}/{count}"),
            ("answer in, median / p95", _milliseconds(answers)),
            ("answer verified in, median / p95", _milliseconds(verified)),
            ("answered otherwise", listed(self.named(Asked.dissenters))),
            ("gave no answer", listed(self.named(Asked.absent))),
            ("had no vote: in quarantine", listed(self.named(Asked.quarantined))),
            ("receipts verified by the client", f"{count}/{count}"),
            ("receipts verified again, offline", f"{self.reverified}/{count}"),
            ("verification rate of the service", str(self.verifications)),
            (
                "verifications that did not pass",
                listed(Counter(self.verifications.others)),
            ),
        ]


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{percentile_ms(seconds, 50):.0f} / {percentile_ms(seconds, 95):.0f} ms"


def listed(named: Counter[str]) -> str:
    """Return names with their counts, or "none"."""
    shown = (
        f"{name.removeprefix('Diagnosis')} x{n}" for name, n in sorted(named.items())
    )
    return ", ".join(shown) or "none"


def table(runs: Sequence[Run]) -> str:
    """Return the figures of runs side by side, in a box of plain characters."""
    columns = [run.cells() for run in runs]
    rows = [["", *(run.title for run in runs)]]
    for cells in zip(*columns, strict=True):
        rows.append([cells[0][0], *(figure for _, figure in cells)])
    return boxed(rows)


def boxed(rows: Rows) -> str:
    """Return rows in a box, the first of them as the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "+".join(["", *("-" * (width + 2) for width in widths), ""])
    lines = [
        "|".join(
            [
                "",
                *(f" {cell:<{n}} " for cell, n in zip(row, widths, strict=True)),
                "",
            ]
        )
        for row in rows
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])
